//! Requests that are logged in full: written to Parquet, read back and asked again.

use std::path::Path;

use super::*;
use crate::bundle::{Change, Patch};
use crate::events::{self, Log, RequestRecord};
use crate::features::UserRecord;
use crate::monitor::Health;
use crate::pipeline::replay::{Replayer, Verified};

/// Keeps everything that the log keeps of a request.
fn asked(inputs: Inputs) -> Inputs {
    let context = vec![("page".to_owned(), "home".to_owned())];
    Inputs { asked: Some(Box::new(Asked { context, quality: 0.75 })), ..inputs }
}

/// Runs a request and gives its row of the log.
fn logged(world: &World, user: &str, inputs: Inputs, cached: Option<Arc<[f32]>>) -> RequestRecord {
    let mut cx = world.context(asked(inputs));
    cx.cached = cached;
    let answer = run(&mut cx);
    RequestRecord {
        request_id: answer.request_id.clone(),
        time_ms: cx.inputs.time_ms,
        user_id: user.to_owned(),
        bundle_version: answer.bundle_version.clone(),
        num_items: cx.inputs.num_items as i32,
        item_ids: answer.items.iter().map(|item| item.item_id.clone()).collect(),
        scores: answer.items.iter().map(|item| item.score).collect(),
        degraded: answer.degraded.clone(),
        served: record::footprint(&cx).map(|left| Box::new(left.served())),
        ..RequestRecord::default()
    }
}

/// Through the files and back.
fn through_parquet(rows: Vec<RequestRecord>) -> Vec<RequestRecord> {
    let dir = tempfile::tempdir().unwrap();
    let sections: toml::Table = include_str!("../../../config/default.toml").parse().unwrap();
    let config: events::Config = sections["events"].clone().try_into().unwrap();
    let log = Log::start(dir.path(), &config, Arc::new(Health::new())).unwrap();
    log.offer(vec![RequestRecord { time_ms: sample::AS_OF_MS, ..RequestRecord::default() }]);
    log.offer(rows);
    log.flush().unwrap();
    read_back(dir.path())
}

fn read_back(dir: &Path) -> Vec<RequestRecord> {
    let days = [0, 1].map(|day| crate::types::date_of(sample::AS_OF_MS + day * DAY_MS));
    let files = days.iter().flat_map(|day| events::request_files(dir, day).unwrap());
    files.flat_map(|path| events::read_requests(&path, 1000).unwrap()).collect()
}

/// Everything that a request can be decided by, and every part that it can lose.
fn requests(world: &World) -> Vec<RequestRecord> {
    let mut rows = Vec::new();
    for (at, user) in ["u0", "u1", "u2", "u3", "nobody"].into_iter().enumerate() {
        let mut inputs = world.inputs(user, [None, world.region("north")][at % 2]);
        inputs.num_items = 20 + at;
        rows.push(logged(world, user, inputs.clone(), None));
        // Features of the store, an own history without times, and a vector of a cache.
        let mut record = UserRecord::of(world.serving.bundle.users.find("u1"), 1, 0);
        record.set(0, 3.5 + at as f32);
        inputs.request_id += " again";
        inputs.record = Some(Arc::new(record));
        inputs.history = vec![ItemIdx(7), ItemIdx(9)];
        inputs.history_times_ms = vec![i64::MIN, sample::AS_OF_MS];
        let cached: Vec<f32> = (0..32).map(|n| if n == at { 1.0 } else { 0.0 }).collect();
        rows.push(logged(world, user, inputs.clone(), Some(cached.into())));
        for (part, names) in [["ann"], ["fresh"], ["features"], ["ranking"]].iter().enumerate() {
            inputs.request_id = format!("{user} without {part}");
            inputs.repeats = Some(Lost::of(names.iter().copied()));
            rows.push(logged(world, user, inputs.clone(), None));
        }
    }
    rows
}

#[test]
fn a_logged_request_is_the_same_bit_for_bit_on_its_bundle() {
    let mut settings = all_sources();
    settings.rules.blocked_labels = vec![sample::LABEL.into()];
    settings.rules.exploration.share = 0.5;
    let world = World::new(settings);
    let rows = requests(&world);
    assert!(rows.iter().all(|row| {
        row.served.as_ref().is_some_and(|served| served.propensities.len() == row.item_ids.len())
    }));
    let read = through_parquet(rows.clone());
    assert_eq!(format!("{read:?}"), format!("{rows:?}"), "what was read is what was written");
    let lost: HashSet<&str> = rows
        .iter()
        .flat_map(|row| row.served.as_ref().unwrap().lost.iter().map(String::as_str))
        .collect();
    assert_eq!(lost, HashSet::from(["ann", "fresh", "features", "ranking"]));
    let settings = serde_json::from_str(&read[0].served.as_ref().unwrap().settings).unwrap();
    let fresh = World::new(settings);
    let mut replayer = Replayer::new(fresh.serving.clone());
    let mut verified = Verified::default();
    for row in &read {
        let served = row.served.as_ref().unwrap();
        assert!(!served.dropped.is_empty() || served.sources.iter().all(|s| s == "popular"));
        verified.add(row, served, &replayer.again(row, served));
    }
    assert!(verified.holds() && verified.same == read.len(), "{:#?}", verified.lines());
}

