//! Item columns: one `f32` a row, named `table.column`, read in place from the bundle; and the rows
//! that came or changed since, laid over them.

use crate::packed::{Packing, Part, PartMut};
use crate::sections::{self, Column, Sections, SectionsWriter};
use crate::types::ItemIdx;

/// Rows ahead that are asked for while a row is read.
const AHEAD: usize = 16;

/// Named columns over all items, each of `rows` values; NaN is missing, categories are codes.
#[derive(Clone, Debug, Default)]
pub struct ItemColumns {
    rows: usize,
    names: Vec<String>,
    values: Vec<Column<f32>>,
}

impl ItemColumns {
    /// No columns yet, over `rows` items.
    pub fn new(rows: usize) -> Self {
        Self { rows, names: Vec::new(), values: Vec::new() }
    }

    /// Adds or replaces a column.
    ///
    /// # Panics
    /// When its length differs from the number of items.
    pub fn insert(&mut self, name: &str, values: impl Into<Column<f32>>) {
        let values = values.into();
        assert_eq!(values.len(), self.rows, "column `{name}` has the wrong length");
        match self.find(name) {
            Some(at) => self.values[at] = values,
            None => {
                self.names.push(name.to_owned());
                self.values.push(values);
            }
        }
    }

    /// Position of a column.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }

    /// The values of a column.
    pub fn column(&self, at: usize) -> &[f32] {
        &self.values[at]
    }

    /// The values of a column by name.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.find(name).map(|at| self.column(at))
    }

    /// Names in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of items.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Writes one section a column, `c.<position>`; the names travel with the caller's metadata.
    pub fn save(&self, file: &mut SectionsWriter) -> Result<(), sections::Error> {
        for (at, values) in self.values.iter().enumerate() {
            file.write(&format!("c.{at}"), values)?;
        }
        Ok(())
    }

    /// Reads what [`ItemColumns::save`] wrote.
    pub fn open(rows: usize, names: Vec<String>, file: &Sections) -> Result<Self, sections::Error> {
        let values = (0..names.len())
            .map(|at| file.get_exact(&format!("c.{at}"), rows))
            .collect::<Result<_, _>>()?;
        Ok(Self { rows, names, values })
    }

    /// Gives back the memory of columns that lie in a file, until they are read again: for when
    /// their rows have been gathered ([`ItemBlock`]).
    pub fn let_go(&self) {
        self.values.iter().for_each(Column::let_go);
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
        // A stretch of rows at a time, so that what is written stays in the cache.
        const ROWS: usize = 4096;
        for first in (0..items.rows()).step_by(ROWS) {
            for (place, &column) in columns.iter().enumerate() {
                let values = items.column(column)[first..].iter().take(ROWS);
                for (row, value) in (first..).zip(values) {
                    part.row(row)[place * 4..][..4].copy_from_slice(&value.to_ne_bytes());
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
                *out = column.get(item.row()).copied().unwrap_or(f32::NAN);
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
