//! `shortlist features`: schemas, and users' features in Redis and for Feast.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::config::{self, Config};
use crate::features::Schema;

mod feast;
mod materialize;
#[cfg(feature = "etl")]
mod suggest;

/// Arguments of `shortlist features`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print a schema for imported tables: their columns, and what every data set has.
    #[cfg(feature = "etl")]
    Suggest {
        /// The directory that `shortlist import` wrote.
        data: PathBuf,
    },
    /// Check a schema and print its columns in the ranker's order.
    Check {
        /// A features.toml.
        file: PathBuf,
    },
    /// Print a bundle's columns of users as Feast's definitions in Python.
    Feast(feast::Args),
    /// Fill the Redis of store.redis with a bundle's users, so that the first requests find them.
    Materialize(materialize::Args),
}

/// Runs the command; only `feast` and `materialize` read the configuration.
pub fn run(args: &Args, load: impl FnOnce() -> Result<Config, config::Error>) -> Result<()> {
    match &args.command {
        #[cfg(feature = "etl")]
        Command::Suggest { data } => print!("{}", suggest::suggest(data)?),
        Command::Check { file } => {
            let schema = Schema::parse(&std::fs::read_to_string(file)?)?;
            for feature in schema.features() {
                println!("{:<8} {}", format!("{:?}", feature.scope).to_lowercase(), feature.name);
            }
        }
        Command::Feast(args) => feast::run(args, &load()?)?,
        Command::Materialize(args) => materialize::run(args, &load()?)?,
    }
    Ok(())
}
