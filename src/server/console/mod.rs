//! The page at `/`: one file without anything from elsewhere, and the three lookups it needs.

use std::collections::HashMap;
use std::time::Instant;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::{self, Data, Query};

use super::Shared;
use super::routes::{engine, json, observe, refuse};
use super::wire::{self, Fault};
use crate::monitor::Route;
use crate::pipeline::STAGES;
use crate::types::UserId;

const PAGE: &str = include_str!("index.html");
/// Item pictures may come from anywhere; everything else only from this server.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; img-src 'self' https: http: data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";
/// Suggestions while a user id is typed.
const USERS_MAX: usize = 20;
/// Names of the dictionary of devices, in the order in which a bundle is asked for them.
const DEVICES: [&str; 2] = ["context.device", "events.device"];

/// The page itself.
pub async fn page() -> HttpResponse {
    let response = HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header(("content-security-policy", POLICY))
        .insert_header(("x-content-type-options", "nosniff"))
        .insert_header(("referrer-policy", "no-referrer"))
        .insert_header(("cache-control", "no-cache"))
        .body(PAGE);
    observe(Route::Console, Instant::now(), response)
}

/// Regions, devices and a few users to start with.
pub async fn choices(shared: Data<Shared>) -> HttpResponse {
    answer(shared, |shared| {
        let engine = engine(shared)?;
        let serving = engine.serving();
        let bundle = &serving.bundle;
        let devices = DEVICES.iter().find_map(|name| bundle.dictionaries.get(name));
        let devices = devices.map_or(Vec::new(), |dictionary| {
            (0..dictionary.len() as u32).filter_map(|code| dictionary.value(code)).collect()
        });
        let choices = wire::Choices {
            bundle_version: serving.version(),
            users: bundle.users.ids().len(),
            items: bundle.items.len(),
            sample: engine.sample_users("", USERS_MAX),
            regions: bundle.items.regions(),
            devices,
            stages: STAGES,
            now_ms: engine.now_ms(),
        };
        Ok(choices.body())
    })
    .await
}

/// Users whose id begins with `?prefix=`.
pub async fn users(shared: Data<Shared>, query: Query<HashMap<String, String>>) -> HttpResponse {
    let prefix = query.get("prefix").cloned().unwrap_or_default();
    answer(shared, move |shared| Ok(wire::users(&engine(shared)?.sample_users(&prefix, USERS_MAX))))
        .await
}

/// The last events of `?user_id=`.
pub async fn history(shared: Data<Shared>, query: Query<HashMap<String, String>>) -> HttpResponse {
    let started = Instant::now();
    let lookup = async {
        let missing = || Fault::new(400, "missing_field", "`user_id` is missing: give ?user_id=ID");
        let user = UserId(query.get("user_id").cloned().ok_or_else(missing)?);
        Ok(wire::history(&user, &engine(&shared)?.history(&user).await))
    };
    let response = match lookup.await {
        Ok(body) => json(StatusCode::OK, body),
        Err(fault) => refuse(&fault),
    };
    observe(Route::Console, started, response)
}

/// Runs a lookup off the I/O workers: a search through all users takes milliseconds.
async fn answer(
    shared: Data<Shared>,
    lookup: impl FnOnce(&Shared) -> Result<Vec<u8>, Fault> + Send + 'static,
) -> HttpResponse {
    let started = Instant::now();
    let response = match web::block(move || lookup(&shared)).await {
        Ok(Ok(body)) => json(StatusCode::OK, body),
        Ok(Err(fault)) => refuse(&fault),
        Err(_) => refuse(&Fault::new(500, "internal", "the lookup was cancelled")),
    };
    observe(Route::Console, started, response)
}
