//! A connection a thread, for reads: what is asked and answered on one thread wakes no other, which
//! saves half of a read's time (docs/decisions/0006).

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::thread::{self, ThreadId};

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::Builder;

/// The connections, at most so many.
pub struct Threads {
    builder: Builder,
    max: usize,
    clients: RwLock<HashMap<ThreadId, Client>>,
}

impl Threads {
    pub fn new(builder: Builder, max: usize) -> Self {
        Self { builder, max, clients: RwLock::default() }
    }

    /// This thread's connection, once it stands; the first call begins to connect.
    pub fn client(&self) -> Option<Client> {
        let id = thread::current().id();
        {
            let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(client) = clients.get(&id) {
                return client.is_connected().then(|| client.clone());
            }
            if clients.len() >= self.max {
                return None;
            }
        }
        let client = self.builder.build().ok()?;
        // Driven by the runtime of this thread from here on.
        drop(client.connect());
        self.clients.write().unwrap_or_else(PoisonError::into_inner).insert(id, client);
        None
    }
}
