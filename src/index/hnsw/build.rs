//! Building: check, insert, look for what the graph does not lead to, calibrate.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Calibration, Graph, HnswIndex, Live, ROWS_PER_CANDIDATE, calibrate, graph};
use crate::index::ivf::{DIM_MAX, ROWS_MAX};
use crate::index::{Config, Error, Index, check_unit};
use crate::sections::Column;
use crate::types::ItemIdx;

/// Bytes of a point of the graph beside its vector, and of each of the `edges` asked for. Over the
/// synthetic set hnsw_rs 0.3.5 took 2,033, 2,587 and 2,558 bytes of resident memory a point with 8,
/// 16 and 32 edges; where fewer links are pruned away, more edges take more.
const POINT_BYTES: u64 = 1500;
const EDGE_BYTES: u64 = 70;
const GIB: f64 = (1u64 << 30) as f64;
/// Candidates with which a row is looked for first; those of the build are for the rest.
const AUDIT_CANDIDATES: usize = 16;
/// Rows looked for between two reports.
const AUDIT_ROWS: usize = 16_384;

impl HnswIndex {
    /// Builds the index of `vectors` (`[n * dim]`, row `i` is item `i`, each of length one).
    ///
    /// `queries` (`[m * dim]`, of length one) are held-out queries on which the number of
    /// candidates is calibrated; without any, some items stand in for them. `progress` hears
    /// `(done, total)`. Every row is searched for once the graph stands; see [`Self::strays`]. The
    /// result depends on the order in which threads insert, so no two builds are the same.
    ///
    /// # Errors
    /// When the memory needed is over `config.hnsw.memory_max_gib`, when a vector is not of length
    /// one (so also when it is zero or not a number), when the lengths do not fit `dim`, or when
    /// the configuration is out of range.
    pub fn build(
        vectors: &[f32],
        dim: usize,
        queries: &[f32],
        config: &Config,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Self, Error> {
        Self::build_with(vectors, dim, queries, config, ROWS_PER_CANDIDATE, progress)
    }

    pub(super) fn build_with(
        vectors: &[f32],
        dim: usize,
        queries: &[f32],
        config: &Config,
        rows_per_candidate: usize,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Self, Error> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.threads)
            .thread_name(|i| format!("index-build-{i}"))
            .build()
            .map_err(|source| Error::Threads { threads: config.threads, source })?;
        let target = check(&pool, vectors, dim, queries, config)?;
        let n = vectors.len() / dim;
        let queries = match queries {
            [] => some_rows(vectors, dim, config.calibration_queries_max),
            _ => some_rows(queries, dim, config.calibration_queries_max),
        };
        let query_cost = (n / 2048).max(1) as u64;
        let calibration = (queries.len() / dim) as u64 * query_cost * calibrate::PASSES;
        let total = 2 * n as u64 + calibration;
        let mut so_far = 0;
        let mut done = |new: u64| {
            so_far += new;
            progress(so_far, total);
        };

        let vectors = Arc::new(Column::from(vectors.to_vec()));
        let (edges, candidates) = (config.hnsw.edges, config.hnsw.build_candidates);
        let graph = (n > 0)
            .then(|| Graph::build(Arc::clone(&vectors), dim, edges, candidates, &pool, &mut done));
        let mut index = Self {
            dim,
            vectors,
            graph,
            strays: Vec::new(),
            edges,
            build_candidates: candidates,
            calibration: Calibration::default(),
            target,
            exact_rows_max: config.exact_rows_max,
            rows_per_candidate,
            live: Live::new(n, dim, 0),
        };
        index.strays = index.find_strays(&pool, &mut done);
        calibrate::calibrate(&mut index, &queries, &pool, &mut |queries| {
            done(queries * query_cost)
        });
        // Shallow passes are left out of a small index.
        progress(total, total);
        index.set_live_rows_max(config.live_rows_max);
        Ok(index)
    }

    /// The rows that a search for themselves does not find, ascending.
    fn find_strays(&self, pool: &rayon::ThreadPool, done: &mut dyn FnMut(u64)) -> Vec<ItemIdx> {
        let Some(graph) = &self.graph else { return Vec::new() };
        let wide = self.build_candidates.max(4 * AUDIT_CANDIDATES);
        let missed = |query: &mut Vec<u32>, row: u32| {
            graph::prepare(self.vector(row as usize), query);
            let mut tries = [AUDIT_CANDIDATES, wide].into_iter();
            let found = |count| graph.search(query, count).any(|found| found == row as usize);
            (!tries.any(found)).then_some(ItemIdx(row))
        };
        let mut strays = Vec::new();
        for first in (0..self.rows()).step_by(AUDIT_ROWS) {
            let end = self.rows().min(first + AUDIT_ROWS);
            let rows = (first as u32..end as u32).into_par_iter();
            let missing: Vec<Option<ItemIdx>> =
                pool.install(|| rows.map_init(Vec::new, missed).collect());
            strays.extend(missing.into_iter().flatten());
            done((end - first) as u64);
        }
        strays
    }
}

/// See [`HnswIndex::memory_bytes`].
pub(super) fn memory_bytes(items: usize, dim: usize, edges: usize) -> u64 {
    let row = 4 * dim as u64 + POINT_BYTES + EDGE_BYTES * edges as u64;
    row.saturating_mul(items as u64)
}

fn check(
    pool: &rayon::ThreadPool,
    vectors: &[f32],
    dim: usize,
    queries: &[f32],
    config: &Config,
) -> Result<usize, Error> {
    if !(1..=DIM_MAX).contains(&dim) {
        return Err(Error::Dimension { dim });
    }
    let edges = config.hnsw.edges;
    if !(2..=graph::EDGES_MAX).contains(&edges) {
        return Err(Error::Edges { found: edges, max: graph::EDGES_MAX });
    }
    let at_least = [
        ("hnsw.build_candidates", config.hnsw.build_candidates),
        ("calibration_queries_max", config.calibration_queries_max),
    ];
    if let Some(&(key, found)) = at_least.iter().find(|(_, found)| *found == 0) {
        return Err(Error::Config { key, found, min: 1 });
    }
    for (what, values) in [("item", vectors), ("query", queries)] {
        if !values.len().is_multiple_of(dim) {
            return Err(Error::Ragged { what, values: values.len(), dim });
        }
    }
    let rows = vectors.len() / dim;
    if rows > ROWS_MAX {
        return Err(Error::TooMany { rows });
    }
    let (needed_gib, max_gib) =
        (memory_bytes(rows, dim, edges) as f64 / GIB, config.hnsw.memory_max_gib);
    // Also when the limit is not a number.
    if rows > 0 && (needed_gib > max_gib || max_gib.is_nan()) {
        return Err(Error::Memory { rows, dim, edges, needed_gib, max_gib });
    }
    for (what, values) in [("item", vectors), ("query", queries)] {
        let rows = values.par_chunks_exact(dim).enumerate();
        let refused = |(row, vector)| check_unit(what, row, vector).err();
        if let Some(error) = pool.install(|| rows.find_map_first(refused)) {
            return Err(error);
        }
    }
    crate::index::target_row(config.recall_target)
}

/// At most `rows_max` rows, evenly spread.
fn some_rows(rows: &[f32], dim: usize, rows_max: usize) -> Vec<f32> {
    let step = (rows.len() / dim).div_ceil(rows_max).max(1);
    rows.chunks_exact(dim).step_by(step).flatten().copied().collect()
}
