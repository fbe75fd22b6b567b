//! Redis as a cache that may fail: bounded in time, in queued writes, and in how often a Redis
//! that does not answer is asked.
//!
//! Value of `sl:emb:{tower version}:{user}`, all little-endian:
//! ```text
//! 0  8      u64  sequence of the history
//! 8  4*dim  f32  the embedding
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fred::clients::Pool;
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::Builder;
use fred::types::config::{Config as FredConfig, ReconnectPolicy};
use fred::types::{Expiration, Value};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use super::Error;
use super::embeddings::Entry;
use crate::monitor::{self, Health, Hit};

/// Section `[store.redis]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `redis://[user:password@]host:port[/db]`.
    pub url: String,
    /// Connections.
    pub pool_size: usize,
    /// A connection attempt is given up after this, and so is the wait for the first one.
    pub connect_timeout_ms: u64,
    /// A read that takes longer is a miss.
    pub command_timeout_ms: u64,
    /// Time between two attempts to connect: the first, and the longest.
    pub reconnect_min_ms: u32,
    pub reconnect_max_ms: u32,
    /// How long Redis keeps an embedding, seconds.
    pub ttl_s: u64,
    /// Writes that may wait; one more is given up.
    pub writes_queue_max: usize,
    /// Failures in a row after which Redis is left alone for `pause_ms`.
    pub failures_until_pause: u32,
    pub pause_ms: u64,
}

impl Config {
    /// Refuses what [`Redis::connect`] could not use.
    pub fn check(&self) -> Result<(), Error> {
        self.fred()?;
        for (key, value) in [
            ("store.redis.pool_size", self.pool_size as u64),
            ("store.redis.connect_timeout_ms", self.connect_timeout_ms),
            ("store.redis.command_timeout_ms", self.command_timeout_ms),
            ("store.redis.reconnect_min_ms", self.reconnect_min_ms.into()),
            ("store.redis.reconnect_max_ms", self.reconnect_max_ms.into()),
            ("store.redis.ttl_s", self.ttl_s),
            ("store.redis.writes_queue_max", self.writes_queue_max as u64),
            ("store.redis.failures_until_pause", self.failures_until_pause.into()),
        ] {
            if value == 0 {
                return Err(Error::Zero { key });
            }
        }
        Ok(())
    }

    fn fred(&self) -> Result<FredConfig, Error> {
        let refuse = |reason: &str| Error::Url {
            url: without_password(&self.url),
            reason: reason.to_owned(),
        };
        // The client takes other words for a host name; TLS is not compiled in.
        if !self.url.starts_with("redis://") && !self.url.starts_with("redis-cluster://") {
            return Err(refuse("it does not begin with redis:// or redis-cluster://"));
        }
        let mut config =
            FredConfig::from_url(&self.url).map_err(|error| refuse(error.details()))?;
        // A Redis that is down at the start is like one that goes down later: retried.
        config.fail_fast = false;
        Ok(config)
    }
}

/// What Redis said.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    Found(Entry),
    /// No usable entry, and why.
    Nothing(Hit),
}

enum Write {
    Put { key: String, entry: Entry },
    Flush(oneshot::Sender<()>),
}

/// A pool of connections, a task that writes, and a memory of failures.
pub(super) struct Redis {
    pool: Pool,
    writes: mpsc::Sender<Write>,
    breaker: Arc<Breaker>,
}

/// Writes that go to Redis in one round trip.
const WRITES_A_TRIP_MAX: usize = 64;

impl Redis {
    pub async fn connect(config: &Config, health: Arc<Health>) -> Result<Self, Error> {
        config.check()?;
        let pool = Builder::from_config(config.fred()?)
            .with_connection_config(|connection| {
                connection.connection_timeout = Duration::from_millis(config.connect_timeout_ms);
                connection.internal_command_timeout =
                    Duration::from_millis(config.connect_timeout_ms);
                connection.max_command_attempts = 1;
                connection.max_command_buffer_len = config.writes_queue_max.max(1024);
                connection.tcp.nodelay = Some(true);
            })
            .with_performance_config(|performance| {
                performance.default_command_timeout =
                    Duration::from_millis(config.command_timeout_ms);
            })
            .set_policy(ReconnectPolicy::new_exponential(
                0,
                config.reconnect_min_ms,
                config.reconnect_max_ms,
                2,
            ))
            .build_pool(config.pool_size)
            .map_err(|error| Error::Client { reason: error.to_string() })?;
        drop(pool.connect_pool());
        let wait = Duration::from_millis(config.connect_timeout_ms);
        let breaker = Arc::new(Breaker::new(config, health));
        match tokio::time::timeout(wait, pool.wait_for_connect()).await {
            Ok(Ok(())) => breaker.succeeded(),
            _ => {
                tracing::warn!(
                    url = without_password(&config.url),
                    "Redis does not answer; serving without it and retrying"
                );
                breaker.open();
            }
        }
        let (writes, queue) = mpsc::channel(config.writes_queue_max);
        tokio::spawn(write(pool.clone(), queue, breaker.clone(), config.ttl_s));
        Ok(Self { pool, writes, breaker })
    }

