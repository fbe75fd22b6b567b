//! One request through the engine, whole and by stage: `cargo bench --bench pipeline`.
//!
//! Whole is what a caller waits for, from the engine's entry to the answer, the handover to the
//! pipeline's thread included; a stage is what the answer's timings say of it. `known` users have
//! their vector in the local cache, `anonymous` ones bring twenty items of history, which the user
//! tower encodes. The world is generated and trained once, by the binary, and kept beside the build;
//! `SHORTLIST_BENCH_CONFIG` names a configuration whose registry serves another one, of ten million
//! items for example. At a rate and over HTTP: `bench/peers/e2e.py`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use shortlist::bundle::{Bundle, ChangeLog, Registry};
use shortlist::config::Config;
use shortlist::monitor::Health;
use shortlist::pipeline::{
    Answer, AskedArms, Engine, ItemChanges, Parts, Request, STAGES, Settings,
};
use shortlist::store::Users;
use shortlist::types::{ItemId, UserId};
use tokio::runtime::Runtime;

const ITEMS: &str = "100000";
const USERS: &str = "5000";
/// Users that take turns; the first round of them fills the local cache.
const ASKED: usize = 1000;
const HISTORY: usize = 20;

/// An engine, and who asks it.
struct Bench {
    runtime: Runtime,
    engine: Engine,
    users: Vec<String>,
    /// Items of which anonymous users have seen some.
    seen: Vec<ItemId>,
    turn: usize,
}

impl Bench {
    fn open(path: &Path) -> Self {
        let config = Config::load(Some(path)).expect("a configuration");
        let runtime = Runtime::new().expect("threads");
        let registry = Registry::open(&config.registry).expect("a registry");
        let (_, rollout) = runtime
            .block_on(registry.current())
            .expect("a registry that can be read")
            .expect("a registry with a bundle");
        let dir = registry.bundle_dir(&rollout.bundle).expect("a plain version");
        let bundle = Bundle::open(&dir, false, &config.index).expect("a bundle");
        let health = Arc::new(Health::new());
        let users = runtime.block_on(Users::open(&config.store, health)).expect("a store");
        let item_changes = ItemChanges::new(ChangeLog::new(registry), config.items);
        let settings =
            Settings { pipeline: config.pipeline, rules: config.rules, regions: config.regions };
        let (executor, shadow_every) = (config.executor, config.rollout.shadow_every);
        let drift = config.drift;
        let parts = Parts { bundle, users, item_changes, settings, executor, shadow_every, drift };
        let engine = Engine::start(parts).expect("an engine");
        let users = engine.sample_users("", ASKED);
        let mut bench = Self { runtime, engine, users, seen: Vec::new(), turn: 0 };
        for _ in 0..ASKED {
            let answer = bench.ask(false);
            bench.seen.extend(answer.items.into_iter().map(|item| ItemId(item.item_id)));
        }
        bench
    }

    fn ask(&mut self, anonymous: bool) -> Answer {
        self.turn += 1;
        let history = anonymous.then(|| {
            let from = self.turn * HISTORY % (self.seen.len() - HISTORY);
            self.seen[from..from + HISTORY].to_vec()
        });
        let user = if anonymous { "nobody" } else { &self.users[self.turn % self.users.len()] };
        let request = Request {
            request_id: self.turn.to_string(),
            user_id: UserId(user.to_owned()),
            num_items: 20,
            device: Some("mobile".to_owned()),
            region: None,
            location: None,
            context: Vec::new(),
            history,
            time_ms: self.engine.now_ms(),
            arms: AskedArms::default(),
        };
        let answer = self.runtime.block_on(self.engine.recommend(request)).expect("an answer");
        assert!(!answer.items.is_empty(), "an answer without items: {:?}", answer.reasons);
        answer
    }
}

/// The configuration of a world that is made when it is not there.
fn world() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-pipeline");
    let path = dir.join("config.toml");
    let models = dir.join("models");
    let mut config: toml::Table =
        include_str!("../config/demo-generated.toml").parse().expect("the shipped configuration");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let at = |path: PathBuf| path.display().to_string();
    for (table, key, value) in [
        ("store", "users", "embedded".to_owned()),
        ("store.embedded", "file", String::new()),
        ("registry", "url", at(models.clone())),
        ("events", "dir", at(dir.join("log"))),
        ("offline", "data_dir", at(dir.join("data"))),
        ("offline", "work_dir", at(dir.join("work"))),
        ("offline", "features", at(root.join("config/generated/features.toml"))),
    ] {
        let tables = table.split('.').fold(&mut config, |table, name| {
            let inner = table.entry(name).or_insert(toml::Table::new().into());
            inner.as_table_mut().expect("a table")
        });
        tables.insert(key.to_owned(), value.into());
    }
    if !models.join("rollout").exists() {
        println!("making a world of {ITEMS} items in {}", dir.display());
        std::fs::create_dir_all(&dir).expect("a directory beside the build");
        std::fs::write(&path, config.to_string()).expect("a file there");
        let data = at(dir.join("data"));
        shortlist(
            &path,
            &[
                "generate",
                "--items",
                ITEMS,
                "--users",
                USERS,
                "--days",
                "10",
                "--no-vectors",
                "--out",
                &data,
            ],
        );
        shortlist(&path, &["pipeline", "run", "--override", "a world for a bench"]);
    }
    path
}

fn shortlist(config: &Path, arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shortlist"));
    let status = command.arg("--config").arg(config).args(arguments).status();
    assert!(status.is_ok_and(|status| status.success()), "shortlist {arguments:?}");
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let path = std::env::var_os("SHORTLIST_BENCH_CONFIG").map_or_else(world, PathBuf::from);
    let mut bench = Bench::open(&path);
    for (who, anonymous) in [("known", false), ("anonymous", true)] {
        let mut group = criterion.benchmark_group(who);
        group.bench_function("request", |b| b.iter(|| bench.ask(anonymous)));
        for (at, stage) in STAGES.into_iter().enumerate() {
            group.bench_function(stage, |b| {
                b.iter_custom(|n| {
                    (0..n).map(|_| bench.ask(anonymous).timings.stages[at]).sum::<Duration>()
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
