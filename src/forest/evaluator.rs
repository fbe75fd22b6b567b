//! The forest for requests: prepared when a bundle loads, pruned on what a request knows first,
//! evaluated over its candidates.
//!
//! ```text
//! load        Evaluator::new     byte columns, compiled trees
//!             bin_items          bytes of the item columns, row by row: Bins
//! request     specialise         user and context columns -> the splits that are left (in Scratch)
//!             score              bins of the candidates + the other columns -> raw scores
//! ```
//! Features come in three groups: constants first; among the others, those that depend on the item
//! alone are *cached* in [`Bins`] and the rest arrive as columns with each request. Specialising
//! needs no candidate, so it can run while they are retrieved.
//!
//! Invariant: [`Evaluator::score`] gives the bits of [`Forest::score`]: the same decisions, the
//! same leaf values, added in the same order. It allocates nothing.

use super::Forest;
use super::bytes::{COLUMNS_MAX, Column, Columns};
use super::compiled::{Batch, Compiled, Program};
use crate::kernels::forest::{self as kernel, MISSING, Plane, ROWS, TOGETHER};
use crate::packed::{Packing, Part, PartMut};
use crate::types::ItemIdx;

/// Why a forest has no evaluator, although it can be scored row by row.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CompileError {
    #[error(
        "the model needs more than {COLUMNS_MAX} byte columns or has a tree of more than 2^24 \
         leaves: train it with a smaller `max_bin`, fewer categories or fewer leaves"
    )]
    TooLarge,
    #[error("{constants} constant and {varying} varying features, the model has {features}")]
    Features { constants: usize, varying: usize, features: usize },
}

/// A forest prepared for requests.
#[derive(Clone, Debug)]
pub struct Evaluator {
    compiled: Compiled,
    constants: usize,
    /// Byte columns of the constants, of cached features, of columns of the request.
    constant_columns: Vec<Column>,
    cached_columns: Vec<Column>,
    request_columns: Vec<Column>,
    /// Features that are cached, and that arrive with the request.
    cached: usize,
    requested: usize,
}

/// The cached features of all items, as bytes, row by row.
#[derive(Clone, Debug, Default)]
pub struct Bins(Part);

impl Bins {
    /// What [`Evaluator::fill_bins`] has written.
    pub fn of(part: Part) -> Self {
        Self(part)
    }

    /// Number of items.
    pub fn rows(&self) -> usize {
        self.0.rows()
    }

    /// Bytes an item.
    pub fn width(&self) -> usize {
        self.0.width()
    }

    /// The bytes of an item.
    pub fn row(&self, row: usize) -> &[u8] {
        self.0.row(row)
    }
}

/// What one thread needs to score; sized for any request of its [`Evaluator`].
#[derive(Clone, Debug)]
pub struct Scratch {
    program: Program,
    constants: Vec<u8>,
    planes: Vec<Plane>,
    picks: Vec<u32>,
    leaves: Vec<u32>,
}

#[cfg(test)]
impl Scratch {
    /// Grows when a call allocates.
    pub(super) fn capacity(&self) -> usize {
        let all = [self.picks.capacity(), self.leaves.capacity(), self.planes.capacity()];
        self.program.capacity() + self.constants.capacity() + all.iter().sum::<usize>()
    }
}

