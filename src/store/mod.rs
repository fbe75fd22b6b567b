//! What a request looks up: items in memory, users embedded or in Redis.
