//! A request's deadline, what of it each stage needs, and what was left out for want of it.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::monitor::Source;

/// Section `[pipeline.budgets_us]`: what parts of a request need at most, microseconds. A part
/// begins when its own need and that of all that must follow are left, else its fallback is taken.
#[derive(Debug, Clone, Deserialize, Serialize)]
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

/// A part of a request that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A source of candidates; [`Source::Ann`] is retrieval.
    Source(Source),
    Features,
    Ranking,
}

impl Part {
    /// Every part.
    fn all() -> impl Iterator<Item = Self> {
        let sources = Source::ALL.iter().map(|&source| Self::Source(source));
        sources.chain([Self::Features, Self::Ranking])
    }

    /// As the request log writes it.
    fn name(self) -> &'static str {
        match self {
            Self::Source(source) => source.name(),
            Self::Features => "features",
            Self::Ranking => "ranking",
        }
    }

    fn bit(self) -> u32 {
        match self {
            Self::Source(source) => 1 << source as u32,
            Self::Features => 1 << 30,
            Self::Ranking => 1 << 31,
        }
    }
}

/// Parts that a request went without, because they came too late or failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost(u32);

impl Lost {
    /// Notes a part.
    pub fn add(&mut self, part: Part) {
        self.0 |= part.bit();
    }

    /// Whether a part is noted.
    pub fn has(self, part: Part) -> bool {
        self.0 & part.bit() != 0
    }

    /// The parts by name.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Part::all().filter(move |&part| self.has(part)).map(Part::name)
    }

    /// Parts of these names; names that this version does not know count for nothing.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut lost = Self::default();
        let part = |name: &str| Part::all().find(|part| part.name() == name);
        names.into_iter().filter_map(part).for_each(|part| lost.add(part));
        lost
    }
}
