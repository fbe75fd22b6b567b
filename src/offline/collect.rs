//! Collect and validate: the canonical tables of a window become the tables of a run.
//!
//! ```text
//! DATA/{events/dt=*, items, users, histories}
//!   -> one layout (`raw`)            WORK/collect/scratch/raw_events/*.parquet
//!   -> sql/{repeated, validate, event_days, quarantine}.sql -> the report, the limits
//!   -> sql/events.sql                WORK/collect/{events, items, users, histories}.parquet
//!      what is left out              WORK/collect/quarantine/*.parquet, each row with its reason
//! ```
//! Times leave as epoch milliseconds (`ts_ms`, `created_ms`, `as_of_ms`), and `created_day` is
//! added to items in epoch days; events are sorted by user, time and id, items and users by id.
//! Invariant: every collected event has an id that occurs once, a time inside the window and an
//! item of the collected catalogue; every other one is in the quarantine. Data beyond the limits of
//! the configuration stop the day before its events are written.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema};

use crate::offline::engine::{Engine, Job, builtin};
use crate::offline::frame::Frame;
use crate::offline::raw::{self, Counts};
use crate::offline::sql::write_parquet;
use crate::offline::tables::{Table, list_column, string_column};
pub use crate::offline::validation::{Config, Report};
use crate::types::{date_of, day_start_ms};

/// The files behind the collected tables, in the order in which they run.
const QUERIES: [&str; 5] = ["repeated", "validate", "event_days", "quarantine", "events"];

/// The text of the queries behind the collected tables.
pub fn queries() -> String {
    QUERIES.map(|name| builtin(name).text).concat()
}

/// Where the collected table `name` of a run stands.
pub fn table_path(work: &Path, name: &str) -> PathBuf {
    work.join("collect").join(format!("{name}.parquet"))
}

/// The report of the last collection of a work directory.
pub fn report(work: &Path) -> anyhow::Result<Report> {
    let path = work.join("collect/report.json");
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))
}

/// Days (midnights, epoch ms) that a data directory has events of, in order.
pub fn event_days(data: &Path) -> anyhow::Result<Vec<i64>> {
    let folder = data.join("events");
    let entries = fs::read_dir(&folder).with_context(|| {
        format!("{}: no events; run `shortlist import` or check the path", folder.display())
    })?;
    let mut days = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some(date) = name.to_str().and_then(|name| name.strip_prefix("dt=")) else { continue };
        days.push(midnight(date).with_context(|| format!("{}/dt={date}", folder.display()))?);
    }
    days.sort_unstable();
    Ok(days)
}

/// The midnight (epoch ms) of a date.
pub fn midnight(date: &str) -> anyhow::Result<i64> {
    let date: chrono::NaiveDate = date.parse().context("not a date YYYY-MM-DD")?;
    Ok(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis())
}

/// Collects the events of `[window_ms.start, window_ms.end)` and the whole catalogue.
/// `positive_events` are the kinds that count as a success.
pub fn collect(
    data: &Path,
    work: &Path,
    window_ms: Range<i64>,
    engine: &Engine,
    config: &Config,
    positive_events: &[String],
    progress: &dyn Fn(&str),
) -> anyhow::Result<Report> {
    let start = Instant::now();
    let days: Vec<i64> = event_days(data)?
        .into_iter()
        .filter(|day| (day_start_ms(window_ms.start)..window_ms.end).contains(day))
        .collect();
    if days.is_empty() {
        bail!(
            "{}/events: no day from {} to {}",
            data.display(),
            date_of(window_ms.start),
            date_of(window_ms.end)
        );
    }
    let run = Run { work, engine, window_ms: &window_ms };
    remove(&table_path(work, "events"))?;
    remove(&run.scratch())?;
    let mut report = Report {
        from: date_of(window_ms.start),
        to: date_of(window_ms.end),
        days: days.len(),
        ..Report::default()
    };
    progress("reading the catalogue");
    let users_known = run.catalogue(data, positive_events, &mut report)?;
    progress(&format!("reading {} days of events", days.len()));
    let (raw_dir, unfit) = (run.raw_events(), run.quarantine("wrong_type"));
    let raw = raw::events(data, &days, &raw_dir, &unfit, engine.sql.partitions)?;
    (report.events_read, report.late) = (raw.read, raw.late);
    report.unknown_columns = raw.unknown;
    progress("checking events");
    run.validate(&mut report, raw.wrong_type, positive_events)?;
    report.judge(config, users_known);
    run.write(&mut report, start)?;
    let stopped = || format!("the report is {}/collect/report.md", work.display());
    report.enforce().with_context(stopped)?;

    progress("collecting events");
    report.events_kept = run.events()?;
    if report.events_kept < config.events_min {
        bail!(
            "{} events from {} to {} are fewer than offline.collect.events_min = {}; see whether the \
             feed arrived, or lower it",
            report.events_kept,
            report.from,
            report.to,
            config.events_min
        );
    }
    report.account()?;
    run.write(&mut report, start)?;
    remove(&run.scratch())?;
    Ok(report)
}

/// One collection.
struct Run<'a> {
    work: &'a Path,
    engine: &'a Engine<'a>,
    window_ms: &'a Range<i64>,
}

