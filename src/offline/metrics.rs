//! What the evaluation reports: ranking metrics and how sure they are.
//!
//! Rows are grouped (by user or request) as ranges into parallel slices. Metrics over groups give
//! one [`Weighted`] value a group, so that an interval resamples groups and never rows: the rows of
//! a user are not independent. A label above 0 is a positive; equal scores are never broken by
//! the order of the rows.
//!
//! ```text
//! labels, scores, groups -> Vec<Weighted> (a group each) -> estimate / paired_difference -> Estimate
//! ```
//! Invariant: a group without a defined value has weight 0 and keeps its place, so that two
//! systems stay paired. This module must not know where scores come from.

use std::collections::HashSet;
use std::hash::Hash;
use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// A figure with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Estimate {
    /// The figure on all groups.
    pub mean: f64,
    /// 2.5th percentile of the resampled figures.
    pub lo: f64,
    /// 97.5th percentile of the resampled figures.
    pub hi: f64,
}

/// How intervals are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// Number of resamples, at least 1; 1000 give steady percentiles.
    pub resamples: usize,
    /// Equal seeds give equal intervals.
    pub seed: u64,
}

/// The value of one group. Weight 0: the group does not count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weighted {
    pub value: f64,
    pub weight: f64,
}

impl Weighted {
    /// A group that does not count.
    pub const SKIPPED: Self = Self { value: 0.0, weight: 0.0 };

    fn once(value: Option<f64>) -> Self {
        value.map_or(Self::SKIPPED, |value| Self { value, weight: 1.0 })
    }
}

/// Area under the ROC curve by mean ranks (Mann-Whitney U): the share of positive-negative pairs
/// in the right order, ties counting half. `None` without both classes.
///
/// # Panics
/// When the lengths differ or a score is NaN, here and in the other functions of this module.
pub fn auc(labels: &[f32], scores: &[f64]) -> Option<f64> {
    check(labels, scores);
    weighted_auc(&best_first(labels, scores, |_| Some(0)), |_| 1.0)
}

/// AUC of each group, weighted by its rows; groups of one class are skipped.
pub fn auc_by_group(labels: &[f32], scores: &[f64], groups: &[Range<usize>]) -> Vec<Weighted> {
    check(labels, scores);
    let value = |group: &Range<usize>| {
        auc(&labels[group.clone()], &scores[group.clone()])
            .map_or(Weighted::SKIPPED, |value| Weighted { value, weight: group.len() as f64 })
    };
    groups.iter().map(value).collect()
}

/// Mean of the groups' AUC, weighted by impressions (Zhu et al. 2017, GAUC). `None` when every
/// group has one class only.
pub fn gauc(labels: &[f32], scores: &[f64], groups: &[Range<usize>]) -> Option<f64> {
    weighted_mean(&auc_by_group(labels, scores, groups))
}

/// AUC over all rows with an interval from resampled groups. Rows outside `groups` do not count.
pub fn auc_estimate(
    labels: &[f32],
    scores: &[f64],
    groups: &[Range<usize>],
    bootstrap: Bootstrap,
) -> Option<Estimate> {
    check(labels, scores);
    let group_of = group_of_rows(labels.len(), groups);
    let rows = best_first(labels, scores, |row| group_of[row]);
    let at = |counts: &[u32]| weighted_auc(&rows, |group| f64::from(counts[group as usize]));
    resample(groups.len(), bootstrap, at)
}

/// `ours - theirs` in AUC over all rows, both on the same resampled groups.
pub fn auc_difference(
    labels: &[f32],
    ours: &[f64],
    theirs: &[f64],
    groups: &[Range<usize>],
    bootstrap: Bootstrap,
) -> Option<Estimate> {
    check(labels, ours);
    check(labels, theirs);
    let group_of = group_of_rows(labels.len(), groups);
    let ours = best_first(labels, ours, |row| group_of[row]);
    let theirs = best_first(labels, theirs, |row| group_of[row]);
    resample(groups.len(), bootstrap, |counts| {
        let weight = |group: u32| f64::from(counts[group as usize]);
        Some(weighted_auc(&ours, weight)? - weighted_auc(&theirs, weight)?)
    })
}

