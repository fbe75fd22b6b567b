//! `shortlist evaluate`: what another bundle would have earned, from the log of one that explored.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::replay::{self, Version, Versions};
use crate::bundle::Registry;
use crate::config::Config;
use crate::events::{self, RequestRecord};
use crate::experiments::off_policy::{self, Answer, Estimate, Place, Report};
use crate::experiments::{GROUPS, draw};
use crate::pipeline::Settings;
use crate::pipeline::replay::Replayer;
use crate::types::{DAY_MS, date_of};

/// Users are drawn into groups and folds by a salt of their own.
const SALT: &str = "off-policy";
/// Events may come so many days after their request.
const DAYS_LATER: i64 = 1;
/// Below so many places that count an interval of a normal distribution says too much.
const PLACES_MIN: f64 = 100.0;

/// Arguments of `shortlist evaluate`.
#[derive(clap::Args)]
pub struct Args {
    /// From logged answers with known chances (`rules.exploration`): asks each logged request of the
    /// bundle, and weighs what came of the items that it puts where they stood.
    #[arg(long, required = true)]
    off_policy: bool,
    /// The bundle, by directory or version; without one, the one that serves.
    #[arg(long, value_name = "BUNDLE")]
    against: Option<String>,
    /// So many days of the log, up to its newest.
    #[arg(long, default_value_t = 7)]
    days: usize,
    /// At most so many requests a day.
    #[arg(long, default_value_t = 100_000)]
    limit: usize,
    /// What is earned: clicks (1 each), or the value of sales.
    #[arg(long, value_enum, default_value = "clicks")]
    reward: Reward,
    /// The logs, instead of `events.archive` or `events.dir`: a directory or a bucket's address.
    #[arg(long)]
    logs: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Reward {
    Clicks,
    Value,
}

/// Evaluates.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let logs = &super::logs::directory(args.logs.as_deref(), None, config)?;
    let mut days = replay::days(logs)?;
    days.drain(..days.len().saturating_sub(args.days.max(1)));
    let mut requests = Vec::new();
    for day in &days {
        for path in events::request_files(logs, day)? {
            requests.extend(events::read_requests(&path, args.limit)?);
        }
    }
    requests.retain(|request| request.served.as_ref().is_some_and(|s| !s.propensities.is_empty()));
    if requests.is_empty() {
        bail!(
            "no request of {} under {} was logged with its chances: set rules.exploration.share, \
             and pipeline.log_full_share, above 0",
            days.join(", "),
            logs.display()
        );
    }
    let rewards = rewards(logs, &requests, args.reward, config)?;
    let target = target(args, config)?;
    let log = answers(&target, requests, &rewards, config)?;
    let report = off_policy::evaluate(&log);
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => lines(&report, &target).iter().for_each(|line| println!("{line}")),
    }
    Ok(())
}

fn target(args: &Args, config: &Config) -> anyhow::Result<String> {
    if let Some(bundle) = &args.against {
        return Ok(bundle.clone());
    }
    let registry = Registry::open(&config.registry)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let current = runtime.block_on(registry.current())?;
    let (_, rollout) = current
        .with_context(|| format!("no bundle serves in {}: give --against", config.registry.url))?;
    Ok(rollout.bundle)
}

/// By request and item: what came of it.
type Rewards = HashMap<(String, String), f64>;

fn rewards(
    logs: &Path,
    requests: &[RequestRecord],
    reward: Reward,
    config: &Config,
) -> anyhow::Result<Rewards> {
    let times = requests.iter().map(|request| request.time_ms);
    let (first, last) = (times.clone().min().unwrap_or(0), times.max().unwrap_or(0));
    let days = (first / DAY_MS..=last / DAY_MS + DAYS_LATER).map(|day| date_of(day * DAY_MS));
    let kinds = match reward {
        Reward::Clicks => &config.rollout.click_kinds,
        Reward::Value => &config.rollout.value_kinds,
    };
    let mut rewards = Rewards::new();
    for day in days {
        for path in events::event_files(logs, &day)? {
            for event in events::read_events(&path)? {
                let Some(request) = event.request_id else { continue };
                if !kinds.contains(&event.event) {
                    continue;
                }
                let earned = rewards.entry((request, event.item_id)).or_insert(0.0);
                match reward {
                    // A second click on the same item of the same answer says nothing new.
                    Reward::Clicks => *earned = 1.0,
                    Reward::Value => *earned += event.value.unwrap_or(0.0),
                }
            }
        }
    }
    Ok(rewards)
}

/// Asks the target, without its own exploration, and puts both answers side by side.
fn answers(
    target: &str,
    requests: Vec<RequestRecord>,
    rewards: &Rewards,
    config: &Config,
) -> anyhow::Result<Vec<Answer>> {
    let versions = Versions::new(config)?;
    let (mut numbers, mut log) = (HashMap::new(), Vec::new());
    let mut number = |id: &String| -> u32 {
        let next = numbers.len() as u32;
        *numbers.entry(id.clone()).or_insert(next)
    };
    for (version, requests) in replay::group(requests) {
        let mut settings: Settings = serde_json::from_str(&version.settings)?;
        settings.rules.exploration.share = 0.0;
        let settings = serde_json::to_string(&settings)?.into();
        let bundle = target.to_owned();
        let serving = versions.open(&Version { bundle, settings, ..version })?;
        let mut replayer = Replayer::new(serving);
        for request in &requests {
            let Some(served) = &request.served else { continue };
            versions.advance(&replayer.serving().bundle, served.item_changes[1])?;
            let rerun = replayer.anew(request, served);
            let earned = |item: &String| {
                rewards.get(&(request.request_id.clone(), item.clone())).copied().unwrap_or(0.0)
            };
            let place = |(at, item): (usize, &String)| Place {
                shown: number(item),
                target: rerun.item_ids.get(at).map(&mut number),
                propensity: served.propensities[at],
                reward: earned(item),
            };
            let places = request.item_ids.iter().enumerate().map(place).collect();
            let drawn = draw(SALT, &request.user_id);
            let user = u64::from(drawn.slot) * GROUPS as u64 + u64::from(drawn.group);
            log.push(Answer { user, places });
        }
    }
    Ok(log)
}

fn lines(report: &Report, target: &str) -> Vec<String> {
    let show = |name: &str, estimate: &Estimate| {
        let Estimate { value, low, high } = estimate;
        format!("  {name:<16} {value:>10.5}  [{low:.5}, {high:.5}]")
    };
    let mut lines = vec![
        format!(
            "{target} on {} answers, {} places; at {} it has the item that stood there",
            report.answers, report.places, report.matching
        ),
        "  reward a place        95 % interval".to_owned(),
        show("as logged", &report.logged),
        show("IPS", &report.ips),
        show("SNIPS", &report.snips),
        show("doubly robust", &report.doubly_robust),
        show("gain over log", &report.gain),
        show("mean weight", &report.support),
    ];
    if report.support.high < 1.0 {
        lines.push(format!(
            "the log could have shown about {:.0} % of what the bundle wants: IPS is too low by the \
             rest, and the others guess it; raise rules.exploration.pool",
            100.0 * report.support.value
        ));
    }
    if report.effective_places < PLACES_MIN {
        lines.push(format!(
            "the weights stand for {:.0} places: too few for these intervals; log and explore more",
            report.effective_places
        ));
    }
    lines
}
