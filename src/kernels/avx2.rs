//! AVX2 and FMA. Each function is the twin of the one of the same name in `scalar`.

use std::arch::x86_64::*;

use super::scalar::{ACCUMULATORS, LANES, tail};

const STEP: usize = LANES * ACCUMULATORS;

/// Inner product; the caller has checked that the lengths agree.
///
/// # Safety
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let [sum] = dot_rows::<1>(a, [b]);
    sum
}

/// [`dot`] with every row, two rows at a time so that each load of the query serves both.
///
/// # Safety
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) fn dots(query: &[f32], rows: &[f32], out: &mut [f32]) {
    let dim = query.len();
    let mut pairs = out.chunks_exact_mut(2);
    let mut at = 0;
    for pair in &mut pairs {
        let both = [&rows[at..at + dim], &rows[at + dim..at + 2 * dim]];
        pair.copy_from_slice(&dot_rows::<2>(query, both));
        at += 2 * dim;
    }
    if let [last] = pairs.into_remainder() {
        *last = dot(query, &rows[at..at + dim]);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::needless_range_loop)] // the registers are addressed by row and accumulator
fn dot_rows<const R: usize>(query: &[f32], rows: [&[f32]; R]) -> [f32; R] {
    let dim = query.len();
    for row in rows {
        assert_eq!(row.len(), dim);
    }
    let mut acc = [[_mm256_setzero_ps(); ACCUMULATORS]; R];
    let mut at = 0;
    while at + STEP <= dim {
        for j in 0..ACCUMULATORS {
            // SAFETY: at + 8 j + 8 <= at + STEP <= dim, the length of the query and of each row.
            let x = unsafe { _mm256_loadu_ps(query.as_ptr().add(at + j * LANES)) };
            for r in 0..R {
                // SAFETY: as above.
                let y = unsafe { _mm256_loadu_ps(rows[r].as_ptr().add(at + j * LANES)) };
                acc[r][j] = _mm256_fmadd_ps(x, y, acc[r][j]);
            }
        }
        at += STEP;
    }
    while at + LANES <= dim {
        // SAFETY: at + 8 <= dim, the length of the query and of each row.
        let x = unsafe { _mm256_loadu_ps(query.as_ptr().add(at)) };
        for r in 0..R {
            // SAFETY: as above.
            let y = unsafe { _mm256_loadu_ps(rows[r].as_ptr().add(at)) };
            acc[r][0] = _mm256_fmadd_ps(x, y, acc[r][0]);
        }
        at += LANES;
    }
    std::array::from_fn(|r| reduce(acc[r]) + tail(&query[at..], &rows[r][at..]))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn reduce(acc: [__m256; ACCUMULATORS]) -> f32 {
    let eight = _mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3]));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}
