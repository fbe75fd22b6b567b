//! Follows the registry: when another bundle is to serve, it is loaded, warmed and published beside
//! the traffic, by a thread of the lowest priority.
//!
//! A bundle that cannot be opened changes nothing but the health report; it is tried again when the
//! registry names it anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::Shared;
use crate::bundle::{Bundle, Registry};
use crate::monitor;
use crate::{ffi, index};

/// The memory of a bundle that was replaced goes back to the system at this pace: at 10M items in nine
/// minutes. In a virtual machine the host takes it, and requests wait meanwhile: 3 ms a second at this pace.
const RELEASED_BYTES_A_SECOND: f64 = 8e6;

/// Where new bundles come from.
#[derive(Clone)]
pub struct Source {
    pub registry: Registry,
    /// Time between two looks at the registry.
    pub poll: Duration,
    /// How bundles are opened; see [`Bundle::open`].
    pub verify: bool,
    pub index: index::Config,
}

/// Starts the thread, if there is a source.
pub fn start(shared: &Arc<Shared>) {
    let Some(source) = shared.parts.source.clone() else { return };
    // The server lives as long as the process; a stopped one ends the thread by letting go.
    let shared = Arc::downgrade(shared);
    let handle = Handle::current();
    let body = move || {
        ffi::thread::yield_to_others();
        ffi::large::keep();
        let mut seen = None;
        loop {
            std::thread::sleep(source.poll);
            ffi::large::release((source.poll.as_secs_f64() * RELEASED_BYTES_A_SECOND) as usize);
            let Some(shared) = shared.upgrade() else { return };
            match handle.block_on(source.registry.current()) {
                Ok(Some((number, rollout))) if seen != Some(number) => {
                    seen = Some(number);
                    turn_to(&shared, &source, &handle, &rollout.bundle);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "cannot read the registry; trying again"),
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("bundles".to_owned()).spawn(body) {
        tracing::error!(%error, "no thread to follow the registry: this bundle stays");
    }
}

/// Publishes a version, unless it serves already.
fn turn_to(shared: &Shared, source: &Source, handle: &Handle, version: &str) {
    let Some(engine) = shared.engine.get() else { return };
    if engine.serving().version() == version {
        return;
    }
    tracing::info!(bundle = version, "loading");
    let opened = || -> Result<(), Box<dyn std::error::Error>> {
        let dir = source.registry.bundle_dir(version)?;
        let bundle = Bundle::open(&dir, source.verify, &source.index)?;
        Ok(handle.block_on(engine.publish(bundle))?)
    };
    let health = &shared.parts.health;
    match opened() {
        Ok(()) => {
            monitor::bundle(version);
            let serving = engine.serving();
            health.set("bundle", serving.remarks.is_empty(), serving.describe());
        }
        Err(error) => {
            let serving = engine.serving();
            tracing::error!(bundle = version, %error, "cannot serve it; the old one goes on");
            let text = format!("{}; {version} was refused: {error}", serving.version());
            health.set("bundle", false, text);
        }
    }
}
