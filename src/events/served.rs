//! What decided an answer beside its bundle, and how the answer came about: the columns that the
//! request log has for a request that is logged in full, and how they are read back.
//!
//! Items, users and regions stand as their ids, so that the row can be asked of another bundle. In
//! the file every list is one column; a request that is not logged in full has nulls.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayBuilder, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, BooleanArray,
    Float32Array, Float32Builder, Float64Builder, Int32Array, Int64Builder, ListBuilder,
    PrimitiveArray, StringArray, StringBuilder, UInt64Array,
};
use arrow::datatypes::{
    Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType, UInt64Type,
};
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Serialize;

use super::{Error, RequestRecord};
use crate::monitor::Fallback;

/// What of a request the log keeps when it keeps all.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Served {
    /// Further context values by name, as they were asked.
    pub context: Vec<(String, String)>,
    /// The region that served; `None` is everywhere.
    pub region: Option<String>,
    /// The user's last events, oldest first; `None` is a time that is not known.
    pub history: Vec<(String, Option<i64>)>,
    /// Items shown to the user lately.
    pub shown: Vec<String>,
    /// The user's features as the store had them, and the fingerprint of their layout; without it the
    /// bundle's own row served.
    pub user_record: Option<(Vec<u8>, u64)>,
    /// The user's vector, and whether a cache had it.
    pub vector: Vec<f32>,
    pub vector_cached: bool,
    /// How many candidates retrieval was asked for, and the share of its work that it did.
    pub candidates: u32,
    pub quality: f32,
    /// Numbers in the change log of items: where the version began, what was applied at the request's
    /// entry, and what was being applied when its candidates were found. The last two differ when
    /// items changed under the search.
    pub item_changes: [u64; 3],
    /// Parts that were left out, late or failed.
    pub lost: Vec<String>,
    /// Settings of the version, as JSON.
    pub settings: Arc<str>,
    /// Of the items of the answer, in its order: the schema's columns item by item, ...
    pub features: Vec<f32>,
    /// ... what brought them, their place and similarity in retrieval (NaN for none), ...
    pub sources: Vec<String>,
    pub retrieval_ranks: Vec<f32>,
    pub similarities: Vec<f32>,
    /// ... the ranker's raw score (NaN for none), and the probability of showing the item there.
    pub raw_scores: Vec<f64>,
    pub propensities: Vec<f64>,
    /// Candidates that a rule dropped, with its name.
    pub dropped: Vec<(String, String)>,
}

/// Columns in the order of [`columns`].
type Columns = Vec<(String, ArrayRef)>;

/// The columns of the rows; null for a row that has none.
pub(super) fn columns(rows: &[RequestRecord]) -> Columns {
    let all = Rows(rows);
    let text = |get: fn(&Served) -> Option<&str>| -> ArrayRef {
        Arc::new(all.each(get).collect::<StringArray>())
    };
    let count = |at: usize| -> ArrayRef {
        Arc::new(all.each(|s| Some(s.item_changes[at])).collect::<UInt64Array>())
    };
    let record = |s| Served::record(s).map(|(bytes, _)| bytes);
    let fingerprint = |s| Served::record(s).map(|(_, fingerprint)| fingerprint);
    let ids = |get: fn(&Served) -> Vec<&str>| all.texts(get);
    let columns: [(&str, ArrayRef); 25] = [
        ("context_names", ids(|s| s.context.iter().map(|(name, _)| name.as_str()).collect())),
        ("context_values", ids(|s| s.context.iter().map(|(_, value)| value.as_str()).collect())),
        ("region_served", text(|s| s.region.as_deref())),
        ("history_item_ids", ids(|s| s.history.iter().map(|(id, _)| id.as_str()).collect())),
        ("history_times_ms", all.times()),
        ("shown_item_ids", ids(|s| s.shown.iter().map(String::as_str).collect())),
        ("user_record", Arc::new(all.each(record).collect::<BinaryArray>())),
        ("user_record_layout", Arc::new(all.each(fingerprint).collect::<UInt64Array>())),
        ("vector", all.floats(|s| &s.vector)),
        ("vector_cached", Arc::new(all.each(|s| Some(s.vector_cached)).collect::<BooleanArray>())),
        ("candidates", Arc::new(all.each(|s| Some(s.candidates as i32)).collect::<Int32Array>())),
        ("quality", Arc::new(all.each(|s| Some(s.quality)).collect::<Float32Array>())),
        ("item_changes_start", count(0)),
        ("item_changes_entry", count(1)),
        ("item_changes_settled", count(2)),
        ("lost_parts", ids(|s| s.lost.iter().map(String::as_str).collect())),
        ("settings", text(|s| Some(&*s.settings))),
        ("features", all.floats(|s| &s.features)),
        ("sources", ids(|s| s.sources.iter().map(String::as_str).collect())),
        ("retrieval_ranks", all.floats(|s| &s.retrieval_ranks)),
        ("similarities", all.floats(|s| &s.similarities)),
        ("raw_scores", all.doubles(|s| &s.raw_scores)),
        ("propensities", all.doubles(|s| &s.propensities)),
        ("dropped_item_ids", ids(|s| s.dropped.iter().map(|(id, _)| id.as_str()).collect())),
        ("dropped_reasons", ids(|s| s.dropped.iter().map(|(_, why)| why.as_str()).collect())),
    ];
    columns.map(|(name, column)| (name.to_owned(), column)).into()
}

