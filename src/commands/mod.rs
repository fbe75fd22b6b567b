//! One file a subcommand; the only place where the tiers meet a command line.

pub mod generate;
