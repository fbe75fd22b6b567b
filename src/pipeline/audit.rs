//! Recall and rows in production: some requests are checked again off the hot path.
//!
//! Every so often a request is drawn: it leaves its query, what was found and the rows of its answer in a
//! short queue; one thread compares the candidates with all passing items, and the rows with those that the code
//! of training fills, and publishes the means over the last [`WINDOW`] requests. What does not fit in the
//! queue is not checked: an audit never delays an answer.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::context::{Context, Inputs, request_input};
use super::every::Every;
use super::record;
use super::rows::Rows;
use super::serving::Serving;
use crate::features::Candidate;
use crate::index::{self, Filter, Hit};
use crate::types::ItemIdx;
use crate::{ffi, monitor};

/// Requests that wait to be checked.
const QUEUE_MAX: usize = 4;
/// Requests over which the published mean is taken.
const WINDOW: usize = 200;

/// Draws requests and checks them.
pub struct Audit {
    queue: Option<Sender<Sample>>,
    every: Every,
}

struct Sample {
    serving: Arc<Serving>,
    vector: Vec<f32>,
    region: Option<usize>,
    shown: Vec<ItemIdx>,
    found: Vec<Hit>,
    inputs: Arc<Inputs>,
    /// Of the answer, those that are as they were built; their features as the ranker saw them.
    ranked: Vec<Candidate>,
    features: Rows,
}

impl Audit {
    /// Starts the thread that checks one request every `interval_ms`; none for 0.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(interval_ms: u64) -> std::io::Result<Self> {
        let mut queue = None;
        if interval_ms > 0 {
            let (sender, samples) = bounded(QUEUE_MAX);
            let body = move || check(&samples);
            std::thread::Builder::new().name("audit".to_owned()).spawn(body)?;
            queue = Some(sender);
        }
        Ok(Self { queue, every: Every::new(interval_ms) })
    }

    /// Draws a request whose candidates have been found, or not.
    pub fn offer(&self, cx: &Context) {
        let Some(queue) = &self.queue else { return };
        if !self.every.is_drawn() {
            return;
        }
        let rows: Vec<usize> =
            cx.scratch.ranked.iter().filter_map(|r| record::row_of(cx, r.item)).collect();
        let built = |row: &&usize| !cx.scratch.late.contains(&(**row as u32));
        let rows: Vec<Option<usize>> = rows.iter().filter(built).map(|&row| Some(row)).collect();
        let sample = Sample {
            inputs: cx.inputs.clone(),
            ranked: rows.iter().flatten().map(|&row| cx.scratch.candidates[row]).collect(),
            features: Rows::of(cx, &rows),
            serving: cx.serving.clone(),
            vector: cx.scratch.vector.clone(),
            region: cx.inputs.region,
            shown: cx.inputs.shown.clone(),
            found: cx.scratch.hits.clone(),
        };
        // Full after all, or the thread has ended: this one is not checked.
        let _ = queue.try_send(sample);
    }
}

fn check(samples: &Receiver<Sample>) {
    ffi::thread::yield_to_others();
    let (mut scratch, mut exact) = (index::Scratch::default(), Vec::new());
    let (mut recalls, mut skews) = (Window::default(), Window::default());
    for sample in samples {
        if let Some(share) = skew(&sample) {
            monitor::feature_skew(skews.add(share));
        }
        let bundle = &sample.serving.bundle;
        let filter =
            Filter { allowed: Some(bundle.allowed(sample.region)), excluded: &sample.shown };
        let k = sample.found.len();
        bundle.index.search_exact(&sample.vector, k, &filter, &mut scratch, &mut exact);
        if exact.is_empty() {
            continue;
        }
        let scores = sample.found.iter().map(|hit| hit.score);
        monitor::index_recall(recalls.add(index::audit::recall(scores, &exact)));
    }
}

/// The share of the values of a sample that the code of training fills otherwise; `None` where the
/// request was not ranked.
fn skew(sample: &Sample) -> Option<f64> {
    let Sample { serving, inputs, ranked, features, .. } = sample;
    let (bundle, width) = (&serving.bundle, serving.bundle.schema.len());
    let features = features.features();
    if features.is_empty() || features.len() != ranked.len() * width {
        return None;
    }
    let (plan, request) = (&bundle.plan, request_input(serving, inputs));
    let mut constants = vec![0.0; plan.constant_count()];
    let mut columns = vec![0.0; plan.column_count() * ranked.len()];
    plan.constants(&request, &mut constants);
    let mut scratch = plan.scratch(ranked.len());
    plan.columns(&request, bundle.items.columns(), ranked, &mut scratch, &mut columns);
    bundle.items.columns().let_go();
    let expected = |row: usize| {
        let of_row = (0..plan.column_count()).map(move |at| at * ranked.len() + row);
        constants.iter().copied().chain(of_row.map(|at| columns[at]))
    };
    let differ = |(row, served): (usize, &[f32])| {
        served.iter().zip(expected(row)).filter(|(a, b)| a.to_bits() != b.to_bits()).count()
    };
    let differing: usize = features.chunks_exact(width).enumerate().map(differ).sum();
    Some(differing as f64 / features.len() as f64)
}

/// The last values, for their mean.
#[derive(Default)]
struct Window(VecDeque<f64>);

impl Window {
    /// The mean, with one more.
    fn add(&mut self, value: f64) -> f64 {
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(value);
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }
}
