//! What the stages of one request share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bundle::{EncodeScratch, RankScratch};
use crate::features::{Candidate, History, PlanScratch, RequestInput, UserRecord, UserRow};
use crate::index::{self, Hit};
use crate::monitor::{Dropped, Fallback, Source, Stage};
use crate::store::items::{Late, View};
use crate::types::ItemIdx;

use super::answer::{Reason, Timings};
use super::deadline::{Deadline, Lost, Part};
use super::s2_candidates::Buffers;
use super::serving::Serving;

/// Everything that decided a request, from the outside: with the bundle it determines the answer.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    pub request_id: String,
    pub num_items: usize,
    pub time_ms: i64,
    /// The user's row in the bundle's table; `None` is an unknown user.
    pub user: Option<u32>,
    /// The user's features as the store has them: newer than the row.
    pub record: Option<Arc<UserRecord>>,
    /// Position of the region in the item table; `None` is everywhere.
    pub region: Option<usize>,
    /// Codes in the order of the schema's context names.
    pub context: Vec<f32>,
    /// The user's last events, oldest first, parallel to `history_times_ms`.
    pub history: Vec<ItemIdx>,
    pub history_times_ms: Vec<i64>,
    /// Shown to the user lately.
    pub shown: Vec<ItemIdx>,
    /// How many candidates retrieval shall give.
    pub candidates: usize,
    /// For a request that is asked again: the parts that it went without. Else time decides.
    pub repeats: Option<Lost>,
    /// Set for a request that is logged in full.
    pub asked: Option<Box<Asked>>,
}

/// What the request log keeps of a question beside its inputs.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Further context values by name.
    pub context: Vec<(String, String)>,
    /// The share of its work that the request does.
    pub quality: f32,
}

/// A request whose inputs are gathered: what goes into the stages.
pub struct Call {
    pub serving: Arc<Serving>,
    pub inputs: Arc<Inputs>,
    pub deadline: Deadline,
    /// A cached vector of exactly this history; s1 encodes one when there is none.
    pub cached: Option<Arc<[f32]>>,
    pub degraded: Vec<Fallback>,
    pub timings: Timings,
}

/// One request on its way through the stages.
pub struct Context {
    pub serving: Arc<Serving>,
    /// What of the items differs from the build; [`Context::settle_items`] settles it.
    pub late: Arc<Late>,
    pub inputs: Arc<Inputs>,
    pub deadline: Deadline,
    pub cached: Option<Arc<[f32]>>,
    pub scratch: Box<Scratch>,
    pub ahead: Option<Box<Ahead>>,
    pub degraded: Vec<Fallback>,
    pub reasons: Vec<Reason>,
    /// Set by a stage that leaves nothing to rank by: the order of the candidates stands.
    pub unranked: bool,
    /// Dropped by s5, by cause.
    pub drops: Drops,
    /// What was left out.
    pub lost: Lost,
    /// What was applied of the items' change log at the entry, and what was being applied when the
    /// candidates were settled: where they differ, items changed under the search.
    pub item_changes: [u64; 2],
    pub timings: Timings,
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
    pub source: Source,
}

/// Buffers of one request; they keep their size from request to request.
pub struct Scratch {
    /// The bundle that they were sized for.
    serving: u64,
    pub encode: EncodeScratch,
    pub search: index::Scratch,
    /// The user's unit vector; written by s1.
    pub vector: Vec<f32>,
    /// Written by s2, best first.
    pub hits: Vec<Hit>,
    pub candidates: Vec<Candidate>,
    /// Positions of candidates that are not what was built, ascending; written by s2.
    pub late: Vec<u32>,
    /// What brought each candidate in, parallel to them.
    pub sources: Vec<Source>,
    pub sourcing: Buffers,
    pub gathered: PlanScratch,
    /// Written by s3: the item and cross columns that the ranker wants, column-major.
    pub columns: Vec<f32>,
    /// Written by s4, parallel to the candidates.
    pub raw: Vec<f64>,
    pub ranked: Vec<Ranked>,
    /// What s5 dropped, and why; of requests that are logged in full.
    pub dropped: Vec<(ItemIdx, Dropped)>,
    /// Written by s5, where it explores and the request is logged in full: the probability of each item
    /// of the answer at its place.
    pub propensities: Vec<f64>,
    /// Categories taken so far in s5, with their counts.
    pub categories: Vec<(u32, usize)>,
    ahead: Option<Box<Ahead>>,
}

/// What of the ranking needs no candidate, so that it can be done beside their retrieval.
pub struct Ahead {
    /// User and context columns.
    pub constants: Vec<f32>,
    /// The forest, specialised on them.
    pub ranking: RankScratch,
    /// Time that both took.
    pub took: [Duration; 2],
}

