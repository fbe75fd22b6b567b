//! The user and the item encoder: two small networks into one space.
//!
//! ```text
//! item:  [id row | code rows ... | dense]                                    -> MLP -> unit vector
//! user:  [pools of the history's id and code rows | code rows | dense | n]   -> MLP -> unit vector
//! ```
//! The similarity of a user and an item is the inner product of their vectors, which is their
//! cosine. What an item is enters by its codes and numbers, so that an item nobody has touched
//! still gets a place; what only its buyers know enters by the id row, and the table of id rows
//! is bounded: an item seen seldom in training shares row 0.
//!
//! Invariant: every vector that leaves this module is finite and of length one. The towers of a
//! bundle belong to its item table: `ItemIdx` means the same row in both.
//!
//! This module must not know where histories or features come from, what time it is, or how
//! vectors are searched. Training stands behind the feature `etl`; encoding is always there.

mod file;
mod foreign;
mod mlp;
mod model;
mod onnx;
#[cfg(all(test, feature = "etl"))]
mod tests;
#[cfg(feature = "etl")]
pub mod train;

use std::path::PathBuf;

#[cfg(all(test, feature = "etl"))]
pub(crate) use train::random;

pub use foreign::Foreign;
pub use model::{ItemInput, MISSING, Scratch, Shape, Towers, UserInput};

/// Hyper-parameters; every key is explained in `config/default.toml`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub dim: u32,
    pub id_dim: u32,
    pub code_dim_max: u32,
    pub hidden: Vec<u32>,
    pub history_max: u32,
    pub pool_half_lives_events: Vec<f32>,
    pub separate_history_tables: bool,
    pub id_rows_max: u32,
    pub id_min_count: u32,
    pub seed: u64,
    pub threads: usize,
    pub device: Device,
    pub epochs_max: u32,
    pub patience_epochs: u32,
    pub batch_rows: usize,
    pub random_negatives: usize,
    pub learning_rate: f32,
    pub table_learning_rate: f32,
    pub weight_decay: f32,
    pub scale: f32,
    pub learn_scale: bool,
    pub id_dropout: f32,
    pub repeat_weight: f32,
    pub mask_owned: bool,
    pub half_life_days: f32,
    pub basket_damping: f32,
}

/// Who multiplies the matrices of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    Cpu,
    /// The first CUDA device, by cuBLAS.
    Cuda,
}

/// Why towers could not be trained, written or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Sections(#[from] crate::sections::Error),
    #[error("{path}: towers format {found} is not supported (this program reads {expected})")]
    Format { path: PathBuf, found: u32, expected: u32 },
    #[error("{path}: the shape of the towers is damaged: {what}")]
    Shape { path: PathBuf, what: &'static str },
    #[error("{path}: {what} {found} is out of range (below {limit})")]
    Range { path: PathBuf, what: &'static str, found: u64, limit: u64 },
    #[error("{path}: weights hold a value that is not finite")]
    NotFinite { path: PathBuf },
    #[error("towers.{key} is {found}; it must be {rule}")]
    Config { key: &'static str, found: String, rule: &'static str },
    #[error("training data: {what} holds {found} values, expected {expected}")]
    Data { what: &'static str, found: usize, expected: usize },
    #[error("training data: {what} {found} is out of range (below {limit})")]
    DataRange { what: &'static str, found: u64, limit: u64 },
    #[error("{found} training threads cannot be started; lower towers.threads")]
    Threads { found: usize },
    #[error(
        "towers.device = \"cuda\": this program was built without it; build with --features cuda, or set \"cpu\""
    )]
    NoCuda,
    #[cfg(feature = "cuda")]
    #[error("towers.device = \"cuda\": {0}")]
    Cuda(#[from] crate::kernels::matmul::cuda::Error),
    #[error("training data holds no positive sample; give rows with a positive event weight")]
    NoPositives,
    #[error("the loss is not finite in epoch {epoch}, step {step}; lower towers.learning_rate")]
    Diverged { epoch: u32, step: u64 },
}
