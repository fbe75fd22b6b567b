//! `shortlist pipeline`: the day, whole or up to a step.

use clap::Subcommand;

use crate::config::Config;
use crate::offline::approve::Override;
use crate::offline::engine::Kind;
use crate::offline::{Day, Shared};
use crate::pipeline::Settings;

/// Arguments of `shortlist pipeline`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    step: Step,
    /// Who runs the files of sql/, instead of `offline.engine`.
    #[arg(long, global = true)]
    engine: Option<Kind>,
}

#[derive(Subcommand)]
enum Step {
    /// The whole day, collect to publish; what is done already is kept.
    Run(RunArgs),
    /// The models of a bundle over the collected catalogue: no training, new items, statistics,
    /// vectors and index.
    Refresh {
        /// The bundle's directory; without one, the bundle that serves.
        #[arg(long)]
        bundle: Option<std::path::PathBuf>,
    },
    /// Collect and validate the window's events.
    Collect,
    /// Split the window by time; with all before it.
    Split,
    /// Compute the aggregates of every needed day; with all before it.
    Features,
    /// Train the two towers; with all before it.
    Towers,
    /// Embed the items; with all before it.
    Embed,
    /// Build the index; with all before it.
    Index,
    /// Train the ranker; with all before it.
    Ranker,
    /// Evaluate and print the table; with all before it.
    Evaluate,
    /// Ask the gate; with all before it.
    Approve(RunArgs),
    /// Publish the bundle; with all before it.
    Publish(RunArgs),
}

#[derive(clap::Args)]
struct RunArgs {
    /// Publish although the gate refuses; the reason is recorded.
    #[arg(long, value_name = "REASON")]
    r#override: Option<String>,
    /// Who overrides; recorded with the reason.
    #[arg(long, value_name = "NAME", env = "USER", default_value = "unknown")]
    by: String,
}

impl RunArgs {
    fn word(&self) -> Option<Override> {
        let why = self.r#override.clone()?;
        let time_ms = chrono::Utc::now().timestamp_millis();
        Some(Override { who: self.by.clone(), why, time_ms })
    }
}

/// Runs the steps.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let (step, word) = match &args.step {
        Step::Run(run) | Step::Publish(run) => ("publish", run.word()),
        Step::Approve(run) => ("approve", run.word()),
        Step::Refresh { .. } => ("", None),
        Step::Collect => ("collect", None),
        Step::Split => ("split", None),
        Step::Features => ("features", None),
        Step::Towers => ("towers", None),
        Step::Embed => ("embed", None),
        Step::Index => ("index", None),
        Step::Ranker => ("ranker", None),
        Step::Evaluate => ("evaluate", None),
    };
    let shared = Shared {
        towers: &config.towers,
        index: &config.index,
        registry: &config.registry,
        rollout: &config.rollout,
        serving: Settings {
            pipeline: config.pipeline.clone(),
            rules: config.rules.clone(),
            regions: config.regions.clone(),
        },
    };
    let mut offline = config.offline.clone();
    offline.engine = args.engine.unwrap_or(offline.engine);
    let day = Day::new(&offline, shared, word)?;
    match &args.step {
        Step::Refresh { bundle: Some(dir) } => day.refresh(dir),
        Step::Refresh { bundle: None } => day.refresh(&super::bundle::serving(config)?),
        _ => day.run(step),
    }
}
