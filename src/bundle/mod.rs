//! One immutable, versioned directory with everything that a version needs.
//!
//! ```text
//! bundles/<version>/  items.bin  users.bin  index.bin  towers.bin  ranker.txt
//!                     features.toml  dictionaries.json  report.json  (report.html)
//!                     manifest.json (last)
//! ```
//! Invariant: an opened [`Bundle`] fits together. The ranker's columns are the schema's, every
//! column that schema and towers read exists, the index holds one vector an item; anything else
//! is refused on opening with the difference. Items may change while it serves (`live_items`), in the
//! order of the registry's change log (`change_log`). This module does not know requests.

mod change_log;
mod live_items;
mod manifest;
mod ranking;
mod registry;
mod rollout;
#[cfg(all(test, feature = "etl"))]
pub mod sample;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use change_log::{Attribute, Batch, Change, ChangeLog, Patch, Upsert};
pub use live_items::{Prepared, Refused};
pub use manifest::{
    Error as ManifestError, FILE_NAME as MANIFEST_FILE, FORMAT_VERSION, FileEntry, Manifest,
    TowerInputs,
};
pub use ranking::{RankScratch, RankerEngine, Ranking};
pub use registry::{Config, Error as RegistryError, Registry};
pub use rollout::{Challenger, Course, LayerPlan, Rollout};

use crate::drift::Reference;
use crate::features::{
    Dictionaries, ItemBlock, Plan, PlanError, Schema, SchemaError, UserRow, UserTable,
};
use crate::forest::{self, Forest};
use crate::index::{self, Allowed, Index};
use crate::packed::Packing;
use crate::sections;
use crate::store::Fit;
use crate::store::items::{self, Items};
use crate::towers::{self, MISSING, Towers, UserInput};
use crate::types::ItemIdx;

/// File names inside a bundle.
pub mod files {
    pub const ITEMS: &str = "items.bin";
    pub const USERS: &str = "users.bin";
    pub const INDEX: &str = "index.bin";
    pub const TOWERS: &str = "towers.bin";
    pub const RANKER: &str = "ranker.txt";
    pub const FEATURES: &str = "features.toml";
    pub const DICTIONARIES: &str = "dictionaries.json";
    pub const REPORT: &str = "report.json";
    /// The report for a person.
    pub const REPORT_PAGE: &str = "report.html";
    /// What training saw, to measure drift against.
    pub const REFERENCE: &str = "reference.json";
    /// Files that a bundle may have beside [`ALL`].
    pub const OPTIONAL: [&str; 2] = [REPORT_PAGE, REFERENCE];
    /// What every bundle has, in the order in which it is opened.
    pub const ALL: [&str; 8] =
        [FEATURES, DICTIONARIES, ITEMS, USERS, INDEX, TOWERS, RANKER, REPORT];
}

/// Everything that serves one version.
pub struct Bundle {
    pub manifest: Manifest,
    pub schema: Schema,
    pub plan: Plan,
    /// The item columns that a request reads, item by item.
    pub rows: ItemBlock,
    pub dictionaries: Dictionaries,
    pub items: Items,
    pub users: UserTable,
    pub index: Box<dyn Index>,
    /// In stock anywhere, then in stock and offered in each region.
    allowed: Vec<Allowed>,
    pub towers: Towers,
    pub ranker: Forest,
    /// What the ranker's training saw; `None` of a bundle that does not remember.
    pub reference: Option<Arc<Reference>>,
    /// The ranker over this bundle's items.
    pub ranking: Ranking,
    tower_user: TowerUser,
    tower_item: live_items::TowerItem,
    applied: live_items::Applied,
    #[cfg(feature = "etl")]
    dir: PathBuf,
}

