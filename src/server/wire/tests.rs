//! Each way to be wrong has its code, its field and a message that says the fix.

use super::*;
use crate::monitor::Source;
use crate::pipeline::{AnswerItem, Reason, Timings};

const NOW_MS: i64 = 1_767_225_600_000; // 2026-01-01

fn limits(kinds: &[String]) -> EventLimits<'_> {
    let (age_max_ms, ahead_max_ms) = (86_400_000, 60_000);
    EventLimits { count_max: 3, kinds, now_ms: NOW_MS, age_max_ms, ahead_max_ms }
}

fn read_events(body: &str) -> Result<Vec<EventRecord>, Fault> {
    events(body.as_bytes(), limits(&["click".to_owned(), "impression".to_owned()]))
}

/// Asserts code, field, and that the message holds `part`.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Fault>, code: &str, field: &str, part: &str) {
    let fault = result.unwrap_err();
    assert_eq!((fault.status, fault.code), (400, code), "{fault:?}");
    assert_eq!(fault.field.as_deref().unwrap_or(""), field, "{fault:?}");
    assert!(fault.message.contains(part), "{}", fault.message);
}

#[test]
fn a_short_request_gets_the_defaults() {
    let ask = ask(br#"{"user_id": "7"}"#).unwrap();
    assert_eq!((ask.user_id.0.as_str(), ask.num_items, ask.timings), ("7", 20, false));
    assert_eq!((ask.history, ask.context.len()), (None, 0));
}

#[test]
fn every_field_is_read() {
    let body = r#"{"user_id": "7", "num_items": 100, "device": "web", "region": "north",
        "location": {"latitude": 52.5, "longitude": 13.4}, "context": {"b": "2", "a": "1"},
        "history": ["x", "y"], "timings": true}"#;
    let ask = ask(body.as_bytes()).unwrap();
    assert_eq!(ask.num_items, 100);
    assert_eq!(ask.location.unwrap().point, Some([52.5, 13.4]));
    assert_eq!(ask.context, [("a".into(), "1".into()), ("b".into(), "2".into())]);
    assert_eq!(ask.history.unwrap(), [ItemId("x".into()), ItemId("y".into())]);
    assert!(ask.timings);
}

