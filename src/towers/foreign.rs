//! Towers around vectors that were made elsewhere.
//!
//! The item tower gives each item its own vector. The user tower gives a user the vector that came with
//! it, and without one the mean of the vectors of the history, newer events weighing more; without a
//! history the mean of all items. Both are the usual networks, whose one layer passes its input on, so
//! that everything downstream sees towers like any other.

use crate::sections::Column;

use super::mlp::{Mlp, normalise};
use super::model::{Shape, Standard, Table, Towers};

/// How much of the mean of all items is in every pooled vector: enough to give one without history a
/// direction, too little to turn another.
const DEFAULT_SHARE: f32 = 1e-3;
/// Says that a user has no vector.
pub(super) const NO_VECTOR: u32 = u32::MAX;

/// Vectors that were made elsewhere.
pub struct Foreign {
    pub dim: u32,
    /// Unit vectors by item; one of zeros is absent, and the item stands at the mean of the others.
    pub items: Vec<f32>,
    /// Unit vectors by user of the bundle's table; one of zeros is absent. Empty when there are none.
    pub users: Vec<f32>,
    /// Whether the last coordinate is of items alone, and a user's is zero.
    pub items_only_last: bool,
    /// Only the newest so many events are pooled.
    pub history_max: u32,
    /// An event so many events older counts half.
    pub half_life_events: f32,
}

impl Towers {
    /// Towers that give out these vectors.
    ///
    /// # Panics
    /// When the vectors are not whole ones of `dim` numbers.
    pub fn foreign(foreign: &Foreign) -> Self {
        let dim = foreign.dim as usize;
        assert!(foreign.items.len().is_multiple_of(dim), "whole item vectors");
        assert!(foreign.users.len().is_multiple_of(dim), "whole user vectors");
        let present = |vector: &[f32]| vector.iter().any(|value| *value != 0.0);
        let items = foreign.items.len() / dim;
        let mut table = vec![0.0; dim];
        let mut id_row = vec![0u32; items];
        for (row, vector) in id_row.iter_mut().zip(foreign.items.chunks_exact(dim)) {
            if present(vector) {
                *row = (table.len() / dim) as u32;
                table.extend_from_slice(vector);
            }
        }
        let (mean, vectors) = table.split_at_mut(dim);
        for vector in vectors.chunks_exact(dim) {
            mean.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
        }
        normalise(mean);
        let mut default = mean.to_vec();
        if foreign.items_only_last {
            default[dim - 1] = 0.0;
        }
        let shape = Shape {
            dim: foreign.dim,
            id_dim: foreign.dim,
            code_dim_max: 4,
            hidden: Vec::new(),
            history_max: foreign.history_max,
            pool_half_lives_events: vec![foreign.half_life_events],
            separate_history_tables: false,
            items: items as u32,
            id_rows: (table.len() / dim) as u32,
            item_codes: Vec::new(),
            user_codes: Vec::new(),
            item_dense: 0,
            user_dense: 0,
        };
        let layout = shape.layout();
        let item = pass_on(shape.sizes(layout.item_input), dim, &vec![0.0; dim]);
        default.iter_mut().for_each(|value| *value *= DEFAULT_SHARE);
        let kept = if foreign.items_only_last { dim - 1 } else { dim };
        let user = pass_on(shape.sizes(layout.user_input), kept, &default);
        let none = || Standard { mean: Vec::new().into(), inverse: Vec::new().into() };
        let (user_row, user_vectors) = compact(&foreign.users, dim);
        let mut towers = Self {
            tables: vec![Table { dim, values: table.into() }],
            item,
            user,
            item_standard: none(),
            user_standard: none(),
            id_row: id_row.into(),
            item_code_row: Vec::new().into(),
            user_row,
            user_vectors,
            version: String::new(),
            layout,
            shape,
        };
        towers.version = towers.fingerprint();
        towers
    }

    /// The vector that came with a user, by row of the bundle's table.
    pub fn user_vector(&self, row: u32) -> Option<&[f32]> {
        let row = *self.user_row.get(row as usize)? as usize;
        self.user_vectors.get(row * self.dim()..(row + 1) * self.dim())
    }

    /// How many users the towers were given vectors for, absent ones included; 0 when for none.
    pub fn users(&self) -> usize {
        self.user_row.len()
    }

