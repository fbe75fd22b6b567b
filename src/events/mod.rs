//! The event log and the request log: what users did and what they were shown, as Parquet by day.
//!
//! ```text
//! append/offer --> [ queue, queue_rows_max ] --> one thread --> rows by day
//!                                                  | file_rows_max rows, or file_age_max_ms
//!                                                  v
//!                    {data}/{log}/dt=YYYY-MM-DD/{replica}-{sequence}.parquet
//! ```
//! A file appears whole: it is written under another name, synced and renamed. Rows that cannot be
//! written are kept and tried again; the bound on rows counts every row that is accepted and not
//! yet in a file, so a disk that is full ends in refusals and never in memory. What is lost is
//! counted with its reason.
//!
//! Must not know HTTP or the pipeline.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arrow::record_batch::RecordBatch;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde::Deserialize;

use crate::monitor::{self, Health, Log as LogName, Lost};
use crate::types::date_of;

mod rows;

pub use rows::{EventRecord, RequestRecord};

/// Section `[events]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the logs are written: `<dir>/events/` and `<dir>/requests/`.
    pub dir: PathBuf,
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
    #[error("the log has stopped")]
    Stopped,
}

/// Why rows were not taken. None of them was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{waiting} rows wait to be written, the bound is {queue_rows_max}; send them again")]
    Full { waiting: usize, queue_rows_max: usize },
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

    /// The name in file names.
    fn replica_name(&self) -> String {
        if self.replica != "auto" {
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

    /// Epoch milliseconds; decides the day under which the row is kept.
    fn time_ms(&self) -> i64;

    /// The rows as columns.
    fn batch(rows: &[Self]) -> RecordBatch;
}

/// A log of rows `R`. Dropping it writes what it was given, then ends.
pub struct Log<R: Row> {
    messages: Option<Sender<Message<R>>>,
    /// Rows accepted and not yet in a file.
    waiting: Arc<AtomicUsize>,
    queue_rows_max: usize,
    thread: Option<JoinHandle<()>>,
}

enum Message<R> {
    Rows(Vec<R>),
    Flush(Sender<Result<(), Error>>),
}

impl<R: Row> Log<R> {
    /// Starts the log under `data_dir`, whose subdirectory for this log is created at once so that
    /// a directory that cannot be written is an error now.
    pub fn start(data_dir: &Path, config: &Config, health: Arc<Health>) -> Result<Self, Error> {
        config.check()?;
        let root = data_dir.join(R::LOG.name());
        std::fs::create_dir_all(&root)
            .map_err(|source| Error::Io { path: root.clone(), source })?;
        let waiting = Arc::new(AtomicUsize::new(0));
        // A message carries at least one row, so the bound on rows keeps the channel from filling.
        let (sender, receiver) = bounded(config.queue_rows_max);
        let writer = Writer {
            root: root.clone(),
            replica: config.replica_name(),
            sequence: first_sequence(),
            config: config.clone(),
            days: BTreeMap::new(),
            rows: 0,
            waiting: waiting.clone(),
            health,
        };
        let thread = std::thread::Builder::new()
            .name(format!("log-{}", R::LOG.name()))
            .spawn(move || {
                crate::ffi::thread::stand_back();
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

    /// Takes all rows or none; never waits. Returns how many it took.
    pub fn append(&self, rows: Vec<R>) -> Result<usize, Refused> {
        let count = rows.len();
        if count == 0 {
            return Ok(0);
        }
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
        match messages.try_send(Message::Rows(rows)) {
            Ok(()) => Ok(count),
            Err(error) if error.is_disconnected() => refuse(Refused::Stopped),
            Err(_) => refuse(Refused::Full { waiting, queue_rows_max: self.queue_rows_max }),
        }
    }

    /// As [`Log::append`], for rows that the caller can do without: what is refused is counted.
    pub fn offer(&self, rows: Vec<R>) {
        let count = rows.len();
        match self.append(rows) {
            Ok(_) => {}
            Err(Refused::Full { .. }) => monitor::lost(R::LOG, Lost::QueueFull, count),
            Err(Refused::Stopped) => monitor::lost(R::LOG, Lost::Stopped, count),
        }
    }

    /// Waits until every row given before is in a file, or says why it is not.
    pub fn flush(&self) -> Result<(), Error> {
        let (done, flushed) = bounded(1);
        let messages = self.messages.as_ref().ok_or(Error::Stopped)?;
        messages.send(Message::Flush(done)).map_err(|_| Error::Stopped)?;
        flushed.recv().map_err(|_| Error::Stopped)?
    }
}

impl<R: Row> Drop for Log<R> {
    fn drop(&mut self) {
        drop(self.messages.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer<R> {
    root: PathBuf,
    replica: String,
    sequence: u64,
    config: Config,
    days: BTreeMap<String, Vec<R>>,
    rows: usize,
    waiting: Arc<AtomicUsize>,
    health: Arc<Health>,
}

/// Attempts to write the last rows before the process ends.
const LAST_ATTEMPTS: usize = 3;

impl<R: Row> Writer<R> {
    fn run(mut self, messages: &Receiver<Message<R>>) {
        let age_max = Duration::from_millis(self.config.file_age_max_ms);
        let mut due = Instant::now() + age_max;
        // After a failure the number of rows no longer hurries the next attempt.
        let mut failing = false;
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            match messages.recv_timeout(wait) {
                Ok(Message::Rows(rows)) => self.keep(rows),
                Ok(Message::Flush(done)) => {
                    let _ = done.send(self.write());
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.finish(),
            }
            let full = self.rows >= self.config.file_rows_max && !failing;
            if full || Instant::now() >= due {
                failing = self.write().is_err();
                let retry = Duration::from_millis(self.config.retry_ms);
                due = Instant::now() + if failing { retry } else { age_max };
            }
        }
    }

    fn keep(&mut self, rows: Vec<R>) {
        self.rows += rows.len();
        for row in rows {
            self.days.entry(date_of(row.time_ms())).or_default().push(row);
        }
    }

    /// Writes a file a day. A day that fails keeps its rows, the others are written all the same.
    fn write(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        for (day, rows) in std::mem::take(&mut self.days) {
            match self.write_day(&day, &rows) {
                Ok(()) => {
                    self.rows -= rows.len();
                    let before = self.waiting.fetch_sub(rows.len(), Ordering::AcqRel);
                    monitor::logged(R::LOG, rows.len());
                    monitor::log_queue(R::LOG, before - rows.len());
                }
                Err(error) => {
                    tracing::error!(%error, rows = rows.len(), "cannot write a log file; retrying");
                    self.days.insert(day, rows);
                    result = Err(error);
                }
            }
        }
        let text = match &result {
            Ok(()) => "writing".to_owned(),
            Err(error) => error.to_string(),
        };
        self.health.set(R::LOG.name(), result.is_ok(), text);
        result
    }

    fn write_day(&mut self, day: &str, rows: &[R]) -> Result<(), Error> {
        let directory = self.root.join(format!("dt={day}"));
        std::fs::create_dir_all(&directory)
            .map_err(|source| Error::Io { path: directory.clone(), source })?;
        let path = loop {
            let name = format!("{}-{:020}.parquet", self.replica, self.sequence);
            self.sequence += 1;
            let path = directory.join(name);
            if !path.exists() {
                break path;
            }
        };
        let partial = path.with_extension("partial");
        let written = write_file(&partial, &R::batch(rows)).and_then(|()| {
            std::fs::rename(&partial, &path)
                .map_err(|source| Error::Io { path: path.clone(), source })
        });
        if written.is_err() {
            let _ = std::fs::remove_file(&partial);
        }
        written
    }

    fn finish(&mut self) {
        for attempt in 1..=LAST_ATTEMPTS {
            if self.write().is_ok() {
                return;
            }
            if attempt < LAST_ATTEMPTS {
                std::thread::sleep(Duration::from_millis(self.config.retry_ms));
            }
        }
        tracing::error!(rows = self.rows, log = R::LOG.name(), "rows lost at the end");
        monitor::lost(R::LOG, Lost::WriteFailed, self.rows);
    }
}

fn write_file(path: &Path, batch: &RecordBatch) -> Result<(), Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let parquet = |source| Error::Parquet { path: path.to_owned(), source };
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let file = File::create(path).map_err(io)?;
    let mut writer =
        ArrowWriter::try_new(file, batch.schema(), Some(properties)).map_err(parquet)?;
    writer.write(batch).map_err(parquet)?;
    writer.into_inner().map_err(parquet)?.sync_all().map_err(io)
}

/// File names go on where the last process of this replica stopped: microseconds since the epoch
/// are ahead of any count of files since then.
fn first_sequence() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests;
