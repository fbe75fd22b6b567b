//! The rules and dashboards in `config/` against a real Prometheus that scrapes the real server. Skipped,
//! with the reason, where Prometheus is not installed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Server, World, event, eventually, ids, world};

/// Seconds of a quiet day, and between two of its scrapes.
const DAY_S: i64 = 86_400;
const SCRAPE_S: i64 = 60;

fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/prometheus")
}

/// Whether Debian's package `prometheus` is there, which has both programs.
fn installed() -> bool {
    let there = ["prometheus", "promtool"].iter().all(|program| {
        let version = Command::new(program).arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    });
    if !there {
        eprintln!("skipped: no `prometheus` and `promtool` in PATH (Debian: prometheus)");
    }
    there
}

fn promtool(arguments: &[&str], dir: &Path) -> (bool, String) {
    let output = Command::new("promtool").args(arguments).current_dir(dir).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// A Prometheus of its own.
struct Prometheus {
    process: Child,
    url: String,
    agent: ureq::Agent,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    /// With this configuration and data in `dir`.
    fn start(dir: &Path, config: &str) -> Self {
        std::fs::write(dir.join("prometheus.yml"), config).unwrap();
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let process = Command::new("prometheus")
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg("--storage.tsdb.retention.time=10y")
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("prometheus.log")).unwrap())
            .spawn()
            .unwrap();
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent: ureq::Agent =
            config.timeout_global(Some(Duration::from_secs(60))).build().into();
        let prometheus = Self { process, url: format!("http://127.0.0.1:{port}"), agent };
        eventually("Prometheus to be ready", || {
            let ready = prometheus.agent.get(format!("{}/-/ready", prometheus.url)).call();
            ready.is_ok_and(|response| response.status() == 200)
        });
        prometheus
    }

    /// Calls the API; what it answers must be a success.
    fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let mut request = self.agent.get(format!("{}/api/v1/{path}", self.url));
        for (name, value) in parameters {
            request = request.query(name, value);
        }
        let text = request.call().unwrap().body_mut().read_to_string().unwrap();
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(body["status"], "success", "{path} {parameters:?}: {text}");
        body["data"].clone()
    }

    fn query(&self, expression: &str) -> Vec<Value> {
        let data = self.ask("query", &[("query", expression)]);
        data["result"].as_array().cloned().unwrap_or_default()
    }

    /// Names and labels of the alerts that fire.
    fn firing(&self) -> BTreeSet<(String, String)> {
        let found = self.query("ALERTS{alertstate=\"firing\"}");
        let label =
            |alert: &Value, name: &str| alert["metric"][name].as_str().unwrap_or("").to_owned();
        found.iter().map(|alert| (label(alert, "alertname"), label(alert, "feature"))).collect()
    }
}

/// The rules, with a time of `for` and a configuration that scrapes the server each second.
fn scraping(dir: &Path, server: &Server, wait: Option<&str>) -> String {
    std::fs::copy(rules().join("recording.yml"), dir.join("recording.yml")).unwrap();
    let alerts = std::fs::read_to_string(rules().join("alerts.yml")).unwrap();
    let line = |line: &str| match (wait, line.trim_start().starts_with("for: ")) {
        (Some(wait), true) => format!("        for: {wait}\n"),
        _ => format!("{line}\n"),
    };
    std::fs::write(dir.join("alerts.yml"), alerts.lines().map(line).collect::<String>()).unwrap();
    let target = server.address();
    format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
         rule_files: [recording.yml, alerts.yml]\n\
         scrape_configs:\n  - job_name: shortlist\n    static_configs: [{{targets: [\"{target}\"]}}]\n"
    )
}

/// Asks, shows, clicks and buys.
fn traffic(server: &Server, world: &World, requests: usize, device: impl Fn(usize) -> String) {
    for at in 0..requests {
        let user = &world.users[at % world.users.len()];
        let device = device(at);
        let answer = server.recommend(json!({"user_id": user, "num_items": 10, "device": device}));
        if at % 10 > 0 {
            continue;
        }
        let kinds = [("impression", None), ("click", None), ("purchase", Some(5.5))];
        for (item, (kind, value)) in ids(&answer).iter().zip(kinds) {
            let mut event = event("somebody else", item, kind);
            event["device"] = json!(device);
            event["request_id"] = answer["request_id"].clone();
            event["value"] = json!(value);
            assert_eq!(server.post("/v1/events", &event).0, 202);
        }
    }
}

/// `expr:` lines of a file of rules, with the name before each.
fn expressions(file: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(rules().join(file)).unwrap();
    let (mut name, mut found) = (String::new(), Vec::new());
    for line in text.lines().map(|line| line.trim_start().trim_start_matches("- ")) {
        match line.split_once(": ") {
            Some(("alert" | "record", value)) => name = value.to_owned(),
            Some(("expr", value)) => found.push((name.clone(), value.to_owned())),
            _ => {}
        }
    }
    assert!(found.len() > 15, "{file}: {} expressions", found.len());
    found
}

/// Expressions of all panels.
fn panels() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/grafana");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = format!("{}: {}", dashboard["title"], panel["title"]);
            for target in panel["targets"].as_array().unwrap() {
                found.push((title.clone(), target["expr"].as_str().unwrap().to_owned()));
            }
        }
    }
    assert!(found.len() > 40, "{} panels", found.len());
    found
}

