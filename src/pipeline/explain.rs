//! Why an item is in an answer, or which stage lost it.
//!
//! The request is run again, whole and unhurried, on a thread that serves nobody; one at a time,
//! because the comparison with exact search takes a third of a second at ten million items.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};

use super::answer::{Answer, Timings};
use super::context::{Asked, Call, Context, Inputs, Scratch};
use super::deadline::{Deadline, Part};
use super::record;
use super::rows::Rows;
use super::s5_rules;
use super::serving::Serving;
use crate::index::{Filter, Hit};
use crate::monitor::{Dropped, Source};
use crate::types::ItemIdx;

/// Nothing is explained that had no time.
const UNHURRIED: Duration = Duration::from_secs(600);
/// Ranks in exact search are looked for up to here; of the items of an answer up to the first.
const EXACT_RANKS: [usize; 3] = [1_000, 10_000, 100_000];

/// What is explained of a request.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// What the request gets now.
    pub answer: Answer,
    /// Candidates that were ranked.
    pub candidates: usize,
    /// The items of the answer in order, or the one item that was asked for.
    pub items: Vec<ItemExplained>,
}

/// One item.
#[derive(Clone, Debug)]
pub struct ItemExplained {
    pub item_id: String,
    pub title: Option<String>,
    pub category: Option<String>,
    pub outcome: Outcome,
    pub retrieval: Retrieval,
    /// `None` for an item that was no candidate, or where the request was not ranked.
    pub ranking: Option<Ranking>,
    /// `None` for an item that was no candidate.
    pub rules: Option<Rules>,
}

/// What became of an item.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// In the answer, at this position from 1.
    Returned { position: usize },
    /// Lost by a stage: its name, the cause for programs, and for people.
    Lost { stage: &'static str, cause: &'static str, text: String },
}

/// What retrieval makes of an item.
#[derive(Clone, Debug, PartialEq)]
pub struct Retrieval {
    /// Inner product with the user's vector; `None` for one that the index does not have.
    pub score: Option<f32>,
    /// What brought it in, and its place in retrieval from 1, if it was found there.
    pub source: Option<Source>,
    pub rank: Option<usize>,
    /// Its place among all items that pass the filters, by exact comparison, from 1.
    pub exact_rank: Option<ExactRank>,
}

/// A place in exact search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExactRank {
    At(usize),
    /// Somewhere behind this one.
    Beyond(usize),
}

/// What the ranker makes of a candidate.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// Among the candidates, from 1.
    pub position: usize,
    pub raw: f64,
    pub probability: f64,
    /// The raw score before anything is known; with all contributions it makes `raw`. `None` when
    /// the model does not say how many rows its nodes had.
    pub expected: Option<f64>,
    /// By effect, the largest first.
    pub features: Vec<FeatureEffect>,
}

/// One feature of a candidate.
#[derive(Clone, Debug)]
pub struct FeatureEffect {
    pub name: String,
    pub value: f32,
    /// What it adds to the raw score.
    pub contribution: Option<f64>,
}

/// What the rules make of a candidate.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The score is raised by this share, because the item is new.
    pub freshness: f32,
    /// The score after that.
    pub score: f32,
    /// Its place by that score, before anything is dropped, from 1.
    pub position: usize,
    pub dropped: Option<Dropped>,
}

/// Why nothing is explained.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another request is being explained: one at a time")]
    Busy,
    #[error("no item `{0}` in the bundle that serves")]
    Unknown(String),
    #[error("the explanation stopped: {0}")]
    Stopped(#[from] JoinError),
}

/// Lets one explanation run at a time.
pub struct Explainer(Arc<Semaphore>);

