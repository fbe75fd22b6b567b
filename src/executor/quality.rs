//! How much work a request gets: less of it before anybody is refused.
//!
//! Controlled delay (Nichols and Jacobson, "Controlling queue delay", 2012): a queue that was never
//! empty enough during an interval, so that even the luckiest job waited longer than the target, is a
//! standing one. Then the factor falls by a tenth; in any other interval it rises by a fiftieth. The
//! stages multiply their candidates with it, and with them probes, features and trees get cheaper.
//!
//! A queue that still stands at the least factor serves nobody more by being long: then jobs may wait
//! for a short time only (Maurer, "Fail at Scale", ACM Queue 2015), and whoever is admitted is quick.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Error;
use crate::monitor;

/// Section `[executor.quality]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The least factor; 1 keeps requests whole whatever happens.
    pub min: f32,
    /// Waiting below this is no reason to do less, microseconds.
    pub wait_target_us: u64,
    /// Time between two decisions, milliseconds.
    pub interval_ms: u64,
    /// How long a job may wait when the factor is at its least and the queue still stands,
    /// milliseconds.
    pub standing_wait_ms: u64,
}

impl Config {
    /// Refuses what [`Quality`] could not use.
    pub(super) fn check(&self) -> Result<(), Error> {
        if !(self.min > 0.0 && self.min <= 1.0) {
            let (value, rule) = (f64::from(self.min), "a factor above 0, at most 1");
            return Err(Error::Quality { key: "min", value, rule });
        }
        for (key, value) in
            [("interval_ms", self.interval_ms), ("standing_wait_ms", self.standing_wait_ms)]
        {
            if value == 0 {
                return Err(Error::Quality { key, value: 0.0, rule: "at least 1" });
            }
        }
        Ok(())
    }
}

/// Factor on a standing queue, and what is added in any other interval.
const DOWN: f32 = 0.9;
const UP: f32 = 0.02;
/// Intervals at the least factor after which a standing queue is cut: a pause of the machine makes a
/// queue too, and that one passes.
const PATIENCE: u32 = 10;

/// The factor, shared by all pools.
pub struct Quality {
    config: Config,
    started: Instant,
    /// Bits of the factor, an `f32`.
    factor: AtomicU32,
    /// End of the interval, nanoseconds since `started`, and the shortest wait in it.
    ends_ns: AtomicU64,
    least_wait_ns: AtomicU64,
    /// Intervals in a row that ended with a standing queue at the least factor.
    standing: AtomicU32,
}

impl Quality {
    /// Starts at 1.
    pub fn new(config: &Config) -> Self {
        monitor::quality(1.0);
        Self {
            config: config.clone(),
            started: Instant::now(),
            factor: AtomicU32::new(1.0f32.to_bits()),
            ends_ns: AtomicU64::new(0),
            least_wait_ns: AtomicU64::new(u64::MAX),
            standing: AtomicU32::new(0),
        }
    }

    /// How long a job may wait, if less than its deadline says.
    pub fn wait_max(&self) -> Option<Duration> {
        let standing = self.standing.load(Relaxed) >= PATIENCE;
        standing.then(|| Duration::from_millis(self.config.standing_wait_ms))
    }

    /// The factor now, from the configured least to 1.
    pub fn factor(&self) -> f32 {
        f32::from_bits(self.factor.load(Relaxed))
    }

    /// Hears how long a job waited before it began at `now`.
    pub fn waited(&self, now: Instant, wait: Duration) {
        let now_ns = now.saturating_duration_since(self.started).as_nanos() as u64;
        self.least_wait_ns.fetch_min(wait.as_nanos() as u64, Relaxed);
        let ends = self.ends_ns.load(Relaxed);
        let next = now_ns + self.config.interval_ms * 1_000_000;
        // One thread decides; the others go on.
        if now_ns < ends || self.ends_ns.compare_exchange(ends, next, Relaxed, Relaxed).is_err() {
            return;
        }
        let least = Duration::from_nanos(self.least_wait_ns.swap(u64::MAX, Relaxed));
        let old = self.factor();
        let standing = least > Duration::from_micros(self.config.wait_target_us);
        let new = if standing { (old * DOWN).max(self.config.min) } else { (old + UP).min(1.0) };
        let stands = standing && old <= self.config.min;
        let intervals = if stands { self.standing.load(Relaxed).saturating_add(1) } else { 0 };
        self.standing.store(intervals, Relaxed);
        if new != old {
            self.factor.store(new.to_bits(), Relaxed);
            monitor::quality(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config { min: 0.5, wait_target_us: 1000, interval_ms: 10, standing_wait_ms: 20 }
    }

    /// `jobs` begin in one interval of 10 ms each, having waited `wait_us`.
    fn load(quality: &Quality, from: &mut u64, intervals: usize, wait_us: u64) {
        for _ in 0..intervals {
            *from += 10;
            for at in 0..5 {
                let now = quality.started + Duration::from_micros(*from * 1000 + at);
                quality.waited(now, Duration::from_micros(wait_us));
            }
        }
    }

    #[test]
    fn a_standing_queue_lowers_it_to_its_bound_and_an_empty_one_raises_it_to_one() {
        let config = config();
        let (quality, mut at) = (Quality::new(&config), 0);
        load(&quality, &mut at, 10, 900);
        assert_eq!(quality.factor(), 1.0, "a short wait is no reason");
        load(&quality, &mut at, 4, 5000);
        let lower = quality.factor();
        assert!(lower < 0.8 && lower > 0.5, "{lower}");
        load(&quality, &mut at, 50, 5000);
        assert_eq!(quality.factor(), 0.5);
        load(&quality, &mut at, 60, 100);
        assert_eq!(quality.factor(), 1.0);
    }

    #[test]
    fn a_queue_that_stands_at_the_least_factor_is_cut_after_a_while_and_free_when_it_is_gone() {
        let (quality, mut at) = (Quality::new(&config()), 0);
        load(&quality, &mut at, 7, 5000);
        assert_eq!((quality.factor(), quality.wait_max()), (0.5, None));
        load(&quality, &mut at, 9, 5000);
        assert_eq!(quality.wait_max(), None, "it may pass");
        load(&quality, &mut at, 2, 5000);
        assert_eq!(quality.wait_max(), Some(Duration::from_millis(20)));
        load(&quality, &mut at, 2, 100);
        assert_eq!(quality.wait_max(), None);
    }

    #[test]
    fn one_job_that_did_not_wait_shows_that_the_queue_was_not_standing() {
        let config = config();
        let quality = Quality::new(&config);
        for ms in 0..200u64 {
            let wait = if ms % 5 == 0 { 0 } else { 9000 };
            quality
                .waited(quality.started + Duration::from_millis(ms), Duration::from_micros(wait));
        }
        assert_eq!(quality.factor(), 1.0);
    }
}
