//! What decides whether a stored value fits the bundle that wants to read it, and the values'
//! layouts.
//!
//! ```text
//! embedding   u64 sequence of the history | dim * f32
//! features    u64 fingerprint | a record (features::UserRecord)              (all little-endian)
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use crate::features::{Dictionaries, Dictionary, UserRecord, UserRow, UserTable, fingerprint};
use crate::types::ItemIdx;

/// What a bundle expects of stored values. One a bundle, made when it is loaded.
#[derive(Debug)]
pub struct Fit {
    pub(super) tower_version: String,
    dim: usize,
    fingerprint: u64,
    /// Positions, and dictionaries of those that hold codes, by name.
    columns: HashMap<String, (usize, Option<Dictionary>)>,
    maps: usize,
}

/// A user's vector and the history that it was made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// See [`Embedding::sequence()`].
    pub sequence: u64,
    pub vector: Arc<[f32]>,
}

impl Embedding {
    /// Names a history (rows and times of one bundle, oldest first), so that a vector made from it
    /// can be told from one that was made before: the same on every replica, and after a restart.
    pub fn sequence(items: &[ItemIdx], times_ms: &[i64]) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(bytemuck::cast_slice(items));
        hasher.update(bytemuck::cast_slice(times_ms));
        let hash = hasher.finalize();
        u64::from_le_bytes(*hash.as_bytes().first_chunk::<8>().expect("a hash of 32 bytes"))
    }

    /// The stored value.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let numbers = self.vector.iter().flat_map(|value| value.to_le_bytes());
        self.sequence.to_le_bytes().into_iter().chain(numbers).collect()
    }
}

impl Fit {
    /// What a bundle with these parts expects; `dim` is the length of its towers' vectors.
    pub fn new(
        tower_version: &str,
        dim: usize,
        users: &UserTable,
        dictionaries: &Dictionaries,
    ) -> Self {
        let column =
            |(at, name): (usize, &String)| (name.clone(), (at, dictionaries.get(name).cloned()));
        Self {
            tower_version: tower_version.to_owned(),
            dim,
            fingerprint: fingerprint(users, dictionaries),
            columns: users.columns().iter().enumerate().map(column).collect(),
            maps: users.map_names().len(),
        }
    }

    /// Names the layout of users' records: what their positions and codes mean.
    pub fn layout(&self) -> u64 {
        self.fingerprint
    }

    /// The embedding of a stored value; `None` when it is not one of this tower's finite vectors.
    pub(super) fn embedding(&self, bytes: &[u8]) -> Option<Embedding> {
        let (sequence, numbers) = bytes.split_first_chunk::<8>()?;
        let (numbers, rest) = numbers.as_chunks::<4>();
        let whole = rest.is_empty() && numbers.len() == self.dim;
        let vector: Arc<[f32]> = numbers.iter().map(|four| f32::from_le_bytes(*four)).collect();
        (whole && vector.iter().all(|value| value.is_finite()))
            .then(|| Embedding { sequence: u64::from_le_bytes(*sequence), vector })
    }

    /// The stored value of a user of this bundle's table.
    pub(super) fn feature_bytes(&self, user: UserRow<'_>) -> Vec<u8> {
        let record = self.record(user);
        self.fingerprint.to_le_bytes().into_iter().chain(record.bytes()).collect()
    }

    /// A copy of a user of this bundle's table.
    pub(super) fn record(&self, user: UserRow<'_>) -> UserRecord {
        UserRecord::of(user, self.columns.len(), self.maps)
    }

    /// A column's position, and its dictionary when it holds codes.
    pub(super) fn column(&self, name: &str) -> Option<(usize, Option<&Dictionary>)> {
        self.columns.get(name).map(|(at, dictionary)| (*at, dictionary.as_ref()))
    }

    /// The features of a stored value; `None` when they are those of another bundle's columns or
    /// codes, an error when they are none at all.
    pub(super) fn features(&self, bytes: &[u8]) -> Result<Option<UserRecord>, Damaged> {
        let (found, record) = bytes.split_first_chunk::<8>().ok_or(Damaged)?;
        if u64::from_le_bytes(*found) != self.fingerprint {
            return Ok(None);
        }
        UserRecord::read(record, self.columns.len(), self.maps).map(Some).ok_or(Damaged)
    }
}

/// A value that nobody can have written on purpose.
#[derive(Debug, PartialEq)]
pub(super) struct Damaged;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::features::UserTableBuilder;
    use crate::ids::IdTable;

    /// A table with the user "ann".
    pub fn table() -> UserTable {
        let mut users = UserTableBuilder::new(IdTable::new(["ann"].into_iter()));
        users.column("users.age", vec![33.0]);
        users.map("user_brand.share", vec![vec![(1, 0.5), (7, 0.25)]]);
        users.build()
    }

    /// A bundle of that table.
    pub fn fit(tower_version: &str, dim: usize) -> Fit {
        Fit::new(tower_version, dim, &table(), &Dictionaries::default())
    }

    #[test]
    fn values_read_back_bit_for_bit() {
        let fit = fit("t1", 3);
        let vector = Arc::from([f32::MIN_POSITIVE, -0.0, 3.5]);
        let embedding = Embedding { sequence: u64::MAX - 1, vector };
        let bytes = embedding.bytes();
        assert_eq!((bytes.len(), &bytes[..2]), (8 + 12, &[0xfe, 0xff][..]));
        assert_eq!(fit.embedding(&bytes), Some(embedding));
        let record = fit.features(&fit.feature_bytes(table().find("ann"))).unwrap().unwrap();
        assert_eq!((record.row().value(0), record.row().map(0).get(7.0)), (33.0, 0.25));
    }

    #[test]
    fn what_does_not_fit_is_not_read() {
        let (narrow, wide) = (fit("t1", 2), fit("t1", 3));
        let bytes = Embedding { sequence: 1, vector: Arc::from([1.0, 2.0]) }.bytes();
        assert_eq!(wide.embedding(&bytes), None);
        let nan = Embedding { sequence: 1, vector: Arc::from([f32::NAN, 2.0]) }.bytes();
        assert_eq!(narrow.embedding(&nan), None);
        assert_eq!(narrow.embedding(&bytes[..15]), None);
        let ann = narrow.feature_bytes(table().find("ann"));
        assert_eq!(narrow.features(&ann[..ann.len() - 4]), Err(Damaged));
        assert_eq!(narrow.features(&[1, 2]), Err(Damaged));
        let mut other = ann.clone();
        other[0] ^= 1;
        assert_eq!(narrow.features(&other), Ok(None), "another bundle's");
    }

    #[test]
    fn the_sequence_names_the_history() {
        let of = |items: &[u32], times: &[i64]| {
            Embedding::sequence(bytemuck::cast_slice::<u32, ItemIdx>(items), times)
        };
        let one = of(&[1, 2], &[10, 20]);
        assert_eq!(one, of(&[1, 2], &[10, 20]));
        for other in [of(&[2, 1], &[10, 20]), of(&[1, 2], &[10, 21]), of(&[1], &[10])] {
            assert_ne!(one, other);
        }
    }
}
