//! `shortlist rollout`: challengers beside the bundle that serves.

mod rehearse;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;

use super::replay;
use crate::bundle::{Challenger, Registry, Rollout};
use crate::config::Config;
use crate::experiments::{Arm, Settings, Stage};
use crate::pipeline::{RolloutConfig, begin, verdict};

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
    /// Try a bundle of the registry beside the one that serves.
    Start {
        /// The challenger's version.
        bundle: String,
        /// Why; stands in the registry.
        #[arg(long, default_value = "started by hand")]
        reason: String,
        /// Do not ask it yesterday's requests first.
        #[arg(long)]
        without_replay: bool,
    },
    /// What is tried, how far it has come, and what each guardrail sees.
    Status,
    /// Give the challenger its next share of users now, whatever the counts say.
    Advance {
        #[arg(long, default_value = "advanced by hand")]
        reason: String,
    },
    /// Keep the challenger at its share; guardrails still roll it back.
    Pause {
        #[arg(long, default_value = "paused by hand")]
        reason: String,
    },
    /// Let a paused challenger advance by itself again.
    Resume {
        #[arg(long, default_value = "resumed by hand")]
        reason: String,
    },
    /// End the rollout: the stable bundle serves everybody.
    Rollback {
        #[arg(long, default_value = "rolled back by hand")]
        reason: String,
    },
    /// Simulate rollouts at your traffic: how long until a worse challenger is caught, how often an
    /// equal one is sent back by mistake.
    Rehearse(rehearse::Args),
}

/// Runs the command.
pub fn run(args: &Args, config: &Config) -> Result<()> {
    config.rollout.check()?;
    if let Command::Rehearse(args) = &args.command {
        return rehearse::run(args, &config.rollout.guard);
    }
    let registry = Registry::open(&config.registry.url)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Command::Start { bundle, without_replay: false, .. } = &args.command
        && let Some((_, state)) = runtime.block_on(registry.current())?
    {
        replayed(config, &state.bundle, bundle)?;
    }
    runtime.block_on(act(&args.command, &registry, &config.rollout))
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

async fn act(command: &Command, registry: &Registry, config: &RolloutConfig) -> Result<()> {
    let current = registry.current().await?;
    let (number, state) =
        current.context("the registry holds no bundle yet: `shortlist pipeline run` makes one")?;
    let now_ms = chrono::Utc::now().timestamp_millis();
    let next = match command {
        Command::Rehearse(_) => return Ok(()),
        Command::Status => return status(registry, number, &state, now_ms, &config.guard).await,
        Command::Start { bundle, reason, .. } => {
            let why = (reason.as_str(), WHO);
            begin(registry, (number, &state), bundle, why, now_ms, &config.guard)?
        }
        Command::Advance { reason } => {
            let plan = tried(&state)?;
            match config.guard.after(plan.stage) {
                Some(100) => Rollout::whole(&plan.bundle, reason, WHO),
                Some(percent) => {
                    let stage = Stage::Percent(percent);
                    state.at(stage, now_ms, reason, WHO)
                }
                None => bail!("{} is at {} already", plan.bundle, plan.stage),
            }
        }
        Command::Pause { reason } => paused(&state, true, reason)?,
        Command::Resume { reason } => paused(&state, false, reason)?,
        Command::Rollback { reason } => {
            let plan = tried(&state)?;
            let reason = format!("{} was rolled back at {}: {reason}", plan.bundle, plan.stage);
            Rollout::whole(&state.bundle, &reason, WHO)
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

fn tried(state: &Rollout) -> Result<&Challenger> {
    state.challenger.as_ref().with_context(|| {
        format!("nothing is on trial: {} serves everybody ({})", state.bundle, state.reason)
    })
}

fn paused(state: &Rollout, paused: bool, reason: &str) -> Result<Rollout> {
    let plan = tried(state)?;
    let word = if paused { "paused" } else { "not paused" };
    ensure!(plan.paused != paused, "{} is {word} already", plan.bundle);
    let challenger = Some(Challenger { paused, ..plan.clone() });
    let (reason, who) = (reason.to_owned(), WHO.to_owned());
    Ok(Rollout { challenger, reason, who, ..state.clone() })
}

fn headline(state: &Rollout) -> String {
    match &state.challenger {
        None => format!("{} serves everybody", state.bundle),
        Some(plan) => {
            let paused = if plan.paused { ", paused" } else { "" };
            format!("{} on trial at {}{paused}, beside {}", plan.bundle, plan.stage, state.bundle)
        }
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
    let Some(plan) = &state.challenger else { return Ok(()) };
    let minutes = (now_ms - plan.since_ms) as f64 / 60_000.0;
    println!("since   {minutes:.0} minutes");
    let (counts, processes) = registry.read_counts(plan.first_state).await?;
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
    let verdict = verdict(number, plan, &counts, now_ms, guard);
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
