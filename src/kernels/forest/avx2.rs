//! AVX2: 32 rows a register. The twin of the function of the same name in `scalar`.

use std::arch::x86_64::*;
use std::hint::select_unpredictable;

use super::{LANES, Op, Operand, Plane, ROWS, Set};

/// A register's worth of every byte value, so that a leaf is read like a plane, with a step of 0.
static CONSTANTS: [Constant; 256] = {
    let mut all = [const { Constant([0; LANES]) }; 256];
    let mut byte = 0;
    while byte < 256 {
        all[byte] = Constant([byte as u8; LANES]);
        byte += 1;
    }
    all
};

/// Registers of a plane.
const ALL: usize = ROWS / LANES;

#[repr(C, align(32))]
struct Constant([u8; LANES]);

/// Runs operations; the caller has checked that `rows` is at most [`ROWS`].
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) fn run(ops: &[Op], sets: &[Set], planes: &mut [Plane], rows: usize, byte: u32) {
    assert!(rows <= ROWS);
    let registers = rows.div_ceil(LANES);
    for op in ops {
        let set = op.test.set().map(|at| &sets[at]);
        // A constant count unrolls the loops.
        if registers == ALL {
            one::<ALL>(op, set, planes, ALL, byte);
        } else {
            one::<0>(op, set, planes, registers, byte);
        }
    }
}

/// One operation over `registers <= ALL` registers, or `COUNT` of them when that is not 0.
#[inline]
#[target_feature(enable = "avx2")]
fn one<const COUNT: usize>(
    op: &Op,
    set: Option<&Set>,
    planes: &mut [Plane],
    registers: usize,
    byte: u32,
) {
    let registers = if COUNT == 0 { registers.min(ALL) } else { COUNT };
    let count = planes.len();
    assert!(usize::from(op.column) < count && usize::from(op.target) < count);
    let base = planes.as_mut_ptr();
    // Leaf or plane cannot be guessed, so it must not be a branch.
    let source = |operand: Operand| -> (*const u8, usize) {
        let is_plane = operand.is_plane();
        let at = select_unpredictable(is_plane, operand.index(), 0);
        assert!(at < count);
        let leaf = CONSTANTS[usize::from(operand.leaf_byte(byte))].0.as_ptr();
        // SAFETY: `at` is inside the planes.
        let plane: *const u8 = unsafe { base.add(at) }.cast();
        let step = select_unpredictable(is_plane, LANES, 0);
        (select_unpredictable(is_plane, plane, leaf), step)
    };
    let ((left, left_step), (right, right_step)) = (source(op.left), source(op.right));
    // SAFETY: both indices were checked.
    let (column, target): (*const u8, *mut u8) = unsafe {
        (base.add(usize::from(op.column)).cast(), base.add(usize::from(op.target)).cast())
    };
    // SAFETY: a plane has ROWS bytes at an alignment of 64, and registers * LANES <= ROWS; a
    // constant has LANES bytes and is read with a step of 0. Where planes coincide, each register
    // is read before it is written.
    let blend = |at: usize, mask: __m256i| unsafe {
        let left = _mm256_load_si256(left.add(at * left_step).cast());
        let right = _mm256_load_si256(right.add(at * right_step).cast());
        _mm256_store_si256(target.add(at * LANES).cast(), _mm256_blendv_epi8(right, left, mask));
    };
    match set {
        None => {
            // Unsigned bytes compare as signed ones when 128 is added to both.
            let (bound, shift) = op.test.bound_and_shift();
            let bound = _mm256_set1_epi8((bound ^ 0x80) as i8);
            let shift = _mm256_set1_epi8(shift.wrapping_add(0x80) as i8);
            for at in 0..registers {
                // SAFETY: inside the plane, as above.
                let tested = unsafe { _mm256_load_si256(column.add(at * LANES).cast()) };
                blend(at, _mm256_cmpgt_epi8(bound, _mm256_add_epi8(tested, shift)));
            }
        }
        Some(set) => {
            // SAFETY: a set has 16 bytes.
            let set = unsafe { _mm_loadu_si128(set.as_ptr().cast()) };
            let set = _mm256_broadcastsi128_si256(set);
            for at in 0..registers {
                // SAFETY: inside the plane, as above.
                let tested = unsafe { _mm256_load_si256(column.add(at * LANES).cast()) };
                blend(at, members(set, tested));
            }
        }
    }
}

/// All ones in the lanes whose code is below 128 and in the set.
#[inline]
#[target_feature(enable = "avx2")]
fn members(set: __m256i, codes: __m256i) -> __m256i {
    let bits = _mm256_setr_epi8(
        1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0, //
        1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0,
    );
    // A shuffle by a byte of 128 or more gives 0: such a code finds no byte of the set.
    let high = _mm256_and_si256(codes, _mm256_set1_epi8(-128));
    let low = _mm256_and_si256(_mm256_srli_epi16::<3>(codes), _mm256_set1_epi8(15));
    let byte = _mm256_shuffle_epi8(set, _mm256_or_si256(high, low));
    let bit = _mm256_shuffle_epi8(bits, _mm256_and_si256(codes, _mm256_set1_epi8(7)));
    _mm256_cmpeq_epi8(_mm256_and_si256(byte, bit), bit)
}
