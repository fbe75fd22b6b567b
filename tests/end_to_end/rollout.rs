//! Three replicas on one registry try a bundle: it advances, or goes back on all of them, by what
//! users do; and who cannot read the registry goes on.

use std::collections::HashMap;
use std::fs;

use serde_json::{Value, json};
use shortlist::bundle::{Registry, Rollout};
use shortlist::experiments::{Arm, Share, Stage};

use crate::support::{Server, eventually, world};
use crate::swap::{Bundles, cut};

/// Replicas of each test.
const REPLICAS: usize = 3;
/// Visits after which a rollout should long have ended.
const VISITS_MAX: usize = 30_000;
/// Items of an answer that a visitor looks at.
const LOOKS: usize = 5;

/// A registry that serves `one`, and replicas that follow it.
struct Fleet {
    bundles: Bundles,
    settings: Vec<(&'static str, String)>,
    replicas: Vec<Server>,
}

impl Fleet {
    fn start(versions: &[&str], prepare: impl FnOnce(&Bundles)) -> Self {
        let mut bundles = Bundles::new(versions);
        prepare(&bundles);
        bundles.turn_to("one");
        let url = format!("\"{}\"", bundles.root().display());
        let log = format!("\"{}\"", bundles.root().join("log").display());
        let settings: Vec<(&'static str, String)> = [
            ("events.dir", log.as_str()),
            ("events.file_age_max_ms", "50"),
            ("pipeline.log_full_share", "1.0"),
            ("registry.url", url.as_str()),
            ("registry.poll_interval_ms", "20"),
            ("rollout.counts_interval_ms", "60"),
            ("rollout.shadow_every", "1"),
            ("rollout.allow_override", "true"),
            // Seconds and hundreds instead of hours and millions.
            ("rollout.guard.stage_min_minutes", "0.005"),
            ("rollout.guard.stage_requests_min", "20"),
            ("rollout.guard.shadow_min_minutes", "0.0"),
            ("rollout.guard.shadow_requests_min", "5"),
            ("rollout.guard.smallest_effect", "0.3"),
            ("rollout.guard.ctr_margins", "[0.5, 0.5, 0.5]"),
            ("rollout.guard.expected_min", "30.0"),
            // Test machines are busy; slowness is not what these tests are about.
            ("rollout.guard.p99_slack_ms", "60000.0"),
        ]
        .map(|(key, value)| (key, value.to_owned()))
        .into();
        let replicas =
            (0..REPLICAS).map(|_| Server::start(world(), &borrowed(&settings))).collect();
        Self { bundles, settings, replicas }
    }

    /// `shortlist rollout ...`: what it printed.
    fn rollout(&self, arguments: &[&str]) -> String {
        world().succeeds(&borrowed(&self.settings), &[&["rollout"], arguments].concat())
    }

    fn state(&self) -> (u64, Rollout) {
        let registry = Registry::open(self.bundles.root().to_str().unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(registry.current()).unwrap().unwrap()
    }

    /// Waits until every replica follows the last state.
    fn settled(&self) {
        let (number, _) = self.state();
        for replica in &self.replicas {
            eventually("the state", || replica.metric("shortlist_rollout_state") == number as f64);
        }
    }

    /// What a part of each replica says of itself.
    fn components(&self, name: &str) -> Vec<Value> {
        let find = |replica: &Server| {
            let (status, body) = replica.get("/readyz");
            assert_eq!(status, 200, "it serves: {body}");
            let parts = body["components"].as_array().unwrap().clone();
            parts.into_iter().find(|part| part["name"] == name).unwrap_or(Value::Null)
        };
        self.replicas.iter().map(find).collect()
    }

    /// Visitors come until the rollout has ended: each asks one replica, and tells another what it saw
    /// and clicked. `ctr` is by bundle. Returns the last state.
    fn visited_until_the_end(&self, ctr: impl Fn(&str) -> f64) -> Rollout {
        // Any sequence without a pattern will do, as long as it is the same in every run.
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        let mut chance = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) as f64 / (1_u64 << 53) as f64
        };
        for visit in 0..VISITS_MAX {
            let user = format!("visitor-{}", visit % 4000);
            let answer = self.replicas[visit % REPLICAS].recommend(json!({"user_id": user}));
            let (_, state) = self.state();
            self.check_share(&state, &user, &answer);
            let version = answer["bundle_version"].as_str().unwrap();
            let mut events = Vec::new();
            for item in answer["items"].as_array().unwrap().iter().take(LOOKS) {
                let event = |kind: &str| {
                    json!({"user_id": user, "item_id": item["item_id"], "event": kind,
                           "request_id": answer["request_id"]})
                };
                events.push(event("impression"));
                if chance() < ctr(version) {
                    events.push(event("click"));
                }
            }
            let other = &self.replicas[(visit + 1) % REPLICAS];
            let (status, body) = other.post("/v1/events", &Value::Array(events));
            assert_eq!(status, 202, "{body}");
            if state.challenger.is_none() {
                println!("ended after {visit} visits: {}", state.reason);
                return state;
            }
        }
        panic!("{VISITS_MAX} visits decided nothing: {}", self.rollout(&["status"]));
    }

