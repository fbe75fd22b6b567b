//! User embeddings that were encoded before: this process's memory first, then Redis.
//!
//! An embedding belongs to one tower and to one history. The history is named by its sequence, a
//! fingerprint (see [`super::Live::sequence`]): an embedding of another sequence is stale, and may
//! only stand in when encoding is impossible.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache as Moka;
use serde::Deserialize;

use super::redis::{Answer, Redis};
use super::{Error, RedisConfig};
use crate::monitor::{self, Cache, Health, Hit};
use crate::types::UserId;

/// Section `[store.embeddings]`: the memory of this process.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Memory for embeddings, MiB.
    pub local_mib_max: u64,
    /// An embedding older than this is forgotten, seconds.
    pub local_ttl_s: u64,
}

impl Config {
    /// Refuses a cache that could hold nothing.
    pub fn check(&self) -> Result<(), Error> {
        if self.local_mib_max == 0 {
            return Err(Error::Zero { key: "store.embeddings.local_mib_max" });
        }
        if self.local_ttl_s == 0 {
            return Err(Error::Zero { key: "store.embeddings.local_ttl_s" });
        }
        Ok(())
    }
}

/// Which tower an embedding comes from, and how many numbers it has.
#[derive(Clone, Copy, Debug)]
pub struct Tower<'a> {
    pub version: &'a str,
    pub dim: usize,
}

/// What a lookup found; every vector has the tower's dimension and only finite numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// The embedding of exactly this history.
    Fresh(Arc<[f32]>),
    /// An embedding of another history of this user.
    Stale(Arc<[f32]>),
    Miss,
}

impl Lookup {
    /// The embedding, if it is of exactly this history.
    pub fn fresh(self) -> Option<Arc<[f32]>> {
        match self {
            Lookup::Fresh(vector) => Some(vector),
            Lookup::Stale(_) | Lookup::Miss => None,
        }
    }
}

/// An embedding and the history that it was made from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub sequence: u64,
    pub vector: Arc<[f32]>,
}

/// The cache of user embeddings.
pub struct Embeddings {
    local: Moka<String, Entry>,
    remote: Remote,
}

enum Remote {
    Nothing,
    Redis(Redis),
}

impl Embeddings {
    /// Embeddings in this process's memory only.
    pub fn embedded(config: &Config) -> Self {
        Self { local: local(config), remote: Remote::Nothing }
    }

    /// Embeddings in memory and in Redis; see [`super::Users::open`].
    pub async fn redis(
        config: &Config,
        redis: &RedisConfig,
        health: Arc<Health>,
    ) -> Result<Self, Error> {
        let redis = Redis::connect(redis, health).await?;
        Ok(Self { local: local(config), remote: Remote::Redis(redis) })
    }

    /// The embedding of `user` under `tower`, if one was kept.
    pub async fn get(&self, tower: Tower<'_>, user: &UserId, sequence: u64) -> Lookup {
        let key = key(tower, user);
        let local = self.local.get(&key).filter(|entry| entry.vector.len() == tower.dim);
        monitor::cache(Cache::EmbeddingLocal, hit(local.as_ref(), sequence));
        match local {
            Some(entry) if entry.sequence == sequence => return Lookup::Fresh(entry.vector),
            _ => {}
        }
        let stale = |entry: Option<Entry>| entry.map_or(Lookup::Miss, |e| Lookup::Stale(e.vector));
        let Remote::Redis(redis) = &self.remote else { return stale(local) };
        match redis.get(&key, tower.dim).await {
            Answer::Found(entry) if entry.sequence == sequence => {
                monitor::cache(Cache::EmbeddingRedis, Hit::Hit);
                self.local.insert(key, entry.clone());
                Lookup::Fresh(entry.vector)
            }
            Answer::Found(entry) => {
                monitor::cache(Cache::EmbeddingRedis, Hit::Stale);
                stale(local.or(Some(entry)))
            }
            Answer::Nothing(why) => {
                monitor::cache(Cache::EmbeddingRedis, why);
                stale(local)
            }
        }
    }

    /// Keeps an embedding: in memory at once, in Redis when its turn comes. Never waits; when the
    /// queue of writes is full the write is given up and counted.
    pub fn put_later(&self, tower: Tower<'_>, user: &UserId, sequence: u64, vector: Arc<[f32]>) {
        debug_assert_eq!(vector.len(), tower.dim, "an embedding has its tower's dimension");
        let key = key(tower, user);
        if let Remote::Redis(redis) = &self.remote {
            redis.put_later(key.clone(), Entry { sequence, vector: vector.clone() });
        }
        self.local.insert(key, Entry { sequence, vector });
    }

    /// Waits until Redis has taken, or failed to take, every write given before this call.
    pub async fn flush(&self) {
        if let Remote::Redis(redis) = &self.remote {
            redis.flush().await;
        }
    }
}

fn local(config: &Config) -> Moka<String, Entry> {
    // Key, entry and the cache's own bookkeeping, measured roughly: what counts is that the sum
    // of the weights stays near the memory that was allowed.
    const OVERHEAD_BYTES: usize = 160;
    Moka::builder()
        .max_capacity(config.local_mib_max << 20)
        .weigher(|key: &String, entry: &Entry| {
            (key.len() + entry.vector.len() * 4 + OVERHEAD_BYTES) as u32
        })
        .time_to_live(Duration::from_secs(config.local_ttl_s))
        .build()
}

/// `sl:emb:{tower version}:{user}`: the key in Redis, and in memory too.
fn key(tower: Tower<'_>, user: &UserId) -> String {
    let mut key = String::with_capacity(8 + tower.version.len() + user.0.len());
    key.push_str("sl:emb:");
    key.push_str(tower.version);
    key.push(':');
    key.push_str(&user.0);
    key
}

fn hit(entry: Option<&Entry>, sequence: u64) -> Hit {
    match entry {
        Some(entry) if entry.sequence == sequence => Hit::Hit,
        Some(_) => Hit::Stale,
        None => Hit::Miss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOWER: Tower<'static> = Tower { version: "t1", dim: 2 };

    #[tokio::test]
    async fn an_embedding_is_fresh_for_its_own_history_only() {
        let embeddings = Embeddings::embedded(&Config { local_mib_max: 1, local_ttl_s: 60 });
        let (user, other) = (UserId("7".into()), UserId("8".into()));
        let vector: Arc<[f32]> = Arc::from([0.5, -0.5]);
        embeddings.put_later(TOWER, &user, 11, vector.clone());
        assert_eq!(embeddings.get(TOWER, &user, 11).await, Lookup::Fresh(vector.clone()));
        assert_eq!(embeddings.get(TOWER, &user, 12).await, Lookup::Stale(vector));
        assert_eq!(embeddings.get(TOWER, &other, 11).await, Lookup::Miss);
        let next = Tower { version: "t2", dim: 2 };
        assert_eq!(embeddings.get(next, &user, 11).await, Lookup::Miss, "towers do not mix");
        let wider = Tower { version: "t1", dim: 3 };
        assert_eq!(embeddings.get(wider, &user, 11).await, Lookup::Miss);
    }

    #[test]
    fn the_key_is_the_documented_one() {
        assert_eq!(key(TOWER, &UserId("user:1".into())), "sl:emb:t1:user:1");
    }
}
