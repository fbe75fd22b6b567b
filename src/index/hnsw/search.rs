//! One search: follow the graph or compare everything, check every hit, see that there are enough.

use super::{Bitmap, Filter, Hit, HnswIndex, graph};
use crate::index::select::Best;
use crate::index::{self, Allowed};
use crate::kernels;
use crate::types::ItemIdx;

/// How often the graph is asked, with more candidates each time, before all is compared.
const ROUNDS: usize = 3;
/// Candidates that may be missing from what the pass rate seen asks for: it varies by chance.
const SLACK: f64 = 1.25;
/// Rows compared at once.
const BLOCK_ROWS: usize = 64;

/// Buffers of the search in a graph; what the crate needs besides it allocates in each search.
#[derive(Debug, Default)]
pub(in crate::index) struct Scratch {
    /// The query as the graph takes it.
    query: Vec<u32>,
}

/// Which built rows may be found.
#[derive(Clone, Copy)]
struct Mask<'a> {
    allowed: Option<&'a Bitmap>,
    alive: Option<&'a Bitmap>,
}

impl Mask<'_> {
    fn passes(&self, item: ItemIdx) -> bool {
        self.allowed.is_none_or(|set| set.get(item)) && self.alive.is_none_or(|set| set.get(item))
    }

    /// The bits of 64 rows from `first` on, of which those from `end` on are zero.
    fn bits(&self, first: usize, end: usize) -> u64 {
        let allowed = self.allowed.map_or(u64::MAX, |set| set.bits(first));
        let alive = self.alive.map_or(u64::MAX, |set| set.bits(first));
        let within = if end - first < 64 { (1 << (end - first)) - 1 } else { u64::MAX };
        allowed & alive & within
    }
}

/// What the graph gave.
#[derive(Clone, Copy)]
struct Seen {
    /// Candidates.
    found: usize,
    /// Those of them that pass.
    passed: usize,
    /// Rows that pass, with those beside the graph.
    offered: usize,
}

pub(super) fn search(
    index: &HnswIndex,
    query: &[f32],
    k: usize,
    filter: &Filter,
    scratch: &mut index::Scratch,
    out: &mut Vec<Hit>,
) {
    let Some(mut reader) = Reader::begin(index, query, k, filter, scratch, out) else { return };
    if !reader.follow() {
        reader.compare_all();
    }
    scratch.best.finish(k, &scratch.excluded, out);
}

/// See [`HnswIndex::search_exact`].
pub(super) fn search_exact(
    index: &HnswIndex,
    query: &[f32],
    k: usize,
    filter: &Filter,
    scratch: &mut index::Scratch,
    out: &mut Vec<Hit>,
) {
    let Some(mut reader) = Reader::begin(index, query, k, filter, scratch, out) else { return };
    reader.compare_all();
    scratch.best.finish(k, &scratch.excluded, out);
}

/// The best `k` of about `candidates` rows of the graph and of those beside it, whatever is
/// cheaper: what the calibration measures.
pub(super) fn search_graph(
    index: &HnswIndex,
    query: &[f32],
    k: usize,
    candidates: usize,
    scratch: &mut index::Scratch,
    out: &mut Vec<Hit>,
) {
    let all = Filter::default();
    let Some(mut reader) = Reader::begin(index, query, k, &all, scratch, out) else { return };
    reader.read_graph(candidates);
    scratch.best.finish(k, &[], out);
}

struct Reader<'a> {
    index: &'a HnswIndex,
    query: &'a [f32],
    prepared: &'a index::Query,
    allowed: Option<&'a Allowed>,
    /// Hits that are kept.
    wanted: usize,
    best: &'a mut Best,
    dots: &'a mut Vec<i32>,
    hnsw: &'a mut Scratch,
}

