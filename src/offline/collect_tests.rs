//! Collecting a small data directory: what is kept, counted and refused.

use super::*;
use crate::offline::engine::tests::datafusion;
use crate::offline::sql::tests::config as sql_config;
use crate::offline::sql::{self, SqlText};
use crate::offline::tables::{f64_column, i64_column, read_columns, string_column};
use crate::offline::validation::{DriftMax, ShareMax};
use crate::types::DAY_MS;

const DAY0: i64 = 1_512_086_400_000;

fn bearing(share: f64) -> Config {
    Config {
        events_min: 1,
        share_max: ShareMax {
            null_id: share,
            duplicate_id: share,
            outside_window: share,
            unknown_item: share,
            late: share,
            wrong_type: share,
            unknown_user: 1.0,
            negative_value: share,
            catalogue: share,
        },
        drift: DriftMax {
            events_min: 1,
            rows_ratio: 0.0,
            null_share: 0.0,
            value_ratio: 0.0,
            mix_psi: 0.0,
        },
    }
}

/// [`super::collect`] by the engine of this process; clicks are successes.
fn collect(
    data: &Path,
    work: &Path,
    window_ms: Range<i64>,
    config: &Config,
) -> anyhow::Result<Report> {
    super::collect(data, work, window_ms, &datafusion(), config, &["click".to_owned()], &|_| {})
}

/// Writes what a SELECT gives as a file of a data directory.
fn put(data: &Path, file: &str, select: &str) {
    let engine = sql::Engine::new(&sql_config()).unwrap();
    let text = SqlText { origin: "test".into(), text: select.into() };
    let (schema, rows) = engine.run(&text).unwrap();
    write_parquet(&data.join(file), schema, &rows).unwrap();
}

fn world() -> tempfile::TempDir {
    let data = tempfile::tempdir().unwrap();
    put(
        data.path(),
        "items/part-00000.parquet",
        "SELECT column1 AS item_id, 'x' AS category, TIMESTAMP '2017-11-01T00:00:00' AS created_at
         FROM (VALUES ('b'), ('a'))",
    );
    put(data.path(), "items/part-00001.parquet", "SELECT 'a' AS item_id, 'newer' AS category");
    put(
        data.path(),
        "events/dt=2017-12-01/1-1.parquet",
        "SELECT column1 AS event_id, column2 AS user_id, column3 AS item_id, 'click' AS event,
           to_timestamp_millis(column4) AS timestamp
         FROM (VALUES ('e3', 'u2', 'a', 1512086402000), ('e1', 'u1', 'a', 1512086401000),
                      ('e1', 'u1', 'a', 1512086401000), ('e2', 'u1', 'ghost', 1512086400000),
                      ('e4', CAST(NULL AS VARCHAR), 'a', 1512086400000))",
    );
    put(
        data.path(),
        "events/dt=2017-12-02/1-1.parquet",
        "SELECT 'e5' AS event_id, 'u1' AS user_id, 'b' AS item_id, 'impression' AS event,
           to_timestamp_millis(1512086400000) AS timestamp, 'home' AS context_page",
    );
    put(
        data.path(),
        "events/dt=2017-12-03/1-1.parquet",
        "SELECT 'e6' AS event_id, 'u1' AS user_id, 'b' AS item_id, 'click' AS event,
           to_timestamp_millis(1512259200000) AS timestamp",
    );
    data
}

