//! The registry: `bundles/` and `rollout/` under one object-store address.
//!
//! Which bundle serves, and which one is tried beside it, is `rollout/<n>.json`; the highest `n` rules. A
//! state is created only when absent, the one conditional write that every store has, so two writers
//! can never both win. What replicas count of a trial is `rollout/counts/<first state>/<process>.json`;
//! each process writes its own, everybody reads all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};

use crate::experiments::{Counts, Stage};

/// Section `[registry]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A directory, or `file:///...`.
    pub url: String,
    /// Whether opening a bundle reads every byte and compares checksums.
    pub verify: bool,
    /// Time between two looks at which bundle is to serve, milliseconds.
    pub poll_interval_ms: u64,
}

impl Config {
    /// Refuses what could not be followed.
    pub fn check(&self) -> Result<(), Error> {
        if self.poll_interval_ms == 0 { Err(Error::Poll) } else { Ok(()) }
    }
}

/// Which bundle serves, and which one is tried beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// The bundle's version.
    pub bundle: String,
    /// Share of users it serves, in percent.
    pub percent: u8,
    /// Why.
    pub reason: String,
    /// Who wrote it: a replica, or a person.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub who: String,
    /// What is tried beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenger: Option<Challenger>,
}

/// A bundle on trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenger {
    /// The bundle's version.
    pub bundle: String,
    pub stage: Stage,
    /// Decides with a user's id who sees it.
    pub salt: String,
    /// Since when it is at this stage, epoch milliseconds, UTC.
    pub since_ms: i64,
    /// The number of the rollout's first state: its name.
    pub first_state: u64,
    /// It does not advance by itself.
    #[serde(default)]
    pub paused: bool,
}

impl Rollout {
    /// This bundle for everybody.
    pub fn whole(bundle: &str, reason: &str, who: &str) -> Self {
        let (bundle, reason, who) = (bundle.to_owned(), reason.to_owned(), who.to_owned());
        Self { bundle, percent: 100, reason, who, challenger: None }
    }

    /// The same trial at another stage.
    pub fn at(&self, stage: Stage, since_ms: i64, reason: &str, who: &str) -> Self {
        let (reason, who) = (reason.to_owned(), who.to_owned());
        let challenger = self.challenger.clone();
        let challenger = challenger.map(|before| Challenger { stage, since_ms, ..before });
        let percent = 100 - stage.percent().min(100);
        Self { bundle: self.bundle.clone(), percent, reason, who, challenger }
    }
}

/// Why the registry could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("registry.url `{url}`: only a directory or file:// is supported by this build")]
    Scheme { url: String },
    #[error("registry `{url}`: {source}")]
    Io { url: String, source: std::io::Error },
    #[error("registry: {0}")]
    Store(#[from] object_store::Error),
    #[error("registry: {key}: {source}")]
    Json { key: String, source: serde_json::Error },
    #[error("registry.poll_interval_ms = 0: give at least 1")]
    Poll,
    #[error("registry: bundle version `{0}` is not a plain name")]
    Version(String),
    #[error("registry: {what} is not what a replica of this version writes; delete it")]
    Foreign { what: String },
}

/// An opened registry.
#[derive(Clone, Debug)]
pub struct Registry {
    root: PathBuf,
    store: Arc<LocalFileSystem>,
}

impl Registry {
    /// Opens (and creates) the registry at `url`.
    pub fn open(url: &str) -> Result<Self, Error> {
        let path = url.strip_prefix("file://").unwrap_or(url);
        if path.contains("://") {
            return Err(Error::Scheme { url: url.to_owned() });
        }
        let io = |source| Error::Io { url: url.to_owned(), source };
        std::fs::create_dir_all(path).map_err(io)?;
        let root = Path::new(path).canonicalize().map_err(io)?;
        let store = Arc::new(LocalFileSystem::new_with_prefix(&root)?);
        Ok(Self { root, store })
    }

