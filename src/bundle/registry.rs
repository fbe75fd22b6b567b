//! The registry: `bundles/` and `rollout/` under one object-store address.
//!
//! Which bundle serves, and which one is tried beside it, is `rollout/<n>.json`; the highest `n` rules. A
//! state is created only when absent, the one conditional write that every store has, so two writers
//! can never both win. What replicas count of a trial is `rollout/counts/<first state>/<process>.json`;
//! each process writes its own, everybody reads all.

use std::path::{Path, PathBuf};

use object_store::ObjectStoreExt;
use object_store::path::Path as Key;
use serde::Deserialize;

use super::manifest::{Error as ManifestError, FILE_NAME as MANIFEST_FILE, Manifest};
use super::rollout::Rollout;
use crate::experiments::Counts;
use crate::objects::{self, Objects};

/// Section `[registry]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A directory, `file:///...` or `s3://BUCKET/PREFIX`.
    pub url: String,
    /// Where the bundles of a bucket are kept to be opened.
    pub cache_dir: PathBuf,
    /// Bundles that publishing leaves in the registry beside those in use; 0 leaves all.
    pub bundles_kept: usize,
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

/// Why the registry could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("registry: {0}")]
    Objects(#[from] objects::Error),
    #[error("registry: {0}")]
    Store(#[from] object_store::Error),
    #[error("registry: bundle `{version}`: {source}")]
    Bundle { version: String, source: ManifestError },
    #[error("registry: {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
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
    objects: Objects,
    /// Holds `bundles/`: the registry's own directory, or the copies of what a bucket has.
    root: PathBuf,
}

impl Registry {
    /// Opens (and creates) the registry that a configuration names.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let objects = Objects::open(&config.url)?;
        let root = objects.directory().unwrap_or(&config.cache_dir).to_owned();
        Ok(Self { objects, root })
    }

    /// A registry of a directory.
    pub fn in_directory(dir: &Path) -> Result<Self, Error> {
        let objects = Objects::open(&dir.to_string_lossy())?;
        Ok(Self { root: objects.directory().unwrap_or(dir).to_owned(), objects })
    }

    /// Where a bundle's files lie, or would.
    pub fn bundle_dir(&self, version: &str) -> Result<PathBuf, Error> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if version.is_empty() || !version.chars().all(plain) {
            return Err(Error::Version(version.to_owned()));
        }
        Ok(self.root.join("bundles").join(version))
    }

    /// Where a bundle's files lie; those of a bucket are fetched first, once, and checked.
    pub async fn bundle(&self, version: &str) -> Result<PathBuf, Error> {
        let dir = self.bundle_dir(version)?;
        if self.objects.directory().is_some() || dir.join(MANIFEST_FILE).exists() {
            return Ok(dir);
        }
        let partial = dir.with_extension("partial");
        let prefix = format!("bundles/{version}");
        for object in self.objects.list(&prefix).await? {
            let name = object.key.strip_prefix(&prefix).unwrap_or(&object.key);
            let file = partial.join(name.trim_start_matches('/'));
            // What an interrupted fetch has left is whole; its checksum is compared below.
            if !file.metadata().is_ok_and(|found| found.len() == object.length_bytes) {
                self.objects.get_file(&object.key, &file).await?;
            }
        }
        if let Err(source) = Manifest::open(&partial, true) {
            let _ = std::fs::remove_dir_all(&partial);
            return Err(Error::Bundle { version: version.to_owned(), source });
        }
        match std::fs::rename(&partial, &dir) {
            // Another process of this host was faster.
            Err(_) if dir.join(MANIFEST_FILE).exists() => Ok(dir),
            Err(source) => Err(Error::Io { path: dir, source }),
            Ok(()) => Ok(dir),
        }
    }

    /// Makes a bundle whose files lie at [`Registry::bundle_dir`] known to all: its manifest last, and
    /// only where there is none.
    pub async fn upload(&self, version: &str) -> Result<(), Error> {
        let dir = self.bundle_dir(version)?;
        if self.objects.directory().is_some() {
            return Ok(());
        }
        let io = |source| Error::Io { path: dir.clone(), source };
        for entry in std::fs::read_dir(&dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != MANIFEST_FILE {
                let key = format!("bundles/{version}/{name}");
                self.objects.put_file(&entry.path(), &key).await?;
            }
        }
        let manifest = std::fs::read(dir.join(MANIFEST_FILE)).map_err(io)?;
        self.objects.create(&format!("bundles/{version}/{MANIFEST_FILE}"), manifest).await?;
        Ok(())
    }

    /// Deletes the oldest bundles until `kept` are left beside those in `used`; 0 keeps all. Returns
    /// what was deleted.
    pub async fn prune(&self, kept: usize, used: &[&str]) -> Result<Vec<String>, Error> {
        if kept == 0 {
            return Ok(Vec::new());
        }
        let mut bundles = Vec::new();
        for version in self.objects.folders("bundles").await? {
            let manifest = Key::from(format!("bundles/{version}/{MANIFEST_FILE}"));
            match self.store().head(&manifest).await {
                Ok(meta) => bundles.push((meta.last_modified, version)),
                // It is being written, or something else.
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bundles.sort();
        bundles.retain(|(_, version)| !used.contains(&version.as_str()));
        let surplus = bundles.len().saturating_sub(kept);
        let gone: Vec<String> = bundles.drain(..surplus).map(|(_, version)| version).collect();
        for version in &gone {
            // The manifest first: what is left without one is no bundle.
            self.objects.delete(&format!("bundles/{version}/{MANIFEST_FILE}")).await?;
            for object in self.objects.list(&format!("bundles/{version}")).await? {
                self.objects.delete(&object.key).await?;
            }
            let dir = self.bundle_dir(version)?;
            if dir.exists() {
                std::fs::remove_dir_all(&dir).map_err(|source| Error::Io { path: dir, source })?;
            }
        }
        Ok(gone)
    }

    /// Writes an object that is not there yet; false when it is.
    pub(super) async fn create(&self, key: &Key, bytes: Vec<u8>) -> Result<bool, Error> {
        Ok(self.objects.create(key.as_ref(), bytes).await?)
    }

    /// Where its objects lie.
    pub(super) fn store(&self) -> &dyn object_store::ObjectStore {
        self.objects.store()
    }

    /// The newest rollout state and its number; `None` before the first.
    pub async fn current(&self) -> Result<Option<(u64, Rollout)>, Error> {
        let listing = self.store().list_with_delimiter(Some(&Key::from("rollout"))).await?;
        let number = |key: &Key| key.filename()?.strip_suffix(".json")?.parse::<u64>().ok();
        let newest = listing
            .objects
            .iter()
            .filter_map(|o| Some((number(&o.location)?, o)))
            .max_by_key(|&(n, _)| n);
        let Some((n, object)) = newest else { return Ok(None) };
        let bytes = self.store().get(&object.location).await?.bytes().await?;
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
        let key = format!("rollout/{next}.json");
        Ok(self.objects.create(&key, bytes).await?.then_some(next))
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
        self.store().put(&key, bytes.into()).await?;
        Ok(())
    }

    /// What all processes have counted of a rollout, pooled, and how many they are.
    pub async fn read_counts(&self, first_state: u64) -> Result<(Counts, usize), Error> {
        let prefix = Key::from(counts_of(first_state));
        let listing = self.store().list_with_delimiter(Some(&prefix)).await?;
        let is_counts = |key: &Key| key.filename().is_some_and(|name| name.ends_with(".json"));
        let (mut pooled, mut processes) = (Counts::default(), 0);
        for object in listing.objects.iter().filter(|object| is_counts(&object.location)) {
            let key = || object.location.to_string();
            let bytes = self.store().get(&object.location).await?.bytes().await?;
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
    use crate::bundle::{Challenger, Course};
    use crate::experiments::{Arm, ArmCounts, Stage, StageCounts};

    fn rollout(bundle: &str) -> Rollout {
        Rollout::whole(bundle, "test", "")
    }

    #[tokio::test]
    async fn only_one_state_follows_another_and_old_states_stay_readable() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::in_directory(dir.path()).unwrap();
        let old = r#"{"bundle": "a", "percent": 100, "reason": "day"}"#;
        std::fs::create_dir_all(dir.path().join("rollout")).unwrap();
        std::fs::write(dir.path().join("rollout/1.json"), old).unwrap();
        let (n, first) = registry.current().await.unwrap().unwrap();
        assert_eq!((n, first.clone()), (1, Rollout::whole("a", "day", "")));
        let course = Course::begin(Stage::Shadow, 2, 5);
        let trial =
            Rollout { challenger: Some(Challenger { bundle: "b".into(), course }), ..first };
        assert_eq!(registry.succeed(1, &trial).await.unwrap(), Some(2));
        assert_eq!(registry.succeed(1, &rollout("c")).await.unwrap(), None, "decided too late");
        let (n, read) = registry.current().await.unwrap().unwrap();
        assert_eq!((n, &read), (2, &trial));
    }

    #[tokio::test]
    async fn counts_of_all_processes_are_pooled_and_damaged_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::in_directory(dir.path()).unwrap();
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
        let registry = Registry::in_directory(dir.path()).unwrap();
        assert_eq!(registry.current().await.unwrap(), None);
        for n in 1..=11 {
            let written = registry.advance(&rollout(&format!("b{n}"))).await.unwrap();
            assert_eq!(written, Some(n));
        }
        let (n, state) = registry.current().await.unwrap().unwrap();
        assert_eq!((n, state.bundle.as_str()), (11, "b11"));
    }

    #[tokio::test]
    async fn old_bundles_go_and_those_in_use_stay() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::in_directory(dir.path()).unwrap();
        for (at, version) in ["b1", "b2", "b3", "b4", "b5"].into_iter().enumerate() {
            let bundle = registry.bundle_dir(version).unwrap();
            std::fs::create_dir_all(&bundle).unwrap();
            std::fs::write(bundle.join("index.bin"), "rows").unwrap();
            std::fs::write(bundle.join(MANIFEST_FILE), "{}").unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000 + at as u64);
            let manifest = std::fs::File::options().write(true).open(bundle.join(MANIFEST_FILE));
            manifest.unwrap().set_modified(time).unwrap();
        }
        std::fs::create_dir_all(registry.bundle_dir("being-written").unwrap()).unwrap();
        std::fs::write(registry.bundle_dir("being-written").unwrap().join("x"), "x").unwrap();
        assert!(registry.prune(0, &[]).await.unwrap().is_empty(), "0 keeps all");
        assert_eq!(registry.prune(2, &["b1"]).await.unwrap(), ["b2", "b3"]);
        let left = registry.objects.folders("bundles").await.unwrap();
        assert_eq!(left, ["b1", "b4", "b5", "being-written"]);
        assert!(registry.prune(2, &["b1"]).await.unwrap().is_empty());
    }

    #[test]
    fn a_version_cannot_leave_the_registry_and_a_foreign_scheme_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::in_directory(dir.path()).unwrap();
        assert!(registry.bundle_dir("../other").is_err());
        assert!(registry.bundle_dir("20171201-ab12").is_ok());
        let config = Config {
            url: "ftp://host/x".into(),
            cache_dir: dir.path().into(),
            bundles_kept: 0,
            verify: false,
            poll_interval_ms: 1,
        };
        let error = Registry::open(&config).unwrap_err().to_string();
        assert!(error.contains("ftp://host/x") && error.contains("s3://BUCKET"), "{error}");
    }
}
