//! The event log and the request log: what users did and what they were shown, as Parquet by day.
//!
//! ```text
//! append/offer --> [ queue, queue_rows_max ] --> one thread --> journal, synced --> the caller hears
//!                                                  | rows by day
//!                                                  | file_rows_max rows, or file_age_max_ms
//!                                                  v
//!                    {data}/{log}/dt=YYYY-MM-DD/{replica}-{sequence}.parquet
//! ```
//! The event log is durable: a row is acknowledged when it is in the journal (`journal`), and ends
//! in one file, once, however the process ends. Whoever waits at the same time shares one sync. An
//! event that is sent again is recognised by its id and taken only once. The request log has no
//! journal: its callers do not wait.
//!
//! A file appears whole: it is written under another name, synced and renamed. Rows that cannot be
//! written are kept and tried again; the bound on rows counts every row that is accepted and not
//! yet in a file (a large one as several), so a disk that is full ends in refusals and never in memory.
//! What is lost is counted with its reason. `read` reads both back.
//!
//! Must not know HTTP or the pipeline.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use arrow::record_batch::RecordBatch;
use crossbeam::channel::{Sender, bounded};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::monitor::{self, Health, Log as LogName, Lost};
use crate::objects;

mod archive;
mod journal;
mod read;
mod rows;
mod seen;
mod served;
mod writer;

use journal::{Journal, Left};
use writer::Writer;

pub use archive::Archive;
pub use read::{event_files, read_events, read_requests, request_files};
pub use rows::{EventRecord, RequestRecord};
pub use served::Served;

/// The name that stands for the host's.
const AUTO: &str = "auto";

/// Section `[events]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the logs are written: `<dir>/events/` and `<dir>/requests/`.
    pub dir: PathBuf,
    /// Where the files of the logs are sent: a directory or `s3://BUCKET/PREFIX`; empty keeps them in `dir`.
    pub archive: String,
    /// Time between two rounds of sending.
    pub archive_interval_ms: u64,
    /// Name of this process in file names; `"auto"` is the host's name.
    pub replica: String,
    /// Rows of one log that may wait; more are refused (events) or dropped (impressions, requests).
    pub queue_rows_max: usize,
    /// A file is written when this many rows wait ...
    pub file_rows_max: usize,
    /// ... or when the oldest has waited this long.
    pub file_age_max_ms: u64,
    /// Time before a failed write is tried again.
    pub retry_ms: u64,
    /// What an acknowledged event survives.
    pub durability: Durability,
    /// Ids of events that are remembered, to recognise one that is sent again.
    pub ids_remembered: usize,
}

/// What an acknowledged event survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The end of the process: it is in the system's memory.
    System,
    /// The end of the machine: it is on the disk.
    Disk,
}

/// Why a log cannot start or write.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Parquet { path: PathBuf, source: parquet::errors::ParquetError },
    #[error("events.{key} = 0: give at least 1")]
    Zero { key: &'static str },
    #[error(
        "events.queue_rows_max = {queue} is below events.file_rows_max = {file}: \
         no file would ever be full"
    )]
    QueueBelowFile { queue: usize, file: usize },
    #[error(
        "events.replica = \"{found}\": give 1 to 100 letters, digits, dots, dashes or underscores"
    )]
    Replica { found: String },
    #[error(
        "{directory}: another process writes this journal: give replicas that share events.dir \
         different names (events.replica)"
    )]
    Taken { directory: PathBuf },
    #[error("{path}: no column `{column}` of a request log: give a file of requests/")]
    Foreign { path: PathBuf, column: &'static str },
    #[error("events.archive: {source}")]
    Archive { source: objects::Error },
    #[error("the log has stopped")]
    Stopped,
}

/// Why rows were not taken. None of them was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{waiting} rows wait to be written, the bound is {queue_rows_max}; send them again")]
    Full { waiting: usize, queue_rows_max: usize },
    #[error("the journal cannot be written, see /readyz; send them again")]
    Journal,
    #[error("the log has stopped")]
    Stopped,
}

