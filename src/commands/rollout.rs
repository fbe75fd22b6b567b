//! `shortlist rollout`: challengers beside the bundle that serves.

mod rehearse;

use clap::Subcommand;

use crate::config::Config;

/// Arguments of `shortlist rollout`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Simulate rollouts at your traffic: how long until a worse challenger is caught, how often an
    /// equal one is sent back by mistake.
    Rehearse(rehearse::Args),
}

/// Runs the command.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    config.rollout.check()?;
    match &args.command {
        Command::Rehearse(args) => rehearse::run(args, &config.rollout.guard),
    }
}
