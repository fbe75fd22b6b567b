//! Approximate nearest neighbours by inner product, filters inside the search.
//!
//! Invariant: a result never holds an item that fails the filter, and it holds `k` items whenever
//! `k` items pass. Everything else (how many lists are read, how vectors are stored) is a matter
//! of recall and time, settled when the index is built.
//!
//! Knows vectors and dense item rows. Must not know what an item is, where a filter comes from,
//! or that there is a request.

mod bitmap;
mod ivf;
mod kmeans;
mod select;

pub use bitmap::Bitmap;
pub use ivf::IvfIndex;

use std::path::PathBuf;

use crate::kernels;
use crate::sections;
use crate::types::ItemIdx;

/// One neighbour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// Row of the item table.
    pub item: ItemIdx,
    /// Inner product of the query and the stored vector, both of length one: in [-1, 1].
    pub score: f32,
}

/// Which items may be in the result.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'a> {
    /// By item row, over exactly [`Index::len`] items; `None` allows all.
    pub allowed: Option<&'a Bitmap>,
    /// Items to leave out besides (recently shown): tens of them, in any order.
    pub excluded: &'a [ItemIdx],
}

/// Nearest neighbours among the items of one bundle.
pub trait Index: Send + Sync {
    /// Number of items.
    fn len(&self) -> usize;

    /// Length of a vector.
    fn dim(&self) -> usize;

    /// Writes the top `k` allowed items to `out` (cleared first), best first, ties by item.
    ///
    /// `query` is `[dim]` and has length one. There are `k` results whenever `k` items pass the
    /// filter. Allocates nothing once `scratch` and `out` have grown.
    ///
    /// # Panics
    /// When the query or the bitmap has another length than the index.
    fn search(
        &self,
        query: &[f32],
        k: usize,
        filter: &Filter,
        scratch: &mut Scratch,
        out: &mut Vec<Hit>,
    );

    /// The stored vector, `[dim]`; [`kernels::dot`] on it gives the `score` of a hit.
    ///
    /// # Panics
    /// When the item is not below [`Index::len`].
    fn vector(&self, item: ItemIdx) -> &[f32];

    /// Whether there is no item.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Buffers of one searching thread, reused from search to search.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Inner products of a block of rows.
    scores: Vec<f32>,
    /// Lists by coarse score, as keys of `select`.
    order: Vec<u64>,
    /// Slots of a list that pass the filter.
    passing: Vec<u32>,
    /// The excluded items, sorted.
    excluded: Vec<ItemIdx>,
    best: select::Best,
}

/// The index section of the configuration.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Share of the true top k that a search should find: .90, .95 or .99.
    pub recall_target: f32,
    /// Number of lists; 0 chooses 4 sqrt(items).
    pub lists: usize,
    /// Sampled vectors a list from which the centroids are learnt.
    pub sample_rows_per_list: usize,
    /// Rounds of k-means.
    pub iterations: usize,
    /// Queries on which the number of lists to read is calibrated.
    pub calibration_queries_max: usize,
    /// With at most so many items passing the filter, they are compared one by one.
    pub exact_rows_max: usize,
    /// Threads of a build; 0 takes all processors.
    pub threads: usize,
    /// Seed of the sample and of the first centroids.
    pub seed: u64,
}

/// Recall targets for which an index is calibrated.
pub const RECALL_TARGETS: [f32; 3] = [0.90, 0.95, 0.99];

/// Why an index was not built or not opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("vectors of dimension 0 cannot be indexed")]
    NoDimension,
    #[error("{values} values are no whole number of {what} of dimension {dim}")]
    Ragged { what: &'static str, values: usize, dim: usize },
    #[error("{rows} items are more than an index holds ({max})", max = u32::MAX)]
    TooMany { rows: usize },
    #[error(
        "{what} {row} has length {norm}, expected 1: normalise it, or leave it out if it is zero or not a number"
    )]
    NotUnit { what: &'static str, row: usize, norm: f32 },
    #[error("recall target {found} is not calibrated: choose one of {RECALL_TARGETS:?}")]
    RecallTarget { found: f32 },
    #[error("index.{key} is {found}, expected at least {min}")]
    Config { key: &'static str, found: usize, min: usize },
    #[error("no thread pool of {threads} threads: {source}")]
    Threads { threads: usize, source: rayon::ThreadPoolBuildError },
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
    #[error("list {list} ends at {end}, before it begins or past the {rows} items")]
    Offsets { list: usize, end: u64, rows: usize },
    #[error("slot {slot} names item {item}, which is twice there or not below {rows}")]
    Items { slot: usize, item: u32, rows: usize },
    #[error(
        "the calibration for recall {target} does not rise with the depth within {lists} lists"
    )]
    Calibration { target: f32, lists: usize },
    #[error("recall target {found} is not calibrated")]
    RecallTarget { found: f32 },
}

/// The true top `k`, by comparing every allowed item: what audits hold [`Index::search`] against.
///
/// # Panics
/// As [`Index::search`].
pub fn exact_search(
    index: &dyn Index,
    query: &[f32],
    k: usize,
    filter: &Filter,
    scratch: &mut Scratch,
    out: &mut Vec<Hit>,
) {
    let Some(wanted) = begin(index, query, k, filter, scratch, out) else { return };
    scratch.best.start(wanted);
    let mut offer = |item| scratch.best.offer(kernels::dot(query, index.vector(item)), item);
    match filter.allowed {
        Some(allowed) => allowed.iter().for_each(&mut offer),
        None => (0..index.len() as u32).map(ItemIdx).for_each(&mut offer),
    }
    scratch.best.finish(k, &scratch.excluded, out);
}

/// The common opening of every search: checks, clears, sorts the excluded items. Returns how many
/// candidates to keep so that `k` remain when the excluded ones are dropped at the end (a test a
/// kept candidate instead of one a scanned row); `None` when the result is empty.
fn begin(
    index: &dyn Index,
    query: &[f32],
    k: usize,
    filter: &Filter,
    scratch: &mut Scratch,
    out: &mut Vec<Hit>,
) -> Option<usize> {
    assert_eq!(query.len(), index.dim(), "query of another dimension than the index");
    if let Some(allowed) = filter.allowed {
        assert_eq!(allowed.len(), index.len(), "filter over another number of items");
    }
    out.clear();
    scratch.excluded.clear();
    scratch.excluded.extend_from_slice(filter.excluded);
    scratch.excluded.sort_unstable();
    scratch.excluded.dedup();
    let passing = filter.allowed.map_or(index.len(), Bitmap::count_ones);
    (k > 0 && passing > 0).then(|| (k.min(passing) + scratch.excluded.len()).min(passing))
}
