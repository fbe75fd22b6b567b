//! Shortlist: ten million items, 500 candidates, 20 recommendations, in one process.
//!
//! ```text
//! tier 4  server      HTTP: listen and drain, routes, wire (the only JSON), console page
//! tier 3  pipeline    one request: s1_user_embedding .. s6_response
//!         offline     one day: collect .. publish                              (feature `etl`)
//! tier 2  bundle      manifest, load, verify: one immutable version of everything
//!         store       items in memory; users embedded or in Redis
//!         executor    bounded queue, pinned threads
//!         events      the event log
//!         objects     a directory or a bucket, where what is shared lies
//!         monitor     metrics and health; below the rest of tier 2, as objects
//! tier 1  index       approximate nearest neighbours with filters inside the search
//!         forest      LightGBM models, evaluated here
//!         towers      user and item encoders
//!         features    the schema and the only code that fills a row
//!         drift       how far what serving sees is from training
//!         experiments who sees which version, what is counted, what follows from it
//! tier 0  types, sections (the file container), ids, packed (rows in parts), kernels (SIMD), ffi (memory maps, LightGBM)
//! ```
//! A module imports lower tiers only; `tests/tidy.rs` checks it. ARCHITECTURE.md tells the rest.

pub mod ffi;
pub mod ids;
pub mod kernels;
pub mod packed;
pub mod sections;
pub mod types;

pub mod drift;
pub mod experiments;
pub mod features;
pub mod forest;
pub mod index;
pub mod towers;

pub mod bundle;
pub mod events;
pub mod executor;
pub mod monitor;
pub mod objects;
pub mod store;

#[cfg(feature = "etl")]
pub mod offline;
pub mod pipeline;

pub mod server;

pub mod commands;
pub mod config;
