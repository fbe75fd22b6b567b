//! Bounded queues in front of pinned threads: where the CPU work of a request runs.
//!
//! ```text
//! async worker -- try_send --> [ queue, jobs_max ] --> thread 0 (core 0)
//!      ^                                           \-> thread 1 (core 1)
//!      '------------------ oneshot ---------------------'
//! ```
//! A job carries a deadline. It is refused when the queue is full, when the jobs before it will
//! take longer than it has, and when it would start too late for its result to be back in time: work
//! that nobody waits for is never done. A job that panics is an error of that job; its thread lives on. Before
//! anything is refused for want of time, [`Quality`] makes each job smaller.
//!
//! Must not know what the jobs are.

mod quality;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::monitor::{self, Refusal};

pub use quality::{Config as QualityConfig, Quality};

/// Section `[executor]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whether the stages of a request share one pool or have one each.
    pub layout: Layout,
    /// Number of threads of the shared pool.
    pub threads: Threads,
    /// Number of threads of each stage's own pool, s1 to s6.
    pub stage_threads: [Threads; 6],
    /// Whether each thread stays on one core.
    pub pin: bool,
    /// Jobs that may wait in front of a pool; one more is refused.
    pub queue_jobs_max: usize,
    /// Upper bound of the time after which a refused caller is told to come back.
    pub retry_after_max_ms: u64,
    pub quality: QualityConfig,
}

/// How stages and pools go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// One pool: a request stays on one thread from s1 to s6.
    Fused,
    /// A pool a stage: a request is handed on from stage to stage.
    Separate,
}

/// A number of threads: `"auto"` is one a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "ThreadsText")]
pub enum Threads {
    Auto,
    Exactly(usize),
}

/// More threads than any machine has cores; a bound for typing errors.
pub const THREADS_MAX: usize = 1024;
/// A bound for the memory that waiting jobs hold.
pub const QUEUE_JOBS_MAX: usize = 1 << 20;

/// Why a pool cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("number of threads {found}: give \"auto\" or a number from 1 to {THREADS_MAX}")]
    Threads { found: String },
    #[error("executor.queue_jobs_max = {found}: give a number from 1 to {QUEUE_JOBS_MAX}")]
    Queue { found: usize },
    #[error("executor.retry_after_max_ms = 0: give at least 1")]
    RetryAfter,
    #[error("executor.quality.{key} = {value}: give {rule}")]
    Quality { key: &'static str, value: f64, rule: &'static str },
    #[error("cannot start thread `{name}`: {source}")]
    Spawn { name: String, source: std::io::Error },
}

/// Why a job was not done. All but [`Rejected::Panicked`] say that it never began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("all {queue_jobs_max} places of the queue are taken, retry in {retry_after_ms} ms")]
    QueueFull { queue_jobs_max: usize, retry_after_ms: u64 },
    #[error("the job cannot start before its deadline, retry in {retry_after_ms} ms")]
    Deadline { retry_after_ms: u64 },
    #[error("the executor has stopped")]
    Stopped,
    #[error("the job panicked")]
    Panicked,
}

impl Rejected {
    /// When it is worth coming back, milliseconds; `None` when it is not.
    pub fn retry_after_ms(&self) -> Option<u64> {
        match *self {
            Rejected::QueueFull { retry_after_ms, .. } => Some(retry_after_ms),
            Rejected::Deadline { retry_after_ms } => Some(retry_after_ms),
            Rejected::Stopped | Rejected::Panicked => None,
        }
    }
}

impl Config {
    /// Refuses what [`Pool::start`] could not use.
    pub fn check(&self) -> Result<(), Error> {
        if self.queue_jobs_max == 0 || self.queue_jobs_max > QUEUE_JOBS_MAX {
            return Err(Error::Queue { found: self.queue_jobs_max });
        }
        if self.retry_after_max_ms == 0 {
            return Err(Error::RetryAfter);
        }
        self.quality.check()?;
        let all = self.stage_threads.iter().chain([&self.threads]);
        for threads in all {
            match *threads {
                Threads::Exactly(n) if n == 0 || n > THREADS_MAX => {
                    return Err(Error::Threads { found: n.to_string() });
                }
                Threads::Exactly(_) | Threads::Auto => {}
            }
        }
        Ok(())
    }
}

impl Threads {
    /// The number of threads on this machine, at least 1.
    pub fn count(self) -> usize {
        self.count_of(1.0)
    }

