//! `shortlist replay`: logged requests asked again, of the bundle that answered them or of another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};

use crate::bundle::{Bundle, ChangeLog, Registry};
use crate::config::Config;
use crate::events::{self, RequestRecord};
use crate::pipeline::diff::{self, Diff};
use crate::pipeline::replay::{Replayer, Verified};
use crate::pipeline::{Serving, Settings, advance};

/// Arguments of `shortlist replay`.
#[derive(clap::Args)]
pub struct Args {
    /// The day whose requests are asked, YYYY-MM-DD; without one, the newest in the log.
    #[arg(long)]
    day: Option<String>,
    /// At most so many requests, the day's first ones of each file.
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    /// A bundle, by directory or version, to compare with the ones that answered.
    #[arg(long, value_name = "BUNDLE")]
    against: Option<String>,
    /// The day's logs, instead of `events.archive` or `events.dir`: a directory or a bucket's address.
    #[arg(long)]
    logs: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Asks the requests again.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let logs = &super::logs::directory(args.logs.as_deref(), args.day.as_deref(), config)?;
    let requests = requests(logs, args.day.as_deref(), args.limit)?;
    let versions = Versions::new(config)?;
    let groups = group(requests);
    match &args.against {
        None => verify(&versions, &groups, args.json),
        Some(bundle) => compare(&versions, &groups, bundle, args.json),
    }
}

/// Requests that were logged in full.
pub fn requests(
    logs: &Path,
    day: Option<&str>,
    limit: usize,
) -> anyhow::Result<Vec<RequestRecord>> {
    let day = match day {
        Some(day) => day.to_owned(),
        None => days(logs)?.pop().unwrap_or_default(),
    };
    let mut found: Vec<RequestRecord> = Vec::new();
    for path in events::request_files(logs, &day)? {
        found.extend(events::read_requests(&path, limit - found.len())?);
    }
    if found.is_empty() {
        bail!(
            "no request of {day} under {} was logged in full: raise pipeline.log_full_share, or \
             give --day",
            logs.display()
        );
    }
    Ok(found)
}

/// The days of the request log, ascending.
pub fn days(logs: &Path) -> anyhow::Result<Vec<String>> {
    let directory = logs.join("requests");
    let entries = std::fs::read_dir(&directory)
        .with_context(|| format!("{}: no request log; give --logs", directory.display()))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let days = names.filter_map(|name| name.strip_prefix("dt=").map(str::to_owned));
    let mut days: Vec<String> = days.collect();
    days.sort_unstable();
    if days.is_empty() {
        bail!("{}: no day in the request log", directory.display());
    }
    Ok(days)
}

/// What a version is: bundle, settings, and where in the change log it began.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub bundle: String,
    pub settings: Arc<str>,
    pub made_at: u64,
}

/// Requests by version, and within one in the order of what was applied.
pub fn group(requests: Vec<RequestRecord>) -> BTreeMap<Version, Vec<RequestRecord>> {
    let mut groups: BTreeMap<Version, Vec<RequestRecord>> = BTreeMap::new();
    for request in requests {
        let Some(served) = &request.served else { continue };
        let version = Version {
            bundle: request.bundle_version.clone(),
            settings: served.settings.clone(),
            made_at: served.item_changes[0],
        };
        groups.entry(version).or_default().push(request);
    }
    let applied = |request: &RequestRecord| request.served.as_ref().map(|s| s.item_changes[1]);
    groups.values_mut().for_each(|group| group.sort_by_key(applied));
    groups
}

fn verify(
    versions: &Versions,
    groups: &BTreeMap<Version, Vec<RequestRecord>>,
    json: bool,
) -> anyhow::Result<()> {
    let mut verified = Verified::default();
    for (version, requests) in groups {
        let mut replayer = Replayer::new(versions.open(version)?);
        for request in requests {
            let Some(served) = &request.served else { continue };
            let [_, entry, settled] = served.item_changes;
            if entry != settled {
                verified.skip();
                continue;
            }
            versions.advance(&replayer.serving().bundle, entry)?;
            let rerun = replayer.again(request, served);
            verified.add(request, served, &rerun);
        }
    }
    match json {
        true => println!("{}", serde_json::to_string_pretty(&verified)?),
        false => verified.lines().iter().for_each(|line| println!("{line}")),
    }
    if !verified.holds() {
        bail!("requests have another answer now than they had");
    }
    Ok(())
}

fn compare(
    versions: &Versions,
    groups: &BTreeMap<Version, Vec<RequestRecord>>,
    bundle: &str,
    json: bool,
) -> anyhow::Result<()> {
    let diffs = diffs(versions, groups, bundle)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&diffs)?);
        return Ok(());
    }
    for diff in &diffs {
        diff.lines().iter().for_each(|line| println!("{line}"));
    }
    Ok(())
}

fn diffs(
    versions: &Versions,
    groups: &BTreeMap<Version, Vec<RequestRecord>>,
    bundle: &str,
) -> anyhow::Result<Vec<Diff>> {
    let mut diffs = Vec::new();
    for (version, requests) in groups {
        let old = versions.open(version)?;
        versions.advance(&old.bundle, u64::MAX)?;
        let challenger = Version { bundle: bundle.to_owned(), ..version.clone() };
        let new = versions.open(&challenger)?;
        versions.advance(&new.bundle, u64::MAX)?;
        diffs.push(diff::compare(&old, &new, requests));
    }
    Ok(diffs)
}

/// How `challenger` would have answered the newest requests that `stable` did, at most `limit`.
///
/// # Errors
/// When none was logged in full, or a bundle cannot be opened.
pub fn rehearse(
    config: &Config,
    stable: &str,
    challenger: &str,
    limit: usize,
) -> anyhow::Result<Vec<Diff>> {
    let mut requests = requests(&super::logs::directory(None, None, config)?, None, limit)?;
    requests.retain(|request| request.bundle_version == stable);
    if requests.is_empty() {
        bail!("no request that {stable} answered is logged in full");
    }
    diffs(&Versions::new(config)?, &group(requests), challenger)
}

/// Opens what answered.
pub struct Versions<'a> {
    config: &'a Config,
    registry: Registry,
    log: ChangeLog,
    runtime: tokio::runtime::Runtime,
}

impl<'a> Versions<'a> {
    /// From the registry and the items' change log of this configuration.
    pub fn new(config: &'a Config) -> anyhow::Result<Self> {
        let registry = Registry::open(&config.registry)?;
        let log = ChangeLog::new(registry.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { config, registry, log, runtime })
    }

    /// Opens a version as it was when it began.
    pub fn open(&self, version: &Version) -> anyhow::Result<Arc<Serving>> {
        let given = Path::new(&version.bundle);
        let dir = match given.join(crate::bundle::MANIFEST_FILE).is_file() {
            true => given.to_owned(),
            false => self.runtime.block_on(self.registry.bundle(&version.bundle))?,
        };
        let settings: Settings = serde_json::from_str(&version.settings).context(
            "the log's settings are of another version of this program: replay with the one that \
             wrote it",
        )?;
        let index = &self.config.index;
        let bundle = Bundle::open(&dir, false, index)
            .with_context(|| format!("the bundle `{}` of the log", version.bundle))?;
        self.advance(&bundle, version.made_at)?;
        Ok(Arc::new(Serving::new(1, bundle, Arc::new(settings))?))
    }

    /// Applies the items' change log as far as it was.
    pub fn advance(&self, bundle: &Bundle, to: u64) -> anyhow::Result<()> {
        Ok(self.runtime.block_on(advance(&self.log, bundle, to))?)
    }
}
