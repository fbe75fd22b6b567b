//! The registry: `bundles/` and `rollout/` under one object-store address.
//!
//! Which bundle serves is `rollout/<n>.json`; the highest `n` rules. A state is created only when
//! absent, the one conditional write that every store has, so two writers can never both win.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};

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

/// Which bundle serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// The bundle's version.
    pub bundle: String,
    /// Share of users it serves, in percent.
    pub percent: u8,
    /// Why: who or what decided.
    pub reason: String,
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
        let next = self.current().await?.map_or(1, |(n, _)| n + 1);
        let bytes = serde_json::to_vec_pretty(rollout).expect("three plain fields");
        let key = Key::from(format!("rollout/{next}.json"));
        let create = PutOptions::from(PutMode::Create);
        match self.store.put_opts(&key, bytes.into(), create).await {
            Ok(_) => Ok(Some(next)),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(bundle: &str) -> Rollout {
        Rollout { bundle: bundle.into(), percent: 100, reason: "test".into() }
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
