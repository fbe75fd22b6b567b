//! Product quantisation of residuals: pairs of numbers by one of sixteen codewords each.
//!
//! Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", TPAMI 2011; the scan
//! is [`kernels::pq`](crate::kernels::pq). For inner products one table serves all lists: the
//! score of a row is the score of its centroid plus a sum of table entries.

use rayon::prelude::*;

use crate::kernels::{int8, pq};
use crate::sections::Column;

/// Numbers of a part.
pub(super) const PART: usize = 2;
const ENTRIES: usize = pq::ENTRIES;
/// Rounds of k-means for the sixteen codewords of a part.
const ROUNDS: usize = 12;
/// Space below the score of the last list in the first batch, as a share of their spread, for
/// lists that come later.
const LATER: f32 = 0.5;

/// Codewords and codes.
pub(super) struct Pq {
    /// `[parts * 16 * 2]`
    pub(super) codewords: Column<f32>,
    /// Blocks of 32 rows, list after list, each list from a block of its own.
    pub(super) codes: Column<u8>,
    /// `[lists + 1]`: the first block of each list.
    pub(super) blocks: Vec<u32>,
}

/// The table of one query.
#[derive(Debug, Default)]
pub(in crate::index) struct Table {
    floats: Vec<f32>,
    entries: Vec<u8>,
    /// Centroid score that counts as 0, and sums a unit of score.
    least: f32,
    per_score: f32,
}

/// Parts of a vector, padded as its bytes are.
pub(super) fn parts(dim: usize) -> usize {
    int8::row_bytes(dim) / PART
}

/// The first block of each list, and their number at the end.
pub(super) fn blocks(offsets: &[u32]) -> Vec<u32> {
    let mut blocks = vec![0];
    for list in offsets.windows(2) {
        let own = (list[1] - list[0]).div_ceil(pq::BLOCK_ROWS as u32);
        blocks.push(blocks[blocks.len() - 1] + own);
    }
    blocks
}

impl Pq {
    pub(super) fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(&*self.codewords) + size_of_val(&*self.blocks)
    }

    /// Asks for the beginning of the codes of a list.
    pub(super) fn prefetch(&self, list: usize) {
        let bytes = self.codes.len().checked_div(self.blocks[self.blocks.len() - 1] as usize);
        int8::prefetch(&self.codes[self.blocks[list] as usize * bytes.unwrap_or(0)..]);
    }

    /// Appends the sums of the rows of a list, in whole blocks: those past the end mean nothing.
    pub(super) fn sums(&self, list: usize, near: f32, table: &Table, out: &mut Vec<u16>) {
        let bytes = pq::block_bytes(table.entries.len() / ENTRIES);
        let blocks = self.blocks[list] as usize..self.blocks[list + 1] as usize;
        let from = out.len();
        out.resize(from + blocks.len() * pq::BLOCK_ROWS, 0);
        let codes = &self.codes[blocks.start * bytes..blocks.end * bytes];
        // One at least: zero is for rows that do not pass. The maximum of one and a NaN is one.
        let bias = ((near - table.least) * table.per_score).max(1.0) as u16;
        pq::sums(&table.entries, codes, bias, &mut out[from..]);
    }

    /// Prepares the table for a query whose first lists score from `worst` to `best`.
    pub(super) fn table(&self, query: &[f32], (worst, best): (f32, f32), table: &mut Table) {
        let parts = parts(query.len());
        let Table { floats, entries, .. } = table;
        floats.resize(parts * ENTRIES, 0.0);
        entries.resize(parts * ENTRIES, 0);
        let (mut widest, mut range) = (1e-12f32, 0.0);
        let words = self.codewords.chunks_exact(ENTRIES * PART);
        for ((part, words), out) in words.enumerate().zip(floats.chunks_exact_mut(ENTRIES)) {
            let number = |at: usize| query.get(part * PART + at).copied().unwrap_or(0.0);
            let (x, y) = (number(0), number(1));
            let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
            for (out, word) in out.iter_mut().zip(words.chunks_exact(PART)) {
                *out = x * word[0] + y * word[1];
                (low, high) = (low.min(*out), high.max(*out));
            }
            out.iter_mut().for_each(|out| *out -= low);
            widest = widest.max(high - low);
            range += high - low;
        }
        let later = LATER * (best - worst).max(0.0);
        // No sum passes 65,535: the rounding adds a half to each entry at most.
        let room = 65_000.0 - parts as f32;
        table.per_score = (255.0 / widest).min(room / (range + best - worst + later));
        table.least = worst - later;
        for (entry, x) in entries.iter_mut().zip(floats.iter()) {
            *entry = (x * table.per_score + 0.5) as u8;
        }
    }
}

/// Codewords (`[parts * 16 * 2]`) for residuals (`[n * dim]`).
pub(super) fn train(pool: &rayon::ThreadPool, residuals: &[f32], dim: usize) -> Vec<f32> {
    let one = |part: usize| {
        let number = |row: &[f32], at: usize| row.get(part * PART + at).copied().unwrap_or(0.0);
        let points: Vec<[f32; 2]> =
            residuals.chunks_exact(dim).map(|row| [number(row, 0), number(row, 1)]).collect();
        codewords(&points)
    };
    let parts: Vec<[[f32; 2]; ENTRIES]> =
        pool.install(|| (0..parts(dim)).into_par_iter().map(one).collect());
    parts.into_iter().flatten().flatten().collect()
}

fn codewords(points: &[[f32; 2]]) -> [[f32; 2]; ENTRIES] {
    let step = points.len() as f64 / ENTRIES as f64;
    let mut words: [[f32; 2]; ENTRIES] = std::array::from_fn(|i| {
        points.get((i as f64 * step) as usize).copied().unwrap_or_default()
    });
    for _ in 0..ROUNDS {
        let mut sums = [[0.0f64; 3]; ENTRIES];
        for point in points {
            let sum = &mut sums[nearest(&words, *point)];
            sum[0] += point[0] as f64;
            sum[1] += point[1] as f64;
            sum[2] += 1.0;
        }
        let fullest =
            (0..ENTRIES).fold(0, |most, i| if sums[i][2] > sums[most][2] { i } else { most });
        for (at, sum) in sums.iter().enumerate() {
            words[at] = if sum[2] > 0.0 {
                [(sum[0] / sum[2]) as f32, (sum[1] / sum[2]) as f32]
            } else {
                // An unused word moves beside the most used one and divides its points.
                words[fullest].map(|x| x * (1.0 + 0.01 * at as f32) + 1e-6 * at as f32)
            };
        }
    }
    words
}

/// Writes the codes (`[parts]`) of a residual.
pub(super) fn encode(codewords: &[f32], residual: &[f32], codes: &mut [u8]) {
    for (part, (code, words)) in
        codes.iter_mut().zip(codewords.chunks_exact(ENTRIES * PART)).enumerate()
    {
        let number = |at: usize| residual.get(part * PART + at).copied().unwrap_or(0.0);
        let words: [[f32; 2]; ENTRIES] = std::array::from_fn(|i| [words[2 * i], words[2 * i + 1]]);
        *code = nearest(&words, [number(0), number(1)]) as u8;
    }
}

#[inline]
fn nearest(words: &[[f32; 2]; ENTRIES], [x, y]: [f32; 2]) -> usize {
    let mut best = (f32::INFINITY, 0);
    for (at, word) in words.iter().enumerate() {
        let (dx, dy) = (x - word[0], y - word[1]);
        let distance = dx * dx + dy * dy;
        if distance < best.0 {
            best = (distance, at);
        }
    }
    best.1
}
