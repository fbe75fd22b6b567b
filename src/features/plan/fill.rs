//! The item and cross columns of one request.
//!
//! First what the steps read of the candidates and of the history is gathered from the item columns,
//! which lie far apart in memory; then each step runs over values that lie side by side.

use super::super::ops::{Op, history::Past};
use super::super::{HISTORY_MAX, ItemRows, UserMap};
use super::{Candidate, RequestInput, Slot, Step, scalar};
use crate::types::ItemIdx;

/// User maps whose keys are below this are laid out by key for a request; those beyond are
/// searched. A quarter of a mebibyte.
const BY_KEY_MAX: usize = 1 << 16;

/// Buffers of one thread.
#[derive(Clone, Debug)]
pub struct PlanScratch {
    /// What the steps read of the candidates and of the history, column-major.
    candidates: Vec<f32>,
    history: Vec<f32>,
    /// Values of a user map by key; NaN between two uses.
    by_key: Vec<f32>,
}

impl PlanScratch {
    pub(super) fn new(gathered: usize, candidates: usize) -> Self {
        Self {
            candidates: Vec::with_capacity(gathered * candidates),
            history: Vec::with_capacity(gathered * HISTORY_MAX),
            by_key: vec![f32::NAN; BY_KEY_MAX],
        }
    }
}

/// Fills one column after the other; `gathered` are the item columns that the steps read.
pub(super) fn fill_all<'a>(
    steps: impl Iterator<Item = &'a Step> + Clone,
    gathered: &[usize],
    request: &RequestInput,
    items: &ItemRows,
    candidates: &[Candidate],
    scratch: &mut PlanScratch,
    out: &mut [f32],
) {
    assert_eq!(out.len(), steps.clone().count() * candidates.len(), "one value a cell");
    if candidates.is_empty() {
        return;
    }
    items.gather_candidates(gathered, candidates.iter().map(|c| c.item), &mut scratch.candidates);
    items.gather(gathered, request.history.items.iter().copied(), &mut scratch.history);
    let PlanScratch { candidates: values, history, by_key } = scratch;
    let values = Values { request, candidates, values, history };
    for (step, column) in steps.zip(out.chunks_exact_mut(candidates.len())) {
        values.fill(&step.op, by_key, column);
        if let Some(default) = step.default {
            column.iter_mut().filter(|v| v.is_nan()).for_each(|v| *v = default);
        }
    }
}

/// What the steps of one request read.
struct Values<'a> {
    request: &'a RequestInput<'a>,
    candidates: &'a [Candidate],
    values: &'a [f32],
    history: &'a [f32],
}

impl Values<'_> {
    /// A column of one value a candidate.
    fn fill(&self, op: &Op<Slot>, by_key: &mut [f32], out: &mut [f32]) {
        match *op {
            Op::Dot => self.each(out, |c| c.similarity),
            Op::RetrievalRank => self.each(out, |c| c.retrieval_rank),
            Op::RetrievalScore => self.each(out, |c| c.retrieval_score),
            Op::Lookup { map: Slot::Map(map), key: Slot::Item(key) } => {
                lookup(self.request.user.map(map), self.column(key), by_key, out);
            }
            Op::HistoryCount { of } => self.against(of, out, Past::count),
            Op::HistoryShare { of } => self.against(of, out, Past::share),
            Op::SecondsSinceLast { of } => {
                let now_ms = self.request.time_ms;
                self.against(of, out, |past, key| past.seconds_since_last(key, now_ms));
            }
            _ => self.plain(op, out),
        }
    }

    fn each(&self, out: &mut [f32], value: impl Fn(&Candidate) -> f32) {
        out.iter_mut().zip(self.candidates).for_each(|(out, candidate)| *out = value(candidate));
    }

    /// A gathered column of the candidates.
    fn column(&self, at: usize) -> &[f32] {
        &self.values[at * self.candidates.len()..][..self.candidates.len()]
    }

    /// Compares each candidate with the history.
    fn against(&self, of: Slot, out: &mut [f32], value: impl Fn(&Past, f32) -> f32) {
        let history = self.request.history;
        let mut buffer = [0.0; HISTORY_MAX];
        let keys = match of {
            Slot::Item(at) => &self.history[at * history.items.len()..][..history.items.len()],
            _ => {
                let keys = buffer.iter_mut().zip(history.items);
                keys.for_each(|(key, &item)| *key = item_key(item));
                &buffer[..history.items.len()]
            }
        };
        let past = Past::new(keys, history.times_ms);
        match of {
            Slot::Item(at) => {
                let keys = out.iter_mut().zip(self.column(at));
                keys.for_each(|(out, &key)| *out = value(&past, key));
            }
            _ => self.each(out, |candidate| value(&past, item_key(candidate.item))),
        }
    }

    fn plain(&self, op: &Op<Slot>, out: &mut [f32]) {
        let (request, rows) = (self.request, self.candidates.len());
        for (row, out) in out.iter_mut().enumerate() {
            let read = |slot: Slot| match slot {
                Slot::User(at) => request.user.value(at),
                Slot::Context(at) => request.context[at],
                Slot::Item(at) => self.values[at * rows + row],
                Slot::Map(_) | Slot::ItemItself => f32::NAN,
            };
            *out = scalar(op, request.time_ms, request.history.items.len(), read);
        }
    }
}

/// The item's row counts exactly up to 2^24 in an `f32`; bits carry it exactly beyond.
pub(super) fn item_key(item: ItemIdx) -> f32 {
    f32::from_bits(item.0)
}

/// The value of a user's map at each key.
fn lookup(map: UserMap, keys: &[f32], by_key: &mut [f32], out: &mut [f32]) {
    let Some(&last) = map.keys.last() else { return out.fill(f32::NAN) };
    let pairs = out.iter_mut().zip(keys);
    if last as usize >= by_key.len() {
        return pairs.for_each(|(out, &key)| *out = map.get(key));
    }
    for (&key, &value) in map.keys.iter().zip(map.values) {
        by_key[key as usize] = value;
    }
    for (out, &key) in pairs {
        let value = by_key.get(key as usize).copied().unwrap_or(f32::NAN);
        *out = if key.is_nan() { f32::NAN } else { value };
    }
    map.keys.iter().for_each(|&key| by_key[key as usize] = f32::NAN);
}
