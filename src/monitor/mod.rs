//! Metrics and health: what the process tells of itself.
//!
//! Metrics go to the global `metrics` recorder, which [`install`] sets once; before that, and in
//! programs that never install it, every function here does nothing. Names begin with
//! `shortlist_`, every label is one of a closed set (`labels`), and counting is an atomic add.
//!
//! Imported by everything above tier 1; imports nothing of tier 2.

use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;

mod handles;
mod health;
mod labels;

pub use handles::*;
pub use health::{Component, Health, Phase};
pub use labels::{
    Cache, Dropped, Fallback, Hit, Log, Lost, Refusal, Route, STATUSES, Source, SourceLoss, Stage,
    Tried,
};

/// Section `[monitor]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Upper bounds of the latency histograms, seconds, ascending.
    pub latency_buckets_s: Vec<f64>,
    /// How often histograms are folded, so that memory does not grow between two scrapes.
    pub upkeep_interval_ms: u64,
}

/// Why metrics cannot be collected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "monitor.latency_buckets_s = {found:?}: give at least one bound, all positive and ascending"
    )]
    Buckets { found: Vec<f64> },
    #[error("monitor.upkeep_interval_ms = 0: give at least 1")]
    Upkeep,
    #[error("a metrics recorder is already installed in this process")]
    Installed,
}

impl Config {
    /// Refuses what [`install`] could not use.
    pub fn check(&self) -> Result<(), Error> {
        let bounds = &self.latency_buckets_s;
        let ascending = bounds.windows(2).all(|pair| pair[0] < pair[1]);
        if bounds.is_empty() || !ascending || !bounds.iter().all(|b| *b > 0.0 && b.is_finite()) {
            return Err(Error::Buckets { found: bounds.clone() });
        }
        if self.upkeep_interval_ms == 0 {
            return Err(Error::Upkeep);
        }
        Ok(())
    }
}

/// Renders what has been counted.
#[derive(Clone)]
pub struct Exporter {
    handle: PrometheusHandle,
    upkeep_interval: Duration,
}

impl Exporter {
    /// The Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds what the histograms have collected; to be called every [`Exporter::upkeep_interval`].
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Time between two calls of [`Exporter::upkeep`].
    pub fn upkeep_interval(&self) -> Duration {
        self.upkeep_interval
    }
}

static HANDLES: OnceLock<Handles> = OnceLock::new();

/// Makes this process collect metrics. Once per process.
pub fn install(config: &Config) -> Result<Exporter, Error> {
    config.check()?;
    let recorder = builder(&config.latency_buckets_s)?.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| Error::Installed)?;
    HANDLES.set(Handles::register()).map_err(|_| Error::Installed)?;
    Ok(Exporter { handle, upkeep_interval: Duration::from_millis(config.upkeep_interval_ms) })
}

/// One HTTP request answered.
pub fn request(route: Route, status: u16, took: Duration) {
    if let Some(handles) = HANDLES.get() {
        handles.requests(route, status).increment(1);
        handles.request_seconds(route).record(took);
    }
}

/// One stage of one request done.
pub fn stage_seconds(stage: Stage, took: Duration) {
    if let Some(handles) = HANDLES.get() {
        handles.stage(stage).record(took);
    }
}

/// One fallback taken.
pub fn fallback(kind: Fallback) {
    if let Some(handles) = HANDLES.get() {
        handles.fallback(kind).increment(1);
    }
}

/// One cache lookup done.
pub fn cache(cache: Cache, hit: Hit) {
    if let Some(handles) = HANDLES.get() {
        handles.cache(cache, hit).increment(1);
    }
}

/// `count` write-backs to Redis given up.
pub fn cache_writes_dropped(count: usize) {
    if let Some(handles) = HANDLES.get() {
        handles.cache_writes_dropped.increment(count as u64);
    }
}

/// How many candidates retrieval returned.
pub fn candidates(count: usize) {
    if let Some(handles) = HANDLES.get() {
        handles.candidates.record(count as f64);
    }
}

/// The share of its work that a request does now, at most 1.
pub fn quality(factor: f32) {
    if let Some(handles) = HANDLES.get() {
        handles.quality.set(f64::from(factor));
    }
}

