//! Drift in production: how far what the ranker sees is from what the bundle remembers of its training.
//!
//! Every so often a request is drawn: it leaves some of its rows, their scores and the categories of its
//! answer in a short queue; one thread counts them and, now and then, publishes the distances. What does not
//! fit in the queue is not counted: this never delays an answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use serde::Deserialize;

use super::context::Context;
use super::every::Every;
use super::record;
use super::rows::Rows;
use super::serving::Serving;
use crate::drift::{Population, ROWS_PER_REQUEST, Report, Sample, Window, spread};
use crate::experiments::{Arm, Drift as Furthest};
use crate::{ffi, monitor};

/// Requests that wait to be counted.
const QUEUE_MAX: usize = 64;

/// Section `[drift]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Time between two requests that are drawn, milliseconds; 0 draws none.
    pub sample_interval_ms: u64,
    /// Distances are over so many last seconds ...
    pub window_s: u64,
    /// ... and of no fewer requests than this.
    pub requests_min: u64,
    /// Time between two reports, milliseconds.
    pub report_interval_ms: u64,
}

/// Why section `[drift]` was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("drift.{key} = 0: give at least 1")]
pub struct ConfigError {
    key: &'static str,
}

impl Config {
    /// Refuses what nothing could be counted with.
    pub fn check(&self) -> Result<(), ConfigError> {
        let keys = [
            ("window_s", self.window_s),
            ("requests_min", self.requests_min),
            ("report_interval_ms", self.report_interval_ms),
        ];
        match keys.into_iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(ConfigError { key }),
            None => Ok(()),
        }
    }
}

/// What is known of one version.
#[derive(Clone, Debug)]
pub struct Drifted {
    pub bundle_version: String,
    pub population: Population,
    /// `None` while there are too few requests.
    pub report: Option<Report>,
}

/// By [`Arm`]; `None` of a version that remembers nothing, or that nobody asked.
pub type Latest = [Option<Drifted>; 2];

/// Draws requests and counts them.
pub struct Watch {
    queue: Option<Sender<Drawn>>,
    every: Every,
    latest: Arc<ArcSwap<Latest>>,
}

struct Drawn {
    serving: Arc<Serving>,
    arm: Arm,
    rows: Rows,
    scores: Vec<f64>,
    shown: Vec<Option<String>>,
}

impl Watch {
    /// Starts the thread that counts; none where nothing is drawn.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(config: &Config) -> std::io::Result<Self> {
        let latest = Arc::new(ArcSwap::from_pointee([None, None]));
        let mut queue = None;
        if config.sample_interval_ms > 0 {
            let (sender, drawn) = bounded(QUEUE_MAX);
            let counting = Counting {
                config: config.clone(),
                latest: latest.clone(),
                windows: [None, None],
                published: BTreeSet::new(),
            };
            let body = move || counting.run(&drawn);
            std::thread::Builder::new().name("drift".to_owned()).spawn(body)?;
            queue = Some(sender);
        }
        Ok(Self { queue, every: Every::new(config.sample_interval_ms), latest })
    }

    /// Draws a request that has been ranked, or not.
    pub fn offer(&self, cx: &Context, arm: Option<Arm>) {
        let (Some(queue), Some(reference)) = (&self.queue, &cx.serving.bundle.reference) else {
            return;
        };
        if !self.every.is_drawn() {
            return;
        }
        let rows: Vec<Option<usize>> = match reference.population {
            Population::Candidates => {
                spread(cx.scratch.candidates.len(), ROWS_PER_REQUEST).map(Some).collect()
            }
            Population::Shown => {
                let rows = cx.scratch.ranked.iter().map(|r| record::row_of(cx, r.item));
                rows.filter(Option::is_some).collect()
            }
        };
        let values = Rows::of(cx, &rows);
        if values.is_empty() {
            return;
        }
        let items = cx.items();
        let category = |item| items.category(item).map(str::to_owned);
        let drawn = Drawn {
            serving: cx.serving.clone(),
            arm: arm.unwrap_or(Arm::Stable),
            rows: values,
            scores: rows.iter().map(|&row| record::raw_score(cx, row)).collect(),
            shown: cx.scratch.ranked.iter().map(|r| category(r.item)).collect(),
        };
        // Full after all, or the thread has ended: this one is not counted.
        let _ = queue.try_send(drawn);
    }

    /// What was published last.
    pub fn latest(&self) -> Arc<Latest> {
        self.latest.load_full()
    }

    /// The feature of a version that is furthest from training.
    pub fn furthest(&self, arm: Arm) -> Option<Furthest> {
        let latest = self.latest.load();
        let row = latest[arm as usize].as_ref()?.report.as_ref()?.features.first()?;
        Some(Furthest { feature: row.name.clone(), psi: row.psi })
    }
}

