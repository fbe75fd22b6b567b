//! Two versions at once: which of them answers whom, what is counted, and what follows from it.
//!
//! ```text
//! request --> Versions --(no trial)--> the one that serves
//!                |--(trial)--> share of users --> stable or challenger; the id of the answer says which
//!                |--(layers)--> each draws once more --> the same bundle under other settings
//!                '--(shadow)--> the one that serves; a sample goes to both, beside the traffic
//! event  --> request id --> states and arms --> Tally --> registry --> all replicas --> the same verdict
//! ```
//! Invariant: without a trial a request costs what it did without this module. What is decided, and
//! why, is `experiments`'; here it meets the registry and the requests.

mod begin;
mod credit;
mod layers;
mod shadow;
mod steering;
mod tag;
mod tally;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::answer::Answer;
use super::serving::Serving;
use crate::bundle::Course;
use crate::experiments::{
    Arm, Draw, Layer, Settings as Guard, SettingsError, Share, Stage, Subject,
};
use crate::monitor::Fallback;

pub use begin::{Refused, begin, begin_layer};
pub use credit::{Account, Credit, Credits};
pub use layers::{ChangeError, Layers, merge};
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
    pub layers: Arc<Layers>,
    /// By [`Arm`] of the bundle, each under the settings of [`Layers`], by their bits.
    under: [Vec<Arc<Serving>>; 2],
}

/// A challenger at one stage.
pub struct Trial {
    pub serving: Arc<Serving>,
    pub panel: Panel,
}

/// Who is in a trial, and where what they do is counted.
pub struct Panel {
    pub stage: Stage,
    pub share: Share,
    /// The number of the state in which the stage began.
    pub state: u64,
    pub first_state: u64,
    pub tallies: Arc<Tallies>,
    /// The counts of this state.
    pub tally: Arc<Tally>,
}

impl Panel {
    /// At what the registry's state `number` says; with the counts so far, when it is the same trial.
    pub fn new(number: u64, course: &Course, before: Option<&Panel>) -> Self {
        let state = course.state(number);
        let first_state = course.first_state.min(state);
        let same = before.filter(|panel| panel.first_state == first_state);
        let tallies =
            same.map_or_else(|| Arc::new(Tallies::new(first_state)), |panel| panel.tallies.clone());
        let tally = tallies.state(state, state).expect("a trial has its own state");
        let share = Share { salt: course.salt.clone(), percent: course.stage.percent() };
        Self { stage: course.stage, share, state, first_state, tallies, tally }
    }
}

/// What answers a request.
pub struct Chosen {
    pub serving: Arc<Serving>,
    /// The bundle's arm; `None` while no bundle is tried.
    pub arm: Option<Arm>,
    /// The layers whose other settings apply.
    pub layers: Vec<Layer>,
    /// Where the request is counted; one that chose an arm is not.
    pub seats: Vec<Seat>,
}

/// A request's place in the counts of one trial.
pub struct Seat {
    pub of: Subject,
    pub tally: Arc<Tally>,
    pub arm: Arm,
    pub draw: Draw,
}

/// The arms that a request chose, for tests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    pub bundle: Option<Arm>,
    pub layers: Vec<(Layer, Arm)>,
}

impl Asked {
    /// Whether the request left everything to the draw.
    pub fn is_nothing(&self) -> bool {
        self.bundle.is_none() && self.layers.is_empty()
    }
}

impl Versions {
    /// These bundles under the settings of the layers.
    pub fn new(stable: Arc<Serving>, trial: Option<Arc<Trial>>, layers: Arc<Layers>) -> Self {
        let challenger = trial.as_ref().map(|trial| &trial.serving);
        let under = [Some(&stable), challenger]
            .map(|serving| serving.map_or_else(Vec::new, |serving| layers.over(serving)));
        Self { stable, trial, layers, under }
    }

    /// Who answers a user.
    pub fn choose(&self, user: &str, asked: &Asked) -> Chosen {
        let (mut seats, counts) = (Vec::new(), asked.is_nothing());
        let mut seat = |of: Subject, panel: &Panel, asked: Option<Arm>| {
            let (drawn, draw) = panel.share.arm(user);
            let arm = asked.unwrap_or(drawn);
            if counts {
                seats.push(Seat { of, tally: panel.tally.clone(), arm, draw });
            }
            arm
        };
        let arm = self.trial.as_ref().map(|trial| {
            // Who only scores a sample is not drawn for.
            if asked.bundle.is_none() && trial.panel.stage == Stage::Shadow {
                return Arm::Stable;
            }
            seat(Subject::Bundle, &trial.panel, asked.bundle)
        });
        let (mut bits, mut layers) = (0, Vec::new());
        for (bit, trial) in self.layers.trials().iter().enumerate() {
            let asked = asked.layers.iter().find(|(layer, _)| *layer == trial.layer);
            let of = Subject::Layer(trial.layer);
            if seat(of, &trial.panel, asked.map(|&(_, arm)| arm)) == Arm::Challenger {
                bits |= 1 << bit;
                layers.push(trial.layer);
            }
        }
        let serving = self.under[arm.unwrap_or(Arm::Stable) as usize][bits].clone();
        Chosen { serving, arm, layers, seats }
    }
}

impl Chosen {
    /// Names what answered, where something is tried: the bundle's arm or `configured`, and the
    /// layers with other settings.
    pub fn variant(&self, configured: &str) -> Option<String> {
        variant(configured, self.arm, &self.layers)
    }
}

/// `None` where nothing is tried and nothing differs.
fn variant(configured: &str, arm: Option<Arm>, layers: &[Layer]) -> Option<String> {
    if arm.is_none() && layers.is_empty() {
        return None;
    }
    let name = match arm {
        Some(arm) => arm.name(),
        None => configured,
    };
    Some(layers.iter().fold(name.to_owned(), |name, layer| format!("{name}+{layer}")))
}

/// Whether a name is one that [`Chosen::variant`] gives: there are a dozen.
pub fn is_variant(name: &str, configured: &str) -> bool {
    let layers = Layer::ALL.iter().rev();
    let first = layers.fold(name, |name, layer| {
        name.strip_suffix(layer.name()).and_then(|name| name.strip_suffix('+')).unwrap_or(name)
    });
    first == configured || Arm::ALL.iter().any(|arm| arm.name() == first)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_named_by_what_differs_and_known_again() {
        let layers = [Layer::Rules, Layer::Blending];
        assert_eq!(variant("default", None, &[]), None);
        for (arm, layers, name) in [
            (None, &layers[..1], "default+rules"),
            (Some(Arm::Stable), &layers[..0], "stable"),
            (Some(Arm::Challenger), &layers[..], "challenger+rules+blending"),
        ] {
            assert_eq!(variant("default", arm, layers).as_deref(), Some(name));
            assert!(is_variant(name, "default"), "{name}");
        }
        for name in ["", "rules", "stable+", "stable+x", "stable+rules+rules", "other+rules"] {
            assert!(!is_variant(name, "default"), "{name}");
        }
    }
}
