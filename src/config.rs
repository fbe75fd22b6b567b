//! The configuration: every subsystem owns its section; this file joins and checks them.
//!
//! Layers, later ones win: `config/default.toml` (compiled in, every key explained there), the
//! file given by `--config`, the environment (`SHORTLIST__SERVER__PORT=8081` is `server.port`).

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Toml};
use serde::Deserialize;

use crate::{bundle, events, executor, index, monitor, pipeline, server, store, towers};

/// Everything that can be set, with its default and its reason.
pub const DEFAULTS: &str = include_str!("../config/default.toml");
/// Environment variables that start so are keys; `__` separates sections.
const ENV_PREFIX: &str = "SHORTLIST__";

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub server: server::Config,
    pub monitor: monitor::Config,
    pub executor: executor::Config,
    pub store: store::Config,
    pub events: events::Config,
    pub registry: bundle::Config,
    pub items: pipeline::ItemsConfig,
    pub pipeline: pipeline::Config,
    pub rules: pipeline::RulesConfig,
    pub regions: pipeline::RegionConfig,
    pub rollout: pipeline::RolloutConfig,
    pub drift: pipeline::DriftConfig,
    pub index: index::Config,
    pub towers: towers::Config,
    #[cfg(feature = "etl")]
    pub import: crate::offline::import::Config,
    #[cfg(feature = "etl")]
    pub offline: crate::offline::Config,
    /// Sections of the offline half, which this build leaves out.
    #[cfg(not(feature = "etl"))]
    pub import: figment::value::Value,
    #[cfg(not(feature = "etl"))]
    pub offline: figment::value::Value,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no configuration file {0}")]
    NoFile(PathBuf),
    #[error("configuration: {0}")]
    Value(#[from] Box<figment::Error>),
    #[error(transparent)]
    Server(#[from] server::Error),
    #[error(transparent)]
    Monitor(#[from] monitor::Error),
    #[error(transparent)]
    Executor(#[from] executor::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Events(#[from] events::Error),
    #[error(transparent)]
    Registry(#[from] bundle::RegistryError),
    #[error(transparent)]
    Pipeline(#[from] pipeline::ConfigError),
    #[error(transparent)]
    Rollout(#[from] pipeline::RolloutError),
    #[error(transparent)]
    Drift(#[from] pipeline::drift::ConfigError),
}

impl Config {
    /// Reads the layers.
    pub fn load(file: Option<&Path>) -> Result<Self, Error> {
        let mut figment = Figment::new().merge(Toml::string(DEFAULTS));
        if let Some(path) = file {
            if !path.is_file() {
                return Err(Error::NoFile(path.to_owned()));
            }
            figment = figment.merge(Toml::file_exact(path));
        }
        let env = Env::prefixed(ENV_PREFIX).split("__");
        #[allow(unused_mut, reason = "the offline half names its inputs in full")]
        let mut config: Self = figment.merge(env).extract().map_err(Box::new)?;
        #[cfg(feature = "etl")]
        config.offline.expand_inputs();
        Ok(config)
    }

    /// Checks what types cannot: ranges, relations between keys, names.
    pub fn check(&self) -> Result<(), Error> {
        self.server.check()?;
        self.monitor.check()?;
        self.executor.check()?;
        self.store.check()?;
        self.events.check()?;
        self.registry.check()?;
        self.items.check()?;
        self.pipeline.check()?;
        self.rules.check()?;
        self.regions.check()?;
        self.rollout.check()?;
        self.drift.check()?;
        Ok(self.rollout.check_kinds(&self.server.event_kinds)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_complete_and_a_file_overrides_them() {
        let defaults = Config::load(None).unwrap();
        assert_eq!(defaults.pipeline.candidates, 500);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        std::fs::write(&path, "[pipeline]\ncandidates = 50\n").unwrap();
        let mine = Config::load(Some(&path)).unwrap();
        assert_eq!((mine.pipeline.candidates, mine.server.port), (50, defaults.server.port));
    }

    #[test]
    fn an_unknown_key_and_a_wrong_type_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        let message = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Config::load(Some(&path)).unwrap_err().to_string()
        };
        assert!(message("[pipeline]\ncandidate = 5\n").contains("candidate"));
        assert!(message("[server]\nport = \"eighty\"\n").contains("server.port"));
        assert!(
            Config::load(Some(Path::new("absent.toml")))
                .unwrap_err()
                .to_string()
                .contains("absent.toml")
        );
    }
}