    /// Where a bundle's files lie.
    pub fn bundle_dir(&self, version: &str) -> Result<PathBuf, Error> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if version.is_empty() || !version.chars().all(plain) {
            return Err(Error::Version(version.to_owned()));
        }
        Ok(self.root.join("bundles").join(version))
    }

    /// Where its objects lie.
    pub(super) fn store(&self) -> &LocalFileSystem {
        &self.store
    }

    /// The newest rollout state and its number; `None` before the first.
    pub async fn current(&self) -> Result<Option<(u64, Rollout)>, Error> {
        let listing = self.store.list_with_delimiter(Some(&Key::from("rollout"))).await?;
        let number = |key: &Key| key.filename()?.strip_suffix(".json")?.parse::<u64>().ok();
        let newest = listing
            .objects
            .iter()
            .filter_map(|o| Some((number(&o.location)?, o)))
            .max_by_key(|&(n, _)| n);
        let Some((n, object)) = newest else { return Ok(None) };
        let bytes = self.store.get(&object.location).await?.bytes().await?;
        let rollout = serde_json::from_slice(&bytes)
            .map_err(|source| Error::Json { key: object.location.to_string(), source })?;
        Ok(Some((n, rollout)))
    }

    /// Writes the next state. `Ok(None)` when another writer took the number first: read
    /// [`Registry::current`] again and decide anew.
    pub async fn advance(&self, rollout: &Rollout) -> Result<Option<u64>, Error> {
        let last = self.current().await?.map_or(0, |(n, _)| n);
        self.succeed(last, rollout).await
    }

    /// Writes the state after state `last`, from which it was decided. `Ok(None)` when `last` has a
    /// successor already.
    pub async fn succeed(&self, last: u64, rollout: &Rollout) -> Result<Option<u64>, Error> {
        let next = last + 1;
        let bytes = serde_json::to_vec_pretty(rollout).expect("plain fields");
        let key = Key::from(format!("rollout/{next}.json"));
        let create = PutOptions::from(PutMode::Create);
        match self.store.put_opts(&key, bytes.into(), create).await {
            Ok(_) => Ok(Some(next)),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what `process` has counted of a rollout, in place of what it wrote before.
    pub async fn write_counts(
        &self,
        first_state: u64,
        process: &str,
        counts: &Counts,
    ) -> Result<(), Error> {
        let bytes = serde_json::to_vec(counts).expect("numbers and names");
        let key = Key::from(format!("{}/{process}.json", counts_of(first_state)));
        self.store.put(&key, bytes.into()).await?;
        Ok(())
    }

    /// What all processes have counted of a rollout, pooled, and how many they are.
    pub async fn read_counts(&self, first_state: u64) -> Result<(Counts, usize), Error> {
        let prefix = Key::from(counts_of(first_state));
        let listing = self.store.list_with_delimiter(Some(&prefix)).await?;
        let is_counts = |key: &Key| key.filename().is_some_and(|name| name.ends_with(".json"));
        let (mut pooled, mut processes) = (Counts::default(), 0);
        for object in listing.objects.iter().filter(|object| is_counts(&object.location)) {
            let key = || object.location.to_string();
            let bytes = self.store.get(&object.location).await?.bytes().await?;
            let counts: Counts = serde_json::from_slice(&bytes)
                .map_err(|source| Error::Json { key: key(), source })?;
            let mut arms = counts.stages.iter().flat_map(|stage| &stage.arms);
            if !arms.all(|arm| arm.groups.is_whole() && arm.latency.is_whole()) {
                return Err(Error::Foreign { what: key() });
            }
            pooled.add(&counts);
            processes += 1;
        }
        Ok((pooled, processes))
    }
}

fn counts_of(first_state: u64) -> String {
    format!("rollout/counts/{first_state}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiments::{Arm, ArmCounts, StageCounts};

    fn rollout(bundle: &str) -> Rollout {
        Rollout::whole(bundle, "test", "")
    }

    #[tokio::test]
    async fn only_one_state_follows_another_and_old_states_stay_readable() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path().to_str().unwrap()).unwrap();
        let old = r#"{"bundle": "a", "percent": 100, "reason": "day"}"#;
        std::fs::create_dir_all(dir.path().join("rollout")).unwrap();
        std::fs::write(dir.path().join("rollout/1.json"), old).unwrap();
        let (n, first) = registry.current().await.unwrap().unwrap();
        assert_eq!((n, first.clone()), (1, Rollout::whole("a", "day", "")));
        let challenger = Challenger {
            bundle: "b".into(),
            stage: Stage::Shadow,
            salt: "s".into(),
            since_ms: 5,
            first_state: 2,
            paused: false,
        };
        let trial = Rollout { challenger: Some(challenger), ..first };
        assert_eq!(registry.succeed(1, &trial).await.unwrap(), Some(2));
        assert_eq!(registry.succeed(1, &rollout("c")).await.unwrap(), None, "decided too late");
        let (n, read) = registry.current().await.unwrap().unwrap();
        assert_eq!((n, &read), (2, &trial));
        let next = read.at(Stage::Percent(25), 9, "fine", "replica");
        assert_eq!((next.percent, next.challenger.unwrap().since_ms), (75, 9));
    }

    #[tokio::test]
    async fn counts_of_all_processes_are_pooled_and_damaged_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path().to_str().unwrap()).unwrap();
        let counts = |requests| {
            let arm = ArmCounts { requests, ..ArmCounts::default() };
            Counts { stages: vec![StageCounts { state: 2, arms: [arm.clone(), arm] }] }
        };
        for (process, requests) in [("a", 1), ("b", 10), ("a", 3)] {
            registry.write_counts(2, process, &counts(requests)).await.unwrap();
        }
        registry.write_counts(3, "a", &counts(100)).await.unwrap();
        let (pooled, processes) = registry.read_counts(2).await.unwrap();
        assert_eq!((pooled.stage(2).unwrap().arm(Arm::Stable).requests, processes), (13, 2));
        assert_eq!(registry.current().await.unwrap(), None, "counts are no states");
        let mut short = counts(1);
        short.stages[0].arms[0].groups.clicks = vec![1.0; 3];
        registry.write_counts(2, "c", &short).await.unwrap();
        let error = registry.read_counts(2).await.unwrap_err().to_string();
        assert!(error.contains("rollout/counts/2/c.json"), "{error}");
    }

    #[tokio::test]
    async fn the_highest_number_rules_and_is_compared_as_a_number() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(registry.current().await.unwrap(), None);
        for n in 1..=11 {
            let written = registry.advance(&rollout(&format!("b{n}"))).await.unwrap();
            assert_eq!(written, Some(n));
        }
        let (n, state) = registry.current().await.unwrap().unwrap();
        assert_eq!((n, state.bundle.as_str()), (11, "b11"));
    }

    #[test]
    fn a_version_cannot_leave_the_registry_and_a_foreign_scheme_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path().to_str().unwrap()).unwrap();
        assert!(registry.bundle_dir("../other").is_err());
        assert!(registry.bundle_dir("20171201-ab12").is_ok());
        let error = Registry::open("s3://bucket/x").unwrap_err().to_string();
        assert!(error.contains("s3://bucket/x"));
    }
}
