//! `shortlist config`: what can be set, and whether a file sets it right.

use clap::Subcommand;

use crate::config::{Config, DEFAULTS};

/// Arguments of `shortlist config`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check the configuration that `--config` and the environment give.
    Check,
    /// Print every key with its default and its reason.
    Defaults,
}

/// Runs the command.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    match args.command {
        Command::Check => {
            config.check()?;
            println!("the configuration is valid");
        }
        Command::Defaults => print!("{DEFAULTS}"),
    }
    Ok(())
}
