//! A state of the rollout, as `rollout/<n>.json` has it: which bundle serves, what is tried beside it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::experiments::{Layer, Stage, Subject};

/// Which bundle serves, and what is tried beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// The bundle's version.
    pub bundle: String,
    /// Share of users it serves, in percent.
    pub percent: u8,
    /// Why.
    pub reason: String,
    /// Who wrote it: a replica, or a person.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub who: String,
    /// The bundle that is tried beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenger: Option<Challenger>,
    /// The settings that are tried, one of a layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerPlan>,
}

/// A bundle on trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Challenger {
    /// The bundle's version.
    pub bundle: String,
    #[serde(flatten)]
    pub course: Course,
}

/// Settings on trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerPlan {
    pub layer: Layer,
    /// What the layer's section of the configuration says otherwise.
    pub change: Map<String, Value>,
    #[serde(flatten)]
    pub course: Course,
}

/// How far a trial has come, and who is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Course {
    pub stage: Stage,
    /// Decides with a user's id who sees it.
    pub salt: String,
    /// Since when it is at this stage, epoch milliseconds, UTC.
    pub since_ms: i64,
    /// The number of the state in which it began: its name.
    pub first_state: u64,
    /// The number of the state in which this stage began; counts stand under it.
    #[serde(default)]
    pub state: u64,
    /// It does not advance by itself.
    #[serde(default)]
    pub paused: bool,
}

impl Course {
    /// Of a trial that begins with the state `state`. The salt is a new one each time, so that nobody is
    /// always the one on whom things are tried.
    pub fn begin(stage: Stage, state: u64, since_ms: i64) -> Self {
        let salt = uuid::Uuid::now_v7().simple().to_string();
        Self { stage, salt, since_ms, first_state: state, state, paused: false }
    }

    /// The number of the state in which its stage began; `number` is that of the state where this stands.
    pub fn state(&self, number: u64) -> u64 {
        if self.state == 0 { number } else { self.state }
    }
}

impl Rollout {
    /// This bundle for everybody.
    pub fn whole(bundle: &str, reason: &str, who: &str) -> Self {
        let (bundle, reason, who) = (bundle.to_owned(), reason.to_owned(), who.to_owned());
        Self { bundle, percent: 100, reason, who, challenger: None, layers: Vec::new() }
    }

    /// Another bundle for everybody, or the same one without a challenger; layers stay on trial.
    pub fn served_by(&self, bundle: &str, reason: &str, who: &str) -> Self {
        Self { layers: self.layers.clone(), ..Self::whole(bundle, reason, who) }
    }

    /// What is on trial.
    pub fn subjects(&self) -> impl Iterator<Item = Subject> + '_ {
        let bundle = self.challenger.iter().map(|_| Subject::Bundle);
        bundle.chain(self.layers.iter().map(|plan| Subject::Layer(plan.layer)))
    }

    /// How far a trial has come.
    pub fn course(&self, of: Subject) -> Option<&Course> {
        match of {
            Subject::Bundle => self.challenger.as_ref().map(|plan| &plan.course),
            Subject::Layer(layer) => self.layer(layer).map(|plan| &plan.course),
        }
    }

    /// The settings that are tried in a layer.
    pub fn layer(&self, layer: Layer) -> Option<&LayerPlan> {
        self.layers.iter().find(|plan| plan.layer == layer)
    }

    /// What is on trial, in words: the bundle's version, or the layer and what it says otherwise.
    pub fn name(&self, of: Subject) -> String {
        match of {
            Subject::Bundle => self.challenger.as_ref().map_or("", |plan| &plan.bundle).to_owned(),
            Subject::Layer(layer) => {
                let change = self.layer(layer).map(|plan| Value::Object(plan.change.clone()));
                format!("{layer} {}", change.unwrap_or_default())
            }
        }
    }

    /// The same trial at another stage, in the state `number` that this becomes.
    pub fn at(
        &self,
        of: Subject,
        (stage, number): (Stage, u64),
        since_ms: i64,
        reason: &str,
        who: &str,
    ) -> Self {
        let next = Self { reason: reason.to_owned(), who: who.to_owned(), ..self.clone() };
        next.with_course(of, |course| Course { stage, since_ms, state: number, ..course })
    }

    /// The same with another course of one trial.
    pub fn with_course(mut self, of: Subject, change: impl FnOnce(Course) -> Course) -> Self {
        let course = match of {
            Subject::Bundle => self.challenger.as_mut().map(|plan| &mut plan.course),
            Subject::Layer(layer) => {
                let plan = self.layers.iter_mut().find(|plan| plan.layer == layer);
                plan.map(|plan| &mut plan.course)
            }
        };
        if let Some(course) = course {
            *course = change(course.clone());
        }
        let stage = self.challenger.as_ref().map(|plan| plan.course.stage);
        self.percent = 100 - stage.map_or(0, Stage::percent).min(100);
        self
    }

    /// Without this trial: what served before serves everybody.
    pub fn without(&self, of: Subject, reason: &str, who: &str) -> Self {
        let mut next = Self { reason: reason.to_owned(), who: who.to_owned(), ..self.clone() };
        match of {
            Subject::Bundle => next = self.served_by(&self.bundle, reason, who),
            Subject::Layer(layer) => next.layers.retain(|plan| plan.layer != layer),
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial() -> Rollout {
        let bundle = "b".to_owned();
        let challenger = Challenger { bundle, course: Course::begin(Stage::Percent(5), 2, 1) };
        let change = serde_json::from_str(r#"{"max_per_category": 2}"#).unwrap();
        let course = Course::begin(Stage::Percent(50), 3, 2);
        let layers = vec![LayerPlan { layer: Layer::Rules, change, course }];
        Rollout {
            percent: 95,
            challenger: Some(challenger),
            layers,
            ..Rollout::whole("a", "r", "")
        }
    }

    #[test]
    fn each_trial_goes_its_own_way() {
        let (bundle, rules) = (Subject::Bundle, Subject::Layer(Layer::Rules));
        let before = trial();
        assert_eq!(before.subjects().collect::<Vec<_>>(), [bundle, rules]);
        let further = before.at(bundle, (Stage::Percent(25), 7), 9, "fine", "replica");
        let course = further.course(bundle).unwrap();
        assert_eq!((further.percent, course.since_ms, course.state), (75, 9, 7));
        assert_eq!(further.course(rules), before.course(rules));
        assert_eq!(further.without(rules, "x", "").course(bundle), Some(course));
        let promoted = further.served_by("b", "fine", "replica");
        assert_eq!((promoted.percent, promoted.challenger.is_none()), (100, true));
        assert_eq!(promoted.layers, before.layers, "a new bundle does not end the rules' trial");
        let back = before.without(bundle, "x", "");
        assert_eq!((back.bundle.as_str(), back.percent, back.layers.len()), ("a", 100, 1));
        assert_eq!(before.name(rules), r#"rules {"max_per_category":2}"#);
    }

    #[test]
    fn states_survive_json_and_older_ones_are_read() {
        let text = serde_json::to_string(&trial()).unwrap();
        let read: Rollout = serde_json::from_str(&text).unwrap();
        assert_eq!(read.name(Subject::Bundle), "b");
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let old = r#"{"bundle": "a", "percent": 95, "reason": "r", "challenger": {"bundle": "b",
            "stage": {"percent": 5}, "salt": "s", "since_ms": 5, "first_state": 2, "paused": true}}"#;
        let old: Rollout = serde_json::from_str(old).unwrap();
        let course = old.course(Subject::Bundle).unwrap();
        assert_eq!((course.state(4), course.paused), (4, true), "counted where it stands");
    }
}
