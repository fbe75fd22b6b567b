//! The daily aggregates: what was known of every item and user at a midnight.
//!
//! ```text
//! WORK/collect/{events, items}.parquet
//!   -> item_keys, user_keys, facts                               once a run
//!   -> pairs                                                     per midnight
//!   -> WORK/features/as_of=YYYY-MM-DD/{user_category, user_brand, user_department, user_item,
//!                                      item_stats, user_stats, region_item}.parquet
//! ```
//! Invariant: a table as of a midnight reads only events strictly before it, so a training row
//! that takes the last table before its event sees what serving would have seen.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use arrow::array::{RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::offline::collect::{remove, table_path};
use crate::offline::engine::{Engine, Job, Kind, builtin};
use crate::offline::sql::write_parquet;
use crate::offline::tables::{count_rows, read_columns};
use crate::types::{DAY_MS, date_of};

/// Section `[offline.aggregates]`: the windows that are counted over, in days, and what is kept.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub short_days: u32,
    pub medium_days: u32,
    pub long_days: u32,
    /// Most items of a user in `user_item`.
    pub favourites: u32,
}

impl Config {
    /// Refuses windows out of order: their columns would have one name.
    pub fn check(&self) -> anyhow::Result<()> {
        let Self { short_days, medium_days, long_days, .. } = *self;
        ensure!(
            0 < short_days && short_days < medium_days && medium_days < long_days,
            "offline.aggregates: {short_days}, {medium_days} and {long_days} days: give three \
             windows, each longer than the one before"
        );
        Ok(())
    }
}

/// The tables written for each midnight, in the order in which they are made.
pub const TABLES: [&str; 7] = [
    "user_category",
    "user_brand",
    "user_department",
    "user_item",
    "item_stats",
    "user_stats",
    "region_item",
];

/// The tables that every midnight's are made of, in the order in which they are made.
const SHARED: [&str; 3] = ["item_keys", "user_keys", "facts"];
/// What an event takes while it is reduced, bytes: its strings, and the rows of its user's basket once more.
const FACT_BYTES: u64 = 400;
/// Columns of items that the queries read, with their types where an import has none of the name.
const ITEM_COLUMNS: [(&str, DataType); 5] = [
    ("item_id", DataType::Utf8),
    ("category", DataType::Utf8),
    ("brand", DataType::Utf8),
    ("department", DataType::Utf8),
    ("price", DataType::Float64),
];

/// Where the aggregate `table` as of a midnight stands.
pub fn table_path_as_of(work: &Path, as_of_ms: i64, table: &str) -> PathBuf {
    folder(work, as_of_ms).join(format!("{table}.parquet"))
}

