//! A graph of near neighbours (hnsw_rs) for catalogues of up to about a million items.
//!
//! The crate finds candidates; everything that a result promises is done here. Scores are inner
//! products with the rows kept here, every candidate is checked against the filter and the living
//! rows after the search (the crate's own filter lets failing items through and never stops early),
//! and when too few pass, or comparing all passing rows is cheaper, all passing rows are compared.
//!
//! Invariant: every built row is found by the graph when it is searched for itself, or is one of
//! the `strays`, which every search compares; so none is out of reach. Points without a way to
//! them are what insertion in parallel and duplicates leave behind.
//!
//! Two builds over the same rows differ, and so may their results: the crate inserts in parallel
//! and links whatever is there first. A search allocates, in the crate. A place is an item's row.
//!
//! Knows vectors and rows. Must not know what an item is, or where a filter comes from.

mod build;
mod calibrate;
mod file;
mod graph;
mod search;

pub(super) use search::Scratch;

use std::path::Path;
use std::sync::Arc;

use super::live::Live;
use super::{Allowed, Bitmap, Changes, Error, Filter, Hit, Index, Layout};
use crate::kernels;
use crate::sections::Column;
use crate::types::ItemIdx;
use calibrate::Calibration;
use graph::Graph;

/// Rows that are compared one by one in the time in which the graph yields one candidate: some 10 us
/// against 40 ns over 20,000 rows of 128 numbers, rounded towards the graph.
const ROWS_PER_CANDIDATE: usize = 200;

/// See the module.
pub struct HnswIndex {
    dim: usize,
    /// `[n * dim]`, row `i` is item `i`.
    vectors: Arc<Column<f32>>,
    /// None over no items.
    graph: Option<Graph>,
    /// Items that the graph does not lead to, ascending.
    strays: Vec<ItemIdx>,
    edges: usize,
    build_candidates: usize,
    calibration: Calibration,
    /// Row of `calibration` in use.
    target: usize,
    exact_rows_max: usize,
    /// [`ROWS_PER_CANDIDATE`], but for tests of the graph over few rows.
    rows_per_candidate: usize,
    live: Live,
}

impl HnswIndex {
    /// Items that the graph does not lead to; each search compares them one by one.
    pub fn strays(&self) -> usize {
        self.strays.len()
    }

    /// By recall target, depths and the candidates that the graph is asked for.
    pub fn candidates(&self) -> Vec<(f32, Vec<(u32, u32)>)> {
        let depths = &self.calibration.depths;
        let pairs = |row: Vec<u32>| depths.iter().copied().zip(row).collect();
        self.calibration.rows().into_iter().map(|(target, row)| (target, pairs(row))).collect()
    }

    /// Bytes that an index over `items` of dimension `dim` takes, about: the vectors, and what was
    /// measured of the graph. Opening one takes as much again for a moment.
    pub fn memory_bytes(items: usize, dim: usize, edges: usize) -> u64 {
        build::memory_bytes(items, dim, edges)
    }

    fn rows(&self) -> usize {
        self.vectors.len() / self.dim
    }

    fn vector(&self, row: usize) -> &[f32] {
        &self.vectors[row * self.dim..][..self.dim]
    }

    fn is_stray(&self, row: usize) -> bool {
        self.strays.binary_search(&ItemIdx(row as u32)).is_ok()
    }

    /// The row of an item of the build, alive or not.
    fn built(&self, item: ItemIdx) -> Option<usize> {
        Some(item.row()).filter(|&row| row < self.rows())
    }
}

impl Index for HnswIndex {
    fn len(&self) -> usize {
        self.rows()
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
        search::search(self, query, k, filter, scratch, out);
    }

    fn search_exact(
        &self,
        query: &[f32],
        k: usize,
        filter: &Filter,
        scratch: &mut super::Scratch,
        out: &mut Vec<Hit>,
    ) {
        search::search_exact(self, query, k, filter, scratch, out);
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
            match self.built(item).filter(|&row| self.live.is_alive(row)) {
                Some(row) => kernels::dot(query, self.vector(row)),
                None => self.live.score(&scratch.query, item).map_or(f32::NAN, |hit| hit.score),
            }
        }));
    }

    fn allow(&self, items: &Bitmap) -> Allowed {
        assert_eq!(items.len(), self.rows(), "a set over another number of items");
        let places = self.live.places();
        let mut words: Vec<u64> = items.words().collect();
        words.resize(places.div_ceil(64), 0);
        Allowed { places: Bitmap::from_words(places, words) }
    }

    fn set_allowed(&self, allowed: &Allowed, item: ItemIdx, member: bool) {
        if let Some(place) = self.live.place(item, self.built(item)) {
            allowed.places.set(ItemIdx(place as u32), member);
        }
    }

    fn allows(&self, allowed: &Allowed, item: ItemIdx) -> bool {
        self.live.allows(allowed, item, self.built(item))
    }

    fn vector_of(&self, item: ItemIdx, out: &mut [f32]) -> bool {
        assert_eq!(out.len(), self.dim, "vector of another dimension than the index");
        match self.built(item).filter(|&row| self.live.is_alive(row)) {
            Some(row) => out.copy_from_slice(self.vector(row)),
            None if self.live.vector(item, out) => {
                kernels::normalise(out);
            }
            None => return false,
        }
        true
    }

    fn upsert(
        &self,
        item: ItemIdx,
        vector: &[f32],
        sets: &[(&Allowed, bool)],
    ) -> Result<(), Error> {
        self.live.upsert(item, self.built(item), vector, sets)
    }

    fn remove(&self, item: ItemIdx) -> bool {
        self.live.remove(item, self.built(item))
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
        self.live = Live::new(self.rows(), self.dim, rows.min(super::LIVE_ROWS_MAX));
    }

    fn save(&self, path: &Path) -> Result<(), Error> {
        self.write(path)
    }

    fn layout(&self) -> Layout {
        let vectors = size_of_val(&**self.vectors);
        let all = Self::memory_bytes(self.rows(), self.dim, self.edges) as usize;
        Layout {
            items: self.rows(),
            dim: self.dim,
            lists: 0,
            list_rows: [0; 3],
            parts: vec![
                ("vectors", vectors),
                ("graph (about)", all.saturating_sub(vectors)),
                ("living rows", self.live.places().div_ceil(8)),
            ],
            depths: self.calibration.depths.clone(),
            probes: self.calibration.rows().into_iter().map(|(t, row)| (t, row, 1)).collect(),
        }
    }
}

/// The shape, not the vectors.
impl std::fmt::Debug for HnswIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HnswIndex")
            .field("len", &self.rows())
            .field("dim", &self.dim)
            .field("edges", &self.edges)
            .field("strays", &self.strays.len())
            .field("calibration", &self.calibration)
            .field("recall_target", &self.recall_target())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "hnsw/tests.rs"]
mod tests;
