//! One version at work: a bundle, and what the settings make of it.
//!
//! Made whole, then published; a request takes one at its entry and keeps it to its end.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::s2_candidates::{Lists, Unusable};
use super::{Config, RegionConfig, RulesConfig};
use crate::bundle::{self, Bundle};
use crate::features::UserRow;
use crate::store::Fit;

/// Column of the user table that holds a user's own region.
const USER_REGION: &str = "users.region";

/// What the configuration says about requests; the same for every bundle.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub pipeline: Config,
    pub rules: RulesConfig,
    pub regions: RegionConfig,
}

/// A bundle as requests read it.
pub struct Serving {
    /// Numbers the bundles of this process from 1: rows and buffers belong to one of them.
    pub number: u64,
    /// Shared by the same version under other settings.
    pub bundle: Arc<Bundle>,
    pub settings: Arc<Settings>,
    /// The settings as the request log has them: JSON.
    pub settings_text: Arc<str>,
    /// What was applied of the items' change log when `lists` were made.
    pub made_at: u64,
    /// The schema's context features, in order.
    pub context_names: Vec<String>,
    /// What of a user in the store fits this bundle.
    pub fit: Arc<Fit>,
    /// Position of the users' own region among their columns.
    pub user_region: Option<usize>,
    /// What candidates come from beside retrieval.
    pub lists: Arc<Lists>,
    pub remarks: Vec<Remark>,
}

/// What the configuration asks for and this bundle cannot give.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Remark {
    #[error("pipeline.sources.{of} is off: the bundle has no item column `{column}`")]
    NoColumn { of: &'static str, column: String },
    #[error(
        "without retrieval, items are served as the table has them: the bundle has no item column \
         `{column}` (pipeline.sources.popular.column)"
    )]
    NoPopularity { column: String },
    #[error("pipeline.sources.repeats brings the history alone: {why}")]
    NoFavourites { why: Unusable },
    #[error("rules.blocked_labels is set, but no item of the bundle has a label")]
    NoLabels,
    #[error(
        "pipeline.sources has quotas of sources that the ranker has not learnt from: it reads \
         `{feature}`, which their candidates lack"
    )]
    Unlearnt { feature: String },
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
        let bundle = Arc::new(bundle);
        let user_region = bundle.users.columns().iter().position(|c| c == USER_REGION);
        let made_at = bundle.applied();
        let (lists, remarks) = lists(&bundle, &settings);
        Ok(Self {
            number,
            made_at,
            context_names: bundle.schema.context_names(),
            fit: Arc::new(bundle.fit()),
            user_region,
            lists: Arc::new(lists),
            remarks,
            settings_text: text(&settings),
            bundle,
            settings,
        })
    }

    /// The same bundle under other settings: its buffers fit both.
    pub fn under(&self, settings: Arc<Settings>) -> Self {
        let same = settings.pipeline.sources == self.settings.pipeline.sources;
        let made_at = if same { self.made_at } else { self.bundle.applied() };
        let (lists, remarks) = if same {
            (self.lists.clone(), self.remarks.clone())
        } else {
            let (lists, remarks) = lists(&self.bundle, &settings);
            (Arc::new(lists), remarks)
        };
        Self {
            number: self.number,
            bundle: self.bundle.clone(),
            settings_text: text(&settings),
            settings,
            made_at,
            context_names: self.context_names.clone(),
            fit: self.fit.clone(),
            user_region: self.user_region,
            lists,
            remarks,
        }
    }

    /// Version of the bundle.
    pub fn version(&self) -> &str {
        &self.bundle.manifest.bundle_version
    }

    /// What health says of the bundle: its version, and what it lacks.
    pub fn describe(&self) -> String {
        let remarks = self.remarks.iter().map(|remark| format!("; {remark}"));
        std::iter::once(self.version().to_owned()).chain(remarks).collect()
    }

    /// A user's own region by name.
    pub fn own_region(&self, user: UserRow<'_>) -> Option<&str> {
        let code = user.value(self.user_region?);
        let dictionary = self.bundle.dictionaries.get(USER_REGION)?;
        if code.is_nan() { None } else { dictionary.value(code as u32) }
    }
}

/// What candidates come from beside retrieval, and what the bundle lacks for it.
fn lists(bundle: &Bundle, settings: &Settings) -> (Lists, Vec<Remark>) {
    let mut remarks = Vec::new();
    let (rules, items) = (&settings.rules, &bundle.items);
    let blocked = items.view().label_bits(&rules.blocked_labels);
    if !rules.blocked_labels.is_empty() && items.label_names().is_empty() {
        remarks.push(Remark::NoLabels);
    }
    let lists = Lists::new(&settings.pipeline, bundle, blocked, &mut remarks);
    let unlearnt = bundle.schema.features().iter().find(|f| f.reads_retrieval());
    if let Some(feature) = unlearnt.filter(|_| lists.any_beside(&bundle.manifest.ranker_sources)) {
        remarks.push(Remark::Unlearnt { feature: feature.name.clone() });
    }
    remarks.iter().for_each(|remark| tracing::warn!("{remark}"));
    (lists, remarks)
}

fn text(settings: &Settings) -> Arc<str> {
    serde_json::to_string(settings).expect("names and numbers").into()
}
