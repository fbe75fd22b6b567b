//! Settings on trial: the same bundle, its rules or its sources otherwise.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Panel;
use crate::bundle::LayerPlan;
use crate::experiments::{Layer, Subject};
use crate::pipeline::ConfigError;
use crate::pipeline::serving::{Serving, Settings};

/// What must never differ between two users: what is not safe is safe for nobody.
const SAFETY: &str = "blocked_labels";

/// Why settings cannot be tried.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("nothing of `{section}` would differ: give --set KEY=VALUE, a key of that section")]
    Same { section: &'static str },
    #[error("`{section}`: {source}")]
    Value { section: &'static str, source: serde_json::Error },
    #[error(
        "rules.{SAFETY} cannot be tried on a part of the users: change it in the configuration"
    )]
    Safety,
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// What is tried in one layer.
pub struct LayerTrial {
    pub layer: Layer,
    pub panel: Panel,
}

/// All that is tried in layers, and the settings that follow from it.
pub struct Layers {
    trials: Vec<LayerTrial>,
    /// By bits: bit `n` is set where the settings of `trials[n]` apply.
    settings: Vec<Arc<Settings>>,
}

impl Layers {
    /// Nothing is tried over these settings.
    pub fn none(configured: Arc<Settings>) -> Self {
        Self { trials: Vec::new(), settings: vec![configured] }
    }

    /// What the registry's state `number` says; with the counts so far, where `before` is the same trial.
    ///
    /// # Errors
    /// With the layer whose settings cannot be used.
    pub fn new(
        number: u64,
        plans: &[LayerPlan],
        before: &Layers,
    ) -> Result<Self, (Layer, ChangeError)> {
        let mut next = Self::none(before.settings[0].clone());
        for plan in plans {
            let changed = |of: &Arc<Settings>| of.with(plan.layer, &plan.change).map(Arc::new);
            let changed: Result<Vec<_>, _> = next.settings.iter().map(changed).collect();
            next.settings.extend(changed.map_err(|error| (plan.layer, error))?);
            let known = before.trials.iter().find(|trial| trial.layer == plan.layer);
            let panel = Panel::new(number, &plan.course, known.map(|trial| &trial.panel));
            next.trials.push(LayerTrial { layer: plan.layer, panel });
        }
        Ok(next)
    }

    /// What is tried.
    pub fn trials(&self) -> &[LayerTrial] {
        &self.trials
    }

    /// The trial of a subject that is a layer's.
    pub fn panel(&self, of: Subject) -> Option<&Panel> {
        let trial = self.trials.iter().find(|trial| Subject::Layer(trial.layer) == of);
        trial.map(|trial| &trial.panel)
    }

    /// A version under each of the settings, by bits.
    pub(super) fn over(&self, serving: &Arc<Serving>) -> Vec<Arc<Serving>> {
        let under = |settings: &Arc<Settings>| Arc::new(serving.under(settings.clone()));
        let changed = self.settings.iter().skip(1).map(under);
        std::iter::once(serving.clone()).chain(changed).collect()
    }
}

impl Settings {
    /// These settings with another say in one layer.
    ///
    /// # Errors
    /// When a key is unknown, a value cannot be used, or safety would differ.
    pub fn with(&self, layer: Layer, change: &Map<String, Value>) -> Result<Self, ChangeError> {
        let section = layer.section();
        let mut next = self.clone();
        let same = match layer {
            Layer::Rules => {
                if change.contains_key(SAFETY) {
                    return Err(ChangeError::Safety);
                }
                next.rules = over(&self.rules, change, section)?;
                next.rules.check()?;
                text(&next.rules) == text(&self.rules)
            }
            Layer::Blending => {
                next.pipeline.sources = over(&self.pipeline.sources, change, section)?;
                next.pipeline.check()?;
                text(&next.pipeline.sources) == text(&self.pipeline.sources)
            }
        };
        if same { Err(ChangeError::Same { section }) } else { Ok(next) }
    }
}

fn over<T: Serialize + DeserializeOwned>(
    of: &T,
    change: &Map<String, Value>,
    section: &'static str,
) -> Result<T, ChangeError> {
    let mut value = text(of);
    if let Value::Object(value) = &mut value {
        merge(value, change.clone());
    }
    serde_json::from_value(value).map_err(|source| ChangeError::Value { section, source })
}

fn text(of: &impl Serialize) -> Value {
    serde_json::to_value(of).expect("names and numbers")
}

/// Puts the keys of `change` over those of `of`; objects are merged.
pub fn merge(of: &mut Map<String, Value>, change: Map<String, Value>) {
    for (key, new) in change {
        match (of.get_mut(&key), new) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (_, new) => _ = of.insert(key, new),
        }
    }
}
