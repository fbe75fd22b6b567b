//! Step `evaluate`: the towers and the ranker on days that taught neither.
//!
//! Towers: recall over all items against popularity, recent popularity, the user's own repeats and
//! the serving bundle's towers, for all items and for items new to the user. Ranker (`ranking`): AUC,
//! GAUC by user, NDCG@10, log loss and calibration over the candidates of later requests, against
//! retrieval's order, popularity and the serving bundle's ranker (`rival`), as a whole and by slice.
//! The whole path (`served`): what users would have been shown, by the new bundle and by the serving one.
//! Every figure has a 95 % interval from resampled users or requests.

mod ranking;
pub mod reliability;
pub mod rival;
pub mod served;
mod slices;

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::as_of::AsOf;
use super::audit::Leak;
use super::examples::{Models, Source};
use super::load::Loaded;
use super::metrics::{self, Bootstrap, Estimate};
use super::recall::{self, Scope, TowerQuery};
use super::{aggregates, progress};
use crate::bundle::TowerUser;
use crate::forest::Forest;
use crate::types::DAY_MS;
pub use ranking::{Slice, Weight};
use reliability::Reliability;
use rival::Rival;

/// Section `[offline.evaluate]`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Recall is given at these.
    pub recall_at: Vec<usize>,
    /// At most so many users measure recall.
    pub users_max: usize,
    /// At most so many of them are asked what they would have been shown; 0 asks nobody.
    pub served_users_max: usize,
    /// Days of the test window whose requests measure the ranker; towers are measured on all.
    pub ranker_days: u32,
    /// At most so many requests a day measure the ranker where there are no impressions.
    pub requests_per_day_max: usize,
    /// Length of the recent popularity baseline.
    pub recent_days: i64,
    pub bootstrap_samples: usize,
    /// Whether the judged days are made once more without what came later, to find leaks.
    pub audit: bool,
    pub seed: u64,
}

/// What is evaluated.
pub struct Subject<'a> {
    pub models: Models<'a>,
    /// `items x dim`.
    pub vectors: &'a [f32],
    pub ranker: &'a Forest,
}

/// `report.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The days that were judged, epoch milliseconds.
    pub window_ms: [i64; 2],
    /// What the new models were compared with; none when nothing serves yet.
    pub baseline: Option<Baseline>,
    /// What makes the models unusable; then figures may be missing.
    pub faults: Vec<String>,
    /// Features that read what came after their row.
    pub leaks: Vec<Leak>,
    /// AUC of single features, highest first.
    pub alone: Vec<(String, f64)>,
    /// By system, scope and k: `towers/new-to-user/recall@500`.
    pub towers: BTreeMap<String, Estimate>,
    /// By system and metric: `ranker/ndcg@10`.
    pub ranker: BTreeMap<String, Estimate>,
    /// What the whole path shows, by system: `served/recall@20`, `previous/coverage`.
    pub served: BTreeMap<String, Estimate>,
    /// Differences on the same users or requests: `ranker - retrieval/ndcg@10`.
    pub differences: BTreeMap<String, Estimate>,
    /// What the ranker promises beside what came.
    pub reliability: Reliability,
    /// Parts of the rows by themselves.
    pub slices: Vec<Slice>,
    /// What the ranker makes of its features, most first.
    pub weights: Vec<Weight>,
    pub users: usize,
    pub requests: usize,
    /// Rows behind the ranker's figures.
    pub rows: usize,
}

/// The bundle that served when the report was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    pub version: String,
    /// The moment whose knowledge it holds.
    pub as_of_ms: i64,
    /// The end of the events that taught it.
    pub trained_until_ms: i64,
    /// Why it could not be asked, when it could not.
    pub silent: Option<String>,
}

/// Measures everything into `report`.
pub fn run(
    source: &Source,
    subject: &Subject,
    previous: Option<&Rival>,
    test: &Range<i64>,
    config: &Config,
    report: &mut Report,
) -> Result<()> {
    let as_of = source.day(test.start)?;
    measure_towers(source, &as_of, subject, previous, test, config, report)?;
    drop(as_of);
    ranking::measure(source, subject, previous, test, config, report)
}

pub(super) fn bootstrap(config: &Config) -> Bootstrap {
    Bootstrap { resamples: config.bootstrap_samples, seed: config.seed }
}

