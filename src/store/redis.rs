//! Redis as a store that may fail: bounded in time, in queued writes, and in how often a Redis
//! that does not answer is asked.
//!
//! ```text
//! sl:emb:{tower version}:{user}   embedding           store::fit
//! sl:feat:{user}                  features            store::fit
//! sl:hist:{user}                  history             store::list
//! sl:shown:{user}                 recently shown      store::list
//! ```
//! A read is one MGET of the four (docs/decisions/0006). Lists are strings that writers append to,
//! atomically in any number; whoever finds one twice too long cuts it by a script.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fred::clients::{Client, Pool};
use fred::interfaces::{ClientLike, EventInterface, HashesInterface, KeysInterface};
use fred::types::config::{Config as FredConfig, ReconnectPolicy};
use fred::types::{Builder, Value};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use super::feast::Feast;
use super::list::ItemList;
use super::live::Lists;
use super::local::Stored;
use super::{Embedding, Error, Fit, List, LiveConfig, UsersIn};
use crate::features::UserRow;
use crate::monitor::{self, Cache, Health, Hit};

mod breaker;
pub mod materialize;
mod threads;
mod tls;
mod writes;

use breaker::Breaker;
use threads::Threads;
use writes::{Write, Writer};

/// Section `[store.redis]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `redis://[user:password@]host:port[/db]`, or `redis-cluster://` or `redis-sentinel://`; with
    /// `rediss` over TLS.
    pub url: String,
    /// Who vouches for a server behind TLS, PEM; empty takes the system's authorities.
    pub tls_ca_file: PathBuf,
    /// Connections for writes, and for reads of threads that have none of their own.
    pub pool_size: usize,
    /// Threads that get a connection of their own for their reads.
    pub reading_threads_max: usize,
    /// A connection attempt is given up after this, and so is the wait for the first one.
    pub connect_timeout_ms: u64,
    /// A read that takes longer is given up.
    pub command_timeout_ms: u64,
    /// Time between two attempts to connect: the first, and the longest.
    pub reconnect_min_ms: u32,
    pub reconnect_max_ms: u32,
    /// How long Redis keeps an embedding, features and a history, seconds; recently shown items
    /// as long as they count.
    pub ttl_s: u64,
    /// Writes that may wait; one more is given up.
    pub writes_queue_max: usize,
    /// Failures in a row after which Redis is left alone for `pause_ms`.
    pub failures_until_pause: u32,
    pub pause_ms: u64,
}

impl Config {
    /// Refuses what `Redis::connect` could not use.
    pub fn check(&self) -> Result<(), Error> {
        self.fred()?;
        super::nonzero(&[
            ("store.redis.pool_size", self.pool_size as u64),
            ("store.redis.reading_threads_max", self.reading_threads_max as u64),
            ("store.redis.connect_timeout_ms", self.connect_timeout_ms),
            ("store.redis.command_timeout_ms", self.command_timeout_ms),
            ("store.redis.reconnect_min_ms", self.reconnect_min_ms.into()),
            ("store.redis.reconnect_max_ms", self.reconnect_max_ms.into()),
            ("store.redis.ttl_s", self.ttl_s),
            ("store.redis.writes_queue_max", self.writes_queue_max as u64),
            ("store.redis.failures_until_pause", self.failures_until_pause.into()),
            ("store.redis.pause_ms", self.pause_ms),
        ])
    }

    fn fred(&self) -> Result<FredConfig, Error> {
        let refuse = |reason: &str| Error::Url {
            url: without_password(&self.url),
            reason: reason.to_owned(),
        };
        // The client takes other words for a host name.
        if !SCHEMES.iter().any(|scheme| self.url.starts_with(scheme)) {
            return Err(refuse(&format!("it begins with none of {}", SCHEMES.join(" "))));
        }
        let tls = self.url.starts_with("rediss");
        if !tls && !self.tls_ca_file.as_os_str().is_empty() {
            return Err(refuse(
                "store.redis.tls_ca_file is set, and this is without TLS: rediss://",
            ));
        }
        // The client would ask for the system's authorities, needed or not.
        let plain = if tls { self.url.replacen("rediss", "redis", 1) } else { self.url.clone() };
        let mut config = FredConfig::from_url(&plain).map_err(|error| refuse(error.details()))?;
        if tls {
            config.tls = Some(tls::config(&self.tls_ca_file)?.into());
        }
        // A Redis that is down at the start is like one that goes down later: retried.
        config.fail_fast = false;
        Ok(config)
    }

