//! What the operations mean, row by row.

use super::{Op, Operand, Plane, Set, passes};

/// The twin of `avx2::run`; the caller has checked `rows`.
pub(super) fn run(ops: &[Op], sets: &[Set], planes: &mut [Plane], rows: usize, byte: u32) {
    for op in ops {
        for row in 0..rows {
            let number = |operand: Operand| match operand.is_plane() {
                true => planes[operand.index()].0[row],
                false => operand.leaf_byte(byte),
            };
            let (left, right) = (number(op.left), number(op.right));
            let tested = planes[usize::from(op.column)].0[row];
            let result = if passes(op.test, sets, tested) { left } else { right };
            planes[usize::from(op.target)].0[row] = result;
        }
    }
}
