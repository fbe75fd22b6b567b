//! Users' features as Feast keeps them: a server that reads them, and the real Feast on the other
//! side, where `SHORTLIST_TEST_FEAST` names its Python (`make test-feast`).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use shortlist::bundle::Bundle;
use shortlist::features::UserRecord;
use shortlist::monitor::Health;
use shortlist::store::Users;
use shortlist::types::{DAY_MS, UserId};

use crate::support::{Redis, Server, World, ids, world};

/// A user whom the bundle does not know.
const STRANGER: &str = "lö✓";
/// A mapping of columns to the views of `tests/feast/typed.py`.
const TYPED: &str = "[{ name = \"typed\", ttl_s = 86400, features = { \
    an_int32 = \"user_stats.clicks_7d\", an_int64 = \"user_stats.clicks_28d\", \
    a_float32 = \"user_stats.avg_value\", a_float64 = \"user_stats.revenue_7d\", \
    a_bool = \"user_stats.positives_1d\", a_string = \"users.region\", \
    a_moment = \"user_stats.last_day\" } }]";

/// Settings of a process that keeps users in the Redis of Feast.
struct Settings {
    url: String,
    views: String,
    more: Vec<(&'static str, &'static str)>,
}

impl Settings {
    fn new(redis: &Redis, views: &str) -> Self {
        Self { url: format!("\"redis://{}\"", redis.address), views: views.into(), more: vec![] }
    }

    fn list(&self) -> Vec<(&str, &str)> {
        let mut all = vec![
            ("store.users", "\"feast\""),
            ("store.redis.url", &*self.url),
            ("store.redis.command_timeout_ms", "2000"),
            ("store.feast.project", "\"shop\""),
            ("store.feast.views", &*self.views),
        ];
        all.extend(&self.more);
        all
    }
}

/// The definitions that the binary makes, and the views for the configuration that they end with.
fn definitions(world: &World) -> (String, String) {
    let text = world.features(&[], &["feast"]);
    let mapping = text.lines().skip_while(|line| *line != "# [store.feast]");
    let mapping: String = mapping.map(|line| format!("{}\n", &line[1..])).collect();
    let mapping: toml::Table = mapping.parse().unwrap();
    let views = mapping["store"]["feast"]["views"].to_string();
    (text, views)
}

#[test]
fn a_server_answers_from_what_feasts_layout_holds() {
    let Some(redis) = Redis::own() else { return };
    let world = world();
    let settings = Settings::new(&redis, &definitions(world).1);
    world.features(&settings.list(), &["materialize", "--feast"]);
    let key = |user: &str| {
        let word = |word: usize| (word as u32).to_le_bytes();
        let parts = [&word(1)[..], &word(2), &word(7), b"user_id", &word(2), &word(user.len())];
        [&parts.concat()[..], user.as_bytes(), b"shop"].concat()
    };
    let copy: [&[u8]; 3] = [b"COPY", &key(&world.users[0]), &key(STRANGER)];
    assert_eq!(redis.call(&copy), b":1\r\n");
    // Scores move with the clock, by the age of items.
    let items = |server: &Server, user: &str| {
        let answer = server.recommend(json!({"user_id": user}));
        assert_eq!(answer["degraded"], json!([]), "{answer}");
        ids(&answer)
    };
    let embedded = Server::start(world, &[]);
    let server = Server::start(world, &settings.list());
    for user in &world.users[..5] {
        assert_eq!(items(&server, user), items(&embedded, user), "{user}");
    }
    let unknown = items(&embedded, STRANGER);
    assert_ne!(items(&server, STRANGER), unknown, "a user whom only Feast knows");
    assert_eq!(items(&server, "nobody"), items(&embedded, "nobody"));
    let found = "shortlist_cache_lookups_total{cache=\"user_redis\",result=\"hit\"}";
    assert_eq!(server.metric(found), 6.0);
    // The world's clock stands nine hours after its bundle's day.
    let views = settings.views.replace("ttl_s = 0", "ttl_s = 3600");
    let stale = Server::start(world, &Settings { views, ..settings }.list());
    assert_eq!(items(&stale, STRANGER), unknown, "what Feast has is too old");
}

