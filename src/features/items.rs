//! Item columns: one `f32` a row, named `table.column`, read in place from the bundle.

use crate::sections::{self, Column, Sections, SectionsWriter};

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
