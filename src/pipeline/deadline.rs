//! A request's deadline.

use std::time::{Duration, Instant};

/// The moment by which the answer must be ready.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// So much time from now.
    pub fn after(budget: Duration) -> Self {
        Self(Instant::now() + budget)
    }

    /// Whether at least `needed` is left.
    pub fn allows(&self, needed: Duration) -> bool {
        self.0.saturating_duration_since(Instant::now()) >= needed
    }
}
