//! One search: choose lists, read them, score what is worth it, keep the best.

use super::calibrate;
use super::coarse::Order;
use super::pq::Table;
use super::sample::{bound, enough};
use super::{Bitmap, Filter, Hit, Index, IvfIndex};
use crate::index::select::Best;
use crate::index::{self, Query};
use crate::kernels::{self, choose, int8, score};

/// Share of a list's rows that must pass for all of them to be read in order; below it the bytes of
/// the passing ones are.
const DENSE: f64 = 0.3;
/// Results that the last fifth of the lists may bring, as a share of the results that the recall
/// target gives up. Where the misses fall off with the number of lists read to the power 1 to 2,
/// they bring .25 to .56 of what remains unfound; above that the query is not an ordinary one.
const LATE_SHARE: f32 = 0.8;
/// Pass rate in the first lists read, over that of all rows, below which a filter avoids the query.
const AVOIDED: f64 = 0.7;
/// Lists put in order first.
const FIRST_LISTS: usize = 8;
/// Passing rows from which the pass rate seen is more than a rough guess.
const SURE_ROWS: usize = 50;
/// Rows gathered from lists of which few pass before they are scored, in exact search.
const SPARSE_MAX: usize = 1 << 14;
/// Hits scored again in half precision for each hit wanted.
const HALVES_AGAIN: f32 = 1.4;

/// Buffers of the search in lists.
#[derive(Debug, Default)]
pub(in crate::index) struct Scratch {
    order: Order,
    table: Table,
    table_ready: bool,
    /// Sums of product-quantised codes, list by list in whole blocks; 0 for rows that do not pass.
    sums: Vec<u16>,
    coded: Vec<Segment>,
    /// Scores of the rows of lists that are read whole.
    scores: Vec<f32>,
    scored: Vec<Segment>,
    /// Passing rows of lists of which few pass.
    sparse: Vec<u32>,
    /// Score of the centroid of each such list, and where its rows end.
    sparse_lists: Vec<(f32, usize)>,
    sample: Vec<u32>,
    rows_read: usize,
}

impl Scratch {
    #[cfg(test)]
    pub(in crate::index) fn capacity(&self) -> usize {
        let Scratch { sums, coded, scores, scored, sample, order, sparse, .. } = self;
        let segments = coded.capacity() + scored.capacity() + sparse.capacity();
        sums.capacity() + scores.capacity() + sample.capacity() + segments + order.lists.capacity()
    }

    /// Rows of the lists that the last search read.
    pub(in crate::index) fn rows_read(&self) -> usize {
        self.rows_read
    }
}

/// The sums or scores of one list.
#[derive(Debug)]
struct Segment {
    /// Score of the centroid.
    near: f32,
    /// Where its sums or scores begin.
    at: usize,
    slots: std::ops::Range<usize>,
    /// Where its rows end among those chosen.
    chosen: usize,
}

/// Which slots may be found.
#[derive(Clone, Copy)]
struct Mask<'a> {
    allowed: Option<&'a Bitmap>,
    alive: Option<&'a Bitmap>,
}

impl Mask<'_> {
    fn is_none(&self) -> bool {
        self.allowed.is_none() && self.alive.is_none()
    }

    fn is_some(&self) -> bool {
        !self.is_none()
    }

    /// The bits of 64 slots from `first` on, of which those from `end` on are zero.
    #[inline]
    fn bits(&self, first: usize, end: usize) -> u64 {
        let allowed = self.allowed.map_or(u64::MAX, |set| set.bits(first));
        let alive = self.alive.map_or(u64::MAX, |set| set.bits(first));
        let within = if end - first < 64 { (1 << (end - first)) - 1 } else { u64::MAX };
        allowed & alive & within
    }

    fn count(&self, slots: std::ops::Range<usize>) -> usize {
        let words = slots.clone().step_by(64);
        words.map(|first| self.bits(first, slots.end).count_ones() as usize).sum()
    }
}

