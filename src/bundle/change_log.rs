//! The change log of items: what was upserted, patched and deleted, in the order that all replicas
//! follow.
//!
//! A batch of changes is `items/changes/<n>.json`, created only when absent, so of two writers of a
//! number one wins and the other first applies what the winner wrote. Numbers have no gaps: who has
//! applied n asks for n + 1. Old batches go from the front; the newest always stays, because it
//! says which number is next.

use std::collections::BTreeMap;

use object_store::ObjectStoreExt;
use object_store::path::Path as Key;
use serde::{Deserialize, Serialize};

use super::registry::{Error, Registry};
use crate::store::items::ItemRecord;

const DIR: &str = "items/changes";

/// One change of one item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// The item in whole, new or instead of what it was.
    Upsert(Upsert),
    /// What is given replaces what was; the rest stays.
    Patch(Patch),
    Delete {
        id: String,
    },
}

/// See [`Change::Upsert`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upsert {
    pub record: ItemRecord,
    /// Further columns of the items table by name.
    pub attributes: BTreeMap<String, Attribute>,
}

/// See [`Change::Patch`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_stock: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions: Option<Vec<String>>,
}

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Attribute {
    Number(f64),
    Text(String),
}

/// Changes that are applied as one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// When it was taken, epoch milliseconds, UTC.
    pub time_ms: i64,
    pub changes: Vec<Change>,
}

/// The change log of a registry.
#[derive(Clone, Debug)]
pub struct ChangeLog(Registry);

impl ChangeLog {
    /// The log in this registry.
    pub fn new(registry: Registry) -> Self {
        Self(registry)
    }

    /// The number before the oldest batch that is kept: where a reader of everything begins.
    pub async fn start(&self) -> Result<u64, Error> {
        Ok(self.numbers().await?.first().map_or(0, |first| first - 1))
    }

    /// A batch by number; `None` when it is not there (yet).
    pub async fn read(&self, n: u64) -> Result<Option<Batch>, Error> {
        let key = key(n);
        let found = match self.0.store().get(&key).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let bytes = found.bytes().await?;
        let batch = serde_json::from_slice(&bytes);
        batch.map(Some).map_err(|source| Error::Json { key: key.to_string(), source })
    }

    /// Writes batch `n`; false when another writer took the number first.
    pub async fn append(&self, n: u64, batch: &Batch) -> Result<bool, Error> {
        let bytes = serde_json::to_vec(batch).expect("strings, finite numbers and lists");
        self.0.create(&key(n), bytes).await
    }

    /// Deletes the oldest batches, as long as they are older than `before_ms` and not the newest;
    /// returns how many.
    pub async fn prune(&self, before_ms: i64) -> Result<usize, Error> {
        let numbers = self.numbers().await?;
        let mut pruned = 0;
        for &n in numbers.iter().take(numbers.len().saturating_sub(1)) {
            match self.read(n).await? {
                Some(batch) if batch.time_ms >= before_ms => break,
                _ => {}
            }
            match self.0.store().delete(&key(n)).await {
                // Another replica may have been faster.
                Ok(()) | Err(object_store::Error::NotFound { .. }) => pruned += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(pruned)
    }

    /// The numbers that are kept, ascending.
    async fn numbers(&self) -> Result<Vec<u64>, Error> {
        let listing = self.0.store().list_with_delimiter(Some(&Key::from(DIR))).await?;
        let number = |key: &Key| key.filename()?.strip_suffix(".json")?.parse::<u64>().ok();
        let mut numbers: Vec<u64> =
            listing.objects.iter().filter_map(|o| number(&o.location)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

fn key(n: u64) -> Key {
    Key::from(format!("{DIR}/{n}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(dir: &tempfile::TempDir) -> [ChangeLog; 2] {
        let open = || ChangeLog::new(Registry::in_directory(dir.path()).unwrap());
        [open(), open()]
    }

    fn batch(time_ms: i64, id: &str) -> Batch {
        Batch { time_ms, changes: vec![Change::Delete { id: id.to_owned() }] }
    }

    #[tokio::test]
    async fn of_two_writers_of_a_number_one_wins_and_both_read_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = logs(&dir);
        assert_eq!((one.start().await.unwrap(), one.read(1).await.unwrap()), (0, None));
        assert!(one.append(1, &batch(10, "a")).await.unwrap());
        assert!(!two.append(1, &batch(11, "b")).await.unwrap());
        assert!(two.append(2, &batch(12, "b")).await.unwrap());
        for log in [&one, &two] {
            assert_eq!(log.read(1).await.unwrap(), Some(batch(10, "a")));
            assert_eq!(log.read(2).await.unwrap(), Some(batch(12, "b")));
            assert_eq!(log.read(3).await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn what_is_old_goes_from_the_front_and_the_newest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let [log, _] = logs(&dir);
        for n in 1..=11 {
            assert!(log.append(n, &batch(n as i64, "a")).await.unwrap());
        }
        assert_eq!(log.prune(10).await.unwrap(), 9);
        assert_eq!(log.start().await.unwrap(), 9);
        assert_eq!(log.prune(1000).await.unwrap(), 1);
        assert_eq!((log.start().await.unwrap(), log.read(11).await.unwrap().is_some()), (10, true));
    }

    #[tokio::test]
    async fn every_kind_of_change_survives_and_a_foreign_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let [log, _] = logs(&dir);
        let record = ItemRecord {
            id: "a".into(),
            price: Some(0.1),
            labels: vec!["x".into()],
            ..ItemRecord::default()
        };
        let attributes = [
            ("brand".to_owned(), Attribute::Text("b".into())),
            ("rating".to_owned(), Attribute::Number(4.5)),
        ];
        let patch = Patch { id: "a".into(), labels: Some(vec![]), ..Patch::default() };
        let changes = vec![
            Change::Upsert(Upsert { record, attributes: attributes.into() }),
            Change::Patch(patch),
            Change::Delete { id: "a".into() },
        ];
        let written = Batch { time_ms: 1, changes };
        assert!(log.append(1, &written).await.unwrap());
        assert_eq!(log.read(1).await.unwrap(), Some(written));
        std::fs::write(dir.path().join(DIR).join("2.json"), "{").unwrap();
        assert!(log.read(2).await.unwrap_err().to_string().contains("items/changes/2.json"));
    }
}
