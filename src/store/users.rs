//! Users outside the bundle: one read a request, writes that never wait.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use tokio::sync::OnceCell;

use super::live::{Lists, Live};
use super::local::{Entry, Local};
use super::log::Log;
use super::redis::{Asked, Redis};
use super::{
    EmbeddedConfig, Embedding, FeastConfig, Fit, List, LiveConfig, LocalConfig, MaterializeConfig,
    RedisConfig, list,
};
use crate::features::{UserRecord, UserRow};
use crate::monitor::{self, Cache, Fallback, Health, Hit};
use crate::types::UserId;

/// Section `[store]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where users are kept beside this process's own memory.
    pub users: UsersIn,
    pub embedded: EmbeddedConfig,
    pub redis: RedisConfig,
    pub feast: FeastConfig,
    pub local: LocalConfig,
    pub live: LiveConfig,
    pub materialize: MaterializeConfig,
}

/// Where users are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UsersIn {
    /// In this process, and in a file of its own: no other service is needed.
    Embedded,
    /// In Redis, shared by all replicas.
    Redis,
    /// In Redis, features as Feast materialised them there.
    Feast,
}

/// Why the store cannot be opened. An unreachable Redis is no reason: it is retried for ever.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("store.redis.url = \"{url}\": {reason}; give redis://[user:password@]host:port[/db]")]
    Url { url: String, reason: String },
    #[error("store.redis.tls_ca_file = \"{path}\": {reason}")]
    TlsFile { path: PathBuf, reason: String },
    #[error(
        "store.redis.url asks for TLS and this system knows no certificate authority: install \
         ca-certificates, or name a PEM file by store.redis.tls_ca_file"
    )]
    TlsAuthorities,
    #[error("{key} = 0: give at least 1")]
    Zero { key: &'static str },
    #[error("{key} is empty: `store.users = \"feast\"` reads by it")]
    Empty { key: &'static str },
    #[error("store.feast.views: users of the bundle have no column `{column}`")]
    FeastColumn { column: String },
    #[error("cannot set up the Redis client: {reason}")]
    Client { reason: String },
    #[error("store.embedded.file: {path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error(
        "store.embedded.file: another process has {path}: give each a file of its own, or share \
         users by store.users = \"redis\""
    )]
    FileTaken { path: PathBuf },
}

impl Config {
    /// Refuses what [`Users::open`] could not use.
    pub fn check(&self) -> Result<(), Error> {
        self.local.check()?;
        self.live.check()?;
        self.materialize.check()?;
        match self.users {
            UsersIn::Embedded => self.embedded.check(),
            UsersIn::Redis => self.redis.check(),
            UsersIn::Feast => self.redis.check().and_then(|()| self.feast.check()),
        }
    }
}

/// What is known of a user outside the bundle.
#[derive(Clone, Debug, Default)]
pub struct UserState {
    /// Of this bundle's tower; made from the history that its sequence names.
    pub embedding: Option<Embedding>,
    /// Newer than the bundle's own row, when there is one.
    pub record: Option<Arc<UserRecord>>,
    /// What stood in for a store that did not answer.
    pub degraded: Option<Fallback>,
    stored: Lists,
    own: Lists,
    shown_ttl_ms: i64,
}

impl UserState {
    /// The user's vector, if it was made from the history of this sequence; counted.
    pub fn vector(&self, sequence: u64) -> Option<Arc<[f32]>> {
        let fresh = self.embedding.as_ref().filter(|found| found.sequence == sequence);
        let hit = match (fresh, &self.embedding) {
            (Some(_), _) => Hit::Hit,
            (None, Some(_)) => Hit::Stale,
            (None, None) => Hit::Miss,
        };
        monitor::cache(Cache::Embedding, hit);
        fresh.map(|found| found.vector.clone())
    }

    /// Items and times (epoch ms) of the user's events, in no order; what this process has seen
    /// and the store has too comes twice.
    pub fn history(&self) -> impl Iterator<Item = (&str, i64)> {
        self.stored.history.newest_first().chain(self.own.history.newest_first())
    }

    /// Items shown to the user that still count as recently shown at `now_ms`, in no order, some
    /// perhaps twice.
    pub fn shown(&self, now_ms: i64) -> impl Iterator<Item = &str> {
        let since_ms = now_ms - self.shown_ttl_ms;
        let shown = self.stored.shown.newest_first().chain(self.own.shown.newest_first());
        shown.filter(move |&(_, time_ms)| time_ms > since_ms).map(|(id, _)| id)
    }
}

/// What keeps users beyond this process.
enum Behind {
    Nothing,
    File(Log),
    Redis(Box<Redis>),
}

/// What is known of users outside the bundle.
pub struct Users {
    live: Arc<Live>,
    local: Local,
    behind: Behind,
    flights: Flights,
    shown_ttl_ms: i64,
}

impl Users {
    /// Opens the store. With Redis, waits for the first connection as long as
    /// `store.redis.connect_timeout_ms`, then goes on without it; must run inside tokio, whose
    /// runtime drives the connections from then on.
    ///
    /// # Errors
    /// When the configuration is refused, or the embedded store's file cannot be used.
    pub async fn open(config: &Config, health: Arc<Health>) -> Result<Self, Error> {
        config.check()?;
        let live = Arc::new(Live::new(&config.live));
        let behind = match config.users {
            UsersIn::Embedded if config.embedded.file.as_os_str().is_empty() => Behind::Nothing,
            UsersIn::Embedded => Behind::File(Log::open(&config.embedded, live.clone())?),
            UsersIn::Redis | UsersIn::Feast => {
                Behind::Redis(Box::new(Redis::connect(config, health).await?))
            }
        };
        Ok(Self {
            live,
            local: Local::new(&config.local),
            behind,
            flights: Flights::default(),
            shown_ttl_ms: config.live.shown_ttl_s as i64 * 1000,
        })
    }

