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
use super::{embedding_key, feature_key, list_key, without_password};
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
    #[error("store.redis.url = \"{url}\": no connection in {wait_ms} ms; start Redis there")]
    Unreachable { url: String, wait_ms: u64 },
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
        drop(pool.connect_pool());
        let wait_ms = redis.connect_timeout_ms;
        let connected = pool.wait_for_connect();
        match tokio::time::timeout(Duration::from_millis(wait_ms), connected).await {
            Ok(Ok(())) => {}
            _ => return Err(Error::Unreachable { url: without_password(&redis.url), wait_ms }),
        }
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
        let values = self.get(users).await.map_err(|error| refused(users, &error))?;
        let list = |value: &Value| {
            ItemList::read(value.as_bytes().unwrap_or_default(), self.history_max).0
        };
        Ok(values.iter().map(list).collect())
    }

    /// Writes users of a bundle, whose features were true at `as_of_ms`, in one round trip.
    ///
    /// # Errors
    /// When Redis does not answer in time or refuses.
    pub async fn write(
        &self,
        fit: &Fit,
        as_of_ms: i64,
        users: &[Materialized<'_>],
    ) -> Result<(), Error> {
        let pipeline = self.pool.next_connected().pipeline();
        let failed = |error: fred::error::Error| {
            let ids: Vec<_> = users.iter().map(|user| user.id).collect();
            refused(&ids, &error)
        };
        for user in users {
            match &self.feast {
                Some(feast) => {
                    let key = feast.key(user.id).ok_or_else(|| self.no_feast_id(user.id))?;
                    let hash = feast.hash(fit, user.row, as_of_ms);
                    let _queued: Value = pipeline.hset(key, hash).await.map_err(failed)?;
                }
                None => {
                    let value = fit.feature_bytes(user.row);
                    self.set(&pipeline, feature_key(user.id), value, None).await.map_err(failed)?;
                }
            }
            if let Some(embedding) = &user.embedding {
                let key = embedding_key(fit, user.id);
                self.set(&pipeline, key, embedding.bytes(), None).await.map_err(failed)?;
            }
            if !user.history.is_empty() {
                let mut block = Vec::new();
                let surplus = user.history.len().saturating_sub(self.history_max);
                let kept = &user.history[surplus..];
                kept.iter().for_each(|&(item, time_ms)| list::push(&mut block, item, time_ms));
                let (key, absent) = (list_key(List::History, user.id), Some(SetOptions::NX));
                self.set(&pipeline, key, block, absent).await.map_err(failed)?;
            }
        }
        let _replies: Vec<Value> = pipeline.all().await.map_err(failed)?;
        Ok(())
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

    fn no_feast_id(&self, user: &str) -> Error {
        Error::FeastId { user: user.to_owned(), join_key: self.join_key.clone() }
    }
}

fn refused(users: &[&str], error: &fred::error::Error) -> Error {
    let first = users.first().copied().unwrap_or_default().to_owned();
    Error::Refused { count: users.len(), first, reason: error.to_string() }
}
