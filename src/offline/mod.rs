//! The day: collect, split, features, towers, embed, index, ranker, evaluate, publish.

pub mod aggregates;
mod checks;
pub mod collect;
pub mod dataset;
pub mod import;
pub mod split;
pub mod sql;
pub mod tables;
