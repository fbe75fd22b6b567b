//! Step `towers`: trains both towers on the days before the ranker's.
//!
//! Rows are baskets (or clicks) with the history before them; item and user numbers are those of
//! the last snapshot taken before the row, as serving would have read them. The last days are
//! held out: epochs are judged by recall of items new to the user there. With `refit` a second pair, for
//! what is served, learns from all days before the test, as many epochs as the first pair took best.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::as_of::{AsOf, Layout};
use super::load::Loaded;
use super::recall::{self, Scope};
use super::split::Split;
use super::{aggregates, progress};
use crate::bundle::{TowerInputs, TowerUser, code};
use crate::features::{ItemColumn, ItemColumns};
use crate::towers::train::{Data, Observer, Progress, Row, encode_all, rows_of, train};
use crate::towers::{self, Towers};
use crate::types::ItemIdx;

/// Section `[offline.towers]`: what goes in; the networks themselves are `[towers]`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Columns that the towers read.
    pub inputs: TowerInputs,
    /// Days between two snapshots of the numbers that rows read.
    pub snapshot_every_days: i64,
    /// Days of events before the first row, so that its history and numbers are not empty.
    pub warm_up_days: i64,
    /// Days held out to judge epochs.
    pub validation_days: i64,
    /// Recall is judged among so many items.
    pub judge_at: usize,
    /// At most so many users judge an epoch.
    pub judge_users_max: usize,
    /// Whether what serves is a second pair, trained with the held-out and the ranker's days too.
    pub refit: bool,
}

/// The second pair of towers, beside the first (`offline.towers.refit`).
pub const REFIT: &str = "refit.bin";

/// What the towers need of one moment.
struct Snapshot {
    time_ms: i64,
    dense: Vec<f32>,
    users: crate::features::UserTable,
}

/// The time split, and when a snapshot of the numbers counts with the day whose tables it reads.
#[derive(Clone, Copy)]
pub struct Moments<'a> {
    pub split: &'a Split,
    pub snapshots: &'a [(i64, i64)],
}

/// Trains and writes `towers.bin`, and with `refit` a [`REFIT`] beside it.
pub fn run(
    loaded: &Loaded,
    layout: &Layout,
    features: &Path,
    moments: Moments,
    config: &Config,
    model: &towers::Config,
    out: &Path,
) -> Result<()> {
    let Moments { split, snapshots: times } = moments;
    let day_ms = validation_start(split, config);
    let validation = layout.read(&aggregates::day_dir(features, day_ms), day_ms, loaded)?;
    let learn = |until_ms: i64, model: &towers::Config, observer: &mut dyn Observer| {
        // Untimed rows have one snapshot, of no moment.
        let before = times.partition_point(|&(from_ms, _)| from_ms < until_ms).max(1);
        let snapshots = times[..before]
            .iter()
            .map(|&(from_ms, day_ms)| {
                let as_of = layout.read(&aggregates::day_dir(features, day_ms), day_ms, loaded)?;
                let dense = item_dense(&as_of.items, &config.inputs)?;
                Ok(Snapshot { time_ms: from_ms, dense, users: as_of.users })
            })
            .collect::<Result<Vec<_>>>()?;
        let inputs = Inputs::collect(loaded, layout, config, &snapshots, &validation, until_ms)?;
        let dense: Vec<&[f32]> = snapshots.iter().map(|s| s.dense.as_slice()).collect();
        Ok::<_, anyhow::Error>(train(&inputs.data(&dense), model, observer)?)
    };
    let bar = progress::bar("train towers", u64::from(model.epochs_max));
    let mut judge = Judge {
        loaded,
        config,
        validation: &validation,
        split,
        steps: Steps { bar, samples_per_s: 0.0 },
        best: None,
    };
    let towers = learn(day_ms, model, &mut judge)?;
    judge.steps.bar.finish_and_clear();
    towers.save(&out.join(crate::bundle::files::TOWERS))?;
    if config.refit {
        let epochs = judge.best.map_or(model.epochs_max, |(_, epoch)| epoch + 1);
        let model = towers::Config { epochs_max: epochs, ..model.clone() };
        let bar = progress::bar("train towers with the newest days", u64::from(epochs));
        let mut steps = Steps { bar, samples_per_s: 0.0 };
        let towers = learn(split.test_ms.start, &model, &mut steps)?;
        steps.bar.finish_and_clear();
        towers.save(&out.join(REFIT))?;
    }
    Ok(())
}

/// The vectors of all items as of a moment, `items x dim`, in row order.
pub fn item_vectors(
    towers: &Towers,
    inputs: &TowerInputs,
    items: &ItemColumns,
) -> Result<Vec<f32>> {
    let (codes, dense) = (item_codes(items, inputs)?, item_dense(items, inputs)?);
    Ok(encode_all(towers, &codes, &dense))
}