    /// Nobody sees the challenger who is not drawn for it.
    fn check_share(&self, state: &Rollout, user: &str, answer: &Value) {
        let Some(plan) = &state.challenger else { return };
        let share = Share { salt: plan.salt.clone(), percent: plan.stage.percent() };
        if answer["bundle_version"] == plan.bundle.as_str() {
            assert_eq!(share.arm(user).0, Arm::Challenger, "{user} at {}", plan.stage);
            assert_eq!(answer["variant"], "challenger");
        }
    }
}

fn borrowed(settings: &[(&'static str, String)]) -> Vec<(&'static str, &'static str)> {
    let leak = |text: &String| -> &'static str { Box::leak(text.clone().into_boxed_str()) };
    settings.iter().map(|(key, value)| (*key, leak(value))).collect()
}

#[test]
fn a_good_challenger_serves_everybody_in_the_end() {
    let fleet = Fleet::start(&["one", "two"], |_| ());
    for user in &world().users {
        fleet.replicas[0].recommend(json!({"user_id": user}));
    }
    let written = || fleet.replicas[0].metric("shortlist_log_rows_written_total{log=\"requests\"}");
    eventually("the log of the requests", || written() >= world().users.len() as f64);
    let started = fleet.rollout(&["start", "two", "--reason", "a test"]);
    assert!(started.contains("two on trial at shadow, beside one"), "{started}");
    // Two is one by another name.
    let n = world().users.len();
    assert!(started.contains(&format!("{n} requests, {n} with the same answer")), "{started}");
    let last = fleet.visited_until_the_end(|_| 0.5);
    assert_eq!((last.bundle.as_str(), last.percent), ("two", 100), "{}", last.reason);
    fleet.settled();
    for replica in &fleet.replicas {
        let answer = replica.recommend(json!({"user_id": "anybody"}));
        assert_eq!(answer["bundle_version"], "two");
        assert!(replica.metric("shortlist_shadow_requests_total{result=\"failed\"}") == 0.0);
    }
    let states = fs::read_dir(fleet.bundles.root().join("rollout")).unwrap().flatten();
    let states = states.filter(|entry| entry.path().extension().is_some_and(|e| e == "json"));
    assert_eq!(states.count(), 6, "one, shadow, 5, 25, 50 and all");
}

#[test]
fn a_challenger_with_fewer_clicks_goes_back_on_every_replica_and_says_why() {
    let fleet = Fleet::start(&["one", "two"], |_| ());
    fleet.rollout(&["start", "two"]);
    let ctr = |version: &str| if version == "two" { 0.1 } else { 0.5 };
    let last = fleet.visited_until_the_end(ctr);
    assert_eq!((last.bundle.as_str(), last.percent), ("one", 100));
    assert!(last.reason.starts_with("two was rolled back at"), "{}", last.reason);
    assert!(last.reason.contains("CTR -"), "{}", last.reason);
    fleet.settled();
    for part in fleet.components("rollout") {
        assert_eq!(part["text"], last.reason.as_str());
    }
    for replica in &fleet.replicas {
        for user in 0..50 {
            let answer = replica.recommend(json!({"user_id": format!("visitor-{user}")}));
            assert_eq!(answer["bundle_version"], "one");
        }
    }
}

#[test]
fn a_user_sees_one_version_on_all_replicas_and_only_a_tester_may_choose() {
    let fleet = Fleet::start(&["one", "two"], |_| ());
    fleet.rollout(&["start", "two"]);
    let again = [&["rollout"][..], &["start", "two"]].concat();
    let (code, text) = world().fails(&borrowed(&fleet.settings), &again);
    assert!(code != 0 && text.contains("two is on trial at shadow"), "{text}");
    fleet.settled();
    // To 5 % by hand; without clicks nothing advances by itself from there.
    fleet.rollout(&["advance"]);
    assert!(fleet.rollout(&["pause"]).contains("paused"));
    fleet.settled();
    let (_, state) = fleet.state();
    let plan = state.challenger.unwrap();
    assert_eq!(plan.stage, Stage::Percent(5));
    let share = Share { salt: plan.salt, percent: 5 };
    let mut seen = HashMap::new();
    for user in (0..300).map(|n| format!("visitor-{n}")) {
        for replica in &fleet.replicas {
            let answer = replica.recommend(json!({"user_id": user}));
            let version = answer["bundle_version"].as_str().unwrap().to_owned();
            let first = seen.entry(user.clone()).or_insert(version.clone());
            assert_eq!(*first, version, "{user}");
            assert_eq!(version == "two", share.arm(&user).0 == Arm::Challenger, "{user}");
        }
    }
    let chosen = seen.values().filter(|version| *version == "two").count();
    assert!((3..=30).contains(&chosen), "5 % of 300: {chosen}");
    let asked = fleet.replicas[0].recommend(json!({"user_id": "a tester", "arm": "challenger"}));
    assert_eq!(
        (asked["bundle_version"].as_str(), asked["variant"].as_str()),
        (Some("two"), Some("challenger"))
    );
    let ordinary = Server::start(world(), &[]);
    let ask = json!({"user_id": "a tester", "arm": "challenger"});
    let (status, body) = ordinary.post("/v1/recommendations", &ask);
    assert_eq!((status, body["error"]["code"].as_str()), (400, Some("not_allowed")), "{body}");
    // The status is what the replicas have counted.
    eventually("the counts", || fleet.rollout(&["status"]).contains("of 3 processes"));
    let back = fleet.rollout(&["rollback", "--reason", "enough"]);
    assert!(back.contains("one serves everybody"), "{back}");
    fleet.settled();
    assert!(fleet.rollout(&["status"]).contains("two was rolled back at 5 %: enough"));
}

#[test]
fn a_challenger_that_does_not_open_ends_its_rollout() {
    let damage = |bundles: &Bundles| {
        // Of the right length, so that only who opens it notices.
        let path = bundles.path("two").join("index.bin");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, vec![0; bytes.len()]).unwrap();
    };
    let fleet = Fleet::start(&["one", "two", "half"], |bundles| {
        damage(bundles);
        cut(&bundles.path("half").join("index.bin"));
    });
    let start = ["rollout", "start", "half"];
    let (code, text) = world().fails(&borrowed(&fleet.settings), &start);
    assert!(code != 0 && text.contains("no whole bundle half"), "{text}");
    fleet.rollout(&["start", "two"]);
    eventually("the end", || fleet.state().1.challenger.is_none());
    let (_, state) = fleet.state();
    assert!(state.reason.contains("cannot serve it"), "{}", state.reason);
    fleet.settled();
    for part in fleet.components("rollout") {
        assert!(part["text"].as_str().unwrap().contains("cannot serve it"), "{part}");
    }
}

#[test]
fn who_cannot_read_the_registry_keeps_its_state_says_so_and_catches_up() {
    let mut fleet = Fleet::start(&["one", "two"], |_| ());
    fleet.settled();
    let (states, away) =
        (fleet.bundles.root().join("rollout"), fleet.bundles.root().join("rollout-away"));
    fs::rename(&states, &away).unwrap();
    let reachable = |fleet: &Fleet| {
        let parts = fleet.components("registry");
        parts.iter().map(|part| part["ok"] == true).collect::<Vec<_>>()
    };
    eventually("the report", || reachable(&fleet) == [false; REPLICAS]);
    for (replica, part) in fleet.replicas.iter().zip(fleet.components("registry")) {
        assert!(part["text"].as_str().unwrap().contains("state 1 stays"), "{part}");
        assert_eq!(replica.metric("shortlist_registry_reachable"), 0.0);
        let answer = replica.recommend(json!({"user_id": "anybody"}));
        assert_eq!(answer["bundle_version"], "one");
    }
    fs::rename(&away, &states).unwrap();
    fleet.bundles.turn_to("two");
    fleet.settled();
    eventually("the report", || reachable(&fleet) == [true; REPLICAS]);
    for replica in &fleet.replicas {
        let answer = replica.recommend(json!({"user_id": "anybody"}));
        assert_eq!(answer["bundle_version"], "two");
    }
}
