//! The real binary over HTTP: every promise of the interface, on a small generated world.

use std::collections::HashMap;
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use crate::support::{Redis, SHUT_REGION, Server, event, eventually, ids, world};
use serde_json::{Value, json};

const STAGES: [&str; 6] =
    ["s1_user_embedding", "s2_candidates", "s3_features", "s4_ranking", "s5_rules", "s6_response"];

/// A server that tests share when they change nothing that another one reads. It ends with the
/// last test that holds it: a static would never be dropped, and the process would stay.
fn shared() -> Arc<Server> {
    static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut server = SERVER.lock().unwrap_or_else(|e| e.into_inner());
    server.upgrade().unwrap_or_else(|| {
        let started = Arc::new(Server::start(world(), &[]));
        *server = Arc::downgrade(&started);
        started
    })
}

fn user() -> &'static str {
    &world().users[0]
}

#[track_caller]
fn refused(reply: (u16, Value), status: u16, code: &str, field: Option<&str>, part: &str) {
    let (found, body) = reply;
    let error = &body["error"];
    assert_eq!((found, error["code"].as_str()), (status, Some(code)), "{body}");
    assert_eq!(error["field"].as_str(), field, "{body}");
    assert!(error["message"].as_str().unwrap().contains(part), "{body}");
}

