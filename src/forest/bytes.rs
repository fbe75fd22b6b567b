//! Values become bytes: ranks among a model's thresholds, or numbers of its categories.
//!
//! ```text
//! numeric      thresholds T[0] < T[1] < ..     byte = how many of them are below the value
//!              value <= T[k]  <=>  byte <= k   255 = missing
//! categorical  codes that no split tells apart are one class; 128 classes a page
//!              byte = class within the page    255 = another page, unseen, negative or missing
//! ```
//! A feature has one byte column, and further ones for more than [`RANKS_MAX`] thresholds, more
//! than 128 classes, or splits that disagree on what is missing. Thresholds are rounded down to
//! `f32`, which is exact for `f32` values. Infinities are ordinary values and thresholds.
//!
//! Invariant: two values with the same bytes take the same way at every split of the model.
//! This module does not know trees.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{Forest, Node, Split};
use crate::kernels::forest::{MISSING, Set};

/// Thresholds of one byte column: ranks 0 to 254, 255 is missing.
pub(super) const RANKS_MAX: usize = 254;
/// Classes of one byte column of categories.
const PAGE: u32 = 128;
/// More byte columns than any model of use has; bounds the buffers.
pub(super) const COLUMNS_MAX: usize = 4096;

/// One byte column of a feature.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub feature: u32,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Values within `band` of zero are missing as NaN is (negative: none).
    Numeric {
        band: f32,
        ranks: Box<Ranks>,
    },
    Categorical {
        page: u32,
        classes: Arc<Classes>,
    },
}

/// What a split asks of byte columns.
#[derive(Clone, Debug)]
pub(super) enum Question {
    /// Left when `byte + shift < bound`.
    Below { column: u32, bound: u8, shift: u8 },
    /// Left when the byte of any column from `column` on is in the set of the same position.
    InSets { column: u32, sets: Vec<Set> },
}

impl Column {
    /// The byte of every value.
    pub fn fill(&self, values: &[f32], out: &mut [u8]) {
        match &self.kind {
            Kind::Numeric { band, ranks } => ranks.fill(values, *band, out),
            Kind::Categorical { page, classes } => {
                for (byte, &value) in out.iter_mut().zip(values) {
                    let class = classes.of(value);
                    *byte = if class / PAGE == *page { (class % PAGE) as u8 } else { MISSING };
                }
            }
        }
    }
}

/// The byte columns of a forest, those of feature 0 first, and how splits read them.
#[derive(Clone, Debug, Default)]
pub(super) struct Columns {
    pub columns: Vec<Column>,
    /// First column and thresholds by feature and missing band.
    numeric: HashMap<(u32, u32), (u32, Vec<f32>)>,
    /// First column and classes by feature.
    categorical: HashMap<u32, (u32, Arc<Classes>)>,
}

impl Columns {
    /// Byte columns for every feature that the forest splits on; `None` for more than
    /// [`COLUMNS_MAX`].
    pub fn new(forest: &Forest) -> Option<Self> {
        let mut thresholds: BTreeMap<(u32, u32), BTreeSet<i32>> = BTreeMap::new();
        let mut categories: BTreeMap<u32, BTreeSet<(u32, u32)>> = BTreeMap::new();
        for node in &forest.nodes {
            match node.split {
                Split::Numeric { missing_band, .. } => {
                    let key = (node.feature, missing_band.to_bits());
                    thresholds.entry(key).or_default().insert(order(round_down(node.threshold)));
                }
                Split::Categorical { start, words } => {
                    categories.entry(node.feature).or_default().insert((start, words));
                }
            }
        }
        let mut all = Self::default();
        for (key @ (feature, band), keys) in thresholds {
            let sorted: Vec<f32> = keys.into_iter().map(unorder).collect();
            let first = all.columns.len() as u32;
            if all.columns.len() + sorted.len() / RANKS_MAX + 1 > COLUMNS_MAX {
                return None;
            }
            for part in sorted.chunks(RANKS_MAX) {
                let (band, ranks) = (f32::from_bits(band), Box::new(Ranks::new(part)));
                all.columns.push(Column { feature, kind: Kind::Numeric { band, ranks } });
            }
            all.numeric.insert(key, (first, sorted));
        }
        for (feature, sets) in categories {
            let classes = Arc::new(Classes::new(forest, &sets));
            let first = all.columns.len() as u32;
            let pages = classes.count.div_ceil(PAGE).max(1);
            if all.columns.len() + pages as usize > COLUMNS_MAX {
                return None;
            }
            for page in 0..pages {
                let kind = Kind::Categorical { page, classes: classes.clone() };
                all.columns.push(Column { feature, kind });
            }
            all.categorical.insert(feature, (first, classes));
        }
        Some(all)
    }

