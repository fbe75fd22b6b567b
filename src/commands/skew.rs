//! `shortlist skew`: rows as served beside rows recomputed from the log.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};

use super::replay;
use crate::bundle::{Bundle, Registry};
use crate::config::Config;
use crate::events::RequestRecord;
use crate::offline::aggregates;
use crate::offline::as_of::Layout;
use crate::offline::load::Loaded;
use crate::offline::skew::{Recomputed, Skew};

/// Arguments of `shortlist skew`.
#[derive(clap::Args)]
pub struct Args {
    /// The day whose requests are compared, YYYY-MM-DD; without one, the newest in the log.
    #[arg(long)]
    day: Option<String>,
    /// At most so many requests.
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    /// The share of the rows in which a feature may differ.
    #[arg(long, default_value_t = 0.01)]
    share: f64,
    /// The day's logs, instead of `events.archive` or `events.dir`: a directory or a bucket's address.
    #[arg(long)]
    logs: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Compares.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    ensure!((0.0..1.0).contains(&args.share), "--share {}: give 0 to below 1", args.share);
    let logs = &super::logs::directory(args.logs.as_deref(), args.day.as_deref(), config)?;
    let requests = replay::requests(logs, args.day.as_deref(), args.limit)?;
    let (work, registry) = (&config.offline.work_dir, Registry::open(&config.registry)?);
    let loaded = Loaded::open(&work.join("collect"), &config.offline.signals)
        .with_context(|| format!("{}: run `shortlist pipeline collect`", work.display()))?;
    let mut versions: Vec<&str> = requests.iter().map(|r| r.bundle_version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut skew = Skew::default();
    for version in versions {
        let dir = runtime.block_on(registry.bundle(version))?;
        let bundle = Bundle::open(&dir, false, &config.index)
            .with_context(|| format!("the bundle `{version}` of the log"))?;
        let dir = aggregates::day_dir(&work.join("features"), bundle.manifest.as_of_ms);
        ensure!(
            dir.is_dir(),
            "{}: the tables that `{version}` was made of are gone; run `shortlist pipeline features`",
            dir.display()
        );
        let layout = Layout::new(&bundle.schema, &config.offline.towers.inputs, &loaded, &dir)?;
        let of_version: Vec<&RequestRecord> =
            requests.iter().filter(|request| request.bundle_version == version).collect();
        Recomputed::new(&loaded, &bundle, layout, &dir)?.compare(&of_version, &mut skew)?;
    }
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&skew)?),
        false => skew.lines(args.share).iter().for_each(|line| println!("{line}")),
    }
    ensure!(skew.rows > 0, "no row could be compared");
    let skewed: Vec<&str> =
        skew.skewed(args.share).iter().map(|feature| feature.name.as_str()).collect();
    if !skewed.is_empty() {
        bail!("served and recomputed differ in {}", skewed.join(", "));
    }
    Ok(())
}
