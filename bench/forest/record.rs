//! Ours and the peers in turn, and the table of it.
//!
//! A run times every system in slices that alternate, so that a slow second of the machine meets
//! all of them; a figure is the median over the runs of the run's minimum or median.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use crate::models::{self, SPECS};
use crate::{Subject, cost};

const RUNS: usize = 5;
/// Slices of a run, and how long one system's turn in a slice is.
const SLICES: usize = 8;
const TURN_MS: f64 = 60.0;

/// Measures everything and writes `path`; the plot of the cost curves goes beside it.
pub fn run(path: &str, peers: Option<&str>) {
    let mut peers = peers.map(Peers::start);
    let mut table = Table::new();
    for spec in &SPECS {
        let mut subject = Subject::new(models::load(spec));
        let share = subject.model.constant_share;
        let setting = format!("{} constant_share={share:.3}", spec.kind());
        let mut systems: Vec<String> =
            Subject::OURS.iter().map(|name| format!("shortlist:{name}")).collect();
        systems.push("lightgbm:capi".into());
        if let Some(peers) = &mut peers {
            systems.extend(peers.load(&subject.model));
        }
        let runs: Vec<Vec<Figures>> =
            (0..RUNS).map(|_| one_run(&mut subject, peers.as_mut(), &systems)).collect();
        let differences = differences(&mut subject, peers.as_mut(), &systems);
        for (at, system) in systems.iter().enumerate() {
            let of = |figure: fn(&Figures) -> f64| {
                median(runs.iter().map(|run| figure(&run[at])).collect())
            };
            table.row(&spec.work(), system, &setting, "min_ms", of(|f| f.min_ms));
            table.row(&spec.work(), system, &setting, "p50_ms", of(|f| f.p50_ms));
            table.row(&spec.work(), system, &setting, "max_abs_diff", differences[at]);
            // Ratios of minima within a run, then the median: what the goals are stated in.
            for (peer_at, peer) in systems.iter().enumerate() {
                if system.starts_with("shortlist") && !peer.starts_with("shortlist") {
                    let ratios = runs.iter().map(|run| run[peer_at].min_ms / run[at].min_ms);
                    let metric = format!("times_faster_than_{peer}");
                    table.row(&spec.work(), system, &setting, &metric, median(ratios.collect()));
                }
            }
        }
    }
    cost::run(&mut table, &path.replace(".csv", ".svg"));
    std::fs::write(path, &table.text).expect("the record's folder");
    println!("{}", table.text);
}

pub struct Figures {
    pub min_ms: f64,
    pub p50_ms: f64,
}

fn one_run(
    subject: &mut Subject,
    mut peers: Option<&mut Peers>,
    systems: &[String],
) -> Vec<Figures> {
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); systems.len()];
    let mut out = vec![0.0; subject.model.rows];
    for _ in 0..SLICES {
        for (system, times) in systems.iter().zip(&mut times) {
            match (system.strip_prefix("shortlist:"), system.as_str()) {
                (Some(name), _) => turn(times, || subject.ours(name)),
                (None, "lightgbm:capi") => turn(times, || subject.capi(&mut out)),
                _ => times.extend(peers.as_deref_mut().map(|peers| peers.time(system)).unwrap()),
            }
        }
    }
    times.into_iter().map(figures).collect()
}

/// Calls until the turn is over, at least twice; the first call warms up.
pub fn turn(times: &mut Vec<f64>, mut call: impl FnMut()) {
    call();
    let start = Instant::now();
    loop {
        let before = Instant::now();
        call();
        times.push(before.elapsed().as_secs_f64() * 1e3);
        if start.elapsed().as_secs_f64() * 1e3 > TURN_MS {
            return;
        }
    }
}

pub fn figures(mut times: Vec<f64>) -> Figures {
    times.sort_by(f64::total_cmp);
    Figures { min_ms: times[0], p50_ms: times[times.len() / 2] }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Largest difference of raw scores to the C API.
fn differences(
    subject: &mut Subject,
    mut peers: Option<&mut Peers>,
    systems: &[String],
) -> Vec<f64> {
    let mut reference = vec![0.0; subject.model.rows];
    subject.capi(&mut reference);
    let worst = |scores: &[f64]| {
        assert_eq!(scores.len(), reference.len(), "one score a row");
        reference.iter().zip(scores).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    let mut all = Vec::new();
    for system in systems {
        all.push(match (system.strip_prefix("shortlist:"), system.as_str()) {
            (Some(name), _) => {
                subject.ours(name);
                worst(subject.scores(name))
            }
            (None, "lightgbm:capi") => 0.0,
            _ => worst(&peers.as_deref_mut().map(|peers| peers.scores(system)).unwrap()),
        });
    }
    all
}

/// The peers' process: a line in, a line out.
struct Peers {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peers {
    fn start(command: &str) -> Self {
        let mut words = command.split_whitespace();
        let mut child = Command::new(words.next().expect("a command"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peers' program starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    fn ask(&mut self, question: &str) -> Vec<String> {
        writeln!(self.input, "{question}").expect("the peers' process lives");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the peers answer in text");
        assert!(!line.is_empty(), "the peers' process ended on `{question}`");
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn numbers(&mut self, question: &str) -> Vec<f64> {
        self.ask(question).iter().map(|word| word.parse().expect("a number")).collect()
    }

    /// Loads a model; answers the systems that can evaluate it.
    fn load(&mut self, model: &models::Model) -> Vec<String> {
        let (text, rows) = (model.text_path.display(), model.rows_path.display());
        self.ask(&format!("model {text} {rows} {}", models::FEATURES))
    }

    fn time(&mut self, system: &str) -> Vec<f64> {
        self.numbers(&format!("time {system} {TURN_MS}"))
    }

    fn scores(&mut self, system: &str) -> Vec<f64> {
        self.numbers(&format!("scores {system}"))
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // The end of its input ends it; a failed wait leaves nothing to do.
        let _ = writeln!(self.input, "quit");
        let _ = self.child.wait();
    }
}

/// Rows of the record.
pub struct Table {
    text: String,
    date: String,
    machine: String,
}

impl Table {
    fn new() -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name =
            cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let machine = format!(
            "{} ({cores} cores; {:?})",
            name.trim_start_matches([' ', '\t', ':']).replace(',', " "),
            shortlist::kernels::level()
        );
        let date = chrono::Utc::now().format("%Y-%m-%d").to_string();
        let text = "run_id,work,system,setting,metric,value,unit,date,machine\n".to_owned();
        Self { text, date, machine }
    }

    /// Adds a figure.
    pub fn row(&mut self, work: &str, system: &str, setting: &str, metric: &str, value: f64) {
        let unit = match metric {
            "max_abs_diff" => "raw score",
            _ if metric.ends_with("_ms") => "ms",
            _ => "ratio",
        };
        let value = if unit == "raw score" { format!("{value:e}") } else { format!("{value:.4}") };
        let (date, machine) = (&self.date, &self.machine);
        let run_id = format!("forest-{date}");
        writeln!(
            self.text,
            "{run_id},{work},{system},{setting},{metric},{value},{unit},{date},{machine}"
        )
        .expect("a string grows");
    }
}
