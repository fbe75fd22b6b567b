//! What each path does. Every answer but the page and the metrics is JSON, every refusal too.

use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use actix_web::web::{self, Bytes, Data, Payload, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};

use super::wire::{self, Ask, EventLimits, Fault};
use super::{Shared, console, items, outcomes};
use crate::events::{EventRecord, Refused, RequestRecord, Taken};
use crate::executor::Rejected;
use crate::monitor::{self, Phase, Route};
use crate::pipeline::explain::Error as Unexplained;
use crate::pipeline::{self, Answer, Credit, Engine, Outcome, Request};
use crate::store::List;
use crate::types::{DAY_MS, UserId};

/// When a caller that came before the bundle was loaded should come again.
const STARTING_RETRY_MS: u64 = 1000;

/// Registers every path.
pub fn all(app: &mut ServiceConfig, with_console: bool) {
    app.service(post("/v1/recommendations", web::post().to(recommendations)))
        .service(post("/v1/explain", web::post().to(explain)))
        .service(post("/v1/events", web::post().to(events)))
        .service(post("/v1/items", web::post().to(items::upsert)))
        .service(item("/v1/items/{id}"))
        .service(get("/v1/drift", drift))
        .service(get("/healthz", healthz))
        .service(get("/readyz", readyz))
        .service(get("/metrics", metrics));
    if with_console {
        app.service(get("/", console::page))
            .service(get("/v1/console/choices", console::choices))
            .service(get("/v1/console/users", console::users))
            .service(get("/v1/console/history", console::history));
    }
    app.default_service(web::to(not_found));
}

fn post(path: &str, route: actix_web::Route) -> actix_web::Resource {
    let refuse = |http: HttpRequest| async move { wrong_method(&http, "POST") };
    web::resource(path).route(route).default_service(web::to(refuse))
}

fn item(path: &str) -> actix_web::Resource {
    let refuse = |http: HttpRequest| async move { wrong_method(&http, "PATCH, DELETE") };
    web::resource(path)
        .route(web::patch().to(items::patch))
        .route(web::delete().to(items::delete))
        .default_service(web::to(refuse))
}

fn get<F, A>(path: &str, handler: F) -> actix_web::Resource
where
    F: actix_web::Handler<A, Output = HttpResponse> + Clone,
    A: actix_web::FromRequest + 'static,
{
    let refuse = |http: HttpRequest| async move { wrong_method(&http, "GET, HEAD") };
    web::resource(path)
        .route(web::get().to(handler.clone()))
        .route(web::head().to(handler))
        .default_service(web::to(refuse))
}

async fn recommendations(http: HttpRequest, body: Payload, shared: Data<Shared>) -> HttpResponse {
    let started = Instant::now();
    let response = match recommend(&http, body, &shared).await {
        Ok(body) => json(StatusCode::OK, body),
        Err(fault) => refuse(&fault),
    };
    observe(Route::Recommendations, started, response)
}

async fn recommend(http: &HttpRequest, body: Payload, shared: &Shared) -> Result<Vec<u8>, Fault> {
    // An overloaded server says no before it reads, parses or asks Redis anything.
    if let Some(engine) = shared.engine.get() {
        engine.admits().map_err(refused)?;
    }
    let ask = wire::ask(&read(http, body, shared).await?)?;
    let engine = engine(shared)?;
    let timings = ask.timings;
    if !ask.arms.is_nothing() && !shared.parts.rollout.allow_override {
        return Err(wire::arm_is_not_chosen());
    }
    let time_ms = engine.now_ms();
    let row = request_row(&ask, time_ms);
    let request = question(ask, time_ms);
    let mut answer = engine.recommend(request).await.map_err(refused)?;
    let (footprint, row) = (answer.footprint.take(), answered(row, &answer));
    match footprint {
        None => shared.parts.requests.offer(vec![row]),
        Some(left) => shared
            .parts
            .requests
            .offer_later(move || RequestRecord { served: Some(Box::new(left.served())), ..row }),
    }
    Ok(wire::answer(&answer, timings))
}

fn question(ask: Ask, time_ms: i64) -> Request {
    Request {
        request_id: uuid::Uuid::now_v7().to_string(),
        user_id: ask.user_id,
        num_items: ask.num_items,
        device: ask.device,
        region: ask.region,
        location: ask.location,
        context: ask.context,
        history: ask.history,
        time_ms,
        arms: ask.arms,
    }
}

/// Why an item is where it is: for whom the console is open, or who shows the items' token.
async fn explain(http: HttpRequest, body: Payload, shared: Data<Shared>) -> HttpResponse {
    let started = Instant::now();
    let explained = async {
        if !shared.config.console {
            items::authorise(&http, &shared)?;
        }
        let (ask, item) = wire::explain(&read(&http, body, &shared).await?)?;
        let engine = engine(&shared)?;
        let explained = engine.explain(question(ask, engine.now_ms()), item).await;
        let explained = explained.map_err(|error| match &error {
            Unexplained::Busy => {
                Fault::new(429, "overloaded", error.to_string()).retry_after(STARTING_RETRY_MS)
            }
            Unexplained::Unknown(_) => Fault::new(404, "unknown_item", error.to_string()),
            Unexplained::Stopped(_) => Fault::new(500, "internal", error.to_string()),
        })?;
        Ok(wire::explanation(&explained))
    };
    let response = match explained.await {
        Ok(body) => json(StatusCode::OK, body),
        Err(fault) => refuse(&fault),
    };
    observe(Route::Explain, started, response)
}

