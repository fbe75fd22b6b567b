//! Follows the registry: when another bundle is to serve, or to be tried, it is loaded, warmed and
//! published beside the traffic, by a thread of the lowest priority. While one is tried the thread also
//! tells the registry what this process has counted, and decides with what all have.
//!
//! A bundle that cannot be opened changes nothing but the health report; a challenger that cannot be
//! opened ends its rollout everywhere. A registry that cannot be read changes nothing either: what was
//! read last goes on, health and metrics say so, and the next look that succeeds makes up for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::Shared;
use crate::bundle::{Bundle, Challenger, Course, Registry, RegistryError, Rollout};
use crate::experiments::{Decision, Layer, Stage, Subject};
use crate::monitor;
use crate::pipeline::{Engine, Steering};
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
    /// Decides about challengers.
    pub steering: Arc<Steering>,
    /// Time between two looks at the counts.
    pub counts_interval: Duration,
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
        let mut follower = Follower { source, handle, state: None, counted: Instant::now() };
        loop {
            std::thread::sleep(follower.source.poll);
            let poll = follower.source.poll;
            ffi::large::release((poll.as_secs_f64() * RELEASED_BYTES_A_SECOND) as usize);
            let Some(shared) = shared.upgrade() else { return };
            if let Some(engine) = shared.engine.get() {
                follower.look(&shared, engine);
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("bundles".to_owned()).spawn(body) {
        tracing::error!(%error, "no thread to follow the registry: this bundle stays");
    }
}

/// What the thread knows.
struct Follower {
    source: Source,
    handle: Handle,
    /// The last state that was read.
    state: Option<Followed>,
    /// When the counts were looked at.
    counted: Instant,
}

struct Followed {
    number: u64,
    rollout: Rollout,
    /// What cannot be served here, and why; tried until the registry has it.
    refused: Option<(Subject, String)>,
}

impl Follower {
    fn look(&mut self, shared: &Shared, engine: &Engine) {
        let read = self.handle.block_on(self.source.registry.current());
        let (number, rollout) = match (read, &self.state) {
            (Ok(Some(read)), _) => read,
            (Ok(None), None) => return,
            // States are never deleted: what has none any more is not the registry.
            (Ok(None), Some(_)) => return self.cut_off(shared, "it holds no state any more"),
            (Err(error), _) => return self.cut_off(shared, &error.to_string()),
        };
        monitor::registry_reachable(true);
        let percent = |of| rollout.course(of).map_or(0, |course| course.stage.percent());
        let percents = [Subject::Bundle].into_iter().chain(Layer::ALL.map(Subject::Layer));
        let percents: Vec<(Subject, u8)> = percents.map(|of| (of, percent(of))).collect();
        if self.state.as_ref().is_none_or(|state| state.number != number) {
            let refused = self.turn_to(shared, engine, number, &rollout);
            self.state = Some(Followed { number, rollout, refused });
        }
        // Said when it is done: loading takes a while.
        for (of, percent) in percents {
            match of {
                Subject::Bundle => monitor::rollout(number, percent),
                Subject::Layer(layer) => monitor::layer(layer.name(), percent),
            }
        }
        shared.parts.health.set("registry", true, format!("state {number} is followed"));
        if let Err(error) = self.steer(engine) {
            self.cut_off(shared, &error.to_string());
        }
    }

    fn cut_off(&self, shared: &Shared, error: &str) {
        tracing::warn!(error, "cannot read or write the registry; trying again");
        monitor::registry_reachable(false);
        let stays = self.state.as_ref().map_or_else(
            || "the bundle of the start stays".to_owned(),
            |state| format!("state {} stays", state.number),
        );
        shared.parts.health.set("registry", false, format!("{stays}: {error}"));
    }

    /// Does what a state says; returns what of it cannot be served, and why.
    fn turn_to(
        &self,
        shared: &Shared,
        engine: &Engine,
        number: u64,
        rollout: &Rollout,
    ) -> Option<(Subject, String)> {
        tracing::info!(state = number, reason = rollout.reason, "rollout");
        let refused = self.turn_bundles(shared, engine, number, rollout);
        let laid = engine.lay(number, &rollout.layers);
        refused.map(|why| (Subject::Bundle, why)).or_else(|| {
            let (layer, error) = laid.err()?;
            let (of, why) = (Subject::Layer(layer), format!("cannot serve it: {error}"));
            tracing::error!(why, "{}", rollout.name(of));
            shared.parts.health.set("rollout", false, format!("{}: {why}", rollout.name(of)));
            Some((of, why))
        })
    }

    /// Does what a state says of bundles; returns why its challenger cannot be served.
    fn turn_bundles(
        &self,
        shared: &Shared,
        engine: &Engine,
        number: u64,
        rollout: &Rollout,
    ) -> Option<String> {
        let wanted =
            |plan: &Challenger| engine.trial().is_some_and(|t| t.serving.version() == plan.bundle);
        let on_trial = engine.trial().map(|trial| trial.serving.version().to_owned());
        if engine.serving().version() != rollout.bundle {
            if on_trial.as_deref() == Some(&rollout.bundle) {
                self.handle.block_on(engine.promote());
                tell(shared, engine);
            } else if let Err(error) = self.publish(engine, &rollout.bundle) {
                refuse(shared, engine, &rollout.bundle, &*error);
                return None;
            } else {
                tell(shared, engine);
            }
        }
        let health = &shared.parts.health;
        match &rollout.challenger {
            None => {
                if engine.trial().is_some() {
                    self.handle.block_on(engine.withdraw());
                }
                health.set("rollout", true, on_trial_text(rollout));
                None
            }
            Some(plan) if wanted(plan) => {
                engine.restage(number, plan);
                health.set("rollout", true, on_trial_text(rollout));
                None
            }
            Some(plan) => match self.challenge(engine, number, plan) {
                Ok(()) => {
                    health.set("rollout", true, on_trial_text(rollout));
                    None
                }
                Err(error) => {
                    let why = format!("cannot serve it: {error}");
                    tracing::error!(bundle = plan.bundle, why, "challenger");
                    health.set("rollout", false, format!("{}: {why}", plan.bundle));
                    Some(why)
                }
            },
        }
    }

    fn open(&self, version: &str) -> Result<Bundle, Box<dyn std::error::Error>> {
        tracing::info!(bundle = version, "loading");
        let dir = self.handle.block_on(self.source.registry.bundle(version))?;
        Ok(Bundle::open(&dir, self.source.verify, &self.source.index)?)
    }

    fn publish(&self, engine: &Engine, version: &str) -> Result<(), Box<dyn std::error::Error>> {
        Ok(self.handle.block_on(engine.publish(self.open(version)?))?)
    }

    fn challenge(
        &self,
        engine: &Engine,
        number: u64,
        plan: &Challenger,
    ) -> Result<(), Box<dyn std::error::Error>> {
        Ok(self.handle.block_on(engine.challenge(self.open(&plan.bundle)?, number, plan))?)
    }

    /// Tells what was counted and decides, when it is time.
    fn steer(&mut self, engine: &Engine) -> Result<(), RegistryError> {
        let Some(state) = &self.state else { return Ok(()) };
        let steering = &self.source.steering;
        if let Some((of, why)) = &state.refused {
            let given = steering.give_up(state.number, &state.rollout, *of, why);
            return self.handle.block_on(given);
        }
        if self.counted.elapsed() < self.source.counts_interval {
            return Ok(());
        }
        self.counted = Instant::now();
        // The real time, whatever the engine's clock shows: a rollout belongs to all replicas.
        let now_ms = chrono::Utc::now().timestamp_millis();
        for of in state.rollout.subjects() {
            let name = state.rollout.name(of);
            // Everybody sees it: there is nobody to compare with.
            let is_whole =
                |course: &Course| matches!(course.stage, Stage::Percent(percent) if percent >= 100);
            if state.rollout.course(of).is_none_or(is_whole) {
                continue;
            }
            let Some(own) = engine.trial_counts(of) else { continue };
            self.handle.block_on(steering.tell(&state.rollout, of, &own))?;
            let look = steering.look(state.number, &state.rollout, of, now_ms);
            match self.handle.block_on(look)? {
                Some((verdict, true)) => {
                    match verdict.decision {
                        Decision::RollBack => {
                            tracing::warn!(reason = verdict.reason, "{name} is rolled back");
                        }
                        _ => tracing::info!(reason = verdict.reason, "{name} advances"),
                    }
                    // What follows is decided from the new state.
                    return Ok(());
                }
                Some((verdict, false)) => {
                    tracing::debug!(reason = verdict.reason, "{name} stays")
                }
                None => {}
            }
        }
        Ok(())
    }
}

/// What is on trial and how far, or why nothing is.
fn on_trial_text(rollout: &Rollout) -> String {
    let text = |of| {
        let course = rollout.course(of)?;
        let paused = if course.paused { ", paused" } else { "" };
        Some(format!("{} on trial at {}{paused}", rollout.name(of), course.stage))
    };
    let texts: Vec<String> = rollout.subjects().filter_map(text).collect();
    if texts.is_empty() { rollout.reason.clone() } else { texts.join("; ") }
}

/// Says which bundle serves now.
fn tell(shared: &Shared, engine: &Engine) {
    let serving = engine.serving();
    monitor::bundle(serving.version());
    monitor::bundle_as_of(serving.bundle.manifest.as_of_ms);
    shared.parts.health.set("bundle", serving.remarks.is_empty(), serving.describe());
}

/// Says that a bundle could not take over.
fn refuse(shared: &Shared, engine: &Engine, version: &str, error: &dyn std::error::Error) {
    let serving = engine.serving();
    tracing::error!(bundle = version, %error, "cannot serve it; the old one goes on");
    let text = format!("{}; {version} was refused: {error}", serving.version());
    shared.parts.health.set("bundle", false, text);
}
