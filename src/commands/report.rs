//! `shortlist report`: what the answers of the last days led to.

use std::path::PathBuf;

use anyhow::bail;

use crate::config::Config;
use crate::offline::collect::event_days;
use crate::offline::report::{self, Kinds};
use crate::types::date_of;

/// Arguments of `shortlist report`.
#[derive(clap::Args)]
pub struct Args {
    /// So many days of the event log, up to its newest.
    #[arg(long, default_value_t = 7)]
    days: usize,
    /// The logs, instead of `events.archive` or `events.dir`: a directory or a bucket's address.
    #[arg(long)]
    logs: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Reports.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let logs = &super::logs::directory(args.logs.as_deref(), None, config)?;
    let mut days = event_days(logs)?;
    days.drain(..days.len().saturating_sub(args.days.max(1)));
    let (Some(&first), Some(&last)) = (days.first(), days.last()) else {
        bail!("{}: no day in the event log; give --logs", logs.display());
    };
    let kinds = Kinds {
        shown: &config.server.shown_kind,
        clicks: &config.rollout.click_kinds,
        orders: &config.rollout.value_kinds,
    };
    let scratch = config.offline.work_dir.join(format!("report-{}", std::process::id()));
    let rows = report::report(logs, &days, kinds, &config.offline.engine(), &scratch);
    // What it made is of no use to anybody; a directory that stays is no reason to fail.
    let _ = std::fs::remove_dir_all(&scratch);
    let rows = rows?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        println!("{} to {}, intervals of 95 % over users", date_of(first), date_of(last));
        report::lines(&rows).iter().for_each(|line| println!("{line}"));
    }
    Ok(())
}
