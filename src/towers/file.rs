//! The towers file: one section per weight array, in the container of `crate::sections`.
//!
//! ```text
//! towers.shape          u32   format, then the sizes of the shape, lists preceded by their length
//! towers.pools          f32   half-life of each pool, in events
//! table.<n>             f32   rows x width, in the order of the layout
//! mlp.item, mlp.user    f32   per layer weights (inputs x outputs), biases
//! standard.<side>.mean, standard.<side>.inverse   f32
//! items.id_row          u32   by item
//! items.code_row        u16   items x code columns
//! users.row             u32   by user: row of users.vectors, or u32::MAX  (of foreign towers, may be
//! users.vectors         f32   rows x dim                                   absent)
//! ```

use std::path::Path;

use crate::sections::{Column, Sections, SectionsWriter};

use super::Error;
use super::foreign::NO_VECTOR;
use super::mlp::Mlp;
use super::model::{POOLS_MAX, Shape, Standard, Table, Towers};

const FORMAT: u32 = 1;
/// Bound of every list in the shape, for hostile files.
const LIST_MAX: usize = 256;
/// Bound of every width, likewise.
const WIDTH_MAX: u32 = 8192;

impl Towers {
    /// Writes the towers; the file appears under its name only when it is whole.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let mut writer = SectionsWriter::create(path, self.tables.len() + 12)?;
        writer.write("towers.shape", &self.shape.to_words())?;
        writer.write("towers.pools", &self.shape.pool_half_lives_events)?;
        for (index, table) in self.tables.iter().enumerate() {
            writer.write::<f32>(&format!("table.{index}"), &table.values)?;
        }
        for (name, values) in self.networks() {
            writer.write::<f32>(name, values)?;
        }
        writer.write::<u32>("items.id_row", &self.id_row)?;
        writer.write::<u16>("items.code_row", &self.item_code_row)?;
        if !self.user_row.is_empty() {
            writer.write::<u32>("users.row", &self.user_row)?;
            writer.write::<f32>("users.vectors", &self.user_vectors)?;
        }
        Ok(writer.finish()?)
    }

    /// Opens and validates a towers file.
    ///
    /// # Errors
    /// When the file is damaged, of another format, inconsistent, or holds a value that is not
    /// finite. Every section is compared with its checksum.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = Sections::open(path)?;
        file.verify()?;
        let pools = file.get::<f32>("towers.pools")?.to_vec();
        let shape = Shape::from_words(path, &file.get::<u32>("towers.shape")?, pools)?;
        let layout = shape.layout();
        let table = |(index, &(rows, dim)): (usize, &(usize, usize))| {
            let values = file.keep_exact::<f32>(&format!("table.{index}"), rows * dim)?;
            Ok(Table { dim, values })
        };
        let tables = layout.tables.iter().enumerate().map(table).collect::<Result<_, Error>>()?;
        let network = |name: &str, input: usize| -> Result<Mlp, Error> {
            let sizes = shape.sizes(input);
            let params = file.keep_exact::<f32>(name, Mlp::param_count(&sizes))?;
            Ok(Mlp { sizes, params })
        };
        let standard = |side: &str, width: u32| -> Result<Standard, Error> {
            Ok(Standard {
                mean: file.get_exact(&format!("standard.{side}.mean"), width as usize)?,
                inverse: file.get_exact(&format!("standard.{side}.inverse"), width as usize)?,
            })
        };
        let items = shape.items as usize;
        let (user_row, user_vectors) = match file.has("users.row") {
            true => (file.keep("users.row")?, file.keep("users.vectors")?),
            false => (Vec::new().into(), Vec::new().into()),
        };
        let mut towers = Self {
            item: network("mlp.item", layout.item_input)?,
            user: network("mlp.user", layout.user_input)?,
            item_standard: standard("item", shape.item_dense)?,
            user_standard: standard("user", shape.user_dense)?,
            id_row: file.keep_exact("items.id_row", items)?,
            item_code_row: file.keep_exact("items.code_row", items * shape.item_codes.len())?,
            user_row,
            user_vectors,
            version: String::new(),
            tables,
            layout,
            shape,
        };
        towers.check(path)?;
        towers.version = towers.fingerprint();
        Ok(towers)
    }

    /// Hex of the blake3 of everything that decides a vector.
    pub(super) fn fingerprint(&self) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(bytemuck::cast_slice(&self.shape.to_words()));
        hash.update(bytemuck::cast_slice(&self.shape.pool_half_lives_events));
        for table in &self.tables {
            hash.update(bytemuck::cast_slice(&table.values));
        }
        for (_, values) in self.networks() {
            hash.update(bytemuck::cast_slice(values));
        }
        hash.update(bytemuck::cast_slice(&self.id_row));
        hash.update(bytemuck::cast_slice(&self.item_code_row));
        hash.update(bytemuck::cast_slice(&self.user_row));
        hash.update(bytemuck::cast_slice(&self.user_vectors));
        hash.finalize().to_hex().to_string()
    }

    fn networks(&self) -> [(&'static str, &[f32]); 6] {
        [
            ("mlp.item", &self.item.params),
            ("mlp.user", &self.user.params),
            ("standard.item.mean", &self.item_standard.mean),
            ("standard.item.inverse", &self.item_standard.inverse),
            ("standard.user.mean", &self.user_standard.mean),
            ("standard.user.inverse", &self.user_standard.inverse),
        ]
    }

    /// Every row number lies in its table and every weight is finite, so that encoding can
    /// neither panic nor answer with NaN.
    fn check(&self, path: &Path) -> Result<(), Error> {
        let range = |what, found: u64, limit: u64| {
            let path = path.to_owned();
            if found < limit { Ok(()) } else { Err(Error::Range { path, what, found, limit }) }
        };
        for &row in self.id_row.iter() {
            range("id row", row.into(), self.shape.id_rows.into())?;
        }
        for rows in self.item_code_row.chunks_exact(self.shape.item_codes.len().max(1)) {
            for (&row, &codes) in rows.iter().zip(&self.shape.item_codes) {
                range("code row", row.into(), u64::from(codes) + 1)?;
            }
        }
        let vectors = self.user_vectors.len() / self.dim();
        for &row in self.user_row.iter().filter(|row| **row != NO_VECTOR) {
            range("user vector", row.into(), vectors as u64)?;
        }
        let finite = |values: &Column<f32>| values.iter().all(|value| value.is_finite());
        let networks = self.networks().iter().all(|(_, v)| v.iter().all(|x| x.is_finite()));
        let networks = networks && finite(&self.user_vectors);
        if !networks || !self.tables.iter().all(|table| finite(&table.values)) {
            return Err(Error::NotFinite { path: path.to_owned() });
        }
        Ok(())
    }
}

