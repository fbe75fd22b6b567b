//! The routes before a bundle is loaded: every refusal, and what a probe sees.

use actix_web::body::MessageBody;
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::header::{ALLOW, CONTENT_TYPE, HeaderMap};
use actix_web::test::{TestRequest, call_service, init_service, read_body};
use serde_json::Value;

use super::*;

fn config() -> Config {
    let sections: toml::Table = include_str!("../../config/default.toml").parse().unwrap();
    sections["server"].clone().try_into().unwrap()
}

/// A process has one recorder, whatever the number of tests.
fn exporter() -> Exporter {
    static EXPORTER: OnceLock<Exporter> = OnceLock::new();
    let config = monitor::Config { latency_buckets_s: vec![0.01, 1.0], upkeep_interval_ms: 1000 };
    EXPORTER.get_or_init(|| monitor::install(&config).unwrap()).clone()
}

fn shared(dir: &std::path::Path, config: Config) -> Arc<Shared> {
    let sections: toml::Table = include_str!("../../config/default.toml").parse().unwrap();
    let log: crate::events::Config = sections["events"].clone().try_into().unwrap();
    let health = Arc::new(Health::new());
    let events = Log::durable(dir, &log, health.clone()).unwrap();
    let requests = Log::start(dir, &log, health.clone()).unwrap();
    let (exporter, source, poll_items_ms) = (exporter(), None, 1000);
    let rollout = sections["rollout"].clone().try_into().unwrap();
    let parts = Parts { events, requests, health, exporter, source, poll_items_ms, rollout };
    let items_token = auth::Token::open(&config.items_token_file).unwrap();
    Arc::new(Shared { config, parts, items_token, engine: OnceLock::new() })
}

/// One request to a server without an engine: status, headers, body as JSON (or as a string).
async fn ask(config: Config, request: TestRequest) -> (u16, HeaderMap, Value) {
    let dir = tempfile::tempdir().unwrap();
    let shared = shared(dir.path(), config);
    let data = web::Data::from(shared);
    let app = App::new().app_data(data.clone());
    let app = init_service(app.configure(|app| routes::all(app, data.config.console))).await;
    answer(&app, request.to_request()).await
}

