//! A request's deadline, and what of it each stage needs.

use std::time::{Duration, Instant};

use serde::Deserialize;

/// Section `[pipeline.budgets_us]`: what parts of a request need at most, microseconds. A part
/// begins when its own need and that of all that must follow are left, else its fallback is taken.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// s2's search; without it, the region's popular items.
    pub candidates: u64,
    /// Each source of candidates beside it; without it, fewer sources.
    pub sources: u64,
    /// s3; without it, retrieval's order.
    pub features: u64,
    /// s4; without it, retrieval's order.
    pub ranking: u64,
    /// s5 and s6, which have no fallback.
    pub response: u64,
}

impl Budgets {
    /// What must be left for the search: it is worth more than the ranking of what it finds.
    pub fn from_candidates(&self) -> Duration {
        Duration::from_micros(self.candidates + self.response)
    }

    /// What must be left for one more source: it is worth less than the ranking.
    pub fn from_sources(&self) -> Duration {
        Duration::from_micros(self.sources + self.features + self.ranking + self.response)
    }

    /// What must be left for features, which are of no use without ranking.
    pub fn from_features(&self) -> Duration {
        Duration::from_micros(self.features + self.ranking + self.response)
    }

    /// What must be left for ranking.
    pub fn from_ranking(&self) -> Duration {
        Duration::from_micros(self.ranking + self.response)
    }

    /// All parts together.
    pub fn total_us(&self) -> u64 {
        self.candidates + self.sources + self.features + self.ranking + self.response
    }
}

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
