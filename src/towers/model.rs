//! The weights, what goes into the networks, and encoding.

use crate::kernels::dense::add_scaled;
use crate::sections::Column;
use crate::types::ItemIdx;

use super::mlp::{Mlp, normalise};

/// A code that is absent; every code beyond the trained ones counts as absent too.
pub const MISSING: u32 = u32::MAX;
/// Standardised numbers are held within this many deviations, so that one absurd value of a
/// dense feature cannot own the vector.
const DEVIATIONS_MAX: f32 = 10.0;
/// More pools than anybody needs; bounds an array on the stack.
pub(super) const POOLS_MAX: usize = 8;

/// The sizes that follow from the configuration and the data.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Length of a vector that leaves a tower.
    pub dim: u32,
    /// Width of an id row.
    pub id_dim: u32,
    /// Upper bound of the width of a code row; a column of few codes gets a narrower one.
    pub code_dim_max: u32,
    /// Widths of the hidden layers, the same in both towers.
    pub hidden: Vec<u32>,
    /// Only the newest so many events of a history are read.
    pub history_max: u32,
    /// One pool of the history each: an event so many events older counts half; `inf` counts all
    /// events alike.
    pub pool_half_lives_events: Vec<f32>,
    /// Whether the history has tables of its own or shares those of the item tower.
    pub separate_history_tables: bool,
    /// Items the towers know.
    pub items: u32,
    /// Rows of the id table, row 0 for rare and new items included.
    pub id_rows: u32,
    /// Number of distinct codes by item code column.
    pub item_codes: Vec<u32>,
    /// Number of distinct codes by user code column.
    pub user_codes: Vec<u32>,
    /// Number of dense item features.
    pub item_dense: u32,
    /// Number of dense user features.
    pub user_dense: u32,
}

/// What the item tower reads.
#[derive(Clone, Copy, Debug)]
pub struct ItemInput<'a> {
    /// Which id row to use; an item beyond the trained table uses row 0.
    pub item: ItemIdx,
    /// One code per code column, or [`MISSING`].
    pub codes: &'a [u32],
    /// Raw values; NaN when absent.
    pub dense: &'a [f32],
}

/// What the user tower reads.
#[derive(Clone, Copy, Debug)]
pub struct UserInput<'a> {
    /// Items of the past, oldest first; may be empty and may be longer than is read.
    pub history: &'a [ItemIdx],
    /// One code per code column, or [`MISSING`].
    pub codes: &'a [u32],
    /// Raw values; NaN when absent.
    pub dense: &'a [f32],
}

/// Space for one call of an encoder; make one per thread with [`Towers::scratch`].
#[derive(Clone, Debug)]
pub struct Scratch {
    input: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
}

/// An embedding table: `rows x dim`, row by row.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub dim: usize,
    pub values: Column<f32>,
}

/// Mean and reciprocal deviation of each dense feature after the signed logarithm.
#[derive(Clone, Debug)]
pub(super) struct Standard {
    pub mean: Column<f32>,
    pub inverse: Column<f32>,
}

/// Both towers with everything that encoding needs. Immutable once trained or opened.
#[derive(Clone, Debug)]
pub struct Towers {
    pub(super) shape: Shape,
    pub(super) layout: Layout,
    pub(super) tables: Vec<Table>,
    pub(super) item: Mlp,
    pub(super) user: Mlp,
    pub(super) item_standard: Standard,
    pub(super) user_standard: Standard,
    /// Id row by item.
    pub(super) id_row: Column<u32>,
    /// Code rows by item, `items x item_codes`, for pooling histories; row 0 is "absent".
    pub(super) item_code_row: Column<u16>,
    /// Row of `user_vectors` by user of the bundle's table; empty without such vectors.
    pub(super) user_row: Column<u32>,
    /// Vectors that came with users, instead of encoding them.
    pub(super) user_vectors: Column<f32>,
    pub(super) version: String,
}

/// Which table feeds what, and how wide the inputs are; derived from the shape alone.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Rows and width by table.
    pub tables: Vec<(usize, usize)>,
    /// Tables of the item tower: the id table, then one a code column.
    pub item: Vec<usize>,
    /// Tables of the history, in the same order.
    pub history: Vec<usize>,
    /// Tables of the user's own codes.
    pub user: Vec<usize>,
    /// Width of one pool.
    pub pool: usize,
    pub item_input: usize,
    pub user_input: usize,
}