#[test]
fn a_known_user_gets_twenty_different_items_in_order_of_score() {
    let server = shared();
    let answer = server.recommend(json!({"user_id": user()}));
    let items = answer["items"].as_array().unwrap();
    assert_eq!(items.len(), 20, "{answer}");
    let different: std::collections::HashSet<_> = ids(&answer).into_iter().collect();
    assert_eq!(different.len(), 20);
    let scores: Vec<f64> = items.iter().map(|item| item["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    assert_eq!(answer["degraded"], json!([]), "{answer}");
    for key in ["request_id", "bundle_version", "variant"] {
        assert!(answer[key].as_str().is_some_and(|text| !text.is_empty()), "{key} in {answer}");
    }
    assert!(answer.get("timings_us").is_none(), "only when asked");
    assert!(world().among(&answer, |item| !item.in_stock).is_empty());
}

#[test]
fn the_same_question_has_the_same_answer_and_another_request_id() {
    let server = shared();
    let ask = json!({"user_id": world().users[1], "num_items": 50});
    let (one, two) = (server.recommend(ask.clone()), server.recommend(ask));
    assert_eq!(ids(&one), ids(&two));
    assert_ne!(one["request_id"], two["request_id"]);
}

#[test]
fn an_unknown_user_is_answered_and_an_inline_history_changes_the_answer() {
    let server = shared();
    let cold = server.recommend(json!({"user_id": "nobody-knows-me"}));
    assert_eq!(ids(&cold).len(), 20);
    let history = |user: &String| {
        let (_, past) = server.get(&format!("/v1/console/history?user_id={user}"));
        past["history"].as_array().unwrap().iter().map(|e| e["item_id"].clone()).collect::<Vec<_>>()
    };
    let mut past = world().users.iter().map(history).find(|h| !h.is_empty()).expect("a history");
    past.reverse();
    past.push(json!("an item that no bundle knows"));
    let warm = server.recommend(json!({"user_id": "nobody-knows-me", "history": past}));
    assert_eq!(ids(&warm).len(), 20);
    assert_ne!(ids(&cold), ids(&warm), "the history speaks");
}

#[test]
fn num_items_is_from_1_to_100() {
    let server = shared();
    let ask = |num_items: i64| {
        server.post("/v1/recommendations", &json!({"user_id": user(), "num_items": num_items}))
    };
    assert_eq!(ids(&ask(1).1).len(), 1);
    assert_eq!(ask(100).0, 200);
    refused(ask(0), 400, "out_of_range", Some("num_items"), "give 1 to 100");
    refused(ask(101), 400, "out_of_range", Some("num_items"), "is 101");
}

#[test]
fn a_wrong_request_is_refused_with_the_place_and_the_fix() {
    let server = shared();
    let path = "/v1/recommendations";
    let raw = |body: &str| server.post_raw(path, "application/json", body);
    refused(raw("{\"user_id\": "), 400, "malformed_json", None, "line 1 column");
    refused(raw("{\"user_id\": 7}"), 400, "wrong_type", Some("user_id"), "give a string");
    refused(raw("{}"), 400, "missing_field", Some("user_id"), "is missing");
    let misspelt = json!({"user_id": user(), "num_item": 5});
    refused(server.post(path, &misspelt), 400, "unknown_field", Some("num_item"), "num_items");
    let long = json!({"user_id": "x".repeat(257)});
    refused(server.post(path, &long), 400, "too_long", Some("user_id"), "at most 256");
    let huge = format!("{{\"user_id\": \"{}\"}}", "x".repeat(2 << 20));
    refused(raw(&huge), 413, "body_too_large", None, "1048576 bytes");
    let form = server.post_raw(path, "application/x-www-form-urlencoded", "{}");
    refused(form, 415, "wrong_content_type", None, "application/json");
    refused(server.get(path), 405, "method_not_allowed", None, "use POST");
    refused(server.get("/v2/recommendations"), 404, "not_found", None, "/v2/recommendations");
    // After all of that the server answers as before.
    assert_eq!(ids(&server.recommend(json!({"user_id": user()}))).len(), 20);
}

#[test]
fn timings_name_every_stage_and_their_sum_is_within_the_total() {
    let server = shared();
    let answer = server.recommend(json!({"user_id": user(), "timings": true}));
    let timings = answer["timings_us"].as_object().unwrap();
    assert_eq!(timings.len(), 7, "{timings:?}");
    let us = |name: &str| timings[name].as_u64().unwrap_or_else(|| panic!("{name}: {timings:?}"));
    let sum: u64 = STAGES.into_iter().map(us).sum();
    assert!(us("s2_candidates") + us("s3_features") + us("s4_ranking") > 0, "{timings:?}");
    // Each stage is rounded down on its own.
    assert!(sum <= us("total") + 6, "{timings:?}");
}

#[test]
fn a_region_gets_what_is_sold_there() {
    let server = shared();
    let world = world();
    let mut sold: HashMap<&str, usize> = HashMap::new();
    for item in world.items.values() {
        for region in &item.regions {
            *sold.entry(region).or_default() += usize::from(item.in_stock);
        }
    }
    let region = sold.iter().max_by_key(|(_, count)| **count).expect("a region").0;
    let answer = server.recommend(json!({"user_id": user(), "region": region}));
    let elsewhere = world.among(&answer, |item| !item.regions.iter().any(|r| r == region));
    assert!(elsewhere.is_empty(), "{elsewhere:?} are not sold in {region}");
}

#[test]
fn a_region_without_stock_gets_fewer_items_and_the_reason() {
    let server = shared();
    let region = SHUT_REGION;
    let answer = server.recommend(json!({"user_id": user(), "region": region}));
    assert_eq!(ids(&answer).len(), 0, "{answer}");
    let text = answer["reasons"][0]["text"].as_str().unwrap();
    assert!(text.contains(region), "{text}");
}

#[test]
fn a_blocked_label_is_never_shown() {
    let world = world();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for item in world.items.values() {
        for label in &item.labels {
            *counts.entry(label).or_default() += 1;
        }
    }
    let label = counts.iter().max_by_key(|(_, count)| **count).expect("a label").0.to_string();
    let labelled = |server: &Server| -> usize {
        let users = world.users.iter().take(10);
        users
            .map(|user| server.recommend(json!({"user_id": user, "num_items": 100})))
            .map(|answer| world.among(&answer, |item| item.labels.contains(&label)).len())
            .sum()
    };
    let open = Server::start(world, &[("rules.blocked_labels", "[]")]);
    assert!(labelled(&open) > 0, "without the rule `{label}` does show");
    let closed = Server::start(world, &[("rules.blocked_labels", &format!("[\"{label}\"]"))]);
    assert_eq!(labelled(&closed), 0);
}

#[test]
fn a_category_is_shown_at_most_three_times() {
    let most = |server: &Server| {
        let answer = server.recommend(json!({"user_id": user(), "num_items": 100}));
        let mut counts: HashMap<String, usize> = HashMap::new();
        for id in ids(&answer) {
            if let Some(category) = &world().items[&id].category {
                *counts.entry(category.clone()).or_default() += 1;
            }
        }
        counts.into_values().max().unwrap_or(0)
    };
    let capped = Server::start(world(), &[("rules.max_per_category", "3")]);
    assert!(most(&capped) <= 3);
    let free = Server::start(world(), &[("rules.max_per_category", "1000")]);
    assert!(most(&free) > 3, "without the rule a category does show more often");
}

#[test]
fn fresh_items_rise_with_the_boost() {
    let ask = json!({"user_id": user(), "num_items": 100});
    let answer = |boost: &str| {
        let settings = [
            ("rules.freshness_boost", boost),
            ("rules.freshness_half_life_days", "7.0"),
            ("rules.max_per_category", "1000"),
        ];
        ids(&Server::start(world(), &settings).recommend(ask.clone()))
    };
    let (plain, boosted) = (answer("0.0"), answer("100.0"));
    let created_day = |ids: &[String]| {
        let days = ids.iter().take(10).map(|id| world().items[id].created_ms / 86_400_000);
        days.sum::<i64>() / 10
    };
    let (before, after) = (created_day(&plain), created_day(&boosted));
    assert!(before < after, "mean day of creation of the first ten: {before}, then {after}");
    let fresh = &boosted[0];
    let rank = plain.iter().position(|id| id == fresh).unwrap_or(plain.len());
    assert!(rank > 0, "{fresh} was first without the boost too");
}

#[test]
fn a_shown_item_is_gone_for_that_user_only() {
    let server = shared();
    let (seer, other) = (&world().users[2], &world().users[3]);
    let ask = |user: &str| json!({"user_id": user, "num_items": 20});
    let (before, of_other) =
        (ids(&server.recommend(ask(seer))), ids(&server.recommend(ask(other))));
    let impressions: Vec<Value> =
        before.iter().take(5).map(|item| event(seer, item, "impression")).collect();
    let (status, body) = server.post("/v1/events", &Value::from(impressions));
    assert_eq!((status, body["accepted"].as_u64()), (202, Some(5)), "{body}");
    let after = ids(&server.recommend(ask(seer)));
    assert_eq!(after.len(), 20, "others take their places");
    assert!(before.iter().take(5).all(|item| !after.contains(item)), "{before:?}\n{after:?}");
    assert_eq!(ids(&server.recommend(ask(other))), of_other);
}

#[test]
fn an_event_becomes_history_at_once_and_is_checked_first() {
    let server = shared();
    let item = world().items.keys().min().unwrap();
    let wrong = json!([event("live-user", item, "click"), event("live-user", item, "clik")]);
    let reply = server.post("/v1/events", &wrong);
    refused(reply, 400, "out_of_range", Some("[1].event"), "send one of impression");
    let path = "/v1/console/history?user_id=live-user";
    assert_eq!(server.get(path).1["history"], json!([]), "none of a wrong body is taken");
    let (status, body) = server.post("/v1/events", &event("live-user", item, "click"));
    assert_eq!((status, &body), (202, &json!({"accepted": 1, "duplicates": 0})));
    assert_eq!(server.get(path).1["history"][0]["item_id"].as_str(), Some(item.as_str()));
}

#[test]
fn probes_and_metrics_tell_what_happens() {
    let server = shared();
    assert_eq!(server.get("/healthz"), (200, json!({"status": "ok"})));
    let (status, ready) = server.get("/readyz");
    assert_eq!((status, ready["ready"].as_bool()), (200, Some(true)), "{ready}");
    assert!(ready["bundle_version"].is_string(), "{ready}");
    let series = "shortlist_http_requests_total{route=\"recommendations\",status=\"200\"}";
    let before = server.metric(series);
    server.recommend(json!({"user_id": user()}));
    assert!(server.metric(series) > before);
    for stage in STAGES {
        let count = format!("shortlist_stage_seconds_count{{stage=\"{stage}\"}}");
        assert!(server.metric(&count) >= 1.0, "{count}");
    }
    assert_eq!(server.metric("shortlist_ready"), 1.0);
}

#[test]
fn recall_and_skew_are_measured_on_the_requests_that_come() {
    let server = Server::start(world(), &[("pipeline.recall_audit_interval_ms", "1")]);
    assert!(server.metric("shortlist_index_recall").is_nan(), "a recall before any request");
    for user in world().users.iter().take(5) {
        server.recommend(json!({"user_id": user}));
    }
    eventually("a request is checked", || {
        server.metric("shortlist_index_recall_checked_total") >= 1.0
    });
    let recall = server.metric("shortlist_index_recall");
    assert!((0.8..=1.0).contains(&recall), "recall {recall}");
    assert_eq!(server.metric("shortlist_feature_skew"), 0.0, "rows as training fills them");
}

#[test]
fn sigterm_ends_well_and_the_logs_are_on_disk() {
    let mut server = Server::start(world(), &[("events.replica", "\"sigterm-test\"")]);
    let item = world().items.keys().min().unwrap();
    let answer = server.recommend(json!({"user_id": user()}));
    assert_eq!(server.post("/v1/events", &event(user(), item, "click")).0, 202);
    server.signal("TERM");
    assert!(server.ended(), "{}", answer["request_id"]);
    for log in ["events", "requests"] {
        let files = crate::support::files(&world().log().join(log), "sigterm-test-");
        assert_eq!(files.len(), 1, "{log}: {files:?}");
    }
}

#[test]
fn a_configuration_that_cannot_work_is_refused_before_the_port_is_bound() {
    let (code, text) = world().fails(&[("server.body_bytes_max", "0")], &["serve", "--port", "0"]);
    assert_ne!(code, 0);
    assert!(text.contains("server.body_bytes_max = 0"), "{text}");
    assert!(!text.contains("listening on"), "{text}");
    let (_, text) = world().fails(&[("server.no_such_key", "0")], &["serve", "--port", "0"]);
    assert!(text.contains("no_such_key"), "{text}");
}

/// Settings for a Redis at `address`; generous times, for a test machine may be busy.
fn with_redis(url: &str) -> [(&str, &str); 4] {
    [
        ("store.users", "\"redis\""),
        ("store.redis.url", url),
        ("store.redis.command_timeout_ms", "2000"),
        ("store.redis.failures_until_pause", "1"),
    ]
}

#[test]
fn an_embedding_goes_to_redis_and_the_next_process_finds_it_there() {
    let Some(redis) = Redis::start() else { return };
    let url = format!("\"redis://{}\"", redis.address);
    let user = &world().users[4];
    let lookups = |server: &Server, result: &str| {
        server.metric(&format!(
            "shortlist_cache_lookups_total{{cache=\"user_redis\",result=\"{result}\"}}"
        ))
    };
    let first = Server::start(world(), &with_redis(&url));
    let one = first.recommend(json!({"user_id": user}));
    let suffix = format!(":{user}");
    eventually("the embedding in Redis", || redis.value_of(&suffix).is_some());
    let value = redis.value_of(&suffix).unwrap();
    assert_eq!(value.len() % 4, 0, "8 bytes of sequence, then f32");
    assert!(value.len() > 8);
    let second = Server::start(world(), &with_redis(&url));
    let two = second.recommend(json!({"user_id": user}));
    assert_eq!(lookups(&second, "hit"), 1.0);
    assert_eq!(ids(&one), ids(&two), "the same embedding, the same answer");
    let (_, ready) = second.get("/readyz");
    let redis_part = ready["components"].as_array().unwrap().iter().find(|c| c["name"] == "redis");
    assert_eq!(redis_part.unwrap()["ok"], json!(true), "{ready}");
}

#[test]
fn materialized_users_are_found_and_not_encoded_again() {
    let Some(redis) = Redis::own() else { return };
    let url = format!("\"redis://{}\"", redis.address);
    let world = world();
    let embedded = shared();
    world.features(&with_redis(&url), &["materialize", "--embeddings", "--histories"]);
    let server = Server::start(world, &with_redis(&url));
    for user in &world.users {
        let ask = json!({"user_id": user});
        assert_eq!(ids(&server.recommend(ask.clone())), ids(&embedded.recommend(ask)), "{user}");
    }
    let lookups = |result: &str| {
        let series = "shortlist_cache_lookups_total{cache=\"embedding\",result=";
        server.metric(&format!("{series}\"{result}\"}}"))
    };
    assert_eq!(lookups("hit"), world.users.len() as f64);
    assert_eq!((lookups("miss"), lookups("stale")), (0.0, 0.0), "nothing was encoded");
}

#[test]
fn without_redis_the_answer_is_the_same() {
    let Some(mut redis) = Redis::own() else { return };
    let url = format!("\"redis://{}\"", redis.address);
    let server = Server::start(world(), &with_redis(&url));
    let user = &world().users[5];
    let before = ids(&server.recommend(json!({"user_id": user})));
    redis.stop();
    for user in &world().users[5..15] {
        assert_eq!(ids(&server.recommend(json!({"user_id": user}))).len(), 20);
    }
    assert_eq!(ids(&server.recommend(json!({"user_id": user}))), before);
    let failed = ["error", "skipped"].map(|result| {
        server.metric(&format!(
            "shortlist_cache_lookups_total{{cache=\"user_redis\",result=\"{result}\"}}"
        ))
    });
    assert!(failed.iter().sum::<f64>() >= 1.0, "{failed:?}");
    assert_eq!(server.get("/readyz").0, 200, "a Redis that is down closes no door");
}

#[test]
fn the_page_shows_a_user_twenty_items_and_six_stages() {
    let server = shared();
    let browsers = ["chromium", "chromium-browser", "google-chrome"];
    let found = browsers.iter().find(|name| Command::new(name).arg("--version").output().is_ok());
    let Some(browser) = found else {
        println!("skipped: no Chromium");
        return;
    };
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--virtual-time-budget=10000",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("{}/#user={}", server.url, user()))
        .output()
        .unwrap();
    let page = String::from_utf8_lossy(&output.stdout);
    let count = |part: &str| page.matches(part).count();
    assert_eq!(count("class=\"rec\""), 20, "{page}");
    assert_eq!(count("class=\"stage-bar\""), 6);
    for stage in STAGES {
        assert_eq!(count(&format!("data-stage=\"{stage}\"")), 1);
    }
    let answer = server.recommend(json!({"user_id": user()}));
    for id in ids(&answer) {
        assert_eq!(count(&format!("data-item=\"{id}\"")), 1, "item {id}");
    }
}