/// Generic in the request, because its type has no public name here.
async fn answer<R, S, B>(app: &S, request: R) -> (u16, HeaderMap, Value)
where
    S: Service<R, Response = ServiceResponse<B>, Error = actix_web::Error>,
    B: MessageBody,
{
    let response = call_service(app, request).await;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = String::from_utf8(read_body(response).await.to_vec()).unwrap();
    (status, headers, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

fn post(path: &str, body: impl Into<String>) -> TestRequest {
    let json = (CONTENT_TYPE, "application/json; charset=utf-8");
    TestRequest::post().uri(path).insert_header(json).set_payload(body.into())
}

#[actix_web::test]
async fn what_is_wrong_is_said_in_json_before_anything_is_loaded() {
    let path = "/v1/recommendations";
    let form = (CONTENT_TYPE, "application/x-www-form-urlencoded");
    let good = r#"{"user_id": "1"}"#;
    for (request, status, code) in [
        (post(path, "{"), 400, "malformed_json"),
        (post(path, r#"{"user_id": "1", "num_items": 101}"#), 400, "out_of_range"),
        (post(path, "x".repeat(2000)), 413, "body_too_large"),
        (
            TestRequest::post().uri(path).insert_header(form).set_payload(good),
            415,
            "wrong_content_type",
        ),
        (TestRequest::post().uri(path).set_payload(good), 415, "wrong_content_type"),
        (TestRequest::get().uri(path), 405, "method_not_allowed"),
        (TestRequest::delete().uri("/healthz"), 405, "method_not_allowed"),
        (TestRequest::get().uri("/nowhere"), 404, "not_found"),
        (post(path, good), 503, "starting"),
        (post("/v1/events", "{}"), 503, "starting"),
        (TestRequest::get().uri("/v1/console/choices"), 503, "starting"),
    ] {
        let small = Config { body_bytes_max: 1000, ..config() };
        let (found, headers, body) = ask(small, request).await;
        assert_eq!((found, body["error"]["code"].as_str()), (status, Some(code)), "{body}");
        assert_eq!(headers.get(CONTENT_TYPE).unwrap(), "application/json");
        assert_eq!(headers.contains_key("retry-after"), status == 503, "{body}");
        assert_eq!(headers.contains_key(ALLOW), status == 405, "{body}");
    }
}

#[actix_web::test]
async fn a_probe_tells_starting_from_draining_and_alive() {
    let dir = tempfile::tempdir().unwrap();
    let shared = shared(dir.path(), config());
    shared.parts.health.set("redis", false, "does not answer");
    let data = web::Data::from(shared.clone());
    let app = init_service(App::new().app_data(data).configure(|app| routes::all(app, true))).await;
    let get = |path: &str| TestRequest::get().uri(path).to_request();
    let (status, _, body) = answer(&app, get("/readyz")).await;
    let expected = r#"{"ready": false, "phase": "starting", "bundle_version": null,
        "components": [{"name": "redis", "ok": false, "text": "does not answer"}]}"#;
    assert_eq!((status, body), (503, serde_json::from_str(expected).unwrap()));
    assert_eq!(answer(&app, get("/healthz")).await.0, 200);
    shared.parts.health.set_ready();
    assert_eq!(answer(&app, get("/readyz")).await.0, 200, "a Redis that is down closes no door");
    shared.parts.health.set_draining();
    let (status, _, body) = answer(&app, get("/readyz")).await;
    assert_eq!((status, body["phase"].as_str()), (503, Some("draining")));
    let (_, headers, metrics) = answer(&app, get("/metrics")).await;
    assert!(headers.get(CONTENT_TYPE).unwrap().to_str().unwrap().contains("version=0.0.4"));
    let line = "shortlist_http_requests_total{route=\"probe\",status=\"503\"}";
    assert!(metrics.as_str().unwrap().contains(line), "{metrics}");
}

#[actix_web::test]
async fn the_page_needs_nothing_from_elsewhere_and_can_be_turned_off() {
    let (status, headers, page) = ask(config(), TestRequest::get().uri("/")).await;
    assert_eq!(status, 200);
    let policy = headers.get("content-security-policy").unwrap().to_str().unwrap();
    assert!(policy.contains("default-src 'none'"), "{policy}");
    let page = page.as_str().unwrap();
    for outside in ["<script src", "<link rel=\"stylesheet\"", "@import", "//cdn"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let closed = Config { console: false, ..config() };
    assert_eq!(ask(closed.clone(), TestRequest::get().uri("/")).await.0, 404);
    let history = TestRequest::get().uri("/v1/console/history?user_id=1");
    assert_eq!(ask(closed, history).await.0, 404);
}

/// Makes a good configuration a bad one.
type Spoil = fn(&mut Config);

#[test]
fn the_defaults_pass_and_what_contradicts_them_is_named() {
    config().check().unwrap();
    let cases: [(&str, Spoil); 3] = [
        ("server.body_bytes_max = 0", |c| c.body_bytes_max = 0),
        ("server.shown_kind names `seen`", |c| c.shown_kind = "seen".into()),
        ("server.history_kinds names `x`", |c| c.history_kinds.push("x".into())),
    ];
    for (expected, spoil) in cases {
        let mut broken = config();
        spoil(&mut broken);
        let error = broken.check().unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[actix_web::test]
async fn items_change_for_the_bearer_of_the_token_only() {
    let dir = tempfile::tempdir().unwrap();
    let items_token_file = dir.path().join("token");
    std::fs::write(&items_token_file, "a token of some length").unwrap();
    let open = || Config { items_token_file: items_token_file.clone(), ..config() };
    let shown = |token: &str| ("authorization", format!("Bearer {token}"));
    let good = || shown("a token of some length");
    let item = r#"{"item_id": "1"}"#;
    for (config, request, status, code) in [
        (config(), post("/v1/items", item).insert_header(good()), 403, "items_closed"),
        (open(), post("/v1/items", item), 401, "unauthorised"),
        (open(), post("/v1/items", item).insert_header(shown("another")), 401, "unauthorised"),
        (open(), TestRequest::delete().uri("/v1/items/1"), 401, "unauthorised"),
        (open(), post("/v1/items", "[]").insert_header(good()), 400, "out_of_range"),
        (open(), post("/v1/items", item).insert_header(good()), 503, "starting"),
        (open(), post("/v1/items/1", item).insert_header(good()), 405, "method_not_allowed"),
    ] {
        let (found, _, body) = ask(config, request).await;
        assert_eq!((found, body["error"]["code"].as_str()), (status, Some(code)), "{body}");
    }
}