#[test]
fn what_is_wrong_is_named() {
    let long = format!(r#"{{"user_id": "{}"}}"#, "x".repeat(257));
    let history = format!(r#"{{"user_id": "1", "history": [{}]}}"#, vec!["\"i\""; 1001].join(","));
    for (body, code, field, part) in [
        ("", "malformed_json", "", "the body is empty"),
        (r#"{"user_id": "1""#, "malformed_json", "", "line 1 column 15"),
        ("{\n  \"user_id\": oops}", "malformed_json", "", "line 2 column 14"),
        (r#"{"user_id": "1"} x"#, "malformed_json", "", "trailing characters"),
        ("[]", "wrong_type", "", "send a JSON object"),
        ("{}", "missing_field", "user_id", "`user_id` is missing"),
        (r#"{"user_id": null}"#, "missing_field", "user_id", "is missing"),
        (r#"{"user_id": ""}"#, "out_of_range", "user_id", "`user_id` is empty"),
        (r#"{"user_id": 42}"#, "wrong_type", "user_id", "the number 42: give a string"),
        (&long, "too_long", "user_id", "257 bytes: give at most 256"),
        (r#"{"user_id": "1", "num_items": 0}"#, "out_of_range", "num_items", "is 0: give 1 to 100"),
        (
            r#"{"user_id": "1", "num_items": 101}"#,
            "out_of_range",
            "num_items",
            "is 101: give 1 to 100",
        ),
        (r#"{"user_id": "1", "num_items": -3}"#, "out_of_range", "num_items", "is -3"),
        (
            r#"{"user_id": "1", "num_items": 99999999999999999999}"#,
            "wrong_type",
            "num_items",
            "whole",
        ),
        (
            r#"{"user_id": "1", "num_items": 18446744073709551615}"#,
            "out_of_range",
            "num_items",
            "1 to 100",
        ),
        (r#"{"user_id": "1", "num_items": 2.5}"#, "wrong_type", "num_items", "a whole number"),
        (r#"{"user_id": "1", "num_items": "20"}"#, "wrong_type", "num_items", "the string \"20\""),
        (
            r#"{"user_id": "1", "nun_items": 3}"#,
            "unknown_field",
            "nun_items",
            "known are user_id, num_items",
        ),
        (r#"{"user_id": "1", "history": "a"}"#, "wrong_type", "history", "an array of strings"),
        (r#"{"user_id": "1", "history": ["a", 3]}"#, "wrong_type", "history[1]", "the number 3"),
        (&history, "too_long", "history", "1001 entries: give at most 1000"),
        (r#"{"user_id": "1", "context": {"a": 1}}"#, "wrong_type", "context.a", "a string"),
        (r#"{"user_id": "1", "context": []}"#, "wrong_type", "context", "give an object"),
        (r#"{"user_id": "1", "timings": 1}"#, "wrong_type", "timings", "true or false"),
        (
            r#"{"user_id": "1", "location": {}}"#,
            "missing_field",
            "location.country",
            "or `latitude`",
        ),
        (
            r#"{"user_id": "1", "location": {"latitude": 1}}"#,
            "missing_field",
            "location.longitude",
            "",
        ),
        (
            r#"{"user_id": "1", "location": {"latitude": 91, "longitude": 0}}"#,
            "out_of_range",
            "location.latitude",
            "-90 to 90",
        ),
    ] {
        refused(ask(body.as_bytes()), code, field, part);
    }
}

#[test]
fn bytes_that_are_not_utf8_and_deep_nesting_are_malformed() {
    refused(ask(b"{\"user_id\": \"\xff\"}"), "malformed_json", "", "line 1");
    refused(ask("[".repeat(100_000).as_bytes()), "malformed_json", "", "recursion limit");
}

#[test]
fn an_event_gets_an_id_and_a_time_when_it_has_none() {
    let one = r#"{"user_id": "u", "item_id": "i", "event": "click"}"#;
    let event = &read_events(one).unwrap()[0];
    assert_eq!((event.time_ms, event.event_id.len()), (NOW_MS, 36));
    let two = format!(
        r#"[{one}, {{"user_id": "u", "item_id": "j", "event": "impression", "event_id": "e",
        "timestamp": "2025-12-31T23:00:00Z", "position": 2, "value": 1.5, "request_id": "r"}}]"#
    );
    let events = read_events(&two).unwrap();
    assert_eq!(events[1].time_ms, NOW_MS - 3_600_000);
    assert_eq!((events[1].position, events[1].value), (Some(2), Some(1.5)));
    assert_eq!(events[1].event_id, "e");
}

#[test]
fn a_wrong_event_is_named_by_its_place_and_none_is_taken() {
    let good = r#"{"user_id": "u", "item_id": "i", "event": "click"}"#;
    for (bad, code, field, part) in [
        (r#"{"user_id": "u", "event": "click"}"#, "missing_field", "[1].item_id", "is missing"),
        (
            r#"{"user_id": "u", "item_id": "i", "event": "clik"}"#,
            "out_of_range",
            "[1].event",
            "send one of click, impression",
        ),
        ("7", "wrong_type", "[1]", "give an object"),
        (
            r#"{"user_id": "u", "item_id": "i", "event": "click", "timestamp": "yesterday"}"#,
            "wrong_type",
            "[1].timestamp",
            "epoch milliseconds",
        ),
        (
            r#"{"user_id": "u", "item_id": "i", "event": "click", "timestamp": 1767225660001}"#,
            "out_of_range",
            "[1].timestamp",
            "2026-01-01T00:01:00",
        ),
        (
            r#"{"user_id": "u", "item_id": "i", "event": "click", "position": 0}"#,
            "out_of_range",
            "[1].position",
            "is 0",
        ),
        (
            r#"{"user_id": "u", "item_id": "i", "event": "click", "color": 0}"#,
            "unknown_field",
            "[1].color",
            "known are event_id",
        ),
    ] {
        refused(read_events(&format!("[{good}, {bad}]")), code, field, part);
    }
    refused(read_events("[]"), "out_of_range", "", "at least one");
    let four = format!("[{}]", [good; 4].join(","));
    refused(read_events(&four), "out_of_range", "", "4 events in one body: send at most 3");
}

#[test]
fn items_are_read_field_by_field_and_a_wrong_one_is_named() {
    use crate::bundle::{Attribute, Change, Patch, Upsert};
    use crate::store::items::ItemRecord;

    let body = r#"{"item_id": "i", "title": "Ale", "category": "beer", "price": 2.5,
        "created_at": "2026-01-01T00:00:00Z", "in_stock": false, "regions": ["north"],
        "labels": ["alcohol"], "image_url": "https://a/b.jpg",
        "attributes": {"brand": "b", "rating": 4.5, "vegan": true}}"#;
    let record = ItemRecord {
        id: "i".into(),
        title: Some("Ale".into()),
        category: Some("beer".into()),
        price: Some(2.5),
        created_ms: Some(NOW_MS),
        in_stock: false,
        regions: vec!["north".into()],
        labels: vec!["alcohol".into()],
        image_url: Some("https://a/b.jpg".into()),
    };
    let attributes = [
        ("brand".to_owned(), Attribute::Text("b".into())),
        ("rating".to_owned(), Attribute::Number(4.5)),
        ("vegan".to_owned(), Attribute::Number(1.0)),
    ];
    let wanted = Change::Upsert(Upsert { record, attributes: attributes.into() });
    assert_eq!(items(body.as_bytes(), 1).unwrap(), [wanted]);
    let short = items(br#"{"item_id": "i"}"#, 1).unwrap();
    let record = ItemRecord { id: "i".into(), in_stock: true, ..ItemRecord::default() };
    assert_eq!(short, [Change::Upsert(Upsert { record, ..Upsert::default() })]);
    let read = |body: &str| items(body.as_bytes(), 2);
    let wrong = |fields: &str| read(&format!("[{{\"item_id\": \"i\", {fields}}}]"));
    refused(wrong("\"price\": -1"), "out_of_range", "[0].price", "is -1");
    refused(wrong("\"stock\": 1"), "unknown_field", "[0].stock", "in_stock");
    refused(wrong("\"created_at\": \"soon\""), "wrong_type", "[0].created_at", "soon");
    refused(wrong("\"attributes\": {\"a\": []}"), "wrong_type", "[0].attributes.a", "an array");
    refused(read("{}"), "missing_field", "item_id", "give a string");
    refused(read("[]"), "out_of_range", "", "at least one");
    refused(read("[1, 2, 3]"), "out_of_range", "", "at most 2");

    let patch = item_patch("i".into(), br#"{"labels": [], "price": 1}"#).unwrap();
    let wanted =
        Patch { id: "i".into(), price: Some(1.0), labels: Some(Vec::new()), ..Patch::default() };
    assert_eq!(patch, wanted);
    refused(item_patch("i".into(), b"{}"), "missing_field", "", "nothing to change");
    refused(item_patch("i".into(), br#"{"title": "x"}"#), "unknown_field", "title", "in_stock");
}

#[test]
fn an_answer_has_the_documented_shape() {
    let mut full = Answer {
        request_id: "r".into(),
        bundle_version: "b".into(),
        variant: "v".into(),
        items: vec![AnswerItem {
            item_id: "i".into(),
            title: Some("Ale".into()),
            category: None,
            price: Some(2.49),
            thumbnail: None,
            score: 0.25,
            source: Source::Ann,
        }],
        degraded: vec!["ranking"],
        reasons: vec![Reason { code: "few_eligible_items", count: 1, text: "one".into() }],
        timings: Timings::default(),
        footprint: None,
    };
    full.timings.stages[3] = std::time::Duration::from_micros(70);
    full.timings.total = std::time::Duration::from_micros(100);
    let value: Value = serde_json::from_slice(&answer(&full, true)).unwrap();
    let expected = r#"{"request_id": "r", "bundle_version": "b", "variant": "v",
        "items": [{"item_id": "i", "title": "Ale", "category": null, "price": 2.49,
            "thumbnail": null, "score": 0.25, "source": "ann"}],
        "degraded": ["ranking"],
        "reasons": [{"code": "few_eligible_items", "count": 1, "text": "one"}],
        "timings_us": {"s1_user_embedding": 0, "s2_candidates": 0, "s3_features": 0,
            "s4_ranking": 70, "s5_rules": 0, "s6_response": 0, "total": 100}}"#;
    assert_eq!(value, serde_json::from_str::<Value>(expected).unwrap());
    full.reasons.clear();
    let short: Value = serde_json::from_slice(&answer(&full, false)).unwrap();
    assert!(short.get("reasons").is_none() && short.get("timings_us").is_none());
}

#[test]
fn a_fault_is_json_with_code_message_and_field() {
    let fault = Fault::at("num_items", "out_of_range", "no").retry_after(5);
    let value: Value = serde_json::from_slice(&fault.body()).unwrap();
    let expected = r#"{"error": {"code": "out_of_range", "message": "no", "field": "num_items",
        "retry_after_ms": 5}}"#;
    assert_eq!(value, serde_json::from_str::<Value>(expected).unwrap());
}
