//! What was recorded, as it stands in a data directory, in one layout: the input of collect's SQL.
//!
//! Files may lack columns and give a column other types. Each is read batch by batch and written
//! again with the columns of all of them; times become epoch milliseconds. A row with a value that
//! does not fit its column goes to the quarantine, which keeps the value in its reason.
//! Must not know which rows are good: that is the SQL's and [`super::validation`]'s.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, StringArray, UInt32Array,
};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};

use crate::offline::sql::{ParquetWriter, write_parquet};
use crate::offline::tables::{self, Layout, Table, epoch_ms, read_columns};
use crate::types::{date_of, day_start_ms, epoch_days};

/// Rows that are converted at once.
const BATCH_ROWS: usize = 65_536;

/// What came of the events' files.
#[derive(Debug, Default)]
pub struct RawEvents {
    pub read: u64,
    /// In the quarantine, because a value does not fit its column.
    pub wrong_type: u64,
    /// In the folder of another day than their own.
    pub late: u64,
    /// Columns that the contract does not keep.
    pub unknown: Vec<String>,
}

/// What came of the files of a table of the catalogue: `read = kept + replaced + quarantined`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Counts {
    pub read: u64,
    pub kept: u64,
    /// Of a key that a later row has too.
    pub replaced: u64,
    /// Without a key, or with a value that does not fit its column.
    pub quarantined: u64,
}

/// Writes the events of `days` in one layout: good rows below `out`, rows with a value that does
/// not fit to `quarantine`. Uses so many threads.
pub fn events(
    data: &Path,
    days: &[i64],
    out: &Path,
    quarantine: &Path,
    threads: usize,
) -> anyhow::Result<RawEvents> {
    let mut files = Vec::new();
    for &day in days {
        let folder = data.join("events").join(format!("dt={}", date_of(day)));
        files.extend(parquet_files(&folder)?.into_iter().map(|path| (day, path)));
    }
    if files.is_empty() {
        bail!("{}/events: the days of the window have folders but no Parquet file", data.display());
    }
    let mut fields: Vec<Field> = Vec::new();
    let mut raw = RawEvents::default();
    for (_, path) in &files {
        let layout = checked_layout(Table::Events, reader(path)?.schema(), path)?;
        raw.unknown.extend(layout.unknown.iter().cloned());
        add_fields(&mut fields, &with_ms(&layout.schema));
    }
    raw.unknown.sort();
    raw.unknown.dedup();
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let next = AtomicUsize::new(0);
    let work = || -> anyhow::Result<(RawEvents, Vec<RecordBatch>)> {
        let (mut mine, mut bad) = (RawEvents::default(), Vec::new());
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((day, path)) = files.get(at) else { return Ok((mine, bad)) };
            let out = out.join(format!("part-{at:05}.parquet"));
            one_file(*day, path, &schema, &out, &mut mine, &mut bad)
                .with_context(|| path.display().to_string())?;
        }
    };
    let parts = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..threads.clamp(1, files.len())).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a reading thread panicked"))
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    let mut bad = Vec::new();
    for (part, rows) in parts {
        raw.read += part.read;
        raw.wrong_type += part.wrong_type;
        raw.late += part.late;
        bad.extend(rows);
    }
    quarantine_rows(quarantine, &schema, &bad)?;
    Ok(raw)
}

fn one_file(
    day: i64,
    path: &Path,
    schema: &SchemaRef,
    out: &Path,
    counts: &mut RawEvents,
    bad: &mut Vec<RecordBatch>,
) -> anyhow::Result<()> {
    let reader = reader(path)?;
    let layout = checked_layout(Table::Events, reader.schema(), path)?;
    let mut writer = ParquetWriter::create(out, schema.clone())?;
    for batch in reader.with_batch_size(BATCH_ROWS).build()? {
        let batch = batch?;
        counts.read += batch.num_rows() as u64;
        let (rows, unfit) = convert(&layout, &batch)?;
        let rows = times_as_ms(&rows, "timestamp", "ts_ms")?;
        if let Some(unfit) = unfit {
            counts.wrong_type += unfit.num_rows() as u64;
            let unfit = times_as_ms(&unfit, "timestamp", "ts_ms")?;
            bad.push(widen(&unfit, &with_reason(schema))?);
        }
        let times = rows.column_by_name("ts_ms").expect("just made").as_primitive::<Int64Type>();
        counts.late +=
            times.iter().flatten().filter(|&time| day_start_ms(time) != day).count() as u64;
        writer.write(&widen(&rows, schema)?)?;
    }
    writer.finish()?;
    Ok(())
}

