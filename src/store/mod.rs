//! What a request looks up: items in memory, users embedded or in Redis.
//!
//! Two kinds of knowledge of a user live here, both outside the bundle: the embedding that was
//! encoded for a user before ([`Embeddings`]: memory, then Redis) and what has happened since the
//! bundle was made ([`Live`]). Everything here is bounded, and nothing here can fail a request: a
//! lookup that does not succeed is a counted miss.
//!
//! Must not know how an embedding is made or what a stage does with it.

mod embeddings;
pub mod items;
mod live;
mod redis;
mod users;

pub use embeddings::{Config as EmbeddingsConfig, Embeddings, Lookup, Tower};
pub use live::{Config as LiveConfig, Live};
pub use redis::Config as RedisConfig;
pub use users::{Config, Error, Users, UsersIn};
