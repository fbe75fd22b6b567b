//! The bundle that serves, asked the same questions: its features, codes, towers and ranker over the
//! tables of the days that are judged.
//!
//! Invariant: a rival answers from its own models alone. Its vectors and numbers are of the same
//! midnights as the new models', so that what differs is the models and not how old their tables are.

use anyhow::{Context, Result};

use super::super::as_of::{AsOf, Layout, history};
use super::super::examples::{Group, columns_of};
use super::super::load::Loaded;
use super::super::recall::TowerQuery;
use super::super::train_towers;
use crate::bundle::{Bundle, EncodeScratch, TowerInputs, TowerUser};
use crate::features::{Dictionaries, Plan, Schema};
use crate::forest::{Forest, Matrix};
use crate::kernels;
use crate::towers::Towers;
use crate::types::ItemIdx;

/// The models of a bundle over the run's items and users.
pub struct Rival {
    schema: Schema,
    layout: Layout,
    inputs: TowerInputs,
    towers: Towers,
    forest: Forest,
    /// `items x dim`, of the first test day.
    vectors: Vec<f32>,
}

impl Rival {
    /// Puts a bundle's models over the tables of a midnight (`tables`).
    ///
    /// # Errors
    /// When its features or towers read columns that the run's tables do not have.
    pub fn new(bundle: Bundle, loaded: &Loaded, tables: &std::path::Path) -> Result<Self> {
        let Bundle { manifest, schema, dictionaries, items, users, towers, ranker, .. } = bundle;
        let inputs = manifest.tower_inputs;
        let mut layout = Layout::new(&schema, &inputs, loaded, tables)?;
        layout.dictionaries = dictionaries;
        let columns = layout.item_columns(tables, loaded)?;
        let known: Vec<_> = loaded.data.items.iter().map(|id| items.find(id)).collect();
        let codes = train_towers::item_codes(&columns, &inputs)?;
        let towers = towers.over(&known, &codes);
        let towers = towers.over_users(loaded.data.users.iter().map(|id| users.row_of(id)));
        let vectors = train_towers::item_vectors(&towers, &inputs, &columns)?;
        Ok(Self { schema, layout, inputs, towers, forest: ranker, vectors })
    }

    /// Its tables of a midnight.
    pub fn day(&self, tables: &std::path::Path, day_ms: i64, loaded: &Loaded) -> Result<Day<'_>> {
        let as_of = self.layout.read(tables, day_ms, loaded)?;
        let plan = Plan::new(&self.schema, &as_of.users, &as_of.items)?;
        let tower_user = TowerUser::new(&self.inputs, as_of.users.columns())?;
        Ok(Day { rival: self, as_of, plan, tower_user })
    }

    /// How many features it reads.
    pub fn width(&self) -> usize {
        self.schema.len()
    }
}

/// A rival with its tables of one midnight.
pub struct Day<'a> {
    rival: &'a Rival,
    as_of: AsOf,
    plan: Plan,
    tower_user: TowerUser,
}

impl Day<'_> {
    /// Its raw scores of the candidates of a group, whose context is coded by `codes` under `names`.
    pub fn scores(
        &self,
        loaded: &Loaded,
        group: &Group,
        names: &[String],
        codes: &Dictionaries,
    ) -> Vec<f64> {
        let mut group = group.clone();
        group.context = self.context(&group.context, names, codes);
        self.place(loaded, &mut group);
        let (constants, columns) = columns_of(loaded, &self.plan, &self.as_of, &group);
        let rows = group.candidates.len();
        let mut raw = vec![0.0; rows];
        self.rival.forest.score(&Matrix::new(&constants, &columns, rows), &mut raw);
        raw
    }

    /// Scores of all items by its towers.
    pub fn query<'b>(&'b self, loaded: &'b Loaded) -> TowerQuery<'b> {
        TowerQuery::new(loaded, &self.as_of, &self.rival.towers, &self.tower_user)
    }

    /// Its item vectors.
    pub fn vectors(&self) -> &[f32] {
        &self.rival.vectors
    }

    /// Context codes as this bundle codes them.
    fn context(&self, context: &[f32], names: &[String], codes: &Dictionaries) -> Vec<f32> {
        let recode = |name: &String| {
            let at = names.iter().position(|n| n == name)?;
            let code = context[at];
            let value = if code.is_nan() { None } else { codes.get(name)?.value(code as u32) };
            Some(self.rival.layout.dictionaries.feature(name, value))
        };
        let own = self.rival.schema.context_names();
        own.iter().map(|name| recode(name).unwrap_or(f32::NAN)).collect()
    }

    /// Similarities, and ranks where there are any, by its own towers.
    fn place(&self, loaded: &Loaded, group: &mut Group) {
        let rival = self.rival;
        let (mut scratch, mut user) =
            (EncodeScratch::new(&rival.towers), vec![0.0; rival.towers.dim()]);
        let past = history(loaded, group.user, group.time_ms);
        let past: Vec<ItemIdx> = past.into_iter().map(|(item, _)| item).collect();
        let row = self.as_of.users.row(group.user);
        self.tower_user.encode(&rival.towers, row, &past, &mut scratch, &mut user);
        for candidate in &mut group.candidates {
            let at = candidate.item.row() * user.len();
            candidate.similarity = kernels::dot(&user, &rival.vectors[at..at + user.len()]);
            if !candidate.retrieval_score.is_nan() {
                candidate.retrieval_score = candidate.similarity;
            }
        }
        let mut order: Vec<usize> = (0..group.candidates.len()).collect();
        order.sort_by(|&a, &b| {
            group.candidates[b].similarity.total_cmp(&group.candidates[a].similarity)
        });
        for (rank, at) in order.into_iter().enumerate() {
            let candidate = &mut group.candidates[at];
            if !candidate.retrieval_rank.is_nan() {
                candidate.retrieval_rank = rank as f32;
            }
        }
    }
}

/// Opens the bundle in `dir` as a rival; says why it cannot be one.
pub fn open(
    dir: &std::path::Path,
    config: &crate::index::Config,
    loaded: &Loaded,
    tables: &std::path::Path,
) -> Result<Rival> {
    let bundle = Bundle::open(dir, false, config).context("it does not open")?;
    Rival::new(bundle, loaded, tables).context("its columns are not in this run's tables")
}
