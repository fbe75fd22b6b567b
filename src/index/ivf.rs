//! Inverted lists: vectors grouped by their nearest centroid, the nearest lists read.
//!
//! A stored vector is the centroid of its list plus a residual in bytes, with a step of its own:
//! the score of a row is `q . centroid + q . residual`, of which the first is computed once a list.
//! The product-quantised tier (`pq`), if there, is read first and names the rows whose bytes are
//! worth reading; the half-precision tier, if there, scores the best again.
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
mod coarse;
mod file;
mod pq;
mod sample;
mod search;

pub(super) use search::Scratch;

use std::path::Path;

use super::live::Live;
use super::{Allowed, Bitmap, Changes, Error, Filter, Hit, Index, Layout, Query, kmeans};
use crate::kernels::{self, half, int8};
use crate::sections::Column;
use crate::types::ItemIdx;
use calibrate::Calibration;
use coarse::Coarse;
use pq::Pq;

/// Longest vector.
pub const DIM_MAX: usize = 1024;
/// Most items.
pub const ROWS_MAX: usize = u32::MAX as usize - super::LIVE_ROWS_MAX;

/// See the module; resident or mapped.
pub struct IvfIndex {
    dim: usize,
    /// `[lists * dim]`, each of length one.
    centroids: Column<f32>,
    /// `[lists + 1]`: where each list begins, in slots.
    offsets: Column<u32>,
    /// `[n]`: the item of each slot, ascending within a list.
    ids: Column<ItemIdx>,
    /// `[n]`: the slot of each item.
    slots: Column<u32>,
    /// `[n]`: the step of each residual, as the upper half of an `f32`.
    steps: Column<u16>,
    /// `[n * row_bytes(dim)]`: residuals in whole steps.
    residuals: Column<i8>,
    pq: Option<Pq>,
    /// `[n * dim]`: the vectors as halves.
    halves: Option<Column<u16>>,
    coarse: Coarse,
    calibration: Calibration,
    /// Row of `calibration` in use.
    target: usize,
    exact_rows_max: usize,
    live: Live,
}