    /// The same towers over other users: `known[i]` is the row that user `i` had.
    pub fn over_users(mut self, known: impl Iterator<Item = Option<u32>>) -> Self {
        if self.user_row.is_empty() {
            return self;
        }
        let row = |row: Option<u32>| {
            row.and_then(|row| self.user_row.get(row as usize)).copied().unwrap_or(NO_VECTOR)
        };
        self.user_row = known.map(row).collect::<Vec<_>>().into();
        self.version = self.fingerprint();
        self
    }
}

/// One layer that gives the first `kept` numbers of its input, plus `biases`.
fn pass_on(sizes: Vec<usize>, kept: usize, biases: &[f32]) -> Mlp {
    let (inputs, outputs) = (sizes[0], sizes[1]);
    let mut params = vec![0.0; inputs * outputs];
    (0..kept).for_each(|at| params[at * outputs + at] = 1.0);
    params.extend_from_slice(biases);
    Mlp { sizes, params: params.into() }
}

/// Rows by user and the vectors that are there.
fn compact(users: &[f32], dim: usize) -> (Column<u32>, Column<f32>) {
    let (mut rows, mut vectors) = (Vec::new(), Vec::new());
    for vector in users.chunks_exact(dim) {
        if vector.iter().any(|value| *value != 0.0) {
            rows.push((vectors.len() / dim) as u32);
            vectors.extend_from_slice(vector);
        } else {
            rows.push(NO_VECTOR);
        }
    }
    (rows.into(), vectors.into())
}

#[cfg(test)]
mod tests {
    use super::super::{ItemInput, UserInput};
    use super::*;
    use crate::types::ItemIdx;

    fn foreign() -> Foreign {
        Foreign {
            dim: 3,
            items: vec![1.0, 0.0, 0.0, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0],
            users: vec![0.0, 0.0, 0.0, 0.0, 1.0, 0.0],
            items_only_last: false,
            history_max: 50,
            half_life_events: 1.0,
        }
    }

    fn item(towers: &Towers, item: u32) -> Vec<f32> {
        let mut out = vec![0.0; 3];
        let input = ItemInput { item: ItemIdx(item), codes: &[], dense: &[] };
        towers.encode_item(&input, &mut towers.scratch(), &mut out);
        out
    }

    fn user(towers: &Towers, history: &[ItemIdx]) -> Vec<f32> {
        let mut out = vec![0.0; 3];
        let input = UserInput { history, codes: &[], dense: &[] };
        towers.encode_user(&input, &mut towers.scratch(), &mut out);
        out
    }

    fn near(found: &[f32], expected: &[f32]) {
        let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-3);
        assert!(close, "{found:?} is not {expected:?}");
    }

    #[test]
    fn items_keep_their_vectors_and_users_pool_them() {
        let towers = Towers::foreign(&foreign());
        assert_eq!(item(&towers, 0), [1.0, 0.0, 0.0]);
        assert_eq!(item(&towers, 1), [0.0, 0.6, 0.8]);
        let mean = [1.0, 0.6, 0.8].map(|value| value / 2f32.sqrt());
        near(&item(&towers, 2), &mean);
        near(&user(&towers, &[ItemIdx(0)]), &[1.0, 0.0, 0.0]);
        // The newer event weighs two thirds.
        let pooled = [1.0, 1.2, 1.6].map(|value| value / 5f32.sqrt());
        near(&user(&towers, &[ItemIdx(0), ItemIdx(1)]), &pooled);
        near(&user(&towers, &[]), &mean);
        let flat = Towers::foreign(&Foreign { items_only_last: true, ..foreign() });
        near(&user(&flat, &[ItemIdx(1)]), &[0.0, 1.0, 0.0]);
    }

    #[test]
    fn users_bring_their_vectors_through_a_file_and_to_other_rows() {
        let towers = Towers::foreign(&foreign());
        assert_eq!((towers.users(), towers.user_vector(0)), (2, None));
        assert_eq!(towers.user_vector(1), Some(&[0.0, 1.0, 0.0][..]));
        assert_eq!(towers.user_vector(7), None);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("towers.bin");
        towers.save(&path).unwrap();
        let opened = Towers::open(&path).unwrap();
        assert_eq!(opened.version(), towers.version());
        assert_eq!(opened.user_vector(1), towers.user_vector(1));
        let moved = opened.over_users([Some(1), None, Some(0)].into_iter());
        assert_eq!((moved.users(), moved.user_vector(2)), (3, None));
        assert_eq!(moved.user_vector(0), towers.user_vector(1));
        let other = Towers::foreign(&Foreign { users: Vec::new(), ..foreign() });
        assert_ne!(other.version(), towers.version(), "cached vectors are of one set of users");
        assert_eq!(other.users(), 0);
    }
}
