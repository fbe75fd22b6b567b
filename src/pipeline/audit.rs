//! Recall in production: some requests are searched again, exactly, off the hot path.
//!
//! Every so often a request is drawn: it leaves its query and what was found in a short queue; one thread compares
//! that with all passing items and publishes the mean over the last [`WINDOW`] of them. What does not
//! fit in the queue is not checked: an audit never delays an answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::context::Context;
use super::serving::Serving;
use crate::index::{self, Filter, Hit};
use crate::types::ItemIdx;
use crate::{ffi, monitor};

/// Requests that wait to be checked.
const QUEUE_MAX: usize = 4;
/// Requests over which the published mean is taken.
const WINDOW: usize = 200;

/// Draws requests and checks them.
pub struct Audit {
    queue: Option<Sender<Sample>>,
    started: Instant,
    interval_ms: u64,
    /// When the next request is drawn, milliseconds since `started`.
    next_ms: AtomicU64,
}

struct Sample {
    serving: Arc<Serving>,
    vector: Vec<f32>,
    region: Option<usize>,
    shown: Vec<ItemIdx>,
    found: Vec<Hit>,
}

impl Audit {
    /// Starts the thread that checks one request every `interval_ms`; none for 0.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(interval_ms: u64) -> std::io::Result<Self> {
        let mut queue = None;
        if interval_ms > 0 {
            let (sender, samples) = bounded(QUEUE_MAX);
            let body = move || check(&samples);
            std::thread::Builder::new().name("recall-audit".to_owned()).spawn(body)?;
            queue = Some(sender);
        }
        Ok(Self { queue, started: Instant::now(), interval_ms, next_ms: AtomicU64::new(0) })
    }

    /// Draws a request whose candidates have been found, or not.
    pub fn offer(&self, cx: &Context) {
        let Some(queue) = &self.queue else { return };
        let (now_ms, next_ms) =
            (self.started.elapsed().as_millis() as u64, self.next_ms.load(Relaxed));
        let after = now_ms + self.interval_ms;
        // One of the requests of this moment is drawn; the others see the next time.
        if now_ms < next_ms
            || self.next_ms.compare_exchange(next_ms, after, Relaxed, Relaxed).is_err()
        {
            return;
        }
        let sample = Sample {
            serving: cx.serving.clone(),
            vector: cx.scratch.vector.clone(),
            region: cx.inputs.region,
            shown: cx.inputs.shown.clone(),
            found: cx.scratch.hits.clone(),
        };
        // Full after all, or the thread has ended: this one is not checked.
        let _ = queue.try_send(sample);
    }
}

fn check(samples: &Receiver<Sample>) {
    ffi::thread::yield_to_others();
    let (mut scratch, mut exact) = (index::Scratch::default(), Vec::new());
    let mut window = VecDeque::with_capacity(WINDOW);
    for sample in samples {
        let bundle = &sample.serving.bundle;
        let filter =
            Filter { allowed: Some(bundle.allowed(sample.region)), excluded: &sample.shown };
        let k = sample.found.len();
        bundle.index.search_exact(&sample.vector, k, &filter, &mut scratch, &mut exact);
        if exact.is_empty() {
            continue;
        }
        if window.len() == WINDOW {
            window.pop_front();
        }
        let scores = sample.found.iter().map(|hit| hit.score);
        window.push_back(index::audit::recall(scores, &exact));
        monitor::index_recall(window.iter().sum::<f64>() / window.len() as f64);
    }
}
