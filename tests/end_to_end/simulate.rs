//! Simulated users ask the real server; what they do arrives in the log, and what they like is known.

use serde_json::Value;
use shortlist::events::{event_files, read_events};

use crate::support::{Server, world};

#[test]
fn simulated_users_click_as_often_as_they_truly_would_and_models_beat_chance() {
    let (world, dir) = (world(), tempfile::tempdir().unwrap());
    let logs = format!("\"{}\"", dir.path().display());
    let mut server = Server::start(world, &[("events.dir", &logs)]);
    let url = format!("http://{}", server.address());
    let data = world.data().display().to_string();
    let arguments = ["simulate", "--world", &data, "--url", &url, "--visits", "2", "--json"];
    let (code, text) = world.fails(&[], &arguments);
    assert_eq!(code, 0, "{text}");
    let outcome: Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    let number = |name: &str| outcome[name].as_f64().unwrap();
    assert_eq!(outcome["requests"], 800);
    assert!(
        (number("measured_low")..=number("measured_high")).contains(&number("true_ctr")),
        "{outcome}"
    );
    assert!(number("true_ctr") > 1.15 * number("random_ctr"), "no better than chance: {outcome}");
    assert!(number("true_ctr") < number("oracle_ctr"), "better than the best: {outcome}");
    server.signal("TERM");
    assert!(server.ended());
    let day = chrono::DateTime::from_timestamp_millis(1_768_122_000_000).unwrap().date_naive();
    let files = event_files(dir.path(), &day.to_string()).unwrap();
    let events: Vec<_> = files.iter().flat_map(|path| read_events(path).unwrap()).collect();
    let count = |kind: &str| events.iter().filter(|event| event.event == kind).count() as u64;
    for (kind, name) in
        [("impression", "impressions"), ("click", "clicks"), ("purchase", "purchases")]
    {
        assert_eq!(Some(count(kind)), outcome[name].as_u64(), "{kind}s of the log");
    }
    assert!(events.iter().all(|event| event.request_id.is_some() && event.position.is_some()));
}
