//! The canonical tables: schemas, rows to record batches, files of bounded size.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{
    ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, Float64Array, Int32Array,
    ListBuilder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::behaviour::UserDay;
use super::world::{DIM, Item, LABELS, REGIONS, TOPICS, User};

/// Rows of a file before the next one is begun.
const FILE_ROWS_MAX: usize = 1_000_000;
/// Rows of a row group: 32 MB of vectors.
const GROUP_ROWS_MAX: usize = 65_536;

const AGE_BANDS: [&str; 5] = ["18-24", "25-34", "35-44", "45-54", "55+"];

/// A category is a department and a kind: 16 of each make the 256 topics.
const DEPARTMENTS: [&str; 16] = [
    "Kitchen", "Garden", "Office", "Sports", "Travel", "Music", "Baby", "Pet", "Bath", "Bedroom",
    "Outdoor", "School", "Craft", "Festive", "Workshop", "Camping",
];
const KINDS: [&str; 16] = [
    "Tools",
    "Lamps",
    "Storage",
    "Textiles",
    "Books",
    "Games",
    "Gadgets",
    "Furniture",
    "Clothing",
    "Snacks",
    "Drinks",
    "Care",
    "Decor",
    "Cases",
    "Spares",
    "Gifts",
];

/// Writes one table as numbered files of at most [`FILE_ROWS_MAX`] rows.
pub(super) struct TableWriter {
    dir: PathBuf,
    prefix: String,
    schema: SchemaRef,
    file: Option<ArrowWriter<File>>,
    files: usize,
    rows: usize,
}

impl TableWriter {
    /// Begins the table; one file is written even if no row comes, so that the schema is there.
    pub(super) fn create(dir: &Path, prefix: &str, schema: SchemaRef) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let mut table = Self {
            dir: dir.to_owned(),
            prefix: prefix.to_owned(),
            schema,
            file: None,
            files: 0,
            rows: 0,
        };
        table.next_file()?;
        Ok(table)
    }

    /// Appends rows.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut at = 0;
        while at < batch.num_rows() {
            if self.rows == FILE_ROWS_MAX {
                self.next_file()?;
            }
            let rows = (batch.num_rows() - at).min(FILE_ROWS_MAX - self.rows);
            let file = self.file.as_mut().context("the table is finished")?;
            file.write(&batch.slice(at, rows))?;
            self.rows += rows;
            at += rows;
        }
        Ok(())
    }

    /// Completes the last file.
    pub(super) fn finish(mut self) -> Result<()> {
        self.close()
    }

    fn next_file(&mut self) -> Result<()> {
        self.close()?;
        let path = self.dir.join(format!("{}-{:05}.parquet", self.prefix, self.files));
        let file =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let vectors = self.schema.field_with_name("vector").is_ok();
        // Random floats neither compress nor repeat; everything else does.
        let properties = WriterProperties::builder()
            .set_compression(if vectors { Compression::UNCOMPRESSED } else { Compression::SNAPPY })
            .set_dictionary_enabled(!vectors)
            .set_max_row_group_row_count(Some(GROUP_ROWS_MAX))
            .build();
        self.file = Some(ArrowWriter::try_new(file, self.schema.clone(), Some(properties))?);
        self.files += 1;
        self.rows = 0;
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        match self.file.take() {
            Some(file) => file.close().map(drop).with_context(|| {
                format!(
                    "cannot complete {}-{:05} in {}",
                    self.prefix,
                    self.files - 1,
                    self.dir.display()
                )
            }),
            None => Ok(()),
        }
    }
}

/// `i0000001` and the like: row numbers from 1, seven digits or more.
pub fn id(letter: char, row: u64) -> String {
    format!("{letter}{:07}", row + 1)
}

pub fn category(topic: u16) -> String {
    let topic = topic as usize % TOPICS;
    format!("{} {}", DEPARTMENTS[topic / KINDS.len()], KINDS[topic % KINDS.len()])
}

pub(super) fn items_schema() -> SchemaRef {
    schema([
        text("item_id", false),
        text("title", true),
        text("category", true),
        Field::new("price", DataType::Float64, true),
        time("created_at", true),
        Field::new("in_stock", DataType::Boolean, false),
        list("regions"),
        list("labels"),
        text("image_url", true),
        text("department", true),
        text("brand", true),
        Field::new("rating", DataType::Float32, true),
    ])
}

/// Items `first..first + items.len()`.
pub(super) fn items(first: u64, items: &[Item]) -> Result<RecordBatch> {
    let ids: Vec<String> = (first..).zip(items).map(|(row, _)| id('i', row)).collect();
    let brand = |item: &Item| format!("Brand {:04}", item.brand);
    let department = |item: &Item| DEPARTMENTS[item.topic as usize / KINDS.len()];
    let title = |(item, id): (&Item, &String)| {
        format!("{} {} {}", brand(item), category(item.topic), id.trim_start_matches(['i', '0']))
    };
    let images = ids.iter().map(|id| format!("https://images.example/{id}.jpg"));
    let columns: Vec<ArrayRef> = vec![
        strings(ids.iter()),
        strings(items.iter().zip(&ids).map(title)),
        strings(items.iter().map(|item| category(item.topic))),
        Arc::new(Float64Array::from_iter_values(items.iter().map(|item| item.price))),
        times(items.iter().map(|item| item.created_us)),
        Arc::new(items.iter().map(|item| Some(item.in_stock)).collect::<BooleanArray>()),
        names(items.iter().map(|item| item.regions), &REGIONS),
        names(items.iter().map(|item| item.labels), &LABELS.map(|(name, _)| name)),
        strings(images),
        strings(items.iter().map(department)),
        strings(items.iter().map(brand)),
        Arc::new(Float32Array::from_iter_values(items.iter().map(|item| item.rating))),
    ];
    Ok(RecordBatch::try_new(items_schema(), columns)?)
}

