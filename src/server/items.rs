//! Changes of items: `POST /v1/items`, `PATCH` and `DELETE /v1/items/{id}`, for the bearer of the
//! token; and the task that follows what other replicas took.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};

use super::routes::{engine, json, observe, read, refuse};
use super::wire::{self, Fault};
use super::{Shared, auth};
use crate::bundle::{Change, Refused};
use crate::monitor::Route;
use crate::pipeline::ItemsError;

/// When a caller should try a change again that came at a bad moment.
const RETRY_MS: u64 = 1000;

/// Upserts one item or several.
pub async fn upsert(http: HttpRequest, body: Payload, shared: Data<Shared>) -> HttpResponse {
    let started = Instant::now();
    let taken = async {
        authorise(&http, &shared)?;
        let body = read(&http, body, &shared).await?;
        change(&shared, wire::items(&body, shared.config.items_max)?).await
    };
    answer(started, taken.await)
}

/// Changes some fields of an item.
pub async fn patch(
    http: HttpRequest,
    id: Path<String>,
    body: Payload,
    shared: Data<Shared>,
) -> HttpResponse {
    let started = Instant::now();
    let taken = async {
        authorise(&http, &shared)?;
        let body = read(&http, body, &shared).await?;
        let patch = wire::item_patch(id.into_inner(), &body)?;
        change(&shared, vec![Change::Patch(patch)]).await
    };
    answer(started, taken.await)
}

/// Deletes an item.
pub async fn delete(http: HttpRequest, id: Path<String>, shared: Data<Shared>) -> HttpResponse {
    let started = Instant::now();
    let taken = async {
        authorise(&http, &shared)?;
        change(&shared, vec![Change::Delete { id: id.into_inner() }]).await
    };
    answer(started, taken.await)
}

/// Applies what other replicas took, for as long as the server runs.
pub async fn follow(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(shared.parts.poll_items_ms));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(engine) = shared.engine.get() else { continue };
        match engine.follow_items().await {
            Ok(_) => shared.parts.health.set("items", true, "the change log is followed"),
            Err(error) => {
                tracing::error!("changes of items are not followed: {error}");
                shared.parts.health.set("items", false, error.to_string());
            }
        }
    }
}

/// Whether the request shows the items' token.
pub fn authorise(http: &HttpRequest, shared: &Shared) -> Result<(), Fault> {
    match &shared.items_token {
        None => Err(Fault::new(
            403,
            "items_closed",
            "items cannot be changed here: set server.items_token_file",
        )),
        Some(token) if !auth::Token::is_shown_by(token, http) => Err(Fault::new(
            401,
            "unauthorised",
            "show the token of server.items_token_file as `Authorization: Bearer ...`",
        )),
        Some(_) => Ok(()),
    }
}

async fn change(shared: &Shared, changes: Vec<Change>) -> Result<(usize, u64), Fault> {
    let count = changes.len();
    let taken = engine(shared)?.change_items(changes).await;
    taken.map(|sequence| (count, sequence)).map_err(fault)
}

fn answer(started: Instant, taken: Result<(usize, u64), Fault>) -> HttpResponse {
    let response = match taken {
        Ok((count, sequence)) => json(StatusCode::OK, wire::items_taken(count, sequence)),
        Err(fault) => refuse(&fault),
    };
    observe(Route::Items, started, response)
}

fn fault(error: ItemsError) -> Fault {
    let text = error.to_string();
    match error {
        ItemsError::Refused(refused) => match refused {
            Refused::Unknown { .. } => Fault::new(404, "unknown_item", text),
            Refused::Region { at, .. } => Fault::new(400, "out_of_range", text).in_item(at),
            Refused::Field { at, .. } => Fault::new(400, "unknown_field", text).in_item(at),
            Refused::Type { at, .. } => Fault::new(400, "wrong_type", text).in_item(at),
            Refused::LiveRows { .. } | Refused::Changed { .. } => Fault::new(507, "full", text),
        },
        ItemsError::Contended => Fault::new(503, "overloaded", text).retry_after(RETRY_MS),
        ItemsError::Log(_) => {
            tracing::error!("changes of items are not taken: {text}");
            Fault::new(503, "change_log_down", text).retry_after(RETRY_MS)
        }
        ItemsError::Stopped(_) => {
            tracing::error!("changes of items: {text}");
            Fault::new(500, "internal", "the changes were not applied; see the log")
        }
    }
}
