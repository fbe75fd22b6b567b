//! One helper for every test that speaks HTTP: the real binary on a port of its own, a small world
//! made by the real commands, and a real Redis.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The binary under test.
pub const SHORTLIST: &str = env!("CARGO_BIN_EXE_shortlist");
/// Name of a world's directory, before the id of the test process.
const WORLD: &str = "http-world-";
/// What lets its bearer change items, where a test writes it to `server.items_token_file`.
pub const ITEMS_TOKEN: &str = "the token of the tests";
/// How long a server may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A status and a JSON body; `Value::Null` when the body is not JSON.
pub type Reply = (u16, Value);

/// A generated world with its published bundle, made once a test run.
pub struct World {
    dir: PathBuf,
    /// By item id.
    pub items: HashMap<String, Item>,
    /// Known users, in the order of the server's own list.
    pub users: Vec<String>,
}

/// What the tables say of an item.
#[derive(Debug, Default, Clone)]
pub struct Item {
    pub category: Option<String>,
    pub labels: Vec<String>,
    pub regions: Vec<String>,
    pub in_stock: bool,
    /// Epoch milliseconds.
    pub created_ms: i64,
}

/// The world of this test run.
pub fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(World::make)
}

impl World {
    fn make() -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
        remove_worlds_of_ended_runs(root);
        let dir = root.join(format!("{WORLD}{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut world = Self { dir, items: HashMap::new(), users: Vec::new() };
        let data = world.data().display().to_string();
        world.shortlist(&[
            "generate",
            "--out",
            &data,
            "--items",
            "3000",
            "--users",
            "400",
            "--days",
            "10",
            "--no-vectors",
        ]);
        add_a_region_without_stock(&world.data().join("items"));
        // The gate compares with popularity; so small a world need not beat it.
        world.shortlist(&["pipeline", "run", "--override", "a world for tests"]);
        world.items = items(&world.data().join("items"));
        let server = Server::start(&world, &[]);
        let (status, choices) = server.get("/v1/console/choices");
        assert_eq!(status, 200, "{choices}");
        world.users = strings(&choices["sample"]);
        world
    }

    /// The settings that bind a process to this world, as TOML; `more` is a key and a TOML value.
    fn settings(&self, more: &[(&str, &str)]) -> String {
        let mut settings: toml::Table = include_str!("world.toml").parse().unwrap();
        let path = |name: &str| format!("\"{}\"", self.dir.join(name).display());
        let features =
            concat!("\"", env!("CARGO_MANIFEST_DIR"), "/config/generated/features.toml\"");
        let (data, work) = (path("data"), path("work"));
        let (log, models) = (path("log"), path("models"));
        let own = [
            ("offline.data_dir", data.as_str()),
            ("offline.work_dir", &work),
            ("offline.features", features),
            ("events.dir", &log),
            // Several servers share the world.
            ("store.embedded.file", "\"\""),
            ("registry.url", &models),
        ];
        for (key, value) in own.iter().chain(more) {
            let (tables, key) = key.rsplit_once('.').expect("settings are table.key");
            let table = tables.split('.').fold(&mut settings, |table, name| {
                let empty = toml::Value::Table(toml::Table::new());
                table.entry(name).or_insert(empty).as_table_mut().unwrap()
            });
            let value: toml::Table = format!("value = {value}").parse().unwrap();
            table.insert((*key).to_owned(), value["value"].clone());
        }
        settings.to_string()
    }

    /// Writes the settings where one process reads them.
    fn configuration(&self, more: &[(&str, &str)]) -> PathBuf {
        let path = self.dir.join(format!("{}.toml", uuid::Uuid::now_v7()));
        fs::write(&path, self.settings(more)).unwrap();
        path
    }

    /// Runs one command of the binary to its end.
    fn shortlist(&self, arguments: &[&str]) {
        self.shortlist_log(arguments);
    }

    /// As [`World::shortlist`]; what the command logged.
    pub fn shortlist_log(&self, arguments: &[&str]) -> String {
        let output = Command::new(SHORTLIST)
            .arg("--config")
            .arg(self.configuration(&[]))
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "shortlist {arguments:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// `shortlist features ...` with further settings: what it printed.
    pub fn features(&self, more: &[(&str, &str)], arguments: &[&str]) -> String {
        let mut command = Command::new(SHORTLIST);
        command.arg("--config").arg(self.configuration(more)).arg("features").args(arguments);
        let output = command.output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "features {arguments:?}: {}\n{log}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Any command with further settings, which must succeed: what it printed.
    pub fn succeeds(&self, more: &[(&str, &str)], arguments: &[&str]) -> String {
        self.succeeds_in(&[], more, arguments)
    }

    /// As [`World::succeeds`], with further environment.
    pub fn succeeds_in(
        &self,
        environment: &[(&str, &str)],
        more: &[(&str, &str)],
        arguments: &[&str],
    ) -> String {
        let mut command = Command::new(SHORTLIST);
        command.envs(environment.iter().copied());
        let output =
            command.arg("--config").arg(self.configuration(more)).args(arguments).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "shortlist {arguments:?}: {}\n{log}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Where the pipeline worked.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// The one bundle that was published.
    pub fn bundle_dir(&self) -> PathBuf {
        let mut bundles = files(&self.dir.join("models"), "manifest.json");
        assert_eq!(bundles.len(), 1, "one bundle: {bundles:?}");
        bundles.remove(0).parent().unwrap().to_owned()
    }

    /// The configuration of the world, as the binary reads it.
    pub fn config(&self) -> shortlist::config::Config {
        self.config_with(&[])
    }

    /// As [`World::config`], with further settings.
    pub fn config_with(&self, more: &[(&str, &str)]) -> shortlist::config::Config {
        shortlist::config::Config::load(Some(&self.configuration(more))).unwrap()
    }

    /// Where the tables lie.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where the servers write their logs.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Runs a command that is expected to end with an error: its exit code and all its output.
    pub fn fails(&self, more: &[(&str, &str)], arguments: &[&str]) -> (i32, String) {
        let output = Command::new(SHORTLIST)
            .arg("--config")
            .arg(self.configuration(more))
            .args(arguments)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    }

    /// Items of an answer whose table entry fulfils `is`.
    pub fn among<'a>(&self, answer: &'a Value, is: impl Fn(&Item) -> bool) -> Vec<&'a str> {
        let ids = answer["items"].as_array().unwrap().iter();
        ids.map(|item| item["item_id"].as_str().unwrap())
            .filter(|id| is(self.items.get(*id).unwrap_or_else(|| panic!("no item `{id}`"))))
            .collect()
    }
}

/// Runs the binary in `dir` with further environment; it must succeed.
pub fn run(dir: &Path, environment: &[(&str, &str)], arguments: &[&str]) {
    let output = Command::new(SHORTLIST)
        .current_dir(dir)
        .envs(environment.iter().copied())
        .args(arguments)
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "shortlist {arguments:?}: {}\n{log}", output.status);
}

/// A world is a few megabytes and outlives its run, for a failed test to be looked into.
fn remove_worlds_of_ended_runs(root: &Path) {
    for entry in fs::read_dir(root).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Some(pid) = name.strip_prefix(WORLD) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Files below `dir` whose name starts with `prefix`.
pub fn files(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, prefix));
        } else if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(path);
        }
    }
    found
}

