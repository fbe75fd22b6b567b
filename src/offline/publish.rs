//! Steps `assemble` and `publish`: from the parts of a day to a bundle in the registry.
//!
//! A bundle is complete when its manifest is there; the directory gets its final name only then.
//! Its version is its date and a hash of its content, so publishing the same parts twice gives
//! the same bundle once.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::as_of::AsOf;
use super::load::Loaded;
use super::workspace::write_atomically;
use crate::bundle::{
    FORMAT_VERSION, FileEntry, MANIFEST_FILE, Manifest, Registry, Rollout, TowerInputs, files,
};
use crate::pipeline::{RolloutConfig, begin};
use crate::store::items::{ItemRecord, Items};
use crate::types::date_of;

/// Who wrote a state that the day wrote.
pub const WHO: &str = "pipeline";

/// Writes `items.bin` and `users.bin` of a moment.
pub fn write_tables(dir: &Path, loaded: &Loaded, as_of: &AsOf) -> Result<()> {
    Items::save(&dir.join(files::ITEMS), &records(loaded)?, &as_of.items)?;
    as_of.users.save(&dir.join(files::USERS))?;
    Ok(())
}

/// What `manifest()` cannot read from the files.
pub struct About<'a> {
    pub tower_version: &'a str,
    pub schema_fingerprint: &'a str,
    pub as_of_ms: i64,
    pub training_window_ms: [i64; 2],
    pub tower_inputs: &'a TowerInputs,
    pub ranker_sources: Vec<String>,
    pub metrics: BTreeMap<String, f64>,
    pub parents: Vec<String>,
}

/// Writes the manifest of the files in `dir` and returns the bundle's version.
pub fn write_manifest(dir: &Path, about: About) -> Result<String> {
    let mut entries = BTreeMap::new();
    let mut content = blake3::Hasher::new();
    let there = files::OPTIONAL.into_iter().filter(|name| dir.join(name).exists());
    for name in files::ALL.into_iter().chain(there) {
        let entry = FileEntry::of(&dir.join(name))?;
        // The report tells of timings and parents; it must not make a new version by itself.
        if name != files::REPORT && name != files::REPORT_PAGE {
            content.update(entry.blake3.as_bytes());
        }
        entries.insert(name.to_owned(), entry);
    }
    let hash = content.finalize().to_hex();
    let bundle_version = format!("{}-{}", date_of(about.as_of_ms), &hash[..8]);
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        bundle_version: bundle_version.clone(),
        tower_version: about.tower_version.to_owned(),
        schema_fingerprint: about.schema_fingerprint.to_owned(),
        as_of_ms: about.as_of_ms,
        training_window_ms: about.training_window_ms,
        tower_inputs: about.tower_inputs.clone(),
        ranker_sources: about.ranker_sources,
        metrics: about.metrics,
        parents: about.parents,
        files: entries,
    };
    write_atomically(&dir.join(MANIFEST_FILE), &serde_json::to_vec_pretty(&manifest)?)?;
    Ok(bundle_version)
}

/// Copies a complete bundle into the registry and makes it the one that serves, or, as
/// `rollout.publish_on_trial` says, the one that is tried beside it. Of the bundles that are not in use
/// `kept` are left.
pub async fn publish(
    registry: &Registry,
    dir: &Path,
    version: &str,
    (reason, who): (&str, &str),
    config: &RolloutConfig,
    kept: usize,
) -> Result<()> {
    let target = registry.bundle_dir(version)?;
    if !target.join(MANIFEST_FILE).exists() {
        let partial = target.with_extension("partial");
        if partial.exists() {
            std::fs::remove_dir_all(&partial)?;
        }
        std::fs::create_dir_all(&partial)
            .with_context(|| format!("create {}", partial.display()))?;
        let there = files::OPTIONAL.into_iter().filter(|name| dir.join(name).exists());
        for name in files::ALL.into_iter().chain(there).chain([MANIFEST_FILE]) {
            std::fs::copy(dir.join(name), partial.join(name))
                .with_context(|| format!("copy {name} to {}", partial.display()))?;
        }
        Manifest::open(&partial, true)?;
        std::fs::rename(&partial, &target)
            .with_context(|| format!("rename to {}", target.display()))?;
    }
    registry.upload(version).await?;
    let current = registry.current().await?;
    if let Some((_, state)) = &current {
        let tried = state.challenger.as_ref().map(|plan| plan.bundle.as_str());
        if state.bundle == version || tried == Some(version) {
            return Ok(());
        }
    }
    let next = match &current {
        // The first bundle has nothing beside which it could be tried.
        Some((number, state)) if config.publish_on_trial => {
            let now_ms = chrono::Utc::now().timestamp_millis();
            begin(registry, (*number, state), version, (reason, who), now_ms, &config.guard)?
        }
        Some((_, state)) => state.served_by(version, reason, who),
        None => Rollout::whole(version, reason, who),
    };
    let written = registry.succeed(current.as_ref().map_or(0, |state| state.0), &next).await?;
    ensure!(written.is_some(), "another rollout began at the same time; run publish again");
    let replaced = current.as_ref().map(|(_, state)| state.bundle.as_str());
    let tried = next.challenger.as_ref().map(|plan| plan.bundle.as_str());
    let used: Vec<&str> =
        [Some(next.bundle.as_str()), replaced, tried].into_iter().flatten().collect();
    for gone in registry.prune(kept, &used).await? {
        tracing::info!("{gone} is deleted: registry.bundles_kept = {kept}");
    }
    Ok(())
}

/// The catalogue as serving shows it.
fn records(loaded: &Loaded) -> Result<Vec<ItemRecord>> {
    let frame = &loaded.items;
    let text = |name: &str| {
        if frame.has(name) { frame.strings(name) } else { Ok(vec![None; frame.rows()]) }
    };
    let lists = |name: &str| {
        if frame.has(name) { frame.lists(name) } else { Ok(vec![Vec::new(); frame.rows()]) }
    };
    let (titles, categories, images) = (text("title")?, text("category")?, text("image_url")?);
    let prices =
        if frame.has("price") { frame.f32("price")? } else { vec![f32::NAN; frame.rows()] };
    let created =
        if frame.has("created_ms") { frame.i64("created_ms")? } else { vec![None; frame.rows()] };
    let in_stock =
        if frame.has("in_stock") { frame.bools("in_stock")? } else { vec![true; frame.rows()] };
    let (regions, labels) = (lists("regions")?, lists("labels")?);
    let record = |row: usize| ItemRecord {
        id: loaded.data.items[row].clone(),
        title: titles[row].clone(),
        category: categories[row].clone(),
        price: Some(prices[row]).filter(|price| !price.is_nan()),
        created_ms: created[row],
        in_stock: in_stock[row],
        regions: regions[row].clone(),
        labels: labels[row].clone(),
        image_url: images[row].clone(),
    };
    Ok((0..frame.rows()).map(record).collect())
}
