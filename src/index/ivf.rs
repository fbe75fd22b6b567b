//! Inverted lists: vectors grouped by their nearest centroid, the nearest lists read exactly.
//!
//! Invariant: `ids` (slot to item) is a permutation of the items and `offsets` cuts the slots into
//! lists, so every item is in exactly one list.
//!
//! How many lists a search reads follows from a table made at the build (`calibrate`): for a recall
//! target and a *depth* it holds the lists that contain that share of the top `depth` items. A
//! filter that lets one item in ten pass makes the top 500 a sample of the top 5,000, so the depth
//! is `k` divided by the pass rate, and the pass rate is the one seen in the lists read so far: it
//! is right also where the filter and the query have to do with one another.

mod build;
mod calibrate;
mod file;

use super::{Filter, Hit, Index, Scratch, begin, select};
use crate::kernels;
use crate::sections::Column;
use crate::types::ItemIdx;
use calibrate::Calibration;

/// Rows scored at once: their scores stay in the first-level cache.
const SCAN_ROWS: usize = 1024;
/// Results that the last fifth of the lists may bring, as a share of the results that the recall
/// target gives up. Where the misses fall off with the number of lists read to the power 1 to 2,
/// they bring .25 to .56 of what remains unfound; above that the query is not an ordinary one.
const LATE_SHARE: f32 = 0.8;

/// See the module; vectors as `f32`, resident or mapped.
pub struct IvfIndex {
    dim: usize,
    /// `[lists * dim]`, each of length one.
    centroids: Column<f32>,
    /// `[lists + 1]`: where each list begins, in slots.
    offsets: Column<u64>,
    /// `[n]`: the item of each slot, ascending within a list.
    ids: Column<ItemIdx>,
    /// `[n * dim]`, in slot order.
    vectors: Column<f32>,
    /// `[n]`: the slot of each item.
    slots: Vec<u32>,
    calibration: Calibration,
    /// Row of `calibration` in use.
    target: usize,
    exact_rows_max: usize,
}

