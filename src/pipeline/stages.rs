//! Where the stages run: all on one thread, or each in a pool of its own.
//!
//! ```text
//! fused       thread of `pipeline`   s1  constants+specialise  s2  s3  s4  s5  s6
//! separate    pool s1, then          s2 in pool s2  beside  constants+specialise in pool s4,
//!             then pools s3, s4, s5, s6
//! ```
//! Which of them is faster, and when: docs/decisions/0007.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use super::answer::Answer;
use super::context::{Call, Context, Scratch};
use super::serving::Serving;
use crate::executor::{self, Config, Layout, Pool, Quality, Rejected};

/// Share of the cores of each stage's own pool where its size is "auto": roughly its share of the
/// work.
const SHARES: [f64; 6] = [0.08, 0.3, 0.2, 0.3, 0.06, 0.06];
/// Threads of the stages' own pools, in order.
const NAMES: [&str; 6] =
    ["s1-user", "s2-search", "s3-features", "s4-ranking", "s5-rules", "s6-respond"];

/// The pools of all stages, and the buffers of the requests in them.
pub struct Stages {
    pools: Pools,
    scratches: Arc<Scratches>,
    quality: Arc<Quality>,
}

enum Pools {
    Fused(Pool),
    Separate(Box<[Pool; 6]>),
}

/// What leaves the last stage.
pub struct Finished<T> {
    pub answer: Answer,
    /// What `after` made of the context.
    pub kept: T,
}

impl Stages {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the configuration is out of range, or the system gives no thread.
    pub fn start(config: &Config) -> Result<Self, executor::Error> {
        let quality = Arc::new(Quality::new(&config.quality));
        let mut threads = 0;
        let pools = match config.layout {
            Layout::Fused => {
                threads = config.threads.count();
                Pools::Fused(Pool::start("pipeline", config, threads, &quality)?)
            }
            Layout::Separate => {
                let mut pools = Vec::with_capacity(NAMES.len());
                for ((name, share), wanted) in
                    NAMES.into_iter().zip(SHARES).zip(config.stage_threads)
                {
                    let count = wanted.count_of(share);
                    threads += count;
                    pools.push(Pool::start(name, config, count, &quality)?);
                }
                let pools = pools.try_into().unwrap_or_else(|_| unreachable!("a pool a stage"));
                Pools::Separate(Box::new(pools))
            }
        };
        // Between two stages' pools a request holds its buffers while it waits; and two versions may serve.
        let scratches = Arc::new(Scratches::new(threads * 4));
        Ok(Self { pools, scratches, quality })
    }

    /// Lets go of buffers of versions that serve no more.
    pub fn keep(&self, versions: &[Arc<Serving>]) {
        self.scratches.keep(versions);
    }

    /// How much of its work a request should do now, at most 1.
    pub fn quality(&self) -> f32 {
        self.quality.factor()
    }

    /// Says whether a request would be refused now.
    ///
    /// # Errors
    /// With the refusal.
    pub fn admits(&self, deadline: std::time::Instant) -> Result<(), Rejected> {
        match &self.pools {
            Pools::Fused(pool) => pool.admits(deadline),
            Pools::Separate(pools) => pools[0].admits(deadline),
        }
    }

    /// Runs a request; `after` reads its context before the buffers go back.
    ///
    /// # Errors
    /// When a pool refuses the request, or a stage panics.
    pub async fn run<T: Send + 'static>(
        &self,
        call: Call,
        after: impl FnOnce(&Context) -> T + Send + 'static,
    ) -> Result<Finished<T>, Rejected> {
        let (scratches, deadline) = (self.scratches.clone(), call.deadline.0);
        match &self.pools {
            Pools::Fused(pool) => {
                let job = move || {
                    let scratch = scratches.take(&call.serving);
                    let mut cx = Context::new(call, scratch);
                    let answer = super::run(&mut cx);
                    scratches.finish(cx, answer, after)
                };
                pool.run(deadline, job).await
            }
            Pools::Separate(pools) => separate(pools, scratches, call, after).await,
        }
    }
}

/// Hands a request from pool to pool. What needs no candidate runs beside the search for them.
async fn separate<T: Send + 'static>(
    pools: &[Pool; 6],
    scratches: Arc<Scratches>,
    call: Call,
    after: impl FnOnce(&Context) -> T + Send + 'static,
) -> Result<Finished<T>, Rejected> {
    let [s1, s2, s3, s4, s5, s6] = pools;
    let (deadline, taken_from) = (call.deadline.0, scratches.clone());
    let open = move || {
        let scratch = taken_from.take(&call.serving);
        let mut cx = Context::new(call, scratch);
        super::s1(&mut cx);
        cx
    };
    let mut cx = s1.run(deadline, open).await?;
    let ahead = cx.ahead.take();
    let (serving, inputs) = (cx.serving.clone(), cx.inputs.clone());
    let prepare = move || {
        let mut ahead = ahead;
        if let Some(ahead) = &mut ahead {
            super::prepare(&serving, &inputs, ahead);
        }
        ahead
    };
    let search = move || {
        super::s2(&mut cx);
        cx
    };
    let (cx, ahead) = tokio::try_join!(s2.run(deadline, search), s4.run(deadline, prepare))?;
    let mut cx = cx;
    cx.ahead = ahead;
    for (pool, stage) in [(s3, super::s3 as fn(&mut Context)), (s4, super::s4), (s5, super::s5)] {
        let job = move || {
            stage(&mut cx);
            cx
        };
        cx = pool.run(deadline, job).await?;
    }
    let respond = move || {
        let answer = super::s6(&mut cx);
        scratches.finish(cx, answer, after)
    };
    s6.run(deadline, respond).await
}

/// Buffers that no request holds.
struct Scratches {
    free: ArrayQueue<Box<Scratch>>,
}

impl Scratches {
    fn new(max: usize) -> Self {
        Self { free: ArrayQueue::new(max) }
    }

    /// Buffers for this bundle.
    fn take(&self, serving: &Serving) -> Box<Scratch> {
        for _ in 0..self.free.len() {
            match self.free.pop() {
                Some(scratch) if scratch.fits(serving) => return scratch,
                // Of the other version that serves, or of one that has gone; see `keep`.
                Some(scratch) => _ = self.free.push(scratch),
                None => break,
            }
        }
        Box::new(Scratch::new(serving))
    }

    /// Lets go of buffers that fit none of these versions.
    fn keep(&self, versions: &[Arc<Serving>]) {
        for _ in 0..self.free.len() {
            match self.free.pop() {
                Some(scratch) if versions.iter().any(|serving| scratch.fits(serving)) => {
                    let _ = self.free.push(scratch);
                }
                Some(_) => {}
                None => break,
            }
        }
    }

    /// Ends a request: its buffers serve the next one.
    fn finish<T>(
        &self,
        mut cx: Context,
        answer: Answer,
        after: impl FnOnce(&Context) -> T,
    ) -> Finished<T> {
        let kept = after(&cx);
        let mut answer = answer;
        answer.timings = std::mem::take(&mut cx.timings);
        // More requests than places were at work: these buffers were extra.
        let _ = self.free.push(cx.into_scratch());
        Finished { answer, kept }
    }
}