/// The region in which nothing is in stock.
pub const SHUT_REGION: &str = "nowhere";

/// The generator sells something everywhere: adds one item that is out of stock and is offered
/// only in [`SHUT_REGION`].
fn add_a_region_without_stock(dir: &Path) {
    use arrow::array::{ArrayRef, BooleanArray, ListBuilder, StringArray, StringBuilder};
    use parquet::arrow::ArrowWriter;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    let path = fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    let file = fs::File::open(path).unwrap();
    let mut rows = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let row = rows.next().unwrap().unwrap().slice(0, 1);
    let mut regions = ListBuilder::new(StringBuilder::new());
    regions.append_value([Some(SHUT_REGION)]);
    let replace = |name: &str, column: &ArrayRef| -> ArrayRef {
        match name {
            "item_id" => std::sync::Arc::new(StringArray::from(vec!["shut"])),
            "in_stock" => std::sync::Arc::new(BooleanArray::from(vec![false])),
            "regions" => std::sync::Arc::new(regions.finish_cloned()),
            _ => column.clone(),
        }
    };
    let schema = row.schema();
    let names = schema.fields().iter().map(|field| field.name());
    let columns = names.zip(row.columns()).map(|(name, column)| replace(name, column)).collect();
    let row = arrow::record_batch::RecordBatch::try_new(schema.clone(), columns).unwrap();
    let file = fs::File::create(dir.join("shut.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, schema, None).unwrap();
    writer.write(&row).unwrap();
    writer.close().unwrap();
}

fn items(dir: &Path) -> HashMap<String, Item> {
    use arrow::array::{Array, ArrayRef, AsArray};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    let text = |column: &ArrayRef, row: usize| -> Option<String> {
        let column = arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).unwrap();
        let column = column.as_string::<i32>();
        column.is_valid(row).then(|| column.value(row).to_owned())
    };
    let list = |column: &ArrayRef, row: usize| -> Vec<String> {
        let list = column.as_list::<i32>();
        if list.is_null(row) {
            return Vec::new();
        }
        let values = list.value(row);
        (0..values.len()).filter_map(|at| text(&values, at)).collect()
    };
    let mut items = HashMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let file = fs::File::open(entry.unwrap().path()).unwrap();
        for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            for row in 0..batch.num_rows() {
                let item = Item {
                    category: text(&batch["category"], row),
                    labels: list(&batch["labels"], row),
                    regions: list(&batch["regions"], row),
                    in_stock: batch["in_stock"].as_boolean().value(row),
                    created_ms: batch["created_at"]
                        .as_primitive::<arrow::datatypes::TimestampMicrosecondType>()
                        .value(row)
                        / 1000,
                };
                items.insert(text(&batch["item_id"], row).unwrap(), item);
            }
        }
    }
    assert!(!items.is_empty(), "no items in {}", dir.display());
    items
}

