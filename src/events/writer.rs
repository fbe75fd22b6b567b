//! The thread of a log: takes rows in groups, journals them, and writes files of batches.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arrow::record_batch::RecordBatch;
use crossbeam::channel::{Receiver, RecvTimeoutError};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde::Serialize;
use tokio::sync::oneshot;

use super::journal::{self, Journal, Left};
use super::seen::Seen;
use super::{Config, Error, Message, Refused, Row, Taken, places};
use crate::monitor::{self, Health, Lost};
use crate::types::date_of;

/// Attempts to write the last rows before the process ends.
const LAST_ATTEMPTS: usize = 3;
/// Rows of a group that share a sync, about.
const GROUP_ROWS: usize = 10_000;
/// How long rows that nobody waits for may gather before they are taken: who gives one wakes nobody then.
const GATHER: Duration = Duration::from_millis(10);

/// Rows that end in files of one sequence, one a day.
struct Batch<R> {
    replica: String,
    sequence: u64,
    days: BTreeMap<String, Vec<R>>,
    rows: usize,
    places: usize,
}

impl<R: Row> Batch<R> {
    fn new(replica: &str, sequence: u64) -> Self {
        Self { replica: replica.to_owned(), sequence, days: BTreeMap::new(), rows: 0, places: 0 }
    }

    fn push(&mut self, row: R) {
        self.rows += 1;
        self.places += row.places();
        self.days.entry(date_of(row.time_ms())).or_default().push(row);
    }
}

/// Rows of one caller.
struct Part<R> {
    rows: Vec<R>,
    taken: Taken,
    done: Option<oneshot::Sender<Result<Taken, Refused>>>,
}

pub(super) struct Writer<R> {
    root: PathBuf,
    config: Config,
    journal: Option<Journal>,
    seen: Seen,
    /// Takes rows.
    open: Batch<R>,
    /// Wait for their files, oldest first.
    sealed: VecDeque<Batch<R>>,
    waiting: Arc<AtomicUsize>,
    health: Arc<Health>,
    /// Whether nobody waited for the last group.
    may_gather: bool,
}

impl<R: Row + Serialize> Writer<R> {
    pub fn new(
        root: PathBuf,
        config: &Config,
        journal: Option<Journal>,
        left: Vec<Left<R>>,
        waiting: Arc<AtomicUsize>,
        health: Arc<Health>,
    ) -> Self {
        let mut seen = Seen::new(if journal.is_some() { config.ids_remembered } else { 0 });
        let replica = match &journal {
            Some(journal) => journal.replica().to_owned(),
            None => config.replica_name(),
        };
        let last = left.iter().map(|left| left.sequence).max().unwrap_or(0);
        let batch = |left: Left<R>| {
            let mut batch = Batch::new(&left.replica, left.sequence);
            for row in left.rows {
                seen.insert(row.id());
                batch.push(row);
            }
            batch
        };
        let sealed = left.into_iter().map(batch).collect();
        Self {
            root,
            config: config.clone(),
            journal,
            seen,
            // File names go on where the last process of this replica stopped: microseconds since
            // the epoch are ahead of any count of files since then.
            open: Batch::new(&replica, now_us().max(last + 1)),
            sealed,
            waiting,
            health,
            may_gather: false,
        }
    }