    /// The number of threads on this machine when "auto" means this share of the cores, at least 1.
    pub fn count_of(self, share: f64) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        match self {
            Threads::Auto => ((cores() as f64 * share).round() as usize).max(1),
            Threads::Exactly(n) => n,
        }
    }
}

/// Threads that run jobs. Dropping it lets the queue run dry, then joins.
pub struct Pool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    pace: Arc<Pace>,
    quality: Arc<Quality>,
    queue_jobs_max: usize,
    retry_after_max_ms: u64,
}

/// A job that does its work, or passes the refusal on to whoever waits.
type Run = Box<dyn FnOnce(Option<Rejected>) -> Outcome + Send>;

struct Job {
    queued: Instant,
    deadline: Instant,
    run: Run,
}

/// Where the result of a job arrives.
type Waiting<T> = oneshot::Receiver<Result<Done<T>, Rejected>>;

/// A result, and when it was there.
#[derive(Debug, PartialEq)]
struct Done<T> {
    value: T,
    at: Instant,
}

/// How a job ended, as far as its thread cares.
#[derive(PartialEq, Eq)]
enum Outcome {
    Done,
    Skipped,
}

impl Pool {
    /// Starts `threads` threads named `name-0`, ...; how long jobs wait is told to `quality`.
    ///
    /// # Errors
    /// When the configuration is out of range, or the system gives no thread.
    pub fn start(
        name: &str,
        config: &Config,
        threads: usize,
        quality: &Arc<Quality>,
    ) -> Result<Self, Error> {
        config.check()?;
        let (sender, receiver) = bounded::<Job>(config.queue_jobs_max);
        let pace = Arc::new(Pace::new(threads));
        let cores = if config.pin { core_affinity::get_core_ids() } else { None };
        let cores = cores.unwrap_or_default();
        let mut handles = Vec::with_capacity(threads);
        for at in 0..threads {
            let name = format!("{name}-{at}");
            let core = (!cores.is_empty()).then(|| cores[at % cores.len()]);
            let (receiver, pace, quality) = (receiver.clone(), pace.clone(), quality.clone());
            let body = move || {
                if let Some(core) = core
                    && !core_affinity::set_for_current(core)
                {
                    tracing::warn!(core = core.id, "cannot pin thread to its core");
                }
                work(&receiver, &pace, &quality);
            };
            let thread = std::thread::Builder::new().name(name.clone()).spawn(body);
            handles.push(thread.map_err(|source| Error::Spawn { name, source })?);
        }
        Ok(Self {
            jobs: Some(sender),
            threads: handles,
            pace,
            quality: quality.clone(),
            queue_jobs_max: config.queue_jobs_max,
            retry_after_max_ms: config.retry_after_max_ms,
        })
    }

    /// Runs `job` on one of the threads before `deadline`, or says why not.
    ///
    /// A caller that stops waiting before the job has begun takes it out of the work.
    pub async fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Rejected> {
        let result = self.submit(deadline, job)?.await.unwrap_or(Err(Rejected::Stopped));
        let done = result.inspect_err(|&rejected| count(rejected))?;
        self.pace.handed_back(done.at.elapsed());
        Ok(done.value)
    }

