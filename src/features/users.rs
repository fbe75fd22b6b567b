//! What is known of users at one moment: values, sparse maps and the last events, by row.
//!
//! The same table serves a request (from the bundle) and a training row (from the
//! materialisation of the day before), so both read a user the same way.

use serde::{Deserialize, Serialize};

use super::{HISTORY_MAX, UserRecord};
use crate::ids::IdTable;
use crate::sections::{self, Column, Sections, SectionsWriter};
use crate::types::ItemIdx;

/// Users of one moment. NaN is missing, categories are codes.
#[derive(Clone, Debug)]
pub struct UserTable {
    ids: IdTable,
    columns: Vec<String>,
    map_names: Vec<String>,
    /// Row-major, `ids.len() * columns.len()`.
    values: Column<f32>,
    maps: Vec<MapColumn>,
    history_ends: Column<u64>,
    history_items: Column<u32>,
    history_times_ms: Column<i64>,
}

/// One sparse map per user: keys ascending within a user.
#[derive(Clone, Debug)]
struct MapColumn {
    ends: Column<u64>,
    keys: Column<u32>,
    values: Column<f32>,
}

/// A borrowed sparse map of one user: `keys` ascending, parallel to `values`.
#[derive(Clone, Copy, Debug, Default)]
pub struct UserMap<'a> {
    pub keys: &'a [u32],
    pub values: &'a [f32],
}

impl UserMap<'_> {
    /// The value at a key; NaN when the user has none.
    #[inline]
    pub fn get(&self, key: f32) -> f32 {
        if key.is_nan() {
            return f32::NAN;
        }
        self.keys.binary_search(&(key as u32)).map_or(f32::NAN, |at| self.values[at])
    }
}

/// A borrowed user, of a table or of a record: values in the table's column order. An unknown
/// user, the default, has no values: all are missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct UserRow<'a> {
    values: &'a [f32],
    source: Source<'a>,
    /// Row of the bundle's table, of a user that it knows.
    row: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Source<'a> {
    #[default]
    Unknown,
    Table(&'a UserTable, u32),
    Record(&'a UserRecord),
}

impl<'a> UserRow<'a> {
    pub(super) fn of_record(record: &'a UserRecord, values: &'a [f32]) -> Self {
        Self { values, source: Source::Record(record), row: None }
    }

    /// The same values as those of the user of a row of the bundle's table.
    pub fn at(self, row: Option<u32>) -> Self {
        Self { row, ..self }
    }

    /// The user's row of the bundle's table; none of a user that it does not know.
    pub fn row(&self) -> Option<u32> {
        self.row
    }

    /// The value of a column by position.
    #[inline]
    pub fn value(&self, at: usize) -> f32 {
        self.values.get(at).copied().unwrap_or(f32::NAN)
    }

    /// The map of a name by position.
    #[inline]
    pub fn map(&self, at: usize) -> UserMap<'a> {
        match self.source {
            Source::Unknown => UserMap::default(),
            Source::Table(table, row) => {
                let column = &table.maps[at];
                let range = range(&column.ends, row);
                UserMap { keys: &column.keys[range.clone()], values: &column.values[range] }
            }
            Source::Record(record) => record.map(at),
        }
    }

    /// Items and times (epoch ms) of the last events that the table knows, oldest first.
    pub fn history(&self) -> (&'a [ItemIdx], &'a [i64]) {
        let Source::Table(table, row) = self.source else { return (&[], &[]) };
        let range = range(&table.history_ends, row);
        let items = &table.history_items[range.clone()];
        (bytemuck::cast_slice(items), &table.history_times_ms[range])
    }
}

