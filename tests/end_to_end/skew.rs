//! Rows as served are the rows that the log gives; a feature that is made differently offline is named.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::json;
use shortlist::bundle::Bundle;
use shortlist::offline::aggregates;

use crate::support::{Server, world};

/// Doubles a column of a file.
fn double(path: &Path, column: &str) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let at = schema.index_of(column).unwrap();
    let mut writer =
        ArrowWriter::try_new(File::create(path).unwrap(), schema.clone(), None).unwrap();
    for batch in batches {
        let mut columns = batch.columns().to_vec();
        let values = cast(&columns[at], &DataType::Float64).unwrap();
        let doubled = values.as_primitive::<Float64Type>().unary::<_, Float64Type>(|v| v * 2.0);
        let doubled: ArrayRef = Arc::new(doubled);
        columns[at] = cast(&doubled, schema.field(at).data_type()).unwrap();
        writer.write(&RecordBatch::try_new(schema.clone(), columns).unwrap()).unwrap();
    }
    writer.close().unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
}

#[test]
fn a_feature_that_is_computed_differently_offline_is_named_and_no_other() {
    let (world, dir) = (world(), tempfile::tempdir().unwrap());
    let logs = dir.path().join("log").display().to_string();
    let quoted = format!("\"{logs}\"");
    let settings = [("events.dir", quoted.as_str()), ("pipeline.log_full_share", "1.0")];
    let mut server = Server::start(world, &settings);
    for user in &world.users {
        server.recommend(json!({"user_id": user, "device": "mobile"}));
    }
    server.recommend(json!({"user_id": "nobody"}));
    server.signal("TERM");
    assert!(server.ended());
    let skew = ["skew", "--logs", &logs];
    let (code, text) = world.fails(&[], &skew);
    assert_eq!(code, 0, "{text}");
    let n = world.users.len();
    assert!(text.contains(&format!("{} requests, {} rows", n + 1, n * 20)), "{text}");
    assert!(text.contains("1 requests left out: unknown user"), "{text}");

    let (work, config) = (dir.path().join("work"), world.config());
    copy(&world.work().join("collect"), &work.join("collect"));
    let bundle = Bundle::open(&world.bundle_dir(), false, &config.index).unwrap();
    let as_of_ms = bundle.manifest.as_of_ms;
    let [from, to] =
        [&world.work(), &work].map(|dir| aggregates::day_dir(&dir.join("features"), as_of_ms));
    copy(&from, &to);
    double(&to.join("item_stats.parquet"), "positives_7d");
    let work = format!("\"{}\"", work.display());
    let (code, text) = world.fails(&[("offline.work_dir", &work)], &skew);
    assert_ne!(code, 0, "{text}");
    let named = text.lines().find(|line| line.contains("served and recomputed differ in")).unwrap();
    assert!(named.contains("item_positives_7d"), "{text}");
    let reading = |name: &str| name.contains("7d");
    let names = named.split("differ in").nth(1).unwrap();
    assert!(names.split(',').all(reading), "others are named: {text}");
}