    /// Reorders the columns, by feature within a key. Columns of one feature have one key, so that
    /// the parts of a feature stay together and in order.
    pub fn sort_by_key(&mut self, key: impl Fn(&Column) -> u32) {
        let mut order: Vec<u32> = (0..self.columns.len() as u32).collect();
        order.sort_by_key(|&at| {
            let column = &self.columns[at as usize];
            (key(column), column.feature)
        });
        let mut place = vec![0_u32; order.len()];
        for (to, &from) in order.iter().enumerate() {
            place[from as usize] = to as u32;
        }
        self.columns = order.iter().map(|&at| self.columns[at as usize].clone()).collect();
        self.numeric.values_mut().for_each(|(first, _)| *first = place[*first as usize]);
        self.categorical.values_mut().for_each(|(first, _)| *first = place[*first as usize]);
    }

    /// What the split of a node asks.
    pub fn question(&self, forest: &Forest, node: &Node) -> Question {
        match node.split {
            Split::Numeric { missing_left, missing_band } => {
                let (first, sorted) = &self.numeric[&(node.feature, missing_band.to_bits())];
                let key = order(round_down(node.threshold));
                let at = sorted.partition_point(|&threshold| order(threshold) < key);
                let (part, rank) = (at / RANKS_MAX, (at % RANKS_MAX) as u8);
                let shift = u8::from(missing_left);
                Question::Below { column: first + part as u32, bound: rank + 1 + shift, shift }
            }
            Split::Categorical { start, words } => {
                let (first, classes) = &self.categorical[&node.feature];
                classes.question(*first, forest, start, words)
            }
        }
    }
}

/// The largest `f32` that is not above `threshold`.
fn round_down(threshold: f64) -> f32 {
    let near = threshold as f32;
    if f64::from(near) > threshold { near.next_down() } else { near }
}

