//! Where the commands that read the logs find them.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::Config;
use crate::objects::{self, Objects};

/// The directory of the logs: the given one, else the archive, else `events.dir`. What lies in a bucket is
/// copied below `events.dir` first, as far as it is new; of the requests only those of `day`, when given.
pub fn directory(
    given: Option<&Path>,
    day: Option<&str>,
    config: &Config,
) -> anyhow::Result<PathBuf> {
    let archive = (!config.events.archive.is_empty()).then_some(&*config.events.archive);
    let url = match (given.map(Path::to_string_lossy), archive) {
        (Some(given), _) => given,
        (None, Some(archive)) => archive.into(),
        (None, None) => return Ok(config.events.dir.clone()),
    };
    if !objects::is_remote(&url) {
        return Ok(PathBuf::from(&*url));
    }
    let objects = Objects::open(&url)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let requests = day.map_or("requests".to_owned(), |day| format!("requests/dt={day}"));
    let copies = config.events.dir.join("copies");
    let prefixes = [requests, "events".to_owned()];
    runtime.block_on(objects.mirror(&prefixes, &copies)).with_context(|| format!("copy {url}"))?;
    Ok(copies)
}
