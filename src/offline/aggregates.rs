//! The daily aggregates: what was known of every item and user at a midnight.
//!
//! ```text
//! WORK/collect/{events, items}.parquet
//!   -> item_keys, user_keys, facts                               once, in memory
//!   -> pairs                                                     per midnight, in memory
//!   -> WORK/features/as_of=YYYY-MM-DD/{user_category, user_brand, user_department, item_stats,
//!                                      user_stats, region_item}.parquet
//! ```
//! Invariant: a table as of a midnight reads only events strictly before it, so a training row
//! that takes the last table before its event sees what serving would have seen.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use arrow::array::{RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::offline::collect::{builtin_sql, table_path, write_plain};
use crate::offline::sql::{self, Engine};
use crate::offline::tables::read_columns;
use crate::types::{DAY_MS, date_of};

/// The tables written for each midnight, in the order in which they are made.
pub const TABLES: [&str; 6] =
    ["user_category", "user_brand", "user_department", "item_stats", "user_stats", "region_item"];

/// Columns of events that the queries read; others stay on disk.
const EVENT_COLUMNS: [&str; 8] =
    ["event_id", "user_id", "item_id", "event", "ts_ms", "value", "label", "region"];
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
    engine: &sql::Config,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> anyhow::Result<usize> {
    for as_of in as_of_ms {
        anyhow::ensure!(as_of % DAY_MS == 0, "aggregates as of {as_of} ms: not a midnight");
    }
    let todo: Vec<i64> =
        as_of_ms.iter().copied().filter(|&as_of| !folder(work, as_of).exists()).collect();
    let done_before = as_of_ms.len() - todo.len();
    if todo.is_empty() {
        return Ok(0);
    }
    let engine = Engine::new(engine)?;
    load(&engine, work)?;
    for (done, &as_of) in todo.iter().enumerate() {
        progress(done_before + done, as_of_ms.len(), &date_of(as_of));
        one_midnight(&engine, work, as_of)?;
    }
    progress(as_of_ms.len(), as_of_ms.len(), "done");
    Ok(todo.len())
}

/// Where the tables of a midnight stand below a run's `features` directory.
pub fn day_dir(features: &Path, as_of_ms: i64) -> PathBuf {
    features.join(format!("as_of={}", date_of(as_of_ms)))
}

/// The text of every query behind the aggregates: what they depend on beside the events.
pub fn queries() -> String {
    let shared = ["item_keys", "user_keys", "facts", "pairs"];
    shared.into_iter().chain(TABLES).map(|table| builtin_sql(table).text).collect()
}

fn folder(work: &Path, as_of_ms: i64) -> PathBuf {
    day_dir(&work.join("features"), as_of_ms)
}

/// Reads the collected tables and makes the facts that all midnights share.
fn load(engine: &Engine, work: &Path) -> anyhow::Result<()> {
    let path = table_path(work, "events");
    let (schema, events) = read_columns(&path, Some(&EVENT_COLUMNS))
        .context("the aggregates need the collected events; run collect first")?;
    engine.register_batches("events", schema, &events)?;
    let names = ITEM_COLUMNS.map(|(name, _)| name);
    let (_, items) = read_columns(&table_path(work, "items"), Some(&names))?;
    let (schema, items) = with_item_columns(&items)?;
    engine.register_batches("items", schema, &items)?;
    for table in ["item_keys", "user_keys", "facts"] {
        let (schema, rows) = engine.run(&builtin_sql(table))?;
        engine.register_batches(table, schema, &rows)?;
    }
    Ok(())
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

fn one_midnight(engine: &Engine, work: &Path, as_of_ms: i64) -> anyhow::Result<()> {
    let target = folder(work, as_of_ms);
    let partial = target.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("{}", partial.display()))?;
    }
    let as_of = as_of_ms.to_string();
    for table in std::iter::once("pairs").chain(TABLES) {
        let (schema, rows) = engine.run(&builtin_sql(table).with(&[("as_of_ms", &as_of)])?)?;
        engine.register_batches(table, schema.clone(), &rows)?;
        if table != "pairs" {
            write_plain(&partial.join(format!("{table}.parquet")), schema, &rows)?;
        }
    }
    fs::rename(&partial, &target).with_context(|| format!("{}", target.display()))
}

#[cfg(test)]
#[path = "aggregates_tests.rs"]
mod tests;
