//! `shortlist bundle`: what a bundle holds, and whether it is whole.

mod export;
#[cfg(feature = "etl")]
mod import;

use std::path::PathBuf;

use clap::Subcommand;

use crate::bundle::{Bundle, Registry};
use crate::config::Config;

/// Arguments of `shortlist bundle`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Open a bundle with every check and print what is in it.
    Inspect {
        /// A bundle's directory; without one, the bundle that serves.
        dir: Option<PathBuf>,
    },
    /// The towers as ONNX graphs, for other programs.
    Export(export::Args),
    /// Form a bundle from item vectors, user vectors and a ranker that were made elsewhere.
    #[cfg(feature = "etl")]
    Import(import::Args),
}

/// Runs the command.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let dir = match &args.command {
        Command::Inspect { dir } => dir,
        Command::Export(args) => return export::run(args, config),
        #[cfg(feature = "etl")]
        Command::Import(args) => return import::run(args, config),
    };
    let dir = match dir {
        Some(dir) => dir.clone(),
        None => serving(config)?,
    };
    let bundle = Bundle::open(&dir, true, &config.index)?;
    let manifest = &bundle.manifest;
    println!("bundle    {}", manifest.bundle_version);
    println!("as of     {}", crate::types::date_of(manifest.as_of_ms));
    println!("towers    {} ({} numbers a vector)", manifest.tower_version, bundle.towers.dim());
    println!("items     {} in {} regions", bundle.items.len(), bundle.items.regions().len());
    println!("users     {}", bundle.users.ids().len());
    let constants = bundle.schema.constants();
    println!("features  {} ({constants} constant within a request)", bundle.schema.len());
    println!("ranker    {} trees", bundle.ranker.tree_count());
    for (name, entry) in &manifest.files {
        println!("  {name:<18} {:>12} bytes  {}", entry.length_bytes, &entry.blake3[..16]);
    }
    for (name, value) in &manifest.metrics {
        println!("  {name:<24} {value:.4}");
    }
    Ok(())
}

/// The directory of the bundle that the registry says serves.
pub fn serving(config: &Config) -> anyhow::Result<PathBuf> {
    let registry = Registry::open(&config.registry)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let current = runtime.block_on(registry.current())?;
    let Some((_, rollout)) = current else {
        anyhow::bail!(
            "registry.url `{}` holds no bundle; make one with `shortlist pipeline run`, or see \
             `make demo`",
            config.registry.url
        )
    };
    Ok(runtime.block_on(registry.bundle(&rollout.bundle))?)
}
