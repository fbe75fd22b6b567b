//! The ranker as a bundle serves it: the forest prepared for its items, or LightGBM itself.
//!
//! Columns that depend on the item alone are kept as bytes of all items, so a request neither fills
//! nor bins them. Both engines give the same raw scores; LightGBM is there to compare with, takes
//! whole rows, and lets one thread in at a time.

use serde::{Deserialize, Serialize};

use crate::features::{ItemColumns, Plan};
#[cfg(feature = "etl")]
use crate::ffi::lightgbm::{Layout, Predictor, Table};
use crate::forest::{self, Bins, CompileError, Evaluator, Forest};
use crate::packed::{Part, PartMut};
use crate::types::ItemIdx;

/// Who evaluates the ranker's trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RankerEngine {
    /// This program's evaluator.
    Forest,
    /// LightGBM's own predictor; only in builds with the feature `etl`.
    LightGbm,
}

/// A ranker ready for requests.
pub struct Ranking {
    evaluator: Evaluator,
    bins: Bins,
    /// Positions among the plan's columns of those that depend on the item alone.
    item_only: Vec<usize>,
    #[cfg(feature = "etl")]
    reference: Option<Predictor>,
}

/// What one thread needs to rank.
pub struct RankScratch {
    forest: forest::Scratch,
    items: Vec<ItemIdx>,
    /// Row-major rows, for LightGBM only.
    #[cfg(feature = "etl")]
    rows: Vec<f32>,
    #[cfg(feature = "etl")]
    constants: Vec<f32>,
}

impl Ranking {
    /// Prepares the forest, as yet over no items.
    ///
    /// # Errors
    /// When the model is larger than the evaluator's byte columns allow.
    pub fn new(forest: &Forest, plan: &Plan) -> Result<Self, CompileError> {
        let item_only = plan.item_only();
        Ok(Self {
            evaluator: Evaluator::new(forest, plan.constant_count(), &item_only)?,
            bins: Bins::default(),
            item_only: (0..item_only.len()).filter(|&at| item_only[at]).collect(),
            #[cfg(feature = "etl")]
            reference: None,
        })
    }

    /// Bytes of a row of [`Ranking::fill_bins`].
    pub fn bin_bytes(&self) -> usize {
        self.evaluator.bin_bytes()
    }

    /// Writes the item columns of all items as bytes into rows of [`Ranking::bin_bytes`].
    pub fn fill_bins(&self, plan: &Plan, items: &ItemColumns, part: PartMut) {
        self.evaluator.fill_bins(part, |place, first_row, out| {
            items.let_go_before(first_row);
            plan.item_column(self.item_only[place], items, first_row, out);
        });
    }

    /// Ranks the items whose bytes [`Ranking::fill_bins`] has written.
    pub fn read_bins(&mut self, part: Part) {
        self.bins = Bins::of(part);
    }

    /// The bytes of one item whose item columns have these values.
    pub fn bins_of(&self, plan: &Plan, values: &[f32]) -> Vec<u8> {
        let bins = self.evaluator.bin_items(1, |place, _, out| {
            out[0] = plan.item_value(self.item_only[place], |column| values[column]);
        });
        bins.row(0).to_vec()
    }

    /// Lets LightGBM evaluate from now on.
    #[cfg(feature = "etl")]
    pub fn refer_to(&mut self, reference: Predictor) {
        self.reference = Some(reference);
    }

    /// Whether [`Self::score`] wants every column ([`Plan::columns`]) instead of those that need a
    /// request ([`Plan::request_columns`]).
    pub fn wants_all_columns(&self) -> bool {
        #[cfg(feature = "etl")]
        let all = self.reference.is_some();
        #[cfg(not(feature = "etl"))]
        let all = false;
        all
    }

    /// Space for requests of up to `candidates`; more make it grow once.
    pub fn scratch(&self, candidates: usize) -> RankScratch {
        RankScratch {
            forest: self.evaluator.scratch(),
            items: Vec::with_capacity(candidates),
            #[cfg(feature = "etl")]
            rows: Vec::new(),
            #[cfg(feature = "etl")]
            constants: Vec::new(),
        }
    }

    /// Takes the user and context columns of a request: needs no candidates.
    pub fn specialise(&self, constants: &[f32], scratch: &mut RankScratch) {
        #[cfg(feature = "etl")]
        if self.reference.is_some() {
            scratch.constants.clear();
            scratch.constants.extend_from_slice(constants);
            return;
        }
        self.evaluator.specialise(constants, &mut scratch.forest);
    }

    /// Writes the raw scores of candidates, after [`Self::specialise`]. `columns` are those that
    /// [`Self::wants_all_columns`] says; `late` gives candidates by position, ascending, whose bytes
    /// ([`Self::bins_of`]) are not those of the build. False when LightGBM refused.
    pub fn score<'a>(
        &self,
        items: impl Iterator<Item = ItemIdx>,
        late: impl Iterator<Item = (usize, &'a [u8])> + Clone,
        columns: &[f32],
        scratch: &mut RankScratch,
        out: &mut [f64],
    ) -> bool {
        #[cfg(feature = "etl")]
        if let Some(reference) = &self.reference {
            return refer(reference, columns, scratch, out);
        }
        scratch.items.clear();
        scratch.items.extend(items);
        let RankScratch { forest, items, .. } = scratch;
        self.evaluator.score_with(&self.bins, items, late, columns, forest, out);
        true
    }
}

#[cfg(feature = "etl")]
fn refer(
    reference: &Predictor,
    columns: &[f32],
    scratch: &mut RankScratch,
    out: &mut [f64],
) -> bool {
    let rows = out.len();
    if rows == 0 {
        return true;
    }
    scratch.rows.clear();
    for row in 0..rows {
        scratch.rows.extend_from_slice(&scratch.constants);
        scratch.rows.extend(columns.iter().skip(row).step_by(rows));
    }
    let values = &scratch.rows[..];
    let table = Table { values, rows, columns: values.len() / rows, layout: Layout::Rows };
    let done = reference.raw(table, out);
    if let Err(error) = &done {
        tracing::error!("ranker.engine = lightgbm: {error}");
    }
    done.is_ok()
}
