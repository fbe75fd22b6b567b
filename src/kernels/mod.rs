//! The only SIMD: safe functions that choose AVX2 or their scalar twin at run time.

pub mod dense;
#[cfg(feature = "etl")]
pub mod matmul;
