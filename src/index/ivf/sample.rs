//! A bound of the best of many values, from a sample of them.
//!
//! What is at or above the bound is then looked at: one comparison a value instead of a buffer that
//! is cut again and again. A sample can promise too few; the caller counts and falls back.

use crate::index::select;

/// Values from which the bound is estimated.
const SAMPLED: usize = 1024;

/// How many of `total` scores to choose by a bound from a sample so that `kept` are among them:
/// some more, so that it seldom promises too few.
pub(super) fn enough(kept: usize, total: usize) -> usize {
    kept + kept / 4 + total / 100
}

/// About the `rank`-th best of `values`, which are more: from a sample.
pub(super) fn bound<T: Sampled>(values: &[T], rank: usize, sample: &mut Vec<u32>) -> T {
    let stride = (values.len() / SAMPLED).max(1);
    sample.clear();
    sample.extend(values.iter().step_by(stride).map(|value| value.key()));
    let rank = (rank as f64 / values.len() as f64 * sample.len() as f64) as usize;
    let rank = rank.min(sample.len() - 1);
    T::of_key(*sample.select_nth_unstable_by(rank, |a, b| b.cmp(a)).1)
}

/// What a sample is made of, in a form that is ordered as whole numbers.
pub(super) trait Sampled: Copy {
    fn key(self) -> u32;
    fn of_key(key: u32) -> Self;
}

impl Sampled for u16 {
    fn key(self) -> u32 {
        self as u32
    }

    fn of_key(key: u32) -> u16 {
        key as u16
    }
}

impl Sampled for f32 {
    fn key(self) -> u32 {
        (select::key(self, 0) >> 32) as u32
    }

    fn of_key(key: u32) -> f32 {
        select::hit((key as u64) << 32).score
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_asked_are_about_the_bound_or_above_it() {
        let scores: Vec<f32> = (0..50_000).map(|i| ((i * 7919) % 50_000) as f32 - 9.0).collect();
        let sums: Vec<u16> = scores.iter().map(|score| score.max(0.0) as u16).collect();
        let mut sample = Vec::new();
        for rank in [600, 2_000, 20_000] {
            let least = bound(&scores, rank, &mut sample);
            let found = scores.iter().filter(|&&score| score >= least).count();
            assert!(found.abs_diff(rank) < 250 + rank / 10, "{found} for {rank}");
            let least = bound(&sums, rank, &mut sample);
            let found = sums.iter().filter(|&&sum| sum >= least).count();
            assert!(found.abs_diff(rank) < 250 + rank / 10, "{found} for {rank}");
        }
        assert!(enough(500, 10_000) > 500);
    }

    #[test]
    fn a_bound_over_what_does_not_pass_is_minus_infinity() {
        let mut scores = vec![f32::NEG_INFINITY; 5000];
        scores[17] = 0.5;
        assert_eq!(bound(&scores, 100, &mut Vec::new()), f32::NEG_INFINITY);
    }
}
