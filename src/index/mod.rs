//! Approximate nearest neighbours by inner product, filters inside the search.
//!
//! Invariant: a result never holds an item that fails the filter or has been removed, and it holds
//! `k` items whenever `k` items pass. Everything else (how many lists are read, how vectors are
//! stored) is a matter of recall and time, settled when the index is built.
//!
//! An index is built once and read-only but for its *live* part (`live`): items may be added,
//! replaced, removed, allowed and disallowed while searches run, none of which waits.
//!
//! Knows vectors and dense item rows. Must not know what an item is, where a filter comes from,
//! or that there is a request.

pub mod audit;
mod bitmap;
mod hnsw;
mod ivf;
mod kmeans;
mod live;
mod select;

pub use bitmap::Bitmap;
pub use hnsw::HnswIndex;
pub use ivf::IvfIndex;

use std::path::{Path, PathBuf};

use crate::kernels::{self, int8};
use crate::sections;
use crate::types::ItemIdx;

/// One neighbour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// Row of the item table.
    pub item: ItemIdx,
    /// Inner product of the query and the stored vector, both of length one: in [-1, 1] but for
    /// the rounding of the stored vector.
    pub score: f32,
}

/// A set of items laid out as one index stores them, made by [`Index::allow`].
#[derive(Clone, Debug)]
pub struct Allowed {
    places: Bitmap,
}

impl Allowed {
    /// How many items are in the set.
    pub fn count(&self) -> usize {
        self.places.count_ones()
    }
}

/// Which items may be in the result.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'a> {
    /// A set of the index that is searched; `None` allows all.
    pub allowed: Option<&'a Allowed>,
    /// Items to leave out besides (recently shown): tens of them, in any order.
    pub excluded: &'a [ItemIdx],
}

/// Nearest neighbours among the items of one bundle.
pub trait Index: Send + Sync {
    /// Number of items that the index was built over; rows from here on came live.
    fn len(&self) -> usize;

    /// Length of a vector.
    fn dim(&self) -> usize;

    /// Writes the top `k` allowed items to `out` (cleared first), best first, ties by item.
    ///
    /// `query` is `[dim]` and has length one. There are `k` results whenever `k` items pass the
    /// filter. Allocates nothing once `scratch` and `out` have grown.
    ///
    /// # Panics
    /// When the query or the set has another length than the index.
    fn search(
        &self,
        query: &[f32],
        k: usize,
        filter: &Filter,
        scratch: &mut Scratch,
        out: &mut Vec<Hit>,
    );

    /// As [`Index::search`], but compares every passing item: what a search aims at, up to the
    /// rounding of stored vectors.
    ///
    /// # Panics
    /// As [`Index::search`].
    fn search_exact(
        &self,
        query: &[f32],
        k: usize,
        filter: &Filter,
        scratch: &mut Scratch,
        out: &mut Vec<Hit>,
    );

    /// Writes for each item the score that a hit of it has; NaN for one that is not there.
    ///
    /// # Panics
    /// When the query has another length than the index.
    fn scores(&self, query: &[f32], items: &[ItemIdx], scratch: &mut Scratch, out: &mut Vec<f32>);

    /// The set `items` (over exactly [`Index::len`] items) for use in a [`Filter`]. Rows that came
    /// live are not in it.
    fn allow(&self, items: &Bitmap) -> Allowed;

    /// Puts an item into a set or takes it out, for all searches that begin afterwards. An item
    /// that is not there is not put in.
    fn set_allowed(&self, allowed: &Allowed, item: ItemIdx, member: bool);

    /// Whether an item is there and in a set.
    fn allows(&self, allowed: &Allowed, item: ItemIdx) -> bool;

    /// Writes the stored vector of an item to `out` (`[dim]`), rounded as it is stored and of length
    /// one; false, and nothing written, for an item that is not there.
    ///
    /// # Panics
    /// When `out` has another length than the index's vectors.
    fn vector_of(&self, item: ItemIdx, out: &mut [f32]) -> bool;

