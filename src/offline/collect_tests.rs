//! Collecting a small data directory: what is kept, counted and refused.

use super::*;
use crate::offline::sql::tests::config as engine;
use crate::offline::tables::{f64_column, i64_column, string_column};
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
        },
    }
}

/// Writes what a SELECT gives as a file of a data directory.
fn put(data: &Path, file: &str, select: &str) {
    let engine = Engine::new(&engine()).unwrap();
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
    let report =
        collect(data.path(), work.path(), window, &engine(), &bearing(0.5), &|_| {}).unwrap();
    assert_eq!((report.events_read, report.events_kept, report.late), (6, 3, 1));
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
    let error = collect(data.path(), work.path(), window, &engine(), &bearing(0.0), &|_| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains("null_id") && error.contains("1 of 6"), "{error}");
    assert!(!table_path(work.path(), "events").exists());
    let empty = DAY0 - 9 * DAY_MS..DAY0 - 8 * DAY_MS;
    let error = collect(data.path(), work.path(), empty, &engine(), &bearing(0.5), &|_| {});
    assert!(error.unwrap_err().to_string().contains("no day from 2017-11-22"));
}

#[test]
fn days_are_listed_in_order() {
    assert_eq!(event_days(world().path()).unwrap(), [0, 1, 2].map(|d| DAY0 + d * DAY_MS));
    let error = format!("{:#}", event_days(Path::new("/nowhere")).unwrap_err());
    assert!(error.contains("/nowhere/events"), "{error}");
}