/// What has been read so far.
#[derive(Clone, Copy, Default)]
struct Seen {
    rows: usize,
    passed: usize,
}

impl Seen {
    fn pass_rate(&self) -> f64 {
        self.passed as f64 / self.rows.max(1) as f64
    }
}

pub(super) fn search(
    index: &IvfIndex,
    query: &[f32],
    k: usize,
    filter: &Filter,
    exact: bool,
    scratch: &mut index::Scratch,
    out: &mut Vec<Hit>,
) {
    let shape = (index.dim, index.live.rows());
    let Some(wanted) = index::begin(shape, query, k, filter, scratch, out) else { return };
    let kept = match index.halves {
        Some(_) => (wanted as f32 * HALVES_AGAIN) as usize,
        None => wanted,
    };
    scratch.best.start(kept);
    let index::Scratch { query: prepared, best, dots, passing, ivf, excluded, again, wide, .. } =
        &mut *scratch;
    let in_delta = index.live.scan(prepared, filter.allowed, dots, best);
    let mask = Mask { allowed: filter.allowed.map(|set| &set.places), alive: index.live.mask() };
    let mut reader = Reader { index, query, prepared, mask, kept, best, dots, passing, ivf };
    let most = filter.allowed.map_or(shape.1, super::Allowed::count);
    if exact || most <= index.exact_rows_max.max(wanted) {
        reader.read_all();
    } else {
        reader.read_nearest(wanted.saturating_sub(in_delta).max(1));
    }
    let Some(halves) = &index.halves else {
        return reader.best.finish(k, excluded, out);
    };
    again.clear();
    reader.best.finish(kept, excluded, again);
    reader.best.start(k);
    for hit in again.iter() {
        let slot = index.slot(hit.item).filter(|&slot| index.live.is_alive(slot));
        let score = slot.map_or(hit.score, |slot| index.half_score(query, halves, slot, wide));
        reader.best.offer(score, hit.item);
    }
    reader.best.finish(k, &[], out);
}

struct Reader<'a> {
    index: &'a IvfIndex,
    query: &'a [f32],
    prepared: &'a Query,
    mask: Mask<'a>,
    /// Hits that are kept.
    kept: usize,
    best: &'a mut Best,
    dots: &'a mut Vec<i32>,
    passing: &'a mut Vec<u32>,
    ivf: &'a mut Scratch,
}

