//! Two versions at once: which of them answers whom, what is counted, and what follows from it.
//!
//! What is decided, and why, is `experiments`'; here it meets the registry and the requests.

use serde::Deserialize;

use crate::experiments::{Settings as Guard, SettingsError};

/// Section `[rollout]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// When a challenger advances and when it is rolled back.
    pub guard: Guard,
}

impl Config {
    /// Refuses what could not be decided with.
    pub fn check(&self) -> Result<(), SettingsError> {
        self.guard.check()
    }
}
