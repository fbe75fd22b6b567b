//! One request: six stages that meet in the context.
//!
//! ```text
//! s1_user_embedding   cache -> Redis -> encode with the user tower -> cold-start vector
//! s2_candidates       approximate nearest neighbours, filters inside the search
//! s3_features         user | context once, item | cross for every candidate
//! s4_ranking          the forest over all candidates
//! s5_rules            safety, duplicates, freshness, at most so many a category
//! s6_response         titles, prices, reasons
//! ```
//! Invariants: a request takes one bundle at entry; s3 and s4 keep every candidate and its order,
//! only s5 drops, and what is dropped carries its reason; stages never import one another. The
//! safety filter of s5 has no fallback. This module knows no HTTP.

mod answer;
mod audit;
mod context;
mod deadline;
pub mod diff;
pub mod drift;
mod engine;
mod every;
pub mod explain;
mod gather;
mod item_changes;
mod observe;
mod record;
mod region;
pub mod replay;
pub mod rollout;
mod rows;
mod s1_user_embedding;
mod s2_candidates;
mod s3_features;
mod s4_ranking;
mod s5_rules;
mod s6_response;
mod seed;
mod serving;
mod stages;
#[cfg(all(test, feature = "etl"))]
mod tests;
mod warm;

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::bundle::RankerEngine;
use crate::monitor::Stage;
use context::Ahead;

pub use answer::{Answer, AnswerItem, Reason, STAGES, Timings};
pub use context::{Asked, Call, Context, Inputs, Scratch};
pub use deadline::{Budgets, Deadline, Lost};
pub use drift::Config as DriftConfig;
pub use engine::{Engine, Error, HistoryItem, Parts, PublishError, Request, StartError};
pub use gather::{history, inputs};
pub use item_changes::{Config as ItemsConfig, Error as ItemsError, ItemChanges, advance};
pub use region::{Config as RegionConfig, Location};
pub use rollout::{
    Asked as AskedArms, ChangeError, Config as RolloutConfig, ConfigError as RolloutError, Credit,
    Outcome, Steering, begin, begin_layer, is_variant, merge, verdict,
};
pub use s2_candidates::{Config as SourcesConfig, Past, PastConfig, Repeats};
pub use s5_rules::Config as RulesConfig;
pub use serving::{Serving, Settings};

/// Section `[pipeline]`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How many candidates s2 asks for.
    pub candidates: usize,
    /// How long a request may take in all, milliseconds.
    pub deadline_ms: u64,
    /// Time between two requests whose candidates are checked against exact search, off the hot
    /// path; 0 checks none.
    pub recall_audit_interval_ms: u64,
    /// Share of the requests that are logged in full: with all that a replay needs.
    pub log_full_share: f64,
    pub budgets_us: Budgets,
    /// Names the configuration in answers and logs.
    pub variant: String,
    /// The clock starts at this moment (RFC 3339) when the engine does; empty is the real time.
    pub clock_starts_at: String,
    pub ranker: RankerConfig,
    pub sources: SourcesConfig,
}

/// Section `[pipeline.ranker]`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RankerConfig {
    /// Who evaluates the ranker's trees.
    pub engine: RankerEngine,
}

/// Why sections `[pipeline]`, `[rules]` or `[regions]` were refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{key} = 0: give at least 1")]
    Zero { key: &'static str },
    #[error("{key} = {value}: give {rule}")]
    Range { key: &'static str, value: f64, rule: &'static str },
    #[error(
        "pipeline.clock_starts_at = \"{value}\": {source}; give a time like 2017-12-01T09:00:00Z"
    )]
    Clock { value: String, source: chrono::ParseError },
    #[error(
        "pipeline.sources: quotas of {total} in all leave nothing for retrieval: give less than \
         pipeline.candidates = {candidates}"
    )]
    Quotas { total: usize, candidates: usize },
    #[error(
        "pipeline.budgets_us: {total_us} in all, over pipeline.deadline_ms = {deadline_ms}: no \
         request could be served whole"
    )]
    Budgets { total_us: u64, deadline_ms: u64 },
    #[error("regions.locations[{at}]: {problem}")]
    Area { at: usize, problem: &'static str },
}

impl Config {
    /// Refuses what a request could not be served with.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.candidates == 0 {
            return Err(ConfigError::Zero { key: "pipeline.candidates" });
        }
        if self.deadline_ms == 0 {
            return Err(ConfigError::Zero { key: "pipeline.deadline_ms" });
        }
        let (total_us, deadline_ms) = (self.budgets_us.total_us(), self.deadline_ms);
        if total_us > deadline_ms * 1000 {
            return Err(ConfigError::Budgets { total_us, deadline_ms });
        }
        let (key, value) = ("pipeline.log_full_share", self.log_full_share);
        if !(0.0..=1.0).contains(&value) {
            return Err(ConfigError::Range { key, value, rule: "a share from 0 to 1" });
        }
        self.sources.check(self.candidates)?;
        self.clock_starts_at_ms().map(|_| ())
    }

    /// The clock's start in epoch milliseconds; `None` is the real time.
    fn clock_starts_at_ms(&self) -> Result<Option<i64>, ConfigError> {
        let value = &self.clock_starts_at;
        if value.is_empty() {
            return Ok(None);
        }
        let time = chrono::DateTime::parse_from_rfc3339(value)
            .map_err(|source| ConfigError::Clock { value: value.clone(), source })?;
        Ok(Some(time.timestamp_millis()))
    }
}

/// One request on one thread.
pub fn run(cx: &mut Context) -> Answer {
    s1(cx);
    if let Some(mut ahead) = cx.ahead.take() {
        prepare(&cx.serving, &cx.inputs, &mut ahead);
        cx.ahead = Some(ahead);
    }
    s2(cx);
    s3(cx);
    s4(cx);
    s5(cx);
    s6(cx)
}

fn s1(cx: &mut Context) {
    cx.timed(Stage::S1UserEmbedding, s1_user_embedding::run);
}

fn s2(cx: &mut Context) {
    cx.timed(Stage::S2Candidates, s2_candidates::run);
}

fn s3(cx: &mut Context) {
    cx.timed(Stage::S3Features, s3_features::run);
}

fn s4(cx: &mut Context) {
    cx.timed(Stage::S4Ranking, s4_ranking::run);
}

fn s5(cx: &mut Context) {
    cx.timed(Stage::S5Rules, s5_rules::run);
}

fn s6(cx: &mut Context) -> Answer {
    cx.timed(Stage::S6Response, s6_response::run)
}

/// What of s3 and s4 needs no candidate.
fn prepare(serving: &Serving, inputs: &Inputs, ahead: &mut Ahead) {
    let start = Instant::now();
    s3_features::constants(serving, inputs, &mut ahead.constants);
    let middle = Instant::now();
    serving.bundle.ranking.specialise(&ahead.constants, &mut ahead.ranking);
    ahead.took = [middle - start, middle.elapsed()];
}