/// NDCG@k of each group that has a positive. Gain `2^label - 1`, discount `1 / log2(rank + 1)`;
/// tied rows share the mean gain of their ranks (McSherry and Najork 2008).
pub fn ndcg_by_group(
    labels: &[f32],
    scores: &[f64],
    groups: &[Range<usize>],
    k: usize,
) -> Vec<Weighted> {
    check(labels, scores);
    let value = |group: &Range<usize>| ndcg(&labels[group.clone()], &scores[group.clone()], k);
    groups.iter().map(|group| Weighted::once(value(group))).collect()
}

/// Mean NDCG@k over the groups that have a positive.
pub fn ndcg_at(labels: &[f32], scores: &[f64], groups: &[Range<usize>], k: usize) -> Option<f64> {
    weighted_mean(&ndcg_by_group(labels, scores, groups, k))
}

/// Mean negative log likelihood of binary labels. Probabilities are kept 1e-15 away from 0 and 1.
/// `None` without rows.
pub fn log_loss(labels: &[f32], probabilities: &[f64]) -> Option<f64> {
    check(labels, probabilities);
    if labels.is_empty() {
        return None;
    }
    let sum: f64 = labels.iter().zip(probabilities).map(|(&y, &p)| row_loss(y, p)).sum();
    Some(sum / labels.len() as f64)
}

/// Log loss of each group, weighted by its rows, so that the mean is the log loss of all rows.
pub fn log_loss_by_group(
    labels: &[f32],
    probabilities: &[f64],
    groups: &[Range<usize>],
) -> Vec<Weighted> {
    check(labels, probabilities);
    let value = |group: &Range<usize>| {
        log_loss(&labels[group.clone()], &probabilities[group.clone()])
            .map_or(Weighted::SKIPPED, |value| Weighted { value, weight: group.len() as f64 })
    };
    groups.iter().map(value).collect()
}

/// `hits / min(k, |relevant|)` among the first `k` of a ranking; a repeated entry is one hit.
/// `None` when nothing is relevant.
pub fn recall_at<T: Eq + Hash>(ranked: &[T], relevant: &HashSet<T>, k: usize) -> Option<f64> {
    if relevant.is_empty() || k == 0 {
        return None;
    }
    let first = &ranked[..k.min(ranked.len())];
    let hits = first
        .iter()
        .enumerate()
        .filter(|(rank, item)| relevant.contains(item) && !first[..*rank].contains(item))
        .count();
    Some(hits as f64 / k.min(relevant.len()) as f64)
}

/// One value a group with equal weights, `None` being skipped: what [`recall_at`] gives by user.
pub fn by_group(values: impl IntoIterator<Item = Option<f64>>) -> Vec<Weighted> {
    values.into_iter().map(Weighted::once).collect()
}

/// Weighted mean of the groups; `None` when none counts.
pub fn weighted_mean(values: &[Weighted]) -> Option<f64> {
    let weight: f64 = values.iter().map(|group| group.weight).sum();
    let sum: f64 = values.iter().map(|group| group.value * group.weight).sum();
    (weight > 0.0).then(|| sum / weight)
}

/// Weighted mean with a percentile interval from resampled groups.
pub fn estimate(values: &[Weighted], bootstrap: Bootstrap) -> Option<Estimate> {
    // Skipped groups are left out before resampling: they are no part of the population.
    let values: Vec<Weighted> = values.iter().copied().filter(|v| v.weight > 0.0).collect();
    resample(values.len(), bootstrap, |counts| {
        let (mut sum, mut weight) = (0.0, 0.0);
        for (group, &count) in values.iter().zip(counts) {
            sum += group.value * group.weight * f64::from(count);
            weight += group.weight * f64::from(count);
        }
        (weight > 0.0).then(|| sum / weight)
    })
}

