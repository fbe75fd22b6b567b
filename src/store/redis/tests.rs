//! Against a real Redis: the one of `SHORTLIST_TEST_REDIS`, else one started here; those that stop
//! or count it start their own. Users have ids that no other test uses, since a Redis may be shared.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;
use crate::monitor::Fallback;
use crate::store::fit::tests::{fit, table};
use crate::store::users::tests::config as shipped;
use crate::store::{Users, UsersIn, list};
use crate::types::UserId;

/// A Redis of this test's own, ended with it.
struct Server {
    url: String,
    process: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // SIGKILL ends a stopped process too.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Server {
    /// `None` (with the reason printed) where there is no Redis.
    fn start(port: u16, more: &[&str]) -> Option<Self> {
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "no"])
            .args(more)
            .stdout(Stdio::null())
            .spawn();
        match process {
            Ok(process) => {
                let until = Instant::now() + Duration::from_secs(20);
                while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
                    assert!(Instant::now() < until, "the Redis of the test does not start");
                    std::thread::sleep(Duration::from_millis(10));
                }
                Some(Self { url: format!("redis://127.0.0.1:{port}"), process: Some(process) })
            }
            Err(error) => {
                eprintln!("skipped: no redis-server ({error})");
                None
            }
        }
    }

    fn own() -> Option<Self> {
        Self::start(free_port(), &[])
    }

    fn shared() -> Option<Self> {
        match std::env::var("SHORTLIST_TEST_REDIS") {
            Ok(url) => Some(Self { url, process: None }),
            Err(_) => Self::own(),
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.process.as_ref().expect("a Redis of the test's own").id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    async fn users(&self) -> Users {
        open(config(&self.url)).await
    }

    async fn raw(&self) -> Client {
        let client =
            Builder::from_config(FredConfig::from_url(&self.url).unwrap()).build().unwrap();
        client.init().await.unwrap();
        client
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Long timeouts, because this is not about speed; a breaker that opens at once and stays open.
fn config(url: &str) -> super::super::Config {
    let mut config = shipped();
    config.users = UsersIn::Redis;
    config.redis.url = url.to_owned();
    config.redis.connect_timeout_ms = 5000;
    config.redis.command_timeout_ms = 2000;
    config.redis.reconnect_min_ms = 10;
    config.redis.reconnect_max_ms = 50;
    config.redis.failures_until_pause = 1;
    config.redis.pause_ms = 60_000;
    config
}

async fn open(config: super::super::Config) -> Users {
    Users::open(&config, Arc::new(Health::new())).await.unwrap()
}

fn someone() -> UserId {
    UserId(uuid::Uuid::now_v7().to_string())
}

fn bytes(value: &[u8]) -> Value {
    Value::Bytes(value.to_vec().into())
}

async fn set(client: &Client, key: String, value: &[u8]) {
    let _: () = client.set(key, bytes(value), None, None, false).await.unwrap();
}

/// How often each command was called, as Redis says it.
async fn calls(client: &Client, command: &str) -> u64 {
    let info: String = client.info(Some(fred::types::InfoKind::CommandStats)).await.unwrap();
    let line = info.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
    let count = line.map(|line| line.split(['=', ',']).nth(1).unwrap().parse().unwrap());
    count.unwrap_or(0)
}

/// A user whom no bundle knows.
fn nobody() -> crate::features::UserRow<'static> {
    crate::features::UserRow::default()
}

fn sorted(state: &crate::store::UserState) -> Vec<(String, i64)> {
    let mut events: Vec<_> = state.history().map(|(id, at)| (id.to_owned(), at)).collect();
    events.sort_unstable_by_key(|event| event.1);
    events.dedup();
    events
}

#[tokio::test]
async fn another_process_reads_what_this_one_wrote() {
    let Some(server) = Server::shared() else { return };
    let (fit, user) = (Arc::new(fit("t", 3)), someone());
    let first = server.users().await;
    assert_eq!(first.read(&fit, &user, nobody(), 0).await.embedding, None);
    let embedding = Embedding { sequence: 9, vector: Arc::from([1.0, -2.5, 0.25]) };
    first.keep(&fit, &user, embedding.clone());
    first.extend(&user, List::History, [("a", 1), ("b", 2)]);
    first.extend(&user, List::Shown, [("c", 3)]);
    first.extend(&user, List::History, [("d", 4)]);
    first.flush().await;
    let key = format!("sl:feat:{}", user.0);
    set(&server.raw().await, key, &fit.feature_bytes(table().find("ann"))).await;
    let second = server.users().await.read(&fit, &user, nobody(), 0).await;
    assert_eq!(second.embedding, Some(embedding));
    assert_eq!(second.vector(9).unwrap()[1], -2.5);
    let history = [("a".to_owned(), 1), ("b".to_owned(), 2), ("d".to_owned(), 4)];
    assert_eq!(sorted(&second), history);
    assert_eq!(second.shown(3).collect::<Vec<_>>(), ["c"]);
    let record = second.record.unwrap();
    assert_eq!((record.row().value(0), record.row().map(0).get(7.0)), (33.0, 0.25));
    assert_eq!(second.degraded, None);
}

#[tokio::test]
async fn a_read_is_one_command_and_a_fresh_or_unknown_user_none() {
    let Some(server) = Server::own() else { return };
    let (fit, raw, users) = (Arc::new(fit("t", 2)), server.raw().await, server.users().await);
    let (known, unknown) = (someone(), someone());
    set(&raw, format!("sl:hist:{}", known.0), &[]).await;
    for _ in 0..3 {
        users.read(&fit, &known, nobody(), 0).await;
        users.read(&fit, &unknown, nobody(), 0).await;
    }
    assert_eq!((calls(&raw, "mget").await, calls(&raw, "get").await), (2, 0));
    let next = Arc::new(super::super::fit::tests::fit("t2", 2));
    users.read(&next, &known, nobody(), 0).await;
    assert_eq!(calls(&raw, "mget").await, 3, "another bundle reads other keys");
    let (a, b) = (someone(), someone());
    tokio::join!(
        users.read(&fit, &a, nobody(), 0),
        users.read(&fit, &a, nobody(), 0),
        users.read(&fit, &b, nobody(), 0),
        users.read(&fit, &a, nobody(), 0)
    );
    assert_eq!(calls(&raw, "mget").await, 5, "one flight a user");
}

#[tokio::test]
async fn damaged_values_are_left_out_and_the_rest_is_read() {
    let Some(server) = Server::shared() else { return };
    let (fit, user, raw) = (Arc::new(fit("t", 2)), someone(), server.raw().await);
    let mut block = Vec::new();
    list::push(&mut block, "a", 1);
    for (embedding, features, history) in [
        (&b"short"[..], &b"?"[..], [&[0xff], block.as_slice()].concat()),
        (&[0xff; 16], &[0; 40], [b"longer garbage", block.as_slice()].concat()),
    ] {
        set(&raw, format!("sl:emb:t:{}", user.0), embedding).await;
        set(&raw, format!("sl:feat:{}", user.0), features).await;
        set(&raw, format!("sl:hist:{}", user.0), &history).await;
        let state = server.users().await.read(&fit, &user, nobody(), 0).await;
        assert_eq!((&state.embedding, &state.record), (&None, &None));
        assert_eq!(sorted(&state), [("a".to_owned(), 1)]);
        assert_eq!(state.degraded, None);
    }
    let wrong_type = someone();
    let _: () = raw.hset(format!("sl:hist:{}", wrong_type.0), ("x", "y")).await.unwrap();
    assert!(sorted(&server.users().await.read(&fit, &wrong_type, nobody(), 0).await).is_empty());
}

#[tokio::test]
async fn lists_stay_bounded_and_lose_no_new_entry_of_any_writer() {
    let Some(server) = Server::shared() else { return };
    let (fit, user, raw) = (Arc::new(fit("t", 2)), someone(), server.raw().await);
    let mut config = config(&server.url);
    config.live.history_max = 10;
    let writers = [open(config.clone()).await, open(config.clone()).await];
    for at in 0..200 {
        let item = format!("i{at}");
        writers[at % 2].extend(&user, List::History, [(item.as_str(), at as i64)]);
        writers[at % 2].flush().await;
    }
    let state = open(config).await.read(&fit, &user, nobody(), 0).await;
    let newest: Vec<_> = (190..200).map(|at| (format!("i{at}"), at)).collect();
    assert_eq!(sorted(&state), newest);
    let value: Vec<u8> = raw.get(format!("sl:hist:{}", user.0)).await.unwrap();
    assert!(value.len() <= 20 * 14, "{} bytes", value.len());
    let ttl_s: i64 = raw.ttl(format!("sl:hist:{}", user.0)).await.unwrap();
    assert!(ttl_s > 600_000, "a cut list still expires: {ttl_s} s");
}

#[tokio::test]
async fn a_damaged_list_does_not_grow_for_ever() {
    let Some(server) = Server::shared() else { return };
    let (user, raw) = (someone(), server.raw().await);
    let key = format!("sl:hist:{}", user.0);
    set(&raw, key.clone(), &[0xff; 100_000]).await;
    let users = server.users().await;
    users.extend(&user, List::History, [("a", 1)]);
    users.flush().await;
    let length: u64 = raw.strlen(&key).await.unwrap();
    assert_eq!(length, 0);
}

#[tokio::test]
async fn without_redis_what_is_known_here_serves_and_the_breaker_keeps_it_fast() {
    let mut config = config(&format!("redis://127.0.0.1:{}", free_port()));
    config.redis.connect_timeout_ms = 50;
    let (fit, user) = (Arc::new(fit("t", 2)), someone());
    let health = Arc::new(Health::new());
    let users = Users::open(&config, health.clone()).await.unwrap();
    assert!(!health.components()[0].ok);
    let state = users.read(&fit, &user, nobody(), 0).await;
    assert_eq!((state.degraded, state.embedding), (Some(Fallback::UserStoreDown), None));
    let embedding = Embedding { sequence: 1, vector: Arc::from([1.0, 2.0]) };
    users.keep(&fit, &user, embedding.clone());
    users.extend(&user, List::History, [("a", 1)]);
    let state = users.read(&fit, &user, nobody(), 0).await;
    assert_eq!(state.embedding, Some(embedding));
    assert_eq!(sorted(&state), [("a".to_owned(), 1)]);
    assert_eq!(state.degraded, Some(Fallback::UserStateStale));
}

#[tokio::test]
async fn a_hung_redis_costs_one_timeout_then_nothing_and_is_used_again() {
    let Some(server) = Server::own() else { return };
    let mut config = config(&server.url);
    config.redis.command_timeout_ms = 50;
    config.redis.pause_ms = 300;
    config.local.fresh_ms = 1;
    let (fit, user) = (Arc::new(fit("t", 2)), someone());
    let users = open(config).await;
    users.extend(&user, List::History, [("a", 1)]);
    users.flush().await;
    assert_eq!(users.read(&fit, &user, nobody(), 0).await.degraded, None);
    tokio::time::sleep(Duration::from_millis(5)).await;
    server.signal("-STOP");
    let stale = users.read(&fit, &user, nobody(), 0).await;
    assert_eq!(stale.degraded, Some(Fallback::UserStateStale), "what was read before");
    assert_eq!(sorted(&stale), [("a".to_owned(), 1)]);
    for _ in 0..100 {
        assert_eq!(
            users.read(&fit, &someone(), nobody(), 0).await.degraded,
            Some(Fallback::UserStoreDown)
        );
    }
    server.signal("-CONT");
    recovers(&users, &fit, &user).await;
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_is_used_again() {
    let port = free_port();
    let Some(first) = Server::start(port, &[]) else { return };
    let mut config = config(&first.url);
    config.redis.pause_ms = 50;
    config.redis.command_timeout_ms = 100;
    config.local.fresh_ms = 1;
    config.local.unknown_fresh_ms = 1;
    let (fit, user) = (Arc::new(fit("t", 2)), someone());
    let users = open(config).await;
    users.extend(&user, List::Shown, [("a", 1)]);
    drop(first);
    while users.read(&fit, &user, nobody(), 0).await.degraded.is_none() {}
    let Some(_second) = Server::start(port, &[]) else { return };
    recovers(&users, &fit, &user).await;
    assert_eq!(
        users.read(&fit, &user, nobody(), 0).await.shown(1).count(),
        1,
        "seen here, whatever Redis lost"
    );
}

async fn recovers(users: &Users, fit: &Arc<Fit>, user: &UserId) {
    let until = Instant::now() + Duration::from_secs(20);
    while users.read(fit, user, nobody(), 0).await.degraded.is_some() {
        assert!(Instant::now() < until, "not recovered in 20 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_password_is_used_and_a_wrong_one_is_a_redis_that_is_down() {
    let port = free_port();
    let Some(_server) = Server::start(port, &["--requirepass", "secret"]) else { return };
    let fit = Arc::new(fit("t", 2));
    let right = open(config(&format!("redis://:secret@127.0.0.1:{port}"))).await;
    assert_eq!(right.read(&fit, &someone(), nobody(), 0).await.degraded, None);
    let mut wrong = config(&format!("redis://:wrong@127.0.0.1:{port}"));
    wrong.redis.connect_timeout_ms = 300;
    let state = open(wrong).await.read(&fit, &someone(), nobody(), 0).await;
    assert_eq!(state.degraded, Some(Fallback::UserStoreDown));
}

#[tokio::test]
async fn keys_of_a_cluster_are_read_in_one_trip_wherever_they_lie() {
    let port = free_port();
    let dir = tempfile::tempdir().unwrap();
    let dir_name = dir.path().to_str().unwrap();
    let more =
        ["--cluster-enabled", "yes", "--dir", dir_name, "--cluster-announce-ip", "127.0.0.1"];
    let Some(server) = Server::start(port, &more) else { return };
    let cli = |arguments: &[&str]| {
        let port = port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(arguments).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert_eq!(cli(&["cluster", "addslotsrange", "0", "16383"]), "OK\n");
    while !cli(&["cluster", "info"]).contains("cluster_state:ok") {
        std::thread::sleep(Duration::from_millis(20));
    }
    let (fit, user) = (Arc::new(fit("t", 2)), someone());
    let mut config = config(&server.url.replace("redis://", "redis-cluster://"));
    config.live.history_max = 2;
    let users = open(config.clone()).await;
    let embedding = Embedding { sequence: 1, vector: Arc::from([1.0, 2.0]) };
    users.keep(&fit, &user, embedding.clone());
    for at in 0..9 {
        users.extend(&user, List::History, [("a", at)]);
        users.flush().await;
    }
    let state = open(config).await.read(&fit, &user, nobody(), 0).await;
    assert_eq!((state.degraded, state.embedding.clone()), (None, Some(embedding)));
    assert_eq!(sorted(&state), [("a".to_owned(), 7), ("a".to_owned(), 8)]);
}

#[test]
fn a_url_is_checked_and_its_password_is_not_shown() {
    for url in ["", "localhost", "http://localhost:1", "redis://user:secret@host:port"] {
        let error = config(url).check().unwrap_err().to_string();
        assert!(error.contains("store.redis.url") && !error.contains("secret"), "{error}");
    }
    let sentinel = "redis-sentinel://u:p@127.0.0.1:26379?sentinelServiceName=main";
    config(sentinel).check().unwrap();
    let mut zero = config("redis://127.0.0.1:1");
    zero.redis.pool_size = 0;
    assert!(zero.check().unwrap_err().to_string().contains("store.redis.pool_size = 0"));
}

#[tokio::test]
async fn materialized_users_are_read_whole_and_a_list_that_is_there_stays() {
    let Some(server) = Server::shared() else { return };
    let (fit, raw, table) = (Arc::new(fit("t", 2)), server.raw().await, table());
    let (known, fresh) = (someone(), someone());
    let mut own = Vec::new();
    list::push(&mut own, "own", 7);
    set(&raw, format!("sl:hist:{}", known.0), &own).await;
    let mut config = config(&server.url);
    config.live.history_max = 2;
    let into = materialize::Materializer::connect(&config, false).await.unwrap();
    let embedding = Embedding { sequence: 5, vector: Arc::from([0.6, 0.8]) };
    let user = |id| materialize::Materialized {
        id,
        row: table.find("ann"),
        embedding: Some(embedding.clone()),
        history: vec![("a", 1), ("b", 2), ("c", 3)],
    };
    into.write(&fit, 0, &[user(&known.0), user(&fresh.0)]).await.unwrap();
    let lists = into.histories(&[&known.0, &someone().0]).await.unwrap();
    assert_eq!((lists[0].bytes(), lists[1].is_empty()), (&own[..], true));
    let users = open(config).await;
    let state = users.read(&fit, &known, nobody(), 0).await;
    assert_eq!(sorted(&state), [("own".to_owned(), 7)]);
    let state = users.read(&fit, &fresh, nobody(), 0).await;
    assert_eq!(sorted(&state), [("b".to_owned(), 2), ("c".to_owned(), 3)]);
    assert_eq!((state.embedding, state.degraded), (Some(embedding), None));
    let record = state.record.unwrap();
    assert_eq!((record.row().value(0), record.row().map(0).get(7.0)), (33.0, 0.25));
    for key in ["sl:feat:", "sl:emb:t:", "sl:hist:"] {
        let ttl_s: i64 = raw.ttl(format!("{key}{}", fresh.0)).await.unwrap();
        assert!(ttl_s > 600_000, "{key} expires in {ttl_s} s");
    }
}

#[tokio::test]
async fn materializing_into_a_redis_that_is_down_is_an_error() {
    let mut config = config(&format!("redis://:secret@127.0.0.1:{}", free_port()));
    config.redis.connect_timeout_ms = 50;
    let Err(error) = materialize::Materializer::connect(&config, false).await else {
        panic!("connected to nothing")
    };
    let error = error.to_string();
    assert!(error.contains("no connection in 50 ms: ") && !error.contains("secret"), "{error}");
}

#[tokio::test]
async fn what_is_materialized_for_feast_is_read_as_feasts() {
    let Some(server) = Server::shared() else { return };
    let (fit, table, user) = (Arc::new(fit("t", 2)), table(), someone());
    let mut config = config(&server.url);
    config.users = UsersIn::Feast;
    config.feast = toml::from_str(
        "project = 'shop'\njoin_key = 'user_id'\njoin_key_type = 'string'\nkey_ttl_s = 100\n\
         views = [{ name = 'stats', ttl_s = 10, features = { age = 'users.age' } }]",
    )
    .unwrap();
    let into = materialize::Materializer::connect(&config, true).await.unwrap();
    let row =
        |row| [materialize::Materialized { id: &user.0, row, embedding: None, history: vec![] }];
    assert_eq!(into.write(&fit, 5_000, &row(table.find("ann"))).await.unwrap(), 0);
    assert_eq!(into.write(&fit, 5_000, &row(nobody())).await.unwrap(), 1, "as new already");
    let key = crate::store::feast::Feast::new(&config.feast).key(&user.0).unwrap();
    let ttl_s: i64 = server.raw().await.ttl(key).await.unwrap();
    assert!((90..=100).contains(&ttl_s), "expires in {ttl_s} s");
    let value = |state: crate::store::UserState| state.record.map(|r| r.row().value(0));
    let users = open(config.clone()).await;
    assert_eq!(value(users.read(&fit, &user, nobody(), 15_000).await), Some(33.0));
    let later = open(config).await.read(&fit, &user, nobody(), 15_001).await;
    assert_eq!(value(later), None, "older than the view's ttl_s");
}

/// A certificate of its own for 127.0.0.1, and its key, as PEM files; `None` without openssl.
fn certificate(dir: &Path) -> Option<(String, String)> {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (pem, key) = (path("own.pem"), path("own.key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=test"])
        .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-out", &pem, "-keyout", &key])
        .output();
    match made {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr))
        }
        Err(error) => {
            eprintln!("skipped: no openssl ({error})");
            return None;
        }
    }
    Some((pem, key))
}

#[tokio::test]
async fn over_tls_a_redis_is_used_if_its_certificate_is_vouched_for() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some((pem, key)) = certificate(dir.path()) else { return };
    let Some((another, _)) = certificate(other.path()) else { return };
    // Ends at once in either case, and says which word it did not like.
    let probe = Command::new("redis-server").args(["--tls-port", "0", "--port", "x"]).output();
    if probe.is_ok_and(|said| String::from_utf8_lossy(&said.stderr).contains("'tls-port")) {
        eprintln!("skipped: this redis-server has no TLS");
        return;
    }
    let port = free_port();
    let tls_port = port.to_string();
    let more = ["--port", "0", "--tls-port", &tls_port, "--tls-cert-file", &pem];
    let files = ["--tls-key-file", &key, "--tls-ca-cert-file", &pem, "--tls-auth-clients", "no"];
    let Some(_server) = Server::start(port, &[&more[..], &files].concat()) else { return };
    let mut config = config(&format!("rediss://127.0.0.1:{port}"));
    config.redis.tls_ca_file = pem.into();
    let (fit, user) = (Arc::new(fit("t", 2)), someone());
    let first = open(config.clone()).await;
    first.extend(&user, List::History, [("a", 1)]);
    first.flush().await;
    let state = open(config.clone()).await.read(&fit, &user, nobody(), 0).await;
    assert_eq!((sorted(&state), state.degraded), (vec![("a".to_owned(), 1)], None));

    config.redis.connect_timeout_ms = 1000;
    config.redis.tls_ca_file = another.into();
    let refused = |config: super::super::Config| async move {
        materialize::Materializer::connect(&config, false).await.err().unwrap().to_string()
    };
    let error = refused(config.clone()).await;
    assert!(error.contains("InvalidCertificate"), "{error}");
    config.redis.url = format!("rediss://localhost:{port}");
    config.redis.tls_ca_file = dir.path().join("own.pem");
    let error = refused(config.clone()).await;
    assert!(error.contains("InvalidCertificate"), "the name is checked: {error}");

    config.redis.url = format!("redis://127.0.0.1:{port}");
    let error = config.check().unwrap_err().to_string();
    assert!(error.contains("tls_ca_file is set"), "{error}");
    config.redis.url = format!("rediss://:secret@127.0.0.1:{port}");
    for (file, part) in [("none.pem", "No such file"), ("own.key", "no certificate in it")] {
        config.redis.tls_ca_file = dir.path().join(file);
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(part), "{error}");
    }
}
