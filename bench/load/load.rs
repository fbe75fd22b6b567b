//! The pacer and its connections.
//!
//! The connection that was used last is used next, so that only as many open as are needed. When all
//! are busy, requests wait in a queue; it holds at most `rate * seconds` bodies.

use std::collections::VecDeque;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::client::{Connection, Target};
use crate::plan::{Arrivals, Callers, Plan};
use crate::report::{Kinds, Report, Sample};

/// A sleep ends about so late on Linux (timer slack), so it is asked to end earlier.
const SLEEP_LATE: Duration = Duration::from_micros(60);

/// An open-loop load on POST /v1/recommendations.
#[derive(Debug, Clone, clap::Parser)]
pub struct Args {
    /// Where to ask; http only.
    #[arg(long, default_value = "http://127.0.0.1:8080/v1/recommendations")]
    pub url: String,
    /// Requests a second.
    #[arg(long)]
    pub rate: f64,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Seconds before them that are not.
    #[arg(long, default_value_t = 2)]
    pub warmup_seconds: u64,
    /// Gaps between requests.
    #[arg(long, value_enum, default_value = "poisson")]
    pub arrivals: Arrivals,
    /// Connections at most; they open as they are needed.
    #[arg(long, default_value_t = 256)]
    pub connections: usize,
    /// Users of the generated world: ids u0000001 to u<users>.
    #[arg(long)]
    pub users: u64,
    /// Share of requests by users that do not exist.
    #[arg(long, default_value_t = 0.01)]
    pub absent_share: f64,
    /// Regions, drawn evenly; "" sends none.
    #[arg(long, value_delimiter = ',', default_value = "north,east,south,west")]
    pub regions: Vec<String>,
    /// Devices, drawn evenly; "" sends none.
    #[arg(long, value_delimiter = ',', default_value = "mobile,desktop")]
    pub devices: Vec<String>,
    /// Items that a request asks for.
    #[arg(long, default_value_t = 20)]
    pub num_items: u16,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// An answer is good if it is a 200 within this time, from when its request was to leave.
    #[arg(long, default_value_t = 100)]
    pub deadline_ms: u64,
    /// A connection that is silent for so long counts as an error; also the wait at the end.
    #[arg(long, default_value_t = 10_000)]
    pub timeout_ms: u64,
    /// File for the figures of each second, as CSV.
    #[arg(long)]
    pub timeline: Option<PathBuf>,
    /// File for the totals; "-" is standard output.
    #[arg(long)]
    pub json: Option<String>,
}

struct Job {
    at: Duration,
    body: String,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// The one that was used last stands last.
    idle: Vec<SyncSender<Job>>,
    connections: usize,
    samples: Vec<Sample>,
    late_us: Vec<u64>,
    kinds: Kinds,
    reopened: u64,
}

struct Shared {
    state: Mutex<State>,
    target: Target,
    start: Instant,
    warmup: Duration,
}

/// Offers the load and waits for the answers.
///
/// # Errors
/// When an argument is out of range or the host of the address is unknown; never for what the
/// server does.
pub fn run(args: &Args) -> Result<Report> {
    ensure!(args.rate > 0.0 && args.rate.is_finite(), "--rate {}: more than 0", args.rate);
    ensure!(args.seconds > 0, "--seconds 0: at least 1");
    ensure!(args.users > 0, "--users 0: at least 1");
    ensure!(args.connections > 0, "--connections 0: at least 1");
    let share = args.absent_share;
    ensure!((0.0..=1.0).contains(&share), "--absent-share {share}: from 0 to 1");
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        target: target(args)?,
        start: Instant::now(),
        warmup: Duration::from_secs(args.warmup_seconds),
    });
    let end = shared.warmup + Duration::from_secs(args.seconds);
    let mut sent = 0;
    for (at, body) in plan(args).take_while(|&(at, _)| at < end) {
        sleep_until(shared.start + at);
        shared.send(Job { at, body }, args.connections)?;
        sent += usize::from(at >= shared.warmup);
    }
    Ok(finish(args, &shared, sent))
}

