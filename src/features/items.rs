//! Item columns: one `f32` a row, named `table.column`; and the rows that came or changed since a bundle was made,
//! laid over them.
//!
//! They are made column by column and lie in a bundle item by item: whoever opens one reads all of them, and later
//! those who read a few items' columns find each item's in one place of the file.

use crate::packed::{Packing, Part, PartMut};
use crate::sections::{self, Column, Sections, SectionsWriter};
use crate::types::ItemIdx;

/// Rows ahead that are asked for while a row is read.
const AHEAD: usize = 16;
/// Rows that are worked on at a time, so that they stay in the cache.
const BLOCK: usize = 4096;
/// Rows of a bundle's file that are in memory at most while all of them are read.
const LET_GO_ROWS: usize = 1 << 19;
/// The section of a bundle's file.
const SECTION: &str = "columns";

/// Named columns over all items, each of `rows` values; NaN is missing, categories are codes.
#[derive(Clone, Debug)]
pub struct ItemColumns {
    rows: usize,
    names: Vec<String>,
    values: Values,
}

#[derive(Clone, Debug)]
enum Values {
    /// Column by column.
    Columns(Vec<Vec<f32>>),
    /// Item by item.
    Rows(Column<f32>),
}

/// One of [`ItemColumns`].
#[derive(Clone, Copy, Debug)]
pub struct ItemColumn<'a> {
    values: &'a [f32],
    first: usize,
    /// From one row to the next.
    step: usize,
}

impl ItemColumn<'_> {
    /// The value of a row; NaN past the end.
    #[inline]
    pub fn value(self, row: usize) -> f32 {
        self.values.get(self.first + row * self.step).copied().unwrap_or(f32::NAN)
    }
}

impl ItemColumns {
    /// No columns yet, over `rows` items.
    pub fn new(rows: usize) -> Self {
        Self { rows, names: Vec::new(), values: Values::Columns(Vec::new()) }
    }

    /// Adds or replaces a column.
    ///
    /// # Panics
    /// When its length differs from the number of items, and for columns of a bundle.
    pub fn insert(&mut self, name: &str, values: Vec<f32>) {
        assert_eq!(values.len(), self.rows, "column `{name}` has the wrong length");
        let place = self.find(name);
        let Values::Columns(columns) = &mut self.values else {
            panic!("column `{name}`: a bundle does not change");
        };
        match place {
            Some(at) => columns[at] = values,
            None => {
                self.names.push(name.to_owned());
                columns.push(values);
            }
        }
    }

    /// Position of a column.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }

    /// A column.
    pub fn column(&self, at: usize) -> ItemColumn<'_> {
        match &self.values {
            Values::Columns(columns) => ItemColumn { values: &columns[at], first: 0, step: 1 },
            Values::Rows(values) => ItemColumn { values, first: at, step: self.names.len() },
        }
    }

    /// A column by name.
    pub fn get(&self, name: &str) -> Option<ItemColumn<'_>> {
        self.find(name).map(|at| self.column(at))
    }

    /// Copies the values of an item in the order of [`ItemColumns::names`]. Of a bundle's file no page stays in memory.
    ///
    /// # Panics
    /// When there is no such item, or `out` has another length.
    pub fn copy_row(&self, item: ItemIdx, out: &mut [f32]) {
        assert_eq!(out.len(), self.names.len(), "a value a column");
        match &self.values {
            Values::Columns(columns) => {
                out.iter_mut().zip(columns).for_each(|(out, column)| *out = column[item.row()]);
            }
            Values::Rows(values) => values.copy(item.row() * out.len(), out),
        }
    }

    /// Names in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of items.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Writes one section, item by item; the names travel with the caller's metadata.
    pub fn save(&self, file: &mut SectionsWriter) -> Result<(), sections::Error> {
        let width = self.names.len();
        let block = |first: usize| {
            let rows = BLOCK.min(self.rows - first);
            let mut block = vec![0.0; rows * width];
            for at in 0..width {
                let column = self.column(at);
                let places = block.iter_mut().skip(at).step_by(width);
                places.zip(first..).for_each(|(place, row)| *place = column.value(row));
            }
            block
        };
        file.write_chunks::<f32>(SECTION, (0..self.rows).step_by(BLOCK).map(block))
    }

    /// Reads what [`ItemColumns::save`] wrote.
    pub fn open(rows: usize, names: Vec<String>, file: &Sections) -> Result<Self, sections::Error> {
        let values = file.get_exact(SECTION, rows * names.len())?;
        Ok(Self { rows, names, values: Values::Rows(values) })
    }

    /// The values of a column by name, copied. Of a bundle's file no page stays in memory.
    pub fn copy_column(&self, name: &str) -> Option<Vec<f32>> {
        let column = self.get(name)?;
        let mut values = Vec::with_capacity(self.rows);
        for row in 0..self.rows {
            self.let_go_before(row);
            values.push(column.value(row));
        }
        self.let_go();
        Some(values)
    }

    /// For who reads all rows in order: at every so many rows, gives back the memory of those before.
    pub fn let_go_before(&self, row: usize) {
        if row.is_multiple_of(LET_GO_ROWS) {
            self.let_go();
        }
    }

    /// Gives back the memory of columns that lie in a file, until they are read again: for when
    /// their rows have been gathered ([`ItemBlock`]).
    pub fn let_go(&self) {
        if let Values::Rows(values) = &self.values {
            values.let_go();
        }
    }
}

