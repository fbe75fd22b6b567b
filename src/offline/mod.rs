//! The day: from the object store's events to a published bundle.
//!
//! ```text
//! collect     the window's events, validated, cleaned               sql/events.sql and others
//! split       which days teach the towers, the ranker, and judge
//! features    aggregates as of every midnight that a row reads      sql/*.sql
//! towers      two encoders, on the days before the ranker's; with `refit` once more on all before the test
//! embed       item vectors as of the ranker's first day and as of the test
//! index       an index over each
//! ranker      LightGBM over what retrieval would have shown, or over impressions
//! evaluate    against popularity, repeats, retrieval's order and the serving bundle
//! approve     the gate
//! publish     the bundle, manifest last; the rollout state after it
//! ```
//! Invariant: no step sees the future of a row. Aggregates are of the midnight before it, its
//! history ends strictly before it, vectors and towers are older than the rows that use them.
//! Every step is resumable: see [`workspace`]. `anyhow` is allowed here: a failed day is read by
//! a person.

pub mod aggregates;
pub mod approve;
pub mod as_of;
pub mod audit;
mod checks;
pub mod collect;
pub mod dataset;
mod day;
pub mod engine;
pub mod evaluate;
pub mod examples;
pub mod foreign;
pub mod frame;
pub mod import;
mod inputs;
pub mod load;
pub mod metrics;
mod npy;
pub mod page;
pub mod postgres;
pub mod progress;
pub mod publish;
mod ranker_rows;
mod raw;
pub mod recall;
mod reference;
pub mod report;
pub mod skew;
pub mod split;
pub mod sql;
pub mod tables;
pub mod text;
pub mod train_ranker;
pub mod train_towers;
pub mod validation;
pub mod workspace;

pub use day::{Config, Day, STEPS, Shared};