/// All files of items, users or histories as one batch sorted by key; of rows with the same key
/// the one of the last file stays. `None` when there is no such directory. Rows without a key or
/// with a value that does not fit go to `quarantine`.
pub fn catalogue(
    data: &Path,
    table: Table,
    quarantine: &Path,
) -> anyhow::Result<Option<(RecordBatch, Counts)>> {
    let folder = data.join(table.name());
    if !folder.exists() {
        return Ok(None);
    }
    let mut counts = Counts::default();
    let (mut parts, mut bad): (Vec<RecordBatch>, Vec<RecordBatch>) = Default::default();
    let mut fields: Vec<Field> = Vec::new();
    for path in parquet_files(&folder)? {
        let (schema, batches) = read_columns(&path, None)?;
        let layout = checked_layout(table, &schema, &path)?;
        for batch in &batches {
            counts.read += batch.num_rows() as u64;
            let (rows, unfit) = convert(&layout, batch)?;
            bad.extend(unfit);
            let (rows, keyless) = without_key(&rows, table)?;
            bad.extend(keyless);
            let rows = as_collected(rows, table)?;
            add_fields(&mut fields, &rows.schema());
            parts.push(rows);
        }
    }
    counts.quarantined = bad.iter().map(RecordBatch::num_rows).sum::<usize>() as u64;
    if let Some(first) = bad.first() {
        let mut all: Vec<Field> = Vec::new();
        bad.iter().for_each(|batch| add_fields(&mut all, &batch.schema()));
        let plain: Vec<Field> = all.into_iter().filter(|f| f.name() != "reason").collect();
        let schema: SchemaRef = Arc::new(Schema::new(plain));
        debug_assert!(first.num_rows() > 0);
        let bad: Vec<RecordBatch> = bad
            .iter()
            .map(|batch| widen(batch, &with_reason(&schema)))
            .collect::<anyhow::Result<_>>()?;
        quarantine_rows(quarantine, &schema, &bad)?;
    } else {
        quarantine_rows(quarantine, &Arc::new(Schema::empty()), &[])?;
    }
    if parts.is_empty() {
        return Ok(None);
    }
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let parts: Vec<RecordBatch> =
        parts.iter().map(|batch| widen(batch, &schema)).collect::<Result<_, _>>()?;
    let rows = last_of_each_key(&concat_batches(&schema, &parts)?, table)?;
    counts.kept = rows.num_rows() as u64;
    counts.replaced = counts.read - counts.quarantined - counts.kept;
    Ok(Some((rows, counts)))
}

/// Times as milliseconds, and the age's day of items.
fn as_collected(mut batch: RecordBatch, table: Table) -> anyhow::Result<RecordBatch> {
    for (from, to) in [("created_at", "created_ms"), ("as_of", "as_of_ms")] {
        if batch.column_by_name(from).is_some() {
            batch = times_as_ms(&batch, from, to)?;
        }
    }
    if table == Table::Items { with_created_day(&batch) } else { Ok(batch) }
}

/// The rows in canonical columns, and apart from them, with a reason, those that lost a value.
fn convert(
    layout: &Layout,
    raw: &RecordBatch,
) -> anyhow::Result<(RecordBatch, Option<RecordBatch>)> {
    let (rows, lost) = layout.convert(raw)?;
    if lost.iter().all(Vec::is_empty) {
        return Ok((rows, None));
    }
    let options = FormatOptions::default();
    let mut reasons: Vec<Option<String>> = vec![None; raw.num_rows()];
    for (field, lost) in rows.schema().fields().iter().zip(&lost).filter(|(_, l)| !l.is_empty()) {
        let column = raw.column_by_name(field.name()).context("a lost value has a column")?;
        let values = ArrayFormatter::try_new(column, &options)?;
        for &row in lost {
            let reason = reasons[row].get_or_insert_with(|| "wrong_type:".to_owned());
            reason.push_str(&format!(" {} = {}", field.name(), values.value(row)));
        }
    }
    divide(&rows, &reasons)
}