/// Makes every table of [`TABLES`] for each midnight of `as_of_ms` that is not there yet; the
/// files of a midnight appear together. `progress` gets the number of midnights done, of all, and
/// the date. Returns how many were computed.
pub fn materialise(
    work: &Path,
    as_of_ms: &[i64],
    engine: &Engine,
    config: &Config,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> anyhow::Result<usize> {
    for as_of in as_of_ms {
        ensure!(as_of % DAY_MS == 0, "aggregates as of {as_of} ms: not a midnight");
    }
    let todo: Vec<i64> =
        as_of_ms.iter().copied().filter(|&as_of| !folder(work, as_of).exists()).collect();
    let done_before = as_of_ms.len() - todo.len();
    if todo.is_empty() {
        return Ok(0);
    }
    let scratch = work.join("features/scratch");
    remove(&scratch)?;
    let shared = shared(work, &scratch, engine)?;
    progress(done_before, as_of_ms.len(), "what all days share");
    // What all days share is made once. Spark is started once, for all days.
    let (shared, groups) = match engine.kind {
        Kind::Datafusion => {
            engine.run(&shared, &scratch.join("engine"), &mut |_| {})?;
            (as_inputs(shared), todo.chunks(1))
        }
        Kind::Spark => (shared, todo.chunks(todo.len())),
    };
    let mut done = 0;
    for days in groups {
        let mut job = shared.clone();
        for &as_of in days {
            one_midnight(&mut job, work, &scratch, as_of, config)?;
        }
        let first = shared.steps.len();
        engine.run(&job, &scratch.join("engine"), &mut |made| {
            let day = made.saturating_sub(first) / (TABLES.len() + 1);
            let date = days.get(day).map_or("done".to_owned(), |&as_of| date_of(as_of));
            progress(done_before + done + day, as_of_ms.len(), &date);
        })?;
        for &as_of in days {
            let target = folder(work, as_of);
            fs::rename(partial(work, as_of), &target)
                .with_context(|| format!("{}", target.display()))?;
        }
        done += days.len();
    }
    remove(&scratch)?;
    progress(as_of_ms.len(), as_of_ms.len(), "done");
    Ok(todo.len())
}

/// Where the tables of a midnight stand below a run's `features` directory.
pub fn day_dir(features: &Path, as_of_ms: i64) -> PathBuf {
    features.join(format!("as_of={}", date_of(as_of_ms)))
}

/// The text of every query behind the aggregates: what they depend on beside the events.
pub fn queries() -> String {
    let files = TABLES.into_iter().map(|table| file_of(table).0);
    SHARED.into_iter().chain(["pairs"]).chain(files).map(|file| builtin(file).text).collect()
}

/// The file of `sql/` that makes a table of a midnight, and the column of items by which it does: what users did
/// with categories, brands and departments is one query.
fn file_of(table: &str) -> (&str, &str) {
    match table.strip_prefix("user_") {
        Some(group @ ("category" | "brand" | "department")) => ("user_group", group),
        _ => (table, ""),
    }
}

fn folder(work: &Path, as_of_ms: i64) -> PathBuf {
    day_dir(&work.join("features"), as_of_ms)
}

/// Where the tables of a midnight stand until all of them are there.
fn partial(work: &Path, as_of_ms: i64) -> PathBuf {
    folder(work, as_of_ms).with_extension("partial")
}

/// The tables that all midnights share, from the collected ones.
fn shared(work: &Path, scratch: &Path, engine: &Engine) -> anyhow::Result<Job> {
    let events = table_path(work, "events");
    ensure!(events.exists(), "the aggregates need the collected events; run collect first");
    let names = ITEM_COLUMNS.map(|(name, _)| name);
    let (_, items) = read_columns(&table_path(work, "items"), Some(&names))?;
    let (schema, items) = with_item_columns(&items)?;
    let path = scratch.join("items.parquet");
    write_parquet(&path, schema, &items)?;
    // A window is computed over all rows at once, and holds them whatever the limit says.
    let parts = match engine.kind {
        Kind::Datafusion => {
            1 + count_rows(&events)? * FACT_BYTES / engine.sql.memory_max_bytes as u64
        }
        Kind::Spark => 1,
    };
    let mut job = Job::default();
    job.input("events", events);
    job.input("items", path);
    let [item_keys, user_keys, facts] =
        SHARED.map(|table| (table, scratch.join(format!("{table}.parquet"))));
    job.step(item_keys.0, item_keys.1, &[])?;
    job.step(user_keys.0, user_keys.1, &[])?;
    job.step_in_parts(facts.0, facts.1, parts)?;
    Ok(job)
}

/// A job that reads what another one made.
fn as_inputs(done: Job) -> Job {
    let mut job = Job::default();
    done.steps.into_iter().for_each(|step| job.input(&step.name, step.path));
    job
}

fn with_item_columns(items: &[RecordBatch]) -> anyhow::Result<(SchemaRef, Vec<RecordBatch>)> {
    let fields = ITEM_COLUMNS.map(|(name, kind)| Field::new(name, kind, true));
    let schema: SchemaRef = Arc::new(Schema::new(fields.to_vec()));
    let whole = |batch: &RecordBatch| -> anyhow::Result<RecordBatch> {
        let columns =
            schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
                Some(column) => arrow::compute::cast(column, field.data_type()),
                None => Ok(new_null_array(field.data_type(), batch.num_rows())),
            });
        Ok(RecordBatch::try_new(schema.clone(), columns.collect::<Result<Vec<_>, _>>()?)?)
    };
    let batches = items.iter().map(whole).collect::<anyhow::Result<Vec<_>>>()?;
    Ok((schema, batches))
}

/// Adds the steps of one midnight.
fn one_midnight(
    job: &mut Job,
    work: &Path,
    scratch: &Path,
    as_of_ms: i64,
    config: &Config,
) -> anyhow::Result<()> {
    let partial = partial(work, as_of_ms);
    remove(&partial)?;
    let days = [config.short_days, config.medium_days, config.long_days].map(|n| n.to_string());
    let (as_of, favourites) = (as_of_ms.to_string(), config.favourites.to_string());
    let parameters = [
        ("as_of_ms", as_of.as_str()),
        ("short", days[0].as_str()),
        ("medium", days[1].as_str()),
        ("long", days[2].as_str()),
        ("favourites", favourites.as_str()),
    ];
    job.step("pairs", scratch.join(format!("pairs-{as_of_ms}.parquet")), &parameters)?;
    for table in TABLES {
        let (file, group) = file_of(table);
        let parameters = [&parameters[..], &[("group", group)]].concat();
        job.step_of(file, table, partial.join(format!("{table}.parquet")), &parameters)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "aggregates_tests.rs"]
mod tests;
