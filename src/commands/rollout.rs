//! `shortlist rollout`: challengers beside the bundle that serves.

mod rehearse;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use serde_json::{Map, Value};

use super::replay;
use crate::bundle::{Course, Registry, Rollout};
use crate::config::Config;
use crate::experiments::{Arm, Layer, Settings, Stage, Subject};
use crate::pipeline::{self, RolloutConfig, begin, begin_layer, verdict};

/// Requests of yesterday that a challenger is asked before anybody sees it.
const REPLAYED_MAX: usize = 500;
/// It may answer this share of them with fewer items than the stable version.
const SHORTER_MAX: f64 = 0.01;
/// Who wrote a state that this command wrote.
const WHO: &str = "operator";

/// Arguments of `shortlist rollout`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Try a bundle of the registry, or other settings of a layer, beside what serves.
    Start {
        /// The challenger's version.
        #[arg(required_unless_present = "layer", conflicts_with = "layer")]
        bundle: Option<String>,
        /// The layer whose settings are tried: its section is `[rules]` or `[pipeline.sources]`.
        #[arg(long, value_parser = layer, requires = "set")]
        layer: Option<Layer>,
        /// What its section says otherwise, `KEY=VALUE` as TOML; may be given several times.
        #[arg(long, value_name = "KEY=VALUE", requires = "layer")]
        set: Vec<String>,
        /// Why; stands in the registry.
        #[arg(long, default_value = "started by hand")]
        reason: String,
        /// Do not ask a bundle yesterday's requests first.
        #[arg(long)]
        without_replay: bool,
    },
    /// What is tried, how far it has come, and what each guardrail sees.
    Status,
    /// Give the challenger its next share of users now, whatever the counts say.
    Advance {
        #[command(flatten)]
        of: Of,
        #[arg(long, default_value = "advanced by hand")]
        reason: String,
    },
    /// Keep the challenger at its share; guardrails still roll it back.
    Pause {
        #[command(flatten)]
        of: Of,
        #[arg(long, default_value = "paused by hand")]
        reason: String,
    },
    /// Let a paused challenger advance by itself again.
    Resume {
        #[command(flatten)]
        of: Of,
        #[arg(long, default_value = "resumed by hand")]
        reason: String,
    },
    /// End a trial: the stable bundle, or the configured settings, serve everybody.
    Rollback {
        #[command(flatten)]
        of: Of,
        #[arg(long, default_value = "rolled back by hand")]
        reason: String,
    },
    /// Simulate rollouts at your traffic: how long until a worse challenger is caught, how often an
    /// equal one is sent back by mistake.
    Rehearse(rehearse::Args),
}

/// Which trial.
#[derive(clap::Args)]
struct Of {
    /// The settings that are tried in this layer, instead of the bundle on trial.
    #[arg(long, value_parser = layer)]
    layer: Option<Layer>,
}

impl Of {
    fn subject(&self) -> Subject {
        self.layer.map_or(Subject::Bundle, Subject::Layer)
    }
}

fn layer(name: &str) -> Result<Layer, String> {
    let names = || Layer::ALL.map(Layer::name).join(" or ");
    Layer::named(name).ok_or_else(|| format!("no layer is called so: give {}", names()))
}

/// Runs the command.
pub fn run(args: &Args, config: &Config) -> Result<()> {
    config.rollout.check()?;
    if let Command::Rehearse(args) = &args.command {
        return rehearse::run(args, &config.rollout.guard);
    }
    let registry = Registry::open(&config.registry)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Command::Start { bundle: Some(bundle), without_replay: false, .. } = &args.command
        && let Some((_, state)) = runtime.block_on(registry.current())?
    {
        replayed(config, &state.bundle, bundle)?;
    }
    let settings = pipeline::Settings {
        pipeline: config.pipeline.clone(),
        rules: config.rules.clone(),
        regions: config.regions.clone(),
    };
    runtime.block_on(act(&args.command, &registry, &config.rollout, &settings))
}

/// Shows how the challenger would have answered yesterday's requests; refuses one that would have had
/// less to show.
fn replayed(config: &Config, stable: &str, challenger: &str) -> Result<()> {
    let diffs = match replay::rehearse(config, stable, challenger, REPLAYED_MAX) {
        Ok(diffs) => diffs,
        Err(error) => {
            println!("not compared on yesterday's requests: {error:#}");
            return Ok(());
        }
    };
    for diff in &diffs {
        diff.lines().iter().for_each(|line| println!("{line}"));
        let percent = 100.0 * diff.shorter();
        ensure!(
            diff.shorter() <= SHORTER_MAX,
            "{challenger} answers {percent:.1} % more of yesterday's requests with fewer items than asked \
             for; look at it with `shortlist replay --against {challenger}`, or start it --without-replay"
        );
    }
    Ok(())
}