/// One search checked against exact search; `mean` is over the last ones that were.
pub fn index_recall(mean: f64) {
    if let Some(handles) = HANDLES.get() {
        handles.index_recall.set(mean);
        handles.index_recall_checked.increment(1);
    }
}

/// The share of served feature values that training's code fills otherwise, over the last answers checked.
pub fn feature_skew(share: f64) {
    if let Some(handles) = HANDLES.get() {
        handles.feature_skew.set(share);
    }
}

/// How far a feature of the bundle's schema is from training. Not for requests: it looks the gauge up.
pub fn feature_psi(feature: &str, psi: f64) {
    if HANDLES.get().is_some() {
        metrics::gauge!(FEATURE_PSI, "feature" => feature.to_owned()).set(psi);
    }
}

/// How far score and categories shown are from training, and how many requests say so.
pub fn drift(score: f64, categories: f64, requests: u64) {
    if let Some(handles) = HANDLES.get() {
        handles.score_psi.set(score);
        handles.category_psi.set(categories);
        handles.drift_requests.set(requests as f64);
    }
}

/// How far the change log of items is applied, the items that differ from the build, and the live
/// rows of the index.
pub fn items_changed(sequence: u64, changed: usize, live_rows: usize) {
    if let Some(handles) = HANDLES.get() {
        handles.items_sequence.set(sequence as f64);
        handles.items_changed.set(changed as f64);
        handles.live_rows.set(live_rows as f64);
    }
}

/// How many of a request's candidates a source brought.
pub fn candidates_by_source(source: Source, count: usize) {
    if let Some(handles) = HANDLES.get() {
        handles.by_source(source).increment(count as u64);
    }
}

/// A request went without a source.
pub fn source_lost(source: Source, why: SourceLoss) {
    if let Some(handles) = HANDLES.get() {
        handles.source_lost(source, why).increment(1);
    }
}

/// How many items of an answer a source brought.
pub fn items_returned(source: Source, count: usize) {
    if let Some(handles) = HANDLES.get() {
        handles.items_returned(source).increment(count as u64);
    }
}

/// `count` candidates of one request left out.
pub fn dropped(reason: Dropped, count: usize) {
    if let Some(handles) = HANDLES.get() {
        handles.dropped(reason).increment(count as u64);
    }
}

/// `count` rows of a log written.
pub fn logged(log: Log, count: usize) {
    if let Some(handles) = HANDLES.get() {
        handles.logged(log).increment(count as u64);
    }
}

/// `count` rows of a log lost.
pub fn lost(log: Log, why: Lost, count: usize) {
    if let Some(handles) = HANDLES.get() {
        handles.lost(log, why).increment(count as u64);
    }
}

/// Rows of a log accepted and not yet written.
pub fn log_queue(log: Log, rows: usize) {
    if let Some(handles) = HANDLES.get() {
        handles.log_queue(log).set(rows as f64);
    }
}

/// One job refused by an executor.
pub fn refused(why: Refusal) {
    if let Some(handles) = HANDLES.get() {
        handles.refused(why).increment(1);
    }
}

/// A challenger answered a request that nobody sees.
pub fn shadow(sound: bool) {
    if let Some(handles) = HANDLES.get() {
        handles.shadow(if sound { Tried::Sound } else { Tried::Failed }).increment(1);
    }
}

/// Which rollout state is followed, and the share of users that it gives a challenger.
pub fn rollout(state: u64, percent: u8) {
    if let Some(handles) = HANDLES.get() {
        handles.rollout_state.set(state as f64);
        handles.rollout_percent.set(f64::from(percent));
    }
}

/// The share of users that get the settings on trial in a layer.
pub fn layer(name: &'static str, percent: u8) {
    if HANDLES.get().is_some() {
        metrics::gauge!(LAYER_PERCENT, "layer" => name).set(f64::from(percent));
    }
}

/// Whether the registry could be read at the last look.
pub fn registry_reachable(reachable: bool) {
    if let Some(handles) = HANDLES.get() {
        handles.registry_reachable.set(if reachable { 1.0 } else { 0.0 });
    }
}

/// Whether the process takes traffic.
pub fn ready(ready: bool) {
    if let Some(handles) = HANDLES.get() {
        handles.ready.set(if ready { 1.0 } else { 0.0 });
    }
}

