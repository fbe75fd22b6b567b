//! When requests leave and what they ask for; all of it follows from a seed.

use std::time::Duration;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Exp};
use rand_pcg::Pcg64Mcg;

/// Gaps between requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Arrivals {
    /// As of many callers who know nothing of each other.
    Poisson,
    /// All gaps alike.
    Constant,
}

/// Who asks, and from where. User ids are those of `shortlist generate`: `u0000001` to `u<users>`.
#[derive(Debug, Clone)]
pub struct Callers {
    pub users: u64,
    /// Share of requests by users that no table knows.
    pub absent_share: f64,
    pub regions: Vec<String>,
    pub devices: Vec<String>,
    pub num_items: usize,
}

/// The requests in order, without end.
pub struct Plan {
    rng: Pcg64Mcg,
    gaps: Option<Exp<f64>>,
    gap_s: f64,
    at_s: f64,
    callers: Callers,
}

impl Plan {
    /// `rate` requests a second, more than 0.
    pub fn new(rate: f64, arrivals: Arrivals, seed: u64, callers: Callers) -> Self {
        let gaps = match arrivals {
            Arrivals::Poisson => Exp::new(rate).ok(),
            Arrivals::Constant => None,
        };
        Self { rng: Pcg64Mcg::seed_from_u64(seed), gaps, gap_s: 1.0 / rate, at_s: 0.0, callers }
    }

    fn body(&mut self) -> String {
        let Callers { users, absent_share, ref regions, ref devices, num_items } = self.callers;
        let rng = &mut self.rng;
        let absent = rng.random_bool(absent_share);
        let user = rng.random_range(1..=users) + if absent { users } else { 0 };
        let mut body = format!(r#"{{"user_id":"u{user:07}","num_items":{num_items}"#);
        for (key, values) in [("region", regions), ("device", devices)] {
            if let Some(value) = values.choose(rng) {
                body.push_str(&format!(r#","{key}":"{value}""#));
            }
        }
        body.push('}');
        body
    }
}

impl Iterator for Plan {
    /// Time since the start, and the body.
    type Item = (Duration, String);

    fn next(&mut self) -> Option<Self::Item> {
        self.at_s += self.gaps.map_or(self.gap_s, |gaps| gaps.sample(&mut self.rng));
        Some((Duration::from_secs_f64(self.at_s), self.body()))
    }
}