/// The half of the request log's row that the question gives.
fn request_row(ask: &Ask, time_ms: i64) -> RequestRecord {
    RequestRecord {
        time_ms,
        user_id: ask.user_id.0.clone(),
        device: ask.device.clone(),
        region: ask.region.clone(),
        num_items: ask.num_items as i32,
        ..RequestRecord::default()
    }
}

/// The half that the answer gives.
fn answered(row: RequestRecord, answer: &Answer) -> RequestRecord {
    let us = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    RequestRecord {
        request_id: answer.request_id.clone(),
        bundle_version: answer.bundle_version.clone(),
        variant: answer.variant.clone(),
        item_ids: answer.items.iter().map(|item| item.item_id.clone()).collect(),
        scores: answer.items.iter().map(|item| item.score).collect(),
        degraded: answer.degraded.clone(),
        stage_us: answer.timings.stages.map(us),
        total_us: us(answer.timings.total),
        ..row
    }
}

fn refused(error: pipeline::Error) -> Fault {
    match error {
        pipeline::Error::Rejected(rejected) => {
            let (status, code) = match rejected {
                Rejected::QueueFull { .. } => (429, "overloaded"),
                Rejected::Deadline { .. } => (503, "deadline"),
                Rejected::Stopped => (503, "stopping"),
                Rejected::Panicked => (500, "internal"),
            };
            let fault = Fault::new(status, code, rejected.to_string());
            match rejected.retry_after_ms() {
                Some(ms) => fault.retry_after(ms),
                None => fault,
            }
        }
    }
}

async fn events(http: HttpRequest, body: Payload, shared: Data<Shared>) -> HttpResponse {
    let started = Instant::now();
    let response = match take_events(&http, body, &shared).await {
        Ok(taken) => json(StatusCode::ACCEPTED, wire::accepted(&taken)),
        Err(fault) => refuse(&fault),
    };
    observe(Route::Events, started, response)
}

async fn take_events(http: &HttpRequest, body: Payload, shared: &Shared) -> Result<Taken, Fault> {
    let body = read(http, body, shared).await?;
    let engine = engine(shared)?;
    let config = &shared.config;
    let mut events = wire::events(
        &body,
        EventLimits {
            count_max: config.events_max,
            kinds: &config.event_kinds,
            now_ms: engine.now_ms(),
            age_max_ms: i64::from(config.event_age_max_days) * DAY_MS,
            ahead_max_ms: i64::from(config.event_ahead_max_s) * 1000,
        },
    )?;
    let credits: Vec<Option<Credit>> = events.iter().map(|event| credit(engine, event)).collect();
    for (event, credit) in events.iter_mut().zip(&credits) {
        if let Some(credit) = credit {
            event.variant = event.variant.take().or_else(|| credit.variant.clone());
            event.bundle_version =
                event.bundle_version.take().or_else(|| credit.bundle_version.clone());
        }
    }
    // The log comes first: what it refuses has not happened for the live state either.
    let rows = events.clone();
    let taken = shared.parts.events.append(rows).await.map_err(|refused| match refused {
        Refused::Full { .. } | Refused::Journal => {
            Fault::new(503, "overloaded", refused.to_string()).retry_after(STARTING_RETRY_MS)
        }
        Refused::Stopped => Fault::new(503, "stopping", refused.to_string()),
    })?;
    // One that was sent before has had its effect.
    let mut at = 0..;
    let known = |at: Option<usize>| at.is_some_and(|at| taken.known.binary_search(&at).is_ok());
    let new: Vec<bool> = events.iter().map(|_| !known(at.next())).collect();
    for ((event, credit), _) in events.iter().zip(&credits).zip(&new).filter(|(_, new)| **new) {
        let Some(outcome) = outcome(shared, event) else { continue };
        outcomes::count(engine, event, outcome);
        if let Some(credit) = credit {
            credit.count(outcome);
        }
    }
    let mut new = new.into_iter();
    events.retain(|_| new.next().unwrap_or(false));
    let list = |event: &EventRecord| list(config, &event.event);
    for run in events.chunk_by(|a, b| a.user_id == b.user_id && list(a) == list(b)) {
        if let Some(list) = list(&run[0]) {
            let items = run.iter().map(|event| (event.item_id.as_str(), event.time_ms));
            engine.users().extend(&UserId(run[0].user_id.clone()), list, items);
        }
    }
    Ok(taken)
}

/// The trials whose answer showed the item.
fn credit(engine: &Engine, event: &EventRecord) -> Option<Credit> {
    engine.credit(event.request_id.as_deref()?, &event.user_id)
}