/// The bits of a number as an integer of the same order.
fn order(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

fn unorder(order: i32) -> f32 {
    f32::from_bits((order ^ ((order >> 31) as u32 >> 1) as i32) as u32)
}

/// Buckets of [`Ranks`].
const BUCKETS: usize = 512;
/// Thresholds that one bucket may hold; beyond it a binary search is faster.
const STEPS_MAX: usize = 8;

/// Ranks by a table: a monotone map sends a value to a bucket, the bucket knows how many
/// thresholds lie in earlier ones, and the few in the same one are compared.
#[derive(Clone, Debug)]
struct Ranks {
    /// Ascending, then infinities, which no value is above.
    thresholds: [f32; 256 + STEPS_MAX],
    starts: [u8; BUCKETS],
    map: Map,
    /// The most thresholds of one bucket.
    steps: usize,
}

/// How a value finds its bucket.
#[derive(Clone, Copy, Debug)]
enum Map {
    /// Equally wide buckets.
    Linear { from: f32, scale: f32 },
    /// Buckets as wide as their values are large: equally many floats in each.
    Bits { from: i32, shift: u32 },
    /// No buckets: a binary search.
    Search,
}

impl Ranks {
    fn new(sorted: &[f32]) -> Self {
        let mut thresholds = [f32::INFINITY; 256 + STEPS_MAX];
        thresholds[..sorted.len()].copy_from_slice(sorted);
        let mut best = Self { thresholds, starts: [0; BUCKETS], map: Map::Search, steps: 0 };
        let mut finite = sorted.iter().copied().filter(|threshold| threshold.is_finite());
        let (Some(low), last) = (finite.next(), finite.next_back()) else { return best };
        let high = last.unwrap_or(low);
        let scale = (BUCKETS as f32 - 1.0) / (high - low);
        let linear = Map::Linear { from: low, scale: if scale.is_finite() { scale } else { 0.0 } };
        let width = i64::from(order(high)) - i64::from(order(low));
        let shift = (64 - (width / BUCKETS as i64).leading_zeros()).min(31);
        for map in [linear, Map::Bits { from: order(low), shift }] {
            let mut counts = [0_usize; BUCKETS];
            sorted.iter().for_each(|&threshold| counts[map.bucket(threshold)] += 1);
            let steps = counts.iter().copied().max().unwrap_or(0);
            if steps <= STEPS_MAX && (matches!(best.map, Map::Search) || steps < best.steps) {
                let mut below = 0;
                for (start, count) in best.starts.iter_mut().zip(counts) {
                    *start = below as u8;
                    below += count;
                }
                (best.map, best.steps) = (map, steps);
            }
        }
        best
    }

    fn fill(&self, values: &[f32], band: f32, out: &mut [u8]) {
        match self.map {
            Map::Linear { .. } => self.fill_steps(values, band, out, |value| match self.map {
                Map::Linear { from, scale } => linear(value, from, scale),
                _ => 0,
            }),
            Map::Bits { .. } => self.fill_steps(values, band, out, |value| self.map.bucket(value)),
            Map::Search => {
                for (byte, &value) in out.iter_mut().zip(values) {
                    *byte = or_missing(value, band, self.search(value));
                }
            }
        }
    }

    #[inline]
    fn fill_steps(&self, values: &[f32], band: f32, out: &mut [u8], bucket: impl Fn(f32) -> usize) {
        match self.steps {
            0 | 1 => self.fill_buckets::<1>(values, band, out, bucket),
            2 => self.fill_buckets::<2>(values, band, out, bucket),
            3 => self.fill_buckets::<3>(values, band, out, bucket),
            4 => self.fill_buckets::<4>(values, band, out, bucket),
            _ => self.fill_buckets::<STEPS_MAX>(values, band, out, bucket),
        }
    }

    #[inline]
    fn fill_buckets<const STEPS: usize>(
        &self,
        values: &[f32],
        band: f32,
        out: &mut [u8],
        bucket: impl Fn(f32) -> usize,
    ) {
        for (byte, &value) in out.iter_mut().zip(values) {
            let start = self.starts[bucket(value) % BUCKETS];
            let mut rank = start;
            // Independent comparisons: those with thresholds of later buckets are false.
            for step in 0..STEPS {
                rank += u8::from(self.thresholds[usize::from(start) + step] < value);
            }
            *byte = or_missing(value, band, rank);
        }
    }

    #[inline]
    fn search(&self, value: f32) -> u8 {
        let mut rank = 0_usize;
        for half in [128, 64, 32, 16, 8, 4, 2, 1] {
            rank += half * usize::from(self.thresholds[(rank + half - 1) % 256] < value);
        }
        rank as u8
    }
}

#[inline]
fn or_missing(value: f32, band: f32, rank: u8) -> u8 {
    if value.is_nan() | (value.abs() <= band) { MISSING } else { rank }
}

impl Map {
    /// Monotone in the value; NaN may go anywhere.
    #[inline]
    fn bucket(self, value: f32) -> usize {
        match self {
            Map::Linear { from, scale } => linear(value, from, scale),
            Map::Bits { from, shift } => {
                let above = order(value).saturating_sub(from).max(0);
                (above >> shift).min(BUCKETS as i32 - 1) as usize
            }
            Map::Search => 0,
        }
    }
}

#[inline]
fn linear(value: f32, from: f32, scale: f32) -> usize {
    let place = (value - from) * scale;
    // Comparisons, not `clamp`: NaN (and infinity times 0) becomes 0.
    let place = if place > 0.0 { place } else { 0.0 };
    let place = if place < BUCKETS as f32 - 1.0 { place } else { BUCKETS as f32 - 1.0 };
    // Adding 2^23 leaves the whole number in the low bits: no conversion that has to saturate.
    const WHOLE: f32 = 8_388_608.0;
    (place + WHOLE).to_bits() as usize % BUCKETS
}

/// Codes of a feature by class: two codes that are in the same sets have the same class.
#[derive(Debug)]
struct Classes {
    /// Class by code; [`Classes::NONE`] is in no set.
    by_code: Vec<u32>,
    count: u32,
}

impl Classes {
    const NONE: u32 = u32::MAX;

    /// Splits the codes by one set after the other; the work is the number of bits set.
    fn new(forest: &Forest, sets: &BTreeSet<(u32, u32)>) -> Self {
        let words = sets.iter().map(|&(_, words)| words).max().unwrap_or(0);
        let mut by_code = vec![Self::NONE; words as usize * 32];
        let mut next = 0_u32;
        for &(start, words) in sets {
            let mut moved: HashMap<u32, u32> = HashMap::new();
            for code in codes(forest, start, words) {
                let class = &mut by_code[code];
                *class = *moved.entry(*class).or_insert_with(|| {
                    next = (next + 1) % Self::NONE;
                    next
                });
            }
        }
        // Numbered anew in the order of codes: emptied classes leave no gap.
        let mut numbers: HashMap<u32, u32> = HashMap::new();
        for class in by_code.iter_mut().filter(|class| **class != Self::NONE) {
            let number = numbers.len() as u32;
            *class = *numbers.entry(*class).or_insert(number);
        }
        Self { by_code, count: numbers.len() as u32 }
    }

    /// As [`Forest::goes_left`] reads a value: towards zero; NaN, negative and unseen are none.
    #[inline]
    fn of(&self, value: f32) -> u32 {
        let code = value as i32;
        if value.is_nan() || code < 0 {
            return Self::NONE;
        }
        self.by_code.get(code as usize).copied().unwrap_or(Self::NONE)
    }

    fn question(&self, column: u32, forest: &Forest, start: u32, words: u32) -> Question {
        let classes = || codes(forest, start, words).map(|code| self.by_code[code]);
        let first = classes().min().unwrap_or(0) / PAGE;
        let last = classes().max().unwrap_or(0) / PAGE;
        let mut sets = vec![[0_u8; 16]; (last - first + 1) as usize];
        for class in classes() {
            let set = &mut sets[(class / PAGE - first) as usize];
            set[(class % PAGE / 8) as usize] |= 1 << (class % 8);
        }
        Question::InSets { column: column + first, sets }
    }
}

/// The codes of a bit set.
fn codes(forest: &Forest, start: u32, words: u32) -> impl Iterator<Item = usize> {
    let words = &forest.bits[start as usize..][..words as usize];
    words.iter().enumerate().flat_map(|(at, &word)| {
        (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 32 + bit)
    })
}
