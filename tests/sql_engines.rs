//! DataFusion and Spark make the same tables of the same data.
//!
//! `make test` compares DataFusion with tables that Spark wrote (`golden/sql`); `make test-spark`
//! runs both over a larger world, and with `SHORTLIST_OVERWRITE=1` writes the golden ones again.

#![cfg(feature = "etl")]

use std::cmp::Ordering;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float64Type, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

const SPARK: &str = "SHORTLIST_TEST_SPARK";
const OVERWRITE: &str = "SHORTLIST_OVERWRITE";
/// Floats may differ so much, absolutely and relative to their size: sums in other orders.
const TOLERANCE: f64 = 1e-9;

const SETTINGS: &str = r#"
[offline.window]
days = 0
[offline.split]
ranker_days = 1
validation_days = 1
test_days = 1
towers_days_min = 2
[offline.collect]
events_min = 10
# The worlds of these tests have faults of every kind.
[offline.collect.share_max]
wrong_type = 1.0
null_id = 1.0
duplicate_id = 1.0
outside_window = 1.0
unknown_item = 1.0
unknown_user = 1.0
negative_value = 1.0
late = 1.0
catalogue = 1.0
"#;

#[test]
fn datafusion_makes_the_tables_that_spark_made() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sql");
    let dir = tempfile::tempdir().unwrap();
    if std::env::var_os(OVERWRITE).is_some() {
        overwrite(&golden, dir.path());
    }
    let work = features("datafusion", &golden.join("data"), dir.path());
    let mut compared = 0;
    for entry in fs::read_dir(golden.join("tables")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().replace('@', "/");
        same(&read(&path), &read(&work.join(format!("{name}.parquet"))), &name);
        compared += 1;
    }
    assert_eq!(compared, 10, "tables in {}", golden.display());
}

#[test]
fn both_engines_make_the_same_tables() {
    if std::env::var_os(SPARK).is_none() {
        println!("skipped: {SPARK} does not name a spark-submit; `make test-spark` does");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    generate(&data, 2000, 1500, 8);
    plant_faults(&data);
    let ours = features("datafusion", &data, dir.path());
    let theirs = features("spark", &data, dir.path());
    let mut compared = 0;
    for name in tables(&ours) {
        let rows = same(&read(&theirs.join(&name)), &read(&ours.join(&name)), &name);
        println!("{name}: {rows} rows");
        compared += 1;
    }
    assert!(compared > 20, "{compared} tables");
}

/// Writes the small world and what Spark makes of it.
fn overwrite(golden: &Path, scratch: &Path) {
    let _ = fs::remove_dir_all(golden);
    let data = golden.join("data");
    generate(&data, 40, 20, 6);
    plant_faults(&data);
    fs::remove_file(data.join("world.json")).unwrap();
    let work = features("spark", &data, scratch);
    let last = fs::read_dir(work.join("features")).unwrap();
    let mut days: Vec<String> =
        last.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    days.retain(|name| name.starts_with("as_of="));
    days.sort();
    let day = format!("features/{}", days.last().unwrap());
    for name in tables(&work) {
        let wanted = ["collect/events", "collect/quarantine/events", "collect/users"];
        let stem = name.trim_end_matches(".parquet");
        if name.starts_with(&day) || wanted.contains(&stem) {
            let path = golden.join("tables").join(format!("{}.parquet", stem.replace('/', "@")));
            write(&path, &read(&work.join(&name)));
        }
    }
}

fn shortlist(args: &[&str], config: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_shortlist"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg("--config")
        .arg(config)
        .args(args)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}\n{text}");
}

fn generate(data: &Path, items: u32, users: u32, days: u32) {
    let (items, users, days) = (items.to_string(), users.to_string(), days.to_string());
    let out = data.display().to_string();
    let config = data.with_extension("toml");
    fs::create_dir_all(data.parent().unwrap()).unwrap();
    fs::write(&config, "").unwrap();
    let args = ["generate", "--out", &out, "--items", &items, "--users", &users, "--days", &days];
    shortlist(&[&args[..], &["--no-vectors"]].concat(), &config);
    fs::remove_file(config).unwrap();
}

/// The day up to its features by one engine; the work directory.
fn features(engine: &str, data: &Path, scratch: &Path) -> PathBuf {
    let work = scratch.join(format!("work-{engine}"));
    let config = scratch.join(format!("{engine}.toml"));
    let submit = std::env::var(SPARK).unwrap_or_else(|_| "spark-submit".to_owned());
    let arguments = r#"["--master", "local[2]", "--driver-memory", "2g", "--conf", "spark.ui.enabled=false", "--conf", "spark.sql.shuffle.partitions=4"]"#;
    let text = format!(
        "[offline]\ndata_dir = {data:?}\nwork_dir = {work:?}\n[offline.spark]\nsubmit = {submit:?}\n\
         arguments = {arguments}\n{SETTINGS}"
    );
    fs::write(&config, text).unwrap();
    shortlist(&["pipeline", "--engine", engine, "features"], &config);
    work
}

