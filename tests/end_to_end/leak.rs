//! No feature of a row sees the row's future.
//!
//! The check: rows made from all events equal rows made from the events before the day alone. It
//! is trusted because it names a leak that is planted.

use std::path::Path;

use shortlist::bundle::Bundle;
use shortlist::features::{Candidate, Schema};
use shortlist::offline::as_of::Layout;
use shortlist::offline::dataset::Dataset;
use shortlist::offline::examples::{Group, Rows, rows_of_day};
use shortlist::offline::load::Loaded;
use shortlist::offline::{aggregates, collect};
use shortlist::types::{DAY_MS, ItemIdx};

use crate::support::{World, world};

/// Rows of some users and items at a midnight, from the tables in `work`.
fn rows(world: &World, work: &Path, schema: &Schema, loaded: &Loaded, day_ms: i64) -> Rows {
    let inputs = world.config().offline.towers.inputs;
    let dir = aggregates::day_dir(&work.join("features"), day_ms);
    let layout = Layout::new(schema, &inputs, loaded, &dir).unwrap();
    let as_of = layout.read(&dir, day_ms, loaded).unwrap();
    let candidates: Vec<Candidate> = (0..loaded.item_ids.len() as u32)
        .step_by(37)
        .map(|item| Candidate {
            item: ItemIdx(item),
            similarity: 0.5,
            retrieval_rank: 0.0,
            retrieval_score: 0.5,
        })
        .collect();
    let group = |user| Group {
        user,
        time_ms: day_ms,
        context: vec![f32::NAN; schema.context_names().len()],
        labels: vec![0.0; candidates.len()],
        candidates: candidates.clone(),
        missed: 0,
        weights: Vec::new(),
    };
    let groups: Vec<Group> = (0..loaded.data.users.len() as u32).step_by(23).map(group).collect();
    rows_of_day(loaded, schema, &as_of, &groups).unwrap()
}

/// Features whose values differ, in the schema's order.
fn differing<'a>(schema: &'a Schema, a: &Rows, b: &Rows) -> Vec<&'a str> {
    assert_eq!(a.values.len(), b.values.len());
    let width = schema.len();
    let differs = |at: &usize| {
        let column = |rows: &Rows| -> Vec<u32> {
            rows.values.iter().skip(*at).step_by(width).map(|v| v.to_bits()).collect()
        };
        column(a) != column(b)
    };
    (0..width).filter(differs).map(|at| schema.features()[at].name.as_str()).collect()
}

/// The events before a moment only.
fn truncated(loaded: &Loaded, day_ms: i64) -> Dataset {
    let mut data = loaded.data.clone();
    data.events.retain(|event| event.time_ms < day_ms);
    data.context.clear();
    data.index_by_user()
}

#[test]
fn rows_do_not_change_when_the_future_is_taken_away_and_a_planted_leak_is_named() {
    let world = world();
    let config = world.config();
    let bundle = Bundle::open(&world.bundle_dir(), false, &config.index).unwrap();
    let schema = &bundle.schema;
    let day_ms = bundle.manifest.as_of_ms - 2 * DAY_MS;
    let full = Loaded::open(&world.work().join("collect"), &config.offline.signals).unwrap();
    let with_future = rows(world, &world.work(), schema, &full, day_ms);

    let dir = tempfile::tempdir().unwrap();
    let window = collect::event_days(&world.data()).unwrap()[0]..day_ms;
    let offline = &config.offline;
    let engine = offline.engine();
    let positive = &offline.signals.positive_events;
    let (data, limits) = (world.data(), &offline.collect);
    collect::collect(&data, dir.path(), window, &engine, limits, positive, &|_| {}).unwrap();
    let windows = &offline.aggregates;
    aggregates::materialise(dir.path(), &[day_ms], &engine, windows, &mut |_, _, _| {}).unwrap();
    // The same users and items in the same order, without the later events.
    let mut past = Loaded::open(&world.work().join("collect"), &config.offline.signals).unwrap();
    past.data = truncated(&past, day_ms);
    let without = rows(world, dir.path(), schema, &past, day_ms);
    assert_eq!(differing(schema, &with_future, &without), Vec::<&str>::new());

    let features = dir.path().join("features");
    let later = aggregates::day_dir(&world.work().join("features"), day_ms + 2 * DAY_MS);
    let table = "item_stats.parquet";
    std::fs::copy(later.join(table), aggregates::day_dir(&features, day_ms).join(table)).unwrap();
    let leaking = rows(world, dir.path(), schema, &past, day_ms);
    let named = differing(schema, &without, &leaking);
    assert!(named.contains(&"item_positives_7d"), "the planted leak was not named: {named:?}");
    assert!(named.iter().all(|name| !name.starts_with("user_")), "{named:?}");
}