impl<'a> Reader<'a> {
    fn begin(
        index: &'a HnswIndex,
        query: &'a [f32],
        k: usize,
        filter: &Filter<'a>,
        scratch: &'a mut index::Scratch,
        out: &mut Vec<Hit>,
    ) -> Option<Self> {
        let shape = (index.dim, index.live.rows());
        let wanted = index::begin(shape, query, k, filter, scratch, out)?;
        let index::Scratch { query: prepared, best, dots, hnsw, .. } = scratch;
        graph::prepare(query, &mut hnsw.query);
        Some(Self { index, query, prepared, allowed: filter.allowed, wanted, best, dots, hnsw })
    }

    /// Asks the graph for as many candidates as the pass rate needs; false when comparing
    /// everything is cheaper, or too few pass.
    ///
    /// The pass rate of all rows is the first guess. Near the query it may be another one, which
    /// shows in the candidates.
    fn follow(&mut self) -> bool {
        let index = self.index;
        let rows = index.live.rows();
        let passing = self.allowed.map_or(rows, Allowed::count).min(rows);
        let mut depth = self.wanted as f64 * (rows as f64 / passing as f64);
        for _ in 0..ROUNDS {
            let candidates = index.calibration.candidates(index.target, depth);
            let exact_pays = passing <= index.exact_rows_max.max(self.wanted)
                || passing <= candidates.saturating_mul(index.rows_per_candidate);
            if exact_pays || index.graph.is_none() {
                return false;
            }
            let seen = self.read_graph(candidates);
            if seen.offered < self.wanted {
                return false;
            }
            depth = self.wanted as f64 * seen.found as f64 / seen.passed.max(1) as f64;
            let needed = index.calibration.candidates(index.target, depth) as f64;
            if needed <= SLACK * candidates as f64 {
                return true;
            }
        }
        false
    }

    /// Offers the living, allowed rows of the live part; the rest of the search looks at built
    /// rows afterwards, so that a row that is replaced meanwhile is not found twice.
    fn start(&mut self) -> (usize, Mask<'a>) {
        self.best.start(self.wanted);
        let live = self.index.live.scan(self.prepared, self.allowed, self.dots, self.best);
        let allowed = self.allowed.map(|set| &set.places);
        (live, Mask { allowed, alive: self.index.live.mask() })
    }

    fn read_graph(&mut self, candidates: usize) -> Seen {
        let (index, query) = (self.index, self.query);
        let (live, mask) = self.start();
        let mut seen = Seen { found: 0, passed: 0, offered: live };
        let found = index.graph.iter().flat_map(|graph| graph.search(&self.hnsw.query, candidates));
        for row in found.filter(|&row| !index.is_stray(row)) {
            let item = ItemIdx(row as u32);
            seen.found += 1;
            if mask.passes(item) {
                seen.passed += 1;
                self.best.offer(kernels::dot(query, index.vector(row)), item);
            }
        }
        seen.offered += seen.passed;
        for &item in index.strays.iter().filter(|&&item| mask.passes(item)) {
            seen.offered += 1;
            self.best.offer(kernels::dot(query, index.vector(item.row())), item);
        }
        seen
    }

    /// Compares every passing row.
    fn compare_all(&mut self) {
        let (index, n) = (self.index, self.index.rows());
        let (_, mask) = self.start();
        let mut scores = [0.0; BLOCK_ROWS];
        for first in (0..n).step_by(BLOCK_ROWS) {
            let end = n.min(first + BLOCK_ROWS);
            let mut bits = mask.bits(first, n);
            if bits.count_ones() as usize == end - first {
                let scores = &mut scores[..end - first];
                kernels::dots(
                    self.query,
                    &index.vectors[first * index.dim..end * index.dim],
                    scores,
                );
                for (&score, item) in scores.iter().zip(first as u32..) {
                    self.best.offer(score, ItemIdx(item));
                }
                continue;
            }
            while bits != 0 {
                let row = first + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let score = kernels::dot(self.query, index.vector(row));
                self.best.offer(score, ItemIdx(row as u32));
            }
        }
    }
}
