//! Which numbers of a row are large enough.

use super::{Level, level};

/// A kind of number that [`at_least`] compares.
pub trait Number: Copy + PartialOrd {
    /// Bit `i` of the result says whether `values[i] >= least`, for 32 values.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn mask(values: &[Self; 32], least: Self) -> u32;
}

/// Appends `first + i` to `out` for every `i` with `values[i] >= least`; never for a NaN.
#[inline]
pub fn at_least<T: Number>(values: &[T], least: T, first: u32, out: &mut Vec<u32>) {
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2Fma => {
            let (chunks, rest) = values.as_chunks::<32>();
            let mut base = first;
            for chunk in chunks {
                // SAFETY: `level` has seen AVX2 on this processor.
                let mut mask = unsafe { T::mask(chunk, least) };
                while mask != 0 {
                    out.push(base + mask.trailing_zeros());
                    mask &= mask - 1;
                }
                base += 32;
            }
            scalar_at_least(rest, least, base, out);
        }
        _ => scalar_at_least(values, least, first, out),
    }
}

fn scalar_at_least<T: Number>(values: &[T], least: T, first: u32, out: &mut Vec<u32>) {
    out.extend(values.iter().zip(first..).filter(|(value, _)| **value >= least).map(|(_, i)| i));
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Number;

    impl Number for u16 {
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn mask(values: &[u16; 32], least: u16) -> u32 {
            let bound = _mm256_set1_epi16(least as i16);
            // SAFETY: 32 values are 64 bytes.
            let (a, b) = unsafe {
                let at: *const __m256i = values.as_ptr().cast();
                (_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1)))
            };
            let a = _mm256_cmpeq_epi16(_mm256_max_epu16(a, bound), a);
            let b = _mm256_cmpeq_epi16(_mm256_max_epu16(b, bound), b);
            // Packing interleaves the halves of the two; the permutation restores the order.
            let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(a, b));
            _mm256_movemask_epi8(both) as u32
        }
    }

    impl Number for i32 {
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn mask(values: &[i32; 32], least: i32) -> u32 {
            let bound = _mm256_set1_epi32(least);
            let mut below = 0;
            for at in 0..4 {
                // SAFETY: 8 at + 8 <= 32.
                let eight = unsafe { _mm256_loadu_si256(values.as_ptr().add(at * 8).cast()) };
                let less = _mm256_castsi256_ps(_mm256_cmpgt_epi32(bound, eight));
                below |= (_mm256_movemask_ps(less) as u32) << (at * 8);
            }
            !below
        }
    }

    impl Number for f32 {
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn mask(values: &[f32; 32], least: f32) -> u32 {
            let bound = _mm256_set1_ps(least);
            let mut mask = 0;
            for at in 0..4 {
                // SAFETY: 8 at + 8 <= 32.
                let eight = unsafe { _mm256_loadu_ps(values.as_ptr().add(at * 8)) };
                let enough = _mm256_cmp_ps::<_CMP_GE_OQ>(eight, bound);
                mask |= (_mm256_movemask_ps(enough) as u32) << (at * 8);
            }
            mask
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod portable {
    impl super::Number for u16 {}
    impl super::Number for i32 {}
    impl super::Number for f32 {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_the_scalar_twin(
            values in proptest::collection::vec(any::<u16>(), 0..200),
            floats in proptest::collection::vec(any::<f32>(), 0..200),
            whole in proptest::collection::vec(any::<i32>(), 0..200),
            (least, bound, lowest) in (any::<u16>(), any::<f32>(), any::<i32>()),
        ) {
            let (mut fast, mut slow) = (vec![7], vec![7]);
            at_least(&values, least, 40, &mut fast);
            scalar_at_least(&values, least, 40, &mut slow);
            at_least(&floats, bound, 300, &mut fast);
            scalar_at_least(&floats, bound, 300, &mut slow);
            at_least(&whole, lowest, 600, &mut fast);
            scalar_at_least(&whole, lowest, 600, &mut slow);
            prop_assert_eq!(fast, slow);
        }
    }
}
