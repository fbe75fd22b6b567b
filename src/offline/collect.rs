//! Collect and validate: the canonical tables of a window become the tables of a run.
//!
//! ```text
//! DATA/{events/dt=*, items, users, histories} -> checks -> WORK/collect/{events, items, users,
//!                                                          histories}.parquet, report.json
//! ```
//! Times leave as epoch milliseconds (`ts_ms`, `created_ms`, `as_of_ms`), and `created_day` is
//! added to items in epoch days; events are sorted by user, time and id, items and users by id.
//! Invariant: every collected event has an id that occurs once, a time inside the window and an
//! item of the collected catalogue. A share of bad rows beyond the configuration stops the day
//! before anything is written.

use std::collections::HashSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch, sort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::offline::sql::{self, Engine, SqlText, write_parquet};
use crate::offline::tables::{self, Layout, Table, epoch_ms, read_columns};
use crate::types::{date_of, day_start_ms, epoch_days};

/// What a day bears.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub events_min: u64,
    pub share_max: ShareMax,
}

/// The largest bearable share of the window's events that fail a check.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareMax {
    pub null_id: f64,
    pub duplicate_id: f64,
    pub outside_window: f64,
    pub unknown_item: f64,
    pub late: f64,
}

/// What was found and kept; stands beside the tables as `report.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub from: String,
    pub to: String,
    pub days: usize,
    pub events_read: u64,
    pub events_kept: u64,
    pub items: u64,
    pub users: u64,
    pub histories: u64,
    /// Events whose time is not of the day that their folder names.
    pub late: u64,
    /// The counts of `sql/validate.sql` by column.
    pub counts: std::collections::BTreeMap<String, i64>,
    pub unknown_columns: Vec<String>,
    pub seconds: f64,
}

/// The text of the queries behind the collected tables.
pub fn queries() -> String {
    ["validate", "collect"].map(|name| builtin_sql(name).text).concat()
}

/// Where the collected table `name` of a run stands.
pub fn table_path(work: &Path, name: &str) -> PathBuf {
    work.join("collect").join(format!("{name}.parquet"))
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
        let date: chrono::NaiveDate = date
            .parse()
            .with_context(|| format!("{}/dt={date}: not a date YYYY-MM-DD", folder.display()))?;
        days.push(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis());
    }
    days.sort_unstable();
    Ok(days)
}

/// Collects the events of `[window_ms.start, window_ms.end)` and the whole catalogue.
pub fn collect(
    data: &Path,
    work: &Path,
    window_ms: Range<i64>,
    engine: &sql::Config,
    config: &Config,
    progress: &dyn Fn(&str),
) -> anyhow::Result<Report> {
    let start = Instant::now();
    let engine = Engine::new(engine)?;
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
    progress(&format!("reading {} days of events", days.len()));
    let events = read_events(data, &days)?;
    let items = read_catalogue(data, Table::Items)?
        .with_context(|| format!("{}/items: no catalogue", data.display()))?;
    let users = read_catalogue(data, Table::Users)?;
    let histories = read_catalogue(data, Table::Histories)?;
    engine.register_batches("raw_events", events.schema.clone(), &events.batches)?;
    engine.register_batches("items", items.schema(), std::slice::from_ref(&items))?;

    let (from, to) = (window_ms.start.to_string(), window_ms.end.to_string());
    let parameters = [("from_ms", from.as_str()), ("to_ms", to.as_str())];
    progress("checking events");
    let counts = first_row(&engine.run(&builtin_sql("validate").with(&parameters)?)?.1)?;
    let rows = |table: &Option<RecordBatch>| table.as_ref().map_or(0, RecordBatch::num_rows) as u64;
    let mut report = Report {
        from: date_of(window_ms.start),
        to: date_of(window_ms.end),
        days: days.len(),
        events_read: events.batches.iter().map(RecordBatch::num_rows).sum::<usize>() as u64,
        events_kept: 0,
        items: items.num_rows() as u64,
        users: rows(&users),
        histories: rows(&histories),
        late: events.late,
        counts,
        unknown_columns: events.unknown,
        seconds: 0.0,
    };
    enforce(&report, config)?;
    drop(events.batches);

    progress("collecting events");
    let (schema, kept) = engine.run(&builtin_sql("collect").with(&parameters)?)?;
    report.events_kept = kept.iter().map(RecordBatch::num_rows).sum::<usize>() as u64;
    if report.events_kept < config.events_min {
        bail!(
            "{} events from {} to {} are fewer than collect.events_min = {}",
            report.events_kept,
            report.from,
            report.to,
            config.events_min
        );
    }
    write_plain(&table_path(work, "events"), schema, &kept)?;
    for (name, table) in [("items", Some(items)), ("users", users), ("histories", histories)] {
        let path = table_path(work, name);
        match table {
            Some(table) => write_parquet(&path, table.schema(), &[table])?,
            None if path.exists() => fs::remove_file(&path)?,
            None => {}
        }
    }
    report.seconds = start.elapsed().as_secs_f64();
    let json = serde_json::to_vec_pretty(&report)?;
    fs::write(work.join("collect/report.json"), json)?;
    Ok(report)
}

