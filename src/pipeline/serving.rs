//! One version at work: a bundle, and what the settings make of it.
//!
//! Made whole, then published; a request takes one at its entry and keeps it to its end.

use std::sync::Arc;

use super::{Config, RegionConfig, RulesConfig};
use crate::bundle::{self, Bundle};
use crate::features::UserRow;
use crate::store::Fit;

/// Column of the user table that holds a user's own region.
const USER_REGION: &str = "users.region";

/// What the configuration says about requests; the same for every bundle.
#[derive(Clone, Debug)]
pub struct Settings {
    pub pipeline: Config,
    pub rules: RulesConfig,
    pub regions: RegionConfig,
}

/// A bundle as requests read it.
pub struct Serving {
    /// Numbers the bundles of this process from 1: rows and buffers belong to one of them.
    pub number: u64,
    pub bundle: Bundle,
    pub settings: Arc<Settings>,
    /// The schema's context features, in order.
    pub context_names: Vec<String>,
    /// What of a user in the store fits this bundle.
    pub fit: Arc<Fit>,
    /// Position of the users' own region among their columns.
    pub user_region: Option<usize>,
}

impl Serving {
    /// Prepares a bundle under these settings.
    ///
    /// # Errors
    /// When the ranker cannot be evaluated as configured.
    pub fn new(
        number: u64,
        mut bundle: Bundle,
        settings: Arc<Settings>,
    ) -> Result<Self, bundle::Error> {
        bundle.rank_with(settings.pipeline.ranker.engine)?;
        let context_names = bundle.schema.context_names();
        let user_region = bundle.users.columns().iter().position(|c| c == USER_REGION);
        let towers = &bundle.towers;
        let (users, dictionaries) = (&bundle.users, &bundle.dictionaries);
        let fit = Arc::new(Fit::new(towers.version(), towers.dim(), users, dictionaries));
        Ok(Self { number, bundle, settings, context_names, fit, user_region })
    }

    /// Version of the bundle.
    pub fn version(&self) -> &str {
        &self.bundle.manifest.bundle_version
    }

    /// A user's own region by name.
    pub fn own_region(&self, user: UserRow<'_>) -> Option<&str> {
        let code = user.value(self.user_region?);
        let dictionary = self.bundle.dictionaries.get(USER_REGION)?;
        if code.is_nan() { None } else { dictionary.value(code as u32) }
    }
}
