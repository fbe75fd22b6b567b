//! The engine: the bundle that serves, perhaps a challenger beside it, the stores and the threads that
//! answer requests.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::ConfigError;
use super::answer::{Answer, Timings};
use super::audit::Audit;
use super::context::{Asked, Call};
use super::deadline::Deadline;
use super::drift;
use super::explain::{self, Explainer, Explanation};
use super::gather;
use super::item_changes::{self, ItemChanges};
use super::observe::{self, Counts};
use super::record;
use super::region::Location;
use super::rollout::{
    self, Account, ChangeError, Chosen, Credit, Credits, Layers, Panel, Shadow, Trial, Versions,
};
use super::serving::{Serving, Settings};
use super::stages::Stages;
use super::warm::Recent;
use crate::bundle::{self, Bundle, Challenger, Change, LayerPlan};
use crate::executor::{self, Rejected};
use crate::experiments::{Arm, Counts as ArmCounts, Layer, Stage, Subject};
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
    /// The arms that the caller chose, for tests; such a request is not counted.
    pub arms: rollout::Asked,
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
    /// A challenger that nobody sees scores one request in so many.
    pub shadow_every: u64,
    pub drift: drift::Config,
}

/// Answers requests.
pub struct Engine {
    versions: ArcSwap<Versions>,
    /// Versions that this process has prepared; see [`Serving::number`].
    prepared: AtomicU64,
    /// Of the newest trials, also after their end.
    credits: ArcSwap<Credits>,
    /// Who replaces versions holds this: two of the steps below never interleave.
    turning: Mutex<()>,
    settings: Arc<Settings>,
    users: Arc<Users>,
    shadow: Shadow,
    drift: Arc<drift::Watch>,
    item_changes: ItemChanges,
    stages: Stages,
    audit: Arc<Audit>,
    recent: Recent,
    explainer: Explainer,
    clock: Clock,
}

