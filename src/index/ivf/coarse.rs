//! Which lists to read next: all centroids compared with the query in whole steps.
//!
//! Finding the best 40 of 16,384 by sorting costs more than the products. Instead the best score of
//! each block of lists is kept: the 40th best block has at least 40 lists at or above its score, and
//! only the blocks above it are looked into.

use crate::index::{Query, kmeans};
use crate::kernels::{choose, int8};

/// Lists of a block.
const BLOCK: usize = 32;

/// Centroids in whole steps.
pub(super) struct Coarse {
    rows: Vec<i8>,
    step: f32,
}

/// Lists not read so far.
#[derive(Debug, Default)]
pub(in crate::index) struct Order {
    /// By list: the product in whole steps; the least value once it has been given out.
    dots: Vec<i32>,
    /// By block, the best of its lists.
    blocks: Vec<i32>,
    ranked: Vec<i32>,
    chosen: Vec<u32>,
    /// Score of one whole step.
    step: f32,
    /// Lists in the order of reading, with `query . centroid` but for the rounding.
    pub(super) lists: Vec<(u32, f32)>,
    /// Rows of these lists, up to and with each.
    pub(super) rows: Vec<usize>,
}

const GIVEN: i32 = i32::MIN;

impl Coarse {
    pub(super) fn new(centroids: &[f32], dim: usize) -> Self {
        let (rows, step) = kmeans::in_steps(centroids, dim);
        Self { rows, step }
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows.len() + size_of_val(&self.step)
    }

    /// Compares the query with all centroids.
    pub(super) fn start(&self, query: &Query, order: &mut Order) {
        let lists = self.rows.len().checked_div(query.steps.len()).unwrap_or(0);
        order.dots.resize(lists, 0);
        int8::dots(&query.steps, &self.rows, &mut order.dots);
        order.step = query.step * self.step;
        let best = |block: &[i32]| block.iter().copied().fold(GIVEN, i32::max);
        order.blocks.clear();
        order.blocks.extend(order.dots.chunks(BLOCK).map(best));
        order.lists.clear();
        order.rows.clear();
    }
}

impl Order {
    /// Appends the best `count` of the remaining lists to `lists`.
    pub(super) fn take(&mut self, count: usize, offsets: &[u32]) {
        let count = count.min(self.dots.len() - self.lists.len());
        if count == 0 {
            return;
        }
        let values = if count <= self.blocks.len() { &self.blocks } else { &self.dots };
        let least = nth_best(&mut self.ranked, values, count);
        self.append(least, count, offsets);
    }

    /// Appends the remaining lists that score at least `score`, of which at most `count`.
    pub(super) fn take_down_to(&mut self, score: f32, count: usize, offsets: &[u32]) {
        // A query of zeros has no step; all its scores are zero.
        let least = if self.step > 0.0 { (score / self.step).ceil() as i32 } else { 0 };
        self.append(least, count, offsets);
    }

    /// Appends the best `count` of the remaining lists with a product of `least` or more.
    fn append(&mut self, least: i32, count: usize, offsets: &[u32]) {
        let (from, least) = (self.lists.len(), least.max(GIVEN + 1));
        self.chosen.clear();
        for (block, _) in self.blocks.iter().enumerate().filter(|(_, best)| **best >= least) {
            let first = block * BLOCK;
            let dots = &self.dots[first..self.dots.len().min(first + BLOCK)];
            choose::at_least(dots, least, first as u32, &mut self.chosen);
        }
        let score = |&list: &u32| (list, self.dots[list as usize] as f32);
        self.lists.extend(self.chosen.iter().map(score));
        let new = &mut self.lists[from..];
        let by_dot = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if new.len() > count {
            if count > 0 {
                new.select_nth_unstable_by(count - 1, by_dot);
            }
            self.lists.truncate(from + count);
        }
        self.lists[from..].sort_unstable_by(by_dot);
        let mut rows = self.rows.last().copied().unwrap_or(0);
        for (list, score) in &mut self.lists[from..] {
            let at = *list as usize;
            self.dots[at] = GIVEN;
            *score *= self.step;
            rows += (offsets[at + 1] - offsets[at]) as usize;
            self.rows.push(rows);
        }
        for &(list, _) in &self.lists[from..] {
            let block = list as usize / BLOCK;
            let dots = self.dots[block * BLOCK..].iter().take(BLOCK);
            self.blocks[block] = dots.copied().fold(GIVEN, i32::max);
        }
    }
}

fn nth_best(ranked: &mut Vec<i32>, values: &[i32], count: usize) -> i32 {
    ranked.clear();
    ranked.extend_from_slice(values);
    *ranked.select_nth_unstable_by(count - 1, |a, b| b.cmp(a)).1
}
