//! One file a subcommand; the only place where the tiers meet a command line.

#[cfg(feature = "etl")]
pub mod import;
