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
mod optim;
mod step;
#[cfg(test)]
mod tests;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, StandardNormal};

use crate::sections::Column;
use crate::types::ItemIdx;

use super::mlp::Mlp;
use super::model::{Scratch, Shape, Standard, Table, Towers, signed_log};
use super::{Config, Error};
use batch::Sampler;
use optim::{AdamW, RowAdagrad};
use step::Workspace;

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
    check_config(config)?;
    data.check()?;
    let mut rng = StdRng::seed_from_u64(config.seed);
    let mut towers = initial(data, config, &mut rng)?;
    let sampler = Sampler::new(data, config)?;
    if config.threads <= 1 {
        run(data, config, &sampler, &mut towers, &mut rng, observer)?;
    } else {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(config.threads).build();
        let pool = pool.map_err(|e| Error::Config {
            key: "threads",
            found: format!("{} ({e})", config.threads),
            rule: "a number of threads that the system grants",
        })?;
        pool.install(|| run(data, config, &sampler, &mut towers, &mut rng, observer))?;
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

fn run(
    data: &Data,
    config: &Config,
    sampler: &Sampler,
    towers: &mut Towers,
    rng: &mut StdRng,
    observer: &mut dyn Observer,
) -> Result<(), Error> {
    let mut work = Workspace::new(towers, config);
    let mut item_optimiser = AdamW::new(towers.item.params.len(), config.weight_decay);
    let mut user_optimiser = AdamW::new(towers.user.params.len(), config.weight_decay);
    let mut scale_optimiser = AdamW::new(1, 0.0);
    let mut tables: Vec<RowAdagrad> = towers.tables.iter().map(RowAdagrad::new).collect();
    let mut best: Option<(f64, Towers)> = None;
    let mut epochs_since_best = 0;
    let steps_an_epoch = sampler.batches_an_epoch() as u64;
    let steps_max = steps_an_epoch * u64::from(config.epochs_max);
    let mut step = 0;
    for epoch in 0..config.epochs_max {
        let started = std::time::Instant::now();
        let (mut loss, mut weight, mut samples) = (0.0, 0.0, 0u64);
        let plan = sampler.epoch(rng);
        for (index, span) in plan.iter().enumerate() {
            sampler.fill(data, towers, span, rng, &mut work.batch);
            let found = step::loss_and_gradients(data, towers, &mut work);
            if !found.loss.is_finite() {
                return Err(Error::Diverged { epoch, step });
            }
            loss += found.loss * found.weight;
            weight += found.weight;
            samples += work.batch.targets.len() as u64;
            let rate = schedule(step, steps_max);
            let dense_rate = config.learning_rate * rate;
            item_optimiser.step(owned(&mut towers.item.params), &work.grads.item, dense_rate);
            user_optimiser.step(owned(&mut towers.user.params), &work.grads.user, dense_rate);
            if config.learn_scale {
                let mut log_scale = [work.log_scale];
                scale_optimiser.step(&mut log_scale, &[work.grads.log_scale], dense_rate);
                work.log_scale = log_scale[0].clamp(0.0, 4.6);
            }
            let table_rate = config.table_learning_rate * rate;
            for ((table, optimiser), gradient) in
                towers.tables.iter_mut().zip(&mut tables).zip(&mut work.grads.tables)
            {
                optimiser.step(owned(&mut table.values), gradient, table_rate);
            }
            step += 1;
            if index % 32 == 31 || index + 1 == plan.len() {
                observer.progress(&Progress {
                    epoch,
                    step,
                    steps_an_epoch,
                    loss: loss / weight,
                    samples_per_s: samples as f64 / started.elapsed().as_secs_f64(),
                });
            }
        }
        towers.version = towers.fingerprint();
        let Some(metric) = observer.judge(epoch, towers) else { continue };
        if best.as_ref().is_none_or(|(found, _)| metric > *found) {
            best = Some((metric, towers.clone()));
            epochs_since_best = 0;
        } else {
            epochs_since_best += 1;
            if epochs_since_best > config.patience_epochs {
                break;
            }
        }
    }
    if let Some((_, found)) = best {
        *towers = found;
    }
    Ok(())
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

/// Fresh towers: id rows by frequency, He-initialised layers, small random rows.
fn initial(data: &Data, config: &Config, rng: &mut StdRng) -> Result<Towers, Error> {
    let (id_row, id_rows) = assign_id_rows(data, config);
    let shape = Shape {
        dim: config.dim,
        id_dim: config.id_dim,
        code_dim_max: config.code_dim_max,
        hidden: config.hidden.clone(),
        history_max: config.history_max,
        pool_half_lives_events: config.pool_half_lives_events.clone(),
        separate_history_tables: config.separate_history_tables,
        items: data.items as u32,
        id_rows,
        item_codes: data.item_code_cardinalities.to_vec(),
        user_codes: data.user_code_cardinalities.to_vec(),
        item_dense: data.item_dense as u32,
        user_dense: data.user_dense as u32,
    };
    let layout = shape.layout();
    let mut normal = |deviation: f32| {
        let z: f32 = StandardNormal.sample(rng);
        z * deviation
    };
    let tables = layout
        .tables
        .iter()
        .map(|&(rows, dim)| Table {
            dim,
            values: (0..rows * dim).map(|_| normal(0.1)).collect::<Vec<f32>>().into(),
        })
        .collect();
    let mut network = |input: usize| {
        let sizes = shape.sizes(input);
        let mut params = Vec::with_capacity(Mlp::param_count(&sizes));
        for pair in sizes.windows(2) {
            let deviation = (2.0 / pair[0] as f32).sqrt();
            params.extend((0..pair[0] * pair[1]).map(|_| normal(deviation)));
            params.extend(std::iter::repeat_n(0.0, pair[1]));
        }
        Mlp { sizes, params: params.into() }
    };
    let (item, user) = (network(layout.item_input), network(layout.user_input));
    let code_rows = |(at, &code): (usize, &u32)| {
        let column = at % shape.item_codes.len();
        Towers::code_row(code, shape.item_codes[column]) as u16
    };
    let item_code_row: Vec<u16> = data.item_codes.iter().enumerate().map(code_rows).collect();
    let all_dense = data.snapshots.iter().flat_map(|values| values.iter());
    Ok(Towers {
        item,
        user,
        item_standard: standard(all_dense, data.item_dense),
        user_standard: standard(data.row_dense.iter(), data.user_dense),
        id_row: id_row.into(),
        item_code_row: item_code_row.into(),
        version: String::new(),
        tables,
        layout,
        shape,
    })
}

/// Items seen at least `id_min_count` times in the rows' events, the most frequent first, get a
/// row of their own as long as there are rows.
fn assign_id_rows(data: &Data, config: &Config) -> (Vec<u32>, u32) {
    let mut count = vec![0u32; data.items];
    for row in data.rows {
        for item in &data.event_items[row.begin as usize..row.end as usize] {
            count[item.row()] += 1;
        }
    }
    let mut order: Vec<u32> = (0..data.items as u32).collect();
    order.retain(|&item| count[item as usize] >= config.id_min_count.max(1));
    order.sort_by_key(|&item| (std::cmp::Reverse(count[item as usize]), item));
    order.truncate(config.id_rows_max.saturating_sub(1) as usize);
    let mut id_row = vec![0; data.items];
    for (row, &item) in order.iter().enumerate() {
        id_row[item as usize] = row as u32 + 1;
    }
    (id_row, order.len() as u32 + 1)
}

fn standard<'a>(values: impl Iterator<Item = &'a f32>, width: usize) -> Standard {
    let mut sums = vec![(0.0f64, 0.0f64, 0.0f64); width];
    for (at, &raw) in values.enumerate() {
        let value = f64::from(signed_log(raw));
        if value.is_finite() {
            let sum = &mut sums[at % width];
            *sum = (sum.0 + 1.0, sum.1 + value, sum.2 + value * value);
        }
    }
    let mean = |&(n, sum, _): &(f64, f64, f64)| if n > 0.0 { (sum / n) as f32 } else { 0.0 };
    let inverse = |&(n, sum, squares): &(f64, f64, f64)| {
        let variance = if n > 0.0 { squares / n - (sum / n) * (sum / n) } else { 0.0 };
        if variance > 1e-12 { (1.0 / variance.sqrt()) as f32 } else { 1.0 }
    };
    Standard {
        mean: sums.iter().map(mean).collect::<Vec<_>>().into(),
        inverse: sums.iter().map(inverse).collect::<Vec<_>>().into(),
    }
}

fn check_config(config: &Config) -> Result<(), Error> {
    let refuse = |key, found: String, rule| Err(Error::Config { key, found, rule });
    if config.dim == 0 || config.dim % 32 != 0 || config.dim > 1024 {
        return refuse("dim", config.dim.to_string(), "a multiple of 32 up to 1024");
    }
    if config.id_dim == 0 || config.id_dim > 1024 {
        return refuse("id_dim", config.id_dim.to_string(), "between 1 and 1024");
    }
    if config.hidden.iter().any(|&width| width == 0 || width > 8192) {
        return refuse("hidden", format!("{:?}", config.hidden), "widths between 1 and 8192");
    }
    if config.history_max == 0 || config.history_max > 10_000 {
        return refuse("history_max", config.history_max.to_string(), "between 1 and 10000");
    }
    let lives = &config.pool_half_lives_events;
    if lives.is_empty() || lives.len() > 8 || lives.iter().any(|&life| !(life > 0.0)) {
        let rule = "one to eight numbers above 0 (inf counts all events alike)";
        return refuse("pool_half_lives_events", format!("{lives:?}"), rule);
    }
    if config.batch_rows < 2 {
        return refuse("batch_rows", config.batch_rows.to_string(), "at least 2");
    }
    if !(config.scale > 0.0 && config.scale <= 100.0) {
        return refuse("scale", config.scale.to_string(), "above 0, at most 100");
    }
    if !(0.0..1.0).contains(&config.id_dropout) {
        return refuse("id_dropout", config.id_dropout.to_string(), "in [0, 1)");
    }
    if !(config.half_life_days > 0.0) {
        return refuse("half_life_days", config.half_life_days.to_string(), "above 0 (inf: off)");
    }
    Ok(())
}

impl Data<'_> {
    fn check(&self) -> Result<(), Error> {
        let users = self.user_offsets.len().saturating_sub(1);
        let events = self.event_items.len();
        let item_codes = self.items * self.item_code_cardinalities.len();
        let last = self.user_offsets.last().map_or(0, |&last| last as usize);
        let user_codes = users * self.user_code_cardinalities.len();
        let row_dense = self.rows.len() * self.user_dense;
        for (what, found, expected) in [
            ("item_codes", self.item_codes.len(), item_codes),
            ("user_codes", self.user_codes.len(), user_codes),
            ("event_weights", self.event_weights.len(), events),
            ("user_offsets (last)", last, events),
            ("row_dense", self.row_dense.len(), row_dense),
        ] {
            if found != expected {
                return Err(Error::Data { what, found, expected });
            }
        }
        for snapshot in self.snapshots {
            let expected = self.items * self.item_dense;
            if snapshot.len() != expected {
                return Err(Error::Data { what: "a snapshot", found: snapshot.len(), expected });
            }
        }
        let range = |what, found: u64, limit: u64| {
            if found < limit { Ok(()) } else { Err(Error::DataRange { what, found, limit }) }
        };
        for &cardinality in self.item_code_cardinalities {
            range("codes of an item column", cardinality.into(), u16::MAX.into())?;
        }
        for item in self.event_items {
            range("item", item.0.into(), self.items as u64)?;
        }
        for row in self.rows {
            range("user", row.user.into(), users as u64)?;
            range("snapshot", row.snapshot.into(), self.snapshots.len() as u64)?;
            range("begin of a row", row.begin.into(), u64::from(row.end).max(1))?;
            range("end of a row", row.end.into(), u64::from(self.user_offsets[row.user as usize + 1]) + 1)?;
            range("user's first event", self.user_offsets[row.user as usize].into(), u64::from(row.begin) + 1)?;
        }
        Ok(())
    }
}

/// Encodes every item with the dense features of one snapshot; `items x dim`.
pub fn encode_all(towers: &Towers, codes: &[u32], dense: &[f32]) -> Vec<f32> {
    let (columns, width) = (towers.shape.item_codes.len(), towers.shape.item_dense as usize);
    let mut scratch: Scratch = towers.scratch();
    let mut out = vec![0.0; towers.shape.items as usize * towers.dim()];
    for (item, vector) in out.chunks_exact_mut(towers.dim()).enumerate() {
        let input = super::ItemInput {
            item: ItemIdx(item as u32),
            codes: &codes[item * columns..(item + 1) * columns],
            dense: &dense[item * width..(item + 1) * width],
        };
        towers.encode_item(&input, &mut scratch, vector);
    }
    out
}
