//! Rows as they were served beside the rows that this code makes of the same requests from the event log
//! and the day's tables: where they differ, the ranker sees other numbers than it learnt from.
//!
//! The request log says who asked when, in which context, and what stood there; everything else
//! is taken from what was collected. What cannot be recomputed is counted, not guessed.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::as_of::{AsOf, Layout};
use super::examples::{Group, columns_of};
use super::load::Loaded;
use crate::bundle::Bundle;
use crate::events::{RequestRecord, Served};
use crate::features::{Candidate, Plan};
use crate::types::ItemIdx;

/// Values that differ by less than this share of the larger are the same: files may round.
const TOLERANCE: f32 = 1e-5;

/// What was compared, and how it differed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Skew {
    pub requests: usize,
    pub rows: usize,
    /// Requests that could not be recomputed, by cause.
    pub skipped: BTreeMap<&'static str, usize>,
    /// In the schema's order.
    pub features: Vec<FeatureSkew>,
}

/// One feature.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FeatureSkew {
    pub name: String,
    /// Rows in which it differs.
    pub differ: usize,
    /// Means over the rows in which both have a value.
    pub served_mean: f64,
    pub offline_mean: f64,
    /// The first difference, in words.
    pub example: Option<String>,
    #[serde(skip)]
    both: usize,
}

/// The day's tables as one bundle read them.
pub struct Recomputed<'a> {
    loaded: &'a Loaded,
    bundle: &'a Bundle,
    as_of: AsOf,
    /// Without the last event's time there is nothing to recompute histories from.
    collected_until_ms: i64,
}

impl<'a> Recomputed<'a> {
    /// From the tables of the midnight of the bundle in `dir`, with the bundle's codes.
    ///
    /// # Errors
    /// When the tables cannot be read.
    pub fn new(
        loaded: &'a Loaded,
        bundle: &'a Bundle,
        mut layout: Layout,
        dir: &std::path::Path,
    ) -> Result<Self> {
        layout.dictionaries = bundle.dictionaries.clone();
        let as_of = layout.read(dir, bundle.manifest.as_of_ms, loaded)?;
        let timed = loaded.data.events.iter().filter(|event| event.timed);
        let collected_until_ms = timed.map(|event| event.time_ms).max().unwrap_or(i64::MIN);
        Ok(Self { loaded, bundle, as_of, collected_until_ms })
    }

    /// Compares the requests that this bundle answered.
    ///
    /// # Errors
    /// When a row of the log does not have the bundle's columns.
    pub fn compare(&self, requests: &[&RequestRecord], skew: &mut Skew) -> Result<()> {
        let schema = &self.bundle.schema;
        if skew.features.is_empty() {
            let named = |f: &crate::features::Feature| FeatureSkew {
                name: f.name.clone(),
                ..FeatureSkew::default()
            };
            skew.features = schema.features().iter().map(named).collect();
        }
        let same = skew.features.len() == schema.len()
            && skew.features.iter().zip(schema.features()).all(|(a, b)| a.name == b.name);
        ensure!(same, "two bundles of the log have different schemas: compare one at a time");
        let plan = Plan::new(schema, &self.as_of.users, &self.as_of.items)?;
        for &request in requests {
            let Some(served) = &request.served else { continue };
            skew.requests += 1;
            match self.group(request, served) {
                Ok((group, rows)) => self.add(&plan, request, served, &group, &rows, skew),
                Err(cause) => *skew.skipped.entry(cause).or_default() += 1,
            }
        }
        Ok(())
    }

