//! The task that writes: takes what waits, sends it in one round trip.

use std::sync::Arc;

use fred::clients::{Client, Pool};
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::{ClusterHash, CustomCommand, Expiration, Value};
use tokio::sync::{mpsc, oneshot};

use super::super::list::cut_above_bytes;
use super::super::{List, LiveConfig};
use super::Breaker;
use crate::monitor;

type Result<T> = std::result::Result<T, fred::error::Error>;

/// Writes that go to Redis in one round trip.
const WRITES_A_TRIP_MAX: usize = 64;

/// Cuts a list to its newest ARGV[1] entries, or deletes a damaged one; see `store::list` for the
/// layout.
const CUT: &str = "
local list = redis.call('GET', KEYS[1])
if not list then return 0 end
local at, left = #list, tonumber(ARGV[1])
while at >= 10 and left > 0 do
  local low, high = string.byte(list, at - 1, at)
  at = at - 10 - low - 256 * high
  left = left - 1
end
if at < 0 or at > 0 and left > 0 then return redis.call('DEL', KEYS[1]) end
if at > 0 then redis.call('SET', KEYS[1], string.sub(list, at + 1), 'KEEPTTL') end
return at";

/// What is to be written.
pub enum Write {
    Put { key: String, value: Vec<u8> },
    Extend { key: String, list: List, block: Vec<u8> },
    Flush(oneshot::Sender<()>),
}

/// What the writing task needs.
pub struct Writer {
    pub pool: Pool,
    pub breaker: Arc<Breaker>,
    pub ttl_s: i64,
    pub live: LiveConfig,
}

/// A list that may have grown too long: its key, entries to keep, and bytes that are enough.
struct Grown {
    key: String,
    max: usize,
    enough_bytes: usize,
}

impl Writer {
    pub async fn run(self, mut queue: mpsc::Receiver<Write>) {
        let mut batch = Vec::with_capacity(WRITES_A_TRIP_MAX);
        while queue.recv_many(&mut batch, WRITES_A_TRIP_MAX).await > 0 {
            let (flushes, writes): (Vec<_>, Vec<_>) =
                batch.drain(..).partition(|write| matches!(write, Write::Flush(_)));
            let count = writes.len();
            if count > 0
                && let Err(error) = self.write(writes).await
            {
                self.breaker.failed(&error);
                monitor::cache_writes_dropped(count);
            }
            for flush in flushes {
                if let Write::Flush(done) = flush {
                    let _ = done.send(());
                }
            }
        }
    }

    async fn write(&self, writes: Vec<Write>) -> Result<()> {
        let client = self.pool.next_connected();
        let pipeline = client.pipeline();
        let mut grown = Vec::new();
        for write in writes {
            match write {
                Write::Put { key, value } => {
                    let (value, expire) = (bytes(value), Some(Expiration::EX(self.ttl_s)));
                    let _queued: Value = pipeline.set(key, value, expire, None, false).await?;
                }
                Write::Extend { key, list, block } => {
                    let (max, ttl_s) = match list {
                        List::History => (self.live.history_max, self.ttl_s),
                        List::Shown => (self.live.shown_max, self.live.shown_ttl_s as i64),
                    };
                    let enough_bytes = cut_above_bytes(&block, max);
                    // Lengths and expiries alternate with the replies of nothing else.
                    let _queued: Value = pipeline.append(&key, bytes(block)).await?;
                    let _queued: Value = pipeline.expire(&key, ttl_s, None).await?;
                    grown.push(Grown { key, max, enough_bytes });
                }
                Write::Flush(_) => {}
            }
        }
        let replies: Vec<Value> = pipeline.all().await?;
        // A SET answers OK, an APPEND and its EXPIRE a number each.
        let lengths = replies.iter().filter_map(Value::as_u64).step_by(2);
        for (grown, length) in grown.iter().zip(lengths) {
            if length as usize > grown.enough_bytes {
                cut(client, grown).await?;
            }
        }
        Ok(())
    }
}

async fn cut(client: &Client, list: &Grown) -> Result<()> {
    let eval = CustomCommand::new_static("EVAL", ClusterHash::Offset(2), false);
    let max = list.max.to_string();
    let _cut: Value = client.custom(eval, vec![CUT, "1", &list.key, &max]).await?;
    Ok(())
}

fn bytes(value: Vec<u8>) -> Value {
    Value::Bytes(value.into())
}