    /// Adds or replaces the vector (`[dim]`, of length one) of an item, below or from
    /// [`Index::len`] on, for all searches that begin afterwards. Before it can be found it is put
    /// into or taken out of each of `sets`.
    ///
    /// # Errors
    /// When the vector is not of length one, or the room for live rows is used up.
    fn upsert(&self, item: ItemIdx, vector: &[f32], sets: &[(&Allowed, bool)])
    -> Result<(), Error>;

    /// Removes an item; returns whether it was there.
    fn remove(&self, item: ItemIdx) -> bool;

    /// Rows added or replaced live, and items of the build that are gone or replaced.
    fn changes(&self) -> Changes;

    /// The calibrated recall that searches aim at.
    fn recall_target(&self) -> f32;

    /// Aims at another recall from now on.
    ///
    /// # Errors
    /// When `target` is none of [`RECALL_TARGETS`].
    fn set_recall_target(&mut self, target: f32) -> Result<(), Error>;

    /// Makes room for so many rows that come live, and forgets those that came so far.
    fn set_live_rows_max(&mut self, rows: usize);

    /// Writes the index as it was built, without what came live; the file appears under its name
    /// only when it is complete.
    ///
    /// # Errors
    /// When the file cannot be written.
    fn save(&self, path: &Path) -> Result<(), Error>;

    /// What the index takes, part by part.
    fn layout(&self) -> Layout;

    /// Whether the index was built over nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How far an index has moved from what was built; see [`Index::changes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Rows of the live part, of which removed ones keep their place.
    pub live_rows: usize,
    /// Room for live rows.
    pub live_rows_max: usize,
    /// Items of the build that were replaced or removed.
    pub dead: usize,
}

/// What an index takes, for people; see [`Index::layout`].
#[derive(Clone, Debug)]
pub struct Layout {
    pub items: usize,
    pub dim: usize,
    pub lists: usize,
    /// Rows of the shortest, the median and the longest list.
    pub list_rows: [usize; 3],
    /// Name and bytes of each part.
    pub parts: Vec<(&'static str, usize)>,
    /// Depths of the calibration and, by recall target, the lists that a fixed number would be and
    /// the rows scored again for each row wanted.
    pub depths: Vec<u32>,
    pub probes: Vec<(f32, Vec<u32>, u32)>,
}

/// Buffers of one searching thread, reused from search to search.
#[derive(Debug, Default)]
pub struct Scratch {
    query: Query,
    best: select::Best,
    /// The excluded items, sorted.
    excluded: Vec<ItemIdx>,
    /// Inner products of whole steps.
    dots: Vec<i32>,
    /// Rows that pass the filter.
    passing: Vec<u32>,
    /// Hits that are scored again.
    again: Vec<Hit>,
    /// A row of the re-ranking tier.
    wide: Vec<f32>,
    ivf: ivf::Scratch,
    hnsw: hnsw::Scratch,
}

impl Scratch {
    /// Capacities of all buffers together.
    #[cfg(test)]
    fn capacity(&self) -> usize {
        let Scratch { query, best, excluded, dots, passing, again, wide, ivf, hnsw: _ } = self;
        query.steps.capacity()
            + best.capacity()
            + excluded.capacity()
            + dots.capacity()
            + passing.capacity()
            + again.capacity()
            + wide.capacity()
            + ivf.capacity()
    }

    /// Rows of the lists that the last search read, if it read lists.
    pub fn rows_read(&self) -> usize {
        self.ivf.rows_read()
    }
}

/// A query in the form in which rows of bytes are compared with it.
#[derive(Debug, Default)]
struct Query {
    /// In whole steps, padded.
    steps: Vec<i8>,
    step: f32,
}

impl Query {
    fn set(&mut self, query: &[f32]) {
        self.step = int8::step_of(query);
        self.steps.resize(int8::row_bytes(query.len()), 0);
        int8::quantise(query, self.step, &mut self.steps);
    }
}

/// How an index answers: lists, or a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Inverted lists: any number of items.
    Ivf,
    /// A graph (hnsw_rs): up to about a million items.
    Hnsw,
}

