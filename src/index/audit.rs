//! Is it right: the true neighbours, and what share of them a search finds.

use super::{Hit, select::Best};
use crate::kernels;
use crate::types::ItemIdx;

/// Scores of unit vectors that differ by less are equal: the order of additions decides.
const TIE: f32 = 1e-6;
/// Rows compared at once.
const BLOCK_ROWS: usize = 1024;

/// The true top `k` of `vectors` (`[n * dim]`, row `i` is item `i`) among the items that `passes`
/// names, best first.
pub fn exact_search(
    vectors: &[f32],
    query: &[f32],
    k: usize,
    passes: impl Fn(ItemIdx) -> bool,
) -> Vec<Hit> {
    let mut out = Vec::new();
    if k == 0 {
        return out;
    }
    let mut best = Best::default();
    best.start(k);
    let mut scores = vec![0.0; BLOCK_ROWS];
    for (rows, block) in vectors.chunks(BLOCK_ROWS * query.len()).zip(0u32..) {
        let scores = &mut scores[..rows.len() / query.len()];
        kernels::dots(query, rows, scores);
        for (&score, item) in scores.iter().zip(block * BLOCK_ROWS as u32..) {
            if score >= best.threshold() && passes(ItemIdx(item)) {
                best.offer(score, ItemIdx(item));
            }
        }
    }
    best.finish(k, &[], &mut out);
    out
}

/// The scores of `hits` as [`exact_search`] computes them.
pub fn scores(vectors: &[f32], query: &[f32], hits: &[Hit]) -> impl Iterator<Item = f32> {
    hits.iter().map(move |hit| {
        let mut score = [0.0];
        kernels::dots(query, &vectors[hit.item.row() * query.len()..][..query.len()], &mut score);
        score[0]
    })
}

/// Share of `exact` that was found; 1 when there is nothing to find. `scores` are those of what was
/// found, computed as those of `exact` were: whatever scores as high as the last of `exact` counts,
/// as in ann-benchmarks, for of items with equal vectors any will do.
pub fn recall(scores: impl Iterator<Item = f32>, exact: &[Hit]) -> f64 {
    let Some(last) = exact.last() else { return 1.0 };
    let reached = scores.filter(|score| *score >= last.score - TIE).count();
    reached.min(exact.len()) as f64 / exact.len() as f64
}

/// The mean and the half-width of its 95 % confidence interval (normal approximation).
pub fn mean_with_interval(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, 1.96 * (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_search_is_sorting_what_passes() {
        let rows = [1.0, 0.0, 0.6, 0.8, 0.8, 0.6, 0.0, 1.0];
        let hits = exact_search(&rows, &[1.0, 0.0], 2, |item| item.0 != 0);
        let items: Vec<u32> = hits.iter().map(|hit| hit.item.0).collect();
        assert_eq!(items, [2, 1]);
        let scores = |hits: &[Hit]| hits.iter().map(|hit| hit.score).collect::<Vec<_>>();
        assert_eq!(recall(scores(&hits[..1]).into_iter(), &hits), 0.5);
        assert_eq!(recall(scores(&hits).into_iter(), &[]), 1.0);
        // An equal of the last one is as good; what is worse is not, and more is not better.
        assert_eq!(recall([0.8, 0.6].into_iter(), &hits), 1.0);
        assert_eq!(recall([0.8, 0.5].into_iter(), &hits), 0.5);
        assert_eq!(recall([0.8, 0.8, 0.8].into_iter(), &hits), 1.0);
        assert!(exact_search(&rows, &[1.0, 0.0], 0, |_| true).is_empty());
    }

    #[test]
    fn the_interval_narrows_with_the_root_of_the_count() {
        let some: Vec<f64> = (0..100).map(|i| (i % 2) as f64).collect();
        let (mean, half) = mean_with_interval(&some);
        assert!((mean - 0.5).abs() < 1e-12 && (half - 0.098).abs() < 0.001, "{half}");
        let (_, narrower) = mean_with_interval(&some.repeat(4));
        assert!((half / narrower - 2.0).abs() < 0.02);
    }
}
