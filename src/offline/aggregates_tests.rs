//! The aggregates on a hand-made world, a planted leak, and the lint of `sql/`.

use super::*;
use arrow::array::{Array, Float64Array};
use std::collections::BTreeMap;

use crate::offline::sql::tests::config as engine;
use crate::offline::sql::{SqlText, write_parquet};
use crate::offline::tables::{f64_column, string_column};

const DAY0: i64 = 1_512_086_400_000;

/// Collected tables with the given rows `(id, user, item, event, ts_ms, value, label)`.
fn work(rows: &str) -> tempfile::TempDir {
    let work = tempfile::tempdir().unwrap();
    let engine = Engine::new(&engine()).unwrap();
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
    let made = materialise(work.path(), &[DAY0], &engine(), &mut |_, _, _| {}).unwrap();
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
    materialise(work.path(), &[DAY0], &engine(), &mut |_, _, _| {}).unwrap();
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
        materialise(work.path(), &[DAY0], &engine(), &mut |_, _, _| {}).unwrap();
    }
    for (table, key) in [
        ("item_stats", "item_id"),
        ("user_stats", "user_id"),
        ("user_category", "user_id"),
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
    assert_eq!(materialise(work.path(), &days, &engine(), &mut |_, _, _| {}).unwrap(), 2);
    fs::remove_dir_all(folder(work.path(), DAY0)).unwrap();
    let mut seen = Vec::new();
    let made = materialise(work.path(), &days, &engine(), &mut |done, all, day| {
        seen.push((done, all, day.to_owned()));
    });
    assert_eq!(made.unwrap(), 1);
    assert_eq!(seen, [(1, 2, "2017-12-01".into()), (2, 2, "done".into())]);
    let error = materialise(work.path(), &[DAY0 + 5], &engine(), &mut |_, _, _| {}).unwrap_err();
    assert!(error.to_string().contains("not a midnight"), "{error}");
}

/// The portable subset of `sql/`: what DataFusion and Spark read alike.
#[test]
fn sql_files_keep_to_the_portable_subset() {
    const FORBIDDEN: [&str; 17] = [
        "log(",
        "concat(",
        "max_by(",
        "min_by(",
        "count_if(",
        "approx_",
        "collect_list(",
        "collect_set(",
        "slice(",
        "explode(",
        "unnest(",
        "sha2(",
        " div ",
        "\"",
        "arrow_cast(",
        "now(",
        "current_",
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let code: Vec<&str> = text.lines().filter(|l| !l.trim_start().starts_with("--")).collect();
        let code = code.join("\n").to_lowercase();
        for word in FORBIDDEN {
            // `mylog(` is another function.
            let found = code
                .match_indices(word)
                .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
            assert!(!found, "{}: `{word}` does not run alike on both engines", path.display());
        }
        assert!(!code.contains(';'), "{}: one SELECT a file", path.display());
        for (at, _) in code.match_indices("order by") {
            let clause = &code[at + 8..];
            let clause = &clause[..clause.find(')').unwrap_or(clause.len())];
            let nulls =
                clause.matches("nulls last").count() + clause.matches("nulls first").count();
            let keys = clause.split(',').count();
            assert_eq!(nulls, keys, "{}: ORDER BY {clause}: NULLS FIRST/LAST", path.display());
        }
        files += 1;
    }
    assert_eq!(files, 12, "a new file of sql/ is named in builtin_sql too");
}