/// The text of a file of `sql/`, which is part of the program.
pub fn builtin_sql(name: &str) -> SqlText {
    let text = match name {
        "validate" => include_str!("../../sql/validate.sql"),
        "collect" => include_str!("../../sql/collect.sql"),
        "item_keys" => include_str!("../../sql/item_keys.sql"),
        "user_keys" => include_str!("../../sql/user_keys.sql"),
        "facts" => include_str!("../../sql/facts.sql"),
        "pairs" => include_str!("../../sql/pairs.sql"),
        "user_category" => include_str!("../../sql/user_category.sql"),
        "user_brand" => include_str!("../../sql/user_brand.sql"),
        "user_department" => include_str!("../../sql/user_department.sql"),
        "item_stats" => include_str!("../../sql/item_stats.sql"),
        "user_stats" => include_str!("../../sql/user_stats.sql"),
        "region_item" => include_str!("../../sql/region_item.sql"),
        _ => unreachable!("no builtin SQL file {name}"),
    };
    SqlText::builtin(name, text)
}

/// Stops the day when a check is passed.
fn enforce(report: &Report, config: &Config) -> anyhow::Result<()> {
    let max = &config.share_max;
    let count = |name: &str| report.counts.get(name).copied().unwrap_or(0).max(0) as u64;
    for (name, rows, share_max) in [
        ("null_id", count("null_id"), max.null_id),
        ("duplicate_id", count("duplicate_id"), max.duplicate_id),
        ("outside_window", count("outside_window"), max.outside_window),
        ("unknown_item", count("unknown_item"), max.unknown_item),
        ("late", report.late, max.late),
    ] {
        let share = rows as f64 / report.events_read.max(1) as f64;
        if share > share_max {
            bail!(
                "check `{name}` failed for {rows} of {} events from {} to {}, a share of \
                 {share:.6}; the most allowed is {share_max} (collect.share_max.{name})",
                report.events_read,
                report.from,
                report.to
            );
        }
    }
    Ok(())
}

struct RawEvents {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    late: u64,
    unknown: Vec<String>,
}

/// Reads the files of the days with canonical columns; columns that only some files have are
/// null in the others.
fn read_events(data: &Path, days: &[i64]) -> anyhow::Result<RawEvents> {
    let mut parts = Vec::new();
    let mut fields: Vec<Field> = Vec::new();
    let mut unknown: Vec<String> = Vec::new();
    let mut late = 0;
    for &day in days {
        let folder = data.join("events").join(format!("dt={}", date_of(day)));
        for path in parquet_files(&folder)? {
            let (schema, batches) = read_columns(&path, None)?;
            let layout = checked_layout(Table::Events, &schema, &path)?;
            unknown.extend(layout.unknown.iter().cloned());
            for batch in &batches {
                let batch = times_as_ms(&layout.convert(batch)?.0, "timestamp", "ts_ms")?;
                let times = batch.column_by_name("ts_ms").expect("just made");
                let times = times.as_primitive::<Int64Type>().iter().flatten();
                late += times.filter(|&time| day_start_ms(time) != day).count() as u64;
                for field in batch.schema().fields() {
                    if !fields.iter().any(|known| known.name() == field.name()) {
                        fields.push(field.as_ref().clone());
                    }
                }
                parts.push(batch);
            }
        }
    }
    unknown.sort();
    unknown.dedup();
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let batches = parts.iter().map(|batch| widen(batch, &schema)).collect::<Result<_, _>>()?;
    Ok(RawEvents { schema, batches, late, unknown })
}

/// The batch with the columns of `schema`, absent ones as nulls; a column that two files write
/// with different types is converted to the first one's.
fn widen(batch: &RecordBatch, schema: &SchemaRef) -> anyhow::Result<RecordBatch> {
    let columns = schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
        Some(column) if column.data_type() == field.data_type() => Ok(column.clone()),
        Some(column) => arrow::compute::cast(column, field.data_type()),
        None => Ok(arrow::array::new_null_array(field.data_type(), batch.num_rows())),
    });
    Ok(RecordBatch::try_new(schema.clone(), columns.collect::<Result<Vec<_>, _>>()?)?)
}