fn plan(args: &Args) -> Plan {
    let given = |values: &[String]| values.iter().filter(|v| !v.is_empty()).cloned().collect();
    let callers = Callers {
        users: args.users,
        absent_share: args.absent_share,
        regions: given(&args.regions),
        devices: given(&args.devices),
        num_items: usize::from(args.num_items),
    };
    Plan::new(args.rate, args.arrivals, args.seed, callers)
}

fn target(args: &Args) -> Result<Target> {
    let url = &args.url;
    let rest = url.strip_prefix("http://").with_context(|| format!("--url {url}: http only"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = host
        .to_socket_addrs()
        .with_context(|| format!("--url {url}: give host:port"))?
        .next()
        .with_context(|| format!("--url {url}: the host has no address"))?;
    let timeout = Duration::from_millis(args.timeout_ms);
    Ok(Target { address, host: host.to_owned(), path: format!("/{path}"), timeout })
}

/// Sleeps to a little before the moment and spins the rest.
fn sleep_until(moment: Instant) {
    let left = moment.saturating_duration_since(Instant::now());
    if left > SLEEP_LATE {
        std::thread::sleep(left - SLEEP_LATE);
    }
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
}

/// Waits for what is under way; what never comes is an error.
fn finish(args: &Args, shared: &Shared, sent: usize) -> Report {
    let give_up = Instant::now() + shared.target.timeout;
    while shared.lock().samples.len() < sent && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut state = std::mem::take(&mut *shared.lock());
    let waited_us = shared.target.timeout.as_micros() as u64;
    let lost = Sample {
        at_us: args.seconds * 1_000_000 - 1,
        latency_us: waited_us,
        status: 0,
        items: 0,
        degraded: 0,
    };
    state.samples.resize(sent, lost);
    Report {
        seconds: args.seconds,
        deadline_us: args.deadline_ms * 1000,
        num_items: args.num_items,
        samples: state.samples,
        kinds: state.kinds,
        late_us: state.late_us,
        reopened: state.reopened,
        connections: state.connections,
    }
}

impl Shared {
    /// A thread that panicked leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(self: &Arc<Self>, job: Job, connections_max: usize) -> Result<()> {
        let mut state = self.lock();
        if let Some(idle) = state.idle.pop() {
            drop(state);
            return idle.send(job).context("a connection's thread ended");
        }
        if state.connections == connections_max {
            state.queue.push_back(job);
            return Ok(());
        }
        state.connections += 1;
        drop(state);
        let shared = self.clone();
        std::thread::Builder::new()
            .name("connection".into())
            .stack_size(1 << 18)
            .spawn(move || shared.serve(job))
            .context("cannot start a thread for a connection")?;
        Ok(())
    }

    /// A connection's life: its first job, then what it is given.
    fn serve(&self, first: Job) {
        let mut connection = Connection::new(self.target.clone());
        let (own, jobs) = sync_channel(1);
        let mut job = first;
        loop {
            job = match self.ask(&mut connection, &job, &own) {
                Some(queued) => queued,
                None => match jobs.recv() {
                    Ok(job) => job,
                    Err(_) => return,
                },
            };
        }
    }

    /// One request; gives the next that waits, or else counts the connection as idle.
    fn ask(&self, connection: &mut Connection, job: &Job, own: &SyncSender<Job>) -> Option<Job> {
        let late = self.start.elapsed().saturating_sub(job.at);
        let reopened = connection.reopened;
        let answer = connection.ask(&job.body);
        let latency_us = self.start.elapsed().saturating_sub(job.at).as_micros() as u64;
        let mut state = self.lock();
        if let Some(at) = job.at.checked_sub(self.warmup) {
            let status = answer.as_ref().map_or(0, |answer| answer.status);
            let (degraded, items) =
                answer.as_ref().map_or((0, 0), |answer| state.kinds.read(answer));
            let at_us = at.as_micros() as u64;
            state.samples.push(Sample { at_us, latency_us, status, items, degraded });
            state.late_us.push(late.as_micros() as u64);
        }
        state.reopened += connection.reopened - reopened;
        let next = state.queue.pop_front();
        if next.is_none() {
            state.idle.push(own.clone());
        }
        next
    }
}
