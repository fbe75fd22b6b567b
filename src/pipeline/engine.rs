//! The engine: one bundle, the stores and the threads that answer requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::{Answer, Timings};
use super::audit::Audit;
use super::context::{Context, Drops, Inputs, Scratch};
use super::deadline::Deadline;
use super::observe::{self, Counts};
use super::region::{self, Location};
use super::{Config, ConfigError, RegionConfig, RulesConfig};
use crate::bundle::{self, Bundle};
use crate::executor::{self, Executor, Rejected};
use crate::monitor::Fallback;
use crate::store::{Tower, Users};
use crate::types::{ItemId, ItemIdx, UserId};

/// The bundle's number in the live state's memory of rows; a swap of bundles would raise it.
const SNAPSHOT: u64 = 1;
/// Column of the user table that holds a user's own region.
const USER_REGION: &str = "users.region";

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
    pub config: Config,
    pub rules: RulesConfig,
    pub regions: RegionConfig,
    pub executor: executor::Config,
}

/// Answers requests.
pub struct Engine {
    shared: Arc<Shared>,
    users: Users,
    executor: Executor<Scratch>,
    audit: Arc<Audit>,
    regions: RegionConfig,
    clock: Clock,
    context_names: Vec<String>,
    user_region: Option<usize>,
}

/// What the threads of the stages read.
struct Shared {
    bundle: Bundle,
    config: Config,
    rules: RulesConfig,
}

impl AsRef<Bundle> for Shared {
    fn as_ref(&self) -> &Bundle {
        &self.bundle
    }
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
}

impl Engine {
    /// Starts the threads and sizes their buffers.
    pub fn start(parts: Parts) -> Result<Self, StartError> {
        let Parts { mut bundle, users, config, rules, regions, executor } = parts;
        config.check()?;
        bundle.rank_with(config.ranker.engine)?;
        let clock = Clock::starting_at(config.clock_starts_at_ms()?);
        let context_names = bundle.schema.context_names();
        let user_region = bundle.users.columns().iter().position(|c| c == USER_REGION);
        let shared = Arc::new(Shared { bundle, config, rules });
        let of_threads = shared.clone();
        let scratch = move |_| Scratch::new(&of_threads.bundle, of_threads.config.candidates);
        let executor = Executor::start("pipeline", &executor, scratch)?;
        let audit = Arc::new(Audit::start(shared.clone(), shared.config.recall_audit_share)?);
        Ok(Self { shared, users, executor, audit, regions, clock, context_names, user_region })
    }

    /// Answers one request.
    ///
    /// # Errors
    /// When the queue is full or the deadline passes before work begins.
    pub async fn recommend(&self, request: Request) -> Result<Answer, Error> {
        let entry = Instant::now();
        let deadline = Deadline::after(Duration::from_millis(self.shared.config.deadline_ms));
        let bundle = &self.shared.bundle;
        // The sequence first: an event between the two then makes the vector too new for its
        // name, never too old.
        let sequence = self.sequence(&request);
        let (inputs, region_fallback) = self.inputs(&request);
        let tower = Tower { version: bundle.towers.version(), dim: bundle.towers.dim() };
        let user = &request.user_id;
        let cached = match sequence {
            Some(sequence) => self.users.embeddings.get(tower, user, sequence).await.fresh(),
            None => None,
        };
        let mut timings = Timings::default();
        timings.stages[0] = entry.elapsed();
        let missed = cached.is_none();
        let (shared, audit) = (self.shared.clone(), self.audit.clone());
        let user_id = request.user_id.clone();
        let job = move |scratch: &mut Scratch| {
            let mut cx = Context {
                bundle: &shared.bundle,
                config: &shared.config,
                rules: &shared.rules,
                user: shared.bundle.users.find(&user_id.0),
                inputs: &inputs,
                deadline,
                cached: cached.as_deref(),
                scratch,
                degraded: Vec::new(),
                reasons: Vec::new(),
                drops: Drops::default(),
            };
            if region_fallback {
                cx.degrade(Fallback::UnknownRegion);
            }
            let mut answer = super::run(&mut cx, &mut timings);
            answer.timings = timings;
            audit.offer(&cx);
            let vector = missed.then(|| Arc::from(cx.scratch.vector.as_slice()));
            (answer, vector, Counts::of(&cx))
        };
        let (mut answer, vector, counts) = self.executor.run(deadline.0, job).await?;
        if let (Some(sequence), Some(vector)) = (sequence, vector) {
            self.users.embeddings.put_later(tower, user, sequence, vector);
        }
        answer.timings.total = entry.elapsed();
        observe::answered(&answer, &counts);
        Ok(answer)
    }