#[test]
fn feast_and_shortlist_read_what_the_other_wrote() {
    let Ok(python) = std::env::var("SHORTLIST_TEST_FEAST") else {
        println!("skipped: SHORTLIST_TEST_FEAST names no Python with Feast (make test-feast)");
        return;
    };
    let Some(redis) = Redis::own() else { return };
    let world = world();
    let (text, views) = definitions(world);
    let ours = Settings::new(&redis, &views);
    assert!(world.features(&ours.list(), &["materialize", "--feast"]).contains("\n0 rows"));
    let bundle = Bundle::open(&world.bundle_dir(), false, &world.config().index).unwrap();
    let as_of_ms = bundle.manifest.as_of_ms;
    let region = bundle.dictionaries.get("users.region").unwrap().value(1).unwrap();
    let request = json!({
        "project": "shop", "redis": redis.address, "as_of_ms": as_of_ms,
        "users": world.users[..6], "stranger": STRANGER, "text": region,
    });
    let answer = feast(&python, &text, &request);
    let (before, after) = (&answer["before"], &answer["after"]);

    // Feast read what we wrote: every value of every user, NULL where it is missing.
    let columns = columns(&ours.views);
    for user in &world.users[..6] {
        let row = bundle.users.find(user);
        let read = before[user].as_object().unwrap();
        assert_eq!(read.len(), bundle.users.columns().len(), "{user}");
        for (reference, value) in read {
            let (column, at) = column(&bundle, &columns[reference]);
            assert_eq!(
                number(&bundle, column, value).to_bits(),
                row.value(at).to_bits(),
                "{user} {reference}"
            );
        }
    }
    assert_eq!((&before[STRANGER], &before["nobody"]), (&json!({}), &json!({})));

    // Feast wrote what is newer than ours and left the rest; both read the same.
    let [newer, older, same] = [0, 1, 2].map(|at| &world.users[at]);
    assert_ne!(after[newer]["user_stats:avg_value"], before[newer]["user_stats:avg_value"]);
    for user in [older, same] {
        let of_ours = after[user].as_object().unwrap().iter();
        let mut of_ours = of_ours.filter(|(reference, _)| !reference.starts_with("typed:"));
        assert!(of_ours.all(|(reference, value)| &before[user][reference] == value), "{user}");
    }
    let later_ms = as_of_ms + DAY_MS;
    compare(world, &bundle, &ours, after, later_ms, &[]);
    let typed = Settings::new(&redis, TYPED);
    compare(world, &bundle, &typed, after, later_ms, &[&world.users[4]]);
    compare(
        world,
        &bundle,
        &typed,
        after,
        later_ms + 1,
        &[&world.users[4], newer, older, same, &world.users[5], STRANGER],
    );
    for (join_key, of_type) in [("\"int32_id\"", "\"int32\""), ("\"int64_id\"", "\"int64\"")] {
        let view = format!("by_{}", of_type.trim_matches('"'));
        let views = format!(
            "[{{ name = \"{view}\", ttl_s = 0, features = {{ value = \"user_stats.avg_value\" }} }}]"
        );
        let mut by_number = Settings::new(&redis, &views);
        by_number.more =
            vec![("store.feast.join_key", join_key), ("store.feast.join_key_type", of_type)];
        let users = ["-7", "42"];
        let found = read(world, &bundle, &by_number, &users, later_ms);
        let (_, at) = column(&bundle, "user_stats.avg_value");
        for (user, value) in users.iter().zip([-7.5, 42.5]) {
            assert_eq!(found[*user].as_ref().unwrap().row().value(at), value, "{of_type} {user}");
        }
    }

    // Written again, every row is as new already: nothing changes.
    let rows = 2 * bundle.users.ids().len();
    let said = world.features(&ours.list(), &["materialize", "--feast"]);
    assert!(said.contains(&format!("\n{rows} rows of Feast are as new")), "{said}");
    compare(world, &bundle, &ours, after, later_ms, &[]);
}

