//! The best k of a stream of scores, with a threshold and a bounded buffer.
//!
//! A heap pays a logarithm for every hit. Here a hit is appended; when the buffer of about 2 k is
//! full, one partial selection throws the worse half away and raises the threshold below which a
//! score is not even appended. The order is total (score down, item up), so ties are decided the
//! same way however the stream was cut.

use super::Hit;
use crate::types::ItemIdx;

/// The buffer; part of [`super::Scratch`], so that it is reused.
#[derive(Debug, Default)]
pub(crate) struct Best {
    keys: Vec<u64>,
    k: usize,
    capacity: usize,
    threshold: f32,
    /// Items taken into the buffer so far.
    taken: u64,
}

impl Best {
    /// Empties the buffer for the best `k` (at least 1).
    pub(crate) fn start(&mut self, k: usize) {
        assert!(k > 0, "the best 0 of a stream");
        self.k = k;
        self.capacity = k + k.max(256);
        self.threshold = f32::NEG_INFINITY;
        self.taken = 0;
        self.keys.clear();
        self.keys.reserve(self.capacity);
    }

    /// Takes one scored item.
    #[inline]
    pub(crate) fn offer(&mut self, score: f32, item: ItemIdx) {
        // A NaN is kept: a query with a NaN still gets its k items. The buffer is cut as soon as
        // it is full, so that there is room for this push.
        if score >= self.threshold || score.is_nan() {
            self.keys.push(key(score, item.0));
            self.taken += 1;
            if self.keys.len() == self.capacity {
                self.cut();
            }
        }
    }

    /// Takes scored items; `scores` and `items` are of the same length.
    #[inline]
    pub(crate) fn offer_all(&mut self, scores: &[f32], items: &[ItemIdx]) {
        const TOGETHER: usize = 16;
        for (scores, items) in scores.chunks(TOGETHER).zip(items.chunks(TOGETHER)) {
            // Most sixteens hold nothing good enough, which one comparison of all settles.
            let below = scores.iter().filter(|&&score| score < self.threshold).count();
            if below < scores.len() {
                scores.iter().zip(items).for_each(|(&score, &item)| self.offer(score, item));
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.keys.capacity()
    }

    /// Scores below this are not taken.
    #[inline]
    pub(crate) fn threshold(&self) -> f32 {
        self.threshold
    }

    /// Raises the threshold to the score of the `k`-th best so far; returns how many items were
    /// taken into the buffer up to now.
    pub(crate) fn tighten(&mut self) -> u64 {
        if self.keys.len() > self.k {
            self.cut();
        }
        self.taken
    }

    /// Writes the best at most `k` items that are not in `excluded` (sorted), best first.
    pub(crate) fn finish(&mut self, k: usize, excluded: &[ItemIdx], out: &mut Vec<Hit>) {
        self.tighten();
        self.keys.sort_unstable_by(|a, b| b.cmp(a));
        out.reserve(k.min(self.keys.len()));
        let hits = self.keys.iter().map(|&key| hit(key));
        out.extend(hits.filter(|hit| excluded.binary_search(&hit.item).is_err()).take(k));
    }

    #[cold]
    fn cut(&mut self) {
        let (_, &mut worst, _) = self.keys.select_nth_unstable_by(self.k - 1, |a, b| b.cmp(a));
        self.keys.truncate(self.k);
        self.threshold = hit(worst).score;
    }
}

/// Orders like (score, item reversed) when compared as an integer. Adding zero turns -0 into 0,
/// so that the two are one score.
#[inline]
pub(crate) fn key(score: f32, item: u32) -> u64 {
    let bits = (score + 0.0).to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    (ordered as u64) << 32 | !item as u64
}

/// What [`key`] was made of.
#[inline]
pub(crate) fn hit(key: u64) -> Hit {
    let ordered = (key >> 32) as u32;
    let bits = if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered };
    Hit { item: ItemIdx(!(key as u32)), score: f32::from_bits(bits) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_sorting_everything(
            scores in proptest::collection::vec(prop_oneof![(-3i32..3).prop_map(|x| x as f32), -1.0f32..1.0], 0..2000),
            k in 1usize..400,
            excluded in proptest::collection::btree_set(0u32..2000, 0..20),
        ) {
            let excluded: Vec<ItemIdx> = excluded.into_iter().map(ItemIdx).collect();
            let mut best = Best::default();
            best.start(k + excluded.len());
            let mut expected: Vec<Hit> = Vec::new();
            for (at, &score) in scores.iter().enumerate() {
                let item = ItemIdx(at as u32);
                if at % 2 == 0 { best.offer(score, item) } else { best.offer_all(&[score], &[item]) }
                if !excluded.contains(&item) {
                    expected.push(Hit { item, score });
                }
            }
            expected.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.item.cmp(&b.item)));
            expected.truncate(k);
            let mut found = Vec::new();
            best.finish(k, &excluded, &mut found);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn keys_give_back_what_went_in(score in any::<f32>(), item in any::<u32>()) {
            let hit = hit(key(score, item));
            prop_assert_eq!(hit.item.0, item);
            prop_assert!(hit.score == score || (hit.score.is_nan() && score.is_nan()));
        }
    }
}
