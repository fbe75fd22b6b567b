//! The feature schema and the only code that fills a row, for training and for serving.
//!
//! ```text
//! features.toml -> Schema -> Plan (columns resolved) -> constants: user | context
//!                                                    -> columns:   item | cross, column by column
//! ```
//! Invariant: a value depends only on the arguments of [`Plan::constants`] and
//! [`Plan::columns`]; the offline pipeline and stage s3 call the same two functions, so training
//! and serving can differ in their data and never in their arithmetic. Missing is NaN and stays
//! NaN unless the schema names a default. Columns of the item alone may be computed once
//! ([`Plan::item_column`]): by the same operation, so to the same bits. This module knows no clock, store or model.

mod dictionary;
mod items;
mod ops;
mod plan;
mod record;
mod schema;
mod users;

pub use dictionary::{Dictionaries, Dictionary};
pub use items::{ItemBlock, ItemColumn, ItemColumns, ItemRows, LateRows};
pub use plan::{Candidate, History, Plan, PlanError, PlanScratch, RequestInput};
pub use record::{UserRecord, fingerprint};
pub use schema::{Feature, Schema, SchemaError, Scope};
pub use users::{UserMap, UserRow, UserTable, UserTableBuilder};

/// How many of a user's latest events the history features and the user tower read.
pub const HISTORY_MAX: usize = 50;