/// Runs the real Feast in a repository of its own.
fn feast(python: &str, definitions: &str, request: &Value) -> Value {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/feast");
    let repository = tempfile::tempdir().unwrap();
    let path = |name: &str| repository.path().join(name);
    std::fs::write(path("definitions.py"), definitions).unwrap();
    std::fs::write(path("request.json"), request.to_string()).unwrap();
    std::fs::copy(here.join("typed.py"), path("typed.py")).unwrap();
    let mut command = Command::new(python);
    let output = command.arg(here.join("peer.py")).current_dir(&repository).output().unwrap();
    let log = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&log));
    serde_json::from_slice(&std::fs::read(path("answer.json")).unwrap()).unwrap()
}

/// From `view:feature` to columns of users.
fn columns(views: &str) -> BTreeMap<String, String> {
    let views: toml::Table = format!("views = {views}").parse().unwrap();
    let mut columns = BTreeMap::new();
    for view in views["views"].as_array().unwrap() {
        for (feature, column) in view["features"].as_table().unwrap() {
            let reference = format!("{}:{feature}", view["name"].as_str().unwrap());
            columns.insert(reference, column.as_str().unwrap().to_owned());
        }
    }
    columns
}

fn column<'a>(bundle: &Bundle, column: &'a str) -> (&'a str, usize) {
    (column, bundle.users.columns().iter().position(|name| name == column).unwrap())
}

/// A value of Feast as a column of users has it.
fn number(bundle: &Bundle, column: &str, value: &Value) -> f32 {
    let of_type = value.as_object().and_then(|value| value.iter().next());
    match of_type.map(|(kind, value)| (kind.as_str(), value)) {
        None => f32::NAN,
        Some(("string_val", text)) => bundle.dictionaries.feature(column, text.as_str()),
        Some(("bool_val", truth)) => f32::from(u8::from(truth.as_bool().unwrap())),
        // What Feast writes for a moment that is null.
        Some(("unix_timestamp_val", seconds)) if seconds.as_i64() == Some(i64::MIN) => f32::NAN,
        Some(("unix_timestamp_val", seconds)) => (seconds.as_f64().unwrap() / 86_400.0) as f32,
        Some((_, number)) => number.as_f64().unwrap() as f32,
    }
}

/// What the store says at `now_ms`, by user.
fn read<'a>(
    world: &World,
    bundle: &Bundle,
    settings: &Settings,
    users: &[&'a str],
    now_ms: i64,
) -> BTreeMap<&'a str, Option<Arc<UserRecord>>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let config = world.config_with(&settings.list());
    let fit = Arc::new(bundle.fit());
    runtime.block_on(async {
        let store = Users::open(&config.store, Arc::new(Health::new())).await.unwrap();
        store.check(&fit).unwrap();
        let mut found = BTreeMap::new();
        for user in users {
            let base = bundle.users.find(user);
            let state = store.read(&fit, &UserId((*user).into()), base, now_ms).await;
            assert_eq!(state.degraded, None, "{user}");
            found.insert(*user, state.record);
        }
        found
    })
}

/// Every user's columns are what Feast says (`after`), and those of the bundle where it has none or,
/// for `stale` users, too old ones.
fn compare(
    world: &World,
    bundle: &Bundle,
    settings: &Settings,
    after: &Value,
    now_ms: i64,
    stale: &[&str],
) {
    let columns = columns(&settings.views);
    let mut users: Vec<&str> = world.users[..6].iter().map(String::as_str).collect();
    users.extend([STRANGER, "nobody"]);
    let nothing = Map::new();
    for (user, record) in read(world, bundle, settings, &users, now_ms) {
        let of_feast = after[user].as_object().filter(|_| !stale.contains(&user));
        let of_feast = of_feast.unwrap_or(&nothing);
        let known = columns.keys().any(|reference| of_feast.contains_key(reference));
        assert_eq!(record.is_some(), known, "{user}");
        let base = bundle.users.find(user);
        let row = record.as_ref().map_or(base, |record| record.row());
        for (reference, name) in &columns {
            let (column, at) = column(bundle, name);
            let expected = match of_feast.get(reference) {
                Some(value) => number(bundle, column, value),
                None => base.value(at),
            };
            assert_eq!(row.value(at).to_bits(), expected.to_bits(), "{user} {reference}");
        }
    }
}