/// Every table below a work directory, by its path in it.
fn tables(work: &Path) -> Vec<String> {
    fn walk(dir: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "parquet") {
                found.push(path.strip_prefix(root).unwrap().display().to_string());
            } else if path.is_dir() {
                walk(&path, root, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(work, work, &mut found);
    found.sort();
    found
}

/// Adds a file of events with every fault, made of the first day's.
fn plant_faults(data: &Path) {
    let folder = data.join("events/dt=2026-01-02");
    let first = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let rows = read(&first).slice(0, 10);
    let column = |name: &str| -> Vec<Option<String>> {
        rows.column_by_name(name)
            .unwrap()
            .as_string::<i32>()
            .iter()
            .map(|x| x.map(str::to_owned))
            .collect()
    };
    let (mut ids, mut users, mut items) =
        (column("event_id"), column("user_id"), column("item_id"));
    // Rows 0 and 1 stay copies; 2 to 5 get ids of their own and a fault each; 6 to 9 are copies.
    for (row, id) in ids.iter_mut().enumerate().take(6).skip(2) {
        *id = Some(format!("fault{row}"));
    }
    users[2] = None;
    items[3] = Some("ghost".to_owned());
    (users[4], items[4]) = (None, Some("ghost".to_owned()));
    ids[5] = None;
    let values = Float64Array::from_iter((0..10).map(|row| (row % 2 == 0).then_some(-0.5)));
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, old) in rows.schema().fields().iter().zip(rows.columns()) {
        columns.push(match field.name().as_str() {
            "event_id" => Arc::new(StringArray::from(ids.clone())),
            "user_id" => Arc::new(StringArray::from(users.clone())),
            "item_id" => Arc::new(StringArray::from(items.clone())),
            "value" => Arc::new(values.clone()),
            _ => old.clone(),
        });
    }
    let schema = rows.schema();
    let fields = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<Field>>()));
    let faulty = RecordBatch::try_new(schema, columns).unwrap();
    write(&folder.join("faulty-00000.parquet"), &faulty);
    // The same rows in another day's folder are late, and copies once more.
    write(&data.join("events/dt=2026-01-03/late-00000.parquet"), &faulty.slice(6, 4));
}

/// A table: one file, or the part files of a directory in their order.
fn read(path: &Path) -> RecordBatch {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "parquet"));
        files.sort();
    }
    let mut batches = Vec::new();
    let mut schema = None;
    for file in files {
        let open = File::open(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let builder = ParquetRecordBatchReaderBuilder::try_new(open).unwrap();
        schema.get_or_insert_with(|| builder.schema().clone());
        batches.extend(builder.build().unwrap().map(Result::unwrap));
    }
    arrow::compute::concat_batches(&schema.unwrap(), &batches).unwrap()
}

fn write(path: &Path, rows: &RecordBatch) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, rows.schema(), Some(properties)).unwrap();
    writer.write(rows).unwrap();
    writer.close().unwrap();
}

/// Compares two tables row by row, whatever their order; the number of rows.
fn same(expected: &RecordBatch, found: &RecordBatch, name: &str) -> usize {
    let columns = |batch: &RecordBatch| -> Vec<(String, String)> {
        let kind = |kind: &DataType| match kind {
            DataType::List(_) => "list".to_owned(),
            DataType::Timestamp(..) => "timestamp".to_owned(),
            other => other.to_string(),
        };
        let schema = batch.schema();
        schema.fields().iter().map(|f| (f.name().clone(), kind(f.data_type()))).collect()
    };
    assert_eq!(columns(expected), columns(found), "{name}: columns");
    assert_eq!(expected.num_rows(), found.num_rows(), "{name}: rows");
    for (row, (a, b)) in sorted(expected).iter().zip(&sorted(found)).enumerate() {
        assert_eq!(a.texts, b.texts, "{name}: row {row} of the sorted table");
        for ((x, y), column) in a.floats.iter().zip(&b.floats).zip(float_columns(expected)) {
            let near = match (x, y) {
                (Some(x), Some(y)) => (x - y).abs() <= TOLERANCE * x.abs().max(y.abs()).max(1.0),
                (x, y) => x == y,
            };
            assert!(near, "{name}: row {row} {:?}: {column}: {x:?} and {y:?}", a.texts);
        }
    }
    expected.num_rows()
}

struct Row {
    texts: Vec<Option<String>>,
    floats: Vec<Option<f64>>,
}

fn float_columns(batch: &RecordBatch) -> Vec<String> {
    let schema = batch.schema();
    let floats = schema.fields().iter().filter(|f| f.data_type() == &DataType::Float64);
    floats.map(|f| f.name().clone()).collect()
}

fn sorted(batch: &RecordBatch) -> Vec<Row> {
    let options = FormatOptions::default();
    let (mut texts, mut floats) = (Vec::new(), Vec::new());
    for column in batch.columns() {
        match column.data_type() {
            DataType::Float64 => floats.push(column.as_primitive::<Float64Type>()),
            // Formatting a zone needs a zone table: times by their number.
            DataType::Timestamp(..) => {
                texts.push(arrow::compute::cast(column, &DataType::Int64).unwrap());
            }
            _ => texts.push(column.clone()),
        }
    }
    let formatters: Vec<_> =
        texts.iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
    let mut rows: Vec<Row> = (0..batch.num_rows())
        .map(|row| Row {
            texts: formatters
                .iter()
                .zip(&texts)
                .map(|(f, column)| column.is_valid(row).then(|| f.value(row).to_string()))
                .collect(),
            floats: floats.iter().map(|c| c.is_valid(row).then(|| c.value(row))).collect(),
        })
        .collect();
    rows.sort_by(|a, b| {
        let order = a.texts.cmp(&b.texts);
        order.then_with(|| a.floats.partial_cmp(&b.floats).unwrap_or(Ordering::Equal))
    });
    rows
}
