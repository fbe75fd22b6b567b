//! Products on a CUDA device, by cuBLAS. The driver and cuBLAS are looked for when a device is opened, so that a
//! program with this feature builds and runs where neither is.
//!
//! Operands go to the device and the product comes back: the tables of the towers, of which a step touches a few rows,
//! stay with the processor. Products are of single precision throughout.

use std::sync::Arc;

use cudarc::cublas::sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
use cudarc::cublas::{CudaBlas, Gemm, GemmConfig, result::CublasError};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};

use super::View;

/// Why there is no device, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no {library}: install NVIDIA's driver and cuBLAS, or set towers.device = \"cpu\"")]
    Library { library: &'static str },
    #[error("CUDA: {0}")]
    Driver(#[from] DriverError),
    #[error("cuBLAS: {0}")]
    Blas(#[from] CublasError),
}

/// The first device, and memory on it that is used again and again.
pub struct Gpu {
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    a: CudaSlice<f32>,
    b: CudaSlice<f32>,
    out: CudaSlice<f32>,
}

impl Gpu {
    /// Opens the first device.
    ///
    /// # Errors
    /// When there is no driver, no cuBLAS or no device.
    pub fn open() -> Result<Self, Error> {
        // SAFETY: loading NVIDIA's libraries runs their initialisers, and nothing of ours; without this question the
        // first call panics where they are missing.
        let missing = unsafe {
            [
                (cudarc::driver::sys::is_culib_present(), "libcuda"),
                (cudarc::cublas::sys::is_culib_present(), "libcublas"),
            ]
        };
        if let Some((_, library)) = missing.into_iter().find(|(there, _)| !there) {
            return Err(Error::Library { library });
        }
        let stream = CudaContext::new(0)?.default_stream();
        let blas = CudaBlas::new(stream.clone())?;
        let empty = || stream.alloc_zeros::<f32>(1);
        Ok(Self { blas, a: empty()?, b: empty()?, out: empty()?, stream })
    }

    /// As [`super::Engine::multiply`], whose sizes have been checked.
    pub(super) fn multiply(
        &mut self,
        a: View,
        b: View,
        out: &mut [f32],
        accumulate: bool,
    ) -> Result<(), Error> {
        let Self { stream, blas, .. } = self;
        if out.is_empty() {
            return Ok(());
        }
        for (place, values) in [(&mut self.a, a.values), (&mut self.b, b.values)] {
            reserve(stream, place, values.len())?;
            if !values.is_empty() {
                stream.memcpy_htod(values, &mut place.slice_mut(..values.len()))?;
            }
        }
        reserve(stream, &mut self.out, out.len())?;
        if accumulate {
            stream.memcpy_htod(out, &mut self.out.slice_mut(..out.len()))?;
        }
        // cuBLAS reads column by column, so it sees every matrix transposed: it is asked for b' a', which is (a b)'.
        let ((transa, lda), (transb, ldb)) = (seen(&b), seen(&a));
        let config = GemmConfig {
            transa,
            transb,
            m: b.columns as i32,
            n: a.rows as i32,
            k: a.columns as i32,
            alpha: 1.0,
            lda,
            ldb,
            beta: if accumulate { 1.0 } else { 0.0 },
            ldc: b.columns as i32,
        };
        // SAFETY: the sizes agree (checked by the caller), and each buffer was made at least as long as its matrix.
        unsafe { blas.gemm(config, &self.b, &self.a, &mut self.out)? };
        stream.memcpy_dtoh(&self.out.slice(..out.len()), out)?;
        Ok(stream.synchronize()?)
    }
}

/// How cuBLAS reads a view, and the length of a stored row.
fn seen(view: &View) -> (cudarc::cublas::sys::cublasOperation_t, i32) {
    match view.column_stride {
        1 => (CUBLAS_OP_N, view.columns.max(1) as i32),
        _ => (CUBLAS_OP_T, view.rows.max(1) as i32),
    }
}

fn reserve(
    stream: &Arc<CudaStream>,
    place: &mut CudaSlice<f32>,
    len: usize,
) -> Result<(), DriverError> {
    if place.len() < len {
        *place = stream.alloc_zeros(len.next_power_of_two())?;
    }
    Ok(())
}