impl Config {
    /// Refuses what [`Log::start`] could not use.
    pub fn check(&self) -> Result<(), Error> {
        let letter = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.replica.is_empty()
            || self.replica.len() > 100
            || self.replica.starts_with('.')
            || !self.replica.chars().all(letter)
        {
            return Err(Error::Replica { found: self.replica.clone() });
        }
        for (key, value) in [
            ("queue_rows_max", self.queue_rows_max as u64),
            ("file_rows_max", self.file_rows_max as u64),
            ("file_age_max_ms", self.file_age_max_ms),
            ("retry_ms", self.retry_ms),
            ("archive_interval_ms", self.archive_interval_ms),
        ] {
            if value == 0 {
                return Err(Error::Zero { key });
            }
        }
        if self.queue_rows_max < self.file_rows_max {
            let (queue, file) = (self.queue_rows_max, self.file_rows_max);
            return Err(Error::QueueBelowFile { queue, file });
        }
        Ok(())
    }

    /// The name of this process in file names.
    pub fn replica_name(&self) -> String {
        if self.replica != AUTO {
            return self.replica.clone();
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String =
            host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        if host.is_empty() { "replica".to_owned() } else { host }
    }
}

/// A row of a log.
pub trait Row: Send + Sized + 'static {
    /// Which log; its name is the directory too.
    const LOG: LogName;
    /// The most that [`Row::places`] says.
    const PLACES_MAX: usize = 1;

    /// Epoch milliseconds; decides the day under which the row is kept.
    fn time_ms(&self) -> i64;

    /// What makes it one: a row with an id that was seen is a repetition. Empty: it has none.
    fn id(&self) -> &str;

    /// How many ordinary rows' memory it takes: what the bounds on rows count.
    fn places(&self) -> usize {
        1
    }

    /// The rows as columns.
    fn batch(rows: &[Self]) -> RecordBatch;
}

/// What became of rows that were taken.
#[derive(Debug, Default, PartialEq)]
pub struct Taken {
    /// Rows that are new.
    pub rows: usize,
    /// Positions of those that were known by their ids, ascending; they are not written again.
    pub known: Vec<usize>,
}

/// A log of rows `R`. Dropping it writes what it was given, then ends.
pub struct Log<R: Row> {
    messages: Option<Sender<Message<R>>>,
    /// Rows accepted and not yet in a file, as [`Row::places`] counts.
    waiting: Arc<AtomicUsize>,
    queue_rows_max: usize,
    thread: Option<JoinHandle<()>>,
}

enum Message<R> {
    Rows {
        rows: Vec<R>,
        done: Option<oneshot::Sender<Result<Taken, Refused>>>,
    },
    /// A row that is still to be made.
    Later(Box<dyn FnOnce() -> R + Send>),
    Flush(Sender<Result<(), Error>>),
}

impl<R: Row + Serialize + DeserializeOwned> Log<R> {
    /// As [`Log::start`], with a journal. Rows that ended processes left in theirs are written now.
    ///
    /// # Errors
    /// When the directory cannot be written, or another process of this name has its journal.
    pub fn durable(data_dir: &Path, config: &Config, health: Arc<Health>) -> Result<Self, Error> {
        config.check()?;
        let (replica, is_auto) = (config.replica_name(), config.replica == AUTO);
        let (journal, left) = Journal::open(data_dir, &replica, is_auto, config.durability)?;
        Self::begin(data_dir, config, health, Some(journal), left)
    }
}

