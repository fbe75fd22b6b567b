//! The day: collect, split, features, towers, embed, index, ranker, evaluate, publish.

pub mod dataset;
pub mod metrics;
