//! How far to read: measured at the build, stored with the index.
//!
//! Lists are read in the order of their centroids' scores, for a search of *depth* d down to some
//! `margin` below the list with which twice d rows have been seen: queries whose neighbours lie
//! together stop early, others go on, and at the same mean recall a fifth to a half fewer rows are
//! read than with a fixed number of lists (docs/decisions/0004). A fixed number bounds the rest.
//!
//! For every calibration query all items are compared in floats and all lists ranked. How far the
//! list of each of the top d items lies below that list gives the margin for any recall as a
//! quantile, and its rank the number of lists, for every depth at once. What the rounding of stored
//! rows costs is then measured by real searches, and the quantile is taken for as much more; the
//! target is to be passed by two standard errors.

use rayon::prelude::*;

use super::{Filter, Index, IvfIndex, coarse};
use crate::index::{RECALL_TARGETS, Scratch, select::Best};
use crate::kernels;
use crate::types::ItemIdx;

/// Depths of the table; beyond the last one the lists grow in proportion.
const DEPTHS: [u32; 8] = [20, 100, 500, 1_000, 2_500, 5_000, 20_000, 80_000];
/// Results of the searches by which rounding is measured.
const K: usize = 500;
/// Rows compared at once: with 128 numbers each they fill half of a second-level cache.
const BLOCK_ROWS: usize = 1024;
/// Queries that share a pass over the rows.
const TOGETHER: usize = 64;
/// Rows of which the bytes are scored, for each result wanted: the choices.
const AGAIN: [u32; 6] = [2, 3, 4, 6, 8, 12];
/// Time to score the bytes of a row over time to sum its codes.
const AGAIN_COST: f64 = 12.0;
/// Standard errors by which the recall measured passes the target.
const SURE_ERRORS: f64 = 2.0;
/// Corrections of the recall at which the curve is read.
const ROUNDS: usize = 4;

/// Rows after which the margin is counted, for each row of the depth.
const ANCHOR_ROWS: f64 = 2.0;
/// Most lists read, for each list that a fixed number would read.
const LISTS_SPREAD: f64 = 2.0;
/// Steps of the distribution of margins, from -1 to 1.
const MARGIN_STEPS: usize = 4000;

/// How far to read, by recall target and depth.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Calibration {
    /// Ascending; empty for an index without items.
    pub(super) depths: Vec<u32>,
    /// `[targets * depths]`, ascending in the depth: lists that a fixed number would be.
    pub(super) probes: Vec<u32>,
    /// `[targets * depths]`: how far below the list of the anchor lists are read.
    pub(super) margins: Vec<f32>,
    /// By target, rows of which the bytes are scored for each result wanted.
    pub(super) again: [u32; RECALL_TARGETS.len()],
}

impl Calibration {
    /// Most lists to read for recall target number `target` of the top `depth`, at most `lists`.
    pub(super) fn lists_max(&self, target: usize, depth: f64, lists: usize) -> usize {
        let row = self.row(target);
        let probes = match self.between(depth) {
            None => return lists,
            // Beyond the table the lists grow in proportion.
            Some((last, next, _)) if next == last && depth > self.depths[last] as f64 => {
                row[last] as f64 * depth / self.depths[last] as f64
            }
            Some((at, next, way)) => {
                let (p0, p1) = (row[at] as f64, row[next] as f64);
                p0 * (p1 / p0).powf(way)
            }
        };
        ((probes * LISTS_SPREAD).ceil() as usize).clamp(lists.min(1), lists)
    }

    /// How far below the list of the [`anchor`] to read for recall target number `target` of the
    /// top `depth`; may be negative.
    pub(super) fn margin(&self, target: usize, depth: f64) -> f32 {
        let Some((at, next, way)) = self.between(depth) else { return 0.0 };
        let row = &self.margins[target * self.depths.len()..][..self.depths.len()];
        row[at] + (row[next] - row[at]) * way as f32
    }

