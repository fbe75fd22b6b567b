//! What an experiment counts: by stage, arm and group of users. Sums only, so what replicas count is
//! pooled by addition in any order.

use serde::{Deserialize, Serialize};

use super::assignment::{Arm, GROUPS};

/// Buckets of a latency histogram an octave: a quantile is right to a twelfth.
const STEPS: u64 = 8;
/// Times below this, microseconds, share the first bucket.
const FIRST_US: u64 = 64;
/// 64 microseconds to over a minute.
const BUCKETS: usize = 21 * STEPS as usize;

/// Everything that is known of an experiment: one entry a state of its rollout, ascending.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub stages: Vec<StageCounts>,
}

/// One state of a rollout. The share of users is constant in it, so what differs between its arms
/// is not the time of day.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageCounts {
    /// Number of the rollout state.
    pub state: u64,
    /// By [`Arm`].
    pub arms: [ArmCounts; 2],
}

/// One arm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ArmCounts {
    /// Requests that were taken up, failed ones too.
    pub requests: u64,
    /// Those of them without an answer.
    pub errors: u64,
    pub latency: Latency,
    pub groups: Groups,
    /// Sum of the squares of the values.
    pub value_squares: f64,
    /// The feature that is furthest from training.
    pub drift: Option<Drift>,
}

/// How far a feature is from what the bundle was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    pub feature: String,
    /// Population stability index.
    pub psi: f64,
}

/// Sums by group of users; each column is empty (nothing counted) or [`GROUPS`] long.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Groups {
    pub answers: Vec<f64>,
    pub impressions: Vec<f64>,
    pub clicks: Vec<f64>,
    /// In the shop's currency.
    pub value: Vec<f64>,
}

/// A histogram of times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Empty, or one count a bucket.
    counts: Vec<u64>,
}

impl Counts {
    /// Adds what another replica counted.
    pub fn add(&mut self, other: &Counts) {
        for theirs in &other.stages {
            let at = self.stages.binary_search_by_key(&theirs.state, |stage| stage.state);
            match at {
                Ok(at) => {
                    let ours = &mut self.stages[at];
                    ours.arms.iter_mut().zip(&theirs.arms).for_each(|(a, b)| a.add(b));
                }
                Err(at) => self.stages.insert(at, theirs.clone()),
            }
        }
    }

    /// The counts of a state, if there are any.
    pub fn stage(&self, state: u64) -> Option<&StageCounts> {
        self.stages.iter().find(|stage| stage.state == state)
    }
}

impl StageCounts {
    pub fn arm(&self, arm: Arm) -> &ArmCounts {
        &self.arms[arm as usize]
    }
}

impl ArmCounts {
    /// Adds other counts of the same arm.
    pub fn add(&mut self, other: &ArmCounts) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.latency.add(&other.latency);
        self.groups.add(&other.groups);
        self.value_squares += other.value_squares;
        let further = |a: &Drift, b: &Drift| a.psi >= b.psi;
        self.drift = match (self.drift.take(), other.drift.clone()) {
            (Some(a), Some(b)) => Some(if further(&a, &b) { a } else { b }),
            (a, b) => a.or(b),
        };
    }
}

impl Groups {
    fn add(&mut self, other: &Groups) {
        add_column(&mut self.answers, &other.answers);
        add_column(&mut self.impressions, &other.impressions);
        add_column(&mut self.clicks, &other.clicks);
        add_column(&mut self.value, &other.value);
    }

    /// Whether every column has its length: what another process wrote is checked before use.
    pub fn is_whole(&self) -> bool {
        let columns = [&self.answers, &self.impressions, &self.clicks, &self.value];
        columns.iter().all(|c| c.is_empty() || c.len() == GROUPS)
    }
}