async fn act(
    command: &Command,
    registry: &Registry,
    config: &RolloutConfig,
    settings: &pipeline::Settings,
) -> Result<()> {
    let current = registry.current().await?;
    let (number, state) =
        current.context("the registry holds no bundle yet: `shortlist pipeline run` makes one")?;
    let now_ms = chrono::Utc::now().timestamp_millis();
    let next = match command {
        Command::Rehearse(_) => return Ok(()),
        Command::Status => return status(registry, number, &state, now_ms, &config.guard).await,
        Command::Start { layer: Some(layer), set, reason, .. } => {
            let change = change(set)?;
            settings.with(*layer, &change)?;
            let tried = (*layer, change);
            begin_layer((number, &state), tried, (reason, WHO), now_ms, &config.guard)?
        }
        Command::Start { bundle, reason, .. } => {
            let bundle = bundle.as_deref().context("give the version of a bundle, or --layer")?;
            let why = (reason.as_str(), WHO);
            registry.bundle(bundle).await?;
            begin(registry, (number, &state), bundle, why, now_ms, &config.guard)?
        }
        Command::Advance { of, reason } => {
            let of = of.subject();
            let course = tried(&state, of)?;
            match config.guard.after(course.stage) {
                Some(100) if of == Subject::Bundle => state.served_by(&state.name(of), reason, WHO),
                Some(percent) => {
                    let at = (Stage::Percent(percent), number + 1);
                    state.at(of, at, now_ms, reason, WHO)
                }
                None => bail!("{} is at {} already", state.name(of), course.stage),
            }
        }
        Command::Pause { of, reason } => paused(&state, of.subject(), true, reason)?,
        Command::Resume { of, reason } => paused(&state, of.subject(), false, reason)?,
        Command::Rollback { of, reason } => {
            let of = of.subject();
            let stage = tried(&state, of)?.stage;
            let reason = format!("{} was rolled back at {stage}: {reason}", state.name(of));
            state.without(of, &reason, WHO)
        }
    };
    let written = registry.succeed(number, &next).await?;
    let written = written.with_context(|| {
        format!(
            "state {number} was followed by another one meanwhile: see `shortlist rollout status`"
        )
    })?;
    println!("state {written}: {}", headline(&next));
    println!("replicas follow within registry.poll_interval_ms");
    Ok(())
}

/// `KEY=VALUE` pairs as a part of a section; a key with dots reaches into it.
fn change(pairs: &[String]) -> Result<Map<String, Value>> {
    let mut change = Map::new();
    for pair in pairs {
        let part: toml::Table = toml::from_str(pair)
            .with_context(|| format!("--set {pair:?}: give KEY=VALUE as TOML has it"))?;
        let Value::Object(part) = serde_json::to_value(part)? else { continue };
        pipeline::merge(&mut change, part);
    }
    Ok(change)
}

fn tried(state: &Rollout, of: Subject) -> Result<&Course> {
    state.course(of).with_context(|| match of {
        Subject::Bundle => {
            format!("nothing is on trial: {} serves everybody ({})", state.bundle, state.reason)
        }
        Subject::Layer(layer) => format!("no settings of the layer {layer} are on trial"),
    })
}

fn paused(state: &Rollout, of: Subject, paused: bool, reason: &str) -> Result<Rollout> {
    let course = tried(state, of)?;
    let word = if paused { "paused" } else { "not paused" };
    ensure!(course.paused != paused, "{} is {word} already", state.name(of));
    let (reason, who) = (reason.to_owned(), WHO.to_owned());
    let next = Rollout { reason, who, ..state.clone() };
    Ok(next.with_course(of, |course| Course { paused, ..course }))
}

fn headline(state: &Rollout) -> String {
    let text = |of| {
        let course = state.course(of)?;
        let paused = if course.paused { ", paused" } else { "" };
        Some(format!("{} on trial at {}{paused}", state.name(of), course.stage))
    };
    let trials: Vec<String> = state.subjects().filter_map(text).collect();
    match trials.is_empty() {
        true => format!("{} serves everybody", state.bundle),
        false => format!("{}, beside {}", trials.join("; "), state.bundle),
    }
}

async fn status(
    registry: &Registry,
    number: u64,
    state: &Rollout,
    now_ms: i64,
    guard: &Settings,
) -> Result<()> {
    println!("state {number}: {}", headline(state));
    let who = if state.who.is_empty() { "-" } else { &state.who };
    println!("reason  {} ({who})", state.reason);
    for of in state.subjects() {
        let Some(course) = state.course(of) else { continue };
        println!();
        println!("{} at {}", state.name(of), course.stage);
        trial(registry, number, course, now_ms, guard).await?;
    }
    Ok(())
}

async fn trial(
    registry: &Registry,
    number: u64,
    course: &Course,
    now_ms: i64,
    guard: &Settings,
) -> Result<()> {
    let minutes = (now_ms - course.since_ms) as f64 / 60_000.0;
    println!("since   {minutes:.0} minutes");
    let (counts, processes) = registry.read_counts(course.first_state).await?;
    println!("counts  of {processes} processes");
    println!(
        "  {:>6} {:<10} {:>12} {:>8} {:>12} {:>10} {:>12}",
        "state", "arm", "requests", "errors", "impressions", "clicks", "value"
    );
    for stage in &counts.stages {
        for arm in Arm::ALL {
            let of = stage.arm(arm);
            let sum = |column: &[f64]| column.iter().sum::<f64>();
            println!(
                "  {:>6} {:<10} {:>12} {:>8} {:>12} {:>10} {:>12.2}",
                stage.state,
                arm.name(),
                of.requests,
                of.errors,
                sum(&of.groups.impressions),
                sum(&of.groups.clicks),
                sum(&of.groups.value),
            );
        }
    }
    let verdict = verdict(number, course, &counts, now_ms, guard);
    for reading in &verdict.readings {
        let mark = match (reading.breached, reading.waits) {
            (true, _) => "breached",
            (_, true) => "waits",
            _ => "ok",
        };
        println!("  {:<8} {mark:<8} {}", reading.guardrail, reading.text);
    }
    println!("verdict {:?}: {}", verdict.decision, verdict.reason);
    Ok(())
}