impl Shape {
    pub(super) fn layout(&self) -> Layout {
        let width = |codes: u32| {
            let root = (f64::from(codes).sqrt().ceil() as u32).next_multiple_of(4);
            root.clamp(4, self.code_dim_max.max(4)) as usize
        };
        let code_table = |&codes: &u32| (codes as usize + 1, width(codes));
        let mut tables = vec![(self.id_rows as usize, self.id_dim as usize)];
        tables.extend(self.item_codes.iter().map(code_table));
        let item: Vec<usize> = (0..tables.len()).collect();
        let pool = tables.iter().map(|&(_, dim)| dim).sum::<usize>();
        let mut history = item.clone();
        if self.separate_history_tables {
            tables.extend_from_within(..);
            history.iter_mut().for_each(|table| *table += item.len());
        }
        let user = (tables.len()..tables.len() + self.user_codes.len()).collect();
        tables.extend(self.user_codes.iter().map(code_table));
        let user_codes: usize = self.user_codes.iter().map(|&codes| width(codes)).sum();
        Layout {
            item,
            history,
            user,
            pool,
            item_input: pool + 2 * self.item_dense as usize,
            user_input: self.pool_half_lives_events.len() * pool
                + user_codes
                + 2 * self.user_dense as usize
                + 1,
            tables,
        }
    }

    pub(super) fn sizes(&self, input: usize) -> Vec<usize> {
        let hidden = self.hidden.iter().map(|&width| width as usize);
        std::iter::once(input).chain(hidden).chain([self.dim as usize]).collect()
    }
}

impl Towers {
    /// The sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Length of a vector.
    pub fn dim(&self) -> usize {
        self.shape.dim as usize
    }

    /// Hex of the blake3 of everything that decides a vector; names these weights in cache keys.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Space for the encoders of these towers.
    pub fn scratch(&self) -> Scratch {
        let widest = |sizes: &[usize]| sizes.iter().copied().max().unwrap_or(0);
        let width = widest(&self.item.sizes).max(widest(&self.user.sizes));
        Scratch { input: vec![0.0; width], a: vec![0.0; width], b: vec![0.0; width] }
    }

    /// Encodes one item into `out`, a unit vector of `dim` numbers. Allocates nothing.
    ///
    /// # Panics
    /// When `codes`, `dense` or `out` are not as long as the shape says.
    pub fn encode_item(&self, input: &ItemInput, scratch: &mut Scratch, out: &mut [f32]) {
        assert_eq!(out.len(), self.dim(), "length of an item vector");
        let width = self.layout.item_input;
        let id_row = self.id_row(input.item);
        self.fill_item(id_row, input.codes, input.dense, &mut scratch.input[..width]);
        self.item.forward(&scratch.input[..width], &mut scratch.a, &mut scratch.b, out);
        normalise(out);
    }

    /// Encodes one user into `out`, a unit vector of `dim` numbers. Allocates nothing; an empty
    /// history is fine.
    ///
    /// # Panics
    /// When `codes`, `dense` or `out` are not as long as the shape says.
    pub fn encode_user(&self, input: &UserInput, scratch: &mut Scratch, out: &mut [f32]) {
        assert_eq!(out.len(), self.dim(), "length of a user vector");
        let width = self.layout.user_input;
        self.fill_user(input, &mut scratch.input[..width]);
        self.user.forward(&scratch.input[..width], &mut scratch.a, &mut scratch.b, out);
        normalise(out);
    }

    /// The same towers over other items: `known[i]` is the row that item `i` had, or none for a new
    /// one, which is encoded from its codes and numbers; `codes` are `items x item_codes`.
    ///
    /// # Panics
    /// When there is not one code an item and code column.
    pub fn over(&self, known: &[Option<ItemIdx>], codes: &[u32]) -> Self {
        let cardinalities = &self.shape.item_codes;
        assert_eq!(codes.len(), known.len() * cardinalities.len(), "one code an item and column");
        let code_row = |(at, &code): (usize, &u32)| {
            Self::code_row(code, cardinalities[at % cardinalities.len()]) as u16
        };
        let id_row = |item: &Option<ItemIdx>| item.map_or(0, |item| self.id_row(item));
        let mut towers = self.clone();
        towers.shape.items = known.len() as u32;
        towers.item_code_row = codes.iter().enumerate().map(code_row).collect::<Vec<_>>().into();
        towers.id_row = known.iter().map(id_row).collect::<Vec<_>>().into();
        towers.version = towers.fingerprint();
        towers
    }

    /// The id row of an item: 0 for rare and unknown ones.
    pub(super) fn id_row(&self, item: ItemIdx) -> u32 {
        self.id_row.get(item.row()).copied().unwrap_or(0)
    }

    /// The row of `code` in the table of a column of `cardinality` codes.
    pub(super) fn code_row(code: u32, cardinality: u32) -> usize {
        if code < cardinality { code as usize + 1 } else { 0 }
    }