    /// The depths of the table around `depth`, and how far between them it lies, from 0 to 1.
    fn between(&self, depth: f64) -> Option<(usize, usize, f64)> {
        let last = self.depths.len().checked_sub(1)?;
        let above = self.depths.partition_point(|&known| (known as f64) < depth);
        if above == 0 || above > last {
            return Some((above.min(last), above.min(last), 0.0));
        }
        let (d0, d1) = (self.depths[above - 1] as f64, self.depths[above] as f64);
        Some((above - 1, above, (depth / d0).ln() / (d1 / d0).ln()))
    }

    fn row(&self, target: usize) -> &[u32] {
        &self.probes[target * self.depths.len()..][..self.depths.len()]
    }

    /// Target, lists by depth, rows scored again for each wanted.
    pub(super) fn rows(&self) -> Vec<(f32, Vec<u32>, u32)> {
        let targets = RECALL_TARGETS.iter().enumerate();
        targets.map(|(at, &target)| (target, self.row(at).to_vec(), self.again[at])).collect()
    }
}

/// Rows from the best list on to the list of the anchor.
pub(super) fn anchor_rows(depth: f64) -> usize {
    (ANCHOR_ROWS * depth) as usize
}

/// The number of the first list with which the rows of the anchor have been seen, or the last;
/// `rows` says how many rows the first so many lists hold.
pub(super) fn anchor(depth: f64, rows: &[usize]) -> usize {
    let wanted = anchor_rows(depth);
    rows.partition_point(|&rows| rows < wanted).min(rows.len().saturating_sub(1))
}

/// Sets the calibration of `index`, whose items are `vectors` (`[n * dim]`), by `queries`
/// (`[m * dim]`); `done` hears how many queries are new.
pub(super) fn calibrate(
    index: &mut IvfIndex,
    vectors: &[f32],
    queries: &[f32],
    pool: &rayon::ThreadPool,
    done: &mut dyn FnMut(u64),
) {
    let (n, lists) = (index.len(), index.lists());
    if n == 0 {
        return;
    }
    let mut depths: Vec<u32> = DEPTHS.into_iter().filter(|&depth| (depth as usize) < n).collect();
    depths.push((n as u32).min(DEPTHS[DEPTHS.len() - 1]));
    depths.dedup();
    let deepest = depths[depths.len() - 1] as usize;

    // found[d * lists + r]: top items of depth d, over all queries, in the list of rank r.
    let mut found = vec![0u64; depths.len() * lists];
    // gaps[d * MARGIN_STEPS + g]: those whose list lies so far below the anchor.
    let mut gaps = vec![0u64; depths.len() * MARGIN_STEPS];
    let mut best = Vec::with_capacity(queries.len() / index.dim);
    let threads = pool.current_num_threads();
    for some in queries.chunks(TOGETHER * threads * index.dim) {
        let each = (some.len() / index.dim).div_ceil(threads);
        let parts = some.par_chunks(each * index.dim);
        let tops: Vec<Vec<Vec<ItemIdx>>> =
            pool.install(|| parts.map(|part| tops(vectors, part, index.dim, deepest)).collect());
        for (top, query) in tops.into_iter().flatten().zip(some.chunks_exact(index.dim)) {
            let ranked = Ranked::new(index, query);
            let lists_of = |item: &ItemIdx| index.list_of(index.slots[item.row()] as usize);
            let top_lists: Vec<usize> = top.iter().map(lists_of).collect();
            let mut from = 0;
            for (d, &depth) in depths.iter().enumerate() {
                for &list in &top_lists[from..depth as usize] {
                    found[d * lists + ranked.ranks[list] as usize] += 1;
                }
                from = depth as usize;
                let anchor = ranked.order[anchor(depth as f64, &ranked.rows)].1;
                for &list in &top_lists[..depth as usize] {
                    let gap = anchor - ranked.order[ranked.ranks[list] as usize].1;
                    gaps[d * MARGIN_STEPS + step_of_margin(gap)] += 1;
                }
            }
            let mut top = top[..K.min(deepest)].to_vec();
            top.sort_unstable();
            best.push(top);
        }
        done((some.len() / index.dim) as u64);
    }
    // Depths nest: what the top 100 found, the top 500 found too.
    for at in lists..found.len() {
        found[at] += found[at - lists];
    }
    let curves = Curves { depths, found, gaps, lists, queries, best };
    index.calibration = Calibration { depths: curves.depths.clone(), ..Calibration::default() };
    let configured = index.target;
    let chosen: Vec<Choice> =
        (0..RECALL_TARGETS.len()).map(|target| curves.choose(index, target, pool)).collect();
    index.calibration.probes = chosen.iter().flat_map(|choice| &choice.probes).copied().collect();
    index.calibration.margins = chosen.iter().flat_map(|choice| &choice.margins).copied().collect();
    index.calibration.again = std::array::from_fn(|target| chosen[target].again);
    index.target = configured;
}