impl Evaluator {
    /// Prepares a forest whose first `constants` features are the same for all rows of a request;
    /// `cached` says of each other feature whether it depends on the item alone.
    ///
    /// # Errors
    /// When the features do not add up, or the model is larger than byte columns allow.
    pub fn new(forest: &Forest, constants: usize, cached: &[bool]) -> Result<Self, CompileError> {
        let (varying, features) = (cached.len(), forest.feature_count());
        if constants + varying != features {
            return Err(CompileError::Features { constants, varying, features });
        }
        let mut columns = Columns::new(forest).ok_or(CompileError::TooLarge)?;
        let is_constant = |column: &Column| (column.feature as usize) < constants;
        let is_cached = |column: &Column| cached[column.feature as usize - constants];
        // Constant, then cached, then requested: the order of planes.
        columns.sort_by_key(|column| match column {
            column if is_constant(column) => 0,
            column if is_cached(column) => 1,
            _ => 2,
        });
        let count = columns.columns.iter().filter(|column| is_constant(column)).count();
        let compiled = Compiled::new(forest, &columns, count).ok_or(CompileError::TooLarge)?;
        let mut constant_columns = columns.columns;
        let mut cached_columns = constant_columns.split_off(count);
        let count = cached_columns.iter().filter(|column| is_cached(column)).count();
        let mut request_columns = cached_columns.split_off(count);
        // From here on a column names its place in what it is filled from.
        let place = |wanted: bool, column: &mut Column| {
            let before = &cached[..column.feature as usize - constants];
            column.feature = before.iter().filter(|&&cached| cached == wanted).count() as u32;
        };
        cached_columns.iter_mut().for_each(|column| place(true, column));
        request_columns.iter_mut().for_each(|column| place(false, column));
        let requested = cached.iter().filter(|&&cached| !cached).count();
        Ok(Self {
            compiled,
            constants,
            constant_columns,
            cached_columns,
            request_columns,
            cached: varying - requested,
            requested,
        })
    }

    /// Number of constant features.
    pub fn constants(&self) -> usize {
        self.constants
    }

    /// Number of features that arrive with each request.
    pub fn requested(&self) -> usize {
        self.requested
    }

    /// Buffers for requests; the model decides their size, the number of candidates does not.
    pub fn scratch(&self) -> Scratch {
        let columns = self.cached_columns.len() + self.request_columns.len();
        Scratch {
            program: self.compiled.program(),
            constants: vec![MISSING; self.constant_columns.len()],
            planes: vec![Plane::filled(MISSING); self.compiled.first_column() + columns],
            picks: vec![0; ROWS],
            leaves: vec![0; ROWS],
        }
    }

    /// Bytes of the cached features of an item.
    pub fn bin_bytes(&self) -> usize {
        self.cached_columns.len()
    }

    /// Bytes of the cached features of `rows` items, as [`Evaluator::fill_bins`], in rows of their own.
    pub fn bin_items(&self, rows: usize, fill: impl FnMut(usize, usize, &mut [f32])) -> Bins {
        let mut packing = Packing::new(rows, [self.bin_bytes()]);
        self.fill_bins(packing.part(0), fill);
        let [bytes] = packing.finish();
        Bins(bytes)
    }

    /// Writes the bytes of the cached features of all items into rows of [`Evaluator::bin_bytes`].
    /// `fill(feature, first_row, out)` writes the values of the cached feature at this position for `out.len()`
    /// items from `first_row` on.
    pub fn fill_bins(&self, mut part: PartMut, mut fill: impl FnMut(usize, usize, &mut [f32])) {
        let rows = part.rows();
        let (mut values, mut column_bytes) = ([0.0_f32; ROWS], [0_u8; ROWS]);
        for first_row in (0..rows).step_by(ROWS) {
            let block = ROWS.min(rows - first_row);
            let mut filled = None;
            for (at, column) in self.cached_columns.iter().enumerate() {
                if filled != Some(column.feature) {
                    fill(column.feature as usize, first_row, &mut values[..block]);
                    filled = Some(column.feature);
                }
                column.fill(&values[..block], &mut column_bytes[..block]);
                for (row, &byte) in column_bytes[..block].iter().enumerate() {
                    part.row(first_row + row)[at] = byte;
                }
            }
        }
    }

    /// Decides every split on a constant feature. The scratch then scores any number of
    /// candidates, until it is specialised anew.
    ///
    /// # Panics
    /// When `constants` are not as many as announced, or the scratch is another evaluator's.
    pub fn specialise(&self, constants: &[f32], scratch: &mut Scratch) {
        assert_eq!(constants.len(), self.constants, "one value a constant feature");
        assert_eq!(scratch.constants.len(), self.constant_columns.len(), "a foreign scratch");
        for (column, byte) in self.constant_columns.iter().zip(&mut scratch.constants) {
            let value = constants[column.feature as usize];
            column.fill(&[value], std::slice::from_mut(byte));
        }
        self.compiled.specialise(&scratch.constants, &mut scratch.program);
    }

