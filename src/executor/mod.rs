//! Bounded queues in front of pinned threads: where the CPU work of a request runs.
//!
//! ```text
//! async worker -- try_send --> [ queue, jobs_max ] --> thread 0 (core 0, scratch 0)
//!      ^                                           \-> thread 1 (core 1, scratch 1)
//!      '------------------ oneshot ---------------------'
//! ```
//! A job carries a deadline. It is refused when the queue is full, when the jobs before it will
//! take longer than it has, and when its deadline has passed before it starts: work that nobody
//! waits for is never done. Each thread owns one scratch, sized at start. A job that panics is an
//! error of that job; its thread gets a fresh scratch and lives on.
//!
//! Must not know what the jobs are.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::monitor::{self, Refusal};

/// Section `[executor]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Number of threads.
    pub threads: Threads,
    /// Whether each thread stays on one core.
    pub pin: bool,
    /// Jobs that may wait; one more is refused.
    pub queue_jobs_max: usize,
    /// Upper bound of the time after which a refused caller is told to come back.
    pub retry_after_max_ms: u64,
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

/// Why an executor cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("number of threads {found}: give \"auto\" or a number from 1 to {THREADS_MAX}")]
    Threads { found: String },
    #[error("executor.queue_jobs_max = {found}: give a number from 1 to {QUEUE_JOBS_MAX}")]
    Queue { found: usize },
    #[error("executor.retry_after_max_ms = 0: give at least 1")]
    RetryAfter,
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
    /// Refuses what [`Executor::start`] could not use.
    pub fn check(&self) -> Result<(), Error> {
        if self.queue_jobs_max == 0 || self.queue_jobs_max > QUEUE_JOBS_MAX {
            return Err(Error::Queue { found: self.queue_jobs_max });
        }
        if self.retry_after_max_ms == 0 {
            return Err(Error::RetryAfter);
        }
        match self.threads {
            Threads::Exactly(n) if n == 0 || n > THREADS_MAX => {
                Err(Error::Threads { found: n.to_string() })
            }
            _ => Ok(()),
        }
    }
}

impl Threads {
    /// The number of threads on this machine, at least 1.
    pub fn count(self) -> usize {
        match self {
            Threads::Auto => std::thread::available_parallelism().map_or(1, |n| n.get()),
            Threads::Exactly(n) => n,
        }
    }
}

/// Threads that run jobs over a scratch `S` each. Dropping it lets the queue run dry, then joins.
pub struct Executor<S> {
    jobs: Option<Sender<Job<S>>>,
    threads: Vec<JoinHandle<()>>,
    pace: Arc<Pace>,
    config: Config,
}

