//! From whole products to scores: the last step of reading a list.

use super::{Level, level};

/// Rows of a word of bits.
pub const WORD_ROWS: usize = 64;

/// Appends the scores of up to 64 rows to `out`: `near + dot * (row_step * step)` where the row's bit in `passing` is
/// 1, minus infinity elsewhere. A row's step is the upper half of an `f32`.
///
/// # Panics
/// When the rows are more than 64, or their steps of another number.
#[inline]
pub fn scores(
    dots: &[i32],
    row_steps: &[u16],
    (near, step): (f32, f32),
    passing: u64,
    out: &mut Vec<f32>,
) {
    assert!(dots.len() <= WORD_ROWS && dots.len() == row_steps.len(), "one step a row, 64 rows");
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `avx512_masks` has seen the instructions on this processor.
        Level::Avx2Fma if super::avx512_masks() => unsafe {
            x86::eights(dots, row_steps, near, step, passing, out);
            let (_, rest) = dots.as_chunks::<8>();
            let done = dots.len() - rest.len();
            let passing = passing.checked_shr(done as u32).unwrap_or(0);
            scalar(rest, &row_steps[done..], near, step, passing, out);
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` has seen AVX2 on this processor.
        Level::Avx2Fma => unsafe { x86::all(dots, row_steps, near, step, passing, out) },
        _ => scalar(dots, row_steps, near, step, passing, out),
    }
}

#[inline(always)]
fn scalar(dots: &[i32], row_steps: &[u16], near: f32, step: f32, passing: u64, out: &mut Vec<f32>) {
    out.extend(dots.iter().zip(row_steps).enumerate().map(|(at, (&dot, &bits))| {
        let score = near + dot as f32 * (f32::from_bits(u32::from(bits) << 16) * step);
        if passing >> at & 1 == 1 { score } else { f32::NEG_INFINITY }
    }));
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::WORD_ROWS;

    /// The scalar twin, as the compiler makes it for AVX2.
    #[target_feature(enable = "avx2")]
    pub fn all(
        dots: &[i32],
        row_steps: &[u16],
        near: f32,
        step: f32,
        passing: u64,
        out: &mut Vec<f32>,
    ) {
        super::scalar(dots, row_steps, near, step, passing, out);
    }

    /// As many rows as eight fit into.
    #[target_feature(enable = "avx2,avx512f,avx512vl")]
    pub fn eights(
        dots: &[i32],
        row_steps: &[u16],
        near: f32,
        step: f32,
        passing: u64,
        out: &mut Vec<f32>,
    ) {
        assert!(dots.len() <= WORD_ROWS && row_steps.len() == dots.len());
        let mut scores = [f32::NEG_INFINITY; WORD_ROWS];
        let (near, step) = (_mm256_set1_ps(near), _mm256_set1_ps(step));
        for at in (0..dots.len() / 8).map(|eight| eight * 8) {
            // SAFETY: at + 8 is at most the length of each.
            unsafe {
                let dot = _mm256_cvtepi32_ps(_mm256_loadu_si256(dots.as_ptr().add(at).cast()));
                let bits = _mm_loadu_si128(row_steps.as_ptr().add(at).cast());
                let row_step = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits));
                let row_step = _mm256_mul_ps(_mm256_castsi256_ps(row_step), step);
                let score = _mm256_add_ps(near, _mm256_mul_ps(dot, row_step));
                let to = scores.as_mut_ptr().add(at);
                _mm256_mask_storeu_ps(to, (passing >> at) as u8, score);
            }
        }
        out.extend_from_slice(&scores[..dots.len() / 8 * 8]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_path_equals_the_scalar_twin(
            rows in prop::collection::vec((any::<i32>(), any::<u16>()), 0..=WORD_ROWS),
            full in any::<bool>(),
            (near, step, passing) in (-2.0_f32..2.0, 0.0_f32..1.0, any::<u64>()),
        ) {
            let (mut dots, mut steps): (Vec<i32>, Vec<u16>) = rows.into_iter().unzip();
            if full {
                dots.resize(WORD_ROWS, -77);
                steps.resize(WORD_ROWS, 0x3c1f);
            }
            let (mut fast, mut slow) = (vec![1.0], vec![1.0]);
            scores(&dots, &steps, (near, step), passing, &mut fast);
            scalar(&dots, &steps, near, step, passing, &mut slow);
            // NaN equals NaN here: which payload survives is the processor's business.
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            prop_assert!(fast.len() == slow.len() && fast.iter().zip(&slow).all(same));
        }
    }
}
