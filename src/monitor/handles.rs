//! Names, descriptions and handles of every metric, registered once so that counting is an
//! atomic add: no lookup and no allocation in a request.

use metrics::{Counter, Gauge, Histogram, Unit};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use super::labels::{
    Cache, Dropped, Fallback, Hit, Log, Lost, Refusal, Route, STATUSES, Source, SourceLoss, Stage,
    Tried, status_at,
};

pub const REQUESTS: &str = "shortlist_http_requests_total";
pub const REQUEST_SECONDS: &str = "shortlist_http_request_seconds";
pub const STAGE_SECONDS: &str = "shortlist_stage_seconds";
pub const FALLBACKS: &str = "shortlist_fallbacks_total";
pub const CACHE: &str = "shortlist_cache_lookups_total";
pub const CACHE_WRITES_DROPPED: &str = "shortlist_cache_writes_dropped_total";
pub const CANDIDATES: &str = "shortlist_candidates";
pub const CANDIDATES_BY_SOURCE: &str = "shortlist_candidates_by_source_total";
pub const SOURCES_LOST: &str = "shortlist_sources_lost_total";
pub const ITEMS_RETURNED: &str = "shortlist_items_returned_total";
pub const DROPPED: &str = "shortlist_candidates_dropped_total";
pub const LOGGED: &str = "shortlist_log_rows_written_total";
pub const LOST: &str = "shortlist_log_rows_lost_total";
pub const LOG_QUEUE: &str = "shortlist_log_queue_rows";
pub const REFUSED: &str = "shortlist_executor_refused_total";
pub const QUALITY: &str = "shortlist_quality_factor";
pub const INDEX_RECALL: &str = "shortlist_index_recall";
pub const FEATURE_SKEW: &str = "shortlist_feature_skew";
pub const FEATURE_PSI: &str = "shortlist_feature_psi";
pub const SCORE_PSI: &str = "shortlist_score_psi";
pub const CATEGORY_PSI: &str = "shortlist_category_psi";
pub const DRIFT_REQUESTS: &str = "shortlist_drift_requests";
pub const INDEX_RECALL_CHECKED: &str = "shortlist_index_recall_checked_total";
pub const ITEMS_CHANGED: &str = "shortlist_items_changed";
pub const ITEMS_SEQUENCE: &str = "shortlist_items_sequence";
pub const LIVE_ROWS: &str = "shortlist_index_live_rows";
pub const ROLLOUT_PERCENT: &str = "shortlist_rollout_percent";
pub const LAYER_PERCENT: &str = "shortlist_layer_percent";
pub const ROLLOUT_STATE: &str = "shortlist_rollout_state";
pub const SHADOW: &str = "shortlist_shadow_requests_total";
pub const REGISTRY_REACHABLE: &str = "shortlist_registry_reachable";
pub const READY: &str = "shortlist_ready";
pub const BUNDLE_AS_OF: &str = "shortlist_bundle_as_of_seconds";
pub const OUTCOMES: &str = "shortlist_outcomes_total";
pub const REVENUE: &str = "shortlist_revenue_hundredths_total";
pub const BUNDLE: &str = "shortlist_bundle_info";

/// Candidates come in hundreds, not in seconds, so they have buckets of their own.
pub const CANDIDATE_BUCKETS: [f64; 9] =
    [0.0, 20.0, 50.0, 100.0, 200.0, 300.0, 400.0, 500.0, 1000.0];

/// One handle per time series.
pub struct Handles {
    requests: Vec<Vec<Counter>>,
    request_seconds: Vec<Histogram>,
    stages: Vec<Histogram>,
    fallbacks: Vec<Counter>,
    cache: Vec<Vec<Counter>>,
    pub cache_writes_dropped: Counter,
    pub candidates: Histogram,
    by_source: Vec<Counter>,
    sources_lost: Vec<Vec<Counter>>,
    items_returned: Vec<Counter>,
    dropped: Vec<Counter>,
    logged: Vec<Counter>,
    lost: Vec<Vec<Counter>>,
    log_queue: Vec<Gauge>,
    refused: Vec<Counter>,
    pub quality: Gauge,
    pub index_recall: Gauge,
    pub feature_skew: Gauge,
    pub score_psi: Gauge,
    pub category_psi: Gauge,
    pub drift_requests: Gauge,
    pub index_recall_checked: Counter,
    pub items_changed: Gauge,
    pub items_sequence: Gauge,
    pub live_rows: Gauge,
    pub rollout_percent: Gauge,
    pub rollout_state: Gauge,
    shadow: Vec<Counter>,
    pub registry_reachable: Gauge,
    pub ready: Gauge,
    pub bundle_as_of: Gauge,
}