/// Moments from which a snapshot counts, with the day whose tables it reads. `timed` says whether
/// most successes have a time.
pub fn snapshot_times(timed: bool, split: &Split, config: &Config) -> Vec<(i64, i64)> {
    if !timed {
        // Histories without times: their rows have no moment whose numbers they could have read.
        return vec![(i64::MIN, split.towers_ms.start)];
    }
    let every_ms = config.snapshot_every_days * crate::types::DAY_MS;
    let first = split.towers_ms.start + config.warm_up_days * crate::types::DAY_MS;
    let judged = validation_start(split, config);
    let last = if config.refit { split.test_ms.start } else { judged };
    let mut times = Vec::new();
    if first >= judged {
        times.push((split.towers_ms.start, split.towers_ms.start));
    }
    times.extend((0..).map(|n| first + n * every_ms).take_while(|&t| t < last).map(|t| (t, t)));
    times
}

/// The first moment of the held-out days.
pub fn validation_start(split: &Split, config: &Config) -> i64 {
    split.towers_ms.end - config.validation_days * crate::types::DAY_MS
}

/// Arrays that training reads.
struct Inputs {
    item_cardinalities: Vec<u32>,
    user_cardinalities: Vec<u32>,
    item_codes: Vec<u32>,
    user_codes: Vec<u32>,
    event_items: Vec<ItemIdx>,
    event_weights: Vec<f32>,
    offsets: Vec<u32>,
    rows: Vec<Row>,
    row_dense: Vec<f32>,
    user_dense: usize,
    item_dense: usize,
    items: usize,
}

impl Inputs {
    fn collect(
        loaded: &Loaded,
        layout: &Layout,
        config: &Config,
        snapshots: &[Snapshot],
        validation: &AsOf,
        until_ms: i64,
    ) -> Result<Self> {
        let inputs = &config.inputs;
        let cardinality = |name: &String| {
            let dictionary = layout.dictionaries.get(name);
            let dictionary = dictionary.with_context(|| {
                format!("offline.towers.inputs: `{name}` is not a text column; list it as dense")
            });
            dictionary.map(|d| d.len() as u32)
        };
        let (event_items, times, offsets) = positives(loaded);
        let starts: Vec<i64> = snapshots.iter().map(|s| s.time_ms).collect();
        let rows = rows_of(&offsets, Some(&times), starts[0], until_ms, &starts);
        ensure!(
            !rows.is_empty(),
            "no positive event between the warm-up and {}; collect more days or lower \
             offline.towers.warm_up_days",
            crate::types::date_of(until_ms)
        );
        let row_dense = row_dense(inputs, snapshots, &rows)?;
        Ok(Self {
            item_cardinalities: inputs.item_codes.iter().map(cardinality).collect::<Result<_>>()?,
            user_cardinalities: inputs.user_codes.iter().map(cardinality).collect::<Result<_>>()?,
            item_codes: item_codes(&validation.items, inputs)?,
            user_codes: user_codes(loaded, validation, inputs)?,
            event_weights: vec![1.0; event_items.len()],
            event_items,
            offsets,
            rows,
            row_dense,
            user_dense: inputs.user_dense.len(),
            item_dense: inputs.item_dense.len(),
            items: loaded.item_ids.len(),
        })
    }

    fn data<'a>(&'a self, snapshots: &'a [&'a [f32]]) -> Data<'a> {
        Data {
            items: self.items,
            item_code_cardinalities: &self.item_cardinalities,
            item_codes: &self.item_codes,
            user_code_cardinalities: &self.user_cardinalities,
            user_codes: &self.user_codes,
            event_items: &self.event_items,
            event_weights: &self.event_weights,
            user_offsets: &self.offsets,
            rows: &self.rows,
            row_dense: &self.row_dense,
            user_dense: self.user_dense,
            snapshots,
            item_dense: self.item_dense,
        }
    }
}

/// All positives by user, oldest first: items, times, offsets.
fn positives(loaded: &Loaded) -> (Vec<ItemIdx>, Vec<i64>, Vec<u32>) {
    let (mut items, mut times, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
    for user in 0..loaded.data.users.len() as u32 {
        for event in loaded.data.user(user).iter().filter(|e| e.positive) {
            items.push(ItemIdx(event.item));
            times.push(event.time_ms);
        }
        offsets.push(items.len() as u32);
    }
    (items, times, offsets)
}

fn row_dense(inputs: &TowerInputs, snapshots: &[Snapshot], rows: &[Row]) -> Result<Vec<f32>> {
    let mut out = Vec::with_capacity(rows.len() * inputs.user_dense.len());
    let columns = snapshots
        .iter()
        .map(|s| inputs.user_dense.iter().map(|n| user_column(s.users.columns(), n)).collect())
        .collect::<Result<Vec<Vec<usize>>>>()?;
    for row in rows {
        let at = row.snapshot as usize;
        let user = snapshots[at].users.row(row.user);
        out.extend(columns[at].iter().map(|&column| user.value(column)));
    }
    Ok(out)
}

fn user_codes(loaded: &Loaded, as_of: &AsOf, inputs: &TowerInputs) -> Result<Vec<u32>> {
    let names = as_of.users.columns();
    let columns: Vec<usize> =
        inputs.user_codes.iter().map(|n| user_column(names, n)).collect::<Result<_>>()?;
    let users = 0..loaded.data.users.len() as u32;
    let of_user = |user| columns.iter().map(move |&at| code(as_of.users.row(user).value(at)));
    Ok(users.flat_map(of_user).collect())
}

fn user_column(columns: &[String], name: &str) -> Result<usize> {
    let at = columns.iter().position(|column| column == name);
    at.with_context(|| format!("offline.towers.inputs: no user column `{name}`"))
}

fn item_column<'a>(items: &'a ItemColumns, name: &str) -> Result<ItemColumn<'a>> {
    items.get(name).with_context(|| format!("offline.towers.inputs: no item column `{name}`"))
}

