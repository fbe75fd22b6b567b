//! One file a subcommand; the only place where the tiers meet a command line.

mod bundle;
mod config;
mod evaluate;
mod features;
pub mod generate;
mod health;
#[cfg(feature = "etl")]
mod import;
mod index;
mod logs;
#[cfg(feature = "etl")]
mod pipeline;
mod replay;
#[cfg(feature = "etl")]
mod report;
mod rollout;
mod serve;
#[cfg(feature = "etl")]
mod simulate;
#[cfg(feature = "etl")]
mod skew;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::Config;

/// Ten million items, twenty recommendations, one binary.
#[derive(Parser)]
#[command(version, about, propagate_version = true)]
struct Cli {
    /// A TOML file over the defaults; every key stands in config/default.toml.
    #[arg(long, short, global = true, env = "SHORTLIST_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve recommendations over HTTP.
    Serve(serve::Args),
    /// Import CSV, Parquet or JSON files into the canonical tables by a SQL file.
    #[cfg(feature = "etl")]
    Import(import::Args),
    /// Write or check a feature schema; fill Redis with users.
    Features(features::Args),
    /// Run the daily pipeline, or a part of it.
    #[cfg(feature = "etl")]
    Pipeline(pipeline::Args),
    /// Ask logged requests again: of the bundle that answered them, or of another.
    Replay(replay::Args),
    /// What the answers of the last days led to: CTR, conversion and revenue with intervals.
    #[cfg(feature = "etl")]
    Report(report::Args),
    /// Compare rows as served with rows recomputed from the log.
    #[cfg(feature = "etl")]
    Skew(skew::Args),
    /// What another bundle would have earned, from the log.
    Evaluate(evaluate::Args),
    /// Write a synthetic world of any size.
    Generate(generate::Args),
    /// Let the users of a generated world ask a server, click and buy.
    #[cfg(feature = "etl")]
    Simulate(simulate::Args),
    /// Build, inspect and measure indexes.
    Index(index::Args),
    /// Challengers beside the bundle that serves: start, watch, rehearse.
    Rollout(rollout::Args),
    /// Look at bundles.
    Bundle(bundle::Args),
    /// Look at the configuration.
    Config(config::Args),
    /// Ask a running server whether it is ready; for container health checks.
    Health(health::Args),
}

/// Parses the command line, runs the command, reports an error with its causes.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let load = || Config::load(cli.config.as_deref());
    match cli.command {
        Command::Serve(args) => serve::run(args, load()?),
        #[cfg(feature = "etl")]
        Command::Import(args) => {
            let config = load()?;
            import::run(&args, &config.offline.sql, &config.import, &config.offline.work_dir)
        }
        Command::Features(args) => features::run(&args, load),
        #[cfg(feature = "etl")]
        Command::Pipeline(args) => pipeline::run(&args, &load()?),
        Command::Replay(args) => replay::run(&args, &load()?),
        #[cfg(feature = "etl")]
        Command::Report(args) => report::run(&args, &load()?),
        #[cfg(feature = "etl")]
        Command::Skew(args) => skew::run(&args, &load()?),
        Command::Evaluate(args) => evaluate::run(&args, &load()?),
        Command::Generate(args) => generate::run(args),
        #[cfg(feature = "etl")]
        Command::Simulate(args) => simulate::run(&args, &load()?),
        Command::Index(args) => index::run(&args, &load()?),
        Command::Rollout(args) => rollout::run(&args, &load()?),
        Command::Bundle(args) => bundle::run(&args, &load()?),
        Command::Config(args) => config::run(&args, &load()?),
        Command::Health(args) => health::run(&args, &load()?),
    }
}
