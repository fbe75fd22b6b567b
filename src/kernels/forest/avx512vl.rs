//! AVX-512 on registers of 32 bytes: comparisons of unsigned bytes that give a mask, and blends of one step. The
//! twin of the function of the same name in `scalar`.
//!
//! Registers of 64 bytes would halve the steps, but processors lower their clock for a while where they are used, and
//! everything beside this loop pays for it: docs/decisions/0004.

use std::arch::x86_64::*;

use super::places::Places;
use super::{Op, Plane, ROWS, Set};

/// Rows of a register.
const LANES: usize = 32;
/// Registers of a plane.
const ALL: usize = ROWS / LANES;

/// Runs operations; the caller has checked that `rows` is at most [`ROWS`].
///
/// # Safety
/// The processor has AVX-512 BW and VL.
#[target_feature(enable = "avx2,avx512bw,avx512vl")]
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
#[target_feature(enable = "avx2,avx512bw,avx512vl")]
fn one<const COUNT: usize>(
    op: &Op,
    set: Option<&Set>,
    planes: &mut [Plane],
    registers: usize,
    byte: u32,
) {
    let registers = if COUNT == 0 { registers.min(ALL) } else { COUNT };
    let at = Places::of::<LANES>(op, planes, byte);
    // SAFETY: the places are planes of ROWS bytes, of which registers * LANES are touched, or leaves of at least LANES
    // bytes that are read with a step of 0. Where planes coincide, each register is read before it is written.
    let blend = |i: usize, mask: __mmask32| unsafe {
        let left = _mm256_load_si256(at.left.add(i * at.left_step).cast());
        let right = _mm256_load_si256(at.right.add(i * at.right_step).cast());
        let chosen = _mm256_mask_blend_epi8(mask, right, left);
        _mm256_store_si256(at.target.add(i * LANES).cast(), chosen);
    };
    // SAFETY: as above.
    let tested = |i: usize| unsafe { _mm256_load_si256(at.column.add(i * LANES).cast()) };
    match set {
        None => {
            let (bound, shift) = op.test.bound_and_shift();
            let (bound, shift) = (_mm256_set1_epi8(bound as i8), _mm256_set1_epi8(shift as i8));
            for i in 0..registers {
                blend(i, _mm256_cmplt_epu8_mask(_mm256_add_epi8(tested(i), shift), bound));
            }
        }
        Some(set) => {
            // SAFETY: a set has 16 bytes.
            let set = unsafe { _mm_loadu_si128(set.as_ptr().cast()) };
            let set = _mm256_broadcastsi128_si256(set);
            for i in 0..registers {
                blend(i, members(set, tested(i)));
            }
        }
    }
}

/// A bit for each lane whose code is below 128 and in the set.
#[inline]
#[target_feature(enable = "avx2,avx512bw,avx512vl")]
fn members(set: __m256i, codes: __m256i) -> __mmask32 {
    let bits = _mm_setr_epi8(1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0);
    let bits = _mm256_broadcastsi128_si256(bits);
    // A shuffle by a byte of 128 or more gives 0: such a code finds no byte of the set.
    let high = _mm256_and_si256(codes, _mm256_set1_epi8(-128));
    let low = _mm256_and_si256(_mm256_srli_epi16::<3>(codes), _mm256_set1_epi8(15));
    let byte = _mm256_shuffle_epi8(set, _mm256_or_si256(high, low));
    let bit = _mm256_shuffle_epi8(bits, _mm256_and_si256(codes, _mm256_set1_epi8(7)));
    _mm256_test_epi8_mask(byte, bit)
}
