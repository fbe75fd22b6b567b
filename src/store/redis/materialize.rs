//! Fills Redis with the users of a bundle, in the layout that requests read: many users a round
//! trip, and an error instead of a write that is given up.

use std::time::Duration;

use fred::clients::{Client, Pool};
use fred::interfaces::{ClientLike, HashesInterface, KeysInterface};
use fred::types::{Expiration, Key, SetOptions, Value};
use serde::Deserialize;

use super::super::feast::Feast;
use super::super::list::{self, ItemList};
use super::super::{self as store, Embedding, Fit, List};
use super::{connected, embedding_key, feature_key, list_key, without_password};
use crate::features::UserRow;

/// Section `[store.materialize]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Users whose values go to Redis in one round trip.
    pub batch_users: usize,
    /// Threads that encode and write; 0 is two a core.
    pub threads: usize,
    /// A batch that takes longer ends the work.
    pub timeout_ms: u64,
}

impl Config {
    /// Refuses a section with which nothing could be written.
    pub fn check(&self) -> Result<(), store::Error> {
        store::nonzero(&[
            ("store.materialize.batch_users", self.batch_users as u64),
            ("store.materialize.timeout_ms", self.timeout_ms),
        ])
    }
}

/// Why users could not be written. What was written before stays; writing again does no harm.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("store.redis.url = \"{url}\": no connection in {wait_ms} ms: {reason}")]
    Unreachable { url: String, wait_ms: u64, reason: String },
    #[error("{count} users from `{first}` on: Redis refused them: {reason}")]
    Refused { count: usize, first: String, reason: String },
    #[error("user `{user}` is no {join_key} of the type in store.feast.join_key_type")]
    FeastId { user: String, join_key: String },
}

/// What is written of a user beside features.
pub struct Materialized<'a> {
    pub id: &'a str,
    pub row: UserRow<'a>,
    pub embedding: Option<Embedding>,
    /// Items and times (epoch ms), oldest first; a list that Redis has already is left as it is.
    pub history: Vec<(&'a str, i64)>,
}

/// Connections for writing many users.
pub struct Materializer {
    pool: Pool,
    clustered: bool,
    ttl_s: i64,
    history_max: usize,
    /// Features go here instead of `sl:feat`.
    feast: Option<Feast>,
    join_key: String,
}

impl Materializer {
    /// Connects as `[store.redis]` says; features are written in Feast's layout when `feast`. Must
    /// run inside tokio, whose runtime drives the connections from then on.
    ///
    /// # Errors
    /// When the configuration is refused or Redis does not answer.
    pub async fn connect(config: &store::Config, feast: bool) -> Result<Self, Error> {
        config.redis.check()?;
        config.live.check()?;
        config.materialize.check()?;
        if feast {
            config.feast.check()?;
        }
        let redis = &config.redis;
        let mut builder = redis.builder()?;
        builder.with_performance_config(|performance| {
            performance.default_command_timeout =
                Duration::from_millis(config.materialize.timeout_ms);
        });
        builder.with_connection_config(|connection| connection.max_command_buffer_len = 0);
        let setup = |error: fred::error::Error| store::Error::Client { reason: error.to_string() };
        let pool = builder.build_pool(redis.pool_size).map_err(setup)?;
        let wait_ms = redis.connect_timeout_ms;
        connected(&pool, wait_ms).await.map_err(|reason| {
            let url = without_password(&redis.url);
            Error::Unreachable { url, wait_ms, reason }
        })?;
        Ok(Self {
            clustered: pool.is_clustered(),
            pool,
            ttl_s: redis.ttl_s as i64,
            history_max: config.live.history_max,
            feast: feast.then(|| Feast::new(&config.feast)),
            join_key: config.feast.join_key.clone(),
        })
    }

    /// Refuses a bundle without the columns that Feast's features map to.
    pub fn check(&self, fit: &Fit) -> Result<(), Error> {
        Ok(self.feast.as_ref().map_or(Ok(()), |feast| feast.check(fit))?)
    }

    /// What Redis has of users' histories, one list a user.
    ///
    /// # Errors
    /// When Redis does not answer in time or refuses.
    pub async fn histories(&self, users: &[&str]) -> Result<Vec<ItemList>, Error> {
        let failed = refused(users.len(), users.first().copied());
        let values = self.get(users).await.map_err(failed)?;
        let list = |value: &Value| {
            ItemList::read(value.as_bytes().unwrap_or_default(), self.history_max).0
        };
        Ok(values.iter().map(list).collect())
    }