    fn builder(&self) -> Result<Builder, Error> {
        let mut builder = Builder::from_config(self.fred()?);
        builder
            .with_connection_config(|connection| {
                let timeout = Duration::from_millis(self.connect_timeout_ms);
                connection.connection_timeout = timeout;
                connection.internal_command_timeout = timeout;
                connection.max_command_attempts = 1;
                connection.max_command_buffer_len = self.writes_queue_max.max(1024);
                connection.tcp.nodelay = Some(true);
            })
            .with_performance_config(|performance| {
                performance.default_command_timeout =
                    Duration::from_millis(self.command_timeout_ms);
            })
            .set_policy(ReconnectPolicy::new_exponential(
                0,
                self.reconnect_min_ms,
                self.reconnect_max_ms,
                2,
            ));
        Ok(builder)
    }
}

const SCHEMES: [&str; 6] = [
    "redis://",
    "redis-cluster://",
    "redis-sentinel://",
    "rediss://",
    "rediss-cluster://",
    "rediss-sentinel://",
];

/// Connects, and waits for the first connection of each of the pool; what went wrong last when
/// there is none by then. It goes on trying.
async fn connected(pool: &Pool, wait_ms: u64) -> Result<(), String> {
    let mut errors = pool.next().error_rx();
    drop(pool.connect_pool());
    let connected = pool.wait_for_connect();
    match tokio::time::timeout(Duration::from_millis(wait_ms), connected).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => match errors.try_recv() {
            Ok((error, _)) => Err(error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        },
    }
}

/// Connections, a task that writes, and a memory of failures.
pub(super) struct Redis {
    pool: Pool,
    threads: Threads,
    clustered: bool,
    writes: mpsc::Sender<Write>,
    breaker: Arc<Breaker>,
    live: LiveConfig,
    feast: Option<Feast>,
}

/// Who is asked for, and when.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub user: &'a str,
    /// The user as the bundle knows it.
    pub base: UserRow<'a>,
    /// Epoch milliseconds.
    pub now_ms: i64,
}

impl Redis {
    /// Connects as `[store.redis]` says, to read features as `store.users` says.
    pub async fn connect(store: &super::Config, health: Arc<Health>) -> Result<Self, Error> {
        let (config, live) = (&store.redis, &store.live);
        let feast = (store.users == UsersIn::Feast).then(|| Feast::new(&store.feast));
        let builder = config.builder()?;
        let setup = |error: fred::error::Error| Error::Client { reason: error.to_string() };
        let pool = builder.build_pool(config.pool_size).map_err(setup)?;
        let breaker = Arc::new(Breaker::new(config.failures_until_pause, config.pause_ms, health));
        match connected(&pool, config.connect_timeout_ms).await {
            Ok(()) => breaker.succeeded(),
            Err(reason) => {
                tracing::warn!(
                    url = without_password(&config.url),
                    reason,
                    "Redis does not answer; serving without it and retrying"
                );
                breaker.open();
            }
        }
        let (writes, queue) = mpsc::channel(config.writes_queue_max);
        let writer = Writer {
            pool: pool.clone(),
            breaker: breaker.clone(),
            ttl_s: config.ttl_s as i64,
            live: live.clone(),
        };
        tokio::spawn(writer.run(queue));
        let clustered = pool.is_clustered();
        let threads = Threads::new(builder, config.reading_threads_max);
        Ok(Self { pool, threads, clustered, writes, breaker, live: live.clone(), feast })
    }

    /// What Redis knows of a user, in one round trip.
    ///
    /// # Errors
    /// With how the lookup ended when Redis was not asked or did not answer.
    pub async fn read(&self, fit: &Fit, asked: Asked<'_>) -> Result<Stored, Hit> {
        if !self.breaker.admits() {
            return Err(Hit::Skipped);
        }
        let result = match self.client() {
            Some(client) => self.ask(&client, fit, asked.user).await,
            None => Err("no connection".to_owned()),
        };
        match result {
            Ok(reply) => {
                self.breaker.succeeded();
                Ok(self.stored(fit, asked, &reply))
            }
            Err(error) => {
                self.breaker.failed(&error);
                Err(Hit::Error)
            }
        }
    }

    /// Refuses a bundle without the columns that Feast's features map to.
    pub fn check(&self, fit: &Fit) -> Result<(), Error> {
        self.feast.as_ref().map_or(Ok(()), |feast| feast.check(fit))
    }

    pub fn put_later(&self, fit: &Fit, user: &str, embedding: &Embedding) {
        let key = embedding_key(fit, user);
        self.write_later(Write::Put { key, value: embedding.bytes() });
    }

