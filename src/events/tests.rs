//! What is taken is on disk after a flush or an end; what is not taken says so.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float32Type, Int32Type, TimeUnit, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use std::fs::File;

use super::*;
use crate::types::DAY_MS;

fn config(queue_rows_max: usize, file_rows_max: usize) -> Config {
    Config {
        dir: PathBuf::new(),
        archive: String::new(),
        archive_interval_ms: 1,
        replica: "r1".into(),
        queue_rows_max,
        file_rows_max,
        file_age_max_ms: 3_600_000,
        retry_ms: 1,
        durability: Durability::System,
        ids_remembered: 100,
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

fn start<R: Row + Serialize>(dir: &Path, config: &Config) -> Log<R> {
    Log::start(dir, config, Arc::new(Health::new())).unwrap()
}

fn durable(dir: &Path) -> Log<EventRecord> {
    Log::durable(dir, &config(1000, 1000), Arc::new(Health::new())).unwrap()
}

fn append<R: Row + Serialize>(log: &Log<R>, rows: Vec<R>) -> Result<Taken, Refused> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(log.append(rows))
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
    append(&log, vec![event("a", 5), event("b", DAY_MS), event("c", DAY_MS - 1)]).unwrap();
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
        append(&log, vec![event(&at.to_string(), at)]).unwrap();
    }
    drop(log);
    let (files, batches) = read(dir.path(), "events", "1970-01-01");
    assert_eq!((files, rows(&batches)), (3, 10), "4 + 4 + 2");
    // A second process of the same replica does not write over the first one's files.
    let log = start(dir.path(), &config(100, 4));
    append(&log, vec![event("z", 0)]).unwrap();
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
    append(&log, vec![event("a", 1), event("b", 2), event("c", 3)]).unwrap();
    let error = log.flush().unwrap_err().to_string();
    assert!(error.contains("dt=1970-01-01"), "{error}");
    assert!(!health.components()[0].ok);
    let refused = append(&log, vec![event("d", 4), event("e", 5)]).unwrap_err();
    assert_eq!(refused, Refused::Full { waiting: 3, queue_rows_max: 4 });
    assert_eq!(
        append(&log, vec![event("f", 6)]).map(|taken| taken.rows),
        Ok(1),
        "all or none: one place was left"
    );
    std::fs::remove_file(&blocker).unwrap();
    log.flush().unwrap();
    assert_eq!(rows(&read(dir.path(), "events", "1970-01-01").1), 4);
    assert!(health.components()[0].ok);
    assert_eq!(
        append(&log, vec![event("g", 7)]).map(|taken| taken.rows),
        Ok(1),
        "written rows give their places back"
    );
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

/// The segments in the journal of events.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("journal/events/r1")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "journal")).collect();
    paths.sort();
    paths
}

/// Ids of the rows of a day, sorted.
fn ids(dir: &Path, day: &str) -> Vec<String> {
    let (_, batches) = read(dir, "events", day);
    let ids = |batch: &RecordBatch| {
        let ids = batch["event_id"].as_string::<i32>().iter().flatten().map(str::to_owned);
        ids.collect::<Vec<_>>()
    };
    let mut all: Vec<_> = batches.iter().flat_map(ids).collect();
    all.sort();
    all
}