    /// Refuses a bundle without the columns that the configuration maps to.
    ///
    /// # Errors
    /// With the first column that is missing.
    pub fn check(&self, fit: &Fit) -> Result<(), Error> {
        match &self.behind {
            Behind::Redis(redis) => redis.check(fit),
            Behind::Nothing | Behind::File(_) => Ok(()),
        }
    }

    /// What is known at `now_ms` of a user whom the bundle knows as `base`: at most one round trip, and none while what was read before is
    /// fresh or another request is reading the same.
    pub async fn read(
        &self,
        fit: &Arc<Fit>,
        user: &UserId,
        base: UserRow<'_>,
        now_ms: i64,
    ) -> UserState {
        let own = self.live.get(&user.0);
        let cached = self.local.get(&user.0);
        let asked = Asked { user: &user.0, base, now_ms };
        let Behind::Redis(redis) = &self.behind else { return self.state(fit, cached, own, None) };
        let fresh = cached.as_ref().filter(|entry| entry.is_fresh(fit));
        monitor::cache(
            Cache::UserLocal,
            match (fresh, &cached) {
                (Some(entry), _) if entry.known => Hit::Hit,
                (Some(_), _) => Hit::Unknown,
                (None, Some(_)) => Hit::Stale,
                (None, None) => Hit::Miss,
            },
        );
        if fresh.is_some() {
            return self.state(fit, cached, own, None);
        }
        match self.flights.join(&user.0, self.fetch(redis, fit, asked)).await {
            Some(entry) => self.state(fit, Some(entry), own, None),
            None => {
                let kind = match cached {
                    Some(_) => Fallback::UserStateStale,
                    None => Fallback::UserStoreDown,
                };
                self.state(fit, cached, own, Some(kind))
            }
        }
    }

    /// What this process alone knows of a user; asks nobody.
    pub fn peek(&self, fit: &Arc<Fit>, user: &UserId) -> UserState {
        self.state(fit, self.local.get(&user.0), self.live.get(&user.0), None)
    }

    /// Remembers items and times (epoch ms) in a user's list: for the next request here at once,
    /// elsewhere when the write's turn comes. Never waits; when the queue of writes is full the
    /// write is given up and counted.
    pub fn extend<'a>(
        &self,
        user: &UserId,
        list: List,
        items: impl IntoIterator<Item = (&'a str, i64)>,
    ) {
        let mut block = Vec::new();
        items.into_iter().for_each(|(item, time_ms)| list::push(&mut block, item, time_ms));
        self.live.extend(&user.0, list, &block);
        match &self.behind {
            Behind::Nothing => {}
            Behind::File(log) => log.extend_later(&user.0, list, &block),
            Behind::Redis(redis) => redis.extend_later(&user.0, list, block),
        }
    }

    /// Keeps an embedding made here: in memory at once, in Redis when its turn comes; as
    /// [`Users::extend`].
    pub fn keep(&self, fit: &Arc<Fit>, user: &UserId, embedding: Embedding) {
        if let Behind::Redis(redis) = &self.behind {
            redis.put_later(fit, &user.0, &embedding);
        }
        self.local.put_embedding(fit, &user.0, embedding);
    }

    /// Waits until every write given before this call has been taken, or has failed.
    pub async fn flush(&self) {
        match &self.behind {
            Behind::Nothing => {}
            Behind::File(log) => log.flush().await,
            Behind::Redis(redis) => redis.flush().await,
        }
    }

    fn state(
        &self,
        fit: &Arc<Fit>,
        entry: Option<Arc<Entry>>,
        own: Lists,
        degraded: Option<Fallback>,
    ) -> UserState {
        let (embedding, record) = entry.as_ref().map(|entry| entry.of(fit)).unwrap_or_default();
        let stored = entry.map(|entry| entry.lists.clone()).unwrap_or_default();
        let shown_ttl_ms = self.shown_ttl_ms;
        UserState { embedding, record, degraded, stored, own, shown_ttl_ms }
    }

    async fn fetch(&self, redis: &Redis, fit: &Arc<Fit>, asked: Asked<'_>) -> Option<Arc<Entry>> {
        let read = redis.read(fit, asked).await;
        let (hit, stored) = match read {
            Ok(stored) if stored.known => (Hit::Hit, Some(stored)),
            Ok(stored) => (Hit::Unknown, Some(stored)),
            Err(why) => (why, None),
        };
        monitor::cache(Cache::UserRedis, hit);
        Some(self.local.put(fit, asked.user, stored?))
    }
}

/// Reads under way, one a user: who asks for a user that is being read waits for that read.
#[derive(Default)]
struct Flights(Mutex<HashMap<String, Arc<Flight>>>);

/// What came of a read; `None` is a failure.
type Flight = OnceCell<Option<Arc<Entry>>>;

impl Flights {
    async fn join(
        &self,
        user: &str,
        read: impl Future<Output = Option<Arc<Entry>>>,
    ) -> Option<Arc<Entry>> {
        let flight = self.lock().entry(user.to_owned()).or_default().clone();
        let seat = Seat { flights: self, user, flight };
        // A reader that is dropped half way leaves the read to the next one that waits.
        seat.flight.get_or_init(|| read).await.clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Flight>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's part in a flight; the flight ends for newcomers when the first one leaves.
struct Seat<'a> {
    flights: &'a Flights,
    user: &'a str,
    flight: Arc<Flight>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        // Left before the end, with others still waiting: theirs goes on.
        let over = self.flight.initialized() || Arc::strong_count(&self.flight) == 2;
        if over && flights.get(self.user).is_some_and(|now| Arc::ptr_eq(now, &self.flight)) {
            flights.remove(self.user);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