impl Handles {
    /// Describes and registers all metrics with the current recorder, so that every series shows
    /// a zero from the start.
    pub fn register() -> Self {
        describe();
        Self {
            requests: each(Route::ALL, |route| {
                each(
                    &STATUSES,
                    |&(_, status)| counter!(REQUESTS, "route" => route.name(), "status" => status),
                )
            }),
            request_seconds: each(Route::ALL, |r| histogram!(REQUEST_SECONDS, "route" => r.name())),
            stages: each(Stage::ALL, |s| histogram!(STAGE_SECONDS, "stage" => s.name())),
            fallbacks: each(Fallback::ALL, |f| counter!(FALLBACKS, "kind" => f.name())),
            cache: each(Cache::ALL, |cache| {
                each(
                    Hit::ALL,
                    |hit| counter!(CACHE, "cache" => cache.name(), "result" => hit.name()),
                )
            }),
            cache_writes_dropped: counter!(CACHE_WRITES_DROPPED),
            candidates: histogram!(CANDIDATES),
            by_source: each(Source::ALL, |s| counter!(CANDIDATES_BY_SOURCE, "source" => s.name())),
            sources_lost: each(Source::ALL, |source| {
                each(
                    SourceLoss::ALL,
                    |why| counter!(SOURCES_LOST, "source" => source.name(), "reason" => why.name()),
                )
            }),
            items_returned: each(Source::ALL, |s| counter!(ITEMS_RETURNED, "source" => s.name())),
            dropped: each(Dropped::ALL, |d| counter!(DROPPED, "reason" => d.name())),
            logged: each(Log::ALL, |log| counter!(LOGGED, "log" => log.name())),
            lost: each(Log::ALL, |log| {
                each(Lost::ALL, |why| counter!(LOST, "log" => log.name(), "reason" => why.name()))
            }),
            log_queue: each(Log::ALL, |log| gauge!(LOG_QUEUE, "log" => log.name())),
            refused: each(Refusal::ALL, |r| counter!(REFUSED, "reason" => r.name())),
            quality: gauge!(QUALITY),
            index_recall: unknown(gauge!(INDEX_RECALL)),
            feature_skew: unknown(gauge!(FEATURE_SKEW)),
            score_psi: unknown(gauge!(SCORE_PSI)),
            category_psi: unknown(gauge!(CATEGORY_PSI)),
            drift_requests: gauge!(DRIFT_REQUESTS),
            index_recall_checked: counter!(INDEX_RECALL_CHECKED),
            items_changed: gauge!(ITEMS_CHANGED),
            items_sequence: gauge!(ITEMS_SEQUENCE),
            live_rows: gauge!(LIVE_ROWS),
            rollout_percent: gauge!(ROLLOUT_PERCENT),
            rollout_state: gauge!(ROLLOUT_STATE),
            shadow: each(Tried::ALL, |t| counter!(SHADOW, "result" => t.name())),
            registry_reachable: unknown(gauge!(REGISTRY_REACHABLE)),
            ready: gauge!(READY),
            bundle_as_of: unknown(gauge!(BUNDLE_AS_OF)),
        }
    }

    pub fn requests(&self, route: Route, status: u16) -> &Counter {
        &self.requests[route as usize][status_at(status)]
    }

    pub fn request_seconds(&self, route: Route) -> &Histogram {
        &self.request_seconds[route as usize]
    }

    pub fn stage(&self, stage: Stage) -> &Histogram {
        &self.stages[stage as usize]
    }

    pub fn fallback(&self, kind: Fallback) -> &Counter {
        &self.fallbacks[kind as usize]
    }

    pub fn cache(&self, cache: Cache, hit: Hit) -> &Counter {
        &self.cache[cache as usize][hit as usize]
    }

    pub fn by_source(&self, source: Source) -> &Counter {
        &self.by_source[source as usize]
    }

    pub fn source_lost(&self, source: Source, why: SourceLoss) -> &Counter {
        &self.sources_lost[source as usize][why as usize]
    }

    pub fn items_returned(&self, source: Source) -> &Counter {
        &self.items_returned[source as usize]
    }

    pub fn dropped(&self, reason: Dropped) -> &Counter {
        &self.dropped[reason as usize]
    }

    pub fn logged(&self, log: Log) -> &Counter {
        &self.logged[log as usize]
    }

