//! Everything that outlives a process in a bucket, of a real server of S3's protocol (PyPI's `moto`).
//! Skipped, with the reason, where it is not installed.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::support::{Server, event, eventually, files, ids, world};

/// The name of the one bucket.
const BUCKET: &str = "shop";

/// A server with one empty bucket, in memory.
struct Store {
    process: Child,
    endpoint: String,
    agent: ureq::Agent,
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where `tools/setup.sh` installs it, or `SHORTLIST_MOTO`, or anywhere in PATH.
fn program() -> PathBuf {
    if let Some(given) = std::env::var_os("SHORTLIST_MOTO") {
        return given.into();
    }
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/shortlist"));
    let cache = std::env::var_os("SHORTLIST_CACHE").map(PathBuf::from).or(home);
    let installed = cache.map(|cache| cache.join("moto/bin/moto_server"));
    installed.filter(|path| path.is_file()).unwrap_or_else(|| "moto_server".into())
}

impl Store {
    fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new(program())
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = match process {
            Ok(process) => process,
            Err(error) => {
                eprintln!("skipped: no `moto_server` ({error}); `make setup` installs it");
                return None;
            }
        };
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent = config.timeout_global(Some(Duration::from_secs(30))).build().into();
        let store = Self { process, endpoint: format!("http://127.0.0.1:{port}"), agent };
        eventually("the object store", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        store.put("", b"");
        Some(store)
    }

    /// What tells a process where it is.
    fn environment(&self) -> [(&'static str, &str); 4] {
        [
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", &self.endpoint),
        ]
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        let url = format!("{}/{BUCKET}/{key}", self.endpoint);
        let status = self.agent.put(url).send(bytes).unwrap().status();
        assert!(status.is_success(), "{key}: {status}");
    }

    /// All files below a directory, under their own names below `prefix`.
    fn put_all(&self, dir: &Path, prefix: &str) {
        for path in files(dir, "") {
            let key = path.strip_prefix(dir).unwrap().display();
            self.put(&format!("{prefix}/{key}"), &std::fs::read(&path).unwrap());
        }
    }

    /// The keys below a prefix.
    fn keys(&self, prefix: &str) -> Vec<String> {
        let url = format!("{}/{BUCKET}?list-type=2&prefix={prefix}", self.endpoint);
        let mut response = self.agent.get(url).call().unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        let keys = text.split("<Key>").skip(1).filter_map(|part| part.split("</Key>").next());
        keys.map(str::to_owned).collect()
    }
}

#[test]
fn a_day_and_its_replicas_need_a_bucket_and_nothing_else() {
    let Some(store) = Store::start() else { return };
    store.put_all(&world().data(), "data");
    let dir = tempfile::tempdir().unwrap();
    let local = |name: &str| format!("\"{}\"", dir.path().join(name).display());
    let (work, cache, log) = (local("work"), local("cache"), local("log"));
    let day = [
        ("offline.data_dir", "\"s3://shop/data\""),
        ("offline.work_dir", &*work),
        ("registry.url", "\"s3://shop/models\""),
        ("registry.cache_dir", &*cache),
    ];
    let environment = store.environment();
    let why = ["pipeline", "run", "--override", "a world for tests"];
    world().succeeds_in(&environment, &day, &why);
    let published = store.keys("models");
    let manifests: Vec<&String> =
        published.iter().filter(|key| key.ends_with("/manifest.json")).collect();
    assert!(manifests.len() == 1 && published.contains(&"models/rollout/1.json".to_owned()));

    // Another host: it has neither the bundle nor the tables.
    let cache = local("another cache");
    let serve = [
        ("registry.url", "\"s3://shop/models\""),
        ("registry.cache_dir", &*cache),
        ("registry.poll_interval_ms", "100"),
        ("events.dir", &*log),
        ("events.archive", "\"s3://shop/data\""),
        ("events.archive_interval_ms", "100"),
        ("events.file_age_max_ms", "100"),
        ("pipeline.log_full_share", "1.0"),
    ];
    let server = Server::start_in(&environment, world(), &serve);
    let user = &world().users[0];
    let answer = server.recommend(json!({"user_id": user}));
    assert_eq!(answer["bundle_version"].as_str(), manifests[0].split('/').nth(2));
    let shown = ids(&answer);
    let (status, _) = server.post("/v1/events", &json!([event(user, &shown[0], "click")]));
    assert_eq!(status, 202);
    let parquet = || {
        files(&dir.path().join("log"), "")
            .into_iter()
            .filter(|path| path.extension().is_some_and(|end| end == "parquet"))
    };
    let new = |key: &&String| !world().data().join(&key["data/".len()..]).exists();
    eventually("both logs in the bucket", || {
        let both = ["data/requests", "data/events"].map(|log| store.keys(log));
        both.iter().all(|keys| keys.iter().any(|key| new(&key))) && parquet().next().is_none()
    });
    // The bucket has one day more than the world had.
    let arrived = store.keys("data/events");
    let sent: Vec<&String> = arrived.iter().filter(new).collect();
    assert_eq!(sent.len(), 1, "{arrived:?}");
    let new_day = sent[0].split("dt=").nth(1).unwrap().split('/').next().unwrap();

    // The next day reads what is new, and finds the events where the replica left them.
    let next = [
        &day[..],
        // One event is not a day like the one before.
        &[("offline.window.until", "\"\""), ("offline.collect.drift.rows_ratio", "0.0")],
        &[("offline.collect.drift.mix_psi", "0.0"), ("offline.collect.drift.null_share", "0.0")],
        &[("offline.collect.drift.value_ratio", "0.0")],
    ]
    .concat();
    world().succeeds_in(&environment, &next, &["pipeline", "collect"]);
    let copies = files(&dir.path().join("work/inputs/events"), "");
    assert_eq!(copies.len(), arrived.len());
    let report = std::fs::read_to_string(dir.path().join("work/collect/report.json")).unwrap();
    assert!(report.contains(new_day), "{report}");
    // Logs are read from where they went.
    let replayed = world().succeeds_in(&environment, &serve, &["replay", "--limit", "5"]);
    assert!(replayed.contains(" 1 the same bit for bit"), "{replayed}");

    // Without the bucket everything goes on, and says so.
    drop(store);
    let (status, _) = server.post("/v1/events", &json!([event(user, &shown[1], "click")]));
    assert_eq!(status, 202);
    eventually("health to name what is cut off", || {
        let (_, health) = server.get("/readyz");
        let text = health.to_string();
        text.contains("stays") && text.contains("files wait")
    });
    assert!(parquet().next().is_some(), "it waits here");
    assert_eq!(ids(&server.recommend(json!({"user_id": user}))).len(), shown.len());
}
