//! Decision trees over byte columns: each operation decides 512 rows at once.
//!
//! ```text
//! plane       512 bytes, one a row: a column of ranks or codes, or the leaf numbers of a subtree
//! operation   target[row] = if test(column[row]) { left[row] } else { right[row] }
//! ```
//! A tree is a list of operations from its leaves to its root; no row branches. [`run`] is AVX2, with the masks of
//! AVX-512 where they are, and has a scalar twin: 32 rows are one load, one comparison and one blend. The leaf values are then
//! looked up and added in tree order by [`add_leaves`], so a score has the bits that a walk down the
//! trees gives.
//!
//! Invariant: every index of an operation is checked before memory is touched, so that no list of
//! operations, however it was made, reads or writes outside its planes. Nothing here knows what a
//! column means.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512vl;
#[cfg(target_arch = "x86_64")]
mod places;
mod scalar;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
use super::avx512_masks;
use super::{Level, level, prefetch};

/// Rows of a plane.
pub const ROWS: usize = 512;
/// The byte of a missing value: right of every bound, and in no set of codes.
pub const MISSING: u8 = 255;
/// Largest leaf number: three bytes.
pub const LEAF_MAX: u32 = (1 << 24) - 1;

/// One byte a row.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Plane(pub [u8; ROWS]);

impl Plane {
    /// All rows of the same byte.
    pub const fn filled(byte: u8) -> Self {
        Self([byte; ROWS])
    }
}

/// Where an operation takes leaf numbers from: one leaf for all rows, or a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand(u32);

impl Operand {
    const PLANE: u32 = 1 << 31;

    /// The same leaf in every row; numbers wrap above [`LEAF_MAX`].
    #[inline]
    pub const fn leaf(number: u32) -> Self {
        Self(number & LEAF_MAX)
    }

    /// The numbers that an earlier operation left in a plane.
    #[inline]
    pub const fn plane(at: u16) -> Self {
        Self(at as u32 | Self::PLANE)
    }

    /// Whether it is a plane.
    #[inline]
    pub const fn is_plane(self) -> bool {
        self.0 & Self::PLANE != 0
    }

    /// The plane's position, or the leaf's number.
    #[inline]
    const fn index(self) -> usize {
        (self.0 & !Self::PLANE) as usize
    }

    /// Byte `byte` of the leaf's number.
    #[inline]
    const fn leaf_byte(self, byte: u32) -> u8 {
        (self.0 >> (8 * byte)) as u8
    }
}

/// How a row goes left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test(u32);

impl Test {
    const SET: u32 = 1 << 31;

    /// `byte + shift < bound`, the sum modulo 256: with a shift of 1, [`MISSING`] becomes 0 and
    /// goes left under every bound.
    #[inline]
    pub const fn below(bound: u8, shift: u8) -> Self {
        Self(bound as u32 | (shift as u32) << 8)
    }

    /// `byte < 128` and its bit in the set of this number is 1.
    #[inline]
    pub const fn in_set(set: u32) -> Self {
        Self(set | Self::SET)
    }

    /// The same question to a later set.
    #[inline]
    pub const fn next(self, further: u16) -> Self {
        Self(self.0 + further as u32)
    }

    #[inline]
    const fn set(self) -> Option<usize> {
        if self.0 & Self::SET != 0 { Some((self.0 & !Self::SET) as usize) } else { None }
    }

    #[inline]
    const fn bound_and_shift(self) -> (u8, u8) {
        (self.0 as u8, (self.0 >> 8) as u8)
    }
}

/// One decision over all rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Rows that pass take these.
    pub left: Operand,
    /// The others take these.
    pub right: Operand,
    pub test: Test,
    /// The plane that is tested.
    pub column: u16,
    /// The plane that is written; it may be one of those that are read.
    pub target: u16,
}

/// 128 codes, the lowest bit of a byte first.
pub type Set = [u8; 16];

/// Whether a byte passes a test: what [`run`] decides for a row.
#[inline]
pub fn passes(test: Test, sets: &[Set], byte: u8) -> bool {
    match test.set() {
        Some(set) => byte < 128 && sets[set][usize::from(byte >> 3)] >> (byte & 7) & 1 == 1,
        None => {
            let (bound, shift) = test.bound_and_shift();
            byte.wrapping_add(shift) < bound
        }
    }
}

/// Runs operations in order over the first `rows` rows. Leaf numbers are written as their byte
/// number `byte`; rows after `rows` of the written planes hold anything.
///
/// # Panics
/// When `rows` exceeds [`ROWS`], or an operation names a plane or a set that is not there.
pub fn run(ops: &[Op], sets: &[Set], planes: &mut [Plane], rows: usize, byte: u32) {
    assert!(rows <= ROWS, "{rows} rows do not fit into a plane of {ROWS}");
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `avx512_masks` has seen the instructions on this processor.
        Level::Avx2Fma if avx512_masks() => unsafe { avx512vl::run(ops, sets, planes, rows, byte) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` has seen AVX2 on this processor.
        Level::Avx2Fma => unsafe { avx2::run(ops, sets, planes, rows, byte) },
        _ => scalar::run(ops, sets, planes, rows, byte),
    }
}

/// Adds each row's leaf values of several trees to `out`, in the order of the trees: row `r` of
/// `results[t]` numbers a value of `values[t]`.
///
/// # Panics
/// When `out` has more than [`ROWS`] places, or the trees of the two slices differ in number.
pub fn add_leaves(results: &[Plane], values: &[&[f64; 256]], out: &mut [f64]) {
    assert!(out.len() <= ROWS, "{} rows do not fit into a plane of {ROWS}", out.len());
    assert_eq!(results.len(), values.len(), "one plane of leaf numbers a tree");
    match (<&[Plane; TOGETHER]>::try_from(results), <&[_; TOGETHER]>::try_from(values)) {
        (Ok(results), Ok(values)) => {
            for (row, score) in out.iter_mut().enumerate() {
                for tree in 0..TOGETHER {
                    *score += values[tree][usize::from(results[tree].0[row])];
                }
            }
        }
        _ => {
            for (row, score) in out.iter_mut().enumerate() {
                for (result, values) in results.iter().zip(values) {
                    *score += values[usize::from(result.0[row])];
                }
            }
        }
    }
}

/// As many trees are best added at once: the sum stays in a register between them.
pub const TOGETHER: usize = 8;

/// Spreads rows over planes, one a byte: byte `offset + c` of the `r`-th row named by `picks` becomes `planes[c].0[r]`.
/// Row `n` begins at byte `n * stride` of `table`.
///
/// # Panics
/// When there are more than [`ROWS`] picks, or a pick is outside `table`.
pub fn gather(table: &[u8], (stride, offset): (usize, usize), picks: &[u32], planes: &mut [Plane]) {
    assert!(picks.len() <= ROWS, "{} rows do not fit into a plane of {ROWS}", picks.len());
    let width = planes.len();
    let row = |pick: u32| {
        let start = pick as usize * stride + offset;
        start..start + width
    };
    const AHEAD: usize = 16;
    for (at, &pick) in picks.iter().enumerate() {
        if let Some(&later) = picks.get(at + AHEAD) {
            prefetch(table.get(row(later)).unwrap_or_default());
        }
        let bytes = &table[row(pick)];
        for (&byte, plane) in bytes.iter().zip(planes.iter_mut()) {
            plane.0[at] = byte;
        }
    }
}
