//! The canonical tables: their columns, how other types become theirs, and how they are read.
//!
//! Ids are strings; times are microseconds UTC in the tables of a data directory
//! (`timestamp`, `created_at`, `as_of`) and epoch milliseconds in collected ones (`ts_ms`,
//! `created_ms`, `as_of_ms`). A conversion loses nothing: a value that does not fit is missing
//! afterwards and reported by the caller, never rounded.
//!
//! Must not know where the rows come from or what share of bad rows is bearable.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, ListArray, RecordBatch,
    StringArray, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// Why a table could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: not a readable Parquet file: {source}")]
    Parquet { path: PathBuf, source: parquet::errors::ParquetError },
    #[error("{path}: {source}")]
    Arrow { path: PathBuf, source: ArrowError },
    #[error("no column `{name}` (there are: {present})")]
    Missing { name: String, present: String },
    #[error("column `{name}` is {found}, expected {expected}")]
    Type { name: String, found: String, expected: &'static str },
}

/// The four tables of the data contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    Events,
    Items,
    Users,
    Histories,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A 64-bit float.
    Float,
    /// A 64-bit integer.
    Int,
    Bool,
    /// Microseconds since the epoch, UTC.
    Time,
    /// A list of strings.
    TextList,
}

/// One canonical column.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    pub name: &'static str,
    pub kind: Kind,
    /// Whether the column must be there and every row must have a value.
    pub required: bool,
}

const fn spec(name: &'static str, kind: Kind, required: bool) -> Spec {
    Spec { name, kind, required }
}

const EVENTS: &[Spec] = &[
    spec("event_id", Kind::Text, true),
    spec("user_id", Kind::Text, true),
    spec("item_id", Kind::Text, true),
    spec("event", Kind::Text, true),
    spec("timestamp", Kind::Time, true),
    spec("value", Kind::Float, false),
    spec("label", Kind::Float, false),
    spec("request_id", Kind::Text, false),
    spec("position", Kind::Int, false),
    spec("device", Kind::Text, false),
    spec("region", Kind::Text, false),
    spec("variant", Kind::Text, false),
    spec("bundle_version", Kind::Text, false),
    spec("propensity", Kind::Float, false),
];
const ITEMS: &[Spec] = &[
    spec("item_id", Kind::Text, true),
    spec("title", Kind::Text, false),
    spec("category", Kind::Text, false),
    spec("price", Kind::Float, false),
    spec("created_at", Kind::Time, false),
    spec("in_stock", Kind::Bool, false),
    spec("regions", Kind::TextList, false),
    spec("labels", Kind::TextList, false),
    spec("image_url", Kind::Text, false),
];
const USERS: &[Spec] = &[spec("user_id", Kind::Text, true), spec("region", Kind::Text, false)];
const HISTORIES: &[Spec] = &[
    spec("user_id", Kind::Text, true),
    spec("event", Kind::Text, true),
    spec("item_ids", Kind::TextList, true),
    spec("as_of", Kind::Time, false),
];

impl Table {
    /// Items come first, because events refer to them.
    pub const ALL: [Table; 4] = [Table::Items, Table::Users, Table::Events, Table::Histories];

    pub fn name(self) -> &'static str {
        match self {
            Table::Events => "events",
            Table::Items => "items",
            Table::Users => "users",
            Table::Histories => "histories",
        }
    }

    /// The canonical columns in file order.
    pub fn specs(self) -> &'static [Spec] {
        match self {
            Table::Events => EVENTS,
            Table::Items => ITEMS,
            Table::Users => USERS,
            Table::Histories => HISTORIES,
        }
    }

    /// Columns whose values together occur once.
    pub fn key(self) -> &'static [&'static str] {
        match self {
            Table::Events => &["event_id"],
            Table::Items => &["item_id"],
            Table::Users => &["user_id"],
            Table::Histories => &["user_id", "event"],
        }
    }

    /// Whether a column outside the contract is kept: any attribute of an item or user, and of
    /// an event only what was known when it happened, marked by its name.
    pub fn keeps_extra(self, column: &str) -> bool {
        match self {
            Table::Events => column.starts_with("context_"),
            Table::Items | Table::Users => true,
            Table::Histories => false,
        }
    }
}