    /// Now, on the engine's clock.
    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// Version of the bundle that serves.
    pub fn bundle_version(&self) -> &str {
        &self.shared.bundle.manifest.bundle_version
    }

    /// The bundle that serves.
    pub fn bundle(&self) -> &Bundle {
        &self.shared.bundle
    }

    /// The stores of users.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// A user's last events, newest first.
    pub fn history(&self, user: &UserId) -> Vec<HistoryItem> {
        let (items, times) = self.stored_history(user);
        let table = &self.shared.bundle.items;
        let event = |(&item, &time_ms): (&ItemIdx, &i64)| HistoryItem {
            item_id: table.ids().id(item.0).to_owned(),
            title: table.title(item).map(str::to_owned),
            category: table.category(item).map(str::to_owned),
            price: table.price(item),
            time_ms: (time_ms != i64::MIN).then_some(time_ms),
        };
        items.iter().zip(&times).rev().map(event).collect()
    }

    /// Up to `n` known users whose id starts with `prefix`.
    pub fn sample_users(&self, prefix: &str, n: usize) -> Vec<String> {
        let ids = self.shared.bundle.users.ids();
        ids.iter().filter(|id| id.starts_with(prefix)).take(n).map(str::to_owned).collect()
    }

    /// Names the history that a cached vector must be of; `None` when the vector is not to be
    /// kept: an inline history is the caller's, and nothing is known of an unknown user.
    fn sequence(&self, request: &Request) -> Option<u64> {
        let bundle = &self.shared.bundle;
        let live = self.users.live.sequence(&request.user_id);
        let known = live != 0 || bundle.users.contains(&request.user_id.0);
        (request.history.is_none() && known)
            .then(|| live.rotate_left(32) ^ bundle.manifest.as_of_ms as u64)
    }

    fn stored_history(&self, user: &UserId) -> (Vec<ItemIdx>, Vec<i64>) {
        let bundle = &self.shared.bundle;
        let (items, times) = bundle.users.find(&user.0).history();
        let (mut items, mut times) = (items.to_vec(), times.to_vec());
        let since_ms = bundle.manifest.as_of_ms - 1;
        let row_of = |id: &str| bundle.items.find(id);
        self.users.live.history(user, since_ms, SNAPSHOT, row_of, &mut items, &mut times);
        (items, times)
    }

    fn inputs(&self, request: &Request) -> (Inputs, bool) {
        let bundle = &self.shared.bundle;
        let (history, history_times_ms) = match &request.history {
            None => self.stored_history(&request.user_id),
            Some(inline) => {
                let items: Vec<_> =
                    inline.iter().filter_map(|id| bundle.items.find(&id.0)).collect();
                let times = vec![i64::MIN; items.len()];
                (items, times)
            }
        };
        let mut shown = Vec::new();
        let row_of = |id: &str| bundle.items.find(id);
        let (live, now) = (&self.users.live, request.time_ms);
        live.shown(&request.user_id, now, SNAPSHOT, row_of, &mut shown);
        let own = self.own_region(&request.user_id);
        let resolved = region::resolve(
            &self.regions,
            &bundle.items,
            request.region.as_deref(),
            request.location.as_ref(),
            own,
        );
        let inputs = Inputs {
            request_id: request.request_id.clone(),
            num_items: request.num_items,
            time_ms: request.time_ms,
            region: resolved.region,
            context: self.context_codes(request, resolved.region),
            history,
            history_times_ms,
            shown,
        };
        (inputs, resolved.fallback)
    }

    fn own_region(&self, user: &UserId) -> Option<&str> {
        let bundle = &self.shared.bundle;
        let code = bundle.users.find(&user.0).value(self.user_region?);
        let dictionary = bundle.dictionaries.get(USER_REGION)?;
        if code.is_nan() { None } else { dictionary.value(code as u32) }
    }

    fn context_codes(&self, request: &Request, region: Option<usize>) -> Vec<f32> {
        let bundle = &self.shared.bundle;
        let value = |name: &str| match name {
            "context.device" => request.device.as_deref(),
            "context.region" => region.map(|at| bundle.items.regions()[at].as_str()),
            _ => {
                let key = name.trim_start_matches("context.");
                request.context.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
            }
        };
        let code = |name: &String| bundle.dictionaries.feature(name, value(name));
        self.context_names.iter().map(code).collect()
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