/// Codes of the item tower, `items x inputs.item_codes`.
pub fn item_codes(items: &ItemColumns, inputs: &TowerInputs) -> Result<Vec<u32>> {
    let columns: Vec<ItemColumn> =
        inputs.item_codes.iter().map(|n| item_column(items, n)).collect::<Result<_>>()?;
    Ok((0..items.rows()).flat_map(|row| columns.iter().map(move |c| code(c.value(row)))).collect())
}

fn item_dense(items: &ItemColumns, inputs: &TowerInputs) -> Result<Vec<f32>> {
    let columns: Vec<ItemColumn> =
        inputs.item_dense.iter().map(|n| item_column(items, n)).collect::<Result<_>>()?;
    Ok((0..items.rows()).flat_map(|row| columns.iter().map(move |c| c.value(row))).collect())
}

/// Shows where training stands.
struct Steps {
    bar: ProgressBar,
    /// Of the last epoch.
    samples_per_s: f64,
}

impl Observer for Steps {
    fn progress(&mut self, at: &Progress) {
        self.samples_per_s = at.samples_per_s;
        self.bar.set_message(format!(
            "loss {:.4}, {:.0} samples/s, step {}/{}",
            at.loss, at.samples_per_s, at.step, at.steps_an_epoch
        ));
    }

    fn judge(&mut self, _: u32, _: &Towers) -> Option<f64> {
        self.bar.inc(1);
        None
    }
}

/// Judges epochs by recall on the held-out days.
struct Judge<'a> {
    loaded: &'a Loaded,
    config: &'a Config,
    validation: &'a AsOf,
    split: &'a Split,
    steps: Steps,
    /// The best recall and its epoch.
    best: Option<(f64, u32)>,
}

impl Observer for Judge<'_> {
    fn progress(&mut self, at: &Progress) {
        self.steps.progress(at);
    }

    fn judge(&mut self, epoch: u32, towers: &Towers) -> Option<f64> {
        self.steps.judge(epoch, towers);
        let inputs = &self.config.inputs;
        let vectors = item_vectors(towers, inputs, &self.validation.items).ok()?;
        let tower_user = TowerUser::new(inputs, self.validation.users.columns()).ok()?;
        let window = [validation_start(self.split, self.config), self.split.towers_ms.end];
        let mut query = recall::TowerQuery::new(self.loaded, self.validation, towers, &tower_user);
        let users = recall::users_with(self.loaded, window, self.config.judge_users_max);
        let ks = [self.config.judge_at];
        let results =
            recall::measure(self.loaded, window, &users, Scope::NewToUser, &ks, |user, scores| {
                query.scores(user, &vectors, scores)
            });
        let known: Vec<f64> = results.iter().filter_map(|r| r[0]).collect();
        if known.is_empty() {
            return None;
        }
        let mean = known.iter().sum::<f64>() / known.len() as f64;
        let (k, rate) = (ks[0], self.steps.samples_per_s);
        tracing::info!(
            "epoch {epoch}: recall@{k} {mean:.4} on the held-out days, {rate:.0} samples/s"
        );
        if self.best.is_none_or(|(found, _)| mean > found) {
            self.best = Some((mean, epoch));
        }
        Some(mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DAY_MS;

    fn days(refit: bool, warm_up_days: i64) -> Vec<i64> {
        let split = Split {
            towers_ms: 0..4 * DAY_MS,
            ranker_ms: 4 * DAY_MS..6 * DAY_MS,
            validation_ms: 6 * DAY_MS..7 * DAY_MS,
            test_ms: 7 * DAY_MS..8 * DAY_MS,
        };
        let config = Config {
            inputs: TowerInputs::default(),
            snapshot_every_days: 2,
            warm_up_days,
            validation_days: 1,
            judge_at: 500,
            judge_users_max: 10,
            refit,
        };
        snapshot_times(true, &split, &config).iter().map(|&(from_ms, _)| from_ms / DAY_MS).collect()
    }

    #[test]
    fn snapshots_reach_the_held_out_days_and_with_a_second_pair_the_test() {
        assert_eq!(days(false, 1), [1]);
        assert_eq!(days(true, 1), [1, 3, 5]);
        // Nothing is left after the warm-up: the first pair takes the days as they are.
        assert_eq!(days(false, 3), [0]);
        assert_eq!(days(true, 3), [0, 3, 5]);
    }
}
