//! HTTP: listen and drain, routes, wire format, console page.
//!
//! The door opens before the bundle is loaded, so that probes can tell `starting` from `dead`;
//! until the engine stands, everything but the probes is answered with 503. On SIGTERM the order
//! is: `readyz` turns to 503, the load balancer gets `drain_ms` to look elsewhere, requests in
//! flight finish, the logs are written. Workers do I/O only; CPU work runs in the executor.
//!
//! Only [`wire`] knows JSON; nothing below this module knows HTTP.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::rt::signal::unix::{Signal, SignalKind, signal};
use actix_web::rt::task::spawn_blocking;
use actix_web::{App, HttpServer, rt, web};
use serde::Deserialize;

use crate::events::{EventRecord, Log, RequestRecord};
use crate::executor::Threads;
use crate::monitor::{self, Exporter, Health};
use crate::pipeline::{Engine, RolloutConfig};

mod auth;
mod console;
mod follow;
mod items;
mod outcomes;
mod routes;
pub mod wire;

pub use follow::Source;

/// Section `[server]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address to listen on.
    pub bind: IpAddr,
    /// Port; 0 lets the system choose, and the line on stdout tells which.
    pub port: u16,
    /// Threads for I/O.
    pub workers: Threads,
    /// Connections that the system queues before they are accepted.
    pub backlog: u32,
    /// Connections a worker.
    pub connections_max: usize,
    /// An idle connection is closed after this.
    pub keep_alive_ms: u64,
    /// A client has this long to send the head of a request ...
    pub head_timeout_ms: u64,
    /// ... and this long for its body.
    pub body_timeout_ms: u64,
    /// Size of a body.
    pub body_bytes_max: usize,
    /// Events in one body.
    pub events_max: usize,
    /// Kinds of events that are taken.
    pub event_kinds: Vec<String>,
    /// The kinds that become part of a user's history.
    pub history_kinds: Vec<String>,
    /// The kind that says that an item was seen: it is not recommended again for a while.
    pub shown_kind: String,
    /// An event may be this old, days ...
    pub event_age_max_days: u32,
    /// ... or this far ahead, seconds, for clocks that differ.
    pub event_ahead_max_s: u32,
    /// File with the token that lets its bearer change items; empty is nobody.
    pub items_token_file: PathBuf,
    /// Items in one body.
    pub items_max: usize,
    /// Whether `GET /` serves the console page, which shows users' histories.
    pub console: bool,
    /// After SIGTERM: time with `readyz` at 503 before the door closes.
    pub drain_ms: u64,
    /// Time for requests in flight to finish after that, seconds.
    pub stop_timeout_s: u64,
}