impl<R: Row + Serialize> Log<R> {
    /// Starts the log under `data_dir`, whose subdirectory for this log is created at once so that
    /// a directory that cannot be written is an error now.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn start(data_dir: &Path, config: &Config, health: Arc<Health>) -> Result<Self, Error> {
        config.check()?;
        Self::begin(data_dir, config, health, None, Vec::new())
    }

    fn begin(
        data_dir: &Path,
        config: &Config,
        health: Arc<Health>,
        journal: Option<Journal>,
        left: Vec<Left<R>>,
    ) -> Result<Self, Error> {
        let root = data_dir.join(R::LOG.name());
        std::fs::create_dir_all(&root)
            .map_err(|source| Error::Io { path: root.clone(), source })?;
        let waiting = Arc::new(AtomicUsize::new(left.iter().map(|left| places(&left.rows)).sum()));
        // A message carries at least one row, so the bound on rows keeps the channel from filling.
        let (sender, receiver) = bounded(config.queue_rows_max);
        let durable = journal.is_some();
        let writer = Writer::new(root.clone(), config, journal, left, waiting.clone(), health);
        let thread = std::thread::Builder::new()
            .name(format!("log-{}", R::LOG.name()))
            .spawn(move || {
                // Nobody waits for a log without a journal.
                if !durable {
                    crate::ffi::thread::stand_back();
                }
                writer.run(&receiver)
            })
            .map_err(|source| Error::Io { path: root, source })?;
        Ok(Self {
            messages: Some(sender),
            waiting,
            queue_rows_max: config.queue_rows_max,
            thread: Some(thread),
        })
    }

    /// Takes all rows or none, and returns when they are as durable as this log makes them.
    ///
    /// # Errors
    /// When too many rows wait, or the journal cannot be written.
    pub async fn append(&self, rows: Vec<R>) -> Result<Taken, Refused> {
        if rows.is_empty() {
            return Ok(Taken::default());
        }
        let (done, taken) = oneshot::channel();
        self.send(rows, Some(done))?;
        taken.await.unwrap_or(Err(Refused::Stopped))
    }

    /// Takes rows that the caller can do without, and never waits: what is refused is counted.
    pub fn offer(&self, rows: Vec<R>) {
        let count = rows.len();
        if count == 0 {
            return;
        }
        match self.send(rows, None) {
            Ok(()) => {}
            Err(Refused::Stopped) => monitor::lost(R::LOG, Lost::Stopped, count),
            Err(_) => monitor::lost(R::LOG, Lost::QueueFull, count),
        }
    }

    /// As [`Log::offer`], for a row that takes time to make: the log's thread makes it. As long as it waits it counts
    /// for the most that a row may take.
    pub fn offer_later(&self, make: impl FnOnce() -> R + Send + 'static) {
        match self.pass(R::PLACES_MAX, Message::Later(Box::new(make))) {
            Ok(()) => {}
            Err(Refused::Stopped) => monitor::lost(R::LOG, Lost::Stopped, 1),
            Err(_) => monitor::lost(R::LOG, Lost::QueueFull, 1),
        }
    }

    fn send(
        &self,
        rows: Vec<R>,
        done: Option<oneshot::Sender<Result<Taken, Refused>>>,
    ) -> Result<(), Refused> {
        self.pass(places(&rows), Message::Rows { rows, done })
    }

    fn pass(&self, count: usize, message: Message<R>) -> Result<(), Refused> {
        let messages = self.messages.as_ref().ok_or(Refused::Stopped)?;
        let waiting = self.waiting.fetch_add(count, Ordering::AcqRel);
        let refuse = |refused| {
            self.waiting.fetch_sub(count, Ordering::AcqRel);
            Err(refused)
        };
        if waiting + count > self.queue_rows_max {
            return refuse(Refused::Full { waiting, queue_rows_max: self.queue_rows_max });
        }
        monitor::log_queue(R::LOG, waiting + count);
        match messages.try_send(message) {
            Ok(()) => Ok(()),
            Err(error) if error.is_disconnected() => refuse(Refused::Stopped),
            Err(_) => refuse(Refused::Full { waiting, queue_rows_max: self.queue_rows_max }),
        }
    }

    /// Waits until every row given before is in a file, or says why it is not.
    ///
    /// # Errors
    /// When a file cannot be written; its rows are kept.
    pub fn flush(&self) -> Result<(), Error> {
        let (done, flushed) = bounded(1);
        let messages = self.messages.as_ref().ok_or(Error::Stopped)?;
        messages.send(Message::Flush(done)).map_err(|_| Error::Stopped)?;
        flushed.recv().map_err(|_| Error::Stopped)?
    }
}

/// Places of some rows together.
fn places<R: Row>(rows: &[R]) -> usize {
    rows.iter().map(Row::places).sum()
}

impl<R: Row> Drop for Log<R> {
    fn drop(&mut self) {
        drop(self.messages.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
