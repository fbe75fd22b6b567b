//! One user's features outside a bundle: values and sparse maps in one block of memory.
//!
//! The block is also what a store keeps, so that reading a record is one copy:
//! ```text
//! f32 values, one a column | u32 ends, one a map | u32 keys of all maps | f32 values of all maps
//! ```
//! Codes and positions mean something only beside the names and dictionaries of one bundle;
//! [`fingerprint`] names them.

use super::{Dictionaries, UserMap, UserRow, UserTable};

/// An owned user; reads like a row of the table that its fingerprint names.
#[derive(Clone, Debug, PartialEq)]
pub struct UserRecord {
    words: Box<[u32]>,
    columns: usize,
    maps: usize,
}

impl UserRecord {
    /// Copies a row of a table with so many columns and maps.
    pub fn of(row: UserRow<'_>, columns: usize, maps: usize) -> Self {
        let each = || (0..maps).map(|at| row.map(at));
        let mut words: Vec<u32> = (0..columns).map(|at| row.value(at).to_bits()).collect();
        words.extend(each().scan(0, |end, map| {
            *end += map.keys.len() as u32;
            Some(*end)
        }));
        words.extend(each().flat_map(|map| map.keys));
        words.extend(each().flat_map(|map| map.values).map(|value| value.to_bits()));
        Self { words: words.into(), columns, maps }
    }

    /// Reads what [`UserRecord::bytes`] gives; `None` when it is no record of so many columns and
    /// maps.
    pub fn read(bytes: &[u8], columns: usize, maps: usize) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<4>();
        let words: Box<[u32]> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let record = Self { words, columns, maps };
        let ends = record.words.get(columns..columns + maps)?;
        let entries = ends.last().map_or(0, |&end| end as usize);
        let whole = rest.is_empty() && record.words.len() == columns + maps + 2 * entries;
        (whole && ends.is_sorted() && (0..maps).all(|at| record.map(at).keys.is_sorted()))
            .then_some(record)
    }

    /// The block, little-endian.
    pub fn bytes(&self) -> impl Iterator<Item = u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes())
    }

    /// The user as features read one.
    pub fn row(&self) -> UserRow<'_> {
        UserRow::of_record(self, bytemuck::cast_slice(&self.words[..self.columns]))
    }

    /// Sets the value of a column by position.
    pub fn set(&mut self, at: usize, value: f32) {
        bytemuck::cast_slice_mut(&mut self.words[..self.columns])[at] = value;
    }

    pub(super) fn map(&self, at: usize) -> UserMap<'_> {
        let ends = &self.words[self.columns..][..self.maps];
        let entries = ends.last().map_or(0, |&end| end as usize);
        let start = if at == 0 { 0 } else { ends[at - 1] as usize };
        let range = start..ends[at] as usize;
        let (keys, values) = self.words[self.columns + self.maps..].split_at(entries);
        UserMap { keys: &keys[range.clone()], values: bytemuck::cast_slice(&values[range]) }
    }
}

/// Names what a record's positions and codes mean: the columns and maps of the table, and every
/// dictionary. Equal fingerprints, exchangeable records.
pub fn fingerprint(users: &UserTable, dictionaries: &Dictionaries) -> u64 {
    let mut hasher = blake3::Hasher::new();
    let names = (users.columns(), users.map_names(), dictionaries);
    serde_json::to_writer(&mut hasher, &names).expect("names and strings are JSON");
    let hash = hasher.finalize();
    u64::from_le_bytes(*hash.as_bytes().first_chunk::<8>().expect("a hash of 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{Dictionary, UserTableBuilder};
    use crate::ids::IdTable;

    fn table() -> UserTable {
        let mut users = UserTableBuilder::new(IdTable::new(["ann", "bob"].into_iter()));
        users.column("users.age", vec![33.0, f32::NAN]);
        users.column("users.region", vec![2.0, 0.0]);
        users.map("user_brand.share", vec![vec![], vec![(1, 0.5)]]);
        users.map("user_category.share", vec![vec![(9, 0.9), (2, 0.1)], vec![(4, 1.0)]]);
        users.build()
    }

    fn bytes(user: &str) -> Vec<u8> {
        UserRecord::of(table().find(user), 2, 2).bytes().collect()
    }

    #[test]
    fn a_record_reads_like_its_row() {
        for user in ["ann", "bob", "nobody"] {
            let table = table();
            let (row, record) = (table.find(user), UserRecord::read(&bytes(user), 2, 2).unwrap());
            for at in 0..2 {
                assert_eq!(record.row().value(at).to_bits(), row.value(at).to_bits(), "{user}");
                assert_eq!(record.row().map(at).keys, row.map(at).keys, "{user}");
                assert_eq!(record.row().map(at).values, row.map(at).values, "{user}");
            }
        }
        let mut ann = UserRecord::read(&bytes("ann"), 2, 2).unwrap();
        ann.set(1, 7.0);
        assert_eq!((ann.row().value(1), ann.row().map(1).get(9.0)), (7.0, 0.9));
    }

    #[test]
    fn bytes_that_are_no_record_are_refused() {
        let good = bytes("ann");
        for (columns, maps) in [(3, 2), (2, 1), (2, 3), (0, 0), (9, 9)] {
            assert_eq!(UserRecord::read(&good, columns, maps), None, "{columns} {maps}");
        }
        for cut in 0..good.len() {
            assert_eq!(UserRecord::read(&good[..cut], 2, 2), None, "{cut}");
        }
        for at in 8..24 {
            // Ends and keys: a wrong one is refused or stays within the record.
            let mut bad = good.clone();
            bad[at] ^= 0x81;
            let Some(record) = UserRecord::read(&bad, 2, 2) else { continue };
            (0..2).for_each(|map| assert!(record.row().map(map).get(3.0).is_nan()));
        }
    }

    #[test]
    fn another_dictionary_or_column_is_another_fingerprint() {
        let mut regions = Dictionaries::default();
        let before = fingerprint(&table(), &regions);
        regions.insert("users.region", Dictionary::from_values(["north".to_owned()]));
        assert_ne!(before, fingerprint(&table(), &regions));
        let other = UserTableBuilder::new(IdTable::new(["ann"].into_iter())).build();
        assert_ne!(before, fingerprint(&other, &Dictionaries::default()));
    }
}