/// `ours - theirs` with an interval from the same resampled groups for both: far narrower than two
/// separate intervals. Better at the 95 % level when `lo > 0`.
///
/// # Panics
/// When the two do not come from the same groups (lengths or weights differ).
pub fn paired_difference(
    ours: &[Weighted],
    theirs: &[Weighted],
    bootstrap: Bootstrap,
) -> Option<Estimate> {
    assert_eq!(ours.len(), theirs.len(), "both systems over the same groups");
    let difference = |(ours, theirs): (&Weighted, &Weighted)| {
        assert_eq!(ours.weight, theirs.weight, "both systems over the same rows");
        Weighted { value: ours.value - theirs.value, weight: ours.weight }
    };
    let differences: Vec<Weighted> = ours.iter().zip(theirs).map(difference).collect();
    estimate(&differences, bootstrap)
}

fn check(labels: &[f32], scores: &[f64]) {
    assert_eq!(labels.len(), scores.len(), "one score a label");
    assert!(u32::try_from(labels.len()).is_ok(), "at most 2^32 rows");
    assert!(!scores.iter().any(|score| score.is_nan()), "scores are not NaN");
}

/// The group of each row; `None` outside all groups.
fn group_of_rows(rows: usize, groups: &[Range<usize>]) -> Vec<Option<u32>> {
    let mut group_of = vec![None; rows];
    for (number, group) in groups.iter().enumerate() {
        group_of[group.clone()].fill(Some(number as u32));
    }
    group_of
}