impl Served {
    fn record(&self) -> Option<(&[u8], u64)> {
        self.user_record.as_ref().map(|(bytes, fingerprint)| (bytes.as_slice(), *fingerprint))
    }
}

/// Builds columns over rows of which some have nothing.
#[derive(Clone, Copy)]
struct Rows<'a>(&'a [RequestRecord]);

impl<'a> Rows<'a> {
    fn each<T>(self, get: impl Fn(&'a Served) -> Option<T>) -> impl Iterator<Item = Option<T>> {
        self.0.iter().map(move |row| row.served.as_deref().and_then(&get))
    }

    fn lists<B: ArrayBuilder, T>(
        self,
        values: B,
        get: impl Fn(&'a Served) -> T,
        append: impl Fn(&mut B, T),
    ) -> ArrayRef {
        let mut builder = ListBuilder::new(values);
        for row in self.0 {
            if let Some(served) = &row.served {
                append(builder.values(), get(served));
            }
            builder.append(row.served.is_some());
        }
        Arc::new(builder.finish())
    }

    fn texts(self, get: impl Fn(&'a Served) -> Vec<&'a str>) -> ArrayRef {
        self.lists(StringBuilder::new(), get, |values, texts| {
            texts.into_iter().for_each(|text| values.append_value(text));
        })
    }

    fn floats(self, get: impl Fn(&'a Served) -> &'a Vec<f32>) -> ArrayRef {
        self.lists(Float32Builder::new(), get, |values, floats| values.append_slice(floats))
    }

    fn doubles(self, get: impl Fn(&'a Served) -> &'a Vec<f64>) -> ArrayRef {
        self.lists(Float64Builder::new(), get, |values, doubles| values.append_slice(doubles))
    }

    fn times(self) -> ArrayRef {
        self.lists(
            Int64Builder::new(),
            |s| &s.history,
            |values, history| {
                history.iter().for_each(|&(_, time_ms)| values.append_option(time_ms))
            },
        )
    }
}

/// The files of the request log of one day, oldest names first; none where the day has none.
pub fn request_files(data_dir: &Path, day: &str) -> Result<Vec<PathBuf>, Error> {
    let directory = data_dir.join("requests").join(format!("dt={day}"));
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
    let io = |source| Error::Io { path: path.to_owned(), source };
    let parquet = |source| Error::Parquet { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(parquet)?;
    let mut found = Vec::new();
    for batch in reader.build().map_err(parquet)? {
        let batch = batch.map_err(|error| parquet(error.into()))?;
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

/// Reads rows of one batch.
struct Table<'a> {
    batch: &'a RecordBatch,
    path: &'a Path,
}

impl Table<'_> {
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
