//! What is taken is on disk after a flush or an end; what is not taken says so.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float32Type, Int32Type, TimeUnit, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;
use crate::types::DAY_MS;

fn config(queue_rows_max: usize, file_rows_max: usize) -> Config {
    Config {
        dir: PathBuf::new(),
        replica: "r1".into(),
        queue_rows_max,
        file_rows_max,
        file_age_max_ms: 3_600_000,
        retry_ms: 1,
    }
}

fn event(id: &str, time_ms: i64) -> EventRecord {
    EventRecord {
        event_id: id.into(),
        user_id: "u".into(),
        item_id: "i".into(),
        event: "click".into(),
        time_ms,
        position: Some(3),
        ..EventRecord::default()
    }
}

fn start<R: Row>(dir: &Path, config: &Config) -> Log<R> {
    Log::start(dir, config, Arc::new(Health::new())).unwrap()
}

/// Files of a day, and the rows in them.
fn read(dir: &Path, log: &str, day: &str) -> (usize, Vec<RecordBatch>) {
    let Ok(entries) = std::fs::read_dir(dir.join(log).join(format!("dt={day}"))) else {
        return (0, Vec::new());
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let batches = paths.iter().flat_map(|path| {
        assert_eq!(path.extension().unwrap(), "parquet", "nothing half-written stays: {path:?}");
        let file = File::open(path).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        reader.map(|batch| batch.unwrap())
    });
    (paths.len(), batches.collect())
}

fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

#[test]
fn an_event_is_kept_under_its_own_day_with_the_columns_of_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let log = start(dir.path(), &config(10, 10));
    log.append(vec![event("a", 5), event("b", DAY_MS), event("c", DAY_MS - 1)]).unwrap();
    log.flush().unwrap();
    let (files, first) = read(dir.path(), "events", "1970-01-01");
    assert_eq!((files, rows(&first)), (1, 2));
    assert_eq!(rows(&read(dir.path(), "events", "1970-01-02").1), 1);
    let schema = first[0].schema();
    let names: Vec<_> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(
        names.join(" "),
        "event_id user_id item_id event timestamp value label request_id position device region \
         variant bundle_version propensity"
    );
    let timestamp = &first[0]["timestamp"];
    let utc_us = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    assert_eq!(timestamp.data_type(), &utc_us);
    assert_eq!(timestamp.as_primitive::<TimestampMicrosecondType>().value(0), 5000);
    assert_eq!(first[0]["position"].as_primitive::<Int32Type>().value(0), 3);
    assert!(first[0]["value"].is_null(0));
}

#[test]
fn a_full_file_is_written_without_waiting_and_the_end_writes_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let log = start(dir.path(), &config(100, 4));
    for at in 0..10 {
        log.append(vec![event(&at.to_string(), at)]).unwrap();
    }
    drop(log);
    let (files, batches) = read(dir.path(), "events", "1970-01-01");
    assert_eq!((files, rows(&batches)), (3, 10), "4 + 4 + 2");
    // A second process of the same replica does not write over the first one's files.
    let log = start(dir.path(), &config(100, 4));
    log.append(vec![event("z", 0)]).unwrap();
    drop(log);
    assert_eq!(read(dir.path(), "events", "1970-01-01").0, 4);
}

#[test]
fn rows_that_cannot_be_written_are_kept_refused_at_the_bound_and_written_later() {
    let dir = tempfile::tempdir().unwrap();
    let health = Arc::new(Health::new());
    let log = Log::start(dir.path(), &config(4, 4), health.clone()).unwrap();
    // A file stands where the day's directory should be: every write fails.
    let blocker = dir.path().join("events/dt=1970-01-01");
    std::fs::write(&blocker, b"in the way").unwrap();
    log.append(vec![event("a", 1), event("b", 2), event("c", 3)]).unwrap();
    let error = log.flush().unwrap_err().to_string();
    assert!(error.contains("dt=1970-01-01"), "{error}");
    assert!(!health.components()[0].ok);
    let refused = log.append(vec![event("d", 4), event("e", 5)]).unwrap_err();
    assert_eq!(refused, Refused::Full { waiting: 3, queue_rows_max: 4 });
    assert_eq!(log.append(vec![event("f", 6)]), Ok(1), "all or none: one place was left");
    std::fs::remove_file(&blocker).unwrap();
    log.flush().unwrap();
    assert_eq!(rows(&read(dir.path(), "events", "1970-01-01").1), 4);
    assert!(health.components()[0].ok);
    assert_eq!(log.append(vec![event("g", 7)]), Ok(1), "written rows give their places back");
}

#[test]
fn a_request_keeps_items_positions_and_scores_together() {
    let dir = tempfile::tempdir().unwrap();
    let log = start(dir.path(), &config(10, 10));
    let request = RequestRecord {
        request_id: "q".into(),
        item_ids: vec!["a".into(), "b".into()],
        scores: vec![0.5, 0.25],
        degraded: vec!["popular_items"],
        stage_us: [1, 2, 3, 4, 5, 6],
        total_us: 21,
        ..RequestRecord::default()
    };
    log.offer(vec![request, RequestRecord::default()]);
    log.flush().unwrap();
    let (_, batches) = read(dir.path(), "requests", "1970-01-01");
    let batch = &batches[0];
    let items = batch["item_ids"].as_list::<i32>().value(0);
    assert_eq!(items.as_string::<i32>().value(1), "b");
    let positions = batch["positions"].as_list::<i32>().value(0);
    assert_eq!(positions.as_primitive::<Int32Type>().values(), &[1, 2]);
    let scores = batch["scores"].as_list::<i32>().value(0);
    assert_eq!(scores.as_primitive::<Float32Type>().values(), &[0.5, 0.25]);
    assert_eq!(batch["item_ids"].as_list::<i32>().value(1).len(), 0);
    assert!(batch.column_by_name("s4_ranking_us").is_some());
}

/// Makes a good configuration a bad one.
type Spoil = fn(&mut Config);

#[test]
fn a_configuration_that_cannot_work_is_refused_by_name() {
    let cases: [(&str, Spoil); 4] = [
        ("events.queue_rows_max = 3 is below", |c| c.queue_rows_max = 3),
        ("events.file_age_max_ms = 0", |c| c.file_age_max_ms = 0),
        ("events.replica = \"a/b\"", |c| c.replica = "a/b".into()),
        ("events.replica = \"\"", |c| c.replica = String::new()),
    ];
    for (expected, spoil) in cases {
        let mut broken = config(10, 5);
        spoil(&mut broken);
        let error = broken.check().unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