impl Run<'_> {
    fn scratch(&self) -> PathBuf {
        self.work.join("collect/scratch")
    }

    fn raw_events(&self) -> PathBuf {
        self.scratch().join("raw_events")
    }

    fn quarantine(&self, name: &str) -> PathBuf {
        self.work.join("collect/quarantine").join(format!("{name}.parquet"))
    }

    /// A table that only the collection reads.
    fn temporary(&self, name: &str) -> PathBuf {
        self.scratch().join(format!("{name}.parquet"))
    }

    /// Writes items, users and histories; whether there are users to refer to.
    fn catalogue(
        &self,
        data: &Path,
        positive_events: &[String],
        report: &mut Report,
    ) -> anyhow::Result<bool> {
        let read = |table: Table| -> anyhow::Result<Option<(RecordBatch, Counts)>> {
            let found = raw::catalogue(data, table, &self.quarantine(table.name()))?;
            let path = table_path(self.work, table.name());
            match &found {
                Some((rows, _)) => write_parquet(&path, rows.schema(), std::slice::from_ref(rows))?,
                None => remove(&path)?,
            }
            Ok(found)
        };
        let (_, items) = read(Table::Items)?
            .with_context(|| format!("{}/items: no catalogue", data.display()))?;
        report.items = items;
        let users = read(Table::Users)?;
        if users.is_none() {
            // The SQL refers to users, whether or not there are any.
            let schema = Arc::new(Schema::new(vec![Field::new("user_id", DataType::Utf8, true)]));
            write_parquet(&self.temporary("users"), schema, &[])?;
        }
        report.users = users.as_ref().map(|(_, counts)| counts.clone()).unwrap_or_default();
        if let Some((rows, counts)) = read(Table::Histories)? {
            let lists = list_column(&rows, "item_ids")?;
            for (row, event) in string_column(&rows, "event")?.iter().enumerate() {
                if event.is_some_and(|event| positive_events.iter().any(|known| known == event)) {
                    report.untimed_positives += lists.value_length(row) as u64;
                }
            }
            report.histories = counts;
        }
        Ok(users.is_some())
    }

    /// What the queries read.
    fn job(&self) -> Job {
        let mut job = Job::default();
        job.input("raw_events", self.raw_events());
        job.input("items", table_path(self.work, "items"));
        let users = table_path(self.work, "users");
        job.input("users", if users.exists() { users } else { self.temporary("users") });
        job
    }

    fn run(&self, mut job: Job, steps: &[(&str, PathBuf)]) -> anyhow::Result<()> {
        let (from, to) = (self.window_ms.start.to_string(), self.window_ms.end.to_string());
        for (name, path) in steps {
            job.step(name, path.clone(), &[("from_ms", &from), ("to_ms", &to)])?;
        }
        self.engine.run(&job, &self.scratch().join("engine"), &mut |_| {})
    }

    /// Counts, compares and quarantines.
    fn validate(
        &self,
        report: &mut Report,
        wrong_type: u64,
        positive_events: &[String],
    ) -> anyhow::Result<()> {
        let bad = self.quarantine("events");
        remove(&bad)?;
        let validate = self.temporary("validate");
        let by_day = self.temporary("event_days");
        let steps = [
            ("repeated", self.temporary("repeated")),
            ("validate", validate.clone()),
            ("event_days", by_day.clone()),
            ("quarantine", bad.clone()),
        ];
        self.run(self.job(), &steps)?;
        let row = Frame::open(&validate)?;
        let row = row.names().into_iter().map(|name| {
            let value = row.f64(&name)?.first().copied();
            Ok((name, value.context("sql/validate.sql gave no row")?))
        });
        report.count(&row.collect::<anyhow::Result<BTreeMap<String, f64>>>()?);
        report.compare_days(&Frame::open(&by_day)?, positive_events)?;
        let bad_rows = Frame::open(&bad)?;
        for reasons in bad_rows.ids("reason")? {
            for reason in reasons.split(',') {
                *report.reasons.entry(reason.to_owned()).or_default() += 1;
            }
        }
        if wrong_type > 0 {
            report.reasons.insert("wrong_type".to_owned(), wrong_type);
        }
        report.events_quarantined = bad_rows.rows() as u64 + wrong_type;
        if bad_rows.rows() == 0 {
            remove(&bad)?;
        }
        Ok(())
    }

    /// Writes the events that are kept; returns their number.
    fn events(&self) -> anyhow::Result<u64> {
        let path = table_path(self.work, "events");
        let mut job = self.job();
        job.input("repeated", self.temporary("repeated"));
        self.run(job, &[("events", path.clone())])?;
        super::tables::count_rows(&path)
            .with_context(|| format!("count the rows of {}", path.display()))
    }

    fn write(&self, report: &mut Report, start: Instant) -> anyhow::Result<()> {
        report.seconds = start.elapsed().as_secs_f64();
        let folder = self.work.join("collect");
        fs::write(folder.join("report.json"), serde_json::to_vec_pretty(report)?)?;
        fs::write(folder.join("report.md"), report.text())?;
        Ok(())
    }
}

/// Removes a file or a directory, if there is one.
pub(super) fn remove(path: &Path) -> anyhow::Result<()> {
    let gone = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match gone {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;