impl Default for Explainer {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Explainer {
    /// Runs the request and explains the items of its answer, or `item`.
    ///
    /// # Errors
    /// When another one runs, or the item is unknown.
    pub async fn run(
        &self,
        serving: Arc<Serving>,
        inputs: Inputs,
        item: Option<String>,
    ) -> Result<Explanation, Error> {
        let turn = self.0.clone().try_acquire_owned().map_err(|_| Error::Busy)?;
        let work = move || {
            let _turn = turn;
            explain(&serving, inputs, item.as_deref())
        };
        spawn_blocking(work).await?
    }
}

/// Runs the request on this thread and explains.
pub(super) fn explain(
    serving: &Arc<Serving>,
    mut inputs: Inputs,
    item: Option<&str>,
) -> Result<Explanation, Error> {
    let find =
        |id: &str| serving.bundle.items.find(id).ok_or_else(|| Error::Unknown(id.to_owned()));
    let wanted = item.map(find).transpose()?;
    // Has the rules name what they drop.
    inputs.asked = Some(Box::new(Asked::default()));
    let call = Call {
        serving: serving.clone(),
        inputs: Arc::new(inputs),
        deadline: Deadline::after(UNHURRIED),
        cached: None,
        degraded: Vec::new(),
        timings: Timings::default(),
    };
    let mut cx = Context::new(call, Box::new(Scratch::new(serving)));
    let answer = super::run(&mut cx);
    let mut search = Exact::default();
    let items = match wanted {
        Some(item) => vec![of_item(&mut cx, item, &mut search, &EXACT_RANKS)],
        None => {
            let items: Vec<ItemIdx> = cx.scratch.ranked.iter().map(|r| r.item).collect();
            let ranks = &EXACT_RANKS[..1];
            items.into_iter().map(|item| of_item(&mut cx, item, &mut search, ranks)).collect()
        }
    };
    Ok(Explanation { answer, candidates: cx.scratch.candidates.len(), items })
}

fn of_item(cx: &mut Context, item: ItemIdx, search: &mut Exact, ranks: &[usize]) -> ItemExplained {
    let row = record::row_of(cx, item);
    let retrieval = retrieval(cx, item, row, search, ranks);
    let (ranking, rules) = (row.and_then(|row| ranking(cx, row)), row.map(|row| rules(cx, row)));
    let items = cx.items();
    ItemExplained {
        item_id: items.id(item).to_owned(),
        title: items.title(item).map(str::to_owned),
        category: items.category(item).map(str::to_owned),
        outcome: outcome(cx, item, row, &retrieval, rules.as_ref()),
        retrieval,
        ranking,
        rules,
    }
}

fn retrieval(
    cx: &mut Context,
    item: ItemIdx,
    row: Option<usize>,
    search: &mut Exact,
    ranks: &[usize],
) -> Retrieval {
    let bundle = &cx.serving.bundle;
    let (scratch, mut scores) = (&mut *cx.scratch, Vec::new());
    bundle.index.scores(&scratch.vector, &[item], &mut scratch.search, &mut scores);
    let score = scores.first().copied().filter(|score| !score.is_nan());
    let rank = row.map(|row| scratch.candidates[row].retrieval_rank);
    let exact_rank = score.and_then(|score| search.rank(cx, item, score, ranks));
    Retrieval {
        score,
        source: row.map(|row| cx.scratch.sources[row]),
        rank: rank.filter(|rank| !rank.is_nan()).map(|rank| rank as usize + 1),
        exact_rank,
    }
}

/// The last exact search, and what it asked for.
#[derive(Default)]
struct Exact {
    hits: Vec<Hit>,
    asked: usize,
}

impl Exact {
    /// Where a score stands among all items that pass.
    fn rank(
        &mut self,
        cx: &mut Context,
        item: ItemIdx,
        score: f32,
        ranks: &[usize],
    ) -> Option<ExactRank> {
        for &k in ranks {
            if self.asked < k {
                let bundle = &cx.serving.bundle;
                let allowed = Some(bundle.allowed(cx.inputs.region));
                let filter = Filter { allowed, excluded: &cx.inputs.shown };
                let scratch = &mut *cx.scratch;
                let (vector, space) = (&scratch.vector, &mut scratch.search);
                bundle.index.search_exact(vector, k, &filter, space, &mut self.hits);
                self.asked = k;
            }
            let before = |hit: &&Hit| hit.score > score || (hit.score == score && hit.item < item);
            let before = self.hits.iter().filter(before).count();
            if before < self.asked {
                return Some(ExactRank::At(before + 1));
            }
        }
        ranks.last().map(|&k| ExactRank::Beyond(k))
    }
}

fn ranking(cx: &Context, row: usize) -> Option<Ranking> {
    let raw = record::raw_score(cx, Some(row));
    if raw.is_nan() {
        return None;
    }
    let (bundle, scratch) = (&cx.serving.bundle, &*cx.scratch);
    let values = Rows::of(cx, &[Some(row)]).features();
    let contributions = bundle.ranker.contributions(&values);
    let contribution = |at: usize| contributions.as_ref().map(|all| all[at]);
    let named = bundle.schema.features().iter().zip(&values).enumerate();
    let mut features: Vec<FeatureEffect> = named
        .map(|(at, (feature, &value))| FeatureEffect {
            name: feature.name.clone(),
            value,
            contribution: contribution(at),
        })
        .collect();
    let effect = |feature: &FeatureEffect| feature.contribution.unwrap_or(0.0).abs();
    features.sort_by(|a, b| effect(b).total_cmp(&effect(a)));
    let own = scratch.candidates[row].item;
    let better = |&(&other, item): &(&f64, ItemIdx)| other > raw || (other == raw && item < own);
    let others = scratch.raw.iter().zip(scratch.candidates.iter().map(|c| c.item));
    Some(Ranking {
        position: others.filter(better).count() + 1,
        raw,
        probability: bundle.ranker.probability(raw),
        expected: contribution(values.len()),
        features,
    })
}

fn rules(cx: &Context, row: usize) -> Rules {
    let (items, inputs) = (cx.items(), &cx.inputs);
    let config = &cx.serving.settings.rules;
    let freshness = |item: ItemIdx| s5_rules::boost(config, items.age_days(item, inputs.time_ms));
    let score = |row: usize| {
        let base = match record::raw_score(cx, Some(row)) {
            raw if raw.is_nan() => 0.0,
            raw => cx.serving.bundle.ranker.probability(raw) as f32,
        };
        base * (1.0 + freshness(cx.scratch.candidates[row].item))
    };
    let (own, item) = (score(row), cx.scratch.candidates[row].item);
    let better = |&other: &usize| {
        let (score, other) = (score(other), cx.scratch.candidates[other].item);
        score > own || (score == own && other < item)
    };
    let dropped = cx.scratch.dropped.iter().find(|(dropped, _)| *dropped == item);
    // The score of an answer without ranking is its own.
    let shown = cx.scratch.ranked.iter().find(|r| r.item == item);
    Rules {
        freshness: freshness(item),
        score: shown.map_or(own, |shown| shown.score),
        position: (0..cx.scratch.candidates.len()).filter(better).count() + 1,
        dropped: dropped.map(|&(_, why)| why),
    }
}

fn outcome(
    cx: &Context,
    item: ItemIdx,
    row: Option<usize>,
    retrieval: &Retrieval,
    rules: Option<&Rules>,
) -> Outcome {
    if let Some(at) = cx.scratch.ranked.iter().position(|r| r.item == item) {
        return Outcome::Returned { position: at + 1 };
    }
    let lost = |stage, cause, text: String| Outcome::Lost { stage, cause, text };
    if row.is_none() {
        let (cause, text) = not_a_candidate(cx, item, retrieval);
        return lost("s2_candidates", cause, text);
    }
    let wanted = cx.inputs.num_items;
    match rules.and_then(|rules| rules.dropped) {
        Some(rule) => lost("s5_rules", rule.name(), dropped_by(cx, rule)),
        None => {
            let position = rules.map_or(0, |rules| rules.position);
            let last = cx.scratch.ranked.last().map_or(0.0, |r| r.score);
            let text = format!(
                "place {position} of {} candidates by score; {wanted} were asked for, and the last \
                 one shown has {last}",
                cx.scratch.candidates.len()
            );
            lost("s4_ranking", "below_cut", text)
        }
    }
}

/// Why an item was not found, in the order in which one would look.
fn not_a_candidate(cx: &Context, item: ItemIdx, retrieval: &Retrieval) -> (&'static str, String) {
    let (items, region) = (cx.items(), cx.inputs.region);
    let whole = items.item(item);
    let names = cx.serving.bundle.items.regions();
    if whole.gone {
        return ("deleted", "the item was deleted".to_owned());
    }
    if !whole.in_stock {
        return ("out_of_stock", "the item is not in stock".to_owned());
    }
    if let Some(at) = region.filter(|at| !whole.regions.contains(at)) {
        let text = format!("the item is not offered in region `{}`", names[at]);
        return ("not_in_region", text);
    }
    if cx.inputs.shown.contains(&item) {
        return ("recently_shown", "the user was shown the item lately".to_owned());
    }
    if cx.lost.has(Part::Source(Source::Ann)) {
        return (
            "retrieval_failed",
            "popular items stood in for a retrieval that failed".to_owned(),
        );
    }
    let places = cx.inputs.candidates;
    match retrieval.exact_rank {
        Some(ExactRank::At(rank)) if rank <= places => {
            let text = format!(
                "place {rank} by exact comparison, within the {places} candidates: the approximate \
                 search missed it, or another source took the place"
            );
            ("missed_by_search", text)
        }
        Some(ExactRank::At(rank)) => {
            ("beyond_candidates", format!("place {rank} by similarity; {places} are retrieved"))
        }
        Some(ExactRank::Beyond(rank)) => {
            let text = format!("behind place {rank} by similarity; {places} are retrieved");
            ("beyond_candidates", text)
        }
        None => ("no_vector", "the index has no vector of the item".to_owned()),
    }
}

fn dropped_by(cx: &Context, rule: Dropped) -> String {
    let rules = &cx.serving.settings.rules;
    match rule {
        Dropped::BlockedLabel => {
            format!("the item has one of the blocked labels {}", rules.blocked_labels.join(", "))
        }
        Dropped::Duplicate => "the item was there already".to_owned(),
        Dropped::RecentlyShown => "the user was shown the item lately".to_owned(),
        Dropped::CategoryCap => {
            format!("better items filled the {} places of its category", rules.max_per_category)
        }
    }
}