#[test]
fn the_window_is_cleaned_and_sorted() {
    let (data, work) = (world(), tempfile::tempdir().unwrap());
    let window = DAY0..DAY0 + 2 * DAY_MS;
    let report = collect(data.path(), work.path(), window, &bearing(0.5)).unwrap();
    assert_eq!((report.events_read, report.events_kept, report.late), (6, 3, 1));
    assert_eq!(report.events_quarantined, 3);
    assert_eq!(report.positives, BTreeMap::from([(DAY0, 5)]));
    assert_eq!(report.counts["duplicate_id"], 1);
    assert_eq!(report.counts["unknown_item"], 1);
    assert_eq!(report.counts["null_id"], 1);
    let (_, events) = read_columns(&table_path(work.path(), "events"), None).unwrap();
    let ids: Vec<String> = events
        .iter()
        .flat_map(|b| {
            string_column(b, "event_id")
                .unwrap()
                .iter()
                .map(|x| x.unwrap().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(ids, ["e5", "e1", "e3"], "by user and time");
    assert_eq!(string_column(&events[0], "context_page").unwrap().value(0), "home");
    let (_, items) = read_columns(&table_path(work.path(), "items"), None).unwrap();
    assert_eq!(string_column(&items[0], "item_id").unwrap().value(0), "a");
    assert_eq!(string_column(&items[0], "category").unwrap().value(0), "newer", "the last file");
    assert_eq!(i64_column(&items[0], "created_ms").unwrap().value(1), 1_509_494_400_000);
    assert_eq!(f64_column(&items[0], "created_day").unwrap().value(1), 17_471.0);
}

#[test]
fn a_passed_threshold_stops_the_day_before_it_writes() {
    let (data, work) = (world(), tempfile::tempdir().unwrap());
    let window = DAY0..DAY0 + 2 * DAY_MS;
    let error = collect(data.path(), work.path(), window, &bearing(0.0)).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("offline.collect.share_max.null_id"), "{error}");
    assert!(error.contains("0.166667 is more than 0"), "{error}");
    assert!(error.contains("1 of 6") && error.contains("have the source fill ids"), "{error}");
    assert!(!table_path(work.path(), "events").exists());
    let empty = DAY0 - 9 * DAY_MS..DAY0 - 8 * DAY_MS;
    let error = collect(data.path(), work.path(), empty, &bearing(0.5));
    assert!(error.unwrap_err().to_string().contains("no day from 2017-11-22"));
}

#[test]
fn days_are_listed_in_order() {
    assert_eq!(event_days(world().path()).unwrap(), [0, 1, 2].map(|d| DAY0 + d * DAY_MS));
    let error = format!("{:#}", event_days(Path::new("/nowhere")).unwrap_err());
    assert!(error.contains("/nowhere/events"), "{error}");
}

#[test]
fn what_is_left_out_is_in_the_quarantine_with_its_reasons() {
    let (data, work) = (world(), tempfile::tempdir().unwrap());
    // A text where a number should be, two faults in one row, copies that differ in their value.
    put(
        data.path(),
        "events/dt=2017-12-02/1-2.parquet",
        "SELECT column1 AS event_id, column2 AS user_id, column3 AS item_id, 'purchase' AS event,
           to_timestamp_millis(column4) AS timestamp, column5 AS value
         FROM (VALUES ('f1', 'u1', 'a', 1512172800000, '1.5'), ('f2', 'u1', 'a', 1512172800001, 'much'),
                      ('f3', CAST(NULL AS VARCHAR), 'ghost', 1512172800002, '1'),
                      ('f4', 'u2', 'b', 1512172800003, '9'), ('f4', 'u2', 'b', 1512172800003, '7'),
                      ('f5', 'u2', 'b', 1412172800003, '-7'))",
    );
    put(
        data.path(),
        "items/part-00002.parquet",
        "SELECT * FROM (VALUES ('b', 1.0), (CAST(NULL AS VARCHAR), 2.0)) AS t(item_id, price)",
    );
    put(data.path(), "users/part-00000.parquet", "SELECT 'u1' AS user_id");
    let window = DAY0..DAY0 + 2 * DAY_MS;
    let report = collect(data.path(), work.path(), window, &bearing(0.5)).unwrap();
    assert_eq!((report.events_read, report.events_kept), (12, 5));
    assert_eq!(report.events_kept + report.events_quarantined, report.events_read);
    let reasons: Vec<(&str, u64)> = report.reasons.iter().map(|(k, n)| (k.as_str(), *n)).collect();
    assert_eq!(
        reasons,
        [
            ("duplicate_id", 2),
            ("null_id", 2),
            ("outside_window", 1),
            ("unknown_item", 2),
            ("wrong_type", 1)
        ]
    );
    let quarantine = |name: &str| {
        let file = work.path().join("collect/quarantine").join(format!("{name}.parquet"));
        read_columns(&file, None).unwrap().1
    };
    let text = |batches: &[RecordBatch], column: &str| -> Vec<Option<String>> {
        batches
            .iter()
            .flat_map(|batch| {
                let column = string_column(batch, column).unwrap();
                column.iter().map(|x| x.map(str::to_owned)).collect::<Vec<_>>()
            })
            .collect()
    };
    let bad = quarantine("wrong_type");
    assert_eq!(text(&bad, "reason"), [Some("wrong_type: value = much".to_owned())]);
    let bad = quarantine("events");
    let ids = text(&bad, "event_id");
    let at = ids.iter().position(|id| id.as_deref() == Some("f3")).unwrap();
    assert_eq!(text(&bad, "reason")[at].as_deref(), Some("null_id,unknown_item"));
    let at = ids.iter().position(|id| id.as_deref() == Some("f4")).unwrap();
    assert_eq!(text(&bad, "value")[at].as_deref(), Some("9"), "the smaller value of copies stays");
    assert_eq!(text(&quarantine("items"), "reason"), [Some("null_id".to_owned())]);
    let items = &report.items;
    assert_eq!((items.read, items.kept, items.replaced, items.quarantined), (5, 2, 2, 1));
    assert_eq!(report.counts["negative_value"], 1);
    assert_eq!((report.ranges["min_value"], report.ranges["max_value"]), (-7.0, 9.0));
    assert_eq!(report.counts["unknown_user"], 4);
    let drift = report.drift.as_ref().unwrap();
    assert_eq!(
        (drift.yesterday.date.as_str(), drift.today.date.as_str()),
        ("2017-12-01", "2017-12-02")
    );
    assert_eq!((drift.yesterday.events, drift.today.events), (6, 4));
    let read = super::report(work.path()).unwrap();
    assert_eq!(read.events_kept, 5);
    let text = std::fs::read_to_string(work.path().join("collect/report.md")).unwrap();
    assert!(text.contains("| duplicate_id | 2 |"), "{text}");
}