/// All files of items, users or histories as one batch sorted by key; of rows with the same key
/// the one of the last file stays. `None` when there is no such directory.
fn read_catalogue(data: &Path, table: Table) -> anyhow::Result<Option<RecordBatch>> {
    let folder = data.join(table.name());
    if !folder.exists() {
        return Ok(None);
    }
    let mut parts = Vec::new();
    let mut fields: Vec<Field> = Vec::new();
    for path in parquet_files(&folder)? {
        let (schema, batches) = read_columns(&path, None)?;
        let layout = checked_layout(table, &schema, &path)?;
        for batch in &batches {
            let mut batch = layout.convert(batch)?.0;
            for (from, to) in [("created_at", "created_ms"), ("as_of", "as_of_ms")] {
                if batch.column_by_name(from).is_some() {
                    batch = times_as_ms(&batch, from, to)?;
                }
            }
            if table == Table::Items {
                batch = with_created_day(&batch)?;
            }
            for field in batch.schema().fields() {
                if !fields.iter().any(|known| known.name() == field.name()) {
                    fields.push(field.as_ref().clone());
                }
            }
            parts.push(batch);
        }
    }
    if parts.is_empty() {
        return Ok(None);
    }
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let parts: Vec<RecordBatch> =
        parts.iter().map(|batch| widen(batch, &schema)).collect::<Result<_, _>>()?;
    let whole = concat_batches(&schema, &parts)?;
    Ok(Some(last_of_each_key(&whole, table)?))
}

fn last_of_each_key(batch: &RecordBatch, table: Table) -> anyhow::Result<RecordBatch> {
    let columns: Vec<&arrow::array::StringArray> = table
        .key()
        .iter()
        .map(|name| batch.column_by_name(name).expect("canonical column").as_string::<i32>())
        .collect();
    let keys: Vec<Option<String>> = (0..batch.num_rows())
        .map(|row| {
            let parts: Option<Vec<&str>> =
                columns.iter().map(|c| c.is_valid(row).then(|| c.value(row))).collect();
            parts.map(|parts| parts.join("\u{1f}"))
        })
        .collect();
    let mut seen: HashSet<&str> = HashSet::with_capacity(keys.len());
    let mut keep = vec![false; keys.len()];
    for (row, key) in keys.iter().enumerate().rev() {
        keep[row] = key.as_ref().is_some_and(|key| seen.insert(key));
    }
    let keep = BooleanArray::from(keep);
    let batch = filter_record_batch(batch, &keep)?;
    let kept: arrow::array::StringArray = keys
        .iter()
        .zip(keep.iter())
        .filter(|(_, keep)| *keep == Some(true))
        .map(|(k, _)| k.clone())
        .collect();
    Ok(take_record_batch(&batch, &sort_to_indices(&kept, None, None)?)?)
}

fn checked_layout(table: Table, schema: &Schema, path: &Path) -> anyhow::Result<Layout> {
    let layout = Layout::new(table, schema);
    if let Some((name, found, expected)) = layout.unusable.first() {
        bail!("{}: column `{name}` is {found}, expected {expected}", path.display());
    }
    if let Some(name) = layout.missing.first() {
        bail!("{}: no column `{name}`, which table {} needs", path.display(), table.name());
    }
    Ok(layout)
}

/// Replaces a time column by one of epoch milliseconds.
fn times_as_ms(batch: &RecordBatch, from: &str, to: &str) -> anyhow::Result<RecordBatch> {
    let at = batch.schema().index_of(from)?;
    replace_column(batch, at, to, epoch_ms(batch.column(at)))
}

fn replace_column(
    batch: &RecordBatch,
    at: usize,
    name: &str,
    column: ArrayRef,
) -> anyhow::Result<RecordBatch> {
    let mut fields: Vec<Field> =
        batch.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    let field = Field::new(name, column.data_type().clone(), true);
    if at < fields.len() {
        (fields[at], columns[at]) = (field, column);
    } else {
        fields.push(field);
        columns.push(column);
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// Adds `created_day`, the epoch day with its fraction: the unit of ages in features.
fn with_created_day(batch: &RecordBatch) -> anyhow::Result<RecordBatch> {
    let created_ms = tables::i64_column(batch, "created_ms")?;
    let days: Float64Array = created_ms.iter().map(|ms| ms.map(epoch_days)).collect();
    replace_column(batch, batch.num_columns(), "created_day", Arc::new(days))
}

fn parquet_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{}", folder.display()))?;
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    files.sort();
    Ok(files)
}

/// Writes what a query gave with plain column types (the engine may hand out string views).
pub(super) fn write_plain(
    path: &Path,
    schema: SchemaRef,
    batches: &[RecordBatch],
) -> anyhow::Result<()> {
    let fields = schema.fields().iter().map(|field| {
        let plain = match field.data_type() {
            DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
            other => other.clone(),
        };
        Field::new(field.name(), plain, true)
    });
    let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let batches =
        batches.iter().map(|batch| widen(batch, &schema)).collect::<Result<Vec<_>, _>>()?;
    Ok(write_parquet(path, schema, &batches)?)
}

fn first_row(batches: &[RecordBatch]) -> anyhow::Result<std::collections::BTreeMap<String, i64>> {
    let batch = batches
        .iter()
        .find(|batch| batch.num_rows() > 0)
        .context("sql/validate.sql gave no row")?;
    let mut counts = std::collections::BTreeMap::new();
    for field in batch.schema().fields() {
        let column: Int64Array = tables::i64_column(batch, field.name())?;
        counts.insert(field.name().clone(), if column.is_null(0) { 0 } else { column.value(0) });
    }
    Ok(counts)
}

#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;
