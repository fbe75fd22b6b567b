//! Bundles change beside the traffic, and stages may move between pools: no request notices.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Server, eventually, ids, world};
use serde_json::json;

/// A registry of its own with copies of the world's bundle under other versions.
pub struct Bundles {
    dir: tempfile::TempDir,
    turns: u64,
}

impl Bundles {
    pub fn new(versions: &[&str]) -> Self {
        let bundles = Self { dir: tempfile::tempdir().unwrap(), turns: 0 };
        for version in versions {
            let (from, to) = (world().bundle_dir(), bundles.path(version));
            fs::create_dir_all(&to).unwrap();
            for entry in fs::read_dir(from).unwrap().flatten() {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
            let path = to.join("manifest.json");
            let mut manifest: serde_json::Value =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            manifest["bundle_version"] = json!(version);
            fs::write(&path, manifest.to_string()).unwrap();
        }
        bundles
    }

    /// Where everything lies.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Where a version lies.
    pub fn path(&self, version: &str) -> PathBuf {
        self.dir.path().join("bundles").join(version)
    }

    /// Says that `version` is to serve.
    pub fn turn_to(&mut self, version: &str) {
        self.turns += 1;
        let dir = self.dir.path().join("rollout");
        fs::create_dir_all(&dir).unwrap();
        let state = json!({"bundle": version, "percent": 100, "reason": "test"});
        // Under its name only when it is whole, as the registry writes it.
        let (partial, whole) = (dir.join("next"), dir.join(format!("{}.json", self.turns)));
        fs::write(&partial, state.to_string()).unwrap();
        fs::rename(partial, whole).unwrap();
    }

    fn server(&self) -> Server {
        let url = format!("\"{}\"", self.dir.path().display());
        Server::start(world(), &[("registry.url", &url), ("registry.poll_interval_ms", "20")])
    }
}

fn serving(server: &Server) -> String {
    let answer = server.recommend(json!({"user_id": world().users[0]}));
    answer["bundle_version"].as_str().unwrap().to_owned()
}

#[test]
fn bundles_are_swapped_under_load_without_a_failed_request() {
    let mut bundles = Bundles::new(&["one", "two"]);
    bundles.turn_to("one");
    let server = bundles.server();
    let expected = ids(&server.recommend(json!({"user_id": world().users[1]})));
    let done = AtomicBool::new(false);
    let ask = || {
        let mut asked = 0;
        while !done.load(Ordering::Relaxed) {
            // Anything but 200 panics.
            let answer = server.recommend(json!({"user_id": world().users[1]}));
            assert_eq!(ids(&answer), expected, "the same content under either version");
            asked += 1;
        }
        asked
    };
    std::thread::scope(|scope| {
        let askers = [scope.spawn(ask), scope.spawn(ask)];
        for version in ["two", "one", "two", "one", "two"] {
            bundles.turn_to(version);
            eventually("the swap", || serving(&server) == version);
        }
        done.store(true, Ordering::Relaxed);
        for asker in askers {
            assert!(asker.join().unwrap() > 10, "requests ran beside the swaps");
        }
    });
}

#[test]
fn a_bundle_that_does_not_open_changes_nothing_and_is_reported() {
    let mut bundles = Bundles::new(&["good", "broken", "better"]);
    cut(&bundles.path("broken").join("index.bin"));
    bundles.turn_to("good");
    let server = bundles.server();
    bundles.turn_to("broken");
    let health = || server.get("/readyz").1["components"].to_string();
    eventually("the refusal", || health().contains("broken was refused"));
    assert_eq!(serving(&server), "good");
    bundles.turn_to("better");
    eventually("the swap", || serving(&server) == "better");
    eventually("health", || !health().contains("refused"));
}

/// Leaves half of a file.
pub fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn a_pool_a_stage_gives_the_answers_of_one_pool() {
    let one = ("executor.stage_threads", "[1, 2, 1, 1, 1, 1]");
    let separate = Server::start(world(), &[("executor.layout", "\"separate\""), one]);
    let fused = Server::start(world(), &[]);
    for user in world().users.iter().take(8) {
        let ask = json!({"user_id": user, "num_items": 30});
        let (a, b) = (separate.recommend(ask.clone()), fused.recommend(ask));
        assert_eq!(ids(&a), ids(&b));
        assert_eq!(a["items"][0]["score"], b["items"][0]["score"]);
    }
}
