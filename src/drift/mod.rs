//! How far what a model sees is from what it learnt from: histograms of both, and their distance.
//!
//! ```text
//! rows of training --> Reference, a file of the bundle: bins and counts of every feature, the score, the
//!                      categories shown
//! rows of serving  --> Window: counts in the same bins, of the last hour, say
//!                          |
//!                      Report: population stability index of each, the furthest first
//! ```
//! The index is `sum((q - p) * ln(q / p))` over the bins, p the share in training and q in serving (Siddiqi,
//! "Credit Risk Scorecards", 2006); under .1 is taken for no change, over .25 for a large one. Without any change
//! it is not 0: it is `(bins - 1) * (1/n + 1/m)` on average (Yurdakul and Naranjo, "Statistical properties of the
//! population stability index", 2020), where rows of one request count once, because they hang together. That
//! is taken off here, or small worlds and quiet hours would drift.
//!
//! Knows no clock and no bundle.

mod reference;
mod window;

use serde::{Deserialize, Serialize};

pub use reference::{Bins, Population, Reference, ReferenceBuilder, Variable};
pub use window::{Report, Row, Sample, Shown, Verdict, Window};

/// Under this is no change.
pub const STABLE_MAX: f64 = 0.1;
/// Over this is a large one.
pub const SHIFTED_MIN: f64 = 0.25;
/// Rows of one request that are counted: more of them say little more, since they hang together.
pub const ROWS_PER_REQUEST: usize = 10;
/// Counts that every bin has from the start, of the whole: an empty bin has no logarithm.
const PRIOR: f64 = 0.5;

/// How many rows fell where, and from how many requests they came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub bins: Vec<f64>,
    pub requests: f64,
}

impl Counts {
    pub fn new(bins: usize) -> Self {
        Self { bins: vec![0.0; bins], requests: 0.0 }
    }

    /// Shares of the bins.
    pub fn shares(&self) -> Vec<f64> {
        let total = self.bins.iter().sum::<f64>() + PRIOR * self.bins.len() as f64;
        self.bins.iter().map(|count| (count + PRIOR) / total).collect()
    }
}

/// At most `max` of `n` places, evenly spread, the first among them.
pub fn spread(n: usize, max: usize) -> impl Iterator<Item = usize> {
    (0..n).step_by(n.div_ceil(max.max(1)).max(1))
}

/// The population stability index of the second against the first, less what chance alone gives,
/// and at least 0.
pub fn psi(training: &Counts, serving: &Counts) -> f64 {
    let terms = training.shares().into_iter().zip(serving.shares());
    let index: f64 = terms.map(|(p, q)| (q - p) * (q / p).ln()).sum();
    let filled = training.bins.iter().zip(&serving.bins).filter(|(a, b)| **a + **b > 0.0).count();
    let freedom = filled.saturating_sub(1) as f64;
    let chance = freedom * (1.0 / training.requests.max(1.0) + 1.0 / serving.requests.max(1.0));
    (index - chance).max(0.0)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    use super::*;

    fn counts(bins: &[f64]) -> Counts {
        Counts { bins: bins.to_vec(), requests: bins.iter().sum() }
    }

    #[test]
    fn the_index_is_that_of_the_definition() {
        let (p, q) = (counts(&[5e5, 3e5, 2e5]), counts(&[3e5, 3e5, 4e5]));
        let expected = (0.3 - 0.5) * (0.6f64).ln() + (0.4 - 0.2) * (2.0f64).ln();
        assert!((psi(&p, &q) - expected).abs() < 1e-4, "{}", psi(&p, &q));
        assert!((psi(&p, &q) - psi(&q, &p)).abs() < 1e-9, "it has no direction");
        assert!(psi(&p, &counts(&[1e6, 0.0, 0.0])) > 1.0, "an empty bin has a value");
        assert_eq!(psi(&p, &p), 0.0);
    }

    #[test]
    fn chance_alone_is_no_drift() {
        let mut random = Pcg64Mcg::seed_from_u64(3);
        let mut draw = |n: usize| {
            let mut counts = Counts::new(12);
            for _ in 0..n {
                counts.bins[random.random_range(0..12)] += 1.0;
            }
            Counts { requests: n as f64, ..counts }
        };
        let mean = (0..200).map(|_| psi(&draw(300), &draw(300))).sum::<f64>() / 200.0;
        // Uncorrected it would be .073; what is cut off at 0 leaves a little.
        assert!(mean < 0.02, "{mean}");
    }
}
