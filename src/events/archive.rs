//! Files of the logs go to the object store, where the next day's `collect` finds them.
//!
//! A file that was written is sent under its own name and deleted here when the store has it. A process
//! that ends in between sends it again: the same object, so every row is there once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::Error;
use crate::monitor::{Health, Log};
use crate::objects::{self, Objects};

/// Its name in the health report.
const NAME: &str = "archive";

/// The thread that sends; it ends with a last round when this is dropped.
#[derive(Debug)]
pub struct Archive {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Archive {
    /// Sends what the logs wrote below `data_dir` to `url`, and again every `interval`.
    ///
    /// # Errors
    /// When the address is none, or the system gives no thread.
    pub fn start(
        data_dir: &Path,
        url: &str,
        interval: Duration,
        health: Arc<Health>,
    ) -> Result<Self, Error> {
        let objects = Objects::open(url).map_err(|source| Error::Archive { source })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let thread = |source| Error::Io { path: data_dir.to_owned(), source };
        let runtime = runtime.map_err(thread)?;
        let (stop, stopped) = bounded(1);
        let data_dir_owned = data_dir.to_owned();
        let body = move || {
            crate::ffi::thread::stand_back();
            run(&data_dir_owned, &objects, &runtime, interval, &health, &stopped);
        };
        let handle = std::thread::Builder::new().name("log-archive".to_owned()).spawn(body);
        Ok(Self { stop: Some(stop), thread: Some(handle.map_err(thread)?) })
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(
    data_dir: &Path,
    objects: &Objects,
    runtime: &tokio::runtime::Runtime,
    interval: Duration,
    health: &Health,
    stopped: &Receiver<()>,
) {
    loop {
        let ends = stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout);
        match runtime.block_on(send(data_dir, objects)) {
            Ok(sent) => {
                if sent > 0 {
                    tracing::debug!(sent, "files of the logs are in the object store");
                }
                health.set(NAME, true, format!("files go to {}", objects.url()));
            }
            Err((waiting, error)) => {
                tracing::warn!(%error, waiting, "files of the logs wait for the object store");
                health.set(NAME, false, format!("{waiting} files wait: {error}"));
            }
        }
        if ends {
            return;
        }
    }
}

/// Sends all files that are there; how many, or how many are left and why.
async fn send(data_dir: &Path, objects: &Objects) -> Result<usize, (usize, objects::Error)> {
    let files: Vec<PathBuf> = Log::ALL.iter().flat_map(|log| files(data_dir, *log)).collect();
    for (sent, path) in files.iter().enumerate() {
        let key = path.strip_prefix(data_dir).unwrap_or(path).to_string_lossy();
        let result = objects.put_file(path, &key).await.and_then(|()| {
            std::fs::remove_file(path)
                .map_err(|source| objects::Error::Io { path: path.clone(), source })
        });
        if let Err(error) = result {
            return Err((files.len() - sent, error));
        }
    }
    Ok(files.len())
}

/// The whole files of a log, by day and name.
fn files(data_dir: &Path, log: Log) -> Vec<PathBuf> {
    let entries = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let days = entries(&data_dir.join(log.name())).into_iter().filter(|path| path.is_dir());
    let whole = |path: &PathBuf| path.extension().is_some_and(|end| end == "parquet");
    days.flat_map(|day| entries(&day)).filter(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_files_arrive_once_under_their_names_and_partial_ones_stay() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let day = from.path().join("events/dt=2026-01-01");
        std::fs::create_dir_all(&day).unwrap();
        std::fs::write(day.join("a-1.parquet"), "rows").unwrap();
        std::fs::write(day.join("a-2.partial"), "half").unwrap();
        // Sent before, when the process ended before it was deleted.
        let there = to.path().join("events/dt=2026-01-01/a-1.parquet");
        std::fs::create_dir_all(there.parent().unwrap()).unwrap();
        std::fs::write(&there, "rows").unwrap();
        let health = Arc::new(Health::new());
        let url = to.path().to_str().unwrap();
        let hour = Duration::from_secs(3600);
        drop(Archive::start(from.path(), url, hour, health).unwrap());
        assert_eq!(std::fs::read_to_string(&there).unwrap(), "rows");
        assert_eq!(std::fs::read_dir(there.parent().unwrap()).unwrap().count(), 1);
        assert!(day.join("a-2.partial").exists() && !day.join("a-1.parquet").exists());
    }

    #[test]
    fn files_wait_here_while_the_store_cannot_take_them() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let day = from.path().join("requests/dt=2026-01-01");
        std::fs::create_dir_all(&day).unwrap();
        std::fs::write(day.join("a-1.parquet"), "rows").unwrap();
        // Where the folder would be is a file.
        std::fs::write(to.path().join("requests"), "in the way").unwrap();
        let health = Arc::new(Health::new());
        let hour = Duration::from_secs(3600);
        let url = to.path().to_str().unwrap();
        drop(Archive::start(from.path(), url, hour, health.clone()).unwrap());
        assert!(day.join("a-1.parquet").exists());
        let said = health.components().into_iter().find(|part| part.name == NAME).unwrap();
        assert!(!said.ok && said.text.starts_with("1 files wait"), "{}", said.text);
    }
}