/// What a kill leaves of a directory: the journal as it is now, in another place.
fn killed(from: &Path, to: &Path) {
    for path in segments(from) {
        let target = to.join("journal/events/r1").join(path.file_name().unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(path, target).unwrap();
    }
}

#[test]
fn an_acknowledged_event_is_in_the_journal_and_the_next_start_writes_it_once() {
    let (dir, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = durable(dir.path());
    append(&log, vec![event("a", 1), event("b", DAY_MS)]).unwrap();
    append(&log, vec![event("c", 2)]).unwrap();
    assert_eq!(read(dir.path(), "events", "1970-01-01").0, 0, "no file yet");
    killed(dir.path(), after.path());
    let next = durable(after.path());
    next.flush().unwrap();
    assert_eq!(ids(after.path(), "1970-01-01"), ["a", "c"]);
    assert_eq!(ids(after.path(), "1970-01-02"), ["b"]);
    assert!(segments(after.path()).is_empty(), "a finished segment goes");
    // It knows what it recovered.
    let again = append(&next, vec![event("c", 2), event("d", 3)]).unwrap();
    assert_eq!(again, Taken { rows: 1, known: vec![0] });
    drop(next);
    assert_eq!(ids(after.path(), "1970-01-01"), ["a", "c", "d"]);
}

#[test]
fn a_kill_between_the_files_and_the_end_of_the_segment_writes_nothing_twice() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = durable(dir.path());
    append(&log, vec![event("a", 1), event("b", DAY_MS)]).unwrap();
    killed(dir.path(), copy.path());
    log.flush().unwrap();
    drop(log);
    // The files stand, and the segment is there again.
    killed(copy.path(), dir.path());
    assert_eq!(segments(dir.path()).len(), 1);
    drop(durable(dir.path()));
    assert_eq!(ids(dir.path(), "1970-01-01"), ["a"]);
    assert_eq!(ids(dir.path(), "1970-01-02"), ["b"]);
}

#[test]
fn a_torn_end_of_a_segment_costs_nobody_who_was_answered() {
    let (dir, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = durable(dir.path());
    append(&log, vec![event("a", 1), event("b", 2)]).unwrap();
    killed(dir.path(), after.path());
    let path = segments(after.path()).remove(0);
    let whole = std::fs::read(&path).unwrap();
    // Bytes of a write that was under way, cut anywhere or damaged.
    for torn in [&whole[..5], &whole[..40], &[255; 30]] {
        std::fs::write(&path, [&whole, torn].concat()).unwrap();
        let (_journal, left) =
            Journal::open::<EventRecord>(after.path(), "r1", false, Durability::System).unwrap();
        assert_eq!(left.len(), 1);
        let ids: Vec<_> = left[0].rows.iter().map(|row| row.event_id.as_str()).collect();
        assert_eq!(ids, ["a", "b"]);
    }
}

#[test]
fn a_journal_belongs_to_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let log = durable(dir.path());
    let health = Arc::new(Health::new());
    let Err(error) = Log::<EventRecord>::durable(dir.path(), &config(10, 10), health) else {
        panic!("two writers");
    };
    assert!(error.to_string().contains("events.replica"), "{error}");
    drop(log);
    drop(durable(dir.path()));
}

#[test]
fn a_journal_that_cannot_be_written_refuses_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let health = Arc::new(Health::new());
    let log: Log<EventRecord> = Log::durable(dir.path(), &config(10, 10), health.clone()).unwrap();
    let directory = dir.path().join("journal/events/r1");
    let away = dir.path().join("away");
    std::fs::rename(&directory, &away).unwrap();
    assert_eq!(append(&log, vec![event("a", 1)]), Err(Refused::Journal));
    assert!(!health.components()[0].ok);
    std::fs::rename(&away, &directory).unwrap();
    // It was refused, so it is no repetition.
    assert_eq!(append(&log, vec![event("a", 1)]), Ok(Taken { rows: 1, known: vec![] }));
    drop(log);
    assert_eq!(ids(dir.path(), "1970-01-01"), ["a"]);
}

#[test]
fn replicas_without_names_share_a_directory_and_adopt_what_a_gone_one_left() {
    let (dir, gone) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A host that never comes back under its name.
    let log = durable(gone.path());
    append(&log, vec![event("a", 1)]).unwrap();
    killed(gone.path(), dir.path());
    let auto = Config { replica: AUTO.into(), ..config(10, 10) };
    let start = || Log::<EventRecord>::durable(dir.path(), &auto, Arc::new(Health::new())).unwrap();
    let (first, second) = (start(), start());
    append(&first, vec![event("b", 2)]).unwrap();
    append(&second, vec![event("c", 3)]).unwrap();
    drop((first, second));
    assert_eq!(ids(dir.path(), "1970-01-01"), ["a", "b", "c"]);
    let names: Vec<_> =
        std::fs::read_dir(dir.path().join("events/dt=1970-01-01")).unwrap().collect();
    assert_eq!(names.len(), 3);
    assert!(segments(dir.path()).is_empty());
}
