//! `pipeline refresh`: the models of a bundle over another catalogue.
//!
//! Between two trainings a catalogue changes by more than live updates should carry, and its
//! statistics age. A refresh collects the window, materialises its last midnight, encodes every item
//! with the bundle's own item tower and builds the index; towers, ranker, schema and codes stay what
//! they were, and so does the report on them. Nothing is trained, so nothing is evaluated: the gate
//! has approved these models.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Day;
use crate::bundle::{Bundle, EncodeScratch, Registry, TowerInputs, TowerUser, files};
use crate::features::{ItemColumns, UserTable};
use crate::index;
use crate::offline::as_of::Layout;
use crate::offline::load::Loaded;
use crate::offline::{aggregates, progress, publish, train_towers};
use crate::towers::Towers;

impl Day<'_> {
    /// Publishes the models of the bundle in `base` over the collected catalogue.
    ///
    /// # Errors
    /// When the base reads other features than `offline.features`, or a step fails.
    pub fn refresh(&self, base_dir: &Path) -> Result<()> {
        let base = Bundle::open(base_dir, true, self.shared.index)?;
        ensure!(
            base.schema.fingerprint() == self.schema.fingerprint(),
            "offline.features differs from the features of {}: train with `pipeline run`",
            base_dir.display()
        );
        let (collected, window, _) = self.collect()?;
        let time_ms = window.end;
        self.features(&[time_ms])?;
        let dir = self.work.dir("refresh");
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        let towers = self.pool.install(|| self.parts(&base, &collected, time_ms, &dir))?;
        let copied = [files::RANKER, files::REPORT, files::FEATURES, files::DICTIONARIES];
        let remembered = base.reference.is_some().then_some(files::REFERENCE);
        for name in copied.into_iter().chain(remembered) {
            let from = base_dir.join(name);
            std::fs::copy(&from, dir.join(name))
                .with_context(|| format!("copy {}", from.display()))?;
        }
        let version = publish::write_manifest(
            &dir,
            publish::About {
                tower_version: towers.version(),
                schema_fingerprint: self.schema.fingerprint(),
                as_of_ms: time_ms,
                training_window_ms: base.manifest.training_window_ms,
                tower_inputs: &base.manifest.tower_inputs,
                ranker_sources: base.manifest.ranker_sources.clone(),
                metrics: base.manifest.metrics.clone(),
                parents: vec![base.manifest.bundle_version.clone()],
            },
        )?;
        Bundle::open(&dir, false, self.shared.index)
            .context("the refreshed bundle does not open")?;
        let registry = Registry::open(self.shared.registry)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let reason = format!("{} over a new catalogue", base.manifest.bundle_version);
        runtime.block_on(publish::publish(
            &registry,
            &dir,
            &version,
            (&reason, publish::WHO),
            self.shared.rollout,
            self.shared.registry.bundles_kept,
        ))?;
        tracing::info!("published {version} to {}", self.shared.registry.url);
        Ok(())
    }

    /// Writes tables, towers and index. At ten million items each of them takes gigabytes: one is
    /// let go before the next is made.
    fn parts(&self, base: &Bundle, collected: &Path, time_ms: i64, dir: &Path) -> Result<Towers> {
        let inputs = &base.manifest.tower_inputs;
        let (items, queries, towers) = self.tables(base, inputs, collected, time_ms, dir)?;
        tracing::info!("tables written");
        let vectors = train_towers::item_vectors(&towers, inputs, &items)?;
        drop(items);
        tracing::info!("{} items encoded", vectors.len() / towers.dim());
        let bar = progress::bar("build index", 0);
        let index =
            index::build(&vectors, towers.dim(), &queries, self.shared.index, &|at, of| {
                bar.set_length(of);
                bar.set_position(at);
            })?;
        bar.finish_and_clear();
        index.save(&dir.join(files::INDEX))?;
        Ok(towers)
    }

    /// Writes items, users and towers; gives the item columns and vectors of some users.
    fn tables(
        &self,
        base: &Bundle,
        inputs: &TowerInputs,
        collected: &Path,
        time_ms: i64,
        dir: &Path,
    ) -> Result<(ItemColumns, Vec<f32>, Towers)> {
        let loaded = Loaded::open(collected, &self.config.signals)?;
        let tables = aggregates::day_dir(&self.work.dir("features"), time_ms);
        let mut layout = Layout::new(&self.schema, inputs, &loaded, &tables)?;
        layout.dictionaries = base.dictionaries.clone();
        let as_of = layout.read(&tables, time_ms, &loaded)?;
        let known: Vec<_> = loaded.data.items.iter().map(|id| base.items.find(id)).collect();
        let codes = train_towers::item_codes(&as_of.items, inputs)?;
        let towers = base.towers.over(&known, &codes);
        let known_users = loaded.data.users.iter().map(|id| base.users.row_of(id));
        let towers = towers.over_users(known_users);
        towers.save(&dir.join(files::TOWERS))?;
        publish::write_tables(dir, &loaded, &as_of)?;
        let tower_user = TowerUser::new(inputs, as_of.users.columns())?;
        let queries = self.some_users(&as_of.users, &towers, &tower_user);
        Ok((as_of.items, queries, towers))
    }

    /// Vectors of users with a past, evenly chosen: the recall of an index is measured on what is
    /// searched in it.
    pub(super) fn some_users(
        &self,
        users: &UserTable,
        towers: &Towers,
        tower_user: &TowerUser,
    ) -> Vec<f32> {
        let with_past: Vec<u32> = (0..users.ids().len() as u32)
            .filter(|&user| !users.row(user).history().0.is_empty())
            .collect();
        let wanted = self.shared.index.calibration_queries_max.max(1);
        let step = with_past.len().div_ceil(wanted).max(1);
        let mut scratch = EncodeScratch::new(towers);
        let (mut vectors, mut vector) = (Vec::new(), vec![0.0; towers.dim()]);
        for user in with_past.into_iter().step_by(step).map(|user| users.row(user)) {
            tower_user.encode(towers, user, user.history().0, &mut scratch, &mut vector);
            vectors.extend_from_slice(&vector);
        }
        vectors
    }
}