    pub fn run(mut self, messages: &Receiver<Message<R>>) {
        let age_max = Duration::from_millis(self.config.file_age_max_ms);
        let mut due =
            if self.sealed.is_empty() { Instant::now() + age_max } else { Instant::now() };
        // After a failure the number of rows no longer hurries the next attempt.
        let mut failing = false;
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            match messages.recv_timeout(wait) {
                Ok(first) => {
                    if let Some(flush) = self.take_group(first, messages) {
                        let _ = flush.send(self.write());
                        continue;
                    }
                    if self.may_gather {
                        std::thread::sleep(GATHER);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.finish(),
            }
            let full = self.open.places >= self.config.file_rows_max && !failing;
            if full || Instant::now() >= due {
                failing = self.write().is_err();
                let retry = Duration::from_millis(self.config.retry_ms);
                due = Instant::now() + if failing { retry } else { age_max };
            }
        }
    }

    /// Takes this message and those that wait behind it, with one sync for all; returns the flush
    /// that ends the group, if one does.
    fn take_group(
        &mut self,
        first: Message<R>,
        messages: &Receiver<Message<R>>,
    ) -> Option<crossbeam::channel::Sender<Result<(), Error>>> {
        let (mut group, mut flush) = (Vec::new(), None);
        // Rows, and their places: of all, and of those that are new.
        let (mut count, mut fresh) = (0, 0);
        let (mut taken, mut kept) = (0, 0);
        for message in std::iter::once(first).chain(messages.try_iter()) {
            let (rows, done) = match message {
                Message::Rows { rows, done } => (rows, done),
                Message::Later(make) => {
                    let row = make();
                    self.release(R::PLACES_MAX - row.places());
                    (vec![row], None)
                }
                Message::Flush(done) => {
                    flush = Some(done);
                    break;
                }
            };
            count += rows.len();
            taken += places(&rows);
            let part = self.tell_apart(rows, done);
            fresh += part.rows.len();
            kept += places(&part.rows);
            group.push(part);
            if count >= GROUP_ROWS {
                break;
            }
        }
        self.may_gather = group.iter().all(|part| part.done.is_none());
        match self.journal(&group) {
            Ok(()) => {
                self.release(taken - kept);
                for part in group {
                    part.rows.into_iter().for_each(|row| self.open.push(row));
                    if let Some(done) = part.done {
                        let _ = done.send(Ok(part.taken));
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, rows = count, "cannot write the journal; refusing rows");
                self.health.set(R::LOG.name(), false, error.to_string());
                self.seen.take_back(fresh);
                self.release(taken);
                for done in group.into_iter().filter_map(|part| part.done) {
                    let _ = done.send(Err(Refused::Journal));
                }
            }
        }
        flush
    }

    /// Splits off the rows whose ids were seen.
    fn tell_apart(
        &mut self,
        rows: Vec<R>,
        done: Option<oneshot::Sender<Result<Taken, Refused>>>,
    ) -> Part<R> {
        let mut taken = Taken::default();
        let mut fresh = Vec::with_capacity(rows.len());
        for (at, row) in rows.into_iter().enumerate() {
            if self.seen.insert(row.id()) {
                fresh.push(row);
            } else {
                taken.known.push(at);
            }
        }
        taken.rows = fresh.len();
        Part { rows: fresh, taken, done }
    }

    fn journal(&mut self, group: &[Part<R>]) -> Result<(), Error> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let parts = group.iter().filter(|part| !part.rows.is_empty());
        let appended = parts.map(|part| journal.append(self.open.sequence, &part.rows));
        let result = appended.collect::<Result<(), Error>>().and_then(|()| journal.sync());
        if result.is_err() {
            journal.take_back();
        }
        result
    }

    /// Gives places back.
    fn release(&self, places: usize) {
        if places > 0 {
            let before = self.waiting.fetch_sub(places, Ordering::AcqRel);
            monitor::log_queue(R::LOG, before - places);
        }
    }

    /// Writes a file a day of every batch. A day that fails keeps its rows, the others are written
    /// all the same.
    fn write(&mut self) -> Result<(), Error> {
        if self.open.rows > 0 {
            if let Some(journal) = &mut self.journal {
                journal.seal();
            }
            let next = Batch::new(&self.open.replica, now_us().max(self.open.sequence + 1));
            self.sealed.push_back(std::mem::replace(&mut self.open, next));
        }
        let mut result = Ok(());
        for mut batch in std::mem::take(&mut self.sealed) {
            for (day, rows) in std::mem::take(&mut batch.days) {
                let name = format!("{}-{:020}.parquet", batch.replica, batch.sequence);
                match self.write_day(&day, &name, &rows) {
                    Ok(()) => {
                        batch.rows -= rows.len();
                        monitor::logged(R::LOG, rows.len());
                        self.release(places(&rows));
                    }
                    Err(error) => {
                        tracing::error!(%error, rows = rows.len(), "cannot write a log file; retrying");
                        batch.days.insert(day, rows);
                        result = Err(error);
                    }
                }
            }
            match &self.journal {
                Some(journal) if batch.days.is_empty() => {
                    journal.drop_segment(&batch.replica, batch.sequence);
                }
                _ => {}
            }
            if !batch.days.is_empty() {
                self.sealed.push_back(batch);
            }
        }
        let text = match &result {
            Ok(()) => "writing".to_owned(),
            Err(error) => error.to_string(),
        };
        self.health.set(R::LOG.name(), result.is_ok(), text);
        result
    }

    fn write_day(&self, day: &str, name: &str, rows: &[R]) -> Result<(), Error> {
        let directory = self.root.join(format!("dt={day}"));
        std::fs::create_dir_all(&directory)
            .map_err(|source| Error::Io { path: directory.clone(), source })?;
        let path = directory.join(name);
        let partial = path.with_extension("partial");
        let written = write_file(&partial, &R::batch(rows)).and_then(|()| {
            std::fs::rename(&partial, &path)
                .map_err(|source| Error::Io { path: path.clone(), source })
        });
        if written.is_err() {
            let _ = std::fs::remove_file(&partial);
        }
        written?;
        // The journal's segment goes next: the file's name must outlive it.
        if self.journal.is_some() { journal::sync_directory(&directory) } else { Ok(()) }
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
        let rows = self.sealed.iter().map(|batch| batch.rows).sum();
        if self.journal.is_some() {
            tracing::error!(
                rows,
                log = R::LOG.name(),
                "rows stay in the journal for the next start"
            );
            return;
        }
        tracing::error!(rows, log = R::LOG.name(), "rows lost at the end");
        monitor::lost(R::LOG, Lost::WriteFailed, rows);
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

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