/// What the thread has.
struct Counting {
    config: Config,
    latest: Arc<ArcSwap<Latest>>,
    /// By [`Arm`]: of which version, and its counts.
    windows: [Option<(Arc<Serving>, Window)>; 2],
    /// Features that have a gauge.
    published: BTreeSet<String>,
}

impl Counting {
    fn run(mut self, drawn: &Receiver<Drawn>) {
        // Not last of all: on a server without an idle moment nothing would be counted, just when it matters.
        ffi::thread::stand_back();
        let interval = Duration::from_millis(self.config.report_interval_ms);
        let mut next = Instant::now() + interval;
        loop {
            match drawn.recv_deadline(next) {
                Ok(drawn) => self.count(drawn),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= next {
                self.publish();
                next = Instant::now() + interval;
            }
        }
    }

    fn count(&mut self, drawn: Drawn) {
        let Drawn { serving, arm, rows, scores, shown } = drawn;
        let slot = &mut self.windows[arm as usize];
        if slot.as_ref().is_none_or(|(counted, _)| counted.number != serving.number) {
            let Some(reference) = &serving.bundle.reference else { return };
            let length_ms = self.config.window_s as i64 * 1000;
            *slot = Some((serving.clone(), Window::new(reference.clone(), length_ms)));
        }
        if let Some((_, window)) = slot {
            let rows = rows.features();
            window.add(&Sample { rows: &rows, scores: &scores, shown: &shown }, now_ms());
        }
    }

    fn publish(&mut self) {
        let min = self.config.requests_min;
        let latest = std::mem::take(&mut self.windows).map(|slot| {
            let (serving, mut window) = slot?;
            // A version that nobody reads any more must not be kept alive for its counts.
            if Arc::strong_count(&serving) == 1 {
                return None;
            }
            let bundle = &serving.bundle;
            let report = window.report(now_ms(), min, |name, code| bundle.code_name(name, code));
            Some((serving, window, report))
        });
        let mut told: Latest = [None, None];
        for (at, slot) in latest.into_iter().enumerate() {
            let Some((serving, window, report)) = slot else { continue };
            let reference = serving.bundle.reference.as_ref();
            told[at] = reference.map(|reference| Drifted {
                bundle_version: serving.version().to_owned(),
                population: reference.population,
                report,
            });
            self.windows[at] = Some((serving, window));
        }
        self.gauges(told[Arm::Stable as usize].as_ref().and_then(|told| told.report.as_ref()));
        self.latest.store(Arc::new(told));
    }

    fn gauges(&mut self, report: Option<&Report>) {
        let features = report.map_or(&[][..], |report| &report.features);
        let gone = |name: &&String| !features.iter().any(|row| row.name == **name);
        self.published.iter().filter(gone).for_each(|name| monitor::feature_psi(name, f64::NAN));
        features.iter().for_each(|row| monitor::feature_psi(&row.name, row.psi));
        self.published.extend(features.iter().map(|row| row.name.clone()));
        let of = |psi: fn(&Report) -> f64| report.map_or(f64::NAN, psi);
        let requests = report.map_or(0, |report| report.requests);
        monitor::drift(of(|r| r.score.psi), of(|r| r.categories.psi), requests);
    }
}

fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}
