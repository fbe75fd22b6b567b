//! How a rollout begins.

use serde_json::{Map, Value};

use crate::bundle::{
    Challenger, Course, LayerPlan, Manifest, ManifestError, Registry, RegistryError, Rollout,
};
use crate::experiments::{Layer, Settings, Stage, Subject};

/// Why a bundle cannot be tried.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{bundle} is on trial at {stage}: wait for it, or `shortlist rollout rollback`")]
    OnTrial { bundle: String, stage: Stage },
    #[error(
        "{name} is on trial at {stage}: end it with `shortlist rollout rollback --layer {layer}`"
    )]
    LayerOnTrial { layer: Layer, name: String, stage: Stage },
    #[error("{bundle} serves everybody already")]
    Serves { bundle: String },
    #[error("the registry has no whole bundle {bundle}")]
    Bundle { bundle: String, source: ManifestError },
    #[error("the bundle in the place of {bundle} says that it is {found}: publish it anew")]
    Version { bundle: String, found: String },
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// The state after `state` in which `bundle` begins its trial.
///
/// # Errors
/// When something is on trial, or the bundle is not whole, or serves already.
pub fn begin(
    registry: &Registry,
    (number, state): (u64, &Rollout),
    bundle: &str,
    (reason, who): (&str, &str),
    now_ms: i64,
    settings: &Settings,
) -> Result<Rollout, Refused> {
    if let Some(Challenger { bundle, course }) = &state.challenger {
        return Err(Refused::OnTrial { bundle: bundle.clone(), stage: course.stage });
    }
    let bundle = bundle.to_owned();
    if bundle == state.bundle {
        return Err(Refused::Serves { bundle });
    }
    let dir = registry.bundle_dir(&bundle)?;
    let found = match Manifest::open(&dir, false) {
        Ok(manifest) => manifest.bundle_version,
        Err(source) => return Err(Refused::Bundle { bundle, source }),
    };
    if found != bundle {
        return Err(Refused::Version { bundle, found });
    }
    let course = Course::begin(settings.first(), number + 1, now_ms);
    let challenger = Challenger { bundle, course };
    let trial = Rollout { challenger: Some(challenger), ..state.clone() };
    Ok(trial.at(Subject::Bundle, (settings.first(), number + 1), now_ms, reason, who))
}

/// The state after `state` in which other settings of a layer begin their trial, with the first share of
/// users: nobody needs to score them in the shadow.
///
/// # Errors
/// When settings of the layer are on trial already.
pub fn begin_layer(
    (number, state): (u64, &Rollout),
    (layer, change): (Layer, Map<String, Value>),
    (reason, who): (&str, &str),
    now_ms: i64,
    settings: &Settings,
) -> Result<Rollout, Refused> {
    if let Some(plan) = state.layer(layer) {
        let name = state.name(Subject::Layer(layer));
        return Err(Refused::LayerOnTrial { layer, name, stage: plan.course.stage });
    }
    let stage = Stage::Percent(settings.percents.first().copied().unwrap_or(100));
    let course = Course::begin(stage, number + 1, now_ms);
    let mut next = Rollout { reason: reason.to_owned(), who: who.to_owned(), ..state.clone() };
    next.layers.push(LayerPlan { layer, change, course });
    Ok(next)
}