/// A job that does its work, or passes the refusal on to whoever waits.
type Run<S> = Box<dyn FnOnce(Verdict<'_, S>) -> Outcome + Send>;

struct Job<S> {
    deadline: Instant,
    run: Run<S>,
}

/// Where the result of a job arrives.
type Waiting<T> = oneshot::Receiver<Result<T, Rejected>>;

/// What the thread tells a job: the scratch to run with, or why it will not run.
enum Verdict<'a, S> {
    Run(&'a mut S),
    Refuse(Rejected),
}

/// How a job ended, as far as its thread cares.
#[derive(PartialEq, Eq)]
enum Outcome {
    Done,
    Skipped,
    Panicked,
}

impl<S: Send + 'static> Executor<S> {
    /// Starts the threads; `scratch(i)` makes the scratch of thread `i`, on that thread.
    pub fn start(
        name: &str,
        config: &Config,
        scratch: impl Fn(usize) -> S + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        config.check()?;
        let (sender, receiver) = bounded::<Job<S>>(config.queue_jobs_max);
        let pace = Arc::new(Pace::new(config.threads.count()));
        let scratch = Arc::new(scratch);
        let cores = if config.pin { core_affinity::get_core_ids() } else { None };
        let cores = cores.unwrap_or_default();
        let mut threads = Vec::with_capacity(pace.threads);
        for at in 0..pace.threads {
            let name = format!("{name}-{at}");
            let core = (!cores.is_empty()).then(|| cores[at % cores.len()]);
            let (receiver, pace, scratch) = (receiver.clone(), pace.clone(), scratch.clone());
            let body = move || {
                if let Some(core) = core
                    && !core_affinity::set_for_current(core)
                {
                    tracing::warn!(core = core.id, "cannot pin thread to its core");
                }
                work(&receiver, &pace, || scratch(at));
            };
            let thread = std::thread::Builder::new().name(name.clone()).spawn(body);
            threads.push(thread.map_err(|source| Error::Spawn { name, source })?);
        }
        Ok(Self { jobs: Some(sender), threads, pace, config: config.clone() })
    }

    /// Runs `job` on one of the threads before `deadline`, or says why not.
    ///
    /// A caller that stops waiting before the job has begun takes it out of the work.
    pub async fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        job: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, Rejected> {
        let result = self.submit(deadline, job)?.await.unwrap_or(Err(Rejected::Stopped));
        result.inspect_err(|&rejected| count(rejected))
    }

    /// Jobs that wait.
    pub fn queued(&self) -> usize {
        self.jobs.as_ref().map_or(0, Sender::len)
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pace.threads
    }

    fn submit<T: Send + 'static>(
        &self,
        deadline: Instant,
        job: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<Waiting<T>, Rejected> {
        let refuse = |rejected| {
            count(rejected);
            Err(rejected)
        };
        let Some(jobs) = &self.jobs else { return refuse(Rejected::Stopped) };
        let wait = self.pace.wait(jobs.len());
        let retry_after_ms = (wait.as_millis() as u64).clamp(1, self.config.retry_after_max_ms);
        if Instant::now() + wait > deadline {
            return refuse(Rejected::Deadline { retry_after_ms });
        }
        let (sender, receiver) = oneshot::channel();
        let run = Box::new(move |verdict: Verdict<'_, S>| match verdict {
            Verdict::Refuse(rejected) => {
                let _ = sender.send(Err(rejected));
                Outcome::Skipped
            }
            Verdict::Run(_) if sender.is_closed() => Outcome::Skipped,
            Verdict::Run(scratch) => match catch_unwind(AssertUnwindSafe(|| job(scratch))) {
                Ok(value) => {
                    let _ = sender.send(Ok(value));
                    Outcome::Done
                }
                Err(_) => {
                    let _ = sender.send(Err(Rejected::Panicked));
                    Outcome::Panicked
                }
            },
        });
        match jobs.try_send(Job { deadline, run }) {
            Ok(()) => Ok(receiver),
            Err(TrySendError::Full(_)) => refuse(Rejected::QueueFull {
                queue_jobs_max: self.config.queue_jobs_max,
                retry_after_ms,
            }),
            Err(TrySendError::Disconnected(_)) => refuse(Rejected::Stopped),
        }
    }
}

impl<S> Drop for Executor<S> {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            // The last holder may be a job of this very executor; a thread cannot join itself.
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

fn work<S>(jobs: &Receiver<Job<S>>, pace: &Pace, fresh: impl Fn() -> S) {
    let mut scratch = fresh();
    for job in jobs {
        let begun = Instant::now();
        if begun > job.deadline {
            (job.run)(Verdict::Refuse(Rejected::Deadline { retry_after_ms: 1 }));
            continue;
        }
        match (job.run)(Verdict::Run(&mut scratch)) {
            Outcome::Done => pace.record(begun.elapsed()),
            Outcome::Skipped => {}
            // Whatever the job left in the scratch is not trusted.
            Outcome::Panicked => scratch = fresh(),
        }
    }
}

/// How long a job takes, as a moving average, and so how long the queue takes.
struct Pace {
    threads: usize,
    job_ns: AtomicU64,
}

impl Pace {
    fn new(threads: usize) -> Self {
        Self { threads, job_ns: AtomicU64::new(0) }
    }

    /// Weighs the last job with 1/16. Two threads may overwrite each other: an average bears that.
    fn record(&self, took: Duration) {
        let (old, new) = (self.job_ns.load(Ordering::Relaxed), took.as_nanos() as u64);
        let mean = if old == 0 { new } else { old - old / 16 + new / 16 };
        self.job_ns.store(mean.max(1), Ordering::Relaxed);
    }

    /// Time until `queued` jobs have begun. Zero for an empty queue, however slow the past was, so
    /// that a slow spell cannot refuse everything for ever.
    fn wait(&self, queued: usize) -> Duration {
        let jobs = queued as u64 / self.threads as u64;
        Duration::from_nanos(self.job_ns.load(Ordering::Relaxed).saturating_mul(jobs))
    }
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