    /// Writes users of a bundle, whose features were true at `as_of_ms`, in one round trip; for
    /// Feast another one finds out what is as new there already. Returns how many rows of Feast's
    /// views stay for that reason.
    ///
    /// # Errors
    /// When Redis does not answer in time or refuses.
    pub async fn write(
        &self,
        fit: &Fit,
        as_of_ms: i64,
        users: &[Materialized<'_>],
    ) -> Result<usize, Error> {
        let failed = refused(users.len(), users.first().map(|user| user.id));
        let keys = users.iter().map(|user| self.feast_key(user.id)).collect::<Result<_, _>>()?;
        self.send(fit, as_of_ms, users, keys).await.map_err(failed)
    }

    /// The key of a user's hash of Feast, where features go there.
    fn feast_key(&self, user: &str) -> Result<Option<Key>, Error> {
        let Some(feast) = &self.feast else { return Ok(None) };
        let no_id = || Error::FeastId { user: user.to_owned(), join_key: self.join_key.clone() };
        feast.key(user).ok_or_else(no_id).map(Some)
    }

    async fn send(
        &self,
        fit: &Fit,
        as_of_ms: i64,
        users: &[Materialized<'_>],
        keys: Vec<Option<Key>>,
    ) -> Result<usize, fred::error::Error> {
        let client = self.pool.next_connected();
        let mut times = Vec::new();
        if let Some(feast) = &self.feast {
            let pipeline = client.pipeline();
            for key in keys.iter().flatten() {
                let _queued: Value = pipeline.hmget(key, feast.time_fields()).await?;
            }
            times = pipeline.all().await?;
        }
        let mut times = times.into_iter().map(Value::into_array);
        let pipeline = client.pipeline();
        let mut left_out = 0;
        for (user, key) in users.iter().zip(keys) {
            if let (Some(feast), Some(key)) = (&self.feast, key) {
                let (hash, left) =
                    feast.hash(fit, user.row, as_of_ms, &times.next().unwrap_or_default());
                left_out += left;
                if !hash.is_empty() {
                    let _queued: Value = pipeline.hset(&key, hash).await?;
                    if let Some(ttl_s) = feast.key_ttl_s() {
                        let _queued: Value = pipeline.expire(&key, ttl_s, None).await?;
                    }
                }
            } else {
                let value = fit.feature_bytes(user.row);
                self.set(&pipeline, feature_key(user.id), value, None).await?;
            }
            if let Some(embedding) = &user.embedding {
                let key = embedding_key(fit, user.id);
                self.set(&pipeline, key, embedding.bytes(), None).await?;
            }
            if !user.history.is_empty() {
                let mut block = Vec::new();
                let surplus = user.history.len().saturating_sub(self.history_max);
                let kept = &user.history[surplus..];
                kept.iter().for_each(|&(item, time_ms)| list::push(&mut block, item, time_ms));
                let (key, absent) = (list_key(List::History, user.id), Some(SetOptions::NX));
                self.set(&pipeline, key, block, absent).await?;
            }
        }
        let _replies: Vec<Value> = pipeline.all().await?;
        Ok(left_out)
    }

    async fn set(
        &self,
        pipeline: &fred::clients::Pipeline<Client>,
        key: String,
        value: Vec<u8>,
        options: Option<SetOptions>,
    ) -> Result<(), fred::error::Error> {
        let (value, expire) = (Value::Bytes(value.into()), Some(Expiration::EX(self.ttl_s)));
        let _queued: Value = pipeline.set(key, value, expire, options, false).await?;
        Ok(())
    }

    async fn get(&self, users: &[&str]) -> Result<Vec<Value>, fred::error::Error> {
        let client = self.pool.next_connected();
        let keys = users.iter().map(|user| Key::from(list_key(List::History, user)));
        if !self.clustered {
            return client.mget(keys.collect::<Vec<_>>()).await;
        }
        let pipeline = client.pipeline();
        for key in keys {
            let _queued: Value = pipeline.get(key).await?;
        }
        pipeline.all().await
    }
}

fn refused(count: usize, first: Option<&str>) -> impl Fn(fred::error::Error) -> Error + use<'_> {
    move |error| {
        let first = first.unwrap_or_default().to_owned();
        Error::Refused { count, first, reason: error.to_string() }
    }
}