impl Kind {
    /// The Arrow type that a column of this kind has in every file.
    pub fn data_type(self) -> DataType {
        match self {
            Kind::Text => DataType::Utf8,
            Kind::Float => DataType::Float64,
            Kind::Int => DataType::Int64,
            Kind::Bool => DataType::Boolean,
            Kind::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Kind::TextList => DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))),
        }
    }

    /// What a person calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Text => "string",
            Kind::Float => "double",
            Kind::Int => "bigint",
            Kind::Bool => "boolean",
            Kind::Time => "timestamp (us, UTC)",
            Kind::TextList => "list of strings",
        }
    }

    /// The kind that keeps values of an Arrow type whole, for columns outside the contract.
    pub fn of(data_type: &DataType) -> Option<Kind> {
        match data_type {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(Kind::Text),
            DataType::Dictionary(_, values) => Kind::of(values),
            DataType::Boolean => Some(Kind::Bool),
            t if t.is_integer() => Some(Kind::Int),
            t if t.is_numeric() => Some(Kind::Float),
            DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => Some(Kind::Time),
            DataType::List(item) | DataType::LargeList(item)
                if matches!(Kind::of(item.data_type()), Some(Kind::Text | Kind::Int)) =>
            {
                Some(Kind::TextList)
            }
            _ => None,
        }
    }
}

/// Converts a column; what does not fit is null. `None` when the types have nothing in common
/// (an integer as a time: seconds, milliseconds and microseconds look alike).
pub fn coerce(array: &ArrayRef, kind: Kind) -> Option<ArrayRef> {
    if let DataType::Dictionary(_, values) = array.data_type() {
        return coerce(&cast(array, values)?, kind);
    }
    let from = array.data_type();
    match kind {
        _ if matches!(from, DataType::Null) => Some(new_null_array(&kind.data_type(), array.len())),
        Kind::Text if from.is_floating() => text_of_floats(array),
        Kind::Text if from.is_nested() => None,
        Kind::Int | Kind::Bool if from.is_floating() => {
            let floats = cast(array, &DataType::Float64)?;
            let whole: Int64Array = floats
                .as_primitive::<Float64Type>()
                .iter()
                .map(|x| x.filter(|x| x.fract() == 0.0 && x.abs() < 9e15).map(|x| x as i64))
                .collect();
            coerce(&(Arc::new(whole) as ArrayRef), kind)
        }
        Kind::Bool if from.is_integer() => {
            let integers = cast(array, &DataType::Int64)?;
            let bits = integers.as_primitive::<Int64Type>().iter();
            let bits: BooleanArray =
                bits.map(|x| x.filter(|x| (0..=1).contains(x)).map(|x| x == 1)).collect();
            Some(Arc::new(bits))
        }
        Kind::Time => time_of(array),
        Kind::TextList if !from.is_nested() => None,
        _ => cast(array, &kind.data_type()),
    }
}

/// A time column in epoch milliseconds.
pub fn epoch_ms(times: &ArrayRef) -> ArrayRef {
    let times = times.as_primitive::<TimestampMicrosecondType>();
    Arc::new(times.iter().map(|t| t.map(|t| t.div_euclid(1000))).collect::<Int64Array>())
}

/// Reads a Parquet file; `columns` limits what is decoded (unknown names are ignored).
pub fn read_columns(
    path: &Path,
    columns: Option<&[&str]>,
) -> Result<(SchemaRef, Vec<RecordBatch>), Error> {
    let parquet = |source| Error::Parquet { path: path.to_owned(), source };
    let file = File::open(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let mut builder =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(parquet)?.with_batch_size(65_536);
    if let Some(columns) = columns {
        let wanted = builder.schema().fields().iter().enumerate();
        let wanted: Vec<usize> = wanted
            .filter(|(_, field)| columns.contains(&field.name().as_str()))
            .map(|(at, _)| at)
            .collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
        builder = builder.with_projection(mask);
    }
    let reader = builder.build().map_err(parquet)?;
    let schema = arrow::array::RecordBatchReader::schema(&reader);
    let batches = reader
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::Arrow { path: path.to_owned(), source })?;
    Ok((schema, batches))
}

/// Rows of a Parquet file, or of all those in a directory, from their footers.
pub fn count_rows(path: &Path) -> Result<u64, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    if path.is_dir() {
        let mut rows = 0;
        for entry in std::fs::read_dir(path).map_err(io)? {
            let file = entry.map_err(io)?.path();
            if file.extension().is_some_and(|extension| extension == "parquet") {
                rows += count_rows(&file)?;
            }
        }
        return Ok(rows);
    }
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).map_err(io)?)
        .map_err(|source| Error::Parquet { path: path.to_owned(), source })?;
    Ok(builder.metadata().file_metadata().num_rows().max(0) as u64)
}

/// A column as strings; numbers are written out, other types refused.
pub fn string_column(batch: &RecordBatch, name: &str) -> Result<StringArray, Error> {
    Ok(converted(batch, name, Kind::Text)?.as_string::<i32>().clone())
}