impl Shape {
    fn to_words(&self) -> Vec<u32> {
        let mut words = vec![
            FORMAT,
            self.dim,
            self.id_dim,
            self.code_dim_max,
            self.history_max,
            self.separate_history_tables.into(),
            self.items,
            self.id_rows,
            self.item_dense,
            self.user_dense,
        ];
        for list in [&self.hidden, &self.item_codes, &self.user_codes] {
            words.push(list.len() as u32);
            words.extend(list);
        }
        words
    }

    fn from_words(path: &Path, words: &[u32], pools: Vec<f32>) -> Result<Self, Error> {
        let damaged = |what| Error::Shape { path: path.to_owned(), what };
        let mut words = words.iter().copied();
        let mut next = || words.next().ok_or_else(|| damaged("too short"));
        let found = next()?;
        if found != FORMAT {
            return Err(Error::Format { path: path.to_owned(), found, expected: FORMAT });
        }
        let mut shape = Self {
            dim: next()?,
            id_dim: next()?,
            code_dim_max: next()?,
            history_max: next()?,
            separate_history_tables: next()? != 0,
            items: next()?,
            id_rows: next()?,
            item_dense: next()?,
            user_dense: next()?,
            pool_half_lives_events: pools,
            hidden: Vec::new(),
            item_codes: Vec::new(),
            user_codes: Vec::new(),
        };
        for list in [&mut shape.hidden, &mut shape.item_codes, &mut shape.user_codes] {
            let length = next()? as usize;
            if length > LIST_MAX {
                return Err(damaged("a list is too long"));
            }
            for _ in 0..length {
                list.push(next()?);
            }
        }
        if words.next().is_some() {
            return Err(damaged("too long"));
        }
        shape.check().map_err(damaged)?;
        Ok(shape)
    }

    /// Bounds that keep every size product far from overflow.
    fn check(&self) -> Result<(), &'static str> {
        let width = |width: u32| (1..=WIDTH_MAX).contains(&width);
        let widths = [self.dim, self.id_dim, self.code_dim_max, self.history_max.min(WIDTH_MAX)];
        if !widths.into_iter().all(width) || !self.hidden.iter().all(|&w| width(w)) {
            return Err("a width is out of range");
        }
        if self.item_dense > WIDTH_MAX || self.user_dense > WIDTH_MAX {
            return Err("too many dense features");
        }
        if self.id_rows == 0 || self.item_codes.iter().any(|&codes| codes >= u16::MAX.into()) {
            return Err("a table is out of range");
        }
        let lives = &self.pool_half_lives_events;
        if lives.is_empty() || lives.len() > POOLS_MAX || !lives.iter().all(|&life| life > 0.0) {
            return Err("a pool's half-life is out of range");
        }
        Ok(())
    }
}