pub(super) fn users_schema() -> SchemaRef {
    schema([
        text("user_id", false),
        text("region", true),
        text("age_band", true),
        text("price_level", true),
        time("signed_up_at", true),
    ])
}

/// Users `first..first + users.len()`.
pub(super) fn users(first: u64, users: &[User]) -> Result<RecordBatch> {
    let price_level = |user: &User| match user.price_z {
        z if z < -0.5 => "low",
        z if z < 0.5 => "middle",
        _ => "high",
    };
    let columns: Vec<ArrayRef> = vec![
        strings((first..).zip(users).map(|(row, _)| id('u', row))),
        strings(users.iter().map(|user| REGIONS[user.region as usize])),
        strings(users.iter().map(|user| AGE_BANDS[user.age_band as usize])),
        strings(users.iter().map(price_level)),
        times(users.iter().map(|user| user.signed_up_us)),
    ];
    Ok(RecordBatch::try_new(users_schema(), columns)?)
}

pub(super) fn events_schema() -> SchemaRef {
    schema([
        text("event_id", false),
        text("user_id", false),
        text("item_id", false),
        text("event", false),
        time("timestamp", false),
        Field::new("value", DataType::Float64, true),
        Field::new("label", DataType::Float64, true),
        text("request_id", true),
        Field::new("position", DataType::Int32, true),
        text("device", true),
        text("region", true),
        text("variant", true),
        text("bundle_version", true),
        Field::new("propensity", DataType::Float64, true),
    ])
}

/// What users `first..first + made.len()` did on day number `day`.
pub(super) fn events(day: u32, first: u64, made: &[UserDay]) -> Result<RecordBatch> {
    let users: Vec<String> = (first..).zip(made).map(|(row, _)| id('u', row)).collect();
    // The rows of one user, each with its number within the day.
    let rows: Vec<(usize, usize)> = made
        .iter()
        .enumerate()
        .flat_map(|(user, day)| (0..day.events.len()).map(move |at| (user, at)))
        .collect();
    let event = |&(user, at): &(usize, usize)| &made[user].events[at];
    let columns: Vec<ArrayRef> = vec![
        strings(rows.iter().map(|&(user, at)| format!("e{day}-{}-{at}", users[user]))),
        strings(rows.iter().map(|&(user, _)| &users[user])),
        strings(rows.iter().map(|row| id('i', event(row).item.into()))),
        strings(rows.iter().map(|row| event(row).kind.name())),
        times(rows.iter().map(|row| event(row).time_us)),
        Arc::new(rows.iter().map(|row| event(row).value).collect::<Float64Array>()),
        Arc::new(rows.iter().map(|_| None::<f64>).collect::<Float64Array>()),
        strings(rows.iter().map(|row| format!("r{day}-{}-{}", users[row.0], event(row).request))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| event(row).position))),
        strings(rows.iter().map(|row| event(row).device)),
        strings(rows.iter().map(|row| REGIONS[made[row.0].region as usize])),
        strings(rows.iter().map(|row| made[row.0].variant)),
        strings(rows.iter().map(|_| "generated")),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| event(row).propensity))),
    ];
    Ok(RecordBatch::try_new(events_schema(), columns)?)
}

pub(super) fn vectors_schema(id: &str) -> SchemaRef {
    let element = Arc::new(Field::new("item", DataType::Float32, false));
    let vector = DataType::FixedSizeList(element, DIM as i32);
    schema([text(id, false), Field::new("vector", vector, false)])
}

/// Vectors of `rows`, `[rows * DIM]`.
pub(super) fn vectors(
    name: &str,
    letter: char,
    rows: Range<u64>,
    flat: Vec<f32>,
) -> Result<RecordBatch> {
    let element = Arc::new(Field::new("item", DataType::Float32, false));
    let values = Arc::new(Float32Array::from(flat));
    let vector = FixedSizeListArray::try_new(element, DIM as i32, values, None)?;
    let ids = strings(rows.map(|row| id(letter, row)));
    Ok(RecordBatch::try_new(vectors_schema(name), vec![ids, Arc::new(vector)])?)
}

fn schema<const N: usize>(fields: [Field; N]) -> SchemaRef {
    Arc::new(Schema::new(fields.to_vec()))
}

fn text(name: &str, nullable: bool) -> Field {
    Field::new(name, DataType::Utf8, nullable)
}

fn time(name: &str, nullable: bool) -> Field {
    Field::new(name, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), nullable)
}

fn list(name: &str) -> Field {
    Field::new_list(name, Field::new_list_field(DataType::Utf8, true), false)
}

fn strings<S: AsRef<str>>(values: impl Iterator<Item = S>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn times(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
}

/// For every set of bits the list of their names.
fn names(sets: impl Iterator<Item = u8>, names: &[&str]) -> ArrayRef {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for set in sets {
        for (bit, name) in names.iter().enumerate() {
            if set >> bit & 1 == 1 {
                lists.values().append_value(name);
            }
        }
        lists.append(true);
    }
    Arc::new(lists.finish())
}
