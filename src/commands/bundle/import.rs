//! `shortlist bundle import`: models that were trained elsewhere become a bundle.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::bundle::{Manifest, Registry};
use crate::config::Config;
use crate::offline::foreign::{Import, Similarity, Vectors, import};
use crate::offline::publish;

/// Arguments of `shortlist bundle import`.
#[derive(clap::Args)]
pub struct Args {
    /// Item vectors: Parquet with `item_id` and a column of lists, or .npy.
    #[arg(long)]
    items: PathBuf,
    /// For .npy: an item id a line. Without it, rows are those of the base.
    #[arg(long)]
    item_ids: Option<PathBuf>,
    /// User vectors of the same space: Parquet with `user_id` and a column of lists, or .npy. Without
    /// them, and for users that have none, the history is pooled.
    #[arg(long)]
    users: Option<PathBuf>,
    /// For .npy: a user id a line.
    #[arg(long, requires = "users")]
    user_ids: Option<PathBuf>,
    /// A user tower as ONNX: refused, with what to give instead.
    #[arg(long)]
    user_tower: Option<PathBuf>,
    /// A ranker: LightGBM's text over features of the base's schema, some or all, in any order.
    #[arg(long)]
    ranker: Option<PathBuf>,
    /// The bundle that gives catalogue, users and features; without one, the bundle that serves.
    #[arg(long)]
    base: Option<PathBuf>,
    /// How closeness is measured.
    #[arg(long, value_enum, default_value = "cosine")]
    similarity: Similarity,
    /// Place items without a vector at the mean of all.
    #[arg(long)]
    allow_missing: bool,
    /// Make it serve now, and why. Without this it waits in the registry for `shortlist rollout start`.
    #[arg(long, value_name = "REASON")]
    serve: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args, config: &Config) -> Result<()> {
    if let Some(path) = &args.user_tower {
        bail!(
            "{}: this program runs no ONNX graphs; export what the tower gives: the vectors of your \
             users, as Parquet or .npy, for --users",
            path.display()
        );
    }
    let base = match &args.base {
        Some(dir) => dir.clone(),
        None => super::serving(config)?,
    };
    let half_life = config.towers.pool_half_lives_events.iter().copied();
    let what = Import {
        base: &base,
        items: Vectors { path: &args.items, ids: args.item_ids.as_deref() },
        users: args.users.as_ref().map(|path| Vectors { path, ids: args.user_ids.as_deref() }),
        ranker: args.ranker.as_deref(),
        similarity: args.similarity,
        allow_missing: args.allow_missing,
        history_max: config.towers.history_max,
        half_life_events: half_life.fold(f32::INFINITY, f32::min),
    };
    let registry = Registry::open(&config.registry)?;
    // Beside the bundles, so that it can be renamed into its place.
    let partial = registry.bundle_dir("import-partial")?;
    if partial.exists() {
        std::fs::remove_dir_all(&partial)?;
    }
    std::fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
    let version = import(&what, &partial, &config.index)?;
    let target = registry.bundle_dir(&version)?;
    if target.exists() {
        Manifest::open(&target, true)?;
        std::fs::remove_dir_all(&partial)?;
    } else {
        std::fs::rename(&partial, &target)
            .with_context(|| format!("rename to {}", target.display()))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(registry.upload(&version))?;
    println!("{version}");
    let Some(reason) = &args.serve else {
        tracing::info!("`shortlist rollout start {version}` tries it beside the one that serves");
        return Ok(());
    };
    ensure!(!reason.trim().is_empty(), "--serve: say why; the reason stands in the registry");
    let why = (reason.as_str(), publish::WHO);
    runtime.block_on(publish::publish(
        &registry,
        &target,
        &version,
        why,
        &config.rollout,
        config.registry.bundles_kept,
    ))
}