impl IvfIndex {
    /// Number of lists.
    pub fn lists(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Most lists that a search for `k` of all items reads.
    pub fn lists_max(&self, k: usize) -> usize {
        self.calibration.lists_max(self.target, k as f64, self.lists())
    }

    fn list_rows(&self, list: usize) -> std::ops::Range<usize> {
        self.offsets[list] as usize..self.offsets[list + 1] as usize
    }

    fn list_of(&self, slot: usize) -> usize {
        self.offsets.partition_point(|&start| start as usize <= slot) - 1
    }

    fn centroid(&self, list: usize) -> &[f32] {
        &self.centroids[list * self.dim..][..self.dim]
    }

    fn step(&self, slot: usize) -> f32 {
        f32::from_bits((self.steps[slot] as u32) << 16)
    }

    /// The slot of an item of the build, alive or not.
    fn slot(&self, item: ItemIdx) -> Option<usize> {
        self.slots.get(item.row()).map(|&slot| slot as usize)
    }

    /// Score by residual of a row in a list whose centroid scores `near`.
    #[inline]
    fn residual_score(&self, near: f32, dot: i32, slot: usize, query_step: f32) -> f32 {
        near + dot as f32 * (self.step(slot) * query_step)
    }

    /// Score of a living or dead slot by the finest tier.
    fn slot_score(&self, query: &[f32], prepared: &Query, slot: usize, wide: &mut Vec<f32>) -> f32 {
        if let Some(halves) = &self.halves {
            return self.half_score(query, halves, slot, wide);
        }
        let mut dot = [0];
        int8::dots_at(&prepared.steps, &self.residuals, &[slot as u32], &mut dot);
        let near = kernels::dot(query, self.centroid(self.list_of(slot)));
        self.residual_score(near, dot[0], slot, prepared.step)
    }

    /// Writes the vector of a slot by the finest tier.
    fn stored(&self, slot: usize, out: &mut [f32]) {
        if let Some(halves) = &self.halves {
            return half::widen(&halves[slot * self.dim..][..self.dim], out);
        }
        let row = &self.residuals[slot * int8::row_bytes(self.dim)..][..self.dim];
        let near = self.centroid(self.list_of(slot)).iter().zip(row);
        for (x, (centre, &code)) in out.iter_mut().zip(near) {
            *x = centre + f32::from(code) * self.step(slot);
        }
    }

    fn half_score(&self, query: &[f32], halves: &[u16], slot: usize, wide: &mut Vec<f32>) -> f32 {
        wide.resize(self.dim, 0.0);
        half::widen(&halves[slot * self.dim..][..self.dim], wide);
        kernels::dot(query, wide)
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
        scratch: &mut super::Scratch,
        out: &mut Vec<Hit>,
    ) {
        search::search(self, query, k, filter, false, scratch, out);
    }

    fn search_exact(
        &self,
        query: &[f32],
        k: usize,
        filter: &Filter,
        scratch: &mut super::Scratch,
        out: &mut Vec<Hit>,
    ) {
        search::search(self, query, k, filter, true, scratch, out);
    }

    fn scores(
        &self,
        query: &[f32],
        items: &[ItemIdx],
        scratch: &mut super::Scratch,
        out: &mut Vec<f32>,
    ) {
        assert_eq!(query.len(), self.dim, "query of another dimension than the index");
        scratch.query.set(query);
        out.clear();
        out.extend(items.iter().map(|&item| {
            match self.slot(item).filter(|&slot| self.live.is_alive(slot)) {
                Some(slot) => self.slot_score(query, &scratch.query, slot, &mut scratch.wide),
                None => self.live.score(&scratch.query, item).map_or(f32::NAN, |hit| hit.score),
            }
        }));
    }

    fn allow(&self, items: &Bitmap) -> Allowed {
        assert_eq!(items.len(), self.len(), "a set over another number of items");
        let places = Bitmap::new(self.live.places());
        items.iter().for_each(|item| places.set(ItemIdx(self.slots[item.row()]), true));
        Allowed { places }
    }

    fn set_allowed(&self, allowed: &Allowed, item: ItemIdx, member: bool) {
        if let Some(place) = self.live.place(item, self.slot(item)) {
            allowed.places.set(ItemIdx(place as u32), member);
        }
    }

    fn allows(&self, allowed: &Allowed, item: ItemIdx) -> bool {
        self.live.allows(allowed, item, self.slot(item))
    }

    fn vector_of(&self, item: ItemIdx, out: &mut [f32]) -> bool {
        assert_eq!(out.len(), self.dim, "vector of another dimension than the index");
        let there = match self.slot(item).filter(|&slot| self.live.is_alive(slot)) {
            Some(slot) => {
                self.stored(slot, out);
                true
            }
            None => self.live.vector(item, out),
        };
        if there {
            kernels::normalise(out);
        }
        there
    }

    fn upsert(
        &self,
        item: ItemIdx,
        vector: &[f32],
        sets: &[(&Allowed, bool)],
    ) -> Result<(), Error> {
        self.live.upsert(item, self.slot(item), vector, sets)
    }

    fn remove(&self, item: ItemIdx) -> bool {
        self.live.remove(item, self.slot(item))
    }

    fn changes(&self) -> Changes {
        self.live.changes()
    }

    fn recall_target(&self) -> f32 {
        super::RECALL_TARGETS[self.target]
    }

    fn set_recall_target(&mut self, target: f32) -> Result<(), Error> {
        self.target = super::target_row(target)?;
        Ok(())
    }

    fn set_live_rows_max(&mut self, rows: usize) {
        self.live = Live::new(self.len(), self.dim, rows.min(super::LIVE_ROWS_MAX));
    }

    fn layout(&self) -> Layout {
        let mut sizes: Vec<usize> =
            self.offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize).collect();
        sizes.sort_unstable();
        let size = |at: usize| sizes.get(at).copied().unwrap_or(0);
        let mut parts = vec![
            ("residuals", self.residuals.len()),
            ("steps", size_of_val(&*self.steps)),
            ("items of slots", size_of_val(&*self.ids)),
            ("slots of items", size_of_val(&*self.slots)),
            ("centroids", size_of_val(&*self.centroids) + self.coarse.bytes()),
            ("offsets", size_of_val(&*self.offsets)),
            ("living rows", self.live.places().div_ceil(8)),
        ];
        if let Some(pq) = &self.pq {
            parts.push(("product-quantised codes", pq.bytes()));
        }
        if let Some(halves) = &self.halves {
            parts.push(("half-precision vectors", size_of_val(&**halves)));
        }
        Layout {
            items: self.len(),
            dim: self.dim,
            lists: self.lists(),
            list_rows: [size(0), size(sizes.len() / 2), size(sizes.len().saturating_sub(1))],
            parts,
            depths: self.calibration.depths.clone(),
            probes: self.calibration.rows(),
        }
    }

    fn save(&self, path: &Path) -> Result<(), Error> {
        self.write(path)
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

#[cfg(test)]
#[path = "ivf/tests.rs"]
mod tests;
