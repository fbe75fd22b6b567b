//! How a rollout begins.

use crate::bundle::{Challenger, Manifest, ManifestError, Registry, RegistryError, Rollout};
use crate::experiments::{Settings, Stage};

/// Why a bundle cannot be tried.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{bundle} is on trial at {stage}: wait for it, or `shortlist rollout rollback`")]
    OnTrial { bundle: String, stage: Stage },
    #[error("{bundle} serves everybody already")]
    Serves { bundle: String },
    #[error("the registry has no whole bundle {bundle}")]
    Bundle { bundle: String, source: ManifestError },
    #[error("the bundle in the place of {bundle} says that it is {found}: publish it anew")]
    Version { bundle: String, found: String },
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// The state after `state` in which `bundle` begins its trial. `salt` is a new one each time, so
/// that nobody is always the one on whom things are tried.
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
    if let Some(Challenger { bundle, stage, .. }) = &state.challenger {
        return Err(Refused::OnTrial { bundle: bundle.clone(), stage: *stage });
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
    let challenger = Challenger {
        bundle,
        stage: settings.first(),
        salt: uuid::Uuid::now_v7().simple().to_string(),
        since_ms: now_ms,
        first_state: number + 1,
        paused: false,
    };
    let trial = Rollout { challenger: Some(challenger), ..state.clone() };
    Ok(trial.at(settings.first(), now_ms, reason, who))
}
