//! Against a real Redis: the one of `SHORTLIST_TEST_REDIS`, else one started here.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::store::{Embeddings, EmbeddingsConfig, Lookup, Tower};
use crate::types::UserId;

/// A Redis of this test's own, ended with it.
struct Server {
    url: String,
    process: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// `None` (with the reason printed) where there is no Redis.
fn start(port: u16) -> Option<Server> {
    let process = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", "no"])
        .stdout(Stdio::null())
        .spawn();
    match process {
        Ok(process) => {
            Some(Server { url: format!("redis://127.0.0.1:{port}"), process: Some(process) })
        }
        Err(error) => {
            println!("skipped: no redis-server ({error})");
            None
        }
    }
}

fn redis() -> Option<Server> {
    match std::env::var("SHORTLIST_TEST_REDIS") {
        Ok(url) => Some(Server { url, process: None }),
        Err(_) => start(free_port()),
    }
}

fn config(url: &str) -> Config {
    Config {
        url: url.to_owned(),
        pool_size: 2,
        connect_timeout_ms: 5000,
        command_timeout_ms: 2000,
        reconnect_min_ms: 10,
        reconnect_max_ms: 50,
        ttl_s: 60,
        writes_queue_max: 16,
        failures_until_pause: 1,
        pause_ms: 60_000,
    }
}

async fn open(url: &str, health: &Arc<Health>) -> Embeddings {
    let memory = EmbeddingsConfig { local_mib_max: 1, local_ttl_s: 60 };
    Embeddings::redis(&memory, &config(url), health.clone()).await.unwrap()
}

/// A tower version that no other test uses, since a Redis may be shared.
fn version() -> String {
    uuid::Uuid::now_v7().to_string()
}

#[tokio::test]
async fn another_process_finds_what_this_one_wrote() {
    let Some(server) = redis() else { return };
    let (version, health) = (version(), Arc::new(Health::new()));
    let tower = Tower { version: &version, dim: 3 };
    let user = UserId("u".into());
    let vector: Arc<[f32]> = Arc::from([1.0, -2.5, 0.25]);
    let first = open(&server.url, &health).await;
    assert_eq!(first.get(tower, &user, 9).await, Lookup::Miss);
    first.put_later(tower, &user, 9, vector.clone());
    first.flush().await;
    let second = open(&server.url, &health).await;
    assert_eq!(second.get(tower, &user, 10).await, Lookup::Stale(vector.clone()));
    assert_eq!(second.get(tower, &user, 9).await, Lookup::Fresh(vector));
    assert!(health.components()[0].ok);
}

#[tokio::test]
async fn a_value_that_is_no_embedding_is_a_miss() {
    let Some(server) = redis() else { return };
    let (version, health) = (version(), Arc::new(Health::new()));
    let embeddings = open(&server.url, &health).await;
    let raw = Redis::connect(&config(&server.url), health).await.unwrap();
    let nan = Entry { sequence: 1, vector: Arc::from([f32::NAN, 0.0]) };
    let good = Entry { sequence: 1, vector: Arc::from([1.0, 0.0]) };
    for (user, value) in [
        ("short", encode(&good)[..15].to_vec()),
        ("long", [encode(&good), vec![0]].concat()),
        ("empty", Vec::new()),
        ("nan", encode(&nan)),
    ] {
        let key = format!("sl:emb:{version}:{user}");
        let value = Value::Bytes(value.into());
        let _: Value =
            raw.pool.set(&key, value, Some(Expiration::EX(60)), None, false).await.unwrap();
        assert_eq!(raw.get(&key, 2).await, Answer::Nothing(Hit::Malformed), "{user}");
        let tower = Tower { version: &version, dim: 2 };
        assert_eq!(embeddings.get(tower, &UserId(user.into()), 1).await, Lookup::Miss, "{user}");
    }
}

#[tokio::test]
async fn a_redis_that_is_down_is_a_miss_and_is_then_left_alone() {
    let health = Arc::new(Health::new());
    let mut config = config(&format!("redis://127.0.0.1:{}", free_port()));
    config.connect_timeout_ms = 50;
    let redis = Redis::connect(&config, health.clone()).await.unwrap();
    assert_eq!(redis.get("k", 2).await, Answer::Nothing(Hit::Skipped));
    assert!(!health.components()[0].ok);
    // Asked again although it is down, it is an error in bounded time and no hang.
    redis.breaker.open_until_ms.store(0, Ordering::Relaxed);
    redis.put_later("k".into(), Entry { sequence: 1, vector: Arc::from([1.0, 2.0]) });
    assert_eq!(redis.get("k", 2).await, Answer::Nothing(Hit::Error));
    assert_eq!(redis.get("k", 2).await, Answer::Nothing(Hit::Skipped), "the breaker opened");
}

#[tokio::test]
async fn a_redis_that_comes_back_is_used_again() {
    let port = free_port();
    let Some(first) = start(port) else { return };
    let health = Arc::new(Health::new());
    let redis = Redis::connect(&config(&first.url), health.clone()).await.unwrap();
    assert_eq!(redis.get("k", 2).await, Answer::Nothing(Hit::Miss));
    drop(first);
    while redis.get("k", 2).await != Answer::Nothing(Hit::Skipped) {}
    let Some(_second) = start(port) else { return };
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        redis.breaker.open_until_ms.store(0, Ordering::Relaxed);
        if redis.get("k", 2).await == Answer::Nothing(Hit::Miss) {
            break;
        }
        assert!(Instant::now() < until, "not reconnected in 20 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(health.components()[0].ok, "health says so too");
}

#[test]
fn a_url_is_checked_and_its_password_is_not_shown() {
    for url in ["", "localhost", "http://localhost:1", "redis://user:secret@host:port"] {
        let error = config(url).check().unwrap_err().to_string();
        assert!(error.contains("store.redis.url") && !error.contains("secret"), "{error}");
    }
    let mut zero = config("redis://127.0.0.1:1");
    zero.pool_size = 0;
    assert!(zero.check().unwrap_err().to_string().contains("store.redis.pool_size = 0"));
}

#[test]
fn a_value_reads_back_bit_for_bit() {
    let entry = Entry { sequence: u64::MAX - 1, vector: Arc::from([f32::MIN_POSITIVE, -0.0, 3.5]) };
    let bytes = encode(&entry);
    assert_eq!(bytes.len(), 8 + 12);
    assert_eq!(&bytes[..2], [0xfe, 0xff]);
    assert_eq!(decode(&bytes, 3), Some(entry));
}
