//! What was read of users lately, in this process: W-TinyLFU, bounded in users and in time.
//!
//! An entry is fresh for a while, shorter when the store knew nothing of the user; after that it is
//! kept for when the store does not answer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::sync::Cache as Moka;
use serde::Deserialize;

use super::live::Lists;
use super::{Embedding, Error, Fit};
use crate::features::UserRecord;

/// Section `[store.local]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Users that are remembered.
    pub users_max: u64,
    /// How long what was read counts as fresh, milliseconds.
    pub fresh_ms: u64,
    /// How long it does when the store knew nothing of the user, milliseconds.
    pub unknown_fresh_ms: u64,
    /// How long it is kept for when the store does not answer, seconds.
    pub kept_s: u64,
}

impl Config {
    /// Refuses a cache that could hold nothing.
    pub fn check(&self) -> Result<(), Error> {
        super::nonzero(&[
            ("store.local.users_max", self.users_max),
            ("store.local.fresh_ms", self.fresh_ms),
            ("store.local.unknown_fresh_ms", self.unknown_fresh_ms),
            ("store.local.kept_s", self.kept_s),
        ])
    }
}

/// What a store knows of a user.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    pub embedding: Option<Embedding>,
    pub record: Option<Arc<UserRecord>>,
    pub lists: Lists,
    /// Whether the store had any value of this user.
    pub known: bool,
}

/// What was read of a user.
pub struct Entry {
    /// The bundle that embedding and record belong to.
    fit: Arc<Fit>,
    embedding: Mutex<Option<Embedding>>,
    record: Option<Arc<UserRecord>>,
    pub lists: Lists,
    pub known: bool,
    /// `None` when nothing was read: the entry only holds an embedding made here.
    fresh_until: Option<Instant>,
}

impl Entry {
    /// Whether the store need not be asked again for requests on this bundle.
    pub fn is_fresh(&self, fit: &Arc<Fit>) -> bool {
        Arc::ptr_eq(&self.fit, fit) && self.fresh_until.is_some_and(|until| Instant::now() < until)
    }

    /// The embedding and the features, if they are of this bundle.
    pub fn of(&self, fit: &Arc<Fit>) -> (Option<Embedding>, Option<Arc<UserRecord>>) {
        if !Arc::ptr_eq(&self.fit, fit) {
            return (None, None);
        }
        (self.embedding().clone(), self.record.clone())
    }

    fn embedding(&self) -> std::sync::MutexGuard<'_, Option<Embedding>> {
        self.embedding.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cache.
pub struct Local {
    users: Moka<String, Arc<Entry>>,
    fresh: Duration,
    unknown_fresh: Duration,
}

impl Local {
    /// An empty cache.
    pub fn new(config: &Config) -> Self {
        Self {
            users: Moka::builder()
                .max_capacity(config.users_max)
                .time_to_live(Duration::from_secs(config.kept_s))
                .build(),
            fresh: Duration::from_millis(config.fresh_ms),
            unknown_fresh: Duration::from_millis(config.unknown_fresh_ms),
        }
    }

    /// What was read of a user, fresh or not.
    pub fn get(&self, user: &str) -> Option<Arc<Entry>> {
        self.users.get(user)
    }

    /// Keeps what was just read of a user.
    pub fn put(&self, fit: &Arc<Fit>, user: &str, stored: Stored) -> Arc<Entry> {
        let fresh = if stored.known { self.fresh } else { self.unknown_fresh };
        let entry = Arc::new(Entry {
            fit: fit.clone(),
            embedding: Mutex::new(stored.embedding),
            record: stored.record,
            lists: stored.lists,
            known: stored.known,
            fresh_until: Some(Instant::now() + fresh),
        });
        self.users.insert(user.to_owned(), entry.clone());
        entry
    }

    /// Keeps an embedding made here; what was read of the user stays as fresh as it was.
    pub fn put_embedding(&self, fit: &Arc<Fit>, user: &str, embedding: Embedding) {
        let old = self.users.get(user);
        if let Some(entry) = &old
            && Arc::ptr_eq(&entry.fit, fit)
        {
            *entry.embedding() = Some(embedding);
            return;
        }
        let lists = old.map(|entry| entry.lists.clone()).unwrap_or_default();
        let entry = Entry {
            fit: fit.clone(),
            embedding: Mutex::new(Some(embedding)),
            record: None,
            lists,
            known: false,
            fresh_until: None,
        };
        self.users.insert(user.to_owned(), Arc::new(entry));
    }
}
