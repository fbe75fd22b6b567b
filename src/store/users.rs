//! Users outside the bundle: opens what the configuration names.

use std::sync::Arc;

use serde::Deserialize;

use super::{Embeddings, EmbeddingsConfig, Live, LiveConfig, RedisConfig};
use crate::monitor::Health;

/// Section `[store]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where user embeddings are kept beside this process's own memory.
    pub users: UsersIn,
    pub redis: RedisConfig,
    pub embeddings: EmbeddingsConfig,
    pub live: LiveConfig,
}

/// Where users are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UsersIn {
    /// In this process only: no other service is needed.
    Embedded,
    /// In Redis, shared by all replicas.
    Redis,
}

/// Why the store cannot be opened. An unreachable Redis is no reason: it is retried for ever.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("store.redis.url = \"{url}\": {reason}; give redis://[user:password@]host:port[/db]")]
    Url { url: String, reason: String },
    #[error("{key} = 0: give at least 1")]
    Zero { key: &'static str },
    #[error("cannot set up the Redis client: {reason}")]
    Client { reason: String },
}

impl Config {
    /// Refuses what [`Users::open`] could not use.
    pub fn check(&self) -> Result<(), Error> {
        self.embeddings.check()?;
        self.live.check()?;
        match self.users {
            UsersIn::Embedded => Ok(()),
            UsersIn::Redis => self.redis.check(),
        }
    }
}

/// What is known of users outside the bundle.
pub struct Users {
    pub embeddings: Embeddings,
    pub live: Live,
}

impl Users {
    /// Opens the store. With Redis, waits for the first connection as long as
    /// `store.redis.connect_timeout_ms`, then goes on without it; must run inside tokio, whose
    /// runtime drives the connections from then on.
    pub async fn open(config: &Config, health: Arc<Health>) -> Result<Self, Error> {
        config.check()?;
        let embeddings = match config.users {
            UsersIn::Embedded => Embeddings::embedded(&config.embeddings),
            UsersIn::Redis => Embeddings::redis(&config.embeddings, &config.redis, health).await?,
        };
        Ok(Self { embeddings, live: Live::new(&config.live) })
    }
}
