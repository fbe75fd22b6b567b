//! Two versions at once: which of them answers whom, what is counted, and what follows from it.
//!
//! ```text
//! request --> Versions --(no trial)--> the one that serves
//!                |--(trial)--> share of users --> stable or challenger; the id of the answer says which
//!                '--(shadow)--> the one that serves; a sample goes to both, beside the traffic
//! event  --> request id --> state and arm --> Tally --> registry --> all replicas --> the same verdict
//! ```
//! Invariant: without a trial a request costs what it did without this module. What is decided, and
//! why, is `experiments`'; here it meets the registry and the requests.

mod begin;
mod shadow;
mod steering;
mod tag;
mod tally;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::answer::Answer;
use super::serving::Serving;
use crate::bundle::Challenger;
use crate::experiments::{Arm, Draw, Settings as Guard, SettingsError, Share, Stage, draw};
use crate::monitor::Fallback;

pub use begin::{Refused, begin};
pub use shadow::Shadow;
pub use steering::{Steering, follows, verdict};
pub use tag::tagged;
pub use tally::{Outcome, Tallies, Tally};

/// Section `[rollout]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Time between two looks at what all replicas have counted.
    pub counts_interval_ms: u64,
    /// While nobody sees the challenger it scores one request in so many.
    pub shadow_every: u64,
    /// Kinds of events that count as clicks ...
    pub click_kinds: Vec<String>,
    /// ... and whose values are revenue.
    pub value_kinds: Vec<String>,
    /// Whether a request may choose its arm, for tests.
    pub allow_override: bool,
    /// Whether `pipeline publish` puts a new bundle on trial instead of serving it at once.
    pub publish_on_trial: bool,
    /// When a challenger advances and when it is rolled back.
    pub guard: Guard,
}

/// Why section `[rollout]` was refused.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    #[error("rollout.{key} = 0: give at least 1")]
    Zero { key: &'static str },
    #[error("rollout.{key} names `{kind}`, which is not in server.event_kinds: add it there")]
    Kind { key: &'static str, kind: String },
    #[error(transparent)]
    Guard(#[from] SettingsError),
}

impl Config {
    /// Refuses kinds of events that nobody can send.
    pub fn check_kinds(&self, known: &[String]) -> Result<(), ConfigError> {
        let clicks = self.click_kinds.iter().map(|kind| ("click_kinds", kind));
        let mut all = clicks.chain(self.value_kinds.iter().map(|kind| ("value_kinds", kind)));
        match all.find(|(_, kind)| !known.contains(kind)) {
            Some((key, kind)) => Err(ConfigError::Kind { key, kind: kind.clone() }),
            None => Ok(()),
        }
    }

    /// Refuses what could not be decided with.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (key, value) in
            [("counts_interval_ms", self.counts_interval_ms), ("shadow_every", self.shadow_every)]
        {
            if value == 0 {
                return Err(ConfigError::Zero { key });
            }
        }
        Ok(self.guard.check()?)
    }
}

/// What serves, and what is tried beside it; replaced as a whole.
pub struct Versions {
    pub stable: Arc<Serving>,
    pub trial: Option<Arc<Trial>>,
}

/// A challenger at one stage.
pub struct Trial {
    pub serving: Arc<Serving>,
    pub stage: Stage,
    pub share: Share,
    /// The number of the registry's state.
    pub state: u64,
    pub first_state: u64,
    pub tallies: Arc<Tallies>,
    /// The counts of this state.
    pub tally: Arc<Tally>,
}

impl Trial {
    /// At what the registry's state `state` says; with the counts so far, when it is the same rollout.
    pub fn new(
        serving: Arc<Serving>,
        state: u64,
        plan: &Challenger,
        before: Option<&Trial>,
    ) -> Self {
        let first_state = plan.first_state.min(state);
        let same = before.filter(|trial| trial.first_state == first_state);
        let tallies =
            same.map_or_else(|| Arc::new(Tallies::new(first_state)), |trial| trial.tallies.clone());
        let tally = tallies.state(state, state).expect("a rollout has its own state");
        let share = Share { salt: plan.salt.clone(), percent: plan.stage.percent() };
        Self { serving, stage: plan.stage, share, state, first_state, tallies, tally }
    }
}

/// What answers a request.
pub struct Chosen {
    pub serving: Arc<Serving>,
    /// `None` while nothing is tried.
    pub arm: Option<Arm>,
    /// Where the request is counted; one that chose its arm is not.
    pub seat: Option<Seat>,
}

/// A request's place in the counts.
pub struct Seat {
    pub tally: Arc<Tally>,
    pub arm: Arm,
    pub draw: Draw,
}

impl Versions {
    /// Who answers a user; `asked` is the arm that the request chose.
    pub fn choose(&self, user: &str, asked: Option<Arm>) -> Chosen {
        let Some(trial) = &self.trial else {
            return Chosen { serving: self.stable.clone(), arm: None, seat: None };
        };
        if asked.is_none() && trial.stage == Stage::Shadow {
            return Chosen { serving: self.stable.clone(), arm: Some(Arm::Stable), seat: None };
        }
        let (drawn, draw) = trial.share.arm(user);
        let arm = asked.unwrap_or(drawn);
        let serving = match arm {
            Arm::Stable => self.stable.clone(),
            Arm::Challenger => trial.serving.clone(),
        };
        let seat = asked.is_none().then(|| Seat { tally: trial.tally.clone(), arm, draw });
        Chosen { serving, arm: Some(arm), seat }
    }
}

impl Seat {
    /// Counts the request.
    pub fn finished(&self, answer: Option<&Answer>, took: Duration) {
        self.tally.request(self.arm, self.draw, answer.is_some_and(is_sound), took);
    }
}

/// Whether the models did their work: an empty answer, or one that had to do without the index or
/// the ranker, is a failure of its version.
pub fn is_sound(answer: &Answer) -> bool {
    let lost = [Fallback::PopularItems.name(), Fallback::RetrievalOrder.name()];
    !answer.items.is_empty() && !answer.degraded.iter().any(|kind| lost.contains(kind))
}

/// What is remembered of the newest rollout, also after its end: events come later than requests.
pub struct Credits {
    pub tallies: Arc<Tallies>,
    pub latest_state: u64,
    pub salt: String,
    /// By [`Arm`].
    pub versions: [String; 2],
}

/// To whom an event belongs.
pub struct Credit {
    pub arm: Arm,
    pub bundle_version: String,
    tally: Arc<Tally>,
    draw: Draw,
}

impl Credits {
    /// Whom the answer of this request id, shown to this user, is credited to.
    pub fn of(&self, request_id: &str, user: &str) -> Option<Credit> {
        let (state, arm) = tag::read(request_id)?;
        let tally = self.tallies.state(state, self.latest_state)?;
        let bundle_version = self.versions[arm as usize].clone();
        Some(Credit { arm, bundle_version, tally, draw: draw(&self.salt, user) })
    }
}

impl Credit {
    /// Counts what came of the answer.
    pub fn count(&self, outcome: Outcome) {
        self.tally.outcome(self.arm, self.draw, outcome);
    }
}