/// Which codes the lists hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codes {
    /// `Pq` from [`Config::pq_rows_min`] items on, else `Compact`.
    Auto,
    /// A byte a number.
    Compact,
    /// Besides, two bits a number, which are read first.
    Pq,
}

/// With what the best hits are scored again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rerank {
    None,
    /// Half-precision vectors, two bytes a number besides.
    F16,
}

/// The index section of the configuration.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub kind: Kind,
    /// Share of the true top k that a search should find: .90, .95 or .99.
    pub recall_target: f32,
    /// Number of lists; 0 chooses 4 sqrt(items).
    pub lists: usize,
    pub codes: Codes,
    /// Items from which `codes = "auto"` means `pq`.
    pub pq_rows_min: usize,
    pub rerank: Rerank,
    /// Sampled vectors a list from which the centroids are learnt.
    pub sample_rows_per_list: usize,
    /// Rounds of k-means.
    pub iterations: usize,
    /// Queries on which the number of lists to read is calibrated.
    pub calibration_queries_max: usize,
    /// With at most so many items passing the filter, they are compared one by one.
    pub exact_rows_max: usize,
    /// Room for items added or replaced while the index is served.
    pub live_rows_max: usize,
    /// Threads of a build; 0 takes all processors.
    pub threads: usize,
    /// Seed of the sample and of the first centroids.
    pub seed: u64,
    pub hnsw: HnswConfig,
}

/// The graph; see `kind`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HnswConfig {
    /// Edges a node.
    pub edges: usize,
    /// Candidates held while the graph is built.
    pub build_candidates: usize,
    /// Memory that the graph may take, GiB.
    pub memory_max_gib: f64,
}

/// Recall targets for which an index is calibrated.
pub const RECALL_TARGETS: [f32; 3] = [0.90, 0.95, 0.99];

/// Most rows that may come live.
const LIVE_ROWS_MAX: usize = 1 << 24;

/// How far from one the length of a vector may be: rounding, not carelessness.
const NORM_TOLERANCE: f32 = 1e-3;

/// Why an index was not built, not opened or not changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("vectors of dimension {dim} cannot be indexed: choose 1 to {max}", max = ivf::DIM_MAX)]
    Dimension { dim: usize },
    #[error("{values} values are no whole number of {what} of dimension {dim}")]
    Ragged { what: &'static str, values: usize, dim: usize },
    #[error("{rows} items are more than an index holds ({max})", max = ivf::ROWS_MAX)]
    TooMany { rows: usize },
    #[error(
        "{what} {row} has length {norm}, expected 1: normalise it, or leave it out if it is zero or not a number"
    )]
    NotUnit { what: &'static str, row: usize, norm: f32 },
    #[error("recall target {found} is not calibrated: choose one of {RECALL_TARGETS:?}")]
    RecallTarget { found: f32 },
    #[error("index.{key} is {found}, expected at least {min}")]
    Config { key: &'static str, found: usize, min: usize },
    #[error("index.hnsw.edges is {found}, expected 2 to {max}")]
    Edges { found: usize, max: usize },
    #[error(
        "a graph of {rows} items of dimension {dim} with {edges} edges needs {needed_gib:.2} GiB, over the {max_gib} GiB of index.hnsw.memory_max_gib: raise it, or choose index.kind = \"ivf\""
    )]
    Memory { rows: usize, dim: usize, edges: usize, needed_gib: f64, max_gib: f64 },
    #[error("{path}: the graph was not written: {source}")]
    Graph { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("no thread pool of {threads} threads: {source}")]
    Threads { threads: usize, source: rayon::ThreadPoolBuildError },
    #[error(
        "all {max} live rows are taken: build the index anew, or raise index.live_rows_max and open it again"
    )]
    LiveRows { max: usize },
    #[error("item {item} is past the {max} items that this index can hold with its live rows")]
    Item { item: u32, max: usize },
    #[error(transparent)]
    File(#[from] sections::Error),
    #[error("{path}: index format {found} is not supported (this program reads {expected})")]
    Format { path: PathBuf, found: u64, expected: u64 },
    #[error("{path}: damaged index: {damage}")]
    Damaged { path: PathBuf, damage: Damage },
}

