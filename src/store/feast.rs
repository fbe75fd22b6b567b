//! Users' features as Feast materialised them into Redis: which of its features are which columns.
//!
//! One hash a user holds all views. A value that Feast has takes the place of the bundle's own; what
//! it does not have, or has too old a value of, stays as the bundle says.

use fred::types::{Key, Value as Reply};
use serde::Deserialize;
use std::collections::BTreeMap;

use super::{Error, Fit};
use crate::features::{UserRecord, UserRow};

mod codec;

use codec::{KeyType, Value};

/// Section `[store.feast]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Feast's name of the project.
    pub project: String,
    /// The entity's join key, and how Feast stores ids.
    pub join_key: String,
    pub join_key_type: KeyType,
    pub views: Vec<View>,
    /// A hash that is written here expires after this, seconds; 0 never does.
    pub key_ttl_s: u64,
}

/// A feature view.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    pub name: String,
    /// A row older than this is not used, seconds; 0 is never too old.
    pub ttl_s: u64,
    /// From Feast's names of features to columns of users; moments are epoch days there.
    pub features: BTreeMap<String, String>,
}

impl Config {
    /// Refuses a section that could read nothing.
    pub fn check(&self) -> Result<(), Error> {
        for (key, empty) in [
            ("store.feast.project", self.project.is_empty()),
            ("store.feast.join_key", self.join_key.is_empty()),
            ("store.feast.views", self.views.iter().all(|view| view.features.is_empty())),
        ] {
            if empty {
                return Err(Error::Empty { key });
            }
        }
        Ok(())
    }
}

/// Reads and writes users as Feast does.
pub struct Feast {
    config: Config,
    /// Of each view its time, then its features in the order of the configuration.
    fields: Vec<Key>,
}

impl Feast {
    pub fn new(config: &Config) -> Self {
        let fields = config.views.iter().flat_map(|view| {
            let features = view.features.keys();
            std::iter::once(Key::from(codec::time_field(&view.name)))
                .chain(features.map(|name| Key::from(&codec::field(&view.name, name)[..])))
        });
        Self { fields: fields.collect(), config: config.clone() }
    }

    /// The key of a user's hash; `None` for an id that Feast cannot have.
    pub fn key(&self, user: &str) -> Option<Key> {
        let Config { project, join_key, join_key_type, .. } = &self.config;
        codec::key(project, join_key, *join_key_type, user).map(|key| Key::from(&key[..]))
    }

    /// The fields of a read.
    pub fn fields(&self) -> Vec<Key> {
        self.fields.clone()
    }

    /// The fields that say how new a user's views are, in the order of the configuration.
    pub fn time_fields(&self) -> Vec<Key> {
        self.config.views.iter().map(|view| Key::from(codec::time_field(&view.name))).collect()
    }

    /// After how many seconds a hash expires, if ever.
    pub fn key_ttl_s(&self) -> Option<i64> {
        Some(self.config.key_ttl_s as i64).filter(|&ttl_s| ttl_s > 0)
    }

    /// Refuses a mapping to columns that the bundle does not have.
    pub fn check(&self, fit: &Fit) -> Result<(), Error> {
        let mut columns = self.config.views.iter().flat_map(|view| view.features.values());
        match columns.find(|column| fit.column(column).is_none()) {
            Some(column) => Err(Error::FeastColumn { column: column.clone() }),
            None => Ok(()),
        }
    }

    /// Fields and values of a user's hash, true at `time_ms`, and the number of views that are left
    /// out: as Feast does, those whose row in Redis is as new. `times` answers
    /// [`Feast::time_fields`].
    pub fn hash(
        &self,
        fit: &Fit,
        user: UserRow<'_>,
        time_ms: i64,
        times: &[Reply],
    ) -> (Vec<(Key, Reply)>, usize) {
        let (mut hash, mut left_out) = (Vec::with_capacity(self.fields.len()), 0);
        let mut fields = &self.fields[..];
        for (view, time) in self.config.views.iter().zip(times) {
            let (own, others) = fields.split_at(1 + view.features.len());
            fields = others;
            if time.as_bytes().and_then(codec::time_ms).is_some_and(|there_ms| there_ms >= time_ms)
            {
                left_out += 1;
                continue;
            }
            let features = view.features.values();
            let values = std::iter::once(codec::time_bytes(time_ms))
                .chain(features.map(|column| codec::value_bytes(&feast_value(fit, user, column))));
            hash.extend(own.iter().cloned().zip(values.map(|bytes| Reply::Bytes(bytes.into()))));
        }
        (hash, left_out)
    }

    /// The user with Feast's values at `now_ms` in the place of the bundle's; `None` when Feast has
    /// none. Calls `damaged` for each value that cannot be used.
    pub fn record(
        &self,
        fit: &Fit,
        base: UserRow<'_>,
        replies: &[Reply],
        now_ms: i64,
        mut damaged: impl FnMut(),
    ) -> Option<UserRecord> {
        let mut replies = replies.iter().map(Reply::as_bytes);
        let mut record = None;
        for view in &self.config.views {
            let time_ms = replies.next().flatten().map(codec::time_ms);
            if time_ms == Some(None) {
                damaged();
            }
            let lives = time_ms.flatten().is_some_and(|time_ms| {
                view.ttl_s == 0 || now_ms.saturating_sub(time_ms) <= view.ttl_s as i64 * 1000
            });
            for column in view.features.values() {
                let (Some(bytes), true) = (replies.next().flatten(), lives) else { continue };
                let Some((at, dictionary)) = fit.column(column) else { continue };
                let number = match (codec::value(bytes), dictionary) {
                    (Some(Value::Null), _) => f32::NAN,
                    (Some(Value::Number(number)), None) => number as f32,
                    (Some(Value::Text(text)), Some(known)) => known.feature(Some(&text)),
                    _ => {
                        damaged();
                        continue;
                    }
                };
                record.get_or_insert_with(|| fit.record(base)).set(at, number);
            }
        }
        record
    }
}

/// A column of a user as Feast keeps it: codes as the strings that they stand for.
fn feast_value(fit: &Fit, user: UserRow<'_>, column: &str) -> Value {
    let Some((at, dictionary)) = fit.column(column) else { return Value::Null };
    let value = user.value(at);
    match dictionary {
        _ if value.is_nan() => Value::Null,
        Some(known) => known.value(value as u32).map_or(Value::Null, |s| Value::Text(s.to_owned())),
        None => Value::Number(value.into()),
    }
}
