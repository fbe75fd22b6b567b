//! AVX2, and the same with the byte products of AVX-512 VNNI; results are whole numbers, so all
//! paths agree. The products take unsigned by signed bytes: the query gives its absolute values,
//! and its signs go to the row.

use std::arch::x86_64::*;

use super::{AHEAD, ROW_BYTES};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Expands to the kernels of one instruction set; `$add` adds the products of 32 bytes to eight
/// sums.
macro_rules! kernels {
    ($features:literal, $add:ident, $dots:ident, $dots_at:ident, $four:ident) => {
        /// # Safety
        /// The processor has the instructions; `rows` holds `out.len()` rows of the query's
        /// length, which is a multiple of [`ROW_BYTES`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $dots(query: &[i8], rows: &[i8], out: &mut [i32]) {
            let dim = query.len();
            let mut row = 0;
            while row < out.len() {
                // Past the end the last row stands in; its result is not kept.
                let last = out.len() - 1;
                let at = [row, (row + 1).min(last), (row + 2).min(last), (row + 3).min(last)];
                // SAFETY: each row is below `out.len()`, so it lies within `rows`.
                let four = unsafe {
                    let rows = at.map(|row| rows.as_ptr().add(row * dim));
                    prefetch(rows[0].wrapping_add(2 * AHEAD * dim), 4 * dim);
                    $four(query, rows)
                };
                let kept = (out.len() - row).min(4);
                out[row..row + kept].copy_from_slice(&four[..kept]);
                row += 4;
            }
        }

        /// # Safety
        /// The processor has the instructions; every row of `at` lies in `rows`, whose rows have
        /// the query's length, a multiple of [`ROW_BYTES`]; `out` is as long as `at`.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $dots_at(query: &[i8], rows: &[i8], at: &[u32], out: &mut [i32]) {
            let dim = query.len();
            let start = |i: usize| rows.as_ptr().wrapping_add(at[i] as usize * dim);
            for i in 0..AHEAD.min(at.len()) {
                prefetch(start(i), dim);
            }
            let mut i = 0;
            while i < at.len() {
                let last = at.len() - 1;
                for ahead in i + AHEAD..(i + AHEAD + 4).min(at.len()) {
                    prefetch(start(ahead), dim);
                }
                let four = [i, (i + 1).min(last), (i + 2).min(last), (i + 3).min(last)].map(start);
                // SAFETY: the caller vouches for every row in `at`.
                let four = unsafe { $four(query, four) };
                let kept = (at.len() - i).min(4);
                out[i..i + kept].copy_from_slice(&four[..kept]);
                i += 4;
            }
        }

        /// # Safety
        /// The processor has the instructions; `query.len()` bytes lie behind each row.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $four(query: &[i8], rows: [*const i8; 4]) -> [i32; 4] {
            let mut sums = [_mm256_setzero_si256(); 4];
            let mut at = 0;
            while at < query.len() {
                // SAFETY: at + 32 <= query.len(), which is a multiple of 32.
                let x = unsafe { _mm256_loadu_si256(query.as_ptr().add(at).cast()) };
                let size = _mm256_abs_epi8(x);
                for (sum, row) in sums.iter_mut().zip(rows) {
                    // SAFETY: as above; the caller vouches for the bytes of the row.
                    let y = unsafe { _mm256_loadu_si256(row.add(at).cast()) };
                    *sum = $add(*sum, size, _mm256_sign_epi8(y, x));
                }
                at += ROW_BYTES;
            }
            totals(sums)
        }
    };
}

kernels!("avx2", add_avx2, dots_avx2, dots_at_avx2, four_avx2);
kernels!("avx2,avx512vnni,avx512vl", add_vnni, dots_vnni, dots_at_vnni, four_vnni);

/// Two products of at most 127 * 127 are added in 16 bits without overflow, then widened.
#[inline]
#[target_feature(enable = "avx2")]
fn add_avx2(sum: __m256i, size: __m256i, signed: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(size, signed);
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

#[inline]
#[target_feature(enable = "avx2,avx512vnni,avx512vl")]
fn add_vnni(sum: __m256i, size: __m256i, signed: __m256i) -> __m256i {
    _mm256_dpbusd_epi32(sum, size, signed)
}

/// The sum of the eight lanes of each of four registers.
#[inline]
#[target_feature(enable = "avx2")]
fn totals(sums: [__m256i; 4]) -> [i32; 4] {
    let [a, b, c, d] = sums;
    let quads = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    let four = _mm_add_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256::<1>(quads));
    let mut out = [0; 4];
    // SAFETY: `out` is 16 bytes long.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), four) };
    out
}

#[inline(always)]
pub(super) fn prefetch(row: *const i8, bytes: usize) {
    for line in 0..bytes.div_ceil(LINE) {
        // SAFETY: a prefetch of any address is harmless, and SSE is in every x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(line * LINE)) };
    }
}
