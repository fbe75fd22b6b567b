//! Requests of the last moments, kept to be asked again of a bundle that is about to serve: they
//! bring its pages into memory and its code paths into caches before anybody waits for them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::answer::{Answer, Timings};
use super::context::{Call, Context, Scratch};
use super::deadline::Deadline;
use super::engine::Request;
use super::gather;
use super::serving::Serving;
use crate::store::Users;

/// Requests that are kept.
const KEPT: usize = 256;
/// One request in so many is kept, so that the lock is rarely taken.
const EVERY: u64 = 8;
/// A replayed request is never late.
const UNHURRIED: Duration = Duration::from_secs(60);

/// The requests, newest last.
#[derive(Default)]
pub struct Recent {
    seen: AtomicU64,
    kept: Mutex<VecDeque<Request>>,
}

impl Recent {
    /// Keeps a request, or not.
    pub fn offer(&self, request: &Request) {
        if !self.seen.fetch_add(1, Relaxed).is_multiple_of(EVERY) {
            return;
        }
        // Whoever replays holds the lock: this one is not kept.
        let Ok(mut kept) = self.kept.try_lock() else { return };
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(request.clone());
    }

    /// Asks them of `serving` on the calling thread; nothing is counted, kept or logged.
    pub fn replay(&self, serving: &Arc<Serving>, users: &Users) -> usize {
        let requests: Vec<Request> =
            self.kept.lock().map(|kept| kept.iter().cloned().collect()).unwrap_or_default();
        let mut scratch = None;
        for request in &requests {
            scratch = Some(ask(serving, users, request, scratch).1);
        }
        requests.len()
    }
}

/// Asks one request of `serving` on the calling thread, with these buffers or new ones; nothing is
/// counted, kept or logged.
pub fn ask(
    serving: &Arc<Serving>,
    users: &Users,
    request: &Request,
    scratch: Option<Box<Scratch>>,
) -> (Answer, Box<Scratch>) {
    let candidates = serving.settings.pipeline.candidates;
    let state = users.peek(&serving.fit, &request.user_id);
    let user = serving.bundle.users.row_of(&request.user_id.0);
    let (inputs, _) = gather::inputs(serving, user, &state, request, candidates);
    let call = Call {
        serving: serving.clone(),
        inputs: Arc::new(inputs),
        deadline: Deadline::after(UNHURRIED),
        cached: None,
        degraded: Vec::new(),
        timings: Timings::default(),
    };
    let scratch = scratch.unwrap_or_else(|| Box::new(Scratch::new(serving)));
    let mut cx = Context::new(call, scratch);
    let answer = super::run(&mut cx);
    (answer, cx.into_scratch())
}