    pub fn lost(&self, log: Log, why: Lost) -> &Counter {
        &self.lost[log as usize][why as usize]
    }

    pub fn shadow(&self, result: Tried) -> &Counter {
        &self.shadow[result as usize]
    }

    pub fn log_queue(&self, log: Log) -> &Gauge {
        &self.log_queue[log as usize]
    }

    pub fn refused(&self, why: Refusal) -> &Counter {
        &self.refused[why as usize]
    }
}

fn each<L, T>(values: &[L], make: impl Fn(&L) -> T) -> Vec<T> {
    values.iter().map(make).collect()
}

/// A gauge whose value is not known yet: a zero would be a value.
fn unknown(gauge: Gauge) -> Gauge {
    gauge.set(f64::NAN);
    gauge
}

fn describe() {
    describe_counter!(REQUESTS, "HTTP requests answered, by route and status.");
    describe_histogram!(
        REQUEST_SECONDS,
        Unit::Seconds,
        "Time from the head of a request to its answer."
    );
    describe_histogram!(STAGE_SECONDS, Unit::Seconds, "Time spent in each of the six stages.");
    describe_counter!(
        FALLBACKS,
        "Answers in which something stood in for a part that failed or was missing."
    );
    describe_counter!(CACHE, "Cache lookups by cache and result.");
    describe_counter!(
        CACHE_WRITES_DROPPED,
        "Write-backs to Redis given up because their queue was full or Redis failed."
    );
    describe_histogram!(CANDIDATES, "Candidates that retrieval returned for a request.");
    describe_counter!(CANDIDATES_BY_SOURCE, "Candidates that were ranked, by source.");
    describe_counter!(SOURCES_LOST, "Requests that went without a source, by source and reason.");
    describe_counter!(ITEMS_RETURNED, "Items returned to callers, by source.");
    describe_counter!(DROPPED, "Candidates that did not reach the answer, by reason.");
    describe_counter!(LOGGED, "Rows written to Parquet, by log.");
    describe_counter!(LOST, "Rows of a log that were lost, by log and reason.");
    describe_gauge!(LOG_QUEUE, "Rows accepted and not yet written, by log.");
    describe_counter!(REFUSED, "Jobs that an executor refused, by reason.");
    describe_gauge!(
        QUALITY,
        "Share of its candidates that a request takes: below 1 while requests wait too long."
    );
    describe_gauge!(
        INDEX_RECALL,
        "Share of the true candidates found, mean of the last searches checked; NaN before any."
    );
    describe_gauge!(
        FEATURE_SKEW,
        "Share of the served feature values that the code of training fills otherwise, mean of the last answers checked; NaN before any."
    );
    describe_gauge!(
        FEATURE_PSI,
        "Population stability index of a feature against training, over the last while; NaN for too few requests."
    );
    describe_gauge!(SCORE_PSI, "The same of the ranker's score.");
    describe_gauge!(CATEGORY_PSI, "The same of the categories shown.");
    describe_gauge!(DRIFT_REQUESTS, "Requests that these indexes are of.");
    describe_counter!(INDEX_RECALL_CHECKED, "Searches checked against exact search.");
    describe_gauge!(ITEMS_CHANGED, "Items that differ from what the bundle was built with.");
    describe_gauge!(ITEMS_SEQUENCE, "Number of the last batch of the items' change log applied.");
    describe_gauge!(LIVE_ROWS, "Rows of the index that came after its build.");
    describe_gauge!(
        ROLLOUT_PERCENT,
        "Share of users that see a challenger; 0 while there is none."
    );
    describe_gauge!(
        LAYER_PERCENT,
        "Share of users that get the settings on trial in a layer, percent."
    );
    describe_gauge!(ROLLOUT_STATE, "Number of the rollout state that this process follows.");
    describe_counter!(SHADOW, "Requests that a challenger answered unseen, by result.");
    describe_gauge!(
        REGISTRY_REACHABLE,
        "1 when the registry could be read at the last look, 0 when the last state is kept blindly."
    );
    describe_gauge!(
        BUNDLE_AS_OF,
        "Unix time at which the knowledge of the bundle that serves ends."
    );
    describe_counter!(
        OUTCOMES,
        "Impressions, clicks and sales, by variant, device and region (none: not said; other: not of a bounded list)."
    );
    describe_counter!(REVENUE, "Value of the sales in hundredths, by the same labels.");
    describe_gauge!(READY, "1 while this process takes traffic.");
    describe_gauge!(BUNDLE, "1 for the bundle that is being served, by version.");
}