/// A column as floats; booleans become 0 and 1, numeric text is parsed, other text is null.
pub fn f64_column(batch: &RecordBatch, name: &str) -> Result<Float64Array, Error> {
    Ok(converted(batch, name, Kind::Float)?.as_primitive::<Float64Type>().clone())
}

/// A column as integers; a fraction is null.
pub fn i64_column(batch: &RecordBatch, name: &str) -> Result<Int64Array, Error> {
    Ok(converted(batch, name, Kind::Int)?.as_primitive::<Int64Type>().clone())
}

/// A column of lists of strings, such as `items.regions` or `histories.item_ids`.
pub fn list_column(batch: &RecordBatch, name: &str) -> Result<ListArray, Error> {
    Ok(converted(batch, name, Kind::TextList)?.as_list::<i32>().clone())
}

fn converted(batch: &RecordBatch, name: &str, kind: Kind) -> Result<ArrayRef, Error> {
    let column = batch.column_by_name(name).ok_or_else(|| {
        let fields = batch.schema();
        let present: Vec<&str> = fields.fields().iter().map(|f| f.name().as_str()).collect();
        Error::Missing { name: name.to_owned(), present: present.join(", ") }
    })?;
    coerce(column, kind).ok_or_else(|| Error::Type {
        name: name.to_owned(),
        found: column.data_type().to_string(),
        expected: kind.name(),
    })
}

/// How the columns a source offers become those of a canonical table.
#[derive(Debug)]
pub struct Layout {
    /// The schema of every converted batch.
    pub schema: SchemaRef,
    /// Position in the source (`None`: filled with nulls) and kind, parallel to the schema.
    columns: Vec<(Option<usize>, Kind)>,
    /// Source columns that are not kept.
    pub unknown: Vec<String>,
    /// Source columns whose type cannot become the canonical one: (name, found, expected).
    pub unusable: Vec<(String, String, &'static str)>,
    /// Required columns that the source lacks.
    pub missing: Vec<&'static str>,
}

impl Layout {
    /// Matches `source` with the contract of `table`.
    pub fn new(table: Table, source: &Schema) -> Self {
        let mut layout = Layout {
            schema: Arc::new(Schema::empty()),
            columns: Vec::new(),
            unknown: Vec::new(),
            unusable: Vec::new(),
            missing: Vec::new(),
        };
        let mut fields = Vec::new();
        for spec in table.specs() {
            let mut at = source.index_of(spec.name).ok();
            if let Some(found) = at.map(|at| source.field(at).data_type()) {
                let empty = arrow::array::new_empty_array(found);
                if coerce(&empty, spec.kind).is_none() {
                    let found = found.to_string();
                    layout.unusable.push((spec.name.to_owned(), found, spec.kind.name()));
                    at = None;
                }
            } else if spec.required {
                layout.missing.push(spec.name);
            }
            fields.push(Field::new(spec.name, spec.kind.data_type(), true));
            layout.columns.push((at, spec.kind));
        }
        for (at, field) in source.fields().iter().enumerate() {
            let name = field.name().as_str();
            if table.specs().iter().any(|spec| spec.name == name) {
                continue;
            }
            match Kind::of(field.data_type()) {
                Some(kind) if table.keeps_extra(name) => {
                    fields.push(Field::new(name, kind.data_type(), true));
                    layout.columns.push((Some(at), kind));
                }
                _ => layout.unknown.push(name.to_owned()),
            }
        }
        layout.schema = Arc::new(Schema::new(fields));
        layout
    }

