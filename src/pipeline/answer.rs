//! What a request gets back, before it is JSON.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::record::Footprint;
use crate::monitor::Source;

/// The stages in order, as metrics and answers name them.
pub const STAGES: [&str; 6] =
    ["s1_user_embedding", "s2_candidates", "s3_features", "s4_ranking", "s5_rules", "s6_response"];

/// The answer of one request.
#[derive(Clone, Debug)]
pub struct Answer {
    pub request_id: String,
    pub bundle_version: String,
    pub variant: String,
    pub items: Vec<AnswerItem>,
    /// Which fallbacks were taken.
    pub degraded: Vec<&'static str>,
    /// Why there are fewer items than asked for; empty when there are not.
    pub reasons: Vec<Reason>,
    pub timings: Timings,
    /// What decided the answer, where the request is logged in full.
    pub footprint: Option<Arc<Footprint>>,
}

/// One recommended item.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerItem {
    pub item_id: String,
    pub title: Option<String>,
    pub category: Option<String>,
    pub price: Option<f32>,
    pub thumbnail: Option<String>,
    /// What the answer is ordered by: the ranker's probability after the rules.
    pub score: f32,
    /// What brought the item in.
    pub source: Source,
}

/// One cause of a short answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reason {
    pub code: &'static str,
    /// How many items it concerns.
    pub count: usize,
    pub text: String,
}

/// Time by stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    pub stages: [Duration; 6],
    /// From entry to the finished answer, waiting included.
    pub total: Duration,
}

impl Timings {
    /// Adds the time that `f` takes to a stage by position in [`STAGES`].
    pub fn measure<T>(&mut self, stage: usize, f: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = f();
        self.stages[stage] += start.elapsed();
        result
    }

    /// Stage names with their times.
    pub fn by_stage(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        STAGES.into_iter().zip(self.stages)
    }
}
