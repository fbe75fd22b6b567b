//! s2: which items are worth ranking.
//!
//! ```text
//! ann        nearest to the user's vector: has every place that the others leave
//! repeats    the user's favourites, then the user's own history, newest first
//! similar    nearest to the newest item of the history
//! trending   rising, in the region
//! popular    most wanted, in the region
//! fresh      new and hardly shown, another choice each request
//! ```
//! Invariant: a candidate is in stock, offered in the region and not shown lately, whatever brought
//! it, and it is there once. For retrieval these filters act inside the search, so that what is
//! filtered out costs no place.
//!
//! A source beside retrieval that fails or comes too late costs its own candidates only. Without
//! retrieval, the region's popular items stand in, in their order.
//!
//! `past` asks retrieval and repeats for requests of the past, which teach the ranker.

mod blend;
mod config;
mod fresh;
mod lists;
mod past;
mod repeats;
mod similar;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Context;
use super::answer::Reason;
use super::context::{self, Inputs, Scratch};
use super::deadline::Part;
use super::serving::Serving;
use crate::bundle::Bundle;
use crate::index::{Allowed, Filter};
use crate::monitor::{self, Fallback, Source, SourceLoss};
use crate::types::ItemIdx;
use blend::{Pick, unretrieved};

pub use config::Config;
pub use lists::Lists;
pub use past::{Past, PastConfig};
pub use repeats::{Repeats, Unusable};

/// Buffers of the sources beside retrieval.
pub struct Buffers {
    blend: blend::Buffers,
    favourites: Vec<(f32, ItemIdx)>,
    similar: similar::Scratch,
}

impl Buffers {
    /// Buffers for requests of up to `candidates` candidates.
    pub fn new(bundle: &Bundle, lists: &Lists, candidates: usize) -> Self {
        let quota = |&source: &Source| lists.quota(source, candidates);
        Self {
            blend: blend::Buffers::new(Source::ALL.iter().map(quota).sum()),
            favourites: Vec::new(),
            similar: similar::Scratch::new(bundle, lists.quota(Source::Similar, candidates)),
        }
    }
}

/// Fills the candidates and their sources: retrieval's first, best first.
pub fn run(cx: &mut Context) {
    let (serving, inputs) = (cx.serving.clone(), cx.inputs.clone());
    let request = Request::new(&serving, &inputs);
    let budgets = &serving.settings.pipeline.budgets_us;
    cx.scratch.candidates.clear();
    cx.scratch.sources.clear();
    cx.scratch.sourcing.blend.picks.clear();
    let retrieval = Part::Source(Source::Ann);
    let in_time = cx.has_time(retrieval, budgets.from_candidates());
    if in_time && request.guarded(Source::Ann, || request.search(&mut cx.scratch)) {
        if serving.lists.any() {
            propose(cx, &request);
        }
        request.join(&mut cx.scratch);
    } else {
        monitor::source_lost(Source::Ann, loss(in_time));
        cx.lost.add(retrieval);
        request.fall_back(&mut cx.scratch);
        cx.unranked = true;
        cx.degrade(Fallback::PopularItems);
    }
    cx.settle_items();
    if cx.scratch.candidates.len() < inputs.num_items {
        cx.reasons.push(request.too_few(cx.scratch.candidates.len()));
    }
}

/// Asks each source beside retrieval, in order, as long as there is time.
fn propose(cx: &mut Context, request: &Request) {
    let needed = request.serving.settings.pipeline.budgets_us.from_sources();
    for &source in &Source::ALL[1..] {
        let quota = request.serving.lists.quota(source, request.inputs.candidates);
        if quota == 0 {
            continue;
        }
        let in_time = cx.has_time(Part::Source(source), needed);
        if !(in_time && request.guarded(source, || request.ask(source, quota, &mut cx.scratch))) {
            monitor::source_lost(source, loss(in_time));
            cx.lost.add(Part::Source(source));
            cx.degrade(Fallback::FewerSources);
        }
    }
}

