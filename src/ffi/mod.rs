//! Foreign interfaces: memory maps and large tables, LightGBM's C API, the priority of threads.
//!
//! With `kernels/`, the only place where `unsafe` may stand. Every function here is safe to call;
//! what makes it so is written beside each block.

#[cfg(test)]
pub mod allocations;
pub mod large;
#[cfg(feature = "etl")]
pub mod lightgbm;
pub mod mmap;
pub mod thread;
