//! The working directory of a run: one folder a step, and what has been done.
//!
//! A step is done when `<step>/done.json` holds the fingerprint of everything that it depends on:
//! its own settings and the fingerprints of the steps before it. A run that was stopped anywhere
//! goes on at the first step that is not done; a changed setting redoes the steps it touches.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The directory of one run.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Done {
    fingerprint: String,
    seconds: f64,
}

/// Names what a step's output depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Of nothing: where a chain starts.
    pub fn start() -> Self {
        Self(String::new())
    }

    /// This and one more dependency.
    pub fn and(&self, what: impl AsRef<[u8]>) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(self.0.as_bytes()).update(&[0]).update(what.as_ref());
        Self(hash.finalize().to_hex()[..32].to_owned())
    }
}

impl Workspace {
    /// Opens (and creates) the directory.
    pub fn open(root: &Path) -> Result<Self> {
        std::fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
        Ok(Self { root: root.to_owned() })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Empties a step's directory unless it was filled with the same fingerprint: for a step
    /// that adds to what it did before.
    pub fn own(&self, name: &str, fingerprint: &Fingerprint) -> Result<()> {
        let dir = self.dir(name);
        if self.done(name).is_some_and(|done| done.fingerprint == fingerprint.0) {
            return Ok(());
        }
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let done = Done { fingerprint: fingerprint.0.clone(), seconds: 0.0 };
        write_atomically(&dir.join("done.json"), &serde_json::to_vec_pretty(&done)?)
    }

    /// Where a step writes.
    pub fn dir(&self, step: &str) -> PathBuf {
        self.root.join(step)
    }

    /// Runs a step unless it is done with the same fingerprint; says which.
    pub fn step(
        &self,
        name: &str,
        fingerprint: &Fingerprint,
        run: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let dir = self.dir(name);
        let marker = dir.join("done.json");
        if self.done(name).is_some_and(|done| done.fingerprint == fingerprint.0) {
            tracing::info!("{name}: done before, kept");
            return Ok(());
        }
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        if marker.exists() {
            std::fs::remove_file(&marker)
                .with_context(|| format!("remove {}", marker.display()))?;
        }
        let start = Instant::now();
        run(&dir).with_context(|| format!("step `{name}`"))?;
        let seconds = start.elapsed().as_secs_f64();
        let done = Done { fingerprint: fingerprint.0.clone(), seconds };
        write_atomically(&marker, &serde_json::to_vec_pretty(&done)?)?;
        tracing::info!("{name}: {seconds:.1} s");
        Ok(())
    }

    fn done(&self, step: &str) -> Option<Done> {
        let bytes = std::fs::read(self.dir(step).join("done.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}

/// Writes a file under a temporary name and renames it, so that a reader sees all or nothing.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, bytes).with_context(|| format!("write {}", partial.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("rename to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_runs_again_only_when_it_failed_or_its_dependencies_changed() {
        let dir = tempfile::tempdir().unwrap();
        let work = Workspace::open(dir.path()).unwrap();
        let mut runs = 0;
        let one = Fingerprint::start().and("a");
        work.step("x", &one, |_| anyhow::bail!("stopped")).unwrap_err();
        for fingerprint in [&one, &one, &one.and("b"), &one.and("b"), &one] {
            work.step("x", fingerprint, |_| {
                runs += 1;
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(runs, 3);
        assert_ne!(Fingerprint::start().and("ab"), Fingerprint::start().and("a").and("b"));
    }
}
