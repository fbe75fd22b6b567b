//! Reads the two logs back from their files.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray};
use arrow::datatypes::{
    Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType, UInt64Type,
};
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Error, EventRecord, RequestRecord, Served};
use crate::monitor::{Fallback, Log};

/// The files of the request log of one day, oldest names first; none where the day has none.
pub fn request_files(data_dir: &Path, day: &str) -> Result<Vec<PathBuf>, Error> {
    files(data_dir, Log::Requests, day)
}

/// The files of the event log of one day, as [`request_files`].
pub fn event_files(data_dir: &Path, day: &str) -> Result<Vec<PathBuf>, Error> {
    files(data_dir, Log::Events, day)
}

fn files(data_dir: &Path, log: Log, day: &str) -> Result<Vec<PathBuf>, Error> {
    let directory = data_dir.join(log.name()).join(format!("dt={day}"));
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Io { path: directory, source }),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let paths: Result<Vec<PathBuf>, _> = paths.collect();
    let mut paths = paths.map_err(|source| Error::Io { path: directory, source })?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    paths.sort_unstable();
    Ok(paths)
}

/// The requests of one file that were logged in full, at most `max`.
///
/// # Errors
/// When the file cannot be read, or is not of a request log.
pub fn read_requests(path: &Path, max: usize) -> Result<Vec<RequestRecord>, Error> {
    let mut found = Vec::new();
    for batch in batches(path)? {
        let batch = batch?;
        let table = Table { batch: &batch, path };
        // A log that was written before there were full rows has none.
        let Some(settings) = batch.column_by_name("settings") else { continue };
        for row in (0..batch.num_rows()).filter(|&row| settings.is_valid(row)) {
            if found.len() == max {
                return Ok(found);
            }
            found.push(table.request(row)?);
        }
    }
    Ok(found)
}

/// The events of one file.
///
/// # Errors
/// When the file cannot be read, or is not of an event log.
pub fn read_events(path: &Path) -> Result<Vec<EventRecord>, Error> {
    let mut found = Vec::new();
    for batch in batches(path)? {
        let batch = batch?;
        let table = Table { batch: &batch, path };
        for row in 0..batch.num_rows() {
            found.push(table.event(row)?);
        }
    }
    Ok(found)
}

fn batches(path: &Path) -> Result<impl Iterator<Item = Result<RecordBatch, Error>>, Error> {
    let parquet = |source| Error::Parquet { path: path.to_owned(), source };
    let file = File::open(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(parquet)?;
    let path = path.to_owned();
    let batches = reader.build().map_err(parquet)?;
    Ok(batches.map(move |batch| {
        batch.map_err(|error| Error::Parquet { path: path.clone(), source: error.into() })
    }))
}

/// Reads rows of one batch.
struct Table<'a> {
    batch: &'a RecordBatch,
    path: &'a Path,
}

