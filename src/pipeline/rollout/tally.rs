//! What this process counts of a rollout, by atomic additions: an arm a state, in groups of users.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::experiments::{
    Arm, ArmCounts, Counts, Draw, Drift, GROUPS, Groups, Latency, StageCounts,
};

/// Values are added as whole numbers of this part of a unit.
const VALUE_PARTS: f64 = 1e6;
/// A replica that has not yet heard of a state may get its events: so far ahead they are counted.
const STATES_AHEAD_MAX: u64 = 8;

/// All states of one rollout.
pub struct Tallies {
    /// Its first state's number; events of earlier states belong to others.
    first: u64,
    states: RwLock<Vec<Arc<Tally>>>,
}

/// One state.
pub struct Tally {
    state: u64,
    arms: [ArmTally; 2],
}

struct ArmTally {
    requests: AtomicU64,
    errors: AtomicU64,
    latency: Vec<AtomicU64>,
    answers: Vec<AtomicU64>,
    impressions: Vec<AtomicU64>,
    clicks: Vec<AtomicU64>,
    value: Vec<AtomicI64>,
    /// Bits of a float.
    value_squares: AtomicU64,
    drift: RwLock<Option<Drift>>,
}

/// What an event means for the counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    Impression,
    Click,
    /// Something of value, a sale most often.
    Value(f64),
}

impl Tallies {
    /// Counts of a rollout that began with this state.
    pub fn new(first: u64) -> Self {
        Self { first, states: RwLock::default() }
    }

    /// The counts of a state, made when absent; `None` for one that cannot be of this rollout.
    /// `latest` is the last state that this process knows.
    pub fn state(&self, state: u64, latest: u64) -> Option<Arc<Tally>> {
        if state < self.first || state > latest + STATES_AHEAD_MAX {
            return None;
        }
        let find = |all: &[Arc<Tally>]| all.iter().find(|t| t.state == state).cloned();
        let known = find(&self.states.read().unwrap_or_else(PoisonError::into_inner));
        Some(known.unwrap_or_else(|| {
            let mut all = self.states.write().unwrap_or_else(PoisonError::into_inner);
            find(&all).unwrap_or_else(|| {
                let tally = Arc::new(Tally::new(state));
                all.push(tally.clone());
                tally
            })
        }))
    }

    /// Everything counted so far.
    pub fn counts(&self) -> Counts {
        let states = self.states.read().unwrap_or_else(PoisonError::into_inner);
        let mut stages: Vec<StageCounts> = states.iter().map(|tally| tally.counts()).collect();
        stages.sort_by_key(|stage| stage.state);
        Counts { stages }
    }
}

impl Tally {
    fn new(state: u64) -> Self {
        Self { state, arms: [ArmTally::new(), ArmTally::new()] }
    }

    /// The number of the state.
    pub fn state(&self) -> u64 {
        self.state
    }

    /// A request of a user was answered, or failed, in this time.
    pub fn request(&self, arm: Arm, draw: Draw, ok: bool, took: Duration) {
        let of = &self.arms[arm as usize];
        of.requests.fetch_add(1, Relaxed);
        if ok {
            of.answers[usize::from(draw.group)].fetch_add(1, Relaxed);
        } else {
            of.errors.fetch_add(1, Relaxed);
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        of.latency[Latency::bucket(us)].fetch_add(1, Relaxed);
    }

    /// What came of an answer.
    pub fn outcome(&self, arm: Arm, draw: Draw, outcome: Outcome) {
        let (of, group) = (&self.arms[arm as usize], usize::from(draw.group));
        match outcome {
            Outcome::Impression => _ = of.impressions[group].fetch_add(1, Relaxed),
            Outcome::Click => _ = of.clicks[group].fetch_add(1, Relaxed),
            Outcome::Value(value) => {
                of.value[group].fetch_add((value * VALUE_PARTS).round() as i64, Relaxed);
                let add = |bits| Some((f64::from_bits(bits) + value * value).to_bits());
                // Never refused: the closure always gives a value.
                let _ = of.value_squares.fetch_update(Relaxed, Relaxed, add);
            }
        }
    }

    /// How far an arm's features are from its training; the last word counts.
    pub fn drifted(&self, arm: Arm, drift: Option<Drift>) {
        let slot = &self.arms[arm as usize].drift;
        *slot.write().unwrap_or_else(PoisonError::into_inner) = drift;
    }

    fn counts(&self) -> StageCounts {
        let [stable, challenger] = &self.arms;
        StageCounts { state: self.state, arms: [stable.counts(), challenger.counts()] }
    }
}

impl ArmTally {
    fn new() -> Self {
        let column = || (0..GROUPS).map(|_| AtomicU64::new(0)).collect();
        Self {
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            latency: (0..Latency::BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            answers: column(),
            impressions: column(),
            clicks: column(),
            value: (0..GROUPS).map(|_| AtomicI64::new(0)).collect(),
            value_squares: AtomicU64::new(0),
            drift: RwLock::new(None),
        }
    }

    fn counts(&self) -> ArmCounts {
        let column = |of: &[AtomicU64]| of.iter().map(|n| n.load(Relaxed) as f64).collect();
        let value = self.value.iter().map(|n| n.load(Relaxed) as f64 / VALUE_PARTS);
        ArmCounts {
            // Errors first: a request that is counted between the two reads is no error without one.
            errors: self.errors.load(Relaxed),
            requests: self.requests.load(Relaxed),
            latency: Latency::of(self.latency.iter().map(|n| n.load(Relaxed)).collect()),
            groups: Groups {
                answers: column(&self.answers),
                impressions: column(&self.impressions),
                clicks: column(&self.clicks),
                value: value.collect(),
            },
            value_squares: f64::from_bits(self.value_squares.load(Relaxed)),
            drift: self.drift.read().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiments::draw;

    #[test]
    fn what_is_counted_is_found_in_its_state_arm_and_group() {
        let tallies = Tallies::new(5);
        assert!(tallies.state(4, 5).is_none(), "another rollout's");
        assert!(tallies.state(1_000, 5).is_none(), "no state that anybody can have seen");
        let draw = draw("salt", "user");
        let later = tallies.state(6, 5).unwrap();
        let first = tallies.state(5, 5).unwrap();
        first.request(Arm::Challenger, draw, true, Duration::from_millis(3));
        first.request(Arm::Challenger, draw, false, Duration::from_millis(3));
        first.outcome(Arm::Challenger, draw, Outcome::Impression);
        first.outcome(Arm::Challenger, draw, Outcome::Value(2.5));
        first.outcome(Arm::Challenger, draw, Outcome::Value(1.5));
        tallies.state(6, 5).unwrap().outcome(Arm::Stable, draw, Outcome::Click);
        assert!(Arc::ptr_eq(&later, &tallies.state(6, 6).unwrap()));
        let counts = tallies.counts();
        assert_eq!(counts.stages.iter().map(|s| s.state).collect::<Vec<_>>(), [5, 6]);
        let group = usize::from(draw.group);
        let arm = counts.stage(5).unwrap().arm(Arm::Challenger);
        assert_eq!((arm.requests, arm.errors, arm.latency.total()), (2, 1, 2));
        assert_eq!((arm.groups.answers[group], arm.groups.impressions[group]), (1.0, 1.0));
        assert_eq!((arm.groups.value[group], arm.value_squares), (4.0, 8.5));
        assert_eq!(counts.stage(6).unwrap().arm(Arm::Stable).groups.clicks[group], 1.0);
    }
}