/// Why the server could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("server.{key} = 0: give at least 1")]
    Zero { key: &'static str },
    #[error("server.{key} names `{kind}`, which is not in server.event_kinds: add it there")]
    Kind { key: &'static str, kind: String },
    #[error(transparent)]
    Token(#[from] auth::Error),
    #[error("cannot listen on {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("cannot take signals: {0}")]
    Signal(std::io::Error),
    #[error("the server ended: {0}")]
    Ended(std::io::Error),
    /// What the loader said.
    #[error(transparent)]
    Load(Box<dyn std::error::Error + Send + Sync>),
}

impl Config {
    /// Refuses what [`run`] could not use; called before a port is bound.
    pub fn check(&self) -> Result<(), Error> {
        for (key, value) in [
            ("backlog", u64::from(self.backlog)),
            ("connections_max", self.connections_max as u64),
            ("keep_alive_ms", self.keep_alive_ms),
            ("head_timeout_ms", self.head_timeout_ms),
            ("body_timeout_ms", self.body_timeout_ms),
            ("body_bytes_max", self.body_bytes_max as u64),
            ("events_max", self.events_max as u64),
            ("items_max", self.items_max as u64),
            ("event_kinds", self.event_kinds.len() as u64),
            ("event_age_max_days", self.event_age_max_days.into()),
            ("stop_timeout_s", self.stop_timeout_s),
        ] {
            if value == 0 {
                return Err(Error::Zero { key });
            }
        }
        let history = self.history_kinds.iter().map(|kind| ("history_kinds", kind));
        let mut named = history.chain([("shown_kind", &self.shown_kind)]);
        match named.find(|(_, kind)| !self.event_kinds.contains(kind)) {
            Some((key, kind)) => Err(Error::Kind { key, kind: kind.clone() }),
            None => Ok(()),
        }
    }
}

/// What the server is made of beside the engine.
pub struct Parts {
    pub events: Log<EventRecord>,
    pub requests: Log<RequestRecord>,
    pub health: Arc<Health>,
    pub exporter: Exporter,
    /// Where new bundles come from; `None` keeps the first one.
    pub source: Option<Source>,
    /// Time between two looks for changes of items that other replicas took.
    pub poll_items_ms: u64,
    /// Which events count for a rollout, and whether a request may choose its arm.
    pub rollout: RolloutConfig,
}

/// What every worker shares.
struct Shared {
    config: Config,
    parts: Parts,
    /// Who shows it may change items.
    items_token: Option<auth::Token>,
    engine: OnceLock<Engine>,
}

/// Listens, runs `load` on a thread of its own, serves until SIGTERM or SIGINT, then drains.
///
/// Prints `listening on http://ADDRESS:PORT` to stdout when the port is bound. Must run in an
/// actix system; `load` may use its tokio handle.
///
/// # Errors
/// When the port cannot be bound, or with whatever `load` failed with; the door is closed then.
pub async fn run(
    config: &Config,
    parts: Parts,
    load: impl FnOnce() -> Result<Engine, Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
) -> Result<(), Error> {
    config.check()?;
    let items_token = auth::Token::open(&config.items_token_file)?;
    let config = config.clone();
    let shared = Arc::new(Shared { config, parts, items_token, engine: OnceLock::new() });
    monitor::ready(false);
    let terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    let server = listen(&shared)?;
    let upkeep = rt::spawn(upkeep(shared.parts.exporter.clone()));
    let stopping = rt::spawn(drain(shared.clone(), server.handle(), terminate, interrupt));
    let following = rt::spawn(items::follow(shared.clone()));
    let loading = rt::spawn(open(shared.clone(), server.handle(), load));
    let ended = server.await.map_err(Error::Ended);
    upkeep.abort();
    stopping.abort();
    following.abort();
    // A loader still at work when the process is told to stop is not waited for.
    if loading.is_finished() {
        loading.await.unwrap_or(Ok(()))?;
    }
    ended?;
    flush(shared).await;
    Ok(())
}

fn listen(shared: &Arc<Shared>) -> Result<actix_web::dev::Server, Error> {
    let config = &shared.config;
    let data = web::Data::from(shared.clone());
    let console = config.console;
    let app = move || App::new().app_data(data.clone()).configure(|app| routes::all(app, console));
    let address = SocketAddr::new(config.bind, config.port);
    let server = HttpServer::new(app)
        .workers(config.workers.count())
        .backlog(config.backlog)
        .max_connections(config.connections_max)
        .keep_alive(Duration::from_millis(config.keep_alive_ms))
        .client_request_timeout(Duration::from_millis(config.head_timeout_ms))
        .shutdown_timeout(config.stop_timeout_s)
        .disable_signals()
        .bind(address)
        .map_err(|source| Error::Bind { address, source })?;
    for address in server.addrs() {
        println!("listening on http://{address}");
    }
    Ok(server.run())
}

/// Loads the engine and opens for traffic, or closes the door with the loader's error.
async fn open(
    shared: Arc<Shared>,
    server: ServerHandle,
    load: impl FnOnce() -> Result<Engine, Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
) -> Result<(), Error> {
    let loaded = spawn_blocking(load).await.unwrap_or_else(|panic| Err(Box::new(panic)));
    match loaded {
        Ok(engine) => {
            let serving = engine.serving();
            let version = serving.version().to_owned();
            let (whole, text) = (serving.remarks.is_empty(), serving.describe());
            let as_of_ms = serving.bundle.manifest.as_of_ms;
            if shared.engine.set(engine).is_ok() {
                monitor::bundle(&version);
                monitor::bundle_as_of(as_of_ms);
                shared.parts.health.set("bundle", whole, text);
                shared.parts.health.set_ready();
                monitor::ready(shared.parts.health.is_ready());
                tracing::info!(bundle = version, "ready");
                follow::start(&shared);
            }
            Ok(())
        }
        Err(error) => {
            shared.parts.health.set("bundle", false, error.to_string());
            // Not awaited: stopping waits for the server, and the server's end for this task.
            rt::spawn(server.stop(false));
            Err(Error::Load(error))
        }
    }
}

async fn drain(
    shared: Arc<Shared>,
    server: ServerHandle,
    mut terminate: Signal,
    mut interrupt: Signal,
) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(drain_ms = shared.config.drain_ms, "draining");
    shared.parts.health.set_draining();
    monitor::ready(false);
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(shared.config.drain_ms)) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // A further signal does not wait for requests in flight.
    tokio::select! {
        () = server.stop(true) => {}
        _ = terminate.recv() => server.stop(false).await,
        _ = interrupt.recv() => server.stop(false).await,
    }
}

async fn upkeep(exporter: Exporter) {
    let mut ticks = tokio::time::interval(exporter.upkeep_interval());
    loop {
        ticks.tick().await;
        exporter.upkeep();
    }
}

/// Writes what the logs still hold and what is on its way to the store.
async fn flush(shared: Arc<Shared>) {
    if let Some(engine) = shared.engine.get() {
        let wait = Duration::from_secs(shared.config.stop_timeout_s);
        let _ = tokio::time::timeout(wait, engine.users().flush()).await;
    }
    let logs = move || {
        let events = shared.parts.events.flush().map_err(|error| error.to_string());
        let requests = shared.parts.requests.flush().map_err(|error| error.to_string());
        events.and(requests)
    };
    if let Ok(Err(error)) = spawn_blocking(logs).await {
        tracing::error!(error, "a log could not be written at the end");
    }
}

#[cfg(test)]
mod tests;
