//! What a request looks up: items in memory, users beside them or in Redis.
//!
//! What is known of a user outside the bundle ([`UserState`]): the embedding that was encoded
//! before, features, what the user did and was shown. It comes from three places, nearest first:
//! ```text
//! live    what this process has itself seen               always; kept in a file when embedded
//! local   what was read of Redis lately                   W-TinyLFU, bounded in users and time
//! redis   shared by all replicas (Feast's features too)   one round trip, one flight a user
//! ```
//! Everything here is bounded, and nothing here can fail a request: a store that does not answer
//! costs what only it knows, and the state says so.
//!
//! Must not know how an embedding is made or what a stage does with it.

mod feast;
mod fit;
pub mod items;
mod list;
mod live;
mod local;
mod log;
mod redis;
mod users;

pub use feast::Config as FeastConfig;
pub use fit::{Embedding, Fit};
pub use list::ItemList;
pub use live::{Config as LiveConfig, List};
pub use local::Config as LocalConfig;
pub use log::Config as EmbeddedConfig;
pub use redis::Config as RedisConfig;
pub use redis::materialize::{
    Config as MaterializeConfig, Error as MaterializeError, Materialized, Materializer,
};
pub use users::{Config, Error, UserState, Users, UsersIn};

/// Refuses the first of these keys that is zero.
fn nonzero(keys: &[(&'static str, u64)]) -> Result<(), Error> {
    match keys.iter().find(|(_, value)| *value == 0) {
        Some(&(key, _)) => Err(Error::Zero { key }),
        None => Ok(()),
    }
}