/// Names of this program's metrics in an expression.
fn metrics(expression: &str) -> HashSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = expression.split(|c| !is_name(c));
    words
        .filter(|word| word.starts_with("shortlist_") || word.starts_with("shortlist:"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_rules_are_valid_and_every_alert_fires_in_its_case_alone() {
    if !installed() {
        return;
    }
    let (valid, text) = promtool(&["check", "rules", "recording.yml", "alerts.yml"], &rules());
    assert!(valid, "{text}");
    let (valid, text) = promtool(&["check", "config", "prometheus.yml"], &rules());
    assert!(valid, "{text}");
    let (passed, text) = promtool(&["test", "rules", "tests.yml", "tests_days.yml"], &rules());
    assert!(passed, "{text}");
    let tests =
        ["tests.yml", "tests_days.yml"].map(|f| std::fs::read_to_string(rules().join(f)).unwrap());
    let runbook = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let runbook = std::fs::read_to_string(runbook).unwrap();
    let alerts = std::fs::read_to_string(rules().join("alerts.yml")).unwrap();
    for (name, _) in expressions("alerts.yml") {
        let cases = |samples: &str| {
            let named = format!("alertname=\"{name}\"");
            tests
                .concat()
                .split("- expr:")
                .filter(|t| t.contains(&named) && t.contains(samples))
                .count()
        };
        assert!(cases("value: 1") > 0 && cases("exp_samples: []") > 0, "{name} has no test");
    }
    for line in alerts.lines().filter(|line| line.contains("runbook:")) {
        let anchor = line.split('#').nth(1).unwrap().trim_start_matches("alert-");
        assert!(runbook.contains(&format!("### Alert: {anchor}")), "no section for {line}");
    }
}

#[test]
fn every_expression_reads_metrics_that_the_server_has_and_a_planted_drift_fires_its_alert() {
    if !installed() {
        return;
    }
    let (world, dir) = (world(), tempfile::tempdir().unwrap());
    let settings = [
        ("drift.sample_interval_ms", "1"),
        ("drift.window_s", "6"),
        ("drift.requests_min", "100"),
        ("drift.report_interval_ms", "200"),
        ("pipeline.recall_audit_interval_ms", "50"),
    ];
    let server = Server::start(world, &settings);
    let choices = server.get("/v1/console/choices").1;
    let devices: Vec<String> =
        choices["devices"].as_array().unwrap().iter().map(|d| d.as_str().unwrap().into()).collect();
    eventually("the drift is reported", || {
        traffic(&server, world, 60, |at| devices[at % devices.len()].clone());
        !server.get("/v1/drift").1["stable"]["psi"].is_null()
    });
    let report = server.get("/v1/drift").1;
    // The devices of training, in its shares.
    let movers = report["stable"]["top_movers"].as_array().unwrap().clone();
    let usual = devices_of_training(&server, &report).unwrap_or_else(|| panic!("{movers:?}"));
    let like_training = |at: usize| {
        let at = (at as f64 * 0.618_034).fract();
        let mut sum = 0.0;
        let found = usual.iter().find(|(_, share)| {
            sum += share;
            at < sum
        });
        found.map_or(usual[0].0.clone(), |(name, _)| name.clone())
    };
    let psi = || server.get("/v1/drift").1["stable"]["psi"]["device"].as_f64().unwrap_or(9.0);
    eventually("the first devices have left the window", || {
        traffic(&server, world, 60, like_training);
        psi() < 0.1
    });
    let prometheus = Prometheus::start(dir.path(), &scraping(dir.path(), &server, Some("2s")));
    let drift = ("ShortlistFeatureDrift".to_owned(), "device".to_owned());
    // Others drift, since all requests are of one hour; they have fired by then.
    let hour = ("ShortlistFeatureDrift".to_owned(), "hour".to_owned());
    eventually("the alerts of what drifts anyway", || {
        traffic(&server, world, 60, like_training);
        prometheus.firing().contains(&hour)
            && !prometheus.query("shortlist:ctr:ratio_1h").is_empty()
    });
    (0..20).for_each(|_| traffic(&server, world, 60, like_training));
    let before = prometheus.firing();
    assert!(!before.contains(&drift), "{before:?}");
    let distances = || -> BTreeMap<String, f64> {
        let report = server.get("/v1/drift").1;
        let psi = report["stable"]["psi"].as_object().unwrap().clone();
        psi.into_iter().map(|(name, psi)| (name, psi.as_f64().unwrap())).collect()
    };
    let quiet = distances();
    assert!(server.metric("shortlist_feature_psi{feature=\"device\"}") < 0.1);

    let known: HashSet<String> = {
        let names = prometheus.ask("label/__name__/values", &[]);
        names.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let records = expressions("recording.yml");
    let rules = records.iter().cloned().chain(expressions("alerts.yml"));
    let recorded: HashSet<&String> = records.iter().map(|(name, _)| name).collect();
    for (name, expression) in rules.chain(panels()) {
        prometheus.query(&expression);
        for metric in metrics(&expression) {
            let there = known.contains(&metric) || recorded.contains(&metric);
            assert!(there, "{name}: `{metric}` is no metric of the server");
        }
    }
    for needed in
        ["shortlist:ctr:ratio_1h", "shortlist:ecpm_by_device:1h", "shortlist:seconds:p99_5m"]
    {
        assert!(!prometheus.query(needed).is_empty(), "{needed} has no value");
    }

    // Only one device is left: nothing else changes.
    eventually("the alert of the planted drift", || {
        traffic(&server, world, 60, |_| usual.last().unwrap().0.clone());
        prometheus.firing().contains(&drift)
    });
    let after = distances();
    let rise = |name: &String| after[name] - quiet.get(name).copied().unwrap_or(0.0);
    let most = after.keys().max_by(|a, b| rise(a).total_cmp(&rise(b))).unwrap();
    assert_eq!(most, "device", "it rises most: {quiet:?} {after:?}");
    let report = server.get("/v1/drift").1;
    let device = mover(&report, "device").unwrap();
    assert_eq!(device["verdict"], "shifted");
}

fn mover(report: &Value, name: &str) -> Option<Value> {
    let movers = report["stable"]["top_movers"].as_array()?;
    movers.iter().find(|row| row["name"] == name).cloned()
}

/// Names and shares of training, from the report, in which the device must be far enough to be shown.
fn devices_of_training(server: &Server, report: &Value) -> Option<Vec<(String, f64)>> {
    let row = mover(report, "device").or_else(|| {
        // Other features may be further: make the device the furthest.
        (0..400).for_each(|_| {
            drop(server.recommend(json!({"user_id": "a stranger", "device": "none of them"})))
        });
        std::thread::sleep(Duration::from_millis(600));
        mover(&server.get("/v1/drift").1, "device")
    })?;
    let bins = row["bins"].as_array()?;
    let named = bins.iter().filter(|bin| bin["training"].as_f64() > Some(0.0));
    let shares = named
        .map(|bin| (bin["bin"].as_str().unwrap().to_owned(), bin["training"].as_f64().unwrap()));
    Some(shares.collect())
}

/// A day of one replica from one real scrape: counters grow as they would, gauges stay.
fn quiet_day(scrape: &str, from_s: i64) -> String {
    let mut out = String::new();
    let mut kind = "";
    for line in scrape.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, of) = rest.split_once(' ').unwrap();
            kind = of;
            // OpenMetrics names a counter without its ending.
            let name = if of == "counter" { name.trim_end_matches("_total") } else { name };
            writeln!(out, "# TYPE {name} {of}").unwrap();
            continue;
        }
        let Some((series, value)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let value: f64 = value.parse().unwrap_or(f64::NAN);
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let comma = if labels == "}" { "" } else { "," };
        for at in (0..DAY_S).step_by(SCRAPE_S as usize) {
            let minutes = (at / SCRAPE_S) as f64;
            let value = match kind {
                "gauge" if name == "shortlist_bundle_as_of_seconds" => (from_s - 7200) as f64,
                // The tiny world of the tests is no world without drift.
                "gauge" if name.ends_with("_psi") => 0.03,
                "gauge" => value,
                _ => value * minutes,
            };
            let time_s = from_s + at;
            writeln!(
                out,
                "{name}{{instance=\"a\",job=\"shortlist\"{comma}{labels} {value} {time_s}"
            )
            .unwrap();
        }
    }
    writeln!(out, "# TYPE up gauge").unwrap();
    for at in (0..DAY_S).step_by(SCRAPE_S as usize) {
        writeln!(out, "up{{instance=\"a\",job=\"shortlist\"}} 1 {}", from_s + at).unwrap();
    }
    out + "# EOF\n"
}

#[test]
fn a_quiet_day_fires_nothing() {
    if !installed() {
        return;
    }
    let (world, dir) = (world(), tempfile::tempdir().unwrap());
    let server = Server::start(world, &[("pipeline.recall_audit_interval_ms", "50")]);
    traffic(&server, world, 200, |_| "mobile".to_owned());
    eventually("recall is known", || !server.metric("shortlist_index_recall").is_nan());
    let scrape = server.get_text("/metrics").1;
    drop(server);
    let now_s = chrono::Utc::now().timestamp();
    let from_s = (now_s - now_s % SCRAPE_S) - DAY_S - 3600;
    std::fs::write(dir.path().join("day.om"), quiet_day(&scrape, from_s)).unwrap();
    let backfill = ["tsdb", "create-blocks-from", "openmetrics", "day.om", "data"];
    let (filled, text) = promtool(&backfill, dir.path());
    assert!(filled, "{text}");
    let recording = std::fs::read_to_string(rules().join("recording.yml")).unwrap();
    // Backfilled a group at a time; what reads another record is one step behind, as it is live.
    std::fs::write(dir.path().join("recording.yml"), recording).unwrap();
    let prometheus = Prometheus::start(dir.path(), "global: {scrape_interval: 1m}\n");
    let (start, end) = (from_s.to_string(), (from_s + DAY_S - SCRAPE_S).to_string());
    let url = format!("--url={}", prometheus.url);
    for _ in 0..2 {
        let (start, end) = (format!("--start={start}"), format!("--end={end}"));
        let arguments = [
            "tsdb",
            "create-blocks-from",
            "rules",
            &url,
            &start,
            &end,
            "--eval-interval=1m",
            "--output-dir=data",
            "recording.yml",
        ];
        let (filled, text) = promtool(&arguments, dir.path());
        assert!(filled, "{text}");
    }
    drop(prometheus);
    let prometheus = Prometheus::start(dir.path(), "global: {scrape_interval: 1m}\n");
    let range = |expression: &str| -> Vec<Value> {
        let parameters =
            [("query", expression), ("start", &*start), ("end", &*end), ("step", "60")];
        prometheus.ask("query_range", &parameters)["result"].as_array().unwrap().clone()
    };
    let steps = |expression: &str| -> usize {
        range(expression).iter().map(|series| series["values"].as_array().unwrap().len()).sum()
    };
    for watched in
        ["shortlist:failed:ratio_rate1h", "shortlist:seconds:p99_5m", "shortlist:ctr:ratio_1h"]
    {
        assert!(steps(watched) > 1000, "{watched} has {} values in the day", steps(watched));
    }
    for (name, expression) in expressions("alerts.yml") {
        // The machine of the tests is as slow as it is; how slow is not this test's question.
        if name == "ShortlistSlow" {
            continue;
        }
        let found = range(&expression);
        assert!(found.is_empty(), "{name} fires on a quiet day: {found:?}");
    }
}