/// What does not fit together in an index file.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("{rows} items of dimension {dim} in {lists} lists")]
    Shape { rows: u64, dim: u64, lists: u64 },
    #[error("{what} {at} ends at {end}, before it begins or past the {most}")]
    Offsets { what: &'static str, at: usize, end: u64, most: usize },
    #[error("slot {slot} names item {item}, which is twice there or not below {rows}")]
    Items { slot: usize, item: u32, rows: usize },
    #[error("{what} {at} is {value}, which no vectors of length one lead to")]
    Number { what: &'static str, at: usize, value: f32 },
    #[error(
        "the calibration for recall {target} does not rise with the depth within {lists} lists"
    )]
    Calibration { target: f32, lists: usize },
    #[error("recall target {found} is not calibrated")]
    RecallTarget { found: f32 },
    #[error("{rows} items of dimension {dim}")]
    Size { rows: u64, dim: u64 },
    #[error("the candidates for recall {target} do not rise with the depth or are below it")]
    Candidates { target: f32 },
    #[error("the graph was not read: {source}")]
    Graph { source: Box<dyn std::error::Error + Send + Sync> },
}

/// Builds the index that the configuration asks for; see [`IvfIndex::build`].
///
/// # Errors
/// As [`IvfIndex::build`].
pub fn build(
    vectors: &[f32],
    dim: usize,
    queries: &[f32],
    config: &Config,
    progress: &dyn Fn(u64, u64),
) -> Result<Box<dyn Index>, Error> {
    match config.kind {
        Kind::Ivf => Ok(Box::new(IvfIndex::build(vectors, dim, queries, config, progress)?)),
        Kind::Hnsw => Ok(Box::new(HnswIndex::build(vectors, dim, queries, config, progress)?)),
    }
}

/// Reads the index in `path`, of either kind, into memory; the recall target and the room for live
/// rows are those of the configuration.
///
/// # Errors
/// When the file is no index, its parts do not fit together, or the recall target is unknown.
pub fn open(path: &Path, config: &Config) -> Result<Box<dyn Index>, Error> {
    let mut index: Box<dyn Index> = match HnswIndex::is_in(path)? {
        true => Box::new(HnswIndex::open(path)?),
        false => Box::new(IvfIndex::open(path)?),
    };
    index.set_recall_target(config.recall_target)?;
    index.set_live_rows_max(config.live_rows_max);
    Ok(index)
}

/// What both kinds do before a search: check, clear, sort the excluded items, prepare the query.
/// Returns how many candidates to keep so that `k` remain when the excluded ones are dropped at
/// the end (a test a kept candidate instead of one a scanned row); `None` when the result is empty.
fn begin(
    (dim, rows_max): (usize, usize),
    query: &[f32],
    k: usize,
    filter: &Filter,
    scratch: &mut Scratch,
    out: &mut Vec<Hit>,
) -> Option<usize> {
    assert_eq!(query.len(), dim, "query of another dimension than the index");
    out.clear();
    scratch.excluded.clear();
    scratch.excluded.extend_from_slice(filter.excluded);
    scratch.excluded.sort_unstable();
    scratch.excluded.dedup();
    let passing = filter.allowed.map_or(rows_max, Allowed::count).min(rows_max);
    scratch.query.set(query);
    (k > 0 && passing > 0).then(|| (k + scratch.excluded.len()).min(passing))
}

/// The row of a calibration for a recall target of the configuration.
fn target_row(target: f32) -> Result<usize, Error> {
    let known = RECALL_TARGETS.iter().position(|&known| known == target);
    known.ok_or(Error::RecallTarget { found: target })
}

fn check_unit(what: &'static str, row: usize, vector: &[f32]) -> Result<(), Error> {
    let norm = kernels::dot(vector, vector).sqrt();
    if norm.is_nan() || (norm - 1.0).abs() > NORM_TOLERANCE {
        return Err(Error::NotUnit { what, row, norm });
    }
    Ok(())
}