fn loss(in_time: bool) -> SourceLoss {
    if in_time { SourceLoss::Failed } else { SourceLoss::Late }
}

/// What all sources read.
struct Request<'a> {
    serving: &'a Serving,
    bundle: &'a Bundle,
    inputs: &'a Inputs,
    allowed: &'a Allowed,
}

impl<'a> Request<'a> {
    fn new(serving: &'a Serving, inputs: &'a Inputs) -> Self {
        let bundle = &serving.bundle;
        Self { serving, bundle, inputs, allowed: bundle.allowed(inputs.region) }
    }

    fn filter(&self) -> Filter<'a> {
        Filter { allowed: Some(self.allowed), excluded: &self.inputs.shown }
    }

    fn passes(&self, item: ItemIdx) -> bool {
        !self.inputs.shown.contains(&item) && self.bundle.index.allows(self.allowed, item)
    }

    /// Whether a source did its work; when it panics, its buffers are cleared by the next request.
    fn guarded(&self, source: Source, work: impl FnOnce()) -> bool {
        let done = catch_unwind(AssertUnwindSafe(work)).is_ok();
        if !done {
            let request_id = &self.inputs.request_id;
            tracing::error!("source {}: panicked in request {request_id}", source.name());
        }
        done
    }

    fn search(&self, scratch: &mut Scratch) {
        let Scratch { vector, search, hits, .. } = scratch;
        self.bundle.index.search(vector, self.inputs.candidates, &self.filter(), search, hits);
    }

    /// Adds what one source proposes to the picks.
    fn ask(&self, source: Source, quota: usize, scratch: &mut Scratch) {
        let Buffers { blend, favourites, similar } = &mut scratch.sourcing;
        let (inputs, list) = (self.inputs, self.serving.lists.of(source, self.inputs.region));
        let mut take = |items: &mut dyn Iterator<Item = ItemIdx>| {
            let passing = items.filter(|&item| self.passes(item)).take(quota);
            blend.picks.extend(passing.map(|item| Pick { item, source, retrieved: false }));
        };
        match source {
            Source::Ann => {}
            Source::Repeats => {
                let user = context::user(self.serving, inputs);
                take(&mut self.serving.lists.repeats().of(user, &inputs.history, favourites));
            }
            Source::Similar => {
                let (filter, search) = (self.filter(), &mut scratch.search);
                let history = &inputs.history;
                take(&mut similar::items(self.bundle, history, quota, &filter, search, similar));
            }
            Source::Trending | Source::Popular => take(&mut list.iter().copied()),
            Source::Fresh => take(&mut fresh::items(list, &inputs.request_id)),
        }
    }

    /// Makes candidates of retrieval's hits and the picks.
    fn join(&self, scratch: &mut Scratch) {
        let Scratch { vector, search, hits, candidates, sources, sourcing, .. } = scratch;
        let (index, wanted) = (&*self.bundle.index, self.inputs.candidates);
        sourcing.blend.join(index, vector, search, hits, wanted, (candidates, sources));
    }

    /// The popular items of the region in their order, without a similarity.
    fn fall_back(&self, scratch: &mut Scratch) {
        let Scratch { hits, candidates, sources, .. } = scratch;
        hits.clear();
        let list = self.serving.lists.of(Source::Popular, self.inputs.region).iter().copied();
        let passing = list.filter(|&item| self.passes(item)).take(self.inputs.candidates);
        candidates.extend(passing.map(|item| unretrieved(item, f32::NAN)));
        sources.resize(candidates.len(), Source::Popular);
    }

    fn too_few(&self, count: usize) -> Reason {
        let region = self.inputs.region.map(|at| self.bundle.items.regions()[at].as_str());
        let place = region.map_or(String::new(), |name| format!(" in region `{name}`"));
        let text = format!("only {count} items are in stock{place} and not shown lately");
        Reason { code: "few_eligible_items", count, text }
    }
}
