//! Training of both towers: sampled softmax with hand-written backward passes.
//!
//! A row is a user at a moment; its positives are the events of that moment (a basket, a click),
//! its past is the prefix of the user's events before them. A batch takes rows of one snapshot,
//! so that every number about an item is as old as serving would have seen it, and all of the
//! batch's positives plus uniformly drawn items stand as candidates for every row. The softmax
//! over the catalogue is estimated from them by inverse inclusion probability (the logQ
//! correction of Yi et al., RecSys 2019, for candidates without repetition; the positive itself
//! is certain to be there and is not corrected).
//!
//! The embedding bags are linear, so the dense networks are the only thing that is
//! differentiated; gradients of pools go straight to the touched rows.
//!
//! Deterministic for a given seed and number of threads.

mod batch;
mod check;
mod init;
mod optim;
mod step;
#[cfg(test)]
mod tests;

use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::sections::Column;
use crate::types::ItemIdx;

use super::{Config, Error, ItemInput, Towers};
use batch::Sampler;
#[cfg(test)]
pub(crate) use init::random;
use optim::{AdamW, RowAdagrad};
use step::Workspace;

/// A cosine is never stretched by more than a hundred.
const LOG_SCALE_MAX: f32 = 4.6;

/// Everything training reads; plain arrays with dense ids.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    /// Number of items.
    pub items: usize,
    /// Distinct codes by item code column.
    pub item_code_cardinalities: &'a [u32],
    /// `items x item code columns`; [`super::MISSING`] when absent.
    pub item_codes: &'a [u32],
    /// Distinct codes by user code column.
    pub user_code_cardinalities: &'a [u32],
    /// `users x user code columns`.
    pub user_codes: &'a [u32],
    /// Items of all events, by user and oldest first.
    pub event_items: &'a [ItemIdx],
    /// How much an event counts as a positive; 0 keeps it in the history only.
    pub event_weights: &'a [f32],
    /// `users + 1` offsets into the events.
    pub user_offsets: &'a [u32],
    /// The training rows.
    pub rows: &'a [Row],
    /// `rows x dense user features` as of the row's time; raw, NaN when absent.
    pub row_dense: &'a [f32],
    /// Number of dense user features.
    pub user_dense: usize,
    /// `items x dense item features` each, raw, as of the snapshot's time; at least one, an
    /// empty slice where there are no dense item features.
    pub snapshots: &'a [&'a [f32]],
    /// Number of dense item features.
    pub item_dense: usize,
}

/// A user at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Dense user.
    pub user: u32,
    /// First event of the moment: the user's events before it are the history.
    pub begin: u32,
    /// One past the last event of the moment.
    pub end: u32,
    /// Position in `snapshots` of the last one taken at or before the moment.
    pub snapshot: u32,
    /// Age in days against the newest row, for the recency weight; 0 without times.
    pub age_days: f32,
}

/// Where training stands, for progress output.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub epoch: u32,
    pub step: u64,
    pub steps_an_epoch: u64,
    /// Mean over the epoch so far.
    pub loss: f64,
    /// Positives seen a second of this epoch.
    pub samples_per_s: f64,
}

/// Listens to training and judges epochs.
pub trait Observer: Send {
    /// Called every few dozen steps and at the end of an epoch.
    fn progress(&mut self, progress: &Progress);
    /// Judges the towers after an epoch, higher is better; `None` when there is nothing to judge
    /// by: then all epochs run and the last weights count.
    fn judge(&mut self, epoch: u32, towers: &Towers) -> Option<f64>;
}

/// Trains towers from scratch.
///
/// # Errors
/// When the configuration or the data are inconsistent, hold no positive, or the loss diverges.
pub fn train(data: &Data, config: &Config, observer: &mut dyn Observer) -> Result<Towers, Error> {
    check::config(config)?;
    data.check()?;
    let mut rng = StdRng::seed_from_u64(config.seed);
    let mut towers = init::towers(data, config, &mut rng);
    let mut trainer = Trainer {
        data,
        config,
        sampler: Sampler::new(data, config)?,
        optimisers: Optimisers::new(&towers, config),
        work: Workspace::new(&towers, config)?,
        step: 0,
    };
    if config.threads <= 1 {
        trainer.run(&mut towers, &mut rng, observer)?;
    } else {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(config.threads).build();
        let pool = pool.map_err(|_| Error::Threads { found: config.threads })?;
        pool.install(|| trainer.run(&mut towers, &mut rng, observer))?;
    }
    towers.version = towers.fingerprint();
    Ok(towers)
}

/// Rows out of events: one per user and moment. `time_ms` parallel to the events gives moments
/// (events of one time are one row); without times every event is its own moment. Rows before
/// `from_ms` are only history. Snapshots are taken at `snapshot_ms`, ascending.
pub fn rows_of(
    user_offsets: &[u32],
    time_ms: Option<&[i64]>,
    from_ms: i64,
    until_ms: i64,
    snapshot_ms: &[i64],
) -> Vec<Row> {
    let mut rows = Vec::new();
    for (user, span) in user_offsets.windows(2).enumerate() {
        let mut begin = span[0];
        while begin < span[1] {
            let mut end = begin + 1;
            let mut row = Row { user: user as u32, begin, end, snapshot: 0, age_days: 0.0 };
            if let Some(times) = time_ms {
                let now = times[begin as usize];
                while end < span[1] && times[end as usize] == now {
                    end += 1;
                }
                let taken = snapshot_ms.partition_point(|&at| at <= now);
                row.snapshot = taken.saturating_sub(1) as u32;
                row.age_days = ((until_ms - now) as f64 / crate::types::DAY_MS as f64) as f32;
                row.end = end;
                if now >= from_ms && now < until_ms {
                    rows.push(row);
                }
            } else {
                rows.push(row);
            }
            begin = end;
        }
    }
    rows
}