    pub async fn get(&self, key: &str, dim: usize) -> Answer {
        if self.breaker.is_open() {
            return Answer::Nothing(Hit::Skipped);
        }
        let result: Result<Option<Vec<u8>>, _> = self.pool.next_connected().get(key).await;
        match result {
            Ok(value) => {
                self.breaker.succeeded();
                match value {
                    None => Answer::Nothing(Hit::Miss),
                    Some(bytes) => match decode(&bytes, dim) {
                        Some(entry) => Answer::Found(entry),
                        None => Answer::Nothing(Hit::Malformed),
                    },
                }
            }
            Err(error) => {
                self.breaker.failed(&error);
                Answer::Nothing(Hit::Error)
            }
        }
    }

    pub fn put_later(&self, key: String, entry: Entry) {
        if self.breaker.is_open() || self.writes.try_send(Write::Put { key, entry }).is_err() {
            monitor::cache_writes_dropped(1);
        }
    }

    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.writes.send(Write::Flush(done)).await.is_ok() {
            let _ = flushed.await;
        }
    }
}

async fn write(pool: Pool, mut queue: mpsc::Receiver<Write>, breaker: Arc<Breaker>, ttl_s: u64) {
    let mut batch = Vec::with_capacity(WRITES_A_TRIP_MAX);
    while queue.recv_many(&mut batch, WRITES_A_TRIP_MAX).await > 0 {
        let mut flushed = Vec::new();
        let mut puts = Vec::with_capacity(batch.len());
        for write in batch.drain(..) {
            match write {
                Write::Put { key, entry } => puts.push((key, entry)),
                Write::Flush(done) => flushed.push(done),
            }
        }
        let count = puts.len();
        if count > 0
            && let Err(error) = put_all(&pool, puts, ttl_s).await
        {
            breaker.failed(&error);
            monitor::cache_writes_dropped(count);
        }
        for done in flushed {
            let _ = done.send(());
        }
    }
}

async fn put_all(
    pool: &Pool,
    puts: Vec<(String, Entry)>,
    ttl_s: u64,
) -> Result<(), fred::error::Error> {
    let pipeline = pool.next_connected().pipeline();
    for (key, entry) in puts {
        let value = Value::Bytes(encode(&entry).into());
        let expire = Some(Expiration::EX(ttl_s as i64));
        let _queued: Value = pipeline.set(key, value, expire, None, false).await?;
    }
    let _done: Vec<Value> = pipeline.all().await?;
    Ok(())
}

fn encode(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + 4 * entry.vector.len());
    bytes.extend_from_slice(&entry.sequence.to_le_bytes());
    for value in entry.vector.iter() {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// `None` when the value is not an embedding of `dim` finite numbers.
fn decode(bytes: &[u8], dim: usize) -> Option<Entry> {
    let (sequence, numbers) = bytes.split_first_chunk::<8>()?;
    if numbers.len() != 4 * dim {
        return None;
    }
    let vector: Arc<[f32]> = numbers
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes(four.try_into().expect("chunks of four bytes")))
        .collect();
    vector
        .iter()
        .all(|value| value.is_finite())
        .then_some(Entry { sequence: u64::from_le_bytes(*sequence), vector })
}

/// Leaves a Redis alone that has failed several times in a row: without it, every request would
/// pay the timeout.
struct Breaker {
    start: Instant,
    failures: AtomicU32,
    failures_until_pause: u32,
    pause_ms: u64,
    /// Milliseconds since `start` until which Redis is not asked; 0 when it is.
    open_until_ms: AtomicU64,
    health: Arc<Health>,
}

const COMPONENT: &str = "redis";

impl Breaker {
    fn new(config: &Config, health: Arc<Health>) -> Self {
        Self {
            start: Instant::now(),
            // Full at first, so that the first success is told to health.
            failures: AtomicU32::new(config.failures_until_pause),
            failures_until_pause: config.failures_until_pause,
            pause_ms: config.pause_ms,
            open_until_ms: AtomicU64::new(0),
            health,
        }
    }

    fn is_open(&self) -> bool {
        let until = self.open_until_ms.load(Ordering::Relaxed);
        until != 0 && self.now_ms() < until
    }

    fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) == 0 {
            return;
        }
        if self.failures.swap(0, Ordering::Relaxed) >= self.failures_until_pause {
            self.open_until_ms.store(0, Ordering::Relaxed);
            self.health.set(COMPONENT, true, "connected");
            tracing::info!("Redis answers");
        }
    }

    fn failed(&self, error: &fred::error::Error) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures == self.failures_until_pause {
            tracing::warn!(%error, failures, "Redis fails; serving without it and retrying");
        }
        if failures >= self.failures_until_pause {
            self.open();
        }
    }

    fn open(&self) {
        self.open_until_ms.store(self.now_ms() + self.pause_ms, Ordering::Relaxed);
        self.health.set(COMPONENT, false, "does not answer; serving without it");
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
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