    /// Rows of a history item, one per table of `layout.history`.
    pub(super) fn history_row(&self, item: ItemIdx, position: usize) -> usize {
        if position == 0 {
            return self.id_row(item) as usize;
        }
        let columns = self.shape.item_codes.len();
        let at = item.row() * columns + position - 1;
        self.item_code_row.get(at).map_or(0, |&row| row as usize)
    }

    /// The newest events of a history that the user tower reads.
    pub(super) fn recent<'a>(&self, history: &'a [ItemIdx]) -> &'a [ItemIdx] {
        &history[history.len().saturating_sub(self.shape.history_max as usize)..]
    }

    /// Calls `visit` with every event of a history, newest first, and its weight in each pool; the
    /// weights of a pool sum to one.
    pub(super) fn visit_pooled(&self, history: &[ItemIdx], mut visit: impl FnMut(ItemIdx, &[f32])) {
        let lives = &self.shape.pool_half_lives_events;
        let mut decay = [0.0f32; POOLS_MAX];
        let mut weight = [0.0f32; POOLS_MAX];
        for ((decay, weight), life) in decay.iter_mut().zip(&mut weight).zip(lives) {
            *decay = (-1.0 / life).exp2();
            let (mut age_weight, mut total) = (1.0, 0.0);
            for _ in history {
                total += age_weight;
                age_weight *= *decay;
            }
            *weight = 1.0 / total;
        }
        for &item in history.iter().rev() {
            visit(item, &weight[..lives.len()]);
            weight.iter_mut().zip(&decay).for_each(|(weight, decay)| *weight *= decay);
        }
    }

    pub(super) fn fill_item(&self, id_row: u32, codes: &[u32], dense: &[f32], x: &mut [f32]) {
        assert_eq!(codes.len(), self.shape.item_codes.len(), "item codes");
        let mut at = 0;
        at += self.copy_row(self.layout.item[0], id_row as usize, &mut x[at..]);
        for ((&table, &code), &cardinality) in
            self.layout.item[1..].iter().zip(codes).zip(&self.shape.item_codes)
        {
            at += self.copy_row(table, Self::code_row(code, cardinality), &mut x[at..]);
        }
        self.item_standard.apply(dense, &mut x[at..]);
    }

    pub(super) fn fill_user(&self, input: &UserInput, x: &mut [f32]) {
        assert_eq!(input.codes.len(), self.shape.user_codes.len(), "user codes");
        let history = self.recent(input.history);
        let pools = self.shape.pool_half_lives_events.len();
        let (pooled, rest) = x.split_at_mut(pools * self.layout.pool);
        pooled.fill(0.0);
        self.visit_pooled(history, |item, weights| {
            let mut at = 0;
            for (position, &table) in self.layout.history.iter().enumerate() {
                let row = self.tables[table].row(self.history_row(item, position));
                for (pool, &weight) in pooled.chunks_exact_mut(self.layout.pool).zip(weights) {
                    add_scaled(&mut pool[at..at + row.len()], weight, row);
                }
                at += row.len();
            }
        });
        let mut at = 0;
        for ((&table, &code), &cardinality) in
            self.layout.user.iter().zip(input.codes).zip(&self.shape.user_codes)
        {
            at += self.copy_row(table, Self::code_row(code, cardinality), &mut rest[at..]);
        }
        let last = rest.len() - 1;
        self.user_standard.apply(input.dense, &mut rest[at..last]);
        rest[last] = (history.len() as f32).ln_1p() / (self.shape.history_max as f32).ln_1p();
    }

    fn copy_row(&self, table: usize, row: usize, x: &mut [f32]) -> usize {
        let row = self.tables[table].row(row);
        x[..row.len()].copy_from_slice(row);
        row.len()
    }
}

impl Table {
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.dim..(row + 1) * self.dim]
    }
}

impl Standard {
    /// Writes two numbers per feature: the standardised signed logarithm, and whether it is
    /// absent.
    fn apply(&self, dense: &[f32], x: &mut [f32]) {
        assert_eq!(dense.len(), self.mean.len(), "dense features");
        let parameters = self.mean.iter().zip(self.inverse.iter());
        for ((out, &raw), (mean, inverse)) in x.chunks_exact_mut(2).zip(dense).zip(parameters) {
            let value = (signed_log(raw) - mean) * inverse;
            let present = value.is_finite();
            out[0] = if present { value.clamp(-DEVIATIONS_MAX, DEVIATIONS_MAX) } else { 0.0 };
            out[1] = if present { 0.0 } else { 1.0 };
        }
    }
}

/// `sign(x) ln(1 + |x|)`: tames counts and amounts, keeps order and sign.
pub(super) fn signed_log(x: f32) -> f32 {
    x.signum() * x.abs().ln_1p()
}
