//! Logged requests, asked again: of their own version, where the answer must be the same bit for
//! bit, or of two versions, whose answers are then compared.
//!
//! The caller brings the versions: each a bundle with the items' change log applied as far as it was
//! ([`advance`]), under the settings of the log. Nothing is counted, kept or logged here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::answer::Timings;
use super::context::{Asked, Call, Context, Scratch};
use super::deadline::Deadline;
use super::record;
use super::serving::Serving;
use crate::events::{RequestRecord, Served};

/// A replayed request is never late; what it went without it goes without again.
const UNHURRIED: Duration = Duration::from_secs(600);
/// Requests of which a report says in words what differs.
const EXAMPLES_MAX: usize = 20;

/// Asks a version what was asked before, on the calling thread.
pub struct Replayer {
    serving: Arc<Serving>,
    scratch: Option<Box<Scratch>>,
}

/// What a version answers to a logged request.
#[derive(Clone, Debug, Default)]
pub struct Rerun {
    pub item_ids: Vec<String>,
    pub scores: Vec<f32>,
    pub categories: Vec<Option<String>>,
    pub served: Served,
}

impl Replayer {
    /// For this version.
    pub fn new(serving: Arc<Serving>) -> Self {
        Self { serving, scratch: None }
    }

    /// The version.
    pub fn serving(&self) -> &Arc<Serving> {
        &self.serving
    }

    /// Asks as it was: a vector that a cache had is taken as it was, and parts that were late or
    /// failed are left out again.
    pub fn again(&mut self, request: &RequestRecord, served: &Served) -> Rerun {
        let fits = served.vector.len() == self.serving.bundle.towers.dim();
        let cached = (served.vector_cached && fits).then(|| Arc::from(served.vector.as_slice()));
        self.ask(request, served, cached, true)
    }

    /// Asks as if there had been time, and no cache: what a version answers by itself.
    pub fn anew(&mut self, request: &RequestRecord, served: &Served) -> Rerun {
        self.ask(request, served, None, false)
    }

    fn ask(
        &mut self,
        request: &RequestRecord,
        served: &Served,
        cached: Option<Arc<[f32]>>,
        repeat: bool,
    ) -> Rerun {
        let mut inputs = record::inputs(&self.serving, request, served, repeat);
        let (context, quality) = (served.context.clone(), served.quality);
        inputs.asked = Some(Box::new(Asked { context, quality }));
        let call = Call {
            serving: self.serving.clone(),
            inputs: Arc::new(inputs),
            deadline: Deadline::after(UNHURRIED),
            cached,
            degraded: Vec::new(),
            timings: Timings::default(),
        };
        let scratch = self.scratch.take().unwrap_or_else(|| Box::new(Scratch::new(&self.serving)));
        let mut cx = Context::new(call, scratch);
        let answer = super::run(&mut cx);
        let left = record::footprint(&cx);
        let served = left.map(|footprint| footprint.served()).unwrap_or_default();
        self.scratch = Some(cx.into_scratch());
        Rerun {
            scores: answer.items.iter().map(|item| item.score).collect(),
            categories: answer.items.iter().map(|item| item.category.clone()).collect(),
            item_ids: answer.items.into_iter().map(|item| item.item_id).collect(),
            served,
        }
    }
}

/// What came of asking requests again of their own version.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verified {
    pub requests: usize,
    /// Bit for bit the same: items, scores, vector, features, raw scores and what was dropped.
    pub same: usize,
    /// Not asked, because items changed while it searched: what it saw cannot be made again.
    pub items_changed: usize,
    /// Of those that are not the same, how many differ in what.
    pub differ: BTreeMap<&'static str, usize>,
    /// The first of them, in words.
    pub examples: Vec<String>,
}

impl Verified {
    /// Adds a request and what its own version says now.
    pub fn add(&mut self, request: &RequestRecord, served: &Served, rerun: &Rerun) {
        self.requests += 1;
        let differences = differences(request, served, rerun);
        if differences.is_empty() {
            self.same += 1;
        }
        for (what, text) in differences {
            *self.differ.entry(what).or_default() += 1;
            if self.examples.len() < EXAMPLES_MAX {
                self.examples.push(format!("{}: {what}: {text}", request.request_id));
            }
        }
    }

    /// Adds a request that cannot be asked again.
    pub fn skip(&mut self) {
        self.requests += 1;
        self.items_changed += 1;
    }

    /// Whether nothing differs.
    pub fn holds(&self) -> bool {
        self.same + self.items_changed == self.requests
    }

    /// For a person.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} requests: {} the same bit for bit, {} not asked again because items changed while \
             they searched, {} differ",
            self.requests,
            self.same,
            self.items_changed,
            self.requests - self.same - self.items_changed,
        )];
        lines.extend(self.differ.iter().map(|(what, count)| format!("  {count:>8} in {what}")));
        lines.extend(self.examples.iter().map(|example| format!("  {example}")));
        lines
    }
}

/// In what a rerun differs from what was served, and how.
fn differences(
    request: &RequestRecord,
    served: &Served,
    rerun: &Rerun,
) -> Vec<(&'static str, String)> {
    let (now, mut found) = (&rerun.served, Vec::new());
    if request.item_ids != rerun.item_ids {
        let at = (0..).find(|&at| request.item_ids.get(at) != rerun.item_ids.get(at)).unwrap_or(0);
        let id = |ids: &[String]| ids.get(at).cloned().unwrap_or_else(|| "nothing".into());
        let (was, is) = (id(&request.item_ids), id(&rerun.item_ids));
        found.push(("items", format!("position {}: `{was}`, now `{is}`", at + 1)));
    }
    let mut number = |what, was: Vec<u64>, is: Vec<u64>, show: &dyn Fn(usize) -> String| {
        if was.len() != is.len() {
            found.push((what, format!("{} values, now {}", was.len(), is.len())));
        } else if let Some(at) = was.iter().zip(&is).position(|(was, is)| was != is) {
            found.push((what, format!("value {at}: {}", show(at))));
        }
    };
    let f32s = |values: &[f32]| values.iter().map(|value| u64::from(value.to_bits())).collect();
    let f64s = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect();
    let singles: [(_, &[f32], &[f32]); 5] = [
        ("scores", &request.scores, &rerun.scores),
        ("vector", &served.vector, &now.vector),
        ("features", &served.features, &now.features),
        ("retrieval ranks", &served.retrieval_ranks, &now.retrieval_ranks),
        ("similarities", &served.similarities, &now.similarities),
    ];
    for (what, was, is) in singles {
        number(what, f32s(was), f32s(is), &|at| format!("{}, now {}", was[at], is[at]));
    }
    let doubles: [(_, &[f64], &[f64]); 2] = [
        ("raw scores", &served.raw_scores, &now.raw_scores),
        ("propensities", &served.propensities, &now.propensities),
    ];
    for (what, was, is) in doubles {
        number(what, f64s(was), f64s(is), &|at| format!("{}, now {}", was[at], is[at]));
    }
    if served.dropped != now.dropped {
        let counts = (served.dropped.len(), now.dropped.len());
        found.push(("dropped", format!("{} candidates, now {}", counts.0, counts.1)));
    }
    found
}