/// What is stored for one recall target.
#[derive(Clone)]
struct Choice {
    probes: Vec<u32>,
    margins: Vec<f32>,
    again: u32,
}

struct Curves<'a> {
    depths: Vec<u32>,
    found: Vec<u64>,
    gaps: Vec<u64>,
    lists: usize,
    queries: &'a [f32],
    /// The true top of each query, sorted by item.
    best: Vec<Vec<ItemIdx>>,
}

impl Curves<'_> {
    /// The cheapest of the choices that reach the target.
    fn choose(&self, index: &mut IvfIndex, target: usize, pool: &rayon::ThreadPool) -> Choice {
        let choices: &[u32] = if index.pq.is_some() { &AGAIN } else { &[1] };
        let wanted = self.best[0].len() as f64;
        let mut cheapest: Option<(f64, Choice)> = None;
        for &again in choices {
            let Some((rows, choice)) = self.reaching(index, target, again, pool) else { continue };
            let cost = rows + again as f64 * wanted * AGAIN_COST;
            if cheapest.as_ref().is_none_or(|(least, _)| cost < *least) {
                cheapest = Some((cost, choice));
            }
        }
        // Rounding alone may cost more than the target gives up: then read all that could matter.
        let most = choices[choices.len() - 1];
        cheapest.map_or_else(|| self.at(1.0 - 1e-4, most), |(_, choice)| choice)
    }

    /// With how much real searches reach the target for sure, and the rows that they read; `None` if
    /// they do not.
    fn reaching(
        &self,
        index: &mut IvfIndex,
        target: usize,
        again: u32,
        pool: &rayon::ThreadPool,
    ) -> Option<(f64, Choice)> {
        let goal = RECALL_TARGETS[target] as f64;
        index.target = target;
        let mut aim = goal;
        for _ in 0..ROUNDS {
            let choice = self.at(aim, again);
            index.calibration.again = [again; RECALL_TARGETS.len()];
            index.calibration.probes = choice.probes.repeat(RECALL_TARGETS.len());
            index.calibration.margins = choice.margins.repeat(RECALL_TARGETS.len());
            let (recall, error, rows) = pool.install(|| self.measure(index));
            let short = goal + SURE_ERRORS * error - recall;
            if short <= 1e-4 {
                return Some((rows, choice));
            }
            if aim >= 1.0 - 1e-4 {
                return None;
            }
            aim = (aim + 1.1 * short).min(1.0 - 1e-4);
        }
        None
    }

    fn at(&self, share: f64, again: u32) -> Choice {
        Choice { probes: self.probes(share), margins: self.margins(share), again }
    }

    /// Mean recall of the queries, its standard error, and the mean of the rows read.
    fn measure(&self, index: &IvfIndex) -> (f64, f64, f64) {
        let queries = self.queries.par_chunks_exact(index.dim).zip(&self.best);
        let shares: Vec<(f64, f64)> = queries
            .map_init(
                || (Scratch::default(), Vec::new()),
                |(scratch, out), (query, best)| {
                    index.search(query, best.len(), &Filter::default(), scratch, out);
                    let hits = out.iter().filter(|hit| best.binary_search(&hit.item).is_ok());
                    (hits.count() as f64 / best.len() as f64, scratch.ivf.rows_read() as f64)
                },
            )
            .collect();
        let n = shares.len() as f64;
        let mean = shares.iter().map(|(share, _)| share).sum::<f64>() / n;
        let variance = shares.iter().map(|(share, _)| (share - mean).powi(2)).sum::<f64>() / n;
        let rows = shares.iter().map(|(_, rows)| rows).sum::<f64>() / n;
        (mean, (variance / n).sqrt(), rows)
    }

    /// Lists by depth that hold a share of the true top.
    fn probes(&self, share: f64) -> Vec<u32> {
        let queries = self.best.len() as f64;
        let mut least = 1;
        let curves = self.found.chunks_exact(self.lists).zip(&self.depths);
        curves
            .map(|(curve, &depth)| {
                least = lists_for(curve, share * depth as f64 * queries).max(least);
                least
            })
            .collect()
    }
}