/// Rows by falling score. Scores are not NaN.
fn descending(scores: &[f64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
    order
}

/// Runs of equal scores in `order`. Zeros of both signs are equal, although sorted apart.
fn ties<'a>(order: &'a [u32], scores: &'a [f64]) -> impl Iterator<Item = &'a [u32]> {
    order.chunk_by(|&a, &b| scores[a as usize] == scores[b as usize])
}

/// What the AUC needs of a row, in falling order of score: read front to back a thousand times.
struct RankedRow {
    group: u32,
    positive: bool,
    last_of_tie: bool,
}

fn best_first(
    labels: &[f32],
    scores: &[f64],
    group_of: impl Fn(usize) -> Option<u32>,
) -> Vec<RankedRow> {
    let mut order = descending(scores);
    order.retain(|&row| group_of(row as usize).is_some());
    let mut rows = Vec::with_capacity(order.len());
    for tie in ties(&order, scores) {
        rows.extend(tie.iter().enumerate().filter_map(|(place, &row)| {
            let group = group_of(row as usize)?;
            let positive = labels[row as usize] > 0.0;
            Some(RankedRow { group, positive, last_of_tie: place + 1 == tie.len() })
        }));
    }
    rows
}

/// AUC of rows that count `weight(group)` times.
fn weighted_auc(rows: &[RankedRow], weight: impl Fn(u32) -> f64) -> Option<f64> {
    let (mut positives, mut negatives, mut right) = (0.0, 0.0, 0.0);
    let (mut tied_positives, mut tied_negatives) = (0.0, 0.0);
    for row in rows {
        let tied = if row.positive { &mut tied_positives } else { &mut tied_negatives };
        *tied += weight(row.group);
        if row.last_of_tie {
            right += tied_negatives * (positives + 0.5 * tied_positives);
            positives += tied_positives;
            negatives += tied_negatives;
            (tied_positives, tied_negatives) = (0.0, 0.0);
        }
    }
    (positives > 0.0 && negatives > 0.0).then(|| right / (positives * negatives))
}

fn ndcg(labels: &[f32], scores: &[f64], k: usize) -> Option<f64> {
    let gain = |label: f32| (2.0_f64).powf(f64::from(label)) - 1.0;
    let discount = |rank: usize| 1.0 / (rank as f64 + 2.0).log2();
    let mut best: Vec<f64> = labels.iter().map(|&label| gain(label)).collect();
    best.sort_unstable_by(|a, b| b.total_cmp(a));
    let ideal: f64 = best.iter().take(k).enumerate().map(|(rank, g)| g * discount(rank)).sum();
    if ideal <= 0.0 {
        return None;
    }
    let order = descending(scores);
    let (mut rank, mut sum) = (0, 0.0);
    for tie in ties(&order, scores) {
        let gains: f64 = tie.iter().map(|&row| gain(labels[row as usize])).sum();
        let ranks = rank..(rank + tie.len()).min(k);
        sum += gains / tie.len() as f64 * ranks.map(discount).sum::<f64>();
        rank += tie.len();
        if rank >= k {
            break;
        }
    }
    Some(sum / ideal)
}

fn row_loss(label: f32, probability: f64) -> f64 {
    let p = probability.clamp(1e-15, 1.0 - 1e-15);
    if label > 0.0 { -p.ln() } else { -(-p).ln_1p() }
}

/// Percentile bootstrap (Efron 1979): `statistic` of how often each group was drawn. Resamples in
/// which it is undefined are left out.
pub(super) fn resample(
    groups: usize,
    bootstrap: Bootstrap,
    statistic: impl Fn(&[u32]) -> Option<f64>,
) -> Option<Estimate> {
    let mut counts = vec![1_u32; groups];
    let mean = statistic(&counts)?;
    let mut random = Pcg64Mcg::seed_from_u64(bootstrap.seed);
    let mut values = Vec::with_capacity(bootstrap.resamples);
    for _ in 0..bootstrap.resamples {
        counts.fill(0);
        for _ in 0..groups {
            counts[random.random_range(0..groups)] += 1;
        }
        values.extend(statistic(&counts));
    }
    values.sort_unstable_by(f64::total_cmp);
    if values.is_empty() {
        return None;
    }
    Some(Estimate { mean, lo: percentile(&values, 0.025), hi: percentile(&values, 0.975) })
}

/// Linear interpolation between the closest ranks of a sorted, non-empty slice.
pub(super) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::Rng;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 1000, seed: 7 };

    /// What the AUC means, in as many steps as there are pairs.
    fn brute_auc(labels: &[f32], scores: &[f64]) -> Option<f64> {
        let (mut pairs, mut right) = (0, 0.0);
        for (i, _) in labels.iter().enumerate().filter(|(_, y)| **y > 0.0) {
            for (j, _) in labels.iter().enumerate().filter(|(_, y)| **y <= 0.0) {
                pairs += 1;
                right += match scores[i].partial_cmp(&scores[j]) {
                    Some(std::cmp::Ordering::Greater) => 1.0,
                    Some(std::cmp::Ordering::Equal) => 0.5,
                    _ => 0.0,
                };
            }
        }
        (pairs > 0).then(|| right / f64::from(pairs))
    }

    fn near(found: Option<f64>, expected: f64) {
        let found = found.expect("a defined value");
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn auc_by_hand_counts_ties_half() {
        // Positives .8 and .4; negatives .6, .4, .2: right pairs 3 + (1 + a half) of 6.
        near(auc(&[1., 0., 1., 0., 0.], &[0.8, 0.6, 0.4, 0.4, 0.2]), 4.5 / 6.0);
        near(auc(&[0., 1.], &[0.0, -0.0]), 0.5);
        assert_eq!(auc(&[1., 1.], &[0.1, 0.2]), None);
        assert_eq!(auc(&[], &[]), None);
    }

    #[test]
    fn gauc_weights_by_rows_and_skips_one_class_groups() {
        let labels = [1., 0., 0., 1., 1., 1., 0.];
        let scores = [0.9, 0.1, 0.95, 0.5, 0.6, 0.2, 0.3];
        // Group 0: .5 of 3 rows; group 1: positives only; group 2: 0 of 2 rows.
        let groups = [0..3, 3..5, 5..7];
        near(gauc(&labels, &scores, &groups), (0.5 * 3.0 + 0.0 * 2.0) / 5.0);
        assert_eq!(auc_by_group(&labels, &scores, &groups)[1], Weighted::SKIPPED);
        assert_eq!(gauc(&labels, &scores, &groups[1..2]), None);
    }

    #[test]
    fn ndcg_by_hand() {
        let labels = [0., 1., 1., 0.];
        let scores = [4., 3., 2., 1.];
        let discount = |rank: f64| 1.0 / (rank + 1.0).log2();
        let all = (discount(2.) + discount(3.)) / (discount(1.) + discount(2.));
        near(ndcg_at(&labels, &scores, std::slice::from_ref(&(0..4)), 10), all);
        near(ndcg_at(&labels, &scores, std::slice::from_ref(&(0..4)), 1), 0.0);
        // The group without a positive does not lower the mean.
        near(ndcg_at(&[1., 0., 0., 0.], &scores, &[0..2, 2..4], 2), 1.0);
        // Equal scores: the positive stands at each of the three ranks with the same chance.
        let tied = (discount(1.) + discount(2.)) / 3.0;
        near(ndcg_at(&[1., 0., 0.], &[1.; 3], std::slice::from_ref(&(0..3)), 2), tied);
        // Graded: gains 3 and 1, in the wrong order.
        let graded = (1.0 + 3.0 * discount(2.)) / (3.0 + discount(2.));
        near(ndcg_at(&[2., 1.], &[0., 1.], std::slice::from_ref(&(0..2)), 2), graded);
    }

    #[test]
    fn log_loss_by_hand_and_finite_at_certainty() {
        near(log_loss(&[1., 0.], &[0.8, 0.25]), -(0.8_f64.ln() + 0.75_f64.ln()) / 2.0);
        let certain = log_loss(&[1., 0.], &[0.0, 1.0]).unwrap();
        assert!((certain - 34.5).abs() < 0.1, "{certain}");
        let (labels, p) = ([1., 0., 1.], [0.8, 0.25, 0.4]);
        let grouped = log_loss_by_group(&labels, &p, &[0..1, 1..3]);
        near(weighted_mean(&grouped), log_loss(&labels, &p).unwrap());
    }

    #[test]
    fn recall_divides_by_what_is_possible() {
        let relevant: HashSet<u32> = [1, 2, 3].into();
        near(recall_at(&[1, 9, 2, 3], &relevant, 2), 0.5);
        near(recall_at(&[1, 9, 2, 3], &relevant, 10), 1.0);
        near(recall_at(&[1, 1, 1], &relevant, 3), 1.0 / 3.0);
        assert_eq!(recall_at(&[1], &HashSet::new(), 3), None);
    }

    #[test]
    fn the_interval_of_a_mean_agrees_with_theory() {
        // 400 values of variance 1/12: the standard error is .0144, the interval +-1.96 of it.
        let mut random = Pcg64Mcg::seed_from_u64(1);
        let values = by_group((0..400).map(|_| Some(random.random::<f64>())));
        let found = estimate(&values, BOOTSTRAP).unwrap();
        let half = (found.hi - found.lo) / 2.0;
        assert!((half - 1.96 * 0.0144).abs() < 0.004, "{found:?}");
        assert!(found.lo < found.mean && found.mean < found.hi);
        assert_eq!(estimate(&values, BOOTSTRAP), Some(found), "the same seed, the same interval");
        assert_eq!(estimate(&[Weighted::SKIPPED; 3], BOOTSTRAP), None);
    }

    #[test]
    fn pairing_sees_a_small_difference_that_separate_intervals_hide() {
        let mut random = Pcg64Mcg::seed_from_u64(2);
        let base: Vec<f64> = (0..300).map(|_| random.random::<f64>()).collect();
        let theirs = by_group(base.iter().map(|&value| Some(value)));
        let ours = by_group(base.iter().map(|&value| Some(value + 0.01 + 0.01 * value)));
        let (a, b) = (estimate(&ours, BOOTSTRAP).unwrap(), estimate(&theirs, BOOTSTRAP).unwrap());
        assert!(a.lo < b.hi, "the intervals overlap");
        let difference = paired_difference(&ours, &theirs, BOOTSTRAP).unwrap();
        assert!(difference.lo > 0.01 && difference.hi < 0.02, "{difference:?}");
        let none = paired_difference(&theirs, &theirs, BOOTSTRAP).unwrap();
        assert_eq!((none.lo, none.hi), (0.0, 0.0));
    }

    #[test]
    fn the_interval_of_the_auc_resamples_groups() {
        let mut random = Pcg64Mcg::seed_from_u64(3);
        let (mut labels, mut scores, mut groups) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..200 {
            let start = labels.len();
            let good: f64 = random.random();
            for _ in 0..10 {
                let label = if random.random::<f64>() < good { 1.0 } else { 0.0 };
                labels.push(label);
                scores.push(good + random.random::<f64>());
            }
            groups.push(start..labels.len());
        }
        let grouped = auc_estimate(&labels, &scores, &groups, BOOTSTRAP).unwrap();
        near(auc(&labels, &scores), grouped.mean);
        let noisy: Vec<f64> = scores.iter().map(|score| score + random.random::<f64>()).collect();
        let better = auc_difference(&labels, &scores, &noisy, &groups, BOOTSTRAP).unwrap();
        near(Some(better.mean), grouped.mean - auc(&labels, &noisy).unwrap());
        assert!(better.lo > 0.0 && better.hi - better.lo < grouped.hi - grouped.lo, "{better:?}");
        let single: Vec<Range<usize>> = (0..labels.len()).map(|row| row..row + 1).collect();
        let by_row = auc_estimate(&labels, &scores, &single, BOOTSTRAP).unwrap();
        let (wide, narrow) = (grouped.hi - grouped.lo, by_row.hi - by_row.lo);
        assert!(wide > 1.1 * narrow, "rows of a group are not independent: {wide} {narrow}");
    }

    proptest! {
        #[test]
        fn auc_is_the_share_of_right_pairs(
            rows in prop::collection::vec((any::<bool>(), -4_i8..4), 0..60),
        ) {
            let labels: Vec<f32> = rows.iter().map(|row| f32::from(u8::from(row.0))).collect();
            let scores: Vec<f64> = rows.iter().map(|row| f64::from(row.1)).collect();
            let found = auc(&labels, &scores);
            let brute = brute_auc(&labels, &scores);
            prop_assert_eq!(found.is_some(), brute.is_some());
            if let (Some(found), Some(brute)) = (found, brute) {
                prop_assert!((found - brute).abs() < 1e-12);
                let bent: Vec<f64> = scores.iter().map(|s| s.powi(3) * 2.0 + 1.0).collect();
                prop_assert_eq!(auc(&labels, &bent), Some(found));
                let turned: Vec<f64> = scores.iter().map(|s| -s).collect();
                prop_assert!((auc(&labels, &turned).unwrap() - (1.0 - found)).abs() < 1e-12);
            }
        }

        #[test]
        fn ndcg_stays_within_0_and_1_and_is_1_for_the_labels_themselves(
            labels in prop::collection::vec(0_u8..4, 1..30), k in 1_usize..12, seed: u64,
        ) {
            let labels: Vec<f32> = labels.iter().map(|&label| f32::from(label)).collect();
            let rows = 0..labels.len();
            let all = std::slice::from_ref(&rows);
            let mut random = Pcg64Mcg::seed_from_u64(seed);
            let scores: Vec<f64> = labels.iter().map(|_| random.random()).collect();
            if let Some(found) = ndcg_at(&labels, &scores, all, k) {
                prop_assert!((0.0..=1.0 + 1e-12).contains(&found));
                let perfect: Vec<f64> = labels.iter().map(|&label| f64::from(label)).collect();
                prop_assert!((ndcg_at(&labels, &perfect, all, k).unwrap() - 1.0).abs() < 1e-12);
            }
        }
    }
}