    pub fn extend_later(&self, user: &str, list: List, block: Vec<u8>) {
        self.write_later(Write::Extend { key: list_key(list, user), list, block });
    }

    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.writes.send(Write::Flush(done)).await.is_ok() {
            let _ = flushed.await;
        }
    }

    fn write_later(&self, write: Write) {
        if self.breaker.is_open() || self.writes.try_send(write).is_err() {
            monitor::cache_writes_dropped(1);
        }
    }

    fn client(&self) -> Option<Client> {
        self.threads.client().or_else(|| {
            let client = self.pool.next_connected();
            client.is_connected().then(|| client.clone())
        })
    }

    /// One round trip: one command, or a pipeline where there is a hash of Feast, or where the keys
    /// may lie on several nodes.
    async fn ask(&self, client: &Client, fit: &Fit, user: &str) -> Result<Reply, String> {
        let failed = |error: fred::error::Error| error.to_string();
        let keys = keys(fit, user);
        let hash = self.feast.as_ref().and_then(|feast| Some((feast.key(user)?, feast.fields())));
        if hash.is_none() && !self.clustered {
            let values: Vec<Value> = client.mget(Vec::from(keys)).await.map_err(failed)?;
            return Reply::new(values, Vec::new());
        }
        let pipeline = client.pipeline();
        if self.clustered {
            for key in keys {
                let _queued: Value = pipeline.get(key).await.map_err(failed)?;
            }
        } else {
            let _queued: Value = pipeline.mget(Vec::from(keys)).await.map_err(failed)?;
        }
        let hashed = hash.is_some();
        if let Some((key, fields)) = hash {
            let _queued: Value = pipeline.hmget(key, fields).await.map_err(failed)?;
        }
        let mut replies: Vec<Value> = pipeline.all().await.map_err(failed)?;
        let feast = if hashed { last_array(&mut replies) } else { Vec::new() };
        Reply::new(if self.clustered { replies } else { last_array(&mut replies) }, feast)
    }

    fn stored(&self, fit: &Fit, asked: Asked<'_>, reply: &Reply) -> Stored {
        let [embedding, features, history, shown] = reply.values.each_ref().map(Value::as_bytes);
        let known = [embedding, features, history, shown].iter().any(Option::is_some);
        let embedding = embedding.and_then(|value| sound(fit.embedding(value)));
        let record = match &self.feast {
            Some(feast) => feast.record(fit, asked.base, &reply.feast, asked.now_ms, damaged),
            None => features.and_then(|value| sound(fit.features(value).ok()).flatten()),
        };
        let list = |value: Option<&[u8]>, list| {
            let (items, whole) = ItemList::read(value.unwrap_or_default(), self.live.max(list));
            sound(whole.then_some(()));
            items
        };
        let lists =
            Lists { history: list(history, List::History), shown: list(shown, List::Shown) };
        let known = known || record.is_some();
        Stored { embedding, record: record.map(Arc::new), lists, known }
    }
}

/// Values of a read.
const VALUES: usize = 4;

/// What Redis answered to a read.
struct Reply {
    values: [Value; VALUES],
    /// Of the hash of Feast; empty without one.
    feast: Vec<Value>,
}

impl Reply {
    fn new(values: Vec<Value>, feast: Vec<Value>) -> Result<Self, String> {
        let values = values
            .try_into()
            .map_err(|values: Vec<_>| format!("{} values, not {VALUES}", values.len()))?;
        Ok(Self { values, feast })
    }
}

fn last_array(replies: &mut Vec<Value>) -> Vec<Value> {
    replies.pop().map_or(Vec::new(), Value::into_array)
}

fn keys(fit: &Fit, user: &str) -> [String; VALUES] {
    [
        embedding_key(fit, user),
        feature_key(user),
        list_key(List::History, user),
        list_key(List::Shown, user),
    ]
}

fn embedding_key(fit: &Fit, user: &str) -> String {
    format!("sl:emb:{}:{user}", fit.tower_version)
}

fn feature_key(user: &str) -> String {
    format!("sl:feat:{user}")
}

fn list_key(list: List, user: &str) -> String {
    match list {
        List::History => format!("sl:hist:{user}"),
        List::Shown => format!("sl:shown:{user}"),
    }
}

/// Counts a value that is not what its key says.
fn sound<T>(value: Option<T>) -> Option<T> {
    if value.is_none() {
        damaged();
    }
    value
}

fn damaged() {
    monitor::cache(Cache::UserRedis, Hit::Malformed);
}

/// The address without what must not be in a log.
fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => {
            format!("{}://***@{}", &url[..scheme], &url[at + 1..])
        }
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests;