/// Why a bundle was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{path}: {source}")]
    Schema { path: PathBuf, source: SchemaError },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Items(#[from] items::Error),
    #[error(transparent)]
    Users(#[from] sections::Error),
    #[error(transparent)]
    Index(#[from] index::Error),
    #[error(transparent)]
    Towers(#[from] towers::Error),
    #[error("{path}: {source}")]
    Ranker { path: PathBuf, source: forest::Error },
    #[error("ranker.txt: {0}")]
    Ranking(#[from] forest::CompileError),
    #[cfg(feature = "etl")]
    #[error("ranker.txt: {0}")]
    LightGbm(#[from] crate::ffi::lightgbm::Error),
    #[error(
        "pipeline.ranker.engine = \"lightgbm\": this build has no LightGBM; set \"forest\", or \
         build with the feature `etl`"
    )]
    NoLightGbm,
    #[error("the manifest lists no {name}; the bundle is incomplete")]
    Missing { name: &'static str },
    #[error("features.toml has fingerprint {found}, the manifest {expected}: not one bundle")]
    Fingerprint { found: String, expected: String },
    #[error("towers.bin has version {found}, the manifest {expected}: not one bundle")]
    TowerVersion { found: String, expected: String },
    #[error("column {at} of the ranker is `{ranker}`, of features.toml `{schema}`: retrain it")]
    RankerColumn { at: usize, ranker: String, schema: String },
    #[error("the ranker has {ranker} columns, features.toml {schema}: retrain it")]
    RankerColumns { ranker: usize, schema: usize },
    #[error("reference.json is of other columns than features.toml: not one bundle")]
    Reference,
    #[error("{what}: {found}, but items.bin has {items} items: not one bundle")]
    Size { what: &'static str, found: usize, items: usize },
    #[error("{what}: {found}, but towers.bin has {expected}: not one bundle")]
    TowerWidth { what: &'static str, found: usize, expected: usize },
    #[error("the towers read `{column}`, which {file} does not have")]
    TowerColumn { column: String, file: &'static str },
}

impl Bundle {
    /// Opens a bundle directory and checks that its parts fit; `verify` also compares every
    /// checksum, which reads every byte.
    pub fn open(dir: &Path, verify: bool, config: &index::Config) -> Result<Self, Error> {
        let manifest = Manifest::open(dir, verify)?;
        for name in files::ALL {
            if !manifest.files.contains_key(name) {
                return Err(Error::Missing { name });
            }
        }
        let schema = open_schema(dir)?;
        let (found, expected) = (schema.fingerprint(), &manifest.schema_fingerprint);
        if found != expected {
            let (found, expected) = (found.to_owned(), expected.clone());
            return Err(Error::Fingerprint { found, expected });
        }
        let path = dir.join(files::DICTIONARIES);
        let dictionaries =
            serde_json::from_str(&read(&path)?).map_err(|source| Error::Json { path, source })?;
        let mut items = Items::open(&dir.join(files::ITEMS))?;
        let users = UserTable::open(&dir.join(files::USERS), items.len())?;
        let index = index::open(&dir.join(files::INDEX), config)?;
        let towers = Towers::open(&dir.join(files::TOWERS))?;
        if towers.version() != manifest.tower_version {
            let (found, expected) = (towers.version().to_owned(), manifest.tower_version.clone());
            return Err(Error::TowerVersion { found, expected });
        }
        let sizes = [
            ("vectors in index.bin", index.len()),
            ("items of towers.bin", towers.shape().items as usize),
        ];
        if let Some(&(what, found)) = sizes.iter().find(|(_, found)| *found != items.len()) {
            return Err(Error::Size { what, found, items: items.len() });
        }
        if ![0, users.ids().len()].contains(&towers.users()) {
            let (found, expected) = (towers.users(), users.ids().len());
            return Err(Error::TowerWidth {
                what: "users in users.bin",
                found: expected,
                expected: found,
            });
        }
        check_towers(&towers, &*index, &manifest.tower_inputs)?;
        let ranker = open_ranker(dir, &schema)?;
        let reference = open_reference(dir, &manifest, &schema)?;
        let plan = Plan::new(&schema, &users, items.columns())?;
        let mut ranking = Ranking::new(&ranker, &plan)?;
        let rows = pack(&plan, &mut ranking, &mut items);
        items.columns().let_go();
        let tower_user = TowerUser::new(&manifest.tower_inputs, users.columns())?;
        let tower_item =
            live_items::TowerItem::new(&manifest.tower_inputs, items.columns().names())?;
        let regions = (0..items.regions().len()).map(Some);
        let allowed = std::iter::once(None).chain(regions);
        let allowed = allowed.map(|region| index.allow(&items.eligible(region))).collect();
        Ok(Self {
            manifest,
            schema,
            plan,
            rows,
            dictionaries,
            items,
            users,
            index,
            allowed,
            towers,
            ranker,
            reference,
            ranking,
            tower_user,
            tower_item,
            applied: live_items::Applied::default(),
            #[cfg(feature = "etl")]
            dir: dir.to_owned(),
        })
    }

    /// The items that a request may get: in stock, in a region by position or anywhere.
    pub fn allowed(&self, region: Option<usize>) -> &Allowed {
        &self.allowed[region.map_or(0, |at| at + 1)]
    }

    /// The string behind a code of a feature.
    pub fn code_name(&self, feature: &str, code: u32) -> Option<String> {
        let feature = self.schema.features().iter().find(|f| f.name == feature)?;
        let dictionary = self.dictionaries.get(feature.coded_column()?)?;
        dictionary.value(code).map(str::to_owned)
    }

    /// What of a user in the store fits this bundle.
    pub fn fit(&self) -> Fit {
        Fit::new(self.towers.version(), self.towers.dim(), &self.users, &self.dictionaries)
    }

    /// Chooses who evaluates the ranker; a bundle opens with [`RankerEngine::Forest`].
    ///
    /// # Errors
    /// When this build has no LightGBM, or LightGBM refuses the model.
    pub fn rank_with(&mut self, engine: RankerEngine) -> Result<(), Error> {
        match engine {
            RankerEngine::Forest => Ok(()),
            #[cfg(feature = "etl")]
            RankerEngine::LightGbm => {
                let text = read(&self.dir.join(files::RANKER))?;
                self.ranking.refer_to(crate::ffi::lightgbm::Predictor::new(&text)?);
                Ok(())
            }
            #[cfg(not(feature = "etl"))]
            RankerEngine::LightGbm => Err(Error::NoLightGbm),
        }
    }

    /// The user's vector from a history (oldest first) and what the user table knows.
    pub fn encode_user(
        &self,
        user: UserRow,
        history: &[ItemIdx],
        scratch: &mut EncodeScratch,
        out: &mut [f32],
    ) {
        self.tower_user.encode(&self.towers, user, history, scratch, out);
    }

    /// Space for [`Bundle::encode_user`].
    pub fn encode_scratch(&self) -> EncodeScratch {
        EncodeScratch::new(&self.towers)
    }
}

/// Puts what a request reads of a candidate side by side: the columns that its features read, the ranker's bytes, and
/// what the rules read.
fn pack(plan: &Plan, ranking: &mut Ranking, items: &mut Items) -> ItemBlock {
    let columns = plan.request_rows();
    let widths = [ItemBlock::row_bytes(columns), ranking.bin_bytes(), Items::FACT_BYTES];
    let mut packing = Packing::new(items.len(), widths);
    ItemBlock::fill(items.columns(), columns, packing.part(0));
    ranking.fill_bins(plan, items.columns(), packing.part(1));
    items.fill_facts(packing.part(2));
    let [values, bins, facts] = packing.finish();
    tracing::debug!(?widths, row = values.table().1, "bytes of an item as requests read it");
    ranking.read_bins(bins);
    items.read_facts(facts);
    ItemBlock::of(columns, values)
}

/// Which columns of a user table feed the user tower.
#[derive(Clone, Debug)]
pub struct TowerUser {
    codes: Vec<usize>,
    dense: Vec<usize>,
}

/// Space for encoding users; one a thread.
pub struct EncodeScratch {
    towers: towers::Scratch,
    codes: Vec<u32>,
    dense: Vec<f32>,
}

impl EncodeScratch {
    /// Space for the encoders of these towers.
    pub fn new(towers: &Towers) -> Self {
        Self { towers: towers.scratch(), codes: Vec::new(), dense: Vec::new() }
    }
}

impl TowerUser {
    /// Finds the columns in a user table.
    pub fn new(inputs: &TowerInputs, columns: &[String]) -> Result<Self, Error> {
        let codes = positions(&inputs.user_codes, columns, files::USERS)?;
        Ok(Self { codes, dense: positions(&inputs.user_dense, columns, files::USERS)? })
    }

    /// Encodes a user of that table into `out`.
    pub fn encode(
        &self,
        towers: &Towers,
        user: UserRow,
        history: &[ItemIdx],
        scratch: &mut EncodeScratch,
        out: &mut [f32],
    ) {
        if let Some(vector) = user.row().and_then(|row| towers.user_vector(row)) {
            out.copy_from_slice(vector);
            return;
        }
        let EncodeScratch { towers: space, codes, dense } = scratch;
        codes.clear();
        codes.extend(self.codes.iter().map(|&at| code(user.value(at))));
        dense.clear();
        dense.extend(self.dense.iter().map(|&at| user.value(at)));
        towers.encode_user(&UserInput { history, codes, dense }, space, out);
    }
}

/// Where the columns that the towers read stand in a table.
fn positions(
    names: &[String],
    columns: &[String],
    file: &'static str,
) -> Result<Vec<usize>, Error> {
    let position = |name: &String| {
        let at = columns.iter().position(|column| column == name);
        at.ok_or_else(|| Error::TowerColumn { column: name.clone(), file })
    };
    names.iter().map(position).collect()
}

/// A category code of a column as the towers want it.
pub fn code(value: f32) -> u32 {
    if value.is_nan() { MISSING } else { value as u32 }
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// Towers, index and the columns that feed the towers have the same widths.
fn check_towers(towers: &Towers, index: &dyn Index, inputs: &TowerInputs) -> Result<(), Error> {
    let shape = towers.shape();
    let widths = [
        ("numbers of a vector in index.bin", index.dim(), towers.dim()),
        ("item code columns", inputs.item_codes.len(), shape.item_codes.len()),
        ("item number columns", inputs.item_dense.len(), shape.item_dense as usize),
        ("user code columns", inputs.user_codes.len(), shape.user_codes.len()),
        ("user number columns", inputs.user_dense.len(), shape.user_dense as usize),
    ];
    match widths.into_iter().find(|(_, found, expected)| found != expected) {
        Some((what, found, expected)) => Err(Error::TowerWidth { what, found, expected }),
        None => Ok(()),
    }
}

fn open_reference(
    dir: &Path,
    manifest: &Manifest,
    schema: &Schema,
) -> Result<Option<Arc<Reference>>, Error> {
    if !manifest.files.contains_key(files::REFERENCE) {
        return Ok(None);
    }
    let path = dir.join(files::REFERENCE);
    let parsed = serde_json::from_str(&read(&path)?);
    let reference: Reference = parsed.map_err(|source| Error::Json { path, source })?;
    let columns = reference.features.iter().map(|feature| &feature.name);
    if !columns.eq(schema.features().iter().map(|feature| &feature.name)) {
        return Err(Error::Reference);
    }
    Ok(Some(Arc::new(reference)))
}

fn open_schema(dir: &Path) -> Result<Schema, Error> {
    let path = dir.join(files::FEATURES);
    Schema::parse(&read(&path)?).map_err(|source| Error::Schema { path, source })
}

fn open_ranker(dir: &Path, schema: &Schema) -> Result<Forest, Error> {
    let path = dir.join(files::RANKER);
    let ranker = Forest::parse(&read(&path)?).map_err(|source| Error::Ranker { path, source })?;
    let (names, features) = (ranker.feature_names(), schema.features());
    if names.len() != features.len() {
        let (ranker, schema) = (names.len(), features.len());
        return Err(Error::RankerColumns { ranker, schema });
    }
    for (at, (name, feature)) in names.iter().zip(features).enumerate() {
        if *name != feature.name {
            let (ranker, schema) = (name.clone(), feature.name.clone());
            return Err(Error::RankerColumn { at, ranker, schema });
        }
    }
    Ok(ranker)
}
