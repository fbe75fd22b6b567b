//! Leaves a Redis alone that has failed several times in a row: without it, every request would
//! pay the timeout.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crate::monitor::Health;

const COMPONENT: &str = "redis";

/// Closed: everybody asks. Open: nobody does, until a pause is over and one may try.
pub struct Breaker {
    start: Instant,
    failures: AtomicU32,
    failures_until_pause: u32,
    pause_ms: u64,
    /// Milliseconds since `start` until which Redis is not asked; 0 when it is.
    open_until_ms: AtomicU64,
    health: Arc<Health>,
}

impl Breaker {
    pub fn new(failures_until_pause: u32, pause_ms: u64, health: Arc<Health>) -> Self {
        Self {
            start: Instant::now(),
            // Full at first, so that the first success is told to health.
            failures: AtomicU32::new(failures_until_pause),
            failures_until_pause,
            pause_ms,
            open_until_ms: AtomicU64::new(0),
            health,
        }
    }

    /// Whether the caller may ask Redis; true for a single caller after each pause.
    pub fn admits(&self) -> bool {
        let (until, now) = (self.open_until_ms.load(Relaxed), self.now_ms());
        until == 0
            || now >= until
                && self
                    .open_until_ms
                    .compare_exchange(until, now + self.pause_ms, Relaxed, Relaxed)
                    .is_ok()
    }

    /// Whether Redis is left alone for now.
    pub fn is_open(&self) -> bool {
        self.open_until_ms.load(Relaxed) != 0
    }

    pub fn succeeded(&self) {
        if self.failures.load(Relaxed) == 0 {
            return;
        }
        if self.failures.swap(0, Relaxed) >= self.failures_until_pause {
            self.open_until_ms.store(0, Relaxed);
            self.health.set(COMPONENT, true, "connected");
            tracing::info!("Redis answers");
        }
    }

    pub fn failed(&self, error: &dyn Display) {
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        if failures == self.failures_until_pause {
            tracing::warn!(%error, failures, "Redis fails; serving without it and retrying");
        }
        if failures >= self.failures_until_pause {
            self.open();
        }
    }

    pub fn open(&self) {
        self.open_until_ms.store(self.now_ms() + self.pause_ms, Relaxed);
        self.health.set(COMPONENT, false, "does not answer; serving without it");
    }

    fn now_ms(&self) -> u64 {
        // 0 stands for closed.
        self.start.elapsed().as_millis() as u64 + 1
    }
}
