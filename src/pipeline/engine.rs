//! The engine: one bundle at a time, the stores and the threads that answer requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::ConfigError;
use super::answer::{Answer, Timings};
use super::audit::Audit;
use super::context::Call;
use super::deadline::Deadline;
use super::gather;
use super::item_changes::{self, ItemChanges};
use super::observe::{self, Counts};
use super::region::Location;
use super::serving::{Serving, Settings};
use super::stages::Stages;
use super::warm::Recent;
use crate::bundle::{self, Bundle, Change};
use crate::executor::{self, Rejected};
use crate::monitor::Fallback;
use crate::store::{self, Embedding, Users};
use crate::types::{ItemId, ItemIdx, UserId};

/// How long the last readers of a bundle that is replaced are waited for.
const READERS_LEAVE_MAX: Duration = Duration::from_secs(30);

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub request_id: String,
    pub user_id: UserId,
    pub num_items: usize,
    pub device: Option<String>,
    pub region: Option<String>,
    pub location: Option<Location>,
    /// Further context values by name.
    pub context: Vec<(String, String)>,
    /// Used instead of the stored history: oldest first. Unknown items are skipped.
    pub history: Option<Vec<ItemId>>,
    /// Epoch milliseconds, UTC.
    pub time_ms: i64,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("refused: {0}")]
    Rejected(#[from] Rejected),
}

/// One event of a user's past, for display.
#[derive(Clone, Debug)]
pub struct HistoryItem {
    pub item_id: String,
    pub title: Option<String>,
    pub category: Option<String>,
    pub price: Option<f32>,
    /// Epoch milliseconds; `None` when the history came without times.
    pub time_ms: Option<i64>,
}

/// What an engine is made of.
pub struct Parts {
    pub bundle: Bundle,
    pub users: Users,
    pub item_changes: ItemChanges,
    pub settings: Settings,
    pub executor: executor::Config,
}

/// Answers requests.
pub struct Engine {
    serving: ArcSwap<Serving>,
    settings: Arc<Settings>,
    users: Users,
    item_changes: ItemChanges,
    stages: Stages,
    audit: Arc<Audit>,
    recent: Recent,
    clock: Clock,
}