/// What an event means for a trial.
fn outcome(shared: &Shared, event: &EventRecord) -> Option<Outcome> {
    let (config, rollout) = (&shared.config, &shared.parts.rollout);
    if event.event == config.shown_kind {
        Some(Outcome::Impression)
    } else if rollout.click_kinds.contains(&event.event) {
        Some(Outcome::Click)
    } else if rollout.value_kinds.contains(&event.event) {
        event.value.map(Outcome::Value)
    } else {
        None
    }
}

/// Which of a user's lists an event of this kind extends, for the user's next request to read.
fn list(config: &super::Config, kind: &String) -> Option<List> {
    if *kind == config.shown_kind {
        Some(List::Shown)
    } else {
        config.history_kinds.contains(kind).then_some(List::History)
    }
}

async fn healthz() -> HttpResponse {
    observe(Route::Probe, Instant::now(), json(StatusCode::OK, wire::alive()))
}

async fn readyz(shared: Data<Shared>) -> HttpResponse {
    let health = &shared.parts.health;
    let (status, phase) = match health.phase() {
        Phase::Ready => (StatusCode::OK, "ready"),
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    let serving = shared.engine.get().map(Engine::serving);
    let version = serving.as_ref().map(|serving| serving.version());
    let body = wire::readiness(phase, version, &health.components());
    observe(Route::Probe, Instant::now(), json(status, body))
}

/// How far what the ranker sees is from its training.
async fn drift(shared: Data<Shared>) -> HttpResponse {
    let started = Instant::now();
    let response = match engine(&shared) {
        Ok(engine) => json(StatusCode::OK, wire::drift(&engine.drift())),
        Err(fault) => refuse(&fault),
    };
    observe(Route::Drift, started, response)
}

async fn metrics(shared: Data<Shared>) -> HttpResponse {
    let started = Instant::now();
    let text = shared.parts.exporter.render();
    let response = HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"))
        .body(text);
    observe(Route::Metrics, started, response)
}

async fn not_found(http: HttpRequest) -> HttpResponse {
    let message = format!(
        "no such path `{}`: POST /v1/recommendations, /v1/explain, /v1/events, /v1/items, GET /v1/drift, /healthz, /readyz, \
         /metrics",
        http.path()
    );
    let fault = Fault::new(404, "not_found", message);
    observe(Route::Other, Instant::now(), refuse(&fault))
}

fn wrong_method(http: &HttpRequest, allowed: &'static str) -> HttpResponse {
    let message = format!("{} on {}: use {allowed}", http.method(), http.path());
    let mut response = refuse(&Fault::new(405, "method_not_allowed", message));
    let allowed = actix_web::http::header::HeaderValue::from_static(allowed);
    response.headers_mut().insert(ALLOW, allowed);
    observe(Route::Other, Instant::now(), response)
}

/// The engine, once it stands.
pub fn engine(shared: &Shared) -> Result<&Engine, Fault> {
    shared.engine.get().ok_or_else(|| {
        Fault::new(503, "starting", "the bundle is being loaded, see /readyz")
            .retry_after(STARTING_RETRY_MS)
    })
}

/// The answer of a fault.
pub fn refuse(fault: &Fault) -> HttpResponse {
    let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    if let Some(ms) = fault.retry_after_ms {
        response.insert_header((RETRY_AFTER, ms.div_ceil(1000).max(1)));
    }
    response.content_type("application/json").body(fault.body())
}

/// A JSON answer.
pub fn json(status: StatusCode, body: Vec<u8>) -> HttpResponse {
    HttpResponse::build(status).content_type("application/json").body(body)
}

/// Counts an answer on its way out.
pub fn observe(route: Route, started: Instant, response: HttpResponse) -> HttpResponse {
    monitor::request(route, response.status().as_u16(), started.elapsed());
    response
}

/// The body, bounded in size and time.
pub async fn read(http: &HttpRequest, body: Payload, shared: &Shared) -> Result<Bytes, Fault> {
    let found = http.headers().get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    let essence = found.unwrap_or("").split(';').next().unwrap_or("").trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = match found {
            Some(found) => format!("content type `{found}`: send `application/json`"),
            None => "no content type: send `application/json`".to_owned(),
        };
        return Err(Fault::new(415, "wrong_content_type", message));
    }
    let (max, wait_ms) = (shared.config.body_bytes_max, shared.config.body_timeout_ms);
    let reading = body.to_bytes_limited(max);
    match tokio::time::timeout(Duration::from_millis(wait_ms), reading).await {
        Ok(Ok(Ok(bytes))) => Ok(bytes),
        Ok(Ok(Err(error))) => {
            Err(Fault::new(400, "broken_body", format!("the body could not be read: {error}")))
        }
        Ok(Err(_)) => Err(Fault::new(
            413,
            "body_too_large",
            format!("the body has more than {max} bytes: send less"),
        )),
        Err(_) => Err(Fault::new(
            408,
            "body_timeout",
            format!("the body did not arrive within {wait_ms} ms: send it at once"),
        )),
    }
}