/// Something came of an answer. The caller bounds the labels.
pub fn outcome(outcome: &'static str, variant: &str, device: &str, region: &str) {
    if HANDLES.get().is_some() {
        let labels = labels_of(variant, device, region);
        metrics::counter!(OUTCOMES, "outcome" => outcome, "variant" => labels[0].clone(),
            "device" => labels[1].clone(), "region" => labels[2].clone())
        .increment(1);
    }
}

/// Something of value came of an answer; whole hundredths are counted, since counters are whole.
pub fn revenue(value: f64, variant: &str, device: &str, region: &str) {
    if HANDLES.get().is_some() {
        let [variant, device, region] = labels_of(variant, device, region);
        metrics::counter!(REVENUE, "variant" => variant, "device" => device, "region" => region)
            .increment((value * 100.0).round().max(0.0) as u64);
    }
}

fn labels_of(variant: &str, device: &str, region: &str) -> [String; 3] {
    [variant, device, region].map(str::to_owned)
}

/// When the knowledge of the bundle that serves ends.
pub fn bundle_as_of(time_ms: i64) {
    if let Some(handles) = HANDLES.get() {
        handles.bundle_as_of.set(time_ms as f64 / 1000.0);
    }
}

/// Which bundle is being served; the one before it goes to 0. One series a bundle that this
/// process has served, so the label stays bounded in practice.
pub fn bundle(version: &str) {
    static LAST: Mutex<Option<String>> = Mutex::new(None);
    if HANDLES.get().is_none() {
        return;
    }
    let mut last = LAST.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(old) = last.replace(version.to_owned()) {
        metrics::gauge!(BUNDLE, "version" => old).set(0.0);
    }
    metrics::gauge!(BUNDLE, "version" => version.to_owned()).set(1.0);
}

fn builder(latency_buckets_s: &[f64]) -> Result<PrometheusBuilder, Error> {
    let seconds = Matcher::Suffix("_seconds".to_owned());
    let candidates = Matcher::Full(CANDIDATES.to_owned());
    PrometheusBuilder::new()
        .set_buckets_for_metric(seconds, latency_buckets_s)
        .and_then(|b| b.set_buckets_for_metric(candidates, &CANDIDATE_BUCKETS))
        .map_err(|_| Error::Buckets { found: latency_buckets_s.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_from_the_start_and_counts() {
        let recorder = builder(&[0.001, 0.01]).unwrap().build_recorder();
        let handles = metrics::with_local_recorder(&recorder, Handles::register);
        let text = recorder.handle().render();
        for line in [
            "shortlist_fallbacks_total{kind=\"retrieval_order\"} 0",
            "shortlist_cache_lookups_total{cache=\"user_redis\",result=\"stale\"} 0",
            "# TYPE shortlist_http_requests_total counter",
        ] {
            assert!(text.contains(line), "no `{line}` in:\n{text}");
        }
        handles.requests(Route::Recommendations, 200).increment(1);
        handles.requests(Route::Recommendations, 418).increment(1);
        handles.stage(Stage::S4Ranking).record(Duration::from_millis(5));
        let text = recorder.handle().render();
        for line in [
            "shortlist_http_requests_total{route=\"recommendations\",status=\"200\"} 1",
            "shortlist_http_requests_total{route=\"recommendations\",status=\"other\"} 1",
            "shortlist_stage_seconds_bucket{stage=\"s4_ranking\",le=\"0.001\"} 0",
            "shortlist_stage_seconds_bucket{stage=\"s4_ranking\",le=\"0.01\"} 1",
            "shortlist_stage_seconds_sum{stage=\"s4_ranking\"} 0.005",
        ] {
            assert!(text.contains(line), "no `{line}` in:\n{text}");
        }
    }

    #[test]
    fn labels_are_numbered_as_listed() {
        for (at, stage) in Stage::ALL.iter().enumerate() {
            assert_eq!(*stage as usize, at);
        }
        for (at, kind) in Fallback::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, at);
        }
    }

    #[test]
    fn unusable_buckets_are_refused_by_name() {
        for buckets in [vec![], vec![0.1, 0.1], vec![0.2, 0.1], vec![0.0], vec![f64::NAN]] {
            let config = Config { latency_buckets_s: buckets, upkeep_interval_ms: 1 };
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains("monitor.latency_buckets_s"), "{error}");
        }
    }
}
