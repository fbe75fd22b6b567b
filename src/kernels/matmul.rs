//! Dense matrix products for training, on the crate `gemm` or on a CUDA device. All matrices are row-major.

#[cfg(feature = "cuda")]
pub mod cuda;

use gemm::Parallelism;

/// Who multiplies.
pub enum Engine {
    /// So many threads of the rayon pool that the caller runs in.
    Cpu(usize),
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::Gpu>),
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

impl Engine {
    /// `out = a * b`, or `out += a * b` with `accumulate`. When a device fails, the processor does it, and all that
    /// follow.
    ///
    /// # Panics
    /// When the inner sizes differ or `out` is not `a.rows x b.columns`.
    pub fn multiply(&mut self, a: View, b: View, out: &mut [f32], accumulate: bool) {
        assert_eq!(a.columns, b.rows, "inner sizes of a product");
        assert_eq!(out.len(), a.rows * b.columns, "size of a product");
        match self {
            Self::Cpu(threads) => on_cpu(a, b, out, accumulate, *threads),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => {
                if let Err(error) = gpu.multiply(a, b, out, accumulate) {
                    tracing::warn!(%error, "the device fails; the processor goes on");
                    *self = Self::Cpu(rayon::current_num_threads());
                    self.multiply(a, b, out, accumulate);
                }
            }
        }
    }
}

fn on_cpu(a: View, b: View, out: &mut [f32], accumulate: bool, threads: usize) {
    let threads = if threads <= 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
    let keep = if accumulate { 1.0 } else { 0.0 };
    // SAFETY: `View::new` checked that rows x columns elements lie behind each pointer under its
    // strides, the caller that the sizes agree and that `out` holds the product; `out` is borrowed
    // mutably, so it overlaps neither operand.
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

    fn products_agree_with_three_loops(engine: &mut Engine) {
        for (m, k, n) in [(5, 7, 3), (1, 4, 6), (6, 1, 2), (33, 64, 1)] {
            let value = |i: usize| ((i * 37 + 11) % 17) as f32 - 8.0;
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..k * n).map(|i| value(i + 3)).collect();
            let a_t: Vec<f32> = (0..m * k).map(|i| a[(i % m) * k + i / m]).collect();
            let b_t: Vec<f32> = (0..k * n).map(|i| b[(i % k) * n + i / k]).collect();
            let mut expected = vec![0.0; m * n];
            for (r, row) in expected.chunks_mut(n).enumerate() {
                for (c, cell) in row.iter_mut().enumerate() {
                    *cell = (0..k).map(|i| a[r * k + i] * b[i * n + c]).sum();
                }
            }
            let mut out = vec![1.0; m * n];
            engine.multiply(View::new(&a, m, k), View::new(&b, k, n), &mut out, false);
            assert_eq!(out, expected, "{m} {k} {n}");
            engine.multiply(View::new(&a, m, k), View::new(&b_t, n, k).t(), &mut out, true);
            let twice: Vec<f32> = expected.iter().map(|x| 2.0 * x).collect();
            assert_eq!(out, twice, "{m} {k} {n}");
            engine.multiply(View::new(&a_t, k, m).t(), View::new(&b, k, n), &mut out, false);
            assert_eq!(out, expected, "{m} {k} {n}");
        }
    }

    #[test]
    fn the_processor_agrees_with_three_loops() {
        products_agree_with_three_loops(&mut Engine::Cpu(1));
    }

    /// Whole numbers are exact in any order of adding, so the device must agree to the last bit.
    #[cfg(feature = "cuda")]
    #[test]
    fn the_device_agrees_with_three_loops() {
        match cuda::Gpu::open() {
            Ok(gpu) => {
                let mut engine = Engine::Cuda(Box::new(gpu));
                products_agree_with_three_loops(&mut engine);
                assert!(matches!(engine, Engine::Cuda(_)), "the device has failed");
            }
            Err(error) => eprintln!("skipped: {error}"),
        }
    }
}
