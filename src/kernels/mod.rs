//! The only SIMD: safe functions that choose AVX2 or their scalar twin at run time.
//!
//! Invariant: a kernel and its twin add in the same order with the same fused operations, so they
//! agree bit for bit and a model trained on one machine is served alike on another. The twin is
//! what a reader should read; the tests hold the two together. Every similarity of training and
//! serving comes from [`dot`] (or [`dots`], which is `dot` row by row).
//!
//! Nothing here knows what a vector means.

#[cfg(target_arch = "x86_64")]
mod avx2;
pub mod choose;
pub mod dense;
pub mod forest;
pub mod half;
pub mod int8;
#[cfg(feature = "etl")]
pub mod matmul;
pub mod pq;
mod prefetch;
mod scalar;
pub mod score;

use std::sync::LazyLock;

pub use prefetch::{prefetch, prefetch_at};

/// The instruction set in use: decided once, on the first call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Portable code.
    Scalar,
    /// AVX2 and FMA (x86-64).
    Avx2Fma,
}

/// What this process uses; for logs and bench records.
#[inline]
pub fn level() -> Level {
    static LEVEL: LazyLock<Level> = LazyLock::new(|| {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return Level::Avx2Fma;
        }
        Level::Scalar
    });
    *LEVEL
}

/// Whether the byte products of AVX-512 VNNI are there besides AVX2: decided once.
#[inline]
pub fn vnni() -> bool {
    static VNNI: LazyLock<bool> = LazyLock::new(|| {
        #[cfg(target_arch = "x86_64")]
        if level() == Level::Avx2Fma {
            return std::is_x86_feature_detected!("avx512vnni")
                && std::is_x86_feature_detected!("avx512vl");
        }
        false
    });
    *VNNI
}

/// Whether the masks of AVX-512 are there for registers of 32 bytes: decided once.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn avx512_masks() -> bool {
    static MASKS: LazyLock<bool> = LazyLock::new(|| {
        level() == Level::Avx2Fma
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512vl")
    });
    *MASKS
}

/// Inner product of two vectors of the same length.
///
/// # Panics
/// When the lengths differ.
#[inline]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "inner product of vectors of different lengths");
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` has seen AVX2 and FMA on this processor.
        Level::Avx2Fma => unsafe { avx2::dot(a, b) },
        _ => scalar::dot(a, b),
    }
}

/// Inner products of `query` (`[dim]`) with every row of `rows` (`[out.len() * dim]`).
///
/// # Panics
/// When `rows` does not hold `out.len()` rows of the query's length.
#[inline]
pub fn dots(query: &[f32], rows: &[f32], out: &mut [f32]) {
    assert_eq!(rows.len(), query.len() * out.len(), "rows of another length than the query");
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` has seen AVX2 and FMA on this processor.
        Level::Avx2Fma => unsafe { avx2::dots(query, rows, out) },
        _ => scalar::dots(query, rows, out),
    }
}

/// Scales `vector` to length one and returns the length it had.
///
/// A vector whose length is zero or not finite is left as it is: the caller decides from the
/// returned length.
pub fn normalise(vector: &mut [f32]) -> f32 {
    let norm = dot(vector, vector).sqrt();
    if norm > 0.0 && norm.is_finite() {
        vector.iter_mut().for_each(|x| *x /= norm);
    }
    norm
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// NaN equals NaN here: which payload survives an addition is the processor's business.
    fn same_bits(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }

    fn vectors() -> impl Strategy<Value = (usize, Vec<f32>)> {
        // Small rows of every remainder, and values over the whole range with infinities and NaN.
        (0usize..150).prop_flat_map(|dim| {
            let value = prop_oneof![8 => -2.0f32..2.0, 1 => any::<f32>()];
            (Just(dim), proptest::collection::vec(value, dim * 6))
        })
    }

    #[cfg(target_arch = "x86_64")]
    proptest! {
        #[test]
        fn avx2_equals_the_scalar_twin_bit_for_bit((dim, values) in vectors()) {
            if level() == Level::Scalar {
                eprintln!("skipped: no AVX2 on this processor");
                return Ok(());
            }
            let (query, rows) = values.split_at(dim);
            let (mut fast, mut slow) = ([0.0; 5], [0.0; 5]);
            dots(query, rows, &mut fast);
            scalar::dots(query, rows, &mut slow);
            for row in 0..5 {
                let one = dot(query, &rows[row * dim..][..dim]);
                prop_assert!(same_bits(one, slow[row]), "dot {} {}", one, slow[row]);
                prop_assert!(same_bits(fast[row], slow[row]), "dots {} {}", fast[row], slow[row]);
            }
        }
    }

    #[test]
    fn continuous_integration_runs_the_avx2_path() {
        // A machine that has AVX2 and silently takes the scalar path is a broken dispatch.
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if flags.contains(" avx2") && flags.contains(" fma") {
            assert_eq!(level(), Level::Avx2Fma);
        }
    }

    #[test]
    fn dot_agrees_with_double_precision() {
        let a: Vec<f32> = (0..131).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..131).map(|i| (i as f32 * 0.11).cos()).collect();
        let exact: f64 = a.iter().zip(&b).map(|(&x, &y)| x as f64 * y as f64).sum();
        assert!((dot(&a, &b) as f64 - exact).abs() < 1e-4);
    }

    #[test]
    fn normalise_gives_length_one_and_leaves_zero_alone() {
        let mut v = [3.0, 4.0];
        assert_eq!(normalise(&mut v), 5.0);
        assert_eq!(v, [0.6, 0.8]);
        let mut zero = [0.0; 3];
        assert_eq!(normalise(&mut zero), 0.0);
        assert_eq!(zero, [0.0; 3]);
    }

    #[test]
    #[should_panic(expected = "different lengths")]
    fn lengths_must_agree() {
        dot(&[1.0], &[1.0, 2.0]);
    }
}
