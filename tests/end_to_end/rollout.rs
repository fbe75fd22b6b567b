//! Three replicas on one registry try a bundle: it advances, or goes back on all of them, by what
//! users do; and who cannot read the registry goes on.

use std::collections::HashMap;
use std::fs;

use serde_json::{Value, json};
use shortlist::bundle::{Course, LayerPlan, Registry, Rollout};
use shortlist::experiments::{Arm, Layer, Share, Stage, Subject};

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
        let registry = Registry::in_directory(self.bundles.root()).unwrap();
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
        let ctr = |answer: &Value| ctr(answer["bundle_version"].as_str().unwrap());
        self.visited_while(ctr, |state| state.challenger.is_some())
    }

    /// The same until something else has ended; `ctr` is by answer.
    fn visited_while(
        &self,
        ctr: impl Fn(&Value) -> f64,
        goes_on: impl Fn(&Rollout) -> bool,
    ) -> Rollout {
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
            let mut events = Vec::new();
            for item in answer["items"].as_array().unwrap().iter().take(LOOKS) {
                let event = |kind: &str| {
                    json!({"user_id": user, "item_id": item["item_id"], "event": kind,
                           "request_id": answer["request_id"]})
                };
                events.push(event("impression"));
                if chance() < ctr(&answer) {
                    events.push(event("click"));
                }
            }
            let other = &self.replicas[(visit + 1) % REPLICAS];
            let (status, body) = other.post("/v1/events", &Value::Array(events));
            assert_eq!(status, 202, "{body}");
            if !goes_on(&state) {
                println!("ended after {visit} visits: {}", state.reason);
                return state;
            }
        }
        panic!("{VISITS_MAX} visits decided nothing: {}", self.rollout(&["status"]));
    }

    /// Nobody sees the challenger who is not drawn for it.
    fn check_share(&self, state: &Rollout, user: &str, answer: &Value) {
        let Some(plan) = &state.challenger else { return };
        let share = Share { salt: plan.course.salt.clone(), percent: plan.course.stage.percent() };
        if answer["bundle_version"] == plan.bundle.as_str() {
            assert_eq!(share.arm(user).0, Arm::Challenger, "{user} at {}", plan.course.stage);
            assert!(answer["variant"].as_str().unwrap().starts_with("challenger"));
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
    let course = state.challenger.unwrap().course;
    assert_eq!(course.stage, Stage::Percent(5));
    let share = Share { salt: course.salt, percent: 5 };
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

/// How many of the most common category an answer has.
fn most_of_a_category(answer: &Value) -> usize {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for item in answer["items"].as_array().unwrap() {
        if let Some(category) = &world().items[item["item_id"].as_str().unwrap()].category {
            *counts.entry(category).or_default() += 1;
        }
    }
    counts.into_values().max().unwrap_or(0)
}

#[test]
fn rules_are_tried_beside_a_bundle_and_each_trial_goes_its_own_way() {
    let fleet = Fleet::start(&["one", "two"], |_| ());
    let (bundle, rules) = (Subject::Bundle, Subject::Layer(Layer::Rules));
    fleet.rollout(&["start", "two"]);
    let change = ["--layer", "rules", "--set", "max_per_category=1"];
    let started = fleet.rollout(&[&["start"][..], &change].concat());
    assert!(started.contains(r#"rules {"max_per_category":1} on trial at 5 %"#), "{started}");
    for (arguments, text) in [
        (&["start", "--layer", "rules", "--set", "max_per_category=2"][..], "is on trial at 5 %"),
        (&["start", "--layer", "blending", "--set", "freshness=1"], "unknown field `freshness`"),
        (&["start", "--layer", "blending", "--set", "fresh.quota=0"], "nothing of"),
        (&["advance", "--layer", "blending"], "no settings of the layer blending"),
        (&["start", "--layer", "ranking", "--set", "a=1"], "give rules or blending"),
    ] {
        let arguments = [&["rollout"], arguments].concat();
        let (code, found) = world().fails(&borrowed(&fleet.settings), &arguments);
        assert!(code != 0 && found.contains(text), "{arguments:?}: {found}");
    }
    for step in [
        &["advance"][..],
        &["pause"],
        &["advance", "--layer", "rules"],
        &["pause", "--layer", "rules"],
    ] {
        fleet.rollout(step);
    }
    for step in [&["advance"][..], &["advance"], &["advance", "--layer", "rules"]] {
        fleet.rollout(step);
    }
    fleet.settled();
    let (_, state) = fleet.state();
    let share = |of| {
        let course = state.course(of).unwrap();
        assert_eq!(course.stage, Stage::Percent(50));
        Share { salt: course.salt.clone(), percent: 50 }
    };
    let shares = [share(bundle), share(rules)];
    let mut cells = [[0; 2]; 2];
    for (n, user) in (0..300).map(|n| format!("visitor-{n}")).enumerate() {
        let answer = fleet.replicas[n % REPLICAS].recommend(json!({"user_id": user}));
        let [version, rule] = [0, 1].map(|at: usize| shares[at].arm(&user).0);
        cells[version as usize][rule as usize] += 1;
        assert_eq!(answer["bundle_version"] == "two", version == Arm::Challenger, "{user}");
        let other = rule == Arm::Challenger;
        assert_eq!(most_of_a_category(&answer) == 1, other, "{user}: {answer}");
        let suffix = if other { "+rules" } else { "" };
        assert_eq!(answer["variant"], format!("{}{suffix}", version.name()), "{user}");
    }
    assert!(cells.iter().flatten().all(|&n| n > 40), "the two draw independently: {cells:?}");
    let ask = json!({"user_id": "a tester", "arm": "stable", "layers": {"rules": "challenger"}});
    assert_eq!(fleet.replicas[0].recommend(ask)["variant"], "stable+rules");

    // Who gets the other rules clicks less: they go back, the bundle stays where it is.
    let resumed = fleet.rollout(&["resume", "--layer", "rules"]);
    assert!(resumed.contains("two on trial at 50 %, paused; rules"), "{resumed}");
    let before = state.course(bundle).unwrap().clone();
    let last = fleet.visited_while(
        |answer| if most_of_a_category(answer) == 1 { 0.1 } else { 0.5 },
        |state| state.course(rules).is_some(),
    );
    assert!(
        last.reason.starts_with(r#"rules {"max_per_category":1} was rolled back"#),
        "{}",
        last.reason
    );
    assert!(last.reason.contains("CTR -"), "{}", last.reason);
    assert_eq!(last.course(bundle), Some(&before), "its trial goes on");
    fleet.settled();
    let answer = fleet.replicas[0].recommend(json!({"user_id": "visitor-1"}));
    assert!(!answer["variant"].as_str().unwrap().contains("rules"), "{answer}");
    assert!(fleet.rollout(&["status"]).contains("two at 50 %"));
}

#[test]
fn settings_that_a_replica_cannot_use_end_their_trial() {
    let fleet = Fleet::start(&["one"], |_| ());
    let (number, mut state) = fleet.state();
    let change = serde_json::from_value(json!({"max_per_category": 0})).unwrap();
    let course = Course::begin(Stage::Percent(5), number + 1, 0);
    state.layers.push(LayerPlan { layer: Layer::Rules, change, course });
    let registry = Registry::in_directory(fleet.bundles.root()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(registry.succeed(number, &state)).unwrap().expect("no other writer");
    eventually("the end", || fleet.state().1.layers.is_empty());
    let (_, state) = fleet.state();
    assert!(
        state.reason.contains("rules.max_per_category = 0: give at least 1"),
        "{}",
        state.reason
    );
    assert_eq!(state.bundle, "one");
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
