//! Requests that are answered once more by both versions, beside the traffic, while nobody sees the
//! challenger: it shows whether it fails and how long it takes before it has users.
//!
//! One thread of low priority, a short queue: what does not fit is not tried. Both versions do the same work
//! in the same place, so their times compare.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::{Trial, Versions, is_sound};
use crate::experiments::Arm;
use crate::pipeline::context::Scratch;
use crate::pipeline::engine::Request;
use crate::pipeline::serving::Serving;
use crate::pipeline::warm;
use crate::store::Users;
use crate::{ffi, monitor};

/// Requests that wait for the thread.
const QUEUE_MAX: usize = 4;

/// Takes the sample.
pub struct Shadow {
    queue: Sender<Job>,
    seen: AtomicU64,
    every: u64,
}

struct Job {
    stable: Arc<Serving>,
    trial: Arc<Trial>,
    request: Request,
}

impl Shadow {
    /// Starts the thread; one request in `every` is tried.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(every: u64, users: Arc<Users>) -> std::io::Result<Self> {
        let (queue, jobs) = bounded(QUEUE_MAX);
        let body = move || work(&jobs, &users);
        std::thread::Builder::new().name("shadow".to_owned()).spawn(body)?;
        Ok(Self { queue, seen: AtomicU64::new(0), every: every.max(1) })
    }

    /// Takes a request into the sample, or not.
    pub fn offer(&self, versions: &Versions, request: &Request) {
        let Some(trial) = &versions.trial else { return };
        if !self.seen.fetch_add(1, Relaxed).is_multiple_of(self.every) || self.queue.is_full() {
            return;
        }
        let (stable, trial) = (versions.stable.clone(), trial.clone());
        // Full after all: this one is not tried.
        let _ = self.queue.try_send(Job { stable, trial, request: request.clone() });
    }
}

fn work(jobs: &Receiver<Job>, users: &Users) {
    ffi::thread::yield_to_others();
    let mut scratches: [Option<Box<Scratch>>; 2] = [None, None];
    for job in jobs {
        let (_, draw) = job.trial.panel.share.arm(&job.request.user_id.0);
        for (arm, serving) in Arm::ALL.into_iter().zip([&job.stable, &job.trial.serving]) {
            let scratch = scratches[arm as usize].take().filter(|scratch| scratch.fits(serving));
            let started = Instant::now();
            let ask = || warm::ask(serving, users, &job.request, scratch);
            // A panic is the challenger's failure, to be counted; its buffers are lost with it.
            let sound = match catch_unwind(AssertUnwindSafe(ask)) {
                Ok((answer, scratch)) => {
                    scratches[arm as usize] = Some(scratch);
                    is_sound(&answer)
                }
                Err(_) => false,
            };
            job.trial.panel.tally.request(arm, draw, sound, started.elapsed());
            if arm == Arm::Challenger {
                monitor::shadow(sound);
            }
        }
    }
}