/// Why an engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Executor(#[from] executor::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("no thread for the audit, the drift or the shadow: {0}")]
    Thread(#[from] std::io::Error),
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
    #[error(transparent)]
    Users(#[from] store::Error),
}

impl Engine {
    /// Starts the threads.
    pub fn start(parts: Parts) -> Result<Self, StartError> {
        let Parts { bundle, users, item_changes, settings, executor, shadow_every, drift } = parts;
        settings.pipeline.check()?;
        let clock = Clock::starting_at(settings.pipeline.clock_starts_at_ms()?);
        let audit = Arc::new(Audit::start(settings.pipeline.recall_audit_interval_ms)?);
        let settings = Arc::new(settings);
        let stable = Arc::new(Serving::new(1, bundle, settings.clone())?);
        users.check(&stable.fit)?;
        let users = Arc::new(users);
        let drift = drift::Watch::start(&drift)?;
        let shadow = Shadow::start(shadow_every, users.clone())?;
        let layers = Arc::new(Layers::none(settings.clone()));
        Ok(Self {
            versions: ArcSwap::from_pointee(Versions::new(stable, None, layers)),
            prepared: AtomicU64::new(1),
            credits: ArcSwap::default(),
            turning: Mutex::new(()),
            settings,
            users,
            shadow,
            drift: Arc::new(drift),
            item_changes,
            stages: Stages::start(&executor)?,
            audit,
            recent: Recent::default(),
            explainer: Explainer::default(),
            clock,
        })
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
    pub async fn recommend(&self, mut request: Request) -> Result<Answer, Error> {
        let entry = Instant::now();
        let deadline = Deadline::after(self.deadline());
        self.recent.offer(&request);
        let chosen = self.choose(&mut request);
        let variant = chosen.variant(&self.settings.pipeline.variant);
        let Chosen { serving, arm, seats, .. } = chosen;
        let user = &request.user_id;
        let base = serving.bundle.users.find(&user.0);
        let state = self.users.read(&serving.fit, user, base, request.time_ms).await;
        let quality = self.stages.quality();
        let candidates = (self.settings.pipeline.candidates as f32 * quality).ceil() as usize;
        let (mut inputs, region_fallback) =
            gather::inputs(&serving, base.row(), &state, &request, candidates);
        if record::is_drawn(&request.request_id, self.settings.pipeline.log_full_share) {
            inputs.asked = Some(Box::new(Asked { context: request.context.clone(), quality }));
        }
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
        let watch = self.drift.clone();
        let serving_of_call = serving.clone();
        let call = Call { serving: serving_of_call, inputs, deadline, cached, degraded, timings };
        let after = move |cx: &super::Context| {
            audit.offer(cx);
            watch.offer(cx, arm);
            let vector = missed.then(|| Arc::from(cx.scratch.vector.as_slice()));
            (vector, Counts::of(cx), record::footprint(cx))
        };
        let finished = self.stages.run(call, after).await;
        for seat in &seats {
            let answer = finished.as_ref().ok().map(|finished| &finished.answer);
            seat.finished(answer, entry.elapsed());
        }
        let finished = finished?;
        let (vector, counts, footprint) = finished.kept;
        if let (Some(sequence), Some(vector)) = (sequence, vector) {
            self.users.keep(&serving.fit, &request.user_id, Embedding { sequence, vector });
        }
        let mut answer = finished.answer;
        if let Some(variant) = variant {
            answer.variant = variant;
        }
        answer.timings.total = entry.elapsed();
        answer.footprint = footprint;
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
        let next = self.prepare(bundle).await?;
        let swap = || self.turn_to(|now| Versions::new(next.clone(), None, now.layers.clone()));
        let old = self.item_changes.publish(&next.bundle, swap).await?;
        tracing::info!(bundle = next.version(), "published");
        self.leave(old).await;
        Ok(())
    }

    /// Prepares a bundle as [`Engine::publish`] does, and puts it on trial beside the one that serves, at
    /// what the registry's state `state` says. A challenger before it is let go.
    ///
    /// # Errors
    /// As [`Engine::publish`]; then no challenger is added.
    pub async fn challenge(
        &self,
        bundle: Bundle,
        state: u64,
        plan: &Challenger,
    ) -> Result<(), PublishError> {
        let next = self.prepare(bundle).await?;
        let swap = || {
            self.turn_to(|now| {
                let before = now.trial.as_ref().map(|trial| &trial.panel);
                let panel = Panel::new(state, &plan.course, before);
                let trial = Trial { serving: next.clone(), panel };
                self.remember(now.stable.version(), &trial);
                Versions::new(now.stable.clone(), Some(Arc::new(trial)), now.layers.clone())
            })
        };
        let old = self.item_changes.publish(&next.bundle, swap).await?;
        tracing::info!(bundle = next.version(), stage = %plan.course.stage, "on trial");
        self.leave(old).await;
        Ok(())
    }

    /// Moves the challenger to what another state of its rollout says; does nothing without one.
    pub fn restage(&self, state: u64, plan: &Challenger) {
        self.turn_to(|now| {
            let moved = now.trial.as_ref().map(|trial| {
                let panel = Panel::new(state, &plan.course, Some(&trial.panel));
                Arc::new(Trial { serving: trial.serving.clone(), panel })
            });
            if let Some(trial) = &moved {
                self.remember(now.stable.version(), trial);
            }
            Versions::new(now.stable.clone(), moved, now.layers.clone())
        });
    }

    /// Puts settings on trial as the registry's state `state` says, and ends the trials that it does not
    /// name. Lists of a bundle are made anew where its sources differ: seconds for millions of items.
    ///
    /// # Errors
    /// With the layer whose settings cannot be used; nothing changes then.
    pub fn lay(&self, state: u64, plans: &[LayerPlan]) -> Result<(), (Layer, ChangeError)> {
        let before = self.versions.load().layers.clone();
        let next = Arc::new(Layers::new(state, plans, &before)?);
        self.turn_to(|now| {
            for trial in next.trials() {
                let account = Account::new(Subject::Layer(trial.layer), &trial.panel, None);
                self.credits.rcu(|credits| credits.with(account.clone()));
            }
            Versions::new(now.stable.clone(), now.trial.clone(), next.clone())
        });
        Ok(())
    }

    /// The challenger serves everybody from now on, and what served before is let go.
    pub async fn promote(&self) {
        let old = self.turn_to(|now| {
            let stable = now.trial.as_ref().map_or(&now.stable, |trial| &trial.serving).clone();
            Versions::new(stable, None, now.layers.clone())
        });
        tracing::info!(bundle = self.serving().version(), "the challenger serves everybody");
        self.leave(old).await;
    }

    /// The challenger serves nobody from now on, and is let go.
    pub async fn withdraw(&self) {
        let old = self.turn_to(|now| Versions::new(now.stable.clone(), None, now.layers.clone()));
        self.leave(old).await;
    }

    /// The challenger.
    pub fn trial(&self) -> Option<Arc<Trial>> {
        self.versions.load().trial.clone()
    }

    /// What this process has counted of a trial under way.
    pub fn trial_counts(&self, of: Subject) -> Option<ArmCounts> {
        let versions = self.versions.load();
        if of != Subject::Bundle {
            return Some(versions.layers.panel(of)?.tallies.counts());
        }
        let panel = &versions.trial.as_ref()?.panel;
        for arm in Arm::ALL {
            panel.tally.drifted(arm, self.drift.furthest(arm));
        }
        Some(panel.tallies.counts())
    }

    /// How far what the versions see is from their training.
    pub fn drift(&self) -> Arc<drift::Latest> {
        self.drift.latest()
    }

    /// To which arms of the newest trials an event belongs, by the id of the answer.
    pub fn credit(&self, request_id: &str, user: &str) -> Option<Credit> {
        self.credits.load().of(request_id, user, &self.settings.pipeline.variant)
    }

    /// Who answers this request; its id then says so.
    fn choose(&self, request: &mut Request) -> Chosen {
        let versions = self.versions.load();
        if let Some(trial) = &versions.trial
            && trial.panel.stage == Stage::Shadow
        {
            self.shadow.offer(&versions, request);
        }
        let chosen = versions.choose(&request.user_id.0, &request.arms);
        for seat in &chosen.seats {
            let (id, state) = (&request.request_id, seat.tally.state());
            request.request_id = rollout::tagged(id, seat.of, state, seat.arm);
        }
        chosen
    }

    /// A bundle that is ready to serve: it has the changes of items, and was asked the last requests.
    async fn prepare(&self, bundle: Bundle) -> Result<Arc<Serving>, PublishError> {
        self.item_changes.replay(&bundle).await?;
        let number = self.prepared.fetch_add(1, Relaxed) + 1;
        let next = Arc::new(Serving::new(number, bundle, self.settings.clone())?);
        self.users.check(&next.fit)?;
        let replayed = self.recent.replay(&next, &self.users);
        tracing::info!(bundle = next.version(), replayed, "prepared");
        Ok(next)
    }

    /// Replaces what serves; returns what served.
    fn turn_to(&self, next: impl FnOnce(&Versions) -> Versions) -> Arc<Versions> {
        let _turning = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        let next = next(&self.versions.load());
        self.versions.swap(Arc::new(next))
    }

    fn remember(&self, stable: &str, trial: &Trial) {
        let versions = [stable.to_owned(), trial.serving.version().to_owned()];
        let account = Account::new(Subject::Bundle, &trial.panel, Some(versions));
        self.credits.rcu(|credits| credits.with(account.clone()));
    }

    /// Waits until no request reads what has been replaced. Not left to a request: giving gigabytes
    /// back takes longer than an answer may.
    async fn leave(&self, old: Arc<Versions>) {
        let living = self.living();
        let is_gone =
            |bundle: &Arc<Bundle>| living.iter().all(|now| !Arc::ptr_eq(&now.bundle, bundle));
        let all = std::iter::once(&old.stable).chain(old.trial.iter().map(|trial| &trial.serving));
        let bundles = all.map(|serving| serving.bundle.clone());
        let leaving: Vec<Arc<Bundle>> = bundles.filter(is_gone).collect();
        drop(old);
        self.stages.keep(&living);
        let since = Instant::now();
        let is_read = |bundle: &Arc<Bundle>| Arc::strong_count(bundle) > 1;
        while leaving.iter().any(is_read) && since.elapsed() < READERS_LEAVE_MAX {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Once more: the last readers have given their buffers back.
        self.stages.keep(&living);
    }

    /// The versions that serve now.
    fn living(&self) -> Vec<Arc<Serving>> {
        let now = self.versions.load();
        let trial = now.trial.as_ref().map(|trial| trial.serving.clone());
        std::iter::once(now.stable.clone()).chain(trial).collect()
    }

    fn current(&self) -> item_changes::Current {
        let now = self.versions.load();
        (now.stable.clone(), now.trial.as_ref().map(|trial| trial.serving.clone()))
    }

    /// Takes changes of items, all or none; requests that begin afterwards see them. Returns their
    /// number in the change log.
    ///
    /// # Errors
    /// When one of them is refused, or the log cannot be written.
    pub async fn change_items(&self, changes: Vec<Change>) -> Result<u64, item_changes::Error> {
        self.item_changes.take(|| self.current(), self.now_ms(), changes).await
    }

    /// Applies the changes of items that other replicas took; returns the number of batches.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn follow_items(&self) -> Result<usize, item_changes::Error> {
        self.item_changes.follow(|| self.current()).await
    }

    /// Now, on the engine's clock.
    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// The version that serves; beside a challenger, the stable one.
    pub fn serving(&self) -> Arc<Serving> {
        self.versions.load().stable.clone()
    }

    /// The stores of users.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// Asks a request and explains the items of its answer, or one item that may not be in it.
    ///
    /// # Errors
    /// When another one is being explained, or the item is unknown.
    pub async fn explain(
        &self,
        request: Request,
        item: Option<String>,
    ) -> Result<Explanation, explain::Error> {
        let serving = self.versions.load().choose(&request.user_id.0, &request.arms).serving;
        let base = serving.bundle.users.find(&request.user_id.0);
        let state = self.users.read(&serving.fit, &request.user_id, base, request.time_ms).await;
        let candidates = self.settings.pipeline.candidates;
        let (inputs, _) = gather::inputs(&serving, base.row(), &state, &request, candidates);
        self.explainer.run(serving, inputs, item).await
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