    /// The batch with canonical columns, and per column the rows whose value did not fit.
    pub fn convert(
        &self,
        batch: &RecordBatch,
    ) -> Result<(RecordBatch, Vec<Vec<usize>>), ArrowError> {
        let mut columns = Vec::with_capacity(self.columns.len());
        let mut lost = Vec::with_capacity(self.columns.len());
        for (at, kind) in &self.columns {
            let source = at.map(|at| batch.column(at));
            let column = source.and_then(|source| coerce(source, *kind));
            let column =
                column.unwrap_or_else(|| new_null_array(&kind.data_type(), batch.num_rows()));
            lost.push(match source {
                Some(source) if source.logical_null_count() != column.null_count() => (0..batch
                    .num_rows())
                    .filter(|&row| column.is_null(row) && is_valid(source, row))
                    .collect(),
                _ => Vec::new(),
            });
            columns.push(column);
        }
        Ok((RecordBatch::try_new(self.schema.clone(), columns)?, lost))
    }
}

fn is_valid(array: &ArrayRef, row: usize) -> bool {
    array.logical_nulls().is_none_or(|nulls| nulls.is_valid(row))
}

fn cast(array: &ArrayRef, to: &DataType) -> Option<ArrayRef> {
    let options = CastOptions { safe: true, ..Default::default() };
    cast_with_options(array, to, &options).ok()
}

/// Ids that passed through a float (a CSV column with gaps) are integers again: `12346.0` is
/// `12346`.
fn text_of_floats(array: &ArrayRef) -> Option<ArrayRef> {
    let floats = cast(array, &DataType::Float64)?;
    let text: StringArray = floats
        .as_primitive::<Float64Type>()
        .iter()
        .map(|x| x.filter(|x| !x.is_nan()).map(|x| x.to_string()))
        .collect();
    Some(Arc::new(text))
}

fn time_of(array: &ArrayRef) -> Option<ArrayRef> {
    let text =
        matches!(array.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let naive = match array.data_type() {
        // With a zone the values already count from the epoch in UTC.
        DataType::Timestamp(_, zone) => {
            cast(array, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?
        }
        DataType::Date32 | DataType::Date64 => {
            cast(array, &DataType::Timestamp(TimeUnit::Microsecond, None))?
        }
        _ if text => cast(array, &DataType::Timestamp(TimeUnit::Microsecond, None))?,
        _ => return None,
    };
    let times = naive.as_primitive::<TimestampMicrosecondType>().clone();
    Some(Arc::new(times.with_timezone("UTC")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int32Array, StringViewArray, TimestampNanosecondArray};

    fn text(array: &ArrayRef) -> Vec<Option<String>> {
        array.as_string::<i32>().iter().map(|x| x.map(str::to_owned)).collect()
    }

    #[test]
    fn ids_become_strings_without_a_trailing_zero() {
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![Some(12346.0), None]));
        assert_eq!(text(&coerce(&floats, Kind::Text).unwrap()), [Some("12346".into()), None]);
        let ints: ArrayRef = Arc::new(Int32Array::from(vec![7]));
        assert_eq!(text(&coerce(&ints, Kind::Text).unwrap()), [Some("7".into())]);
        let views: ArrayRef = Arc::new(StringViewArray::from(vec!["a"]));
        assert_eq!(text(&coerce(&views, Kind::Text).unwrap()), [Some("a".into())]);
    }

    #[test]
    fn what_does_not_fit_is_missing_and_never_rounded() {
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![2.0, 2.5]));
        let ints = coerce(&floats, Kind::Int).unwrap();
        assert_eq!(ints.as_primitive::<Int64Type>().value(0), 2);
        assert!(ints.is_null(1));
        let codes: ArrayRef = Arc::new(Int32Array::from(vec![1, 0, 2]));
        let bits = coerce(&codes, Kind::Bool).unwrap();
        assert!(bits.as_boolean().value(0) && !bits.as_boolean().value(1) && bits.is_null(2));
        let prices: ArrayRef = Arc::new(StringArray::from(vec!["1.5", "cheap"]));
        assert!(coerce(&prices, Kind::Float).unwrap().is_null(1));
        assert!(coerce(&codes, Kind::Time).is_none(), "an integer time has no known unit");
    }

    #[test]
    fn times_are_microseconds_utc_whatever_they_were() {
        let nanos: ArrayRef =
            Arc::new(TimestampNanosecondArray::from(vec![1_512_086_400_123_456_789]));
        let times = coerce(&nanos, Kind::Time).unwrap();
        assert_eq!(times.data_type(), &Kind::Time.data_type());
        assert_eq!(
            times.as_primitive::<TimestampMicrosecondType>().value(0),
            1_512_086_400_123_456
        );
        let written: ArrayRef =
            Arc::new(StringArray::from(vec!["2017-12-01", "2017-12-01T02:00:00+02:00", "soon"]));
        let times = coerce(&written, Kind::Time).unwrap();
        let ms = epoch_ms(&times);
        assert_eq!(ms.as_primitive::<Int64Type>().value(0), 1_512_086_400_000);
        assert_eq!(ms.as_primitive::<Int64Type>().value(1), 1_512_086_400_000);
        assert!(times.is_null(2));
    }

    #[test]
    fn a_layout_tells_unknown_missing_and_unusable_columns() {
        let source = Schema::new(vec![
            Field::new("user_id", DataType::Int64, true),
            Field::new("timestamp", DataType::Int64, true),
            Field::new("context_tab", DataType::Utf8View, true),
            Field::new("play_time", DataType::Int64, true),
        ]);
        let layout = Layout::new(Table::Events, &source);
        assert_eq!(layout.unknown, ["play_time"]);
        assert_eq!(layout.missing, ["event_id", "item_id", "event"]);
        assert_eq!(layout.unusable[0].0, "timestamp");
        assert!(layout.schema.field_with_name("context_tab").is_ok());
    }
}
