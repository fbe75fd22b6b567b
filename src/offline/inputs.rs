//! The canonical tables that a day reads: in a directory, or in a bucket and copied beside the work.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::collect;
use crate::objects::{self, Objects};
use crate::types::{date_of, day_start_ms};

/// The tables beside the events.
const TABLES: [&str; 3] = ["items", "users", "histories"];

/// Where they are.
pub enum Inputs<'a> {
    Directory(&'a Path),
    Bucket {
        objects: Objects,
        runtime: tokio::runtime::Runtime,
        /// Where the copies are kept, so that the next day reads what is new.
        copies: PathBuf,
    },
}

impl<'a> Inputs<'a> {
    /// Of a data directory or a bucket's address; copies of the latter are kept below `work`.
    pub fn open(data_dir: &'a Path, work: &Path) -> Result<Self> {
        let url = data_dir.to_string_lossy();
        if !objects::is_remote(&url) {
            return Ok(Self::Directory(data_dir));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let objects = Objects::open(&url).context("offline.data_dir")?;
        Ok(Self::Bucket { objects, runtime, copies: work.join("inputs") })
    }

    /// Days (midnights, epoch ms) that have events, in order.
    pub fn event_days(&self) -> Result<Vec<i64>> {
        match self {
            Inputs::Directory(dir) => collect::event_days(dir),
            Inputs::Bucket { objects, runtime, .. } => {
                let folders = runtime.block_on(objects.folders("events"));
                let folders = folders.with_context(|| format!("list {}", objects.url()))?;
                let mut days = Vec::new();
                for date in folders.iter().filter_map(|name| name.strip_prefix("dt=")) {
                    let place = || format!("{}/events/dt={date}", objects.url());
                    days.push(collect::midnight(date).with_context(place)?);
                }
                days.sort_unstable();
                Ok(days)
            }
        }
    }

    /// Names, sizes and times of the files that a run of this window collects: what it depends on. Other
    /// days and other folders (a server's request log) do not count.
    pub fn listing(&self, window: &Range<i64>) -> Result<String> {
        let mut lines = Vec::new();
        for prefix in self.prefixes(window)? {
            match self {
                Inputs::Directory(dir) => list(&dir.join(prefix), &mut lines)?,
                Inputs::Bucket { objects, runtime, .. } => {
                    let found = runtime.block_on(objects.list(&prefix))?;
                    let line =
                        |o: objects::Object| format!("{} {} {}\n", o.key, o.length_bytes, o.tag);
                    lines.extend(found.into_iter().map(line));
                }
            }
        }
        lines.sort();
        Ok(lines.concat())
    }

    /// The directory that holds the tables of this window; those of a bucket are copied first, as far as
    /// they are new.
    pub fn directory(&self, window: &Range<i64>) -> Result<PathBuf> {
        match self {
            Inputs::Directory(dir) => Ok(dir.to_path_buf()),
            Inputs::Bucket { objects, runtime, copies } => {
                let prefixes = self.prefixes(window)?;
                let read = runtime.block_on(objects.mirror(&prefixes, copies));
                let read = read.with_context(|| format!("copy from {}", objects.url()))?;
                tracing::info!("{read} files of {} are new", objects.url());
                Ok(copies.clone())
            }
        }
    }

    fn prefixes(&self, window: &Range<i64>) -> Result<Vec<String>> {
        let days = self.event_days()?.into_iter();
        let inside = |day: &i64| (day_start_ms(window.start)..window.end).contains(day);
        let days = days.filter(inside).map(|day| format!("events/dt={}", date_of(day)));
        Ok(days.chain(TABLES.map(str::to_owned)).collect())
    }
}

/// A line a file of a directory, if it is there.
fn list(dir: &Path, lines: &mut Vec<String>) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        let data = entry.metadata()?;
        let modified = data.modified()?.duration_since(std::time::UNIX_EPOCH)?.as_millis();
        lines.push(format!("{} {} {modified}\n", entry.path().display(), data.len()));
    }
    Ok(())
}
