//! Draws one request every so often.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Says of one request in a while that it is drawn.
pub struct Every {
    started: Instant,
    interval_ms: u64,
    /// When the next request is drawn, milliseconds since `started`.
    next_ms: AtomicU64,
}

impl Every {
    /// One request each so many milliseconds, the first at once.
    pub fn new(interval_ms: u64) -> Self {
        Self { started: Instant::now(), interval_ms, next_ms: AtomicU64::new(0) }
    }

    /// Whether this request is drawn: of those of one moment one is, and the others see the next time.
    pub fn is_drawn(&self) -> bool {
        let (now, next) = (self.started.elapsed().as_millis() as u64, self.next_ms.load(Relaxed));
        let after = now + self.interval_ms;
        now >= next && self.next_ms.compare_exchange(next, after, Relaxed, Relaxed).is_ok()
    }
}