impl UserTable {
    /// The user of an external id; an unknown one is a row of missing values.
    pub fn find(&self, id: &str) -> UserRow<'_> {
        self.user(self.ids.find(id))
    }

    /// The row of an external id.
    pub fn row_of(&self, id: &str) -> Option<u32> {
        self.ids.find(id)
    }

    /// The user of a row.
    pub fn row(&self, row: u32) -> UserRow<'_> {
        self.user(Some(row))
    }

    /// The user of a row; `None` is an unknown one, whose values are all missing.
    pub fn user(&self, row: Option<u32>) -> UserRow<'_> {
        let Some(row) = row else { return UserRow::default() };
        let width = self.columns.len();
        let values = &self.values[row as usize * width..][..width];
        UserRow { values, source: Source::Table(self, row), row: Some(row) }
    }

    /// Whether the id is known.
    pub fn contains(&self, id: &str) -> bool {
        self.ids.find(id).is_some()
    }

    /// External ids by row.
    pub fn ids(&self) -> &IdTable {
        &self.ids
    }

    /// Names of the values.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Names of the maps.
    pub fn map_names(&self) -> &[String] {
        &self.map_names
    }

    /// Writes the table as a section file.
    pub fn save(&self, path: &std::path::Path) -> Result<(), sections::Error> {
        let mut file = SectionsWriter::create(path, 9 + 3 * self.maps.len())?;
        let names = Names { columns: self.columns.clone(), maps: self.map_names.clone() };
        let names = serde_json::to_vec(&names).expect("two lists of names");
        file.write("names", &names)?;
        self.ids.save("user", &mut file)?;
        file.write("values", &self.values)?;
        for (at, map) in self.maps.iter().enumerate() {
            file.write(&format!("m.{at}.ends"), &map.ends)?;
            file.write(&format!("m.{at}.keys"), &map.keys)?;
            file.write(&format!("m.{at}.values"), &map.values)?;
        }
        file.write("history.ends", &self.history_ends)?;
        file.write("history.items", &self.history_items)?;
        file.write("history.times_ms", &self.history_times_ms)?;
        file.finish()
    }

    /// Reads what [`UserTable::save`] wrote. `items` bounds the history's item rows.
    ///
    /// # Errors
    /// When a section is missing, or counts, offsets or item rows do not fit together.
    pub fn open(path: &std::path::Path, items: usize) -> Result<Self, sections::Error> {
        let file = Sections::open(path)?;
        file.will_need();
        let damaged = |what: &str| sections::Error::Table {
            path: path.to_owned(),
            what: format!("users: {what}"),
        };
        let names: Names = serde_json::from_slice(&file.get::<u8>("names")?)
            .map_err(|e| damaged(&format!("names are not JSON: {e}")))?;
        let ids = IdTable::open("user", &file)?;
        let n = ids.len();
        let ends_ok = |ends: &[u64], total: usize| {
            ends.is_sorted() && ends.last().map_or(0, |&end| end) == total as u64
        };
        let mut maps = Vec::new();
        for at in 0..names.maps.len() {
            let ends = file.keep_exact(&format!("m.{at}.ends"), n)?;
            let keys = file.keep::<u32>(&format!("m.{at}.keys"))?;
            let values = file.keep_exact(&format!("m.{at}.values"), keys.len())?;
            if !ends_ok(&ends, keys.len()) {
                return Err(damaged(&format!("map `{}` has offsets out of order", names.maps[at])));
            }
            maps.push(MapColumn { ends, keys, values });
        }
        let history_ends = file.keep_exact("history.ends", n)?;
        let history_items = file.keep::<u32>("history.items")?;
        let history_times_ms = file.keep_exact("history.times_ms", history_items.len())?;
        if !ends_ok(&history_ends, history_items.len()) {
            return Err(damaged("history has offsets out of order"));
        }
        if history_items.iter().any(|&item| item as usize >= items) {
            return Err(damaged(&format!("history names an item beyond the {items} of the table")));
        }
        Ok(Self {
            values: file.keep_exact("values", n * names.columns.len())?,
            ids,
            columns: names.columns,
            map_names: names.maps,
            maps,
            history_ends,
            history_items,
            history_times_ms,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Names {
    columns: Vec<String>,
    maps: Vec<String>,
}

/// The pairs (key, value) of one user's map.
type Entries = Vec<(u32, f32)>;

/// Collects a [`UserTable`] column by column; users without a value keep NaN.
pub struct UserTableBuilder {
    ids: IdTable,
    columns: Vec<(String, Vec<f32>)>,
    maps: Vec<(String, Vec<Entries>)>,
    histories: Vec<Vec<(ItemIdx, i64)>>,
}

impl UserTableBuilder {
    /// Starts a table over these users.
    pub fn new(ids: IdTable) -> Self {
        let histories = vec![Vec::new(); ids.len()];
        Self { ids, columns: Vec::new(), maps: Vec::new(), histories }
    }

    /// Row of an external id.
    pub fn find(&self, id: &str) -> Option<u32> {
        self.ids.find(id)
    }

    /// Adds a column of one value a user.
    pub fn column(&mut self, name: &str, values: Vec<f32>) {
        assert_eq!(values.len(), self.ids.len(), "column `{name}` has the wrong length");
        self.columns.push((name.to_owned(), values));
    }

    /// Adds a map: pairs (key, value) of each user in any order.
    pub fn map(&mut self, name: &str, entries: Vec<Entries>) {
        assert_eq!(entries.len(), self.ids.len(), "map `{name}` has the wrong length");
        self.maps.push((name.to_owned(), entries));
    }

    /// Sets the last events of a user, oldest first; the newest [`HISTORY_MAX`] are kept.
    pub fn history(&mut self, row: u32, mut events: Vec<(ItemIdx, i64)>) {
        let surplus = events.len().saturating_sub(HISTORY_MAX);
        events.drain(..surplus);
        self.histories[row as usize] = events;
    }

    /// The finished table.
    pub fn build(self) -> UserTable {
        let n = self.ids.len();
        let values = (0..n)
            .flat_map(|row| self.columns.iter().map(move |(_, column)| column[row]))
            .collect::<Vec<f32>>();
        let (map_names, maps) =
            self.maps.into_iter().map(|(name, e)| (name, map_column(e))).unzip();
        let flat = || self.histories.iter().flatten();
        UserTable {
            columns: self.columns.into_iter().map(|(name, _)| name).collect(),
            map_names,
            values: values.into(),
            maps,
            history_items: flat().map(|&(item, _)| item.0).collect::<Vec<u32>>().into(),
            history_times_ms: flat().map(|&(_, time)| time).collect::<Vec<i64>>().into(),
            history_ends: ends(self.histories.iter().map(Vec::len)).into(),
            ids: self.ids,
        }
    }
}

fn map_column(mut entries: Vec<Entries>) -> MapColumn {
    for entry in &mut entries {
        entry.sort_unstable_by_key(|&(key, _)| key);
    }
    MapColumn {
        ends: ends(entries.iter().map(Vec::len)).into(),
        keys: entries.iter().flatten().map(|&(key, _)| key).collect::<Vec<u32>>().into(),
        values: entries.iter().flatten().map(|&(_, value)| value).collect::<Vec<f32>>().into(),
    }
}

fn ends(lengths: impl Iterator<Item = usize>) -> Vec<u64> {
    lengths
        .scan(0u64, |end, length| {
            *end += length as u64;
            Some(*end)
        })
        .collect()
}

fn range(ends: &[u64], row: u32) -> std::ops::Range<usize> {
    let start = if row == 0 { 0 } else { ends[row as usize - 1] };
    start as usize..ends[row as usize] as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> UserTable {
        let mut users = UserTableBuilder::new(IdTable::new(["u1", "u2", "u3"].into_iter()));
        users.column("user_stats.a", vec![1.0, 2.0, f32::NAN]);
        users.column("user_stats.b", vec![10.0, 20.0, 30.0]);
        users.map("user_category.share", vec![vec![(9, 0.9), (2, 0.2)], vec![], vec![(0, 1.0)]]);
        users.history(1, (0..60).map(|i| (ItemIdx(i), i64::from(i) * 10)).collect());
        users.build()
    }

    #[test]
    fn a_user_reads_the_same_before_and_after_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users.bin");
        sample().save(&path).unwrap();
        for table in [sample(), UserTable::open(&path, 60).unwrap()] {
            let (first, second) = (table.find("u1"), table.find("u2"));
            assert_eq!((first.value(0), second.value(1)), (1.0, 20.0));
            assert!(table.find("u3").value(0).is_nan());
            assert_eq!((first.map(0).get(9.0), first.map(0).get(2.0)), (0.9, 0.2));
            assert!(first.map(0).get(3.0).is_nan() && first.map(0).get(f32::NAN).is_nan());
            let (items, times) = second.history();
            assert_eq!((items.len(), items[0], times[49]), (HISTORY_MAX, ItemIdx(10), 590));
            assert!(first.history().0.is_empty());
        }
        assert!(UserTable::open(&path, 59).is_err(), "item 59 lies beyond the table");
    }

    #[test]
    fn an_unknown_user_is_a_row_of_missing_values() {
        let table = sample();
        let nobody = table.find("nobody");
        assert!(nobody.value(1).is_nan() && nobody.map(0).get(9.0).is_nan());
        assert!(nobody.history().0.is_empty() && !table.contains("nobody"));
    }
}