impl Scratch {
    /// Buffers for requests on this bundle.
    pub fn new(serving: &Serving) -> Self {
        let (bundle, candidates) = (&serving.bundle, serving.settings.pipeline.candidates);
        let columns = bundle.plan.column_count() * candidates;
        Self {
            serving: serving.number,
            encode: bundle.encode_scratch(),
            search: index::Scratch::default(),
            vector: vec![0.0; bundle.towers.dim()],
            hits: Vec::with_capacity(candidates),
            candidates: Vec::with_capacity(candidates),
            late: Vec::with_capacity(candidates),
            sources: Vec::with_capacity(candidates),
            sourcing: Buffers::new(bundle, &serving.lists, candidates),
            gathered: bundle.plan.scratch(candidates),
            columns: Vec::with_capacity(columns),
            raw: Vec::with_capacity(candidates),
            ranked: Vec::with_capacity(candidates),
            dropped: Vec::with_capacity(candidates),
            propensities: Vec::with_capacity(candidates),
            categories: Vec::with_capacity(candidates),
            ahead: Some(Box::new(Ahead {
                constants: vec![0.0; bundle.plan.constant_count()],
                ranking: bundle.ranking.scratch(candidates),
                took: [Duration::ZERO; 2],
            })),
        }
    }

    /// Whether the buffers were sized for this bundle.
    pub fn fits(&self, serving: &Serving) -> bool {
        self.serving == serving.number && self.ahead.is_some()
    }
}

impl Context {
    /// Starts a request with buffers that fit its bundle.
    pub fn new(call: Call, mut scratch: Box<Scratch>) -> Self {
        let Call { serving, inputs, deadline, cached, degraded, timings } = call;
        scratch.dropped.clear();
        Self {
            item_changes: [serving.bundle.applied(); 2],
            ahead: scratch.ahead.take(),
            late: serving.bundle.items.late(),
            serving,
            inputs,
            deadline,
            cached,
            scratch,
            degraded,
            reasons: Vec::new(),
            unranked: false,
            drops: Drops::default(),
            lost: Lost::default(),
            timings,
        }
    }

    /// The buffers, for the next request.
    pub fn into_scratch(mut self) -> Box<Scratch> {
        self.scratch.ahead = self.ahead.take();
        self.scratch
    }

    /// Runs a stage, timed.
    pub fn timed<T>(&mut self, stage: Stage, run: impl FnOnce(&mut Self) -> T) -> T {
        let start = Instant::now();
        let result = run(self);
        self.timings.stages[stage as usize] += start.elapsed();
        result
    }

    /// The items as this request sees them.
    pub fn items(&self) -> View<'_> {
        self.serving.bundle.items.view_of(self.late.clone())
    }

    /// Settles which version of the items the rest of the request reads, once the candidates are
    /// found. One that changed while they were searched, and is no longer offered, is left out here:
    /// what a filter let pass and what the columns say is thus of one version.
    pub fn settle_items(&mut self) {
        let items = &self.serving.bundle.items;
        self.late = items.late();
        self.item_changes[1] = self.serving.bundle.applying();
        self.scratch.late.clear();
        if self.late.is_empty() {
            return;
        }
        let (late, region) = (&self.late, self.inputs.region);
        let Scratch { candidates, sources, late: positions, .. } = &mut *self.scratch;
        let offered = |c: &Candidate| late.get(c.item).is_none_or(|item| item.is_offered(region));
        let mut at = 0..;
        sources.retain(|_| at.next().is_some_and(|at: usize| offered(&candidates[at])));
        candidates.retain(offered);
        let has_content = |c: &Candidate| late.get(c.item).is_some_and(|i| i.content.is_some());
        let changed = candidates.iter().zip(0..).filter(|(c, _)| has_content(c));
        positions.extend(changed.map(|(_, at)| at));
    }

    /// Whether there is time for a part, of which `needed` must be left; it is lost otherwise. A
    /// request that is asked again goes without what it went without.
    pub fn has_time(&mut self, part: Part, needed: Duration) -> bool {
        let has = match self.inputs.repeats {
            Some(lost) => !lost.has(part),
            None => self.deadline.allows(needed),
        };
        if !has {
            self.lost.add(part);
        }
        has
    }

    /// Notes a fallback once.
    pub fn degrade(&mut self, kind: Fallback) {
        if !self.degraded.contains(&kind) {
            self.degraded.push(kind);
        }
    }
}

/// The user of a request: as the store knows it, else as the bundle does.
pub fn user<'a>(serving: &'a Serving, inputs: &'a Inputs) -> UserRow<'a> {
    match &inputs.record {
        Some(record) => record.row().at(inputs.user),
        None => serving.bundle.users.user(inputs.user),
    }
}

/// What features read of a request.
pub fn request_input<'a>(serving: &'a Serving, inputs: &'a Inputs) -> RequestInput<'a> {
    RequestInput {
        time_ms: inputs.time_ms,
        user: user(serving, inputs),
        context: &inputs.context,
        history: History::new(&inputs.history, &inputs.history_times_ms),
    }
}