impl Curves<'_> {
    /// By depth, the margin within which a share of the true top lies.
    fn margins(&self, share: f64) -> Vec<f32> {
        let one = |gaps: &[u64]| {
            let goal = share * gaps.iter().sum::<u64>() as f64;
            let step = lists_for(gaps, goal);
            // The upper end of the step.
            step as f32 * (2.0 / MARGIN_STEPS as f32) - 1.0
        };
        self.gaps.chunks_exact(MARGIN_STEPS).map(one).collect()
    }
}

fn step_of_margin(gap: f32) -> usize {
    let step = (gap + 1.0) * (MARGIN_STEPS as f32 / 2.0);
    (step.max(0.0) as usize).min(MARGIN_STEPS - 1)
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

/// All lists by their scores for a query.
struct Ranked {
    /// Best first.
    order: Vec<(u32, f32)>,
    /// By list, its number in the order.
    ranks: Vec<u32>,
    /// Rows of the first lists of the order, up to and with each.
    rows: Vec<usize>,
}

impl Ranked {
    fn new(index: &IvfIndex, query: &[f32]) -> Self {
        let mut order = coarse::Order::default();
        let mut prepared = crate::index::Query::default();
        prepared.set(query);
        index.coarse.start(&prepared, &mut order);
        order.take(index.lists(), &index.offsets);
        let mut ranks = vec![0u32; index.lists()];
        order.lists.iter().zip(0..).for_each(|(&(list, _), rank)| ranks[list as usize] = rank);
        Self { order: order.lists, ranks, rows: order.rows }
    }
}

/// The true top `depth` of each query, best first.
fn tops(vectors: &[f32], queries: &[f32], dim: usize, depth: usize) -> Vec<Vec<ItemIdx>> {
    let mut best: Vec<Best> = queries.chunks_exact(dim).map(|_| Best::default()).collect();
    best.iter_mut().for_each(|best| best.start(depth));
    let mut scores = vec![0.0; BLOCK_ROWS];
    let mut items = Vec::with_capacity(BLOCK_ROWS);
    for (rows, block) in vectors.chunks(BLOCK_ROWS * dim).zip(0u32..) {
        let scores = &mut scores[..rows.len() / dim];
        items.clear();
        items.extend((0..scores.len() as u32).map(|row| ItemIdx(block * BLOCK_ROWS as u32 + row)));
        for (query, best) in queries.chunks_exact(dim).zip(&mut best) {
            kernels::dots(query, rows, scores);
            best.offer_all(scores, &items);
        }
    }
    let mut hits = Vec::new();
    let tops = best.iter_mut().map(|best| {
        hits.clear();
        best.finish(depth, &[], &mut hits);
        hits.iter().map(|hit| hit.item).collect()
    });
    tops.collect()
}
