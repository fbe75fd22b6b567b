//! What the stages of one request share.

use crate::bundle::{Bundle, EncodeScratch, RankScratch};
use crate::features::{Candidate, History, RequestInput, UserRow};
use crate::index::{self, Hit};
use crate::monitor::Fallback;
use crate::types::ItemIdx;

use super::answer::Reason;
use super::deadline::Deadline;
use super::{Config, RulesConfig};

/// Everything that decided a request, from the outside: with the bundle it determines the answer.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    pub request_id: String,
    pub num_items: usize,
    pub time_ms: i64,
    /// Position of the region in the item table; `None` is everywhere.
    pub region: Option<usize>,
    /// Codes in the order of the schema's context names.
    pub context: Vec<f32>,
    /// The user's last events, oldest first, parallel to `history_times_ms`.
    pub history: Vec<ItemIdx>,
    pub history_times_ms: Vec<i64>,
    /// Shown to the user lately.
    pub shown: Vec<ItemIdx>,
}

/// One request on its way through the stages.
pub struct Context<'a> {
    pub bundle: &'a Bundle,
    pub config: &'a Config,
    pub rules: &'a RulesConfig,
    pub inputs: &'a Inputs,
    pub user: UserRow<'a>,
    pub deadline: Deadline,
    /// A cached vector of exactly this history; s1 encodes one when there is none.
    pub cached: Option<&'a [f32]>,
    pub scratch: &'a mut Scratch,
    pub degraded: Vec<Fallback>,
    pub reasons: Vec<Reason>,
    /// Dropped by s5, by cause.
    pub drops: Drops,
}

/// How many candidates s5 dropped, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Drops {
    pub blocked_label: usize,
    pub duplicate: usize,
    pub recently_shown: usize,
    pub category_cap: usize,
}

/// A candidate with its rank score, on its way through the rules.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    pub item: ItemIdx,
    pub score: f32,
}

/// Buffers of one thread; they keep their size from request to request.
pub struct Scratch {
    pub encode: EncodeScratch,
    pub search: index::Scratch,
    /// The user's unit vector; written by s1.
    pub vector: Vec<f32>,
    /// Written by s2, best first.
    pub hits: Vec<Hit>,
    pub candidates: Vec<Candidate>,
    /// Written by s3: user and context columns, then those of item and cross columns that the
    /// ranker wants, column-major.
    pub constants: Vec<f32>,
    pub columns: Vec<f32>,
    pub ranking: RankScratch,
    /// Written by s4, parallel to the candidates.
    pub raw: Vec<f64>,
    pub ranked: Vec<Ranked>,
    /// Categories taken so far in s5, with their counts.
    pub categories: Vec<(u32, usize)>,
}

impl Scratch {
    /// Buffers for requests on this bundle.
    pub fn new(bundle: &Bundle, candidates: usize) -> Self {
        let columns = bundle.plan.column_count() * candidates;
        Self {
            encode: bundle.encode_scratch(),
            search: index::Scratch::default(),
            vector: vec![0.0; bundle.towers.dim()],
            hits: Vec::with_capacity(candidates),
            candidates: Vec::with_capacity(candidates),
            constants: vec![0.0; bundle.plan.constant_count()],
            columns: Vec::with_capacity(columns),
            ranking: bundle.ranking.scratch(candidates),
            raw: Vec::with_capacity(candidates),
            ranked: Vec::with_capacity(candidates),
            categories: Vec::with_capacity(candidates),
        }
    }
}

impl Context<'_> {
    /// What features read of the request.
    pub fn request_input(&self) -> RequestInput<'_> {
        RequestInput {
            time_ms: self.inputs.time_ms,
            user: self.user,
            context: &self.inputs.context,
            history: History::new(&self.inputs.history, &self.inputs.history_times_ms),
        }
    }

    /// Notes a fallback once.
    pub fn degrade(&mut self, kind: Fallback) {
        if !self.degraded.contains(&kind) {
            self.degraded.push(kind);
        }
    }
}
