//! Tests that stay valid however often, and on whatever ground, one looks and stops.
//!
//! **[`Mixture`]**, for estimates: the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha,
//! Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences"
//! (Annals of Statistics 52, 2024), with Robbins' normal mixture (1970). Let an estimate have standard
//! error s, and information I = 1 / s^2. I times its error then moves like a Brownian motion at
//! time I, also where the users return and differ: their share of the error stays, and the
//! information stops growing accordingly (estimates with independent increments: Scharfstein,
//! Tsiatis and Robins, JASA 1997). With a level a and the mixture's r, the error stays
//! within
//!
//! ```text
//! one side:   sqrt(2 (I + r) ln(1 + sqrt((I + r) / r) / (2 a))) / I
//! both:       sqrt((I + r) ln((I + r) / (r a^2))) / I
//! ```
//! at all times at once with probability 1 - a. r only chooses where that is tightest.
//!
//! **[`Bets`]**, for rates that should hardly ever exceed a limit (errors, slow requests), where no
//! central limit holds yet: the mean of likelihood ratios of higher rates against the limit.
//! While the true rate is at most the limit that is a supermartingale, so by Ville's inequality (1939) it
//! ever reaches 1 / a with probability a at most. It is exact from the first request.

/// The boundary for estimates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixture {
    r: f64,
}

impl Mixture {
    /// Tightest at about this information, for one-sided tests of level `alpha`.
    ///
    /// # Panics
    /// Unless `information` is positive and `alpha` within 0 and 1.
    pub fn tuned(information: f64, alpha: f64) -> Self {
        assert!(information > 0.0 && alpha > 0.0 && alpha < 1.0, "{information}, {alpha}");
        let log = 2.0 * (1.0 / alpha).ln();
        Self { r: information / (log + (1.0 + log).ln()) }
    }

    /// How far an estimate of this variance may be off in one direction; infinite when nothing is
    /// known.
    pub fn one_sided(&self, variance: f64, alpha: f64) -> f64 {
        let information = 1.0 / variance;
        let grown = information + self.r;
        let log = (1.0 + (grown / self.r).sqrt() / (2.0 * alpha)).ln();
        finite((2.0 * grown * log).sqrt() / information)
    }

    /// How far it may be off in either direction.
    pub fn two_sided(&self, variance: f64, alpha: f64) -> f64 {
        let information = 1.0 / variance;
        let grown = information + self.r;
        finite((grown * (grown / (self.r * alpha * alpha)).ln()).sqrt() / information)
    }
}

fn finite(width: f64) -> f64 {
    if width.is_nan() { f64::INFINITY } else { width }
}

/// Bets against "the rate is at most the limit".
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bets {
    limit: f64,
}

impl Bets {
    /// Against this limit; rates beyond 0 and 1 are brought within.
    pub fn against(limit: f64) -> Self {
        Self { limit: limit.clamp(1e-6, 0.999) }
    }

    /// The logarithm of what was won when `hits` of `trials` exceeded.
    pub fn log_won(&self, hits: u64, trials: u64) -> f64 {
        const RATES: usize = 12;
        let odds = self.limit / (1.0 - self.limit);
        let of = |at: usize| {
            // From one and a half times the odds of the limit upward.
            let odds = odds * 1.5_f64.powi(1 + at as i32 * at as i32 / 4 + at as i32);
            let rate = odds / (1.0 + odds);
            let won = hits as f64 * (rate / self.limit).ln();
            won + (trials - hits) as f64 * ((1.0 - rate) / (1.0 - self.limit)).ln()
        };
        let each: [f64; RATES] = std::array::from_fn(of);
        let most = each.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        most + (each.iter().map(|won| (won - most).exp()).sum::<f64>() / RATES as f64).ln()
    }

    /// Whether the limit is refuted at level `alpha`.
    pub fn refute(&self, hits: u64, trials: u64, alpha: f64) -> bool {
        self.log_won(hits, trials) >= (1.0 / alpha).ln()
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_distr::{Distribution, StandardNormal};
    use rand_pcg::Pcg64Mcg;

    use super::*;

    /// How many of `runs` walks are outside at any of `steps` looks.
    fn left(runs: u64, steps: u64, outside: impl Fn(f64, f64) -> bool) -> f64 {
        let run = |seed: u64| {
            let mut random = Pcg64Mcg::seed_from_u64(seed);
            let mut sum = 0.0;
            (1..=steps).any(|n| {
                let step: f64 = StandardNormal.sample(&mut random);
                sum += step;
                outside(sum / n as f64, 1.0 / n as f64)
            })
        };
        (0..runs).filter(|&seed| run(seed)).count() as f64 / runs as f64
    }

    #[test]
    fn a_mean_rarely_leaves_at_any_look_where_a_fixed_interval_does() {
        let mixture = Mixture::tuned(500.0, 0.05);
        let one = left(1000, 3000, |mean, variance| -mean > mixture.one_sided(variance, 0.05));
        let both = left(1000, 3000, |mean, v| mean.abs() > mixture.two_sided(v, 0.05));
        let fixed = left(1000, 3000, |mean, variance| mean.abs() > 1.96 * variance.sqrt());
        assert!(one <= 0.06, "one side: {one}");
        assert!(both <= 0.06, "both sides: {both}");
        assert!(fixed > 0.5, "looking often at a fixed interval: {fixed}");
    }

    #[test]
    fn the_price_of_looking_is_a_small_factor() {
        let (information, alpha) = (4000.0, 0.025);
        let mixture = Mixture::tuned(information, alpha);
        let fixed = 1.96 / f64::sqrt(information);
        let width = mixture.one_sided(1.0 / information, alpha);
        assert!((1.2..1.7).contains(&(width / fixed)), "{}", width / fixed);
        assert_eq!(mixture.one_sided(f64::INFINITY, alpha), f64::INFINITY);
    }

    #[test]
    fn bets_are_rarely_won_at_the_limit_and_soon_won_beyond_it() {
        let bets = Bets::against(0.01);
        let won = |rate: f64, seed: u64, trials: u64| {
            let mut random = Pcg64Mcg::seed_from_u64(seed);
            let mut hits = 0;
            (1..=trials).find(|&n| {
                hits += u64::from(random.random_bool(rate));
                bets.refute(hits, n, 0.05)
            })
        };
        let false_alarms = (0..500).filter(|&seed| won(0.01, seed, 5000).is_some()).count();
        assert!(false_alarms <= 35, "{false_alarms} of 500 at the limit");
        assert!((0..50).all(|seed| won(0.03, seed, 5000).is_some()), "three times the limit");
        assert!(bets.refute(3, 3, 0.05), "three of three failed");
        assert!(!bets.refute(0, 1_000_000, 0.05));
    }
}