/// The rows whose keys are all there, and the others.
fn without_key(
    rows: &RecordBatch,
    table: Table,
) -> anyhow::Result<(RecordBatch, Option<RecordBatch>)> {
    let keys: Vec<&ArrayRef> = table
        .key()
        .iter()
        .map(|name| rows.column_by_name(name).expect("canonical column"))
        .collect();
    let missing = |row: usize| keys.iter().any(|key| key.is_null(row));
    let reasons: Vec<Option<String>> =
        (0..rows.num_rows()).map(|row| missing(row).then(|| "null_id".to_owned())).collect();
    if reasons.iter().all(Option::is_none) {
        return Ok((rows.clone(), None));
    }
    divide(rows, &reasons)
}

/// Rows without a reason, and rows with theirs.
fn divide(
    rows: &RecordBatch,
    reasons: &[Option<String>],
) -> anyhow::Result<(RecordBatch, Option<RecordBatch>)> {
    let good: BooleanArray = reasons.iter().map(|reason| Some(reason.is_none())).collect();
    let bad: BooleanArray = reasons.iter().map(|reason| Some(reason.is_some())).collect();
    let unfit = filter_record_batch(rows, &bad)?;
    let mut columns = unfit.columns().to_vec();
    columns.push(Arc::new(StringArray::from_iter(reasons.iter().flatten().map(Some))));
    let unfit = RecordBatch::try_new(with_reason(&rows.schema()), columns)?;
    Ok((filter_record_batch(rows, &good)?, Some(unfit)))
}

fn with_reason(schema: &SchemaRef) -> SchemaRef {
    let mut fields: Vec<Field> = schema.fields().iter().map(|f| f.as_ref().clone()).collect();
    fields.push(Field::new("reason", DataType::Utf8, true));
    Arc::new(Schema::new(fields))
}

/// Replaces a quarantine's file; without rows there is none.
fn quarantine_rows(path: &Path, schema: &SchemaRef, rows: &[RecordBatch]) -> anyhow::Result<()> {
    if path.exists() {
        fs::remove_file(path).with_context(|| path.display().to_string())?;
    }
    if rows.is_empty() {
        return Ok(());
    }
    Ok(write_parquet(path, with_reason(schema), rows)?)
}

fn add_fields(fields: &mut Vec<Field>, schema: &Schema) {
    for field in schema.fields() {
        if !fields.iter().any(|known| known.name() == field.name()) {
            fields.push(field.as_ref().clone());
        }
    }
}

/// A layout's schema once its times are milliseconds.
fn with_ms(schema: &SchemaRef) -> Schema {
    let fields = schema.fields().iter().map(|field| match field.name().as_str() {
        "timestamp" => Field::new("ts_ms", DataType::Int64, true),
        _ => field.as_ref().clone(),
    });
    Schema::new(fields.collect::<Vec<_>>())
}

fn reader(path: &Path) -> anyhow::Result<ParquetRecordBatchReaderBuilder<fs::File>> {
    let file = fs::File::open(path).with_context(|| path.display().to_string())?;
    ParquetRecordBatchReaderBuilder::try_new(file)
        .with_context(|| format!("{}: not a readable Parquet file", path.display()))
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

/// Of rows with the same key the last one, sorted by key.
fn last_of_each_key(batch: &RecordBatch, table: Table) -> anyhow::Result<RecordBatch> {
    let columns: Vec<&StringArray> = table
        .key()
        .iter()
        .map(|name| batch.column_by_name(name).expect("canonical column").as_string::<i32>())
        .collect();
    let key = |row: usize| -> Vec<&str> { columns.iter().map(|c| c.value(row)).collect() };
    let mut seen: HashSet<Vec<&str>> = HashSet::with_capacity(batch.num_rows());
    let mut rows: Vec<usize> =
        (0..batch.num_rows()).rev().filter(|&row| seen.insert(key(row))).collect();
    drop(seen);
    rows.sort_unstable_by(|&a, &b| {
        let order = columns.iter().map(|c| c.value(a).cmp(c.value(b)));
        order.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
    });
    let rows: UInt32Array = rows.into_iter().map(|row| row as u32).collect();
    Ok(take_record_batch(batch, &rows)?)
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
