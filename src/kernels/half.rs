//! Inner products with rows of half-precision numbers: the tier that re-ranks.
//!
//! A half is exact as a float, so a row is widened and the product is that of [`super::dot`].

use std::sync::LazyLock;

use half::f16;

/// Writes `values` rounded to the nearest halves, as bits.
///
/// # Panics
/// When the lengths differ.
pub fn narrow(values: &[f32], out: &mut [u16]) {
    assert_eq!(values.len(), out.len(), "as many halves as numbers");
    out.iter_mut().zip(values).for_each(|(out, &x)| *out = f16::from_f32(x).to_bits());
}

/// Writes the numbers that the bits of `halves` stand for.
///
/// # Panics
/// When the lengths differ.
#[inline]
pub fn widen(halves: &[u16], out: &mut [f32]) {
    assert_eq!(halves.len(), out.len(), "as many numbers as halves");
    #[cfg(target_arch = "x86_64")]
    if f16c() {
        // SAFETY: the processor has AVX and F16C, and the lengths agree.
        return unsafe { widen_f16c(halves, out) };
    }
    scalar_widen(halves, out);
}

#[cfg(target_arch = "x86_64")]
fn f16c() -> bool {
    static F16C: LazyLock<bool> = LazyLock::new(|| {
        super::level() == super::Level::Avx2Fma && std::is_x86_feature_detected!("f16c")
    });
    *F16C
}

fn scalar_widen(halves: &[u16], out: &mut [f32]) {
    out.iter_mut().zip(halves).for_each(|(out, &bits)| *out = f16::from_bits(bits).to_f32());
}

/// # Safety
/// The processor has AVX and F16C; `out` is as long as `halves`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
unsafe fn widen_f16c(halves: &[u16], out: &mut [f32]) {
    use std::arch::x86_64::*;
    let whole = halves.len() / 8 * 8;
    for at in (0..whole).step_by(8) {
        // SAFETY: at + 8 <= whole, which is at most the length of both.
        unsafe {
            let eight = _mm_loadu_si128(halves.as_ptr().add(at).cast());
            _mm256_storeu_ps(out.as_mut_ptr().add(at), _mm256_cvtph_ps(eight));
        }
    }
    scalar_widen(&halves[whole..], &mut out[whole..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_like_the_scalar_twin() {
        let halves: Vec<u16> = (0..=u16::MAX).chain(0..5).collect();
        let (mut fast, mut slow) = (vec![0.0; halves.len()], vec![0.0; halves.len()]);
        widen(&halves, &mut fast);
        scalar_widen(&halves, &mut slow);
        for (fast, slow) in fast.iter().zip(&slow) {
            assert!(fast == slow || (fast.is_nan() && slow.is_nan()), "{fast} {slow}");
        }
    }

    #[test]
    fn narrowing_is_off_by_an_eleventh_bit_at_most() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.7).sin()).collect();
        let (mut halves, mut back) = (vec![0; 1000], vec![0.0; 1000]);
        narrow(&values, &mut halves);
        widen(&halves, &mut back);
        for (x, y) in values.iter().zip(&back) {
            assert!((x - y).abs() <= x.abs() / 2048.0 + 1e-7);
        }
    }
}
