//! The aggregates on a hand-made world, and a planted leak.

use super::*;
use arrow::array::{Array, Float64Array};
use std::collections::BTreeMap;

use crate::offline::engine::tests::datafusion;
use crate::offline::sql::tests::config as sql_config;
use crate::offline::sql::{self, SqlText, write_parquet};
use crate::offline::tables::{f64_column, string_column};

const DAY0: i64 = 1_512_086_400_000;

/// Collected tables with the given rows `(id, user, item, event, ts_ms, value, label)`.
fn work(rows: &str) -> tempfile::TempDir {
    let work = tempfile::tempdir().unwrap();
    let engine = sql::Engine::new(&sql_config()).unwrap();
    for (name, text) in [
        (
            "items",
            "SELECT column1 AS item_id, column2 AS category, column3 AS price FROM (VALUES
             ('a', 'fruit', 2.0), ('b', 'fruit', 1.0), ('c', 'drink', CAST(NULL AS DOUBLE)))"
                .to_owned(),
        ),
        (
            "events",
            format!(
                "SELECT column1 AS event_id, column2 AS user_id, column3 AS item_id,
                   column4 AS event, CAST(column5 AS BIGINT) AS ts_ms,
                   CAST(column6 AS DOUBLE) AS value, CAST(column7 AS DOUBLE) AS label, 'R1' AS region
                 FROM (VALUES {rows})"
            ),
        ),
    ] {
        let (schema, batches) =
            engine.run(&SqlText { origin: "test".into(), text }).unwrap();
        write_parquet(&table_path(work.path(), name), schema, &batches).unwrap();
    }
    work
}

const WINDOWS: Config = Config { short_days: 1, medium_days: 7, long_days: 28, favourites: 1 };

/// [`super::materialise`] by the engine of this process.
fn materialise(
    work: &Path,
    days: &[i64],
    progress: &mut dyn FnMut(usize, usize, &str),
) -> anyhow::Result<usize> {
    super::materialise(work, days, &datafusion(), &WINDOWS, progress)
}

fn bought() -> String {
    let row = |id: u32, user: &str, item: &str, days: i64, value: f64| {
        let ts_ms = DAY0 - days * DAY_MS + i64::from(id);
        format!("('e{id}', '{user}', '{item}', 'purchase', {ts_ms}, {value}, NULL)")
    };
    [
        row(1, "u", "a", 40, 3.0),
        row(2, "u", "a", 10, 5.0),
        row(3, "u", "b", 3, 2.0),
        row(4, "v", "a", 1, 2.0),
    ]
    .join(", ")
}

fn rows(work: &Path, table: &str, key: &str) -> BTreeMap<String, BTreeMap<String, f64>> {
    let (schema, batches) = read_columns(&table_path_as_of(work, DAY0, table), None).unwrap();
    let mut found = BTreeMap::new();
    for batch in &batches {
        let keys = string_column(batch, key).unwrap();
        for row in 0..batch.num_rows() {
            let values = schema.fields().iter().filter(|f| f.data_type() != &DataType::Utf8);
            let values = values.map(|field| {
                let column: Float64Array = f64_column(batch, field.name()).unwrap();
                let value = if column.is_null(row) { f64::NAN } else { column.value(row) };
                (field.name().clone(), value)
            });
            found.insert(keys.value(row).to_owned(), values.collect());
        }
    }
    found
}

