//! What users did is joined to the answers that showed it, and counted by what the answers say.

use serde_json::{Value, json};

use crate::support::{Server, event, ids, world};

#[test]
fn clicks_and_sales_are_reported_by_device_once_each_with_intervals() {
    let (world, dir) = (world(), tempfile::tempdir().unwrap());
    let logs = dir.path().display().to_string();
    let mut server = Server::start(world, &[("events.dir", &format!("\"{logs}\""))]);
    let users = 12;
    for (at, user) in world.users.iter().take(users).enumerate() {
        let device = ["mobile", "desktop"][at % 2];
        let answer = server.recommend(json!({"user_id": user, "num_items": 10, "device": device}));
        let tell = |item: &str, kind: &str, value: Option<f64>| {
            let mut event = event(user, item, kind);
            event["request_id"] = answer["request_id"].clone();
            // What the event says of itself goes behind what the answer says.
            event["device"] = json!("a television");
            if let Some(value) = value {
                event["value"] = json!(value);
            }
            assert_eq!(server.post("/v1/events", &event).0, 202);
        };
        let items = ids(&answer);
        items.iter().for_each(|item| tell(item, "impression", None));
        // Everybody clicks on the first, twice; on mobile every third buys it.
        tell(&items[0], "click", None);
        tell(&items[0], "click", None);
        if at % 6 == 0 {
            tell(&items[0], "purchase", Some(40.0));
        }
    }
    let mut lost = event(
        &world.users[0],
        &ids(&server.recommend(json!({"user_id": "nobody"})))[0],
        "impression",
    );
    lost["request_id"] = json!("an answer of long ago");
    lost["device"] = json!("a television");
    assert_eq!(server.post("/v1/events", &lost).0, 202);
    server.signal("TERM");
    assert!(server.ended());

    let (code, text) = world.fails(&[], &["report", "--logs", &logs, "--json"]);
    assert_eq!(code, 0, "{text}");
    let rows: Value = serde_json::from_str(&text[text.find('[').unwrap()..]).unwrap();
    let row = |dimension: &str, value: &str| -> Value {
        let is = |row: &&Value| row["dimension"] == dimension && row["value"] == value;
        rows.as_array().unwrap().iter().find(is).unwrap_or_else(|| panic!("{text}")).clone()
    };
    let counts = |row: &Value| -> Vec<u64> {
        let names = ["users", "answers", "impressions", "clicks", "orders", "unjoined"];
        names.iter().map(|name| row[name].as_u64().unwrap()).collect()
    };
    assert_eq!(counts(&row("all", "")), [13, 13, 121, 12, 2, 1]);
    assert_eq!(counts(&row("device", "mobile")), [6, 6, 60, 6, 2, 0]);
    assert_eq!(counts(&row("device", "desktop")), [6, 6, 60, 6, 0, 0]);
    assert_eq!(counts(&row("device", "a television")), [1, 0, 1, 0, 0, 1]);
    assert_eq!(counts(&row("device", "not known")), [1, 1, 0, 0, 0, 0]);
    let mobile = row("device", "mobile");
    let number = |name: &str, part: &str| mobile[name][part].as_f64().unwrap();
    // Every user has the same rate, so nothing is uncertain about it; sales differ.
    assert!((number("ctr", "value") - 0.1).abs() < 1e-9 && number("ctr", "low") > 0.0999);
    assert!((number("ecpm", "value") - 1000.0 * 80.0 / 60.0).abs() < 1e-9, "{mobile}");
    assert!(number("ecpm", "low") < number("ecpm", "value"));
    assert!((number("conversion", "value") - 2.0 / 6.0).abs() < 1e-12);
    assert!((number("revenue_per_answer", "value") - 80.0 / 6.0).abs() < 1e-9);
    let version = world.bundle_dir().file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(counts(&row("bundle", &version))[..2], [13, 13]);

    let (_, text) = world.fails(&[], &["report", "--logs", &logs]);
    assert!(text.contains("device mobile") && text.contains("10.00 [10.00, 10.00]"), "{text}");
    let (code, text) = world.fails(&[], &["report", "--logs", "/nowhere"]);
    assert!(code != 0 && text.contains("/nowhere"), "{text}");
}
