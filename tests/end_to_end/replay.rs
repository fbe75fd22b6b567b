//! What a server logged in full is answered again, bit for bit, by the command; and why an item is
//! or is not in an answer is told over HTTP.

use serde_json::{Value, json};

use crate::support::{ITEMS_TOKEN, Server, World, event, ids, world};

/// Places of an answer in the test of exploration.
const PLACES: usize = 10;

/// A server that logs every request in full, and what binds it to a directory of its own.
struct Logged {
    dir: tempfile::TempDir,
    settings: Vec<(&'static str, String)>,
}

impl Logged {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let quoted = |name: &str| format!("\"{}\"", dir.path().join(name).display());
        std::fs::write(dir.path().join("token"), ITEMS_TOKEN).unwrap();
        let settings = vec![
            ("events.dir", quoted("log")),
            ("server.items_token_file", quoted("token")),
            ("pipeline.log_full_share", "1.0".to_owned()),
            ("pipeline.sources.fresh.quota", "20".to_owned()),
            ("pipeline.sources.repeats.quota", "10".to_owned()),
        ];
        Self { dir, settings }
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        self.settings.iter().map(|(key, value)| (*key, value.as_str())).collect()
    }

    fn logs(&self) -> String {
        self.dir.path().join("log").display().to_string()
    }

    /// Asks a while, with events in between, and ends the server.
    fn serve(&self, world: &World) {
        let mut server = Server::start(world, &self.settings());
        for (at, user) in world.users.iter().take(12).enumerate() {
            let mut body = json!({"user_id": user, "num_items": 10 + at, "device": "mobile"});
            if at % 3 == 0 {
                body["region"] = json!("nowhere near");
            }
            let answer = server.recommend(body.clone());
            let items = ids(&answer);
            for (item, kind) in items.iter().zip(["impression", "click", "cart", "impression"]) {
                assert_eq!(server.post("/v1/events", &event(user, item, kind)).0, 202);
            }
            server.recommend(body);
        }
        server.recommend(json!({"user_id": "nobody", "history": ids(&server.recommend(json!({"user_id": "nobody"})))}));
        server.signal("TERM");
        assert!(server.ended());
    }
}

#[test]
fn logged_requests_are_the_same_bit_for_bit_and_two_versions_are_compared() {
    let (world, logged) = (world(), Logged::new());
    logged.serve(world);
    let logs = logged.logs();
    let (code, text) = world.fails(&[], &["replay", "--logs", &logs]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("26 requests: 26 the same bit for bit"), "{text}");

    let bundle = world.bundle_dir().display().to_string();
    let (code, text) = world.fails(&[], &["replay", "--logs", &logs, "--against", &bundle]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("26 requests, 26 with the same answer"), "{text}");
    let arguments = ["replay", "--logs", &logs, "--against", &bundle, "--json"];
    let (_, text) = world.fails(&[], &arguments);
    let json: Value = serde_json::from_str(&text[text.find('[').unwrap()..]).unwrap();
    assert_eq!(json[0]["overlap_at_20"]["mean"], 1.0);

    let (code, text) = world.fails(&[], &["replay", "--logs", &logs, "--day", "2020-01-01"]);
    assert_ne!(code, 0);
    assert!(text.contains("no request of 2020-01-01"), "{text}");
}

#[test]
fn an_answer_is_explained_over_http_and_closed_where_the_console_is() {
    let world = world();
    let logged = Logged::new();
    let server = Server::start(world, &logged.settings());
    let request = json!({"user_id": world.users[0], "num_items": 5});
    let (status, all) = server.post("/v1/explain", &json!({"request": request}));
    assert_eq!(status, 200, "{all}");
    let items = all["items"].as_array().unwrap();
    assert_eq!(items.len(), 5);
    assert!(items.iter().all(|item| item["outcome"] == "returned"), "{all}");
    let features = items[0]["ranking"]["features"].as_array().unwrap();
    let sum: f64 = features.iter().map(|f| f["contribution"].as_f64().unwrap()).sum();
    let raw = items[0]["ranking"]["raw_score"].as_f64().unwrap();
    let expected = items[0]["ranking"]["expected"].as_f64().unwrap();
    assert!((expected + sum - raw).abs() < 1e-6, "{expected} + {sum} is not {raw}");
    let gone = world.items.iter().find(|(_, item)| !item.in_stock).unwrap().0;
    let (status, one) = server.post("/v1/explain", &json!({"request": request, "item": gone}));
    assert_eq!((status, &one["items"][0]["lost"]["cause"]), (200, &json!("out_of_stock")), "{one}");
    let (status, body) = server.post("/v1/explain", &json!({"request": request, "item": "none"}));
    assert_eq!((status, &body["error"]["code"]), (404, &json!("unknown_item")));
    let (status, body) = server.post("/v1/explain", &json!({"item": gone}));
    assert_eq!((status, &body["error"]["field"]), (400, &json!("request")));
    drop(server);

    let mut closed = logged.settings();
    closed.push(("server.console", "false"));
    let server = Server::start(world, &closed);
    let (status, body) = server.post("/v1/explain", &json!({"request": request}));
    assert_eq!((status, &body["error"]["code"]), (401, &json!("unauthorised")), "{body}");
}

#[test]
fn a_log_that_explored_says_what_the_bundle_earns_without() {
    let (world, logged) = (world(), Logged::new());
    let (code, text) = world.fails(&[], &["evaluate", "--off-policy", "--logs", &logged.logs()]);
    assert_ne!(code, 0);
    assert!(text.contains("no request log"), "{text}");

    let mut settings = logged.settings();
    settings.extend([("rules.exploration.share", "1.0"), ("rules.exploration.pool", "5")]);
    let mut server = Server::start(world, &settings);
    let requests = 150;
    for at in 0..requests {
        let user = &world.users[at % world.users.len()];
        let answer = server.recommend(json!({"user_id": user, "num_items": PLACES}));
        let items = ids(&answer);
        assert_eq!(items.len(), PLACES);
        // Everybody clicks on what stands first, twice.
        for n in 0..2 {
            let mut click = event(user, &items[0], "click");
            click["event_id"] = json!(format!("click {at} {n}"));
            click["request_id"] = answer["request_id"].clone();
            assert_eq!(server.post("/v1/events", &click).0, 202);
        }
    }
    server.signal("TERM");
    assert!(server.ended());

    let arguments = ["evaluate", "--off-policy", "--logs", &logged.logs(), "--json"];
    let (code, text) = world.fails(&[], &arguments);
    assert_eq!(code, 0, "{text}");
    let report: Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    let number = |name: &str, part: &str| report[name][part].as_f64().unwrap();
    // Chance draws what is explored: within the width of a 95 % interval are four standard errors.
    let holds = |name: &str, value: f64| {
        let width = number(name, "high") - number(name, "low");
        (number(name, "value") - value).abs() <= width + 1e-12
    };
    assert_eq!((&report["answers"], &report["places"]), (&json!(150), &json!(1500)), "{report}");
    assert!((number("logged", "value") - 0.1).abs() < 1e-12, "one click of ten places: {report}");
    // Of 14 choices 9 swap two places and 5 replace one.
    let matching = report["matching"].as_f64().unwrap() / 150.0;
    let expected = PLACES as f64 - (9.0 * 2.0 + 5.0) / 14.0;
    assert!((matching - expected).abs() < 0.2, "{matching} places match, not {expected}");
    assert!(holds("support", 1.0) && holds("ips", 0.1) && holds("doubly_robust", 0.1), "{report}");
}
