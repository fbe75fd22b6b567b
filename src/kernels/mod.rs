//! The only SIMD: safe functions that choose AVX2 or their scalar twin at run time.

#[cfg(feature = "etl")]
pub mod matmul;