impl Reader<'_> {
    /// Compares every passing row.
    fn read_all(&mut self) {
        self.ivf.sparse.clear();
        self.ivf.sparse_lists.clear();
        for list in 0..self.index.lists() {
            self.ivf.scores.clear();
            self.ivf.scored.clear();
            let slots = self.index.list_rows(list);
            if self.mask.is_none() {
                self.read_bytes(self.near(list), slots);
                self.keep_best_scores();
            } else if self.mask.count(slots.clone()) > 0 {
                self.gather(self.near(list), slots);
            }
            if self.ivf.sparse.len() >= SPARSE_MAX {
                self.score_sparse();
            }
        }
        self.score_sparse();
    }

    /// Reads the nearest lists as far as the calibration says for the pass rate seen, and until
    /// `wanted` items have passed or all lists are read.
    ///
    /// Under a filter that leaves out just what is nearest to the query, the best passing items are
    /// scattered over more lists than the calibration knows of. It shows in fewer rows passing near
    /// the query than anywhere, and in the last fifth of the lists still giving new results; then
    /// the search goes on.
    fn read_nearest(&mut self, wanted: usize) {
        let (index, lists) = (self.index, self.index.lists());
        let again = index.calibration.again[index.target] as usize * self.kept;
        let late_max = (LATE_SHARE * (1.0 - index.recall_target()) * wanted as f32).max(1.0) as u64;
        index.coarse.start(self.prepared, &mut self.ivf.order);
        self.ivf.table_ready = false;
        let mut seen = Seen::default();
        let mut read = 0;
        let mut goal = self.reach(wanted as f64);
        let mut avoided = None;
        loop {
            let mut late = 0;
            if self.mask.is_none() {
                self.read_batch(read..goal, again, &mut seen);
            } else {
                let last = goal - (goal - read).min(goal / 5);
                self.read_batch(read..last, again, &mut seen);
                let taken = self.best.tighten();
                self.read_batch(last..goal, again, &mut seen);
                late = self.best.tighten() - taken;
            }
            read = goal;
            self.ivf.rows_read = seen.rows;
            if read == lists {
                return;
            }
            if self.mask.is_some() {
                let depth = wanted as f64 * seen.rows as f64 / seen.passed.max(1) as f64;
                let most = if seen.passed < SURE_ROWS { 4 * read } else { lists };
                goal = self.reach(depth).min(most).max(read);
            }
            let avoided =
                *avoided.get_or_insert_with(|| seen.pass_rate() < AVOIDED * self.pass_rate());
            let scattered = avoided && late > late_max;
            if seen.passed < wanted || scattered {
                goal = goal.max(read + read / 4 + 1).min(lists);
                self.order(goal);
            }
            if goal == read {
                return;
            }
        }
    }

    /// Share of all rows that pass.
    fn pass_rate(&self) -> f64 {
        let allowed = self.mask.allowed.map_or(1.0, |set| set.count_ones() as f64);
        allowed / self.index.len() as f64
    }

    /// How many lists to read for the top `depth`; they are in order then.
    fn reach(&mut self, depth: f64) -> usize {
        let (index, lists) = (self.index, self.index.lists());
        let order = &mut self.ivf.order;
        while order.lists.len() < lists
            && order.rows.last().is_none_or(|&rows| rows < calibrate::anchor_rows(depth))
        {
            order.take((order.lists.len() / 2).max(FIRST_LISTS), &index.offsets);
        }
        let anchor = calibrate::anchor(depth, &order.rows);
        let least = order.lists[anchor].1 - index.calibration.margin(index.target, depth);
        let most = index.calibration.lists_max(index.target, depth, lists);
        order.take_down_to(least, most.saturating_sub(order.lists.len()), &index.offsets);
        let reached = order.lists.partition_point(|&(_, score)| score >= least);
        reached.clamp(1, most)
    }

    /// Puts at least the first `count` lists in order.
    fn order(&mut self, count: usize) {
        let more = count.saturating_sub(self.ivf.order.lists.len());
        self.ivf.order.take(more, &self.index.offsets);
    }

    /// Score of the centroid of a list.
    fn near(&self, list: usize) -> f32 {
        kernels::dot(self.query, self.index.centroid(list))
    }

    /// Reads the lists numbered so in the order; of those read by their codes the best `again` rows
    /// are scored.
    fn read_batch(&mut self, numbers: std::ops::Range<usize>, again: usize, seen: &mut Seen) {
        self.ivf.sums.clear();
        self.ivf.scores.clear();
        self.ivf.coded.clear();
        self.ivf.scored.clear();
        self.ivf.sparse.clear();
        self.ivf.sparse_lists.clear();
        let mut coded = 0;
        for number in numbers.clone() {
            let list = self.ivf.order.lists[number].0 as usize;
            let slots = self.index.list_rows(list);
            if number + 1 < numbers.end {
                self.prefetch(self.ivf.order.lists[number + 1].0 as usize);
            }
            let near = self.near(list);
            seen.rows += slots.len();
            let passed = match self.mask.is_none() {
                true => slots.len(),
                false => self.mask.count(slots.clone()),
            };
            seen.passed += passed;
            match passed as f64 > DENSE * slots.len() as f64 {
                true if self.index.pq.is_some() => {
                    self.read_codes(list, near, slots);
                    coded += passed;
                }
                true => self.read_bytes(near, slots),
                false => self.gather(near, slots),
            }
        }
        self.keep_best_scores();
        if coded > 0 {
            self.score_best_sums(again, coded);
        }
        if !self.ivf.sparse.is_empty() {
            self.score_sparse();
        }
    }

    /// Asks for the beginning of what is read of a list.
    fn prefetch(&self, list: usize) {
        int8::prefetch(self.index.centroid(list));
        if self.mask.is_some() {
            return;
        }
        match &self.index.pq {
            Some(pq) => pq.prefetch(list),
            None => {
                let bytes = self.prepared.steps.len();
                int8::prefetch(&self.index.residuals[self.index.offsets[list] as usize * bytes..]);
            }
        }
    }

    /// Scores all rows of a list; those that do not pass as minus infinity.
    fn read_bytes(&mut self, near: f32, slots: std::ops::Range<usize>) {
        let (index, step) = (self.index, self.prepared.step);
        let bytes = self.prepared.steps.len();
        let rows = &index.residuals[slots.start * bytes..slots.end * bytes];
        self.dots.resize(slots.len().max(self.dots.len()), 0);
        let dots = &mut self.dots[..slots.len()];
        int8::dots(&self.prepared.steps, rows, dots);
        let ivf = &mut *self.ivf;
        let from = ivf.scores.len();
        let row_steps = index.steps[slots.clone()].chunks(score::WORD_ROWS);
        let firsts = slots.clone().step_by(score::WORD_ROWS);
        for ((dots, row_steps), first) in dots.chunks(score::WORD_ROWS).zip(row_steps).zip(firsts) {
            let passing = self.mask.bits(first, slots.end);
            score::scores(dots, row_steps, (near, step), passing, &mut ivf.scores);
        }
        ivf.scored.push(Segment { near, at: from, slots, chosen: 0 });
    }

    /// Notes the passing rows of a list.
    fn gather(&mut self, near: f32, slots: std::ops::Range<usize>) {
        let ivf = &mut *self.ivf;
        for first in slots.clone().step_by(64) {
            let mut bits = self.mask.bits(first, slots.end);
            while bits != 0 {
                ivf.sparse.push(first as u32 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
        ivf.sparse_lists.push((near, ivf.sparse.len()));
    }

    /// Scores the passing rows gathered from lists of which few rows pass: all at once, so that
    /// rows far apart are on their way while others are compared.
    fn score_sparse(&mut self) {
        let (index, ivf) = (self.index, &mut *self.ivf);
        self.dots.resize(ivf.sparse.len().max(self.dots.len()), 0);
        let dots = &mut self.dots[..ivf.sparse.len()];
        int8::dots_at(&self.prepared.steps, &index.residuals, &ivf.sparse, dots);
        ivf.scores.clear();
        let mut from = 0;
        for &(near, end) in &ivf.sparse_lists {
            let rows = ivf.sparse[from..end].iter().zip(&dots[from..end]);
            ivf.scores.extend(rows.map(|(&slot, &dot)| {
                index.residual_score(near, dot, slot as usize, self.prepared.step)
            }));
            from = end;
        }
        ivf.sparse_lists.clear();
        let enough = enough(self.kept, ivf.scores.len());
        self.passing.clear();
        if enough < ivf.scores.len() {
            let least = bound(&ivf.scores, enough, &mut ivf.sample);
            choose::at_least(&ivf.scores, least, 0, self.passing);
        }
        if self.passing.len() < self.kept {
            self.passing.clear();
            self.passing.extend(0..ivf.scores.len() as u32);
        }
        for &at in &*self.passing {
            let slot = ivf.sparse[at as usize] as usize;
            self.best.offer(ivf.scores[at as usize], index.ids[slot]);
        }
        ivf.sparse.clear();
    }

    /// Appends the sums of a list.
    fn read_codes(&mut self, list: usize, near: f32, slots: std::ops::Range<usize>) {
        let Some(pq) = &self.index.pq else { return };
        let ivf = &mut *self.ivf;
        if !ivf.table_ready {
            let (best, worst) =
                (ivf.order.lists[0].1, ivf.order.lists[ivf.order.lists.len() - 1].1);
            pq.table(self.query, (worst, best), &mut ivf.table);
            ivf.table_ready = true;
        }
        let from = ivf.sums.len();
        pq.sums(list, near, &ivf.table, &mut ivf.sums);
        let rows = &mut ivf.sums[from..];
        rows[slots.len()..].fill(0);
        if !self.mask.is_none() {
            for (rows, at) in rows[..slots.len()].chunks_mut(64).zip(0..) {
                let bits = self.mask.bits(slots.start + at * 64, slots.end);
                for (i, sum) in rows.iter_mut().enumerate() {
                    *sum &= (bits >> i & 1).wrapping_neg() as u16;
                }
            }
        }
        ivf.coded.push(Segment { near, at: from, slots, chosen: 0 });
    }

    /// Offers the best of the scores of lists that were read whole.
    fn keep_best_scores(&mut self) {
        let total = self.ivf.scores.len();
        let enough = enough(self.kept, total);
        let (index, ivf) = (self.index, &mut *self.ivf);
        let bounded = enough < total;
        if bounded {
            // Rows that do not pass are never at or above the least finite number.
            let least = bound(&ivf.scores, enough, &mut ivf.sample).max(f32::MIN);
            choose_rows(&ivf.scores, least, &mut ivf.scored, self.passing);
        }
        if bounded && self.passing.len() >= self.kept {
            let mut from = 0;
            for segment in &ivf.scored {
                for &slot in &self.passing[from..segment.chosen] {
                    let slot = slot as usize;
                    let score = ivf.scores[segment.at + slot - segment.slots.start];
                    self.best.offer(score, index.ids[slot]);
                }
                from = segment.chosen;
            }
        } else {
            for segment in &ivf.scored {
                let scores = &ivf.scores[segment.at..][..segment.slots.len()];
                for (&score, &item) in scores.iter().zip(&index.ids[segment.slots.clone()]) {
                    if score != f32::NEG_INFINITY {
                        self.best.offer(score, item);
                    }
                }
            }
        }
    }

    /// Scores the rows with the best `again` sums (about; all if there are fewer) of `passed`.
    fn score_best_sums(&mut self, again: usize, passed: usize) {
        let (index, ivf) = (self.index, &mut *self.ivf);
        let least = match again < passed {
            true => bound(&ivf.sums, again, &mut ivf.sample).max(1),
            false => 1,
        };
        choose_rows(&ivf.sums, least, &mut ivf.coded, self.passing);
        if self.passing.len() < self.kept.min(passed) {
            // The sample misled; every row that passes, then.
            choose_rows(&ivf.sums, 1, &mut ivf.coded, self.passing);
        }
        self.dots.resize(self.passing.len().max(self.dots.len()), 0);
        let dots = &mut self.dots[..self.passing.len()];
        int8::dots_at(&self.prepared.steps, &index.residuals, self.passing, dots);
        let mut from = 0;
        for segment in &ivf.coded {
            let rows = from..segment.chosen;
            for (&slot, &dot) in self.passing[rows.clone()].iter().zip(&dots[rows]) {
                let slot = slot as usize;
                let score = index.residual_score(segment.near, dot, slot, self.prepared.step);
                self.best.offer(score, index.ids[slot]);
            }
            from = segment.chosen;
        }
    }
}

/// Fills `chosen` with the slots whose value is at least `least`.
fn choose_rows<T: choose::Number>(
    values: &[T],
    least: T,
    segments: &mut [Segment],
    chosen: &mut Vec<u32>,
) {
    chosen.clear();
    for segment in segments {
        let values = &values[segment.at..][..segment.slots.len()];
        choose::at_least(values, least, segment.slots.start as u32, chosen);
        segment.chosen = chosen.len();
    }
}