fn measure_towers(
    source: &Source,
    as_of: &AsOf,
    subject: &Subject,
    previous: Option<&Rival>,
    test: &Range<i64>,
    config: &Config,
    report: &mut Report,
) -> Result<()> {
    let loaded: &Loaded = source.loaded;
    let window = [test.start, test.end];
    let users = recall::users_with(loaded, window, config.users_max);
    report.users = users.len();
    let ks = &config.recall_at;
    let popular = recall::popularity(loaded, [i64::MIN, test.start]);
    let recent_ms = test.start - config.recent_days * DAY_MS;
    let recent = recall::popularity(loaded, [recent_ms, test.start]);
    let models = &subject.models;
    let tower_user = TowerUser::new(models.tower_inputs, as_of.users.columns())?;
    let mut query = TowerQuery::new(loaded, as_of, models.towers, &tower_user);
    let tables = aggregates::day_dir(source.features, test.start);
    let previous = previous.map(|rival| rival.day(&tables, test.start, loaded)).transpose()?;
    let mut theirs = previous.as_ref().map(|day| (day, day.query(loaded)));
    let bar = progress::bar("recall", if previous.is_some() { 15 } else { 12 });
    let scopes =
        [(Scope::All, "all"), (Scope::NewToUser, "new-to-user"), (Scope::Unseen, "unseen")];
    for (scope, scope_name) in scopes {
        let measure = |score: &mut dyn FnMut(u32, &mut [f32])| {
            let by_user = recall::measure(loaded, window, &users, scope, ks, score);
            bar.inc(1);
            by_user
        };
        let recent_name = format!("popularity-{}d", config.recent_days);
        let mut systems: Vec<(&str, Vec<Vec<Option<f64>>>)> = vec![
            ("towers", measure(&mut |user, out| query.scores(user, subject.vectors, out))),
            ("popularity", measure(&mut |_, out| out.copy_from_slice(&popular))),
            (&recent_name, measure(&mut |_, out| out.copy_from_slice(&recent))),
            (
                "repeats",
                measure(&mut |user, out| {
                    recall::repeats(loaded, user, test.start, out);
                }),
            ),
        ];
        if let Some((day, query)) = &mut theirs {
            let vectors = day.vectors();
            systems.push(("previous", measure(&mut |user, out| query.scores(user, vectors, out))));
        }
        for (at, k) in ks.iter().enumerate() {
            let column = |by_user: &[Vec<Option<f64>>]| {
                metrics::by_group(by_user.iter().map(|user| user[at]))
            };
            let towers = column(&systems[0].1);
            for (name, by_user) in &systems {
                let values = column(by_user);
                let key = format!("{name}/{scope_name}/recall@{k}");
                if let Some(estimate) = metrics::estimate(&values, bootstrap(config)) {
                    report.towers.insert(key.clone(), estimate);
                }
                if *name != "towers" {
                    let gain = metrics::paired_difference(&towers, &values, bootstrap(config));
                    if let Some(gain) = gain {
                        report.differences.insert(format!("towers - {key}"), gain);
                    }
                }
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

impl Report {
    /// The report as a table for a person; the differences stand in the file.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} users, {} requests, {} rows; mean [95 % interval]",
            self.users, self.requests, self.rows
        )];
        for (title, table) in
            [("recall", &self.towers), ("ranking", &self.ranker), ("shown", &self.served)]
        {
            let mut by_system: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for (name, Estimate { mean, lo, hi }) in table {
                let (system, metric) = name.rsplit_once('/').unwrap_or((name, ""));
                let cell = format!("{metric} {mean:.4} [{lo:.4}, {hi:.4}]");
                by_system.entry(system).or_default().push(format!("{cell:<36} "));
            }
            lines.push(format!("-- {title}"));
            lines.extend(by_system.iter().map(|(name, cells)| {
                format!("{name:<28} {}", cells.concat()).trim_end().to_owned()
            }));
        }
        let Reliability { error, ratio, .. } = &self.reliability;
        if let (Some(error), Some(ratio)) = (error, ratio) {
            let (e, r) = (error.mean, ratio.mean);
            lines.push(format!("calibration error {e:.4}, predicted over observed {r:.3}"));
        }
        lines.extend(self.faults.iter().map(|fault| format!("FAULT: {fault}")));
        lines.extend(self.leaks.iter().map(|leak| {
            let Leak { feature, day, rows, compared } = leak;
            format!("LEAK: {feature} as of {day}: {rows} of {compared} rows know what came later")
        }));
        lines
    }
}