/// Makes a logged request another one.
type Spoil = fn(&mut RequestRecord, &mut events::Served);

#[test]
fn whatever_differs_is_found_and_named() {
    let world = World::new(all_sources());
    let row = logged(&world, "u1", world.inputs("u1", None), None);
    let served = row.served.clone().unwrap();
    let spoil: [(&str, Spoil); 7] = [
        ("items", |row, _| row.item_ids.swap(0, 1)),
        ("scores", |row, _| row.scores[3] = f32::from_bits(row.scores[3].to_bits() + 1)),
        ("vector", |_, served| served.vector[0] += 1e-7),
        ("features", |_, served| served.features[4] += 1.0),
        ("raw scores", |_, served| served.raw_scores[0] += 1e-12),
        ("dropped", |_, served| served.dropped.push(("i000".into(), "duplicate".into()))),
        // Another history is another vector, and with it everything.
        ("similarities", |_, served| served.history.truncate(1)),
    ];
    for (what, spoil) in spoil {
        let (mut row, mut served) = (row.clone(), served.clone());
        spoil(&mut row, &mut served);
        let mut verified = Verified::default();
        let rerun = Replayer::new(world.serving.clone()).again(&row, &served);
        verified.add(&row, &served, &rerun);
        assert!(!verified.holds() && verified.differ.contains_key(what), "{what}: {verified:?}");
    }
}

#[test]
fn changes_of_items_are_part_of_what_decided() {
    let world = World::new(all_sources());
    let bundle = &world.serving.bundle;
    let before = logged(&world, "u2", world.inputs("u2", None), None);
    let id = before.item_ids[0].clone();
    let patch = Patch { id: id.clone(), in_stock: Some(false), ..Patch::default() };
    let prepared = bundle.prepare(&[Change::Patch(patch)], 10).unwrap();
    bundle.commit(1, prepared);
    let after = logged(&world, "u2", world.inputs("u2", None), None);
    assert!(!after.item_ids.contains(&id));
    let changes = |row: &RequestRecord| row.served.as_ref().unwrap().item_changes;
    assert_eq!((changes(&before), changes(&after)), ([0, 0, 0], [0, 1, 1]));
    let mut verified = Verified::default();
    let mut replayer = Replayer::new(world.serving.clone());
    for row in [&before, &after] {
        let served = row.served.as_ref().unwrap();
        verified.add(row, served, &replayer.again(row, served));
    }
    assert_eq!((verified.requests, verified.same), (2, 1), "{:?}", verified.lines());
}

#[test]
fn a_version_with_other_rules_is_told_apart() {
    let old = World::new(settings());
    let mut stricter = settings();
    stricter.rules.max_per_category = 1;
    let new = World::new(stricter);
    let rows: Vec<RequestRecord> =
        ["u0", "u1"].iter().map(|u| logged(&old, u, old.inputs(u, None), None)).collect();
    let same = diff::compare(&old.serving, &old.serving, &rows);
    assert_eq!((same.requests, same.identical, same.overlap_at_20.mean), (2, 2, 1.0));
    let other = diff::compare(&old.serving, &new.serving, &rows);
    assert_eq!(other.identical, 0);
    assert!(other.overlap_at_20.mean < 1.0 && other.category_distance > 0.0);
    let [before, after] = other.dropped["category_cap"];
    assert!(before < after, "{before} and {after}");
}

#[test]
fn a_request_is_drawn_with_the_share_and_always_the_same() {
    let ids: Vec<String> = (0..10_000).map(|at| format!("request-{at}")).collect();
    let drawn = |share: f64| ids.iter().filter(|id| record::is_drawn(id, share)).count();
    assert_eq!((drawn(0.0), drawn(1.0)), (0, 10_000));
    // Five standard deviations of 1,000 are 150.
    assert!((850..1150).contains(&drawn(0.1)), "{}", drawn(0.1));
}