impl IvfIndex {
    /// Number of lists.
    pub fn lists(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Lists that a search for `k` items reads when every item passes.
    pub fn probes(&self, k: usize) -> usize {
        self.calibration.probes(self.target, k as f64, self.lists())
    }

    /// The calibrated recall that searches aim at.
    pub fn recall_target(&self) -> f32 {
        super::RECALL_TARGETS[self.target]
    }

    /// Reads more or fewer lists from now on.
    ///
    /// # Errors
    /// When `target` is none of [`super::RECALL_TARGETS`].
    pub fn set_recall_target(&mut self, target: f32) -> Result<(), super::Error> {
        self.target = calibrate::target_row(target)?;
        Ok(())
    }

    fn scan_items(&self, query: &[f32], filter: &Filter, best: &mut select::Best) {
        let vectors = &*self.vectors;
        let mut offer = |item: ItemIdx| {
            let slot = self.slots[item.row()] as usize;
            best.offer(kernels::dot(query, &vectors[slot * self.dim..][..self.dim]), item);
        };
        match filter.allowed {
            Some(allowed) => allowed.iter().for_each(&mut offer),
            None => (0..self.len() as u32).map(ItemIdx).for_each(&mut offer),
        }
    }

    /// Reads the nearest lists until the calibrated number for the pass rate seen is reached and
    /// `wanted` items have passed, or all are read.
    ///
    /// Under a filter that leaves out just what is nearest to the query, the best passing items are
    /// scattered over more lists than the calibration knows of. It shows in the last fifth of the
    /// lists still giving new results; then the search goes on.
    fn scan_lists(&self, query: &[f32], wanted: usize, filter: &Filter, scratch: &mut Scratch) {
        let lists = self.lists();
        self.score_centroids(query, scratch);
        let late_max = (LATE_SHARE * (1.0 - self.recall_target()) * wanted as f32).max(1.0) as u64;
        let (mut read, mut scanned, mut passed) = (0, 0, 0);
        let mut goal = self.probes(wanted);
        loop {
            nearest_first(&mut scratch.order[read..], goal - read);
            let mut offered = 0;
            while read < goal {
                if read == goal - goal / 5 {
                    offered = scratch.best.tighten();
                }
                let list = select::hit(scratch.order[read]).item.row();
                let slots = self.offsets[list] as usize..self.offsets[list + 1] as usize;
                scanned += slots.len();
                passed += self.scan_list(query, slots, filter, scratch);
                read += 1;
            }
            if filter.allowed.is_none() && passed >= wanted {
                break;
            }
            let depth = wanted as f64 * scanned as f64 / passed.max(1) as f64;
            let mut next = self.calibration.probes(self.target, depth, lists);
            let late = scratch.best.tighten() - offered;
            if passed < wanted || late > late_max {
                next = next.max(read + read / 4 + 1);
            }
            // The pass rate of few lists is a rough guess, so no step more than doubles.
            next = next.min(2 * read).min(lists);
            if next <= read {
                break;
            }
            goal = next;
        }
    }

    fn score_centroids(&self, query: &[f32], scratch: &mut Scratch) {
        scratch.scores.resize(self.lists().max(SCAN_ROWS), 0.0);
        let scores = &mut scratch.scores[..self.lists()];
        kernels::dots(query, &self.centroids, scores);
        scratch.order.clear();
        scratch.order.extend(scores.iter().zip(0..).map(|(&score, list)| select::key(score, list)));
    }

    /// Offers the passing rows of one list; returns how many there were.
    fn scan_list(
        &self,
        query: &[f32],
        slots: std::ops::Range<usize>,
        filter: &Filter,
        scratch: &mut Scratch,
    ) -> usize {
        let (dim, vectors, ids) = (self.dim, &*self.vectors, &self.ids[slots.clone()]);
        let Some(allowed) = filter.allowed else {
            let rows = &vectors[slots.start * dim..slots.end * dim];
            for (ids, rows) in ids.chunks(SCAN_ROWS).zip(rows.chunks(SCAN_ROWS * dim)) {
                let scores = &mut scratch.scores[..ids.len()];
                kernels::dots(query, rows, scores);
                for (&score, &item) in scores.iter().zip(ids) {
                    scratch.best.offer(score, item);
                }
            }
            return slots.len();
        };
        // Whether an item passes cannot be predicted, so the passing slots are gathered without a
        // branch, and only they are scored.
        scratch.passing.resize(scratch.passing.len().max(slots.len()), 0);
        let mut passing = 0;
        for (&item, slot) in ids.iter().zip(slots.start as u32..) {
            scratch.passing[passing] = slot;
            passing += allowed.get(item) as usize;
        }
        for &slot in &scratch.passing[..passing] {
            let slot = slot as usize;
            let score = kernels::dot(query, &vectors[slot * dim..][..dim]);
            scratch.best.offer(score, ids[slot - slots.start]);
        }
        passing
    }
}

impl Index for IvfIndex {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn search(
        &self,
        query: &[f32],
        k: usize,
        filter: &Filter,
        scratch: &mut Scratch,
        out: &mut Vec<Hit>,
    ) {
        let Some(wanted) = begin(self, query, k, filter, scratch, out) else { return };
        scratch.best.start(wanted);
        let passing = filter.allowed.map_or(self.len(), super::Bitmap::count_ones);
        if passing <= self.exact_rows_max.max(wanted) {
            self.scan_items(query, filter, &mut scratch.best);
        } else {
            self.scan_lists(query, wanted, filter, scratch);
        }
        scratch.best.finish(k, &scratch.excluded, out);
    }

    fn vector(&self, item: ItemIdx) -> &[f32] {
        let slot = self.slots[item.row()] as usize;
        &self.vectors[slot * self.dim..][..self.dim]
    }
}

/// The shape, not the vectors.
impl std::fmt::Debug for IvfIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IvfIndex")
            .field("len", &self.len())
            .field("dim", &self.dim)
            .field("lists", &self.lists())
            .field("calibration", &self.calibration)
            .field("recall_target", &self.recall_target())
            .finish_non_exhaustive()
    }
}

/// Brings the best `count` keys to the front, in order.
fn nearest_first(keys: &mut [u64], count: usize) {
    if count < keys.len() {
        keys.select_nth_unstable_by(count, |a, b| b.cmp(a));
    }
    keys[..count].sort_unstable_by(|a, b| b.cmp(a));
}

#[cfg(test)]
#[path = "ivf/tests.rs"]
mod tests;