#[test]
fn counts_shares_and_recencies_of_purchases() {
    let work = work(&bought());
    let made = materialise(work.path(), &[DAY0], &mut |_, _, _| {}).unwrap();
    assert_eq!(made, 1);
    let items = rows(work.path(), "item_stats", "item_id");
    let a = &items["a"];
    assert_eq!((a["purchases_7d"], a["purchases_28d"], a["purchases_all"]), (1.0, 2.0, 3.0));
    assert_eq!((a["users_28d"], a["users_all"], a["revenue_all"]), (2.0, 2.0, 10.0));
    assert_eq!((a["repeat_rate"], a["rank_28d"]), (0.5, 1.0));
    assert_eq!(a["category_share_28d"], 2.0 / 3.0);
    assert_eq!(a["avg_price_ratio"], 10.0 / 6.0);
    assert!(a["ctr_all"].is_nan(), "nothing was shown");
    assert_eq!((a["last_day"] * DAY_MS as f64) as i64 / 1000, (DAY0 - DAY_MS + 4) / 1000);
    assert!(!items.contains_key("c"));

    let users = rows(work.path(), "user_stats", "user_id");
    let u = &users["u"];
    assert_eq!((u["baskets_28d"], u["baskets_all"], u["items_all"]), (2.0, 3.0, 2.0));
    assert_eq!((u["repeat_share"], u["avg_value"]), (1.0 / 3.0, 10.0 / 3.0));
    assert_eq!((u["top_category_share"], u["categories_all"]), (1.0, 1.0));
    assert!(u["top_brand_share"].is_nan(), "the catalogue has no brands");
    let favourites = rows(work.path(), "user_item", "user_id");
    let favourite = &favourites["u"];
    assert_eq!(
        (favourite["count_all"], favourite["count_28d"], favourite["place"]),
        (2.0, 1.0, 1.0)
    );
    assert_eq!(favourite["share"], 2.0 / 3.0);
    assert!((favourite["interval_days"] - 30.0).abs() < 1e-6, "bought 40 and 10 days ago");
    assert!((favourite["due"] - 1.0 / 3.0).abs() < 1e-6);
    assert!(favourites["v"]["interval_days"].is_nan(), "bought once");
    let region = rows(work.path(), "region_item", "item_id");
    assert_eq!((region["a"]["place"], region["b"]["count_28d"]), (1.0, 1.0));
}

#[test]
fn a_labelled_impression_is_a_click() {
    let shown = |id: u32, user: &str, item: &str, label: &str| {
        let ts_ms = DAY0 - DAY_MS + i64::from(id);
        format!("('e{id}', '{user}', '{item}', 'impression', {ts_ms}, NULL, {label})")
    };
    let work = work(
        &[
            shown(1, "u", "a", "1"),
            shown(2, "u", "b", "0"),
            shown(3, "v", "a", "NULL"),
            shown(4, "v", "c", "0"),
        ]
        .join(", "),
    );
    materialise(work.path(), &[DAY0], &mut |_, _, _| {}).unwrap();
    let items = rows(work.path(), "item_stats", "item_id");
    let a = &items["a"];
    assert_eq!((a["impressions_7d"], a["clicks_7d"], a["positives_7d"]), (2.0, 1.0, 1.0));
    assert!((a["ctr_7d"] - (1.0 + 20.0 * 0.25) / 22.0).abs() < 1e-12, "smoothed by the mean");
    assert_eq!(items["b"]["positives_all"], 0.0);
    let u = &rows(work.path(), "user_stats", "user_id")["u"];
    assert!((u["ctr_all"] - (1.0 + 20.0 * 0.25) / 22.0).abs() < 1e-12);
    assert_eq!(u["share_weekend"], 0.0, "30 November 2017 was a Thursday");
}

#[test]
fn no_table_sees_events_of_its_midnight_or_after() {
    let clean = work(&bought());
    // The leak: the same world, and much happens from midnight on.
    let leak = (10..40).map(|n| {
        format!("('e{n}', 'u', 'b', 'purchase', {}, 99.0, NULL)", DAY0 + i64::from(n - 10))
    });
    let planted = work(&std::iter::once(bought()).chain(leak).collect::<Vec<_>>().join(", "));
    for work in [&clean, &planted] {
        materialise(work.path(), &[DAY0], &mut |_, _, _| {}).unwrap();
    }
    for (table, key) in [
        ("item_stats", "item_id"),
        ("user_stats", "user_id"),
        ("user_category", "user_id"),
        ("user_item", "user_id"),
        ("region_item", "item_id"),
    ] {
        let (before, after) = (rows(clean.path(), table, key), rows(planted.path(), table, key));
        assert_eq!(format!("{before:?}"), format!("{after:?}"), "{table}");
    }
}