fn add_column(to: &mut Vec<f64>, from: &[f64]) {
    to.resize(to.len().max(from.len()), 0.0);
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

impl Latency {
    /// Number of buckets.
    pub const BUCKETS: usize = BUCKETS;

    /// The bucket of a time.
    pub fn bucket(us: u64) -> usize {
        if us < FIRST_US {
            return 0;
        }
        let octave = u64::from(us.ilog2() - FIRST_US.ilog2());
        let step = (us >> (us.ilog2() - STEPS.ilog2())) & (STEPS - 1);
        ((octave * STEPS + step) as usize).min(BUCKETS - 1)
    }

    /// Counts by bucket, as another has kept them.
    pub fn of(counts: Vec<u64>) -> Self {
        assert!(counts.is_empty() || counts.len() == BUCKETS, "one count a bucket");
        Self { counts }
    }

    /// Counts one time, microseconds.
    pub fn record(&mut self, us: u64) {
        self.counts.resize(BUCKETS, 0);
        self.counts[Self::bucket(us)] += 1;
    }

    /// How many times were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The time that a share `q` of the requests does not exceed, microseconds, rounded up to the
    /// end of its bucket; `None` without any.
    pub fn quantile_us(&self, q: f64) -> Option<f64> {
        let rank = (q * self.total() as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        let at = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(end_us(at))
    }

    /// Requests that certainly took longer than `us`.
    pub fn over(&self, us: f64) -> u64 {
        let beyond = |&(at, _): &(usize, &u64)| at > 0 && end_us(at - 1) >= us;
        self.counts.iter().enumerate().filter(beyond).map(|(_, count)| count).sum()
    }

    fn add(&mut self, other: &Latency) {
        self.counts.resize(self.counts.len().max(other.counts.len()), 0);
        self.counts.iter_mut().zip(&other.counts).for_each(|(to, from)| *to += from);
    }

    /// Whether it has its length.
    pub fn is_whole(&self) -> bool {
        self.counts.is_empty() || self.counts.len() == BUCKETS
    }
}

/// Where a bucket ends, microseconds.
fn end_us(bucket: usize) -> f64 {
    let (octave, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    (FIRST_US << octave) as f64 * (1.0 + (step + 1) as f64 / STEPS as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_excesses_are_right_to_a_bucket() {
        let mut latency = Latency::default();
        assert_eq!(latency.quantile_us(0.99), None);
        (1..=100_000).for_each(|us| latency.record(us));
        for q in [0.5, 0.9, 0.99] {
            let found = latency.quantile_us(q).unwrap();
            let exact = q * 100_000.0;
            assert!((exact..exact * 1.126).contains(&found), "{q}: {found}");
        }
        let over = latency.over(50_000.0) as f64;
        assert!((43_000.0..=50_000.0).contains(&over), "never more than there are: {over}");
        assert_eq!(Latency::bucket(u64::MAX), Latency::BUCKETS - 1);
        assert_eq!(Latency::bucket(0), 0);
    }

    #[test]
    fn pooling_does_not_depend_on_the_order_and_survives_json() {
        let arm = |clicks: f64, psi: f64| ArmCounts {
            requests: 2,
            groups: Groups { clicks: vec![clicks; GROUPS], ..Groups::default() },
            drift: Some(Drift { feature: format!("f{psi}"), psi }),
            ..ArmCounts::default()
        };
        let of = |state: u64, clicks: f64| Counts {
            stages: vec![StageCounts { state, arms: [arm(clicks, 0.1), arm(1.0, clicks)] }],
        };
        let all = [of(3, 1.0), of(1, 2.0), of(3, 4.0)];
        let pool = |order: [usize; 3]| {
            let mut sum = Counts::default();
            order.iter().for_each(|&at| sum.add(&all[at]));
            sum
        };
        let pooled = pool([0, 1, 2]);
        assert_eq!(pooled, pool([2, 1, 0]));
        assert_eq!(pooled.stages.iter().map(|s| s.state).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(pooled.stage(3).unwrap().arm(Arm::Stable).groups.clicks[7], 5.0);
        assert_eq!(pooled.stage(3).unwrap().arms[1].drift.as_ref().unwrap().psi, 4.0);
        let text = serde_json::to_string(&pooled).unwrap();
        assert_eq!(serde_json::from_str::<Counts>(&text).unwrap(), pooled);
    }
}