    /// Says whether a job would be refused now, without making one: the cheapest refusal.
    pub fn admits(&self, deadline: Instant) -> Result<(), Rejected> {
        let Some(jobs) = &self.jobs else { return Err(Rejected::Stopped) };
        let queued = jobs.len();
        let wait = self.pace.wait(queued);
        let retry_after_ms = (wait.as_millis() as u64).clamp(1, self.retry_after_max_ms);
        let after = if queued == 0 { Duration::ZERO } else { self.pace.rest() };
        let too_long = self.quality.wait_max().is_some_and(|max| wait > max);
        if too_long || Instant::now() + wait + after > deadline {
            return Err(Rejected::Deadline { retry_after_ms });
        }
        if jobs.is_full() {
            return Err(self.full(retry_after_ms));
        }
        Ok(())
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    fn full(&self, retry_after_ms: u64) -> Rejected {
        Rejected::QueueFull { queue_jobs_max: self.queue_jobs_max, retry_after_ms }
    }

    fn submit<T: Send + 'static>(
        &self,
        deadline: Instant,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Waiting<T>, Rejected> {
        self.admits(deadline).inspect_err(|&rejected| count(rejected))?;
        let Some(jobs) = &self.jobs else { return Err(Rejected::Stopped) };
        let (sender, receiver) = oneshot::channel();
        let run = Box::new(move |refused: Option<Rejected>| {
            if let Some(rejected) = refused {
                let _ = sender.send(Err(rejected));
                return Outcome::Skipped;
            }
            if sender.is_closed() {
                return Outcome::Skipped;
            }
            let result = catch_unwind(AssertUnwindSafe(job)).map_err(|_| Rejected::Panicked);
            let _ = sender.send(result.map(|value| Done { value, at: Instant::now() }));
            Outcome::Done
        });
        let refuse = |rejected| {
            count(rejected);
            Err(rejected)
        };
        match jobs.try_send(Job { queued: Instant::now(), deadline, run }) {
            Ok(()) => Ok(receiver),
            Err(TrySendError::Full(_)) => refuse(self.full(1)),
            Err(TrySendError::Disconnected(_)) => refuse(Rejected::Stopped),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            // The last holder may be a job of this very pool; a thread cannot join itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

fn count(rejected: Rejected) {
    monitor::refused(match rejected {
        Rejected::QueueFull { .. } => Refusal::QueueFull,
        Rejected::Deadline { .. } => Refusal::Deadline,
        Rejected::Stopped => Refusal::Stopped,
        Rejected::Panicked => Refusal::Panicked,
    });
}

fn work(jobs: &Receiver<Job>, pace: &Pace, quality: &Quality) {
    for job in jobs {
        let begun = Instant::now();
        quality.waited(begun, begun - job.queued);
        // Its result would come back too late; the last one in the queue may try.
        let rest = if jobs.is_empty() { Duration::ZERO } else { pace.rest() };
        if begun + rest > job.deadline {
            (job.run)(Some(Rejected::Deadline { retry_after_ms: 1 }));
        } else if (job.run)(None) == Outcome::Done {
            pace.record(begun.elapsed());
        }
    }
}

/// How long a job takes, as a moving average, and so how long the queue takes; and how long it takes
/// until whoever waits for the result goes on. Both grow where threads share cores.
struct Pace {
    threads: usize,
    job_ns: AtomicU64,
    hand_back_ns: AtomicU64,
}

impl Pace {
    fn new(threads: usize) -> Self {
        Self { threads, job_ns: AtomicU64::new(0), hand_back_ns: AtomicU64::new(0) }
    }

    fn record(&self, took: Duration) {
        average(&self.job_ns, took);
    }

    fn handed_back(&self, took: Duration) {
        average(&self.hand_back_ns, took);
    }

    /// What follows when a job begins: the job, and the way back to the caller; twice, because the
    /// caller was as long in hearing of the request, which no deadline knows of.
    fn rest(&self) -> Duration {
        let (job, back) = (&self.job_ns, &self.hand_back_ns);
        Duration::from_nanos(job.load(Ordering::Relaxed) + 2 * back.load(Ordering::Relaxed))
    }

    /// Time until `queued` jobs have begun. Zero for an empty queue, however slow the past was, so
    /// that a slow spell cannot refuse everything for ever.
    fn wait(&self, queued: usize) -> Duration {
        let jobs = queued as u64 / self.threads as u64;
        Duration::from_nanos(self.job_ns.load(Ordering::Relaxed).saturating_mul(jobs))
    }
}

/// Weighs the last one with 1/16. Two threads may overwrite each other: an average bears that.
fn average(mean_ns: &AtomicU64, last: Duration) {
    let (old, new) = (mean_ns.load(Ordering::Relaxed), last.as_nanos() as u64);
    let mean = if old == 0 { new } else { old - old / 16 + new / 16 };
    mean_ns.store(mean.max(1), Ordering::Relaxed);
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ThreadsText {
    Number(usize),
    Word(String),
}

impl TryFrom<ThreadsText> for Threads {
    type Error = Error;

    fn try_from(text: ThreadsText) -> Result<Self, Error> {
        match text {
            ThreadsText::Number(n) if (1..=THREADS_MAX).contains(&n) => Ok(Threads::Exactly(n)),
            ThreadsText::Number(n) => Err(Error::Threads { found: n.to_string() }),
            ThreadsText::Word(word) if word == "auto" => Ok(Threads::Auto),
            // An environment variable carries a number as text.
            ThreadsText::Word(word) => match word.parse() {
                Ok(n) if (1..=THREADS_MAX).contains(&n) => Ok(Threads::Exactly(n)),
                _ => Err(Error::Threads { found: format!("{word:?}") }),
            },
        }
    }
}

#[cfg(test)]
mod tests;
