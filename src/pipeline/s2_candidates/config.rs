//! What the configuration says of the sources.

use serde::{Deserialize, Serialize};

use crate::monitor::Source;
use crate::pipeline::ConfigError;

/// Section `[pipeline.sources]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Most items of a list of a region.
    pub list_rows_max: usize,
    pub repeats: RepeatsConfig,
    pub similar: QuotaConfig,
    pub trending: TrendingConfig,
    pub popular: PopularConfig,
    pub fresh: FreshConfig,
}

/// Section `[pipeline.sources.repeats]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RepeatsConfig {
    /// Most candidates of the source; 0 is off.
    pub quota: usize,
    /// User map of items with a number each, the highest first; empty is the history alone.
    pub map: String,
}

/// Section `[pipeline.sources.similar]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct QuotaConfig {
    /// Most candidates of the source; 0 is off.
    pub quota: usize,
}

/// Section `[pipeline.sources.trending]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TrendingConfig {
    pub quota: usize,
    /// Item column to order by.
    pub column: String,
    /// Items below `floor` in this column do not count.
    pub floor_column: String,
    pub floor: f32,
}

/// Section `[pipeline.sources.popular]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PopularConfig {
    pub quota: usize,
    /// Item column to order by.
    pub column: String,
}

/// Section `[pipeline.sources.fresh]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FreshConfig {
    pub quota: usize,
    /// Item column with the impressions.
    pub column: String,
    /// Most impressions of an item that still has to prove itself.
    pub impressions_max: f32,
    /// Oldest age at the bundle's moment, days.
    pub age_max_days: f64,
}

impl Config {
    /// Refuses quotas that leave nothing for retrieval, and lists shorter than their quota.
    pub fn check(&self, candidates: usize) -> Result<(), ConfigError> {
        let quotas = self.quotas();
        let total: usize = quotas.iter().sum();
        if total >= candidates {
            return Err(ConfigError::Quotas { total, candidates });
        }
        let listed = [Source::Trending, Source::Popular, Source::Fresh].map(|s| quotas[s as usize]);
        let longest = listed.into_iter().fold(1, usize::max);
        if self.list_rows_max < longest {
            let (key, value) = ("pipeline.sources.list_rows_max", self.list_rows_max as f64);
            let rule = "at least 1 and the largest quota of trending, popular and fresh";
            return Err(ConfigError::Range { key, value, rule });
        }
        Ok(())
    }

    /// Quotas by [`Source`]; retrieval has none, it fills what is left.
    pub fn quotas(&self) -> [usize; Source::ALL.len()] {
        let mut quotas = [0; Source::ALL.len()];
        for (source, quota) in [
            (Source::Repeats, self.repeats.quota),
            (Source::Similar, self.similar.quota),
            (Source::Trending, self.trending.quota),
            (Source::Popular, self.popular.quota),
            (Source::Fresh, self.fresh.quota),
        ] {
            quotas[source as usize] = quota;
        }
        quotas
    }
}