#[test]
fn midnights_that_are_there_are_skipped() {
    let work = work(&bought());
    let days = [DAY0 - DAY_MS, DAY0];
    assert_eq!(materialise(work.path(), &days, &mut |_, _, _| {}).unwrap(), 2);
    fs::remove_dir_all(folder(work.path(), DAY0)).unwrap();
    let mut seen = Vec::new();
    let made = materialise(work.path(), &days, &mut |done, all, day| {
        seen.push((done, all, day.to_owned()));
    });
    assert_eq!(made.unwrap(), 1);
    assert_eq!(seen.first(), Some(&(1, 2, "what all days share".to_owned())));
    assert_eq!(seen[1], (1, 2, "2017-12-01".to_owned()));
    assert_eq!(seen.last(), Some(&(2, 2, "done".to_owned())));
    assert!(!work.path().join("features/scratch").exists());
    let error = materialise(work.path(), &[DAY0 + 5], &mut |_, _, _| {}).unwrap_err();
    assert!(error.to_string().contains("not a midnight"), "{error}");
}

#[test]
fn windows_have_the_lengths_and_the_names_of_the_configuration() {
    let work = work(&bought());
    let config = Config { short_days: 2, medium_days: 5, long_days: 60, favourites: 1 };
    super::materialise(work.path(), &[DAY0], &datafusion(), &config, &mut |_, _, _| {}).unwrap();
    let a = &rows(work.path(), "item_stats", "item_id")["a"];
    assert_eq!((a["purchases_2d"], a["purchases_5d"], a["purchases_60d"]), (1.0, 1.0, 3.0));
    assert!(!a.contains_key("purchases_7d"));
    assert_eq!(a["trend_5d_60d"], 1.0 * 12.0 / 3.0);
    let error = Config { medium_days: 1, ..config }.check().unwrap_err().to_string();
    assert!(error.contains("2, 1 and 60 days"), "{error}");
}

#[test]
fn events_reduced_in_parts_are_those_reduced_at_once() {
    let basket =
        bought().replace("'e4'", "'e4', 'v', 'b', 'purchase', 1512000000000, 7.5, NULL), ('e5'");
    let work = work(&basket);
    let reduced = |parts: u64| -> Vec<String> {
        let scratch = tempfile::tempdir().unwrap();
        let mut job = super::shared(work.path(), scratch.path(), &datafusion()).unwrap();
        job.steps.truncate(2);
        let path = scratch.path().join("facts.parquet");
        job.step_in_parts("facts", path.clone(), parts).unwrap();
        datafusion().run(&job, &scratch.path().join("engine"), &mut |_| {}).unwrap();
        assert_eq!((path.is_dir(), count_rows(&path).unwrap()), (parts > 1, 5));
        let all = SqlText {
            origin: "test".into(),
            text: "SELECT CAST(user_no AS VARCHAR) || ' ' || CAST(item_no AS VARCHAR) || ' ' || \
                   CAST(basket_value AS VARCHAR) || ' ' || CAST(basket_size AS VARCHAR) || ' ' || \
                   CAST(basket_first AS VARCHAR) AS row FROM facts"
                .into(),
        };
        let engine = sql::Engine::new(&sql_config()).unwrap();
        engine.register_parquet("facts", &path).unwrap();
        let (_, batches) = engine.run(&all).unwrap();
        let rows = batches.iter().map(|batch| string_column(batch, "row").unwrap());
        let mut rows: Vec<String> = rows
            .flat_map(|column| column.iter().flatten().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        rows.sort();
        rows
    };
    let whole = reduced(1);
    assert_eq!(whole.len(), 5, "{whole:?}");
    assert_eq!(reduced(3), whole);
}