/// Why an engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Executor(#[from] executor::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("no thread for the recall audit: {0}")]
    Audit(#[from] std::io::Error),
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    #[error(transparent)]
    Users(#[from] store::Error),
}

/// Why a bundle could not take over.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    #[error(transparent)]
    Items(#[from] item_changes::Error),
}

impl Engine {
    /// Starts the threads.
    pub fn start(parts: Parts) -> Result<Self, StartError> {
        let Parts { bundle, users, item_changes, settings, executor } = parts;
        settings.pipeline.check()?;
        let clock = Clock::starting_at(settings.pipeline.clock_starts_at_ms()?);
        let audit = Arc::new(Audit::start(settings.pipeline.recall_audit_interval_ms)?);
        let settings = Arc::new(settings);
        let serving = ArcSwap::from_pointee(Serving::new(1, bundle, settings.clone())?);
        users.check(&serving.load().fit)?;
        let (stages, recent) = (Stages::start(&executor)?, Recent::default());
        Ok(Self { serving, settings, users, item_changes, stages, audit, recent, clock })
    }

    /// Whether a request would be refused now: a refusal that costs less than reading the request.
    ///
    /// # Errors
    /// With the refusal.
    pub fn admits(&self) -> Result<(), Error> {
        Ok(self.stages.admits(Instant::now() + self.deadline())?)
    }

    /// Answers one request.
    ///
    /// # Errors
    /// When the queue is full or the deadline passes before work begins.
    pub async fn recommend(&self, request: Request) -> Result<Answer, Error> {
        let entry = Instant::now();
        let deadline = Deadline::after(self.deadline());
        self.recent.offer(&request);
        let serving = self.serving.load_full();
        let user = &request.user_id;
        let base = serving.bundle.users.find(&user.0);
        let state = self.users.read(&serving.fit, user, base, request.time_ms).await;
        let quality = self.stages.quality();
        let candidates = (self.settings.pipeline.candidates as f32 * quality).ceil() as usize;
        let (inputs, region_fallback) = gather::inputs(&serving, &state, &request, candidates);
        let sequence = gather::sequence(&request, &inputs);
        let cached = sequence.and_then(|sequence| state.vector(sequence));
        let missed = cached.is_none();
        let mut degraded = Vec::from_iter(state.degraded);
        if region_fallback {
            degraded.push(Fallback::UnknownRegion);
        }
        if quality < 1.0 {
            degraded.push(Fallback::FewerCandidates);
        }
        let mut timings = Timings::default();
        timings.stages[0] = entry.elapsed();
        let (inputs, audit) = (Arc::new(inputs), self.audit.clone());
        let serving_of_call = serving.clone();
        let call = Call { serving: serving_of_call, inputs, deadline, cached, degraded, timings };
        let after = move |cx: &super::Context| {
            audit.offer(cx);
            let vector = missed.then(|| Arc::from(cx.scratch.vector.as_slice()));
            (vector, Counts::of(cx))
        };
        let finished = self.stages.run(call, after).await?;
        let (vector, counts) = finished.kept;
        if let (Some(sequence), Some(vector)) = (sequence, vector) {
            self.users.keep(&serving.fit, &request.user_id, Embedding { sequence, vector });
        }
        let mut answer = finished.answer;
        answer.timings.total = entry.elapsed();
        observe::answered(&answer, &counts);
        Ok(answer)
    }

    /// Replaces the bundle without a request noticing: prepares the new one, asks it the last
    /// requests, publishes it, and lets the old one go when its last reader has left. Takes
    /// seconds of computing; to be driven by a thread of low priority.
    ///
    /// # Errors
    /// When the new bundle cannot serve under this configuration, or the change log of items cannot
    /// be read; the old one goes on.
    pub async fn publish(&self, bundle: Bundle) -> Result<(), PublishError> {
        self.item_changes.replay(&bundle).await?;
        let number = self.serving.load().number + 1;
        let next = Arc::new(Serving::new(number, bundle, self.settings.clone())?);
        let replayed = self.recent.replay(&next, &self.users);
        let version = next.version().to_owned();
        let swap = || self.serving.swap(next.clone());
        let old = self.item_changes.publish(&next.bundle, swap).await?;
        tracing::info!(bundle = version, replayed, "published");
        // Not left to a request: giving gigabytes back takes longer than an answer may.
        let since = Instant::now();
        while Arc::strong_count(&old) > 1 && since.elapsed() < READERS_LEAVE_MAX {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Takes changes of items, all or none; requests that begin afterwards see them. Returns their
    /// number in the change log.
    ///
    /// # Errors
    /// When one of them is refused, or the log cannot be written.
    pub async fn change_items(&self, changes: Vec<Change>) -> Result<u64, item_changes::Error> {
        self.item_changes.take(|| self.serving(), self.now_ms(), changes).await
    }

    /// Applies the changes of items that other replicas took; returns the number of batches.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn follow_items(&self) -> Result<usize, item_changes::Error> {
        self.item_changes.follow(|| self.serving()).await
    }

    /// Now, on the engine's clock.
    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// The version that serves.
    pub fn serving(&self) -> Arc<Serving> {
        self.serving.load_full()
    }

    /// The stores of users.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// A user's last events, newest first.
    pub async fn history(&self, user: &UserId) -> Vec<HistoryItem> {
        let serving = self.serving();
        let row = serving.bundle.users.row_of(&user.0);
        let base = serving.bundle.users.user(row);
        let state = self.users.read(&serving.fit, user, base, self.now_ms()).await;
        let (items, times) = gather::history(&serving.bundle, state.history(), row);
        let table = serving.bundle.items.view();
        let event = |(&item, &time_ms): (&ItemIdx, &i64)| HistoryItem {
            item_id: table.id(item).to_owned(),
            title: table.title(item).map(str::to_owned),
            category: table.category(item).map(str::to_owned),
            price: table.price(item),
            time_ms: (time_ms != i64::MIN).then_some(time_ms),
        };
        items.iter().zip(&times).rev().map(event).collect()
    }

    /// Up to `n` known users whose id starts with `prefix`.
    pub fn sample_users(&self, prefix: &str, n: usize) -> Vec<String> {
        let serving = self.serving();
        let ids = serving.bundle.users.ids();
        ids.iter().filter(|id| id.starts_with(prefix)).take(n).map(str::to_owned).collect()
    }

    fn deadline(&self) -> Duration {
        Duration::from_millis(self.settings.pipeline.deadline_ms)
    }
}

/// The real time, or one that starts elsewhere and runs at the same pace.
struct Clock {
    started: Instant,
    starts_at_ms: i64,
}

impl Clock {
    fn starting_at(time_ms: Option<i64>) -> Self {
        let starts_at_ms = time_ms.unwrap_or_else(|| chrono::Utc::now().timestamp_millis());
        Self { started: Instant::now(), starts_at_ms }
    }

    fn now_ms(&self) -> i64 {
        self.starts_at_ms + self.started.elapsed().as_millis() as i64
    }
}
