//! Where the bytes of an operation lie: checked once, so that the loops over registers need not.

use std::hint::select_unpredictable;

use super::{Op, Operand, Plane};

/// Bytes of the widest register.
const WIDEST: usize = 64;

/// A register's worth of every byte value, so that a leaf is read like a plane, with a step of 0.
static CONSTANTS: [Constant; 256] = {
    let mut all = [const { Constant([0; WIDEST]) }; 256];
    let mut byte = 0;
    while byte < 256 {
        all[byte] = Constant([byte as u8; WIDEST]);
        byte += 1;
    }
    all
};

#[repr(C, align(64))]
struct Constant([u8; WIDEST]);

/// What an operation reads and writes. A plane has [`super::ROWS`] bytes at an alignment of 64; a leaf has 64
/// bytes of its number, to be read with a step of 0.
pub(super) struct Places {
    pub column: *const u8,
    pub target: *mut u8,
    pub left: *const u8,
    pub right: *const u8,
    /// Bytes from one register's worth of rows to the next.
    pub left_step: usize,
    pub right_step: usize,
}

impl Places {
    /// # Panics
    /// When the operation names a plane that is not there.
    #[inline]
    pub fn of<const LANES: usize>(op: &Op, planes: &mut [Plane], byte: u32) -> Self {
        let count = planes.len();
        assert!(usize::from(op.column) < count && usize::from(op.target) < count);
        let base = planes.as_mut_ptr();
        // Leaf or plane cannot be guessed, so it must not be a branch.
        let source = |operand: Operand| -> (*const u8, usize) {
            let is_plane = operand.is_plane();
            let at = select_unpredictable(is_plane, operand.index(), 0);
            assert!(at < count);
            let leaf = CONSTANTS[usize::from(operand.leaf_byte(byte))].0.as_ptr();
            // `at` is inside the planes.
            let plane: *const u8 = base.wrapping_add(at).cast();
            let step = select_unpredictable(is_plane, LANES, 0);
            (select_unpredictable(is_plane, plane, leaf), step)
        };
        let ((left, left_step), (right, right_step)) = (source(op.left), source(op.right));
        Self {
            column: base.wrapping_add(usize::from(op.column)).cast(),
            target: base.wrapping_add(usize::from(op.target)).cast(),
            left,
            right,
            left_step,
            right_step,
        }
    }
}