impl Table<'_> {
    fn event(&self, row: usize) -> Result<EventRecord, Error> {
        let micros = self.number::<TimestampMicrosecondType>("timestamp", row)?;
        let text = |name| self.if_there(name, |name| self.text(name, row));
        Ok(EventRecord {
            event_id: self.text("event_id", row)?.unwrap_or_default(),
            user_id: self.text("user_id", row)?.unwrap_or_default(),
            item_id: self.text("item_id", row)?.unwrap_or_default(),
            event: self.text("event", row)?.unwrap_or_default(),
            time_ms: micros.unwrap_or_default() / 1000,
            value: self.if_there("value", |name| self.number::<Float64Type>(name, row))?,
            label: self.if_there("label", |name| self.number::<Float64Type>(name, row))?,
            request_id: text("request_id")?,
            position: self.if_there("position", |name| self.number::<Int32Type>(name, row))?,
            device: text("device")?,
            region: text("region")?,
            variant: text("variant")?,
            bundle_version: text("bundle_version")?,
            propensity: self
                .if_there("propensity", |name| self.number::<Float64Type>(name, row))?,
        })
    }

    /// A column that files of other origin may lack.
    fn if_there<T>(
        &self,
        name: &'static str,
        read: impl Fn(&'static str) -> Result<Option<T>, Error>,
    ) -> Result<Option<T>, Error> {
        if self.batch.column_by_name(name).is_none() { Ok(None) } else { read(name) }
    }

    fn request(&self, row: usize) -> Result<RequestRecord, Error> {
        let known = |name: String| Fallback::ALL.iter().find(|f| f.name() == name);
        let degraded = self.texts("degraded", row)?.into_iter().filter_map(known);
        let micros = self.number::<TimestampMicrosecondType>("timestamp", row)?;
        Ok(RequestRecord {
            request_id: self.text("request_id", row)?.unwrap_or_default(),
            time_ms: micros.unwrap_or_default() / 1000,
            user_id: self.text("user_id", row)?.unwrap_or_default(),
            device: self.text("device", row)?,
            region: self.text("region", row)?,
            bundle_version: self.text("bundle_version", row)?.unwrap_or_default(),
            variant: self.text("variant", row)?.unwrap_or_default(),
            num_items: self.number::<Int32Type>("num_items", row)?.unwrap_or_default(),
            item_ids: self.texts("item_ids", row)?,
            scores: self.numbers::<Float32Type>("scores", row)?,
            degraded: degraded.map(|fallback| fallback.name()).collect(),
            stage_us: [0; 6],
            total_us: 0,
            served: Some(Box::new(self.served(row)?)),
        })
    }

    fn served(&self, row: usize) -> Result<Served, Error> {
        let pairs = |names, values| -> Result<Vec<(String, String)>, Error> {
            Ok(self.texts(names, row)?.into_iter().zip(self.texts(values, row)?).collect())
        };
        let count = |name| Ok(self.number::<UInt64Type>(name, row)?.unwrap_or_default());
        let record = self.column("user_record")?.as_binary_opt::<i32>();
        let record = record.ok_or_else(|| self.foreign("user_record"))?;
        let record = record.is_valid(row).then(|| record.value(row).to_vec());
        let layout = self.number::<UInt64Type>("user_record_layout", row)?;
        let cached = self.column("vector_cached")?.as_boolean_opt();
        Ok(Served {
            context: pairs("context_names", "context_values")?,
            region: self.text("region_served", row)?,
            history: self.history(row)?,
            shown: self.texts("shown_item_ids", row)?,
            user_record: record.zip(layout),
            vector: self.numbers::<Float32Type>("vector", row)?,
            vector_cached: cached.ok_or_else(|| self.foreign("vector_cached"))?.value(row),
            candidates: self.number::<Int32Type>("candidates", row)?.unwrap_or_default() as u32,
            quality: self.number::<Float32Type>("quality", row)?.unwrap_or_default(),
            item_changes: [
                count("item_changes_start")?,
                count("item_changes_entry")?,
                count("item_changes_settled")?,
            ],
            lost: self.texts("lost_parts", row)?,
            settings: self.text("settings", row)?.unwrap_or_default().into(),
            features: self.numbers::<Float32Type>("features", row)?,
            sources: self.texts("sources", row)?,
            retrieval_ranks: self.numbers::<Float32Type>("retrieval_ranks", row)?,
            similarities: self.numbers::<Float32Type>("similarities", row)?,
            raw_scores: self.numbers::<Float64Type>("raw_scores", row)?,
            propensities: self.numbers::<Float64Type>("propensities", row)?,
            dropped: pairs("dropped_item_ids", "dropped_reasons")?,
        })
    }

    fn history(&self, row: usize) -> Result<Vec<(String, Option<i64>)>, Error> {
        let times = self.list("history_times_ms", row)?;
        let times = times.as_primitive_opt::<Int64Type>();
        let times = times.ok_or_else(|| self.foreign("history_times_ms"))?;
        Ok(self.texts("history_item_ids", row)?.into_iter().zip(times.iter()).collect())
    }

    fn column(&self, name: &'static str) -> Result<&ArrayRef, Error> {
        self.batch.column_by_name(name).ok_or_else(|| self.foreign(name))
    }

    fn foreign(&self, column: &'static str) -> Error {
        Error::Foreign { path: self.path.to_owned(), column }
    }

    fn text(&self, name: &'static str, row: usize) -> Result<Option<String>, Error> {
        let column = self.column(name)?.as_string_opt::<i32>();
        let column = column.ok_or_else(|| self.foreign(name))?;
        Ok(column.is_valid(row).then(|| column.value(row).to_owned()))
    }

    fn number<T: ArrowPrimitiveType>(
        &self,
        name: &'static str,
        row: usize,
    ) -> Result<Option<T::Native>, Error> {
        let column: Option<&PrimitiveArray<T>> = self.column(name)?.as_primitive_opt::<T>();
        let column = column.ok_or_else(|| self.foreign(name))?;
        Ok(column.is_valid(row).then(|| column.value(row)))
    }

    fn list(&self, name: &'static str, row: usize) -> Result<ArrayRef, Error> {
        let column = self.column(name)?.as_list_opt::<i32>();
        Ok(column.ok_or_else(|| self.foreign(name))?.value(row))
    }

    fn texts(&self, name: &'static str, row: usize) -> Result<Vec<String>, Error> {
        let list = self.list(name, row)?;
        let texts = list.as_string_opt::<i32>().ok_or_else(|| self.foreign(name))?;
        Ok(texts.iter().map(|text| text.unwrap_or_default().to_owned()).collect())
    }

    fn numbers<T: ArrowPrimitiveType>(
        &self,
        name: &'static str,
        row: usize,
    ) -> Result<Vec<T::Native>, Error> {
        let list = self.list(name, row)?;
        let numbers = list.as_primitive_opt::<T>().ok_or_else(|| self.foreign(name))?;
        Ok(numbers.values().to_vec())
    }
}