/// Rows that stand instead of those of [`ItemColumns`], or beyond them.
pub trait LateRows {
    /// The values of an item in the order of [`ItemColumns::names`]; `None` where the columns hold.
    fn values(&self, item: ItemIdx) -> Option<&[f32]>;
}

/// Some columns item by item: the values of one item lie side by side, in a part of packed rows.
#[derive(Clone, Debug, Default)]
pub struct ItemBlock {
    columns: Vec<usize>,
    values: Part,
}

impl ItemBlock {
    /// Columns of `items` in rows of their own.
    pub fn new(items: &ItemColumns, columns: &[usize]) -> Self {
        let mut packing = Packing::new(items.rows(), [Self::row_bytes(columns)]);
        Self::fill(items, columns, packing.part(0));
        let [values] = packing.finish();
        Self::of(columns, values)
    }

    /// Bytes of a row of these columns.
    pub fn row_bytes(columns: &[usize]) -> usize {
        columns.len() * size_of::<f32>()
    }

    /// Writes columns into a part of rows of [`ItemBlock::row_bytes`].
    pub fn fill(items: &ItemColumns, columns: &[usize], mut part: PartMut) {
        for first in (0..items.rows()).step_by(BLOCK) {
            items.let_go_before(first);
            for (place, &column) in columns.iter().enumerate() {
                let column = items.column(column);
                for row in first..items.rows().min(first + BLOCK) {
                    let value = column.value(row).to_ne_bytes();
                    part.row(row)[place * 4..][..4].copy_from_slice(&value);
                }
            }
        }
    }

    /// What [`ItemBlock::fill`] has written.
    pub fn of(columns: &[usize], values: Part) -> Self {
        Self { columns: columns.to_vec(), values }
    }

    /// The values of an item; none past the end.
    fn row(&self, item: ItemIdx) -> &[f32] {
        match self.values.row(item.row()) {
            [] => &[],
            bytes => bytemuck::cast_slice(bytes),
        }
    }
}

/// The item columns as one request sees them.
#[derive(Clone, Copy)]
pub struct ItemRows<'a> {
    columns: &'a ItemColumns,
    block: Option<&'a ItemBlock>,
    late: Option<&'a dyn LateRows>,
    /// Positions among the candidates whose values are late.
    positions: &'a [u32],
}

impl<'a> From<&'a ItemColumns> for ItemRows<'a> {
    fn from(columns: &'a ItemColumns) -> Self {
        Self { columns, block: None, late: None, positions: &[] }
    }
}

impl<'a> ItemRows<'a> {
    /// Columns, some of them item by item in `block`, with late rows over them. `positions` names
    /// the candidates of the request that have one, so that the others are read from the columns
    /// without a question.
    pub fn new(
        columns: &'a ItemColumns,
        block: &'a ItemBlock,
        late: &'a dyn LateRows,
        positions: &'a [u32],
    ) -> Self {
        Self { columns, block: Some(block), late: Some(late), positions }
    }

    /// The values of the candidates in some columns: `out` is column-major.
    pub(super) fn gather_candidates(
        &self,
        columns: &[usize],
        items: impl ExactSizeIterator<Item = ItemIdx> + Clone,
        out: &mut Vec<f32>,
    ) {
        let rows = items.len();
        self.gather_built(columns, items.clone(), out);
        let mut items = items.enumerate();
        for &position in self.positions {
            let late = items.find(|&(at, _)| at == position as usize);
            let values = late.and_then(|(_, item)| self.late?.values(item));
            place(columns, values, position as usize, rows, out);
        }
    }

    /// [`ItemRows::gather_candidates`] for any items.
    pub(super) fn gather(
        &self,
        columns: &[usize],
        items: impl ExactSizeIterator<Item = ItemIdx> + Clone,
        out: &mut Vec<f32>,
    ) {
        let rows = items.len();
        self.gather_built(columns, items.clone(), out);
        let Some(late) = self.late else { return };
        for (row, item) in items.enumerate() {
            place(columns, late.values(item), row, rows, out);
        }
    }

    /// The values of the build; NaN past its end.
    fn gather_built(
        &self,
        columns: &[usize],
        items: impl ExactSizeIterator<Item = ItemIdx> + Clone,
        out: &mut Vec<f32>,
    ) {
        let rows = items.len();
        out.clear();
        out.resize(columns.len() * rows, f32::NAN);
        if let Some(block) = self.block.filter(|block| block.columns == columns) {
            let mut later = items.clone().skip(AHEAD);
            for (row, item) in items.enumerate() {
                if let Some(later) = later.next() {
                    block.values.prefetch(later.row());
                }
                for (at, &value) in block.row(item).iter().enumerate() {
                    out[at * rows + row] = value;
                }
            }
            return;
        }
        for (&column, out) in columns.iter().zip(out.chunks_exact_mut(rows.max(1))) {
            let column = self.columns.column(column);
            for (out, item) in out.iter_mut().zip(items.clone()) {
                *out = column.value(item.row());
            }
        }
    }
}

/// Puts late values into their row.
fn place(columns: &[usize], values: Option<&[f32]>, row: usize, rows: usize, out: &mut [f32]) {
    let Some(values) = values else { return };
    for (at, &column) in columns.iter().enumerate() {
        out[at * rows + row] = values[column];
    }
}
