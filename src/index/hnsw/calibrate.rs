//! How many candidates a search asks the graph for: measured at the build, stored with the index.
//!
//! For a recall target and a *depth* the table holds the candidates with which that share of the
//! true top `depth` is found, by a standard error more: real searches for held-out queries, with
//! more and more candidates until they find enough. A filter that lets one item in ten pass makes
//! the top 500 a sample of the top 5,000, so the depth of a search is what it wants divided by the
//! pass rate.

use rayon::prelude::*;

use super::{HnswIndex, search};
use crate::index::{Index, RECALL_TARGETS, Scratch, audit};
use crate::types::ItemIdx;

/// Depths of the table; beyond the last one the candidates grow in proportion.
const DEPTHS: [u32; 6] = [10, 50, 200, 500, 1_000, 2_500];
/// From one number of candidates to the next.
const LADDER: f64 = 1.15;
/// Most candidates for each row of the depth.
const CANDIDATES_SPREAD: usize = 64;

/// Candidates by recall target and depth.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Calibration {
    /// Ascending; empty for an index without items.
    pub(super) depths: Vec<u32>,
    /// `[targets * depths]`, ascending in the depth, none below its depth.
    pub(super) candidates: Vec<u32>,
}

impl Calibration {
    /// Candidates for recall target number `target` of the top `depth`.
    pub(super) fn candidates(&self, target: usize, depth: f64) -> usize {
        let Some(last) = self.depths.len().checked_sub(1) else { return depth.ceil() as usize };
        let row = &self.candidates[target * self.depths.len()..][..self.depths.len()];
        let above = self.depths.partition_point(|&known| (known as f64) < depth);
        let candidates = match above {
            0 => row[0] as f64,
            above if above > last => row[last] as f64 * (depth / self.depths[last] as f64),
            above => {
                let (d0, d1) = (self.depths[above - 1] as f64, self.depths[above] as f64);
                let (c0, c1) = (row[above - 1] as f64, row[above] as f64);
                c0 * (c1 / c0).powf((depth / d0).ln() / (d1 / d0).ln())
            }
        };
        candidates.max(depth).ceil() as usize
    }

    /// Target and candidates by depth.
    pub(super) fn rows(&self) -> Vec<(f32, Vec<u32>)> {
        let row = |at: usize| &self.candidates[at * self.depths.len()..][..self.depths.len()];
        RECALL_TARGETS.iter().enumerate().map(|(at, &target)| (target, row(at).to_vec())).collect()
    }
}

/// Sets the calibration of `index` by `queries` (`[m * dim]`); `done` hears how many queries are
/// new.
pub(super) fn calibrate(
    index: &mut HnswIndex,
    queries: &[f32],
    pool: &rayon::ThreadPool,
    done: &mut dyn FnMut(u64),
) {
    let n = index.len();
    if n == 0 {
        return;
    }
    // Deeper searches compare everything.
    let pays = |depth: u32| (depth as usize * index.rows_per_candidate.max(1)) < n;
    let mut depths: Vec<u32> = DEPTHS.into_iter().filter(|&depth| pays(depth)).collect();
    if depths.is_empty() {
        depths.push(DEPTHS[0].min(n as u32));
    }
    let deepest = depths[depths.len() - 1] as usize;
    let exact = |query: &[f32]| {
        let hits = audit::exact_search(&index.vectors, query, deepest, |_| true);
        hits.iter().map(|hit| hit.item).collect::<Vec<ItemIdx>>()
    };
    let tops: Vec<Vec<ItemIdx>> =
        pool.install(|| queries.par_chunks_exact(index.dim).map(exact).collect());
    let by_depth: Vec<[u32; RECALL_TARGETS.len()]> = depths
        .iter()
        .map(|&depth| {
            let chosen = choose(index, depth as usize, queries, &tops, pool);
            done(tops.len() as u64);
            chosen
        })
        .collect();
    let mut candidates = Vec::with_capacity(depths.len() * RECALL_TARGETS.len());
    for target in 0..RECALL_TARGETS.len() {
        let mut least = 1;
        candidates.extend(by_depth.iter().map(|chosen| {
            least = chosen[target].max(least);
            least
        }));
    }
    index.calibration = Calibration { depths, candidates };
}

/// How often `done` hears of all queries in [`calibrate`], at most.
pub(super) const PASSES: u64 = DEPTHS.len() as u64;

/// By recall target, the fewest candidates that find enough of the top `depth`.
fn choose(
    index: &HnswIndex,
    depth: usize,
    queries: &[f32],
    tops: &[Vec<ItemIdx>],
    pool: &rayon::ThreadPool,
) -> [u32; RECALL_TARGETS.len()] {
    let best: Vec<Vec<ItemIdx>> = tops
        .iter()
        .map(|top| {
            let mut top = top[..depth.min(top.len())].to_vec();
            top.sort_unstable();
            top
        })
        .collect();
    // With more, comparing everything costs less.
    let most = match index.rows_per_candidate {
        0 => index.len(),
        rows => index.len().div_ceil(rows),
    };
    let most = most.min(depth * CANDIDATES_SPREAD).max(depth);
    let mut candidates = depth;
    let mut seen = pool.install(|| measure(index, queries, &best, depth, candidates));
    RECALL_TARGETS.map(|goal| {
        while seen.0 - seen.1 < goal as f64 && candidates < most {
            candidates = ((candidates as f64 * LADDER).ceil() as usize).min(most);
            seen = pool.install(|| measure(index, queries, &best, depth, candidates));
        }
        candidates as u32
    })
}

/// Mean recall of the top `depth` with so many candidates, and its standard error.
fn measure(
    index: &HnswIndex,
    queries: &[f32],
    best: &[Vec<ItemIdx>],
    depth: usize,
    candidates: usize,
) -> (f64, f64) {
    let queries = queries.par_chunks_exact(index.dim).zip(best);
    let shares: Vec<f64> = queries
        .map_init(
            || (Scratch::default(), Vec::new()),
            |(scratch, out), (query, best)| {
                search::search_graph(index, query, depth, candidates, scratch, out);
                let hits = out.iter().filter(|hit| best.binary_search(&hit.item).is_ok());
                hits.count() as f64 / best.len() as f64
            },
        )
        .collect();
    let n = shares.len().max(1) as f64;
    let mean = shares.iter().sum::<f64>() / n;
    let variance = shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / n;
    (mean, (variance / n).sqrt())
}
