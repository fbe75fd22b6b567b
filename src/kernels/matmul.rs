//! Dense matrix products for training, on the crate `gemm`. All matrices are row-major.

use gemm::Parallelism;

/// How a product is spread over threads: the rayon pool it runs in is the caller's.
pub fn parallelism(threads: usize) -> Parallelism {
    if threads <= 1 { Parallelism::None } else { Parallelism::Rayon(threads) }
}

/// A row-major matrix read by a product, as it stands or transposed.
#[derive(Clone, Copy)]
pub struct View<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: isize,
    column_stride: isize,
}

impl<'a> View<'a> {
    /// `rows` x `columns`, row by row.
    ///
    /// # Panics
    /// When the slice is not exactly `rows * columns` long.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a {rows}x{columns} matrix");
        Self { values, rows, columns, row_stride: columns as isize, column_stride: 1 }
    }

    /// The transpose; nothing moves.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// `out = a * b`, or `out += a * b` with `accumulate`.
///
/// # Panics
/// When the inner sizes differ or `out` is not `a.rows x b.columns`.
pub fn matmul(a: View, b: View, out: &mut [f32], accumulate: bool, threads: Parallelism) {
    assert_eq!(a.columns, b.rows, "inner sizes of a product");
    assert_eq!(out.len(), a.rows * b.columns, "size of a product");
    let keep = if accumulate { 1.0 } else { 0.0 };
    // SAFETY: `View::new` checked that rows x columns elements lie behind each pointer under its
    // strides, the assertions above that the sizes agree and that `out` holds the product; `out`
    // is borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            b.columns as isize,
            accumulate,
            a.values.as_ptr(),
            a.column_stride,
            a.row_stride,
            b.values.as_ptr(),
            b.column_stride,
            b.row_stride,
            keep,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_three_loops() {
        let (m, k, n) = (5, 7, 3);
        let value = |i: usize| ((i * 37 + 11) % 17) as f32 - 8.0;
        let a: Vec<f32> = (0..m * k).map(value).collect();
        let b: Vec<f32> = (0..k * n).map(|i| value(i + 3)).collect();
        let b_t: Vec<f32> = (0..k * n).map(|i| b[(i % k) * n + i / k]).collect();
        let mut expected = vec![0.0; m * n];
        for (r, row) in expected.chunks_mut(n).enumerate() {
            for (c, cell) in row.iter_mut().enumerate() {
                *cell = (0..k).map(|i| a[r * k + i] * b[i * n + c]).sum();
            }
        }
        let mut out = vec![1.0; m * n];
        matmul(View::new(&a, m, k), View::new(&b, k, n), &mut out, false, Parallelism::None);
        assert_eq!(out, expected);
        matmul(View::new(&a, m, k), View::new(&b_t, n, k).t(), &mut out, true, Parallelism::None);
        let twice: Vec<f32> = expected.iter().map(|x| 2.0 * x).collect();
        assert_eq!(out, twice);
    }
}