    /// The request as training would have it, and the places of the answer that its rows are of.
    fn group(
        &self,
        request: &RequestRecord,
        served: &Served,
    ) -> Result<(Group, Vec<usize>), &'static str> {
        if served.features.len() != request.item_ids.len() * self.bundle.schema.len() {
            return Err("not ranked");
        }
        let newest = served.history.iter().filter_map(|(_, time_ms)| *time_ms).max();
        if newest.is_some_and(|time_ms| time_ms > self.collected_until_ms) {
            return Err("its user's last events are not collected yet");
        }
        let user = self.loaded.user_ids.find(&request.user_id).ok_or("unknown user")?;
        let (mut candidates, mut rows) = (Vec::new(), Vec::new());
        for (at, id) in request.item_ids.iter().enumerate() {
            let Some(row) = self.loaded.item_ids.find(id) else { continue };
            let (similarity, retrieval_rank) =
                (served.similarities[at], served.retrieval_ranks[at]);
            let retrieval_score = if retrieval_rank.is_nan() { f32::NAN } else { similarity };
            let item = ItemIdx(row);
            candidates.push(Candidate { item, similarity, retrieval_rank, retrieval_score });
            rows.push(at);
        }
        let code = |name: &String| {
            let value = match name.as_str() {
                "context.device" => request.device.as_deref(),
                "context.region" => served.region.as_deref(),
                _ => {
                    let key = name.trim_start_matches("context.");
                    let found = served.context.iter().find(|(k, _)| k == key);
                    found.map(|(_, value)| value.as_str())
                }
            };
            self.bundle.dictionaries.feature(name, value)
        };
        let context = self.bundle.schema.context_names().iter().map(code).collect();
        let (labels, weights) = (vec![0.0; rows.len()], Vec::new());
        let time_ms = request.time_ms;
        Ok((Group { user, time_ms, context, candidates, labels, weights, missed: 0 }, rows))
    }

    fn add(
        &self,
        plan: &Plan,
        request: &RequestRecord,
        served: &Served,
        group: &Group,
        rows: &[usize],
        skew: &mut Skew,
    ) {
        let (constants, columns) = columns_of(self.loaded, plan, &self.as_of, group);
        let (width, n) = (self.bundle.schema.len(), rows.len());
        for (row, &at) in rows.iter().enumerate() {
            let of_columns = (0..width - constants.len()).map(|column| columns[column * n + row]);
            let recomputed = constants.iter().copied().chain(of_columns);
            let was = &served.features[at * width..][..width];
            for ((feature, &was), now) in skew.features.iter_mut().zip(was).zip(recomputed) {
                feature
                    .add(was, now, || format!("{} {}", request.request_id, request.item_ids[at]));
            }
        }
        skew.rows += n;
    }
}

impl FeatureSkew {
    fn add(&mut self, served: f32, offline: f32, place: impl Fn() -> String) {
        if !served.is_nan() && !offline.is_nan() {
            let (before, n) = (self.both as f64, (self.both + 1) as f64);
            self.served_mean = (self.served_mean * before + f64::from(served)) / n;
            self.offline_mean = (self.offline_mean * before + f64::from(offline)) / n;
            self.both += 1;
        }
        let larger = served.abs().max(offline.abs());
        let same = served.to_bits() == offline.to_bits()
            || served.is_nan() && offline.is_nan()
            || (served - offline).abs() <= TOLERANCE * larger;
        if !same {
            self.differ += 1;
            let example = || format!("{}: {served} served, {offline} recomputed", place());
            self.example.get_or_insert_with(example);
        }
    }
}

impl Skew {
    /// Features that differ in more than this share of the rows, the worst first.
    pub fn skewed(&self, share: f64) -> Vec<&FeatureSkew> {
        let over = |f: &&FeatureSkew| f.differ as f64 > share * self.rows as f64;
        let mut found: Vec<&FeatureSkew> = self.features.iter().filter(over).collect();
        found.sort_by_key(|feature| std::cmp::Reverse(feature.differ));
        found
    }

    /// For a person.
    pub fn lines(&self, share: f64) -> Vec<String> {
        let mut lines = vec![format!(
            "{} requests, {} rows of {} features compared",
            self.requests,
            self.rows,
            self.features.len()
        )];
        let skipped = self.skipped.iter();
        lines.extend(skipped.map(|(why, count)| format!("  {count} requests left out: {why}")));
        let skewed = self.skewed(share);
        if skewed.is_empty() {
            let percent = 100.0 * share;
            lines.push(format!("no feature differs in more than {percent} % of the rows"));
        }
        for feature in skewed {
            lines.push(format!(
                "  {:<40} differs in {:>5.1} % of the rows; mean {:.5} served, {:.5} recomputed",
                feature.name,
                100.0 * feature.differ as f64 / self.rows.max(1) as f64,
                feature.served_mean,
                feature.offline_mean,
            ));
            lines.extend(feature.example.iter().map(|example| format!("      {example}")));
        }
        lines
    }
}
