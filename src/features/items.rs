//! Item columns: one `f32` a row, named `table.column`, read in place from the bundle; and the rows
//! that came or changed since, laid over them.

use crate::sections::{self, Column, Sections, SectionsWriter};
use crate::types::ItemIdx;

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
}

/// Rows that stand instead of those of [`ItemColumns`], or beyond them.
pub trait LateRows {
    /// The values of an item in the order of [`ItemColumns::names`]; `None` where the columns hold.
    fn values(&self, item: ItemIdx) -> Option<&[f32]>;
}

/// The item columns as one request sees them.
#[derive(Clone, Copy)]
pub struct ItemRows<'a> {
    columns: &'a ItemColumns,
    late: Option<&'a dyn LateRows>,
    /// Positions among the candidates whose values are late.
    positions: &'a [u32],
}

impl<'a> From<&'a ItemColumns> for ItemRows<'a> {
    fn from(columns: &'a ItemColumns) -> Self {
        Self { columns, late: None, positions: &[] }
    }
}

impl<'a> ItemRows<'a> {
    /// Columns with late rows over them. `positions` names the candidates of the request that have
    /// one, so that the others are read from the columns without a question.
    pub fn new(columns: &'a ItemColumns, late: &'a dyn LateRows, positions: &'a [u32]) -> Self {
        Self { columns, late: Some(late), positions }
    }

    /// See [`ItemRows::new`].
    pub(super) fn late_positions(&self) -> &'a [u32] {
        self.positions
    }

    /// A value of the columns; NaN past their end.
    #[inline]
    pub(super) fn built(&self, at: usize, item: ItemIdx) -> f32 {
        self.columns.column(at).get(item.row()).copied().unwrap_or(f32::NAN)
    }

    /// A value, late or not.
    #[inline]
    pub(super) fn value(&self, at: usize, item: ItemIdx) -> f32 {
        match self.late.and_then(|late| late.values(item)) {
            Some(values) => values[at],
            None => self.built(at, item),
        }
    }
}
