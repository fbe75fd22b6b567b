//! How many lists to read: measured at the build, stored with the index.
//!
//! For every calibration query all items are scored and all lists ranked. The list rank of each of
//! the top `depth` items says from how many lists on it is found, so one pass over the queries
//! gives the whole curve of recall against lists, for every depth at once.

use rayon::prelude::*;

use super::{IvfIndex, select};
use crate::index::{Error, Index, RECALL_TARGETS};
use crate::kernels;

/// Depths of the table; beyond the last one the lists grow in proportion.
const DEPTHS: [u32; 8] = [20, 100, 500, 1_000, 2_500, 5_000, 20_000, 80_000];
/// Rows scored at once.
const BLOCK_ROWS: usize = 4096;

/// Lists to read by recall target and depth.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Calibration {
    /// Ascending; empty for an index without items.
    pub(super) depths: Vec<u32>,
    /// `[targets * depths]`, ascending in the depth.
    pub(super) probes: Vec<u32>,
}

impl Calibration {
    /// Lists to read for recall target number `target` of the top `depth`, at most `lists`;
    /// between two depths of the table by interpolation of the logarithms.
    pub(super) fn probes(&self, target: usize, depth: f64, lists: usize) -> usize {
        let row = &self.probes[target * self.depths.len()..][..self.depths.len()];
        let (Some(&last), Some(&most)) = (self.depths.last(), row.last()) else { return lists };
        let above = self.depths.partition_point(|&known| (known as f64) < depth);
        let probes = if above == 0 {
            row[0] as f64
        } else if above == self.depths.len() {
            most as f64 * depth / last as f64
        } else {
            let (d0, d1) = (self.depths[above - 1] as f64, self.depths[above] as f64);
            let (p0, p1) = (row[above - 1] as f64, row[above] as f64);
            p0 * (p1 / p0).powf((depth / d0).ln() / (d1 / d0).ln())
        };
        // The tolerance keeps a depth of the table at exactly its entry.
        ((probes - 1e-6).ceil() as usize).clamp(lists.min(1), lists)
    }
}

/// The row of the table for a recall target of the configuration.
pub(super) fn target_row(target: f32) -> Result<usize, Error> {
    RECALL_TARGETS
        .iter()
        .position(|&known| known == target)
        .ok_or(Error::RecallTarget { found: target })
}

/// Measures on `queries` (`[m * dim]`); `done` hears how many queries are new.
pub(super) fn calibrate(
    index: &IvfIndex,
    queries: &[f32],
    pool: &rayon::ThreadPool,
    done: &mut dyn FnMut(u64),
) -> Calibration {
    let (n, lists) = (index.len(), index.lists());
    if n == 0 {
        return Calibration::default();
    }
    let mut depths: Vec<u32> = DEPTHS.into_iter().filter(|&depth| (depth as usize) < n).collect();
    depths.push((n as u32).min(DEPTHS[DEPTHS.len() - 1]));
    depths.dedup();

    // found[d * lists + r]: top items of depth d, over all queries, in the list of rank r.
    let mut found = vec![0u64; depths.len() * lists];
    let at_once = pool.current_num_threads() * 4;
    for some in queries.chunks(at_once * index.dim) {
        let ranks: Vec<Vec<u32>> = pool.install(|| {
            some.par_chunks_exact(index.dim).map(|query| top_ranks(index, query, &depths)).collect()
        });
        for ranks in &ranks {
            let mut taken = 0;
            for (d, &depth) in depths.iter().enumerate() {
                for &rank in &ranks[taken..depth as usize] {
                    found[d * lists + rank as usize] += 1;
                }
                taken = depth as usize;
            }
        }
        done((some.len() / index.dim) as u64);
    }
    // Depths nest: what the top 100 found, the top 500 found too.
    for at in lists..found.len() {
        found[at] += found[at - lists];
    }
    let queries = (queries.len() / index.dim) as f64;
    let probes = RECALL_TARGETS.iter().flat_map(|&target| {
        let mut least = 1;
        let curves = found.chunks_exact(lists).zip(&depths);
        let row: Vec<u32> = curves
            .map(|(curve, &depth)| {
                let goal = target as f64 * depth as f64 * queries;
                least = lists_for(curve, goal).max(least);
                least
            })
            .collect();
        row
    });
    Calibration { probes: probes.collect(), depths }
}

/// The fewest lists in which at least `goal` of the items were found.
fn lists_for(curve: &[u64], goal: f64) -> u32 {
    let mut sum = 0;
    let enough = curve.iter().position(|&items| {
        sum += items;
        sum as f64 >= goal - 1e-6
    });
    enough.map_or(curve.len(), |rank| rank + 1) as u32
}

/// The rank of the list of each of the top items, grouped by depth: the first `depths[0]` are of
/// the top `depths[0]`, and so on; in no order within a group.
fn top_ranks(index: &IvfIndex, query: &[f32], depths: &[u32]) -> Vec<u32> {
    let (dim, lists) = (index.dim, index.lists());
    let mut scores = vec![0.0; lists];
    kernels::dots(query, &index.centroids, &mut scores);
    let mut order: Vec<u64> =
        scores.iter().zip(0..).map(|(&score, list)| select::key(score, list)).collect();
    order.sort_unstable_by(|a, b| b.cmp(a));
    let mut rank_of = vec![0u32; lists];
    order.iter().zip(0..).for_each(|(&key, rank)| rank_of[select::hit(key).item.row()] = rank);

    // The keys carry slots here, from which the list follows.
    let mut keys: Vec<u64> = Vec::with_capacity(index.len());
    let mut scores = vec![0.0; BLOCK_ROWS];
    for rows in index.vectors.chunks(BLOCK_ROWS * dim) {
        let scores = &mut scores[..rows.len() / dim];
        kernels::dots(query, rows, scores);
        let first = keys.len() as u32;
        keys.extend(scores.iter().zip(first..).map(|(&score, slot)| select::key(score, slot)));
    }
    let mut end = keys.len();
    for depth in depths.iter().rev().map(|&depth| depth as usize) {
        if depth < end {
            keys[..end].select_nth_unstable_by(depth, |a, b| b.cmp(a));
        }
        end = depth;
    }
    keys.truncate(depths[depths.len() - 1] as usize);
    keys.iter()
        .map(|&key| {
            let slot = select::hit(key).item.row() as u64;
            rank_of[index.offsets.partition_point(|&start| start <= slot) - 1]
        })
        .collect()
}