/// Weights, their optimisers and where they stand.
struct Trainer<'a> {
    data: &'a Data<'a>,
    config: &'a Config,
    sampler: Sampler<'a>,
    optimisers: Optimisers,
    work: Workspace,
    step: u64,
}

impl Trainer<'_> {
    /// All epochs; the towers are left as the best-judged epoch made them.
    fn run(
        &mut self,
        towers: &mut Towers,
        rng: &mut StdRng,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        let mut best: Option<(f64, Towers)> = None;
        let mut epochs_since_best = 0;
        for epoch in 0..self.config.epochs_max {
            self.epoch(epoch, towers, rng, observer)?;
            towers.version = towers.fingerprint();
            let Some(metric) = observer.judge(epoch, towers) else { continue };
            if best.as_ref().is_none_or(|(found, _)| metric > *found) {
                best = Some((metric, towers.clone()));
                epochs_since_best = 0;
                continue;
            }
            epochs_since_best += 1;
            if epochs_since_best > self.config.patience_epochs {
                break;
            }
        }
        if let Some((_, found)) = best {
            *towers = found;
        }
        Ok(())
    }

    fn epoch(
        &mut self,
        epoch: u32,
        towers: &mut Towers,
        rng: &mut StdRng,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        let started = std::time::Instant::now();
        let steps_an_epoch = self.sampler.batches_an_epoch() as u64;
        let steps_max = steps_an_epoch * u64::from(self.config.epochs_max);
        let (mut loss, mut weight, mut samples) = (0.0, 0.0, 0u64);
        let plan = self.sampler.epoch(rng);
        for (index, span) in plan.iter().enumerate() {
            self.sampler.fill(towers, span, rng, &mut self.work.batch);
            let found = step::loss_and_gradients(self.data, towers, &mut self.work);
            if !found.loss.is_finite() {
                return Err(Error::Diverged { epoch, step: self.step });
            }
            loss += found.loss * found.weight;
            weight += found.weight;
            samples += self.work.batch.targets.len() as u64;
            let share = schedule(self.step, steps_max);
            self.optimisers.step(self.config, share, towers, &mut self.work);
            self.step += 1;
            if index % 32 == 31 || index + 1 == plan.len() {
                observer.progress(&Progress {
                    epoch,
                    step: self.step,
                    steps_an_epoch,
                    loss: loss / weight,
                    samples_per_s: samples as f64 / started.elapsed().as_secs_f64(),
                });
            }
        }
        Ok(())
    }
}

/// One optimiser a parameter group.
struct Optimisers {
    item: AdamW,
    user: AdamW,
    scale: AdamW,
    tables: Vec<RowAdagrad>,
}

impl Optimisers {
    fn new(towers: &Towers, config: &Config) -> Self {
        Self {
            item: AdamW::new(towers.item.params.len(), config.weight_decay),
            user: AdamW::new(towers.user.params.len(), config.weight_decay),
            scale: AdamW::new(1, 0.0),
            tables: towers.tables.iter().map(RowAdagrad::new).collect(),
        }
    }

    /// Moves all weights along the workspace's gradients, which are spent then.
    fn step(&mut self, config: &Config, share: f32, towers: &mut Towers, work: &mut Workspace) {
        let rate = config.learning_rate * share;
        self.item.step(owned(&mut towers.item.params), &work.grads.item, rate);
        self.user.step(owned(&mut towers.user.params), &work.grads.user, rate);
        if config.learn_scale {
            let mut log_scale = [work.log_scale];
            self.scale.step(&mut log_scale, &[work.grads.log_scale], rate);
            work.log_scale = log_scale[0].clamp(0.0, LOG_SCALE_MAX);
        }
        let rate = config.table_learning_rate * share;
        let gradients = work.grads.tables.iter_mut();
        for ((table, optimiser), gradient) in
            towers.tables.iter_mut().zip(&mut self.tables).zip(gradients)
        {
            optimiser.step(owned(&mut table.values), gradient, rate);
        }
    }
}

/// Share of the learning rate at `step`: a short warm-up, then linear to a twentieth.
fn schedule(step: u64, steps_max: u64) -> f32 {
    let warm_up = 100.min(steps_max / 10).max(1);
    let rise = (step + 1) as f32 / warm_up as f32;
    let fall = 1.0 - 0.95 * step as f32 / steps_max as f32;
    rise.min(1.0) * fall
}

fn owned(column: &mut Column<f32>) -> &mut Vec<f32> {
    match column {
        Column::Owned(values) => values,
        Column::Mapped { .. } => unreachable!("towers in training own their weights"),
    }
}

/// Encodes every item with the dense features of one snapshot; `items x dim`.
pub fn encode_all(towers: &Towers, codes: &[u32], dense: &[f32]) -> Vec<f32> {
    let (columns, width) = (towers.shape.item_codes.len(), towers.shape.item_dense as usize);
    let mut scratch = towers.scratch();
    let mut out = vec![0.0; towers.shape.items as usize * towers.dim()];
    for (item, vector) in out.chunks_exact_mut(towers.dim()).enumerate() {
        let input = ItemInput {
            item: ItemIdx(item as u32),
            codes: &codes[item * columns..(item + 1) * columns],
            dense: &dense[item * width..(item + 1) * width],
        };
        towers.encode_item(&input, &mut scratch, vector);
    }
    out
}