/// A running server, ended with this value.
pub struct Server {
    pub url: String,
    process: Child,
    agent: ureq::Agent,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// Starts the binary over `world` with further settings (`table.key`, TOML value) and waits
    /// until it is ready.
    pub fn start(world: &World, more: &[(&str, &str)]) -> Self {
        Self::start_in(&[], world, more)
    }

    /// As [`Server::start`], with further environment.
    pub fn start_in(environment: &[(&str, &str)], world: &World, more: &[(&str, &str)]) -> Self {
        let mut process = Command::new(SHORTLIST)
            .envs(environment.iter().copied())
            .arg("--config")
            .arg(world.configuration(more))
            .args(["serve", "--port", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let mut lines = stdout.lines();
        let url = loop {
            match lines.next() {
                Some(Ok(text)) => match text.strip_prefix("listening on ") {
                    Some(url) => break url.to_owned(),
                    None => line = text,
                },
                _ => panic!("no line `listening on ...`; last: `{line}`; {:?}", process.wait()),
            }
        };
        // What follows on stdout is read on, or the server would block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent = config.timeout_global(Some(Duration::from_secs(30))).build().into();
        let server = Self { url, process, agent };
        eventually("the server to be ready", || server.get("/readyz").0 == 200);
        server
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    pub fn get(&self, path: &str) -> Reply {
        let (status, text) = self.get_text(path);
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    pub fn get_text(&self, path: &str) -> (u16, String) {
        let mut response = self.agent.get(format!("{}{path}", self.url)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_raw(path, "application/json", &body.to_string())
    }

    pub fn post_raw(&self, path: &str, content_type: &str, body: &str) -> Reply {
        let request = self.agent.post(format!("{}{path}", self.url)).content_type(content_type);
        let mut response = request.send(body).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// As [`Server::post`]; `None` when the server is gone.
    pub fn try_post(&self, path: &str, body: &Value) -> Option<Reply> {
        let request = self.agent.post(format!("{}{path}", self.url));
        let mut response = request.content_type("application/json").send(body.to_string()).ok()?;
        let text = response.body_mut().read_to_string().ok()?;
        Some((response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// Changes items with the token of [`ITEMS_TOKEN`]: `POST`, `PATCH` or `DELETE`.
    pub fn change(&self, method: &str, path: &str, body: &Value) -> Reply {
        let url = format!("{}/v1/items{path}", self.url);
        let bearer = format!("Bearer {ITEMS_TOKEN}");
        let with_body = |request: ureq::RequestBuilder<ureq::typestate::WithBody>| {
            let request = request.header("authorization", &bearer);
            request.content_type("application/json").send(body.to_string())
        };
        let mut response = match method {
            "POST" => with_body(self.agent.post(url)),
            "PATCH" => with_body(self.agent.patch(url)),
            "DELETE" => self.agent.delete(url).header("authorization", &bearer).call(),
            other => panic!("{other} changes no items"),
        }
        .unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// An answer for `body`, which must be a 200.
    pub fn recommend(&self, body: Value) -> Value {
        let (status, answer) = self.post("/v1/recommendations", &body);
        assert_eq!(status, 200, "{body} -> {answer}");
        answer
    }

    /// The value of one time series; 0 when it is not there.
    pub fn metric(&self, series: &str) -> f64 {
        let (status, text) = self.get_text("/metrics");
        assert_eq!(status, 200);
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for the process to end by itself; whether it ended well.
    pub fn ended(&mut self) -> bool {
        self.process.wait().unwrap().success()
    }
}

/// Item ids of an answer, in order.
pub fn ids(answer: &Value) -> Vec<String> {
    let items = answer["items"].as_array().unwrap().iter();
    items.map(|item| item["item_id"].as_str().unwrap().to_owned()).collect()
}

/// A list of strings.
pub fn strings(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// An event for `POST /v1/events`.
pub fn event(user: &str, item: &str, kind: &str) -> Value {
    json!({"user_id": user, "item_id": item, "event": kind})
}

/// Polls until `done`, at most [`READY_WITHIN`].
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + READY_WITHIN;
    while !done() {
        assert!(Instant::now() < until, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A Redis: the one of `SHORTLIST_TEST_REDIS`, else one of this test's own.
pub struct Redis {
    pub address: String,
    process: Option<Child>,
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Redis {
    /// `None`, with the reason printed, where there is none.
    pub fn start() -> Option<Self> {
        if let Ok(url) = std::env::var("SHORTLIST_TEST_REDIS") {
            let address = url.trim_start_matches("redis://").trim_end_matches('/').to_owned();
            return Some(Self { address, process: None });
        }
        Self::own()
    }

    /// A Redis that this test may stop.
    pub fn own() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"])
            .arg(port.to_string())
            .stdout(Stdio::null())
            .spawn();
        match process {
            Ok(process) => {
                let redis = Self { address: format!("127.0.0.1:{port}"), process: Some(process) };
                eventually("redis-server", || TcpStream::connect(&redis.address).is_ok());
                Some(redis)
            }
            Err(error) => {
                println!("skipped: no redis-server ({error})");
                None
            }
        }
    }

    /// Ends it, if it is this test's own.
    pub fn stop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// The value of the only key that ends with `suffix`.
    pub fn value_of(&self, suffix: &str) -> Option<Vec<u8>> {
        let keys = self.call(&[b"KEYS", b"sl:emb:*"]);
        let keys = String::from_utf8(keys).unwrap();
        let key = keys.lines().find(|line| line.ends_with(suffix))?;
        let reply = self.call(&[b"GET", key.as_bytes()]);
        let start = reply.iter().position(|&b| b == b'\n')? + 1;
        Some(reply[start..reply.len() - 2].to_vec())
    }

    /// One command; the reply as it came.
    pub fn call(&self, words: &[&[u8]]) -> Vec<u8> {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        for command in [words, &[b"QUIT"]] {
            let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
            for word in command {
                let length = format!("${}\r\n", word.len());
                bytes.extend([length.as_bytes(), word, b"\r\n"].concat());
            }
            socket.write_all(&bytes).unwrap();
        }
        let mut reply = Vec::new();
        socket.read_to_end(&mut reply).unwrap();
        reply.truncate(reply.len() - b"+OK\r\n".len());
        reply
    }
}
