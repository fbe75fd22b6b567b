//! Inner products of vectors of bytes: what inverted lists and their centroids are made of.
//!
//! A vector is stored as whole steps from -127 to 127 ([`quantise`]); an inner product of two is a
//! whole number and the same on every path. Rows are padded with zeros to a multiple of
//! [`ROW_BYTES`], so no kernel has a tail.

#[cfg(target_arch = "x86_64")]
mod x86;

use super::{Level, level, vnni};

/// Rows are a multiple of so many bytes: one AVX2 register.
pub const ROW_BYTES: usize = 32;
/// Longest row: the largest inner product of two such rows, 127 * 127 * 65,536, fits an `i32`.
const ROW_BYTES_MAX: usize = 1 << 16;
/// Bytes that [`prefetch`] asks for: what is read before the processor sees the pattern itself.
const PREFETCH_BYTES: usize = 2048;
/// Rows ahead whose bytes are asked for while a scattered row is read.
const AHEAD: usize = 12;

/// Bytes of a stored row of `dim` numbers.
pub const fn row_bytes(dim: usize) -> usize {
    dim.next_multiple_of(ROW_BYTES)
}

/// The smallest step with which every number of `vector` is within 127 steps; 0 for zeros.
pub fn step_of(vector: &[f32]) -> f32 {
    vector.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0
}

/// Writes `vector` in whole steps of `step`, the rest of `out` as zeros.
///
/// # Panics
/// When `out` is shorter than `vector`.
pub fn quantise(vector: &[f32], step: f32, out: &mut [i8]) {
    let (body, padding) = out.split_at_mut(vector.len());
    let per_step = if step > 0.0 { 1.0 / step } else { 0.0 };
    for (out, x) in body.iter_mut().zip(vector) {
        *out = (x * per_step).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    padding.fill(0);
}

/// Inner products of `query` with every row of `rows` (`[out.len() * query.len()]`).
///
/// # Panics
/// When a row is no multiple of [`ROW_BYTES`], or `rows` does not hold `out.len()` rows.
#[inline]
pub fn dots(query: &[i8], rows: &[i8], out: &mut [i32]) {
    check(query, rows);
    assert_eq!(rows.len(), query.len() * out.len(), "rows of another length than the query");
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` has seen the instructions on this processor; lengths are checked above.
        Level::Avx2Fma if vnni() => unsafe { x86::dots_vnni(query, rows, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2Fma => unsafe { x86::dots_avx2(query, rows, out) },
        _ => scalar_dots(query, rows, out),
    }
}

/// Inner products of `query` with the rows numbered `at` of `rows`, in that order.
///
/// # Panics
/// When a row is no multiple of [`ROW_BYTES`] or lies outside `rows`, or `out` is not as long as
/// `at`.
#[inline]
pub fn dots_at(query: &[i8], rows: &[i8], at: &[u32], out: &mut [i32]) {
    check(query, rows);
    assert_eq!(at.len(), out.len(), "as many results as rows");
    let count = rows.len().checked_div(query.len()).unwrap_or(usize::MAX);
    let last = at.iter().copied().max().unwrap_or(0);
    assert!(at.is_empty() || (last as usize) < count, "row {last} of {count}");
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` has seen the instructions on this processor; every row lies in `rows`.
        Level::Avx2Fma if vnni() => unsafe { x86::dots_at_vnni(query, rows, at, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2Fma => unsafe { x86::dots_at_avx2(query, rows, at, out) },
        _ => scalar_dots_at(query, rows, at, out),
    }
}

/// Asks for the first bytes of `rows`, which are read soon.
#[inline]
pub fn prefetch<T>(rows: &[T]) {
    super::prefetch(&rows[..rows.len().min(PREFETCH_BYTES / size_of::<T>())]);
}

fn check(query: &[i8], rows: &[i8]) {
    let bytes = query.len();
    assert!(
        bytes.is_multiple_of(ROW_BYTES) && bytes <= ROW_BYTES_MAX,
        "rows of {bytes} bytes are no multiple of {ROW_BYTES} up to {ROW_BYTES_MAX}"
    );
    assert!(bytes == 0 || rows.len().is_multiple_of(bytes), "a part of a row");
}

fn scalar_dot(query: &[i8], row: &[i8]) -> i32 {
    query.iter().zip(row).map(|(&a, &b)| a as i32 * b as i32).sum()
}

fn scalar_dots(query: &[i8], rows: &[i8], out: &mut [i32]) {
    for (row, out) in out.iter_mut().enumerate() {
        *out = scalar_dot(query, &rows[row * query.len()..][..query.len()]);
    }
}

fn scalar_dots_at(query: &[i8], rows: &[i8], at: &[u32], out: &mut [i32]) {
    for (&row, out) in at.iter().zip(out) {
        *out = scalar_dot(query, &rows[row as usize * query.len()..][..query.len()]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(count: usize) -> impl Strategy<Value = Vec<i8>> {
        let value = prop_oneof![4 => -127i8..=127, 1 => Just(127i8), 1 => Just(-127i8)];
        proptest::collection::vec(value, count)
    }

    fn cases() -> impl Strategy<Value = (Vec<i8>, Vec<i8>, Vec<u32>)> {
        (1usize..13, 0usize..23).prop_flat_map(|(blocks, rows)| {
            let dim = blocks * ROW_BYTES;
            let at =
                proptest::collection::vec(0..rows.max(1) as u32, if rows == 0 { 0 } else { 19 });
            (bytes(dim), bytes(dim * rows), at)
        })
    }

    proptest! {
        #[test]
        fn every_path_equals_the_scalar_twin((query, rows, at) in cases()) {
            let mut expected = vec![0; rows.len() / query.len()];
            scalar_dots(&query, &rows, &mut expected);
            let expected_at: Vec<i32> = at.iter().map(|&row| expected[row as usize]).collect();

            let (mut found, mut found_at) = (vec![0; expected.len()], vec![0; at.len()]);
            dots(&query, &rows, &mut found);
            dots_at(&query, &rows, &at, &mut found_at);
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(&found_at, &expected_at);
            scalar_dots_at(&query, &rows, &at, &mut found_at);
            prop_assert_eq!(&found_at, &expected_at);
            #[cfg(target_arch = "x86_64")]
            if level() == Level::Avx2Fma {
                // SAFETY: the processor has AVX2; the lengths are those of the call above.
                unsafe {
                    x86::dots_avx2(&query, &rows, &mut found);
                    x86::dots_at_avx2(&query, &rows, &at, &mut found_at);
                }
                prop_assert_eq!(&found, &expected);
                prop_assert_eq!(&found_at, &expected_at);
            }
        }

        #[test]
        fn quantising_is_off_by_half_a_step_at_most(
            vector in proptest::collection::vec(-1.0f32..1.0, 1..40)
        ) {
            let step = step_of(&vector);
            let mut out = vec![1i8; row_bytes(vector.len())];
            quantise(&vector, step, &mut out);
            for (x, &steps) in vector.iter().zip(&out) {
                prop_assert!((x - steps as f32 * step).abs() <= 0.501 * step);
            }
            prop_assert!(out[vector.len()..].iter().all(|&padding| padding == 0));
        }
    }

    #[test]
    fn zeros_have_no_step() {
        let mut out = [1i8; 32];
        quantise(&[0.0; 5], step_of(&[0.0; 5]), &mut out);
        assert_eq!(out, [0; 32]);
    }

    #[test]
    #[should_panic(expected = "row 2 of 2")]
    fn a_row_outside_is_refused() {
        dots_at(&[0; 32], &[0; 64], &[1, 2], &mut [0; 2]);
    }
}
