//! Whether predicted probabilities are the shares that come true.
//!
//! Rows are cut into ten parts of equal size by their prediction; a part's mean prediction is
//! beside the share of its rows that were successes. The expected calibration error is the mean
//! distance of the two, weighted by rows (Naeini, Cooper and Hauskrecht 2015), with parts of equal
//! size as Nixon et al. (2019) advise: of rare events nearly all rows have one small prediction.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::super::metrics::{Bootstrap, Estimate, resample};

/// Parts of a table.
const PARTS: usize = 10;

/// A reliability table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reliability {
    /// By rising prediction.
    pub parts: Vec<Part>,
    /// Expected calibration error.
    pub error: Option<Estimate>,
    /// All that was predicted over all that came: above 1 promises too much.
    pub ratio: Option<Estimate>,
}

/// Rows of like prediction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    pub rows: usize,
    pub predicted: f64,
    pub observed: Estimate,
}

/// Builds the table; intervals resample groups. `None` when a prediction is no probability.
pub fn table(
    labels: &[f32],
    predicted: &[f64],
    groups: &[Range<usize>],
    bootstrap: Bootstrap,
) -> Option<Reliability> {
    if labels.is_empty() || predicted.iter().any(|p| !(0.0..=1.0).contains(p)) {
        return None;
    }
    let part_of = parts(predicted);
    let count = part_of.iter().copied().max()? as usize + 1;
    // By group and part: rows, predictions and successes.
    let mut sums = vec![[0.0f64; 3]; groups.len() * count];
    for (number, group) in groups.iter().enumerate() {
        for row in group.clone() {
            let [rows, p, y] = &mut sums[number * count + part_of[row] as usize];
            *rows += 1.0;
            *p += predicted[row];
            *y += if labels[row] > 0.0 { 1.0 } else { 0.0 };
        }
    }
    let totals = |counts: &[u32]| {
        let mut totals = vec![[0.0f64; 3]; count];
        for (group, &times) in sums.chunks_exact(count).zip(counts).filter(|(_, n)| **n > 0) {
            for (total, part) in totals.iter_mut().zip(group) {
                for (total, value) in total.iter_mut().zip(part) {
                    *total += value * f64::from(times);
                }
            }
        }
        totals
    };
    let all = totals(&vec![1; groups.len()]);
    let part = |at: usize| {
        let observed = resample(groups.len(), bootstrap, |counts| {
            let [rows, _, y] = totals(counts)[at];
            (rows > 0.0).then(|| y / rows)
        })?;
        let [rows, p, _] = all[at];
        Some(Part { rows: rows as usize, predicted: p / rows, observed })
    };
    let error = resample(groups.len(), bootstrap, |counts| {
        let totals = totals(counts);
        let rows: f64 = totals.iter().map(|total| total[0]).sum();
        Some(totals.iter().map(|[_, p, y]| (p - y).abs()).sum::<f64>() / rows)
    });
    Some(Reliability {
        parts: (0..count).filter_map(part).collect(),
        error,
        ratio: ratio(labels, predicted, groups, bootstrap),
    })
}

/// All that was predicted over all that came. `None` when nothing came.
pub fn ratio(
    labels: &[f32],
    predicted: &[f64],
    groups: &[Range<usize>],
    bootstrap: Bootstrap,
) -> Option<Estimate> {
    let sum = |group: &Range<usize>| {
        let p: f64 = predicted[group.clone()].iter().sum();
        let y = labels[group.clone()].iter().filter(|label| **label > 0.0).count();
        (p, y as f64)
    };
    let sums: Vec<(f64, f64)> = groups.iter().map(sum).collect();
    resample(groups.len(), bootstrap, |counts| {
        let (mut p, mut y) = (0.0, 0.0);
        for (sum, &times) in sums.iter().zip(counts) {
            p += sum.0 * f64::from(times);
            y += sum.1 * f64::from(times);
        }
        (y > 0.0).then(|| p / y)
    })
}

/// The part of each row, by rising prediction; equal predictions share one.
fn parts(predicted: &[f64]) -> Vec<u8> {
    let mut order: Vec<u32> = (0..predicted.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| predicted[a as usize].total_cmp(&predicted[b as usize]));
    let mut part_of = vec![0u8; predicted.len()];
    let (mut part, mut last) = (0u8, None);
    let mut begun = 0;
    for (place, &row) in order.iter().enumerate() {
        let value = predicted[row as usize];
        let full = place - begun >= predicted.len().div_ceil(PARTS);
        if full && last != Some(value) {
            (part, begun) = (part + 1, place);
        }
        part_of[row as usize] = part;
        last = Some(value);
    }
    part_of
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 200, seed: 3 };

    /// 1000 rows of groups of ten; the share of successes rises from 0 to nearly 1.
    fn rows() -> (Vec<f32>, Vec<f64>, Vec<Range<usize>>) {
        let p: Vec<f64> = (0..1000).map(|row| f64::from(row / 100) / 10.0 + 0.05).collect();
        let label = |row: usize| {
            let wanted = (p[row] * 100.0).round() as usize;
            if (row * 37) % 100 < wanted { 1.0 } else { 0.0 }
        };
        ((0..1000).map(label).collect(), p, (0..100).map(|g| g * 10..g * 10 + 10).collect())
    }

    #[test]
    fn what_comes_true_as_promised_has_no_error_and_half_of_it_is_seen() {
        let (labels, p, groups) = rows();
        let found = table(&labels, &p, &groups, BOOTSTRAP).unwrap();
        assert_eq!(found.parts.len(), 10);
        assert!(found.parts.iter().all(|part| part.rows == 100));
        assert!(found.parts.windows(2).all(|pair| pair[0].predicted < pair[1].predicted));
        assert!(found.error.unwrap().mean < 1e-9, "{:?}", found.error);
        assert!((found.ratio.unwrap().mean - 1.0).abs() < 1e-9);
        let half: Vec<f64> = p.iter().map(|p| p / 2.0).collect();
        let found = table(&labels, &half, &groups, BOOTSTRAP).unwrap();
        assert!((found.ratio.unwrap().mean - 0.5).abs() < 1e-9);
        assert!((found.error.unwrap().mean - 0.25).abs() < 1e-9, "{:?}", found.error);
        assert!(found.error.unwrap().lo > 0.15);
    }

    #[test]
    fn equal_predictions_share_a_part_and_scores_are_no_probabilities() {
        let labels = vec![0.0, 1.0, 0.0, 0.0];
        let groups: Vec<Range<usize>> = (0..4).map(|row| row..row + 1).collect();
        let found = table(&labels, &[0.25; 4], &groups, BOOTSTRAP).unwrap();
        assert_eq!((found.parts.len(), found.parts[0].rows), (1, 4));
        assert_eq!(table(&labels, &[0.1, 0.2, 1.5, 0.3], &groups, BOOTSTRAP), None);
        assert_eq!(table(&labels, &[0.1, 0.2, f64::NAN, 0.3], &groups, BOOTSTRAP), None);
        assert_eq!(ratio(&[0.0; 4], &[0.25; 4], &groups, BOOTSTRAP), None);
    }
}
