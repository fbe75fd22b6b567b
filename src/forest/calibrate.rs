//! Scores that become probabilities: a line through the log odds, written into the model's own text.
//!
//! `p = 1 / (1 + exp(-(slope * raw + intercept)))` (Platt 1999). LightGBM's text has a place for both
//! numbers: the slope is the `sigmoid` of the objective `binary`, and the intercept, divided by it, is
//! added to every leaf of the first tree. So a calibrated model is a model like any other, for this
//! evaluator and for LightGBM, and orders every row as before.

use super::rewrite::Parts;
use super::text::Error;

/// A line through the log odds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Platt {
    pub slope: f64,
    pub intercept: f64,
}

/// Newton steps at most; a handful suffices.
const STEPS_MAX: usize = 100;
/// Added to the curvature, so that it can be divided by.
const RIDGE: f64 = 1e-12;
/// A step is halved so often before it is given up.
const HALVINGS_MAX: usize = 40;

impl Platt {
    /// Fits raw scores to labels (positive above 0) that count `weights` times, by Newton's method with
    /// backtracking and Platt's smoothed targets (Lin, Lin and Weng, Machine Learning 68, 2007). `None`
    /// without both outcomes, or when higher scores do not go with more successes.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn fit(raw: &[f64], labels: &[f32], weights: &[f32]) -> Option<Self> {
        assert!(raw.len() == labels.len() && raw.len() == weights.len(), "one label a score");
        let (mut positive, mut negative) = (0.0, 0.0);
        for (&label, &weight) in labels.iter().zip(weights) {
            *(if label > 0.0 { &mut positive } else { &mut negative }) += f64::from(weight);
        }
        if positive <= 0.0 || negative <= 0.0 || raw.iter().any(|raw| !raw.is_finite()) {
            return None;
        }
        let (high, low) = ((positive + 1.0) / (positive + 2.0), 1.0 / (negative + 2.0));
        let rows = Rows { raw, labels, weights, high, low };
        let mut at = Self { slope: 0.0, intercept: ((positive + 1.0) / (negative + 1.0)).ln() };
        let mut loss = rows.loss(at);
        for _ in 0..STEPS_MAX {
            let ([ga, gb], [haa, hab, hbb]) = rows.derivatives(at);
            let scale = positive + negative;
            if ga.abs().max(gb.abs()) < 1e-10 * scale {
                break;
            }
            let determinant = haa * hbb - hab * hab;
            let step = [(hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant];
            let better = (0..HALVINGS_MAX).find_map(|halvings| {
                let share = 0.5f64.powi(halvings as i32);
                let next = Self {
                    slope: at.slope - share * step[0],
                    intercept: at.intercept - share * step[1],
                };
                let found = rows.loss(next);
                (found < loss).then_some((next, found))
            });
            match better {
                Some(better) => (at, loss) = better,
                None => break,
            }
        }
        (at.slope > 0.0 && at.slope.is_finite() && at.intercept.is_finite()).then_some(at)
    }

    /// The probability of a raw score.
    pub fn probability(self, raw: f64) -> f64 {
        1.0 / (1.0 + (-(self.slope * raw + self.intercept)).exp())
    }

    /// The model whose predictions are these probabilities.
    ///
    /// # Errors
    /// When the text is no model, or one whose predictions are means of its trees.
    pub fn write_into(self, model: &str) -> Result<String, Error> {
        let (parts, parsed) = Parts::of(model)?;
        if parsed.average {
            return Err(Error::Averages);
        }
        let shift = self.intercept / self.slope;
        let header = |key: &str, _: &str| {
            (key == "objective").then(|| format!("binary sigmoid:{}", self.slope))
        };
        parts.with(header, |tree, key, value| {
            let moved = tree == 0 && ["leaf_value", "internal_value"].contains(&key);
            moved.then(|| add(value, shift))
        })
    }
}

/// What the fit reads.
struct Rows<'a> {
    raw: &'a [f64],
    labels: &'a [f32],
    weights: &'a [f32],
    high: f64,
    low: f64,
}

impl Rows<'_> {
    fn each(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        let target = |label: f32| if label > 0.0 { self.high } else { self.low };
        let rows = self.raw.iter().zip(self.labels).zip(self.weights);
        rows.map(move |((&raw, &label), &weight)| (raw, target(label), f64::from(weight)))
    }

    /// Cross entropy, without overflow at either end.
    fn loss(&self, at: Platt) -> f64 {
        self.each()
            .map(|(raw, target, weight)| {
                let z = at.slope * raw + at.intercept;
                weight * (z.max(0.0) - z * target + (-z.abs()).exp().ln_1p())
            })
            .sum()
    }

    fn derivatives(&self, at: Platt) -> ([f64; 2], [f64; 3]) {
        let (mut gradient, mut curvature) = ([0.0; 2], [RIDGE, 0.0, RIDGE]);
        for (raw, target, weight) in self.each() {
            let p = at.probability(raw);
            let (slope, bend) = (weight * (p - target), weight * p * (1.0 - p));
            gradient[0] += slope * raw;
            gradient[1] += slope;
            curvature[0] += bend * raw * raw;
            curvature[1] += bend * raw;
            curvature[2] += bend;
        }
        (gradient, curvature)
    }
}

/// Adds to each number of a list; the text was parsed, so each is one.
fn add(values: &str, shift: f64) -> String {
    let shifted = values.split_ascii_whitespace().map(|value| {
        value.parse::<f64>().map_or(value.to_owned(), |value| (value + shift).to_string())
    });
    shifted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fit_finds_the_line_that_made_the_labels() {
        let truth = Platt { slope: 0.7, intercept: -1.5 };
        let raw: Vec<f64> = (0..40_000).map(|row| f64::from(row % 400) / 50.0 - 4.0).collect();
        // Shares instead of draws: a row counts as a success p times and as a failure 1 - p times.
        let (mut both, mut labels, mut weights) = (vec![], vec![], vec![]);
        for &raw in &raw {
            let p = truth.probability(raw) as f32;
            both.extend([raw, raw]);
            labels.extend([1.0, 0.0]);
            weights.extend([p, 1.0 - p]);
        }
        let found = Platt::fit(&both, &labels, &weights).unwrap();
        assert!((found.slope - 0.7).abs() < 2e-3, "{found:?}");
        assert!((found.intercept + 1.5).abs() < 2e-3, "{found:?}");
    }

    #[test]
    fn scores_without_both_outcomes_or_the_wrong_way_round_are_not_calibrated() {
        let ones = [1.0f32; 4];
        assert_eq!(Platt::fit(&[0.1, 0.2, 0.3, 0.4], &[1.0; 4], &ones), None);
        let wrong = Platt::fit(&[4.0, 3.0, 2.0, 1.0], &[0.0, 0.0, 1.0, 1.0], &ones);
        assert_eq!(wrong, None);
        assert_eq!(Platt::fit(&[f64::NAN, 1.0], &[0.0, 1.0], &ones[..2]), None);
        // Outcomes that a score parts wholly still give a finite line.
        let parted = Platt::fit(&[1.0, 2.0, 3.0, 4.0], &[0.0, 0.0, 1.0, 1.0], &ones).unwrap();
        assert!(parted.slope.is_finite() && parted.slope > 0.0);
    }
}