    /// Raw scores of candidates: `items` name rows of `bins`, `columns` hold the features that
    /// arrive with the request, column-major, one value a candidate. The scratch must have been
    /// specialised for this request.
    ///
    /// # Panics
    /// When a length disagrees, an item is outside the bins, or bins or scratch are another
    /// evaluator's.
    pub fn score(
        &self,
        bins: &Bins,
        items: &[ItemIdx],
        columns: &[f32],
        scratch: &mut Scratch,
        out: &mut [f64],
    ) {
        self.score_with(bins, items, std::iter::empty(), columns, scratch, out);
    }

    /// [`Evaluator::score`] where some candidates have bytes of their own instead of a row of
    /// `bins`: `late` gives their positions, ascending, with [`Bins::width`] bytes each.
    ///
    /// # Panics
    /// As [`Evaluator::score`]; a late item may be outside the bins.
    pub fn score_with<'a>(
        &self,
        bins: &Bins,
        items: &[ItemIdx],
        late: impl Iterator<Item = (usize, &'a [u8])> + Clone,
        columns: &[f32],
        scratch: &mut Scratch,
        out: &mut [f64],
    ) {
        let rows = out.len();
        assert_eq!(columns.len(), self.requested * rows, "one value a cell of the request");
        assert_eq!(bins.width(), self.cached_columns.len(), "bins of another model");
        if self.cached > 0 {
            assert_eq!(items.len(), rows, "one score an item");
        }
        for (block, out) in out.chunks_mut(ROWS).enumerate() {
            let first = block * ROWS;
            let planes = &mut scratch.planes[self.compiled.first_column()..];
            let (cached, requested) = planes.split_at_mut(self.cached_columns.len());
            if !cached.is_empty() {
                let picks = &mut scratch.picks[..out.len()];
                picks.iter_mut().zip(&items[first..]).for_each(|(pick, item)| *pick = item.0);
                let end = first + picks.len();
                let late = late.clone().skip_while(|&(at, _)| at < first);
                let late = late.take_while(|&(at, _)| at < end);
                // Any row will do for what is overwritten.
                late.clone().for_each(|(at, _)| picks[at - first] = 0);
                if bins.rows() > 0 {
                    let (table, stride, offset) = bins.0.table();
                    kernel::gather(table, (stride, offset), picks, cached);
                }
                for (at, bytes) in late {
                    assert_eq!(bytes.len(), bins.width(), "one byte a cached column");
                    let planes = bytes.iter().zip(cached.iter_mut());
                    planes.for_each(|(&byte, plane)| plane.0[at - first] = byte);
                }
            }
            for (column, plane) in self.request_columns.iter().zip(requested) {
                let values = &columns[column.feature as usize * rows + first..][..out.len()];
                column.fill(values, &mut plane.0[..out.len()]);
            }
            self.score_block(scratch, out);
        }
    }

    /// Runs the program over the filled planes.
    fn score_block(&self, scratch: &mut Scratch, out: &mut [f64]) {
        let Scratch { program, planes, leaves: numbers, .. } = scratch;
        let (sets, results) = (self.compiled.sets(), self.compiled.results());
        out.fill(0.0);
        let mut start = 0;
        for batch in &program.batches {
            let ops = &program.ops[start..batch.ops_end];
            start = batch.ops_end;
            if batch.bytes == 1 {
                kernel::run(ops, sets, planes, out.len(), 0);
                let values = tables(batch, &program.leaves);
                kernel::add_leaves(&planes[results..][..batch.trees], &values[..batch.trees], out);
                continue;
            }
            let numbers = &mut numbers[..out.len()];
            numbers.fill(0);
            for byte in 0..batch.bytes {
                kernel::run(ops, sets, planes, out.len(), byte);
                for (number, &part) in numbers.iter_mut().zip(&planes[results].0) {
                    *number |= u32::from(part) << (8 * byte);
                }
            }
            let values = &program.leaves[batch.leaves[0]..];
            for (score, &number) in out.iter_mut().zip(numbers.iter()) {
                *score += values[number as usize];
            }
        }
    }
}

/// The leaf values of a batch's trees; a table runs on into the next tree's, which no number of
/// its own tree reaches.
fn tables<'a>(batch: &Batch, leaves: &'a [f64]) -> [&'a [f64; 256]; TOGETHER] {
    batch.leaves.map(|start| leaves[start..].first_chunk().expect("256 values follow every leaf"))
}
