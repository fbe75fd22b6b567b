//! Step `ranker`: LightGBM on the days between the towers' and the test.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::examples::{self, Horizon, Kind, Models, Rows, Source};
use super::progress;
use super::ranker_rows;
use super::reference;
use super::split::Split;
use crate::features::Schema;
use crate::ffi::lightgbm::{self, Dataset, EarlyStop, Params, Table, Target, Trained};
use crate::forest::{Forest, Matrix, Platt};
use crate::types::DAY_MS;

/// Section `[offline.ranker]`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// At most so many trees; early stopping keeps fewer.
    pub rounds_max: u32,
    /// Rounds without a better validation metric after which training ends.
    pub patience_rounds: u32,
    /// What is learnt.
    pub objective: Objective,
    /// What makes probabilities of scores.
    pub calibration: Calibration,
    /// The validation metric that is watched: `auc`, `ndcg@10`, ...
    pub metric: String,
    /// Candidates without a success that are kept of a request whose candidates come from
    /// retrieval.
    pub negatives_per_request: usize,
    /// At most so many requests a day, evenly spread.
    pub requests_per_day_max: usize,
    /// Days after such a request within which what the user takes is its success.
    pub taken_within_days: u32,
    /// Whether the model is trained once more with the validation days too, for as many trees as they chose.
    pub refit: bool,
    /// Whether the rows stay beside the model, as `training.parquet` and `validation.parquet`.
    pub keep_rows: bool,
    pub seed: u32,
    /// Passed to LightGBM as they are.
    pub params: BTreeMap<String, toml::Value>,
}

/// What LightGBM learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// Whether a candidate succeeds: log loss.
    Binary,
    /// The order of the candidates of a request: NDCG (Burges 2010).
    Lambdarank,
}

/// What makes probabilities of scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Calibration {
    /// The scores as they are.
    None,
    /// A line through the log odds, fitted on the validation days.
    Platt,
}

impl Config {
    /// Refuses what LightGBM would only say in the middle of the day, or not at all.
    pub fn check(&self) -> Result<()> {
        for key in ["objective", "metric", "eval_at", "categorical_feature"] {
            ensure!(
                !self.params.contains_key(key),
                "offline.ranker.params.{key}: set offline.ranker.objective and .metric instead; \
                 categories follow from the schema"
            );
        }
        if let Some((name, k)) = self.metric.split_once('@') {
            ensure!(
                k.parse::<u32>().is_ok_and(|k| k > 0) && !name.is_empty(),
                "offline.ranker.metric = \"{}\": give a name like auc or ndcg@10",
                self.metric
            );
        }
        Ok(())
    }
}

/// What training came to; `ranker.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    pub rows: usize,
    pub validation_rows: usize,
    pub positives: usize,
    pub trees: u32,
    /// Whether the model that serves has learnt from the validation days too.
    pub refit: bool,
    pub objective: Objective,
    /// The line that makes probabilities of scores.
    pub calibration: Option<Platt>,
    pub validation: BTreeMap<String, f64>,
    /// Share of the total gain by feature, largest first.
    pub importance: Vec<(String, f64)>,
    /// Successes that retrieval would not have shown: no example has them.
    pub missed_by_retrieval: u64,
}

/// Trains and writes `ranker.txt`, and `reference.json` beside it.
pub fn run(
    source: &Source,
    models: &Models,
    split: &Split,
    config: &Config,
    threads: usize,
    out: &Path,
) -> Result<Summary> {
    // The validation days stop training and make probabilities: nothing of them teaches, and they ask
    // what the evaluation asks.
    let horizon = Horizon {
        within_ms: i64::from(config.taken_within_days) * DAY_MS,
        until_ms: split.validation_ms.start,
    };
    let read = |window, horizon, title| rows(source, models, config, (window, horizon), title);
    let (mut train, missed) = read(&split.ranker_ms, horizon, "ranker rows")?;
    let (mut valid, _) = read(&split.validation_ms, Horizon::MOMENT, "validation rows")?;
    for (rows, window) in [(&train, &split.ranker_ms), (&valid, &split.validation_ms)] {
        ensure!(
            rows.labels.contains(&1.0) && rows.labels.contains(&0.0),
            "{} to {}: {} examples without both outcomes; collect more days",
            crate::types::date_of(window.start),
            crate::types::date_of(window.end),
            rows.labels.len()
        );
    }
    if config.objective == Objective::Lambdarank {
        train.join_single_rows();
        valid.join_single_rows();
    }
    let schema = models.schema;
    let names: Vec<String> = schema.features().iter().map(|f| f.name.clone()).collect();
    if config.keep_rows {
        ranker_rows::write(&out.join("training.parquet"), &train, &names)?;
        ranker_rows::write(&out.join("validation.parquet"), &valid, &names)?;
    }
    let params = params(config, schema, threads);
    let data = Dataset::new(table(&train, schema.len()), target(&train), &names, &params)?;
    let check = data.validation(table(&valid, schema.len()), target(&valid), &params)?;
    let stop = EarlyStop { metric: &config.metric, patience_rounds: config.patience_rounds };
    let trained = boost(&params, &data, Some((&check, stop)), config.rounds_max)?;
    drop((data, check));
    let forest = parse(&trained.model)?;
    // Of rows that the model has not learnt from: so it is not fitted again after a refit.
    let calibration = calibration(&forest, &valid, config)?;
    // How much early stopping had to learn from.
    let (rows, validation_rows) = (train.labels.len(), valid.labels.len());
    let positives = train.labels.iter().filter(|&&label| label == 1.0).count();
    let mut model = trained.model.clone();
    if config.refit {
        let horizon = Horizon { until_ms: split.validation_ms.end, ..horizon };
        let mut newest = match config.taken_within_days {
            0 => valid,
            _ => read(&split.validation_ms, horizon, "ranker rows of the validation days")?.0,
        };
        if config.objective == Objective::Lambdarank {
            newest.join_single_rows();
        }
        train.append(newest);
        let data = Dataset::new(table(&train, schema.len()), target(&train), &names, &params)?;
        model = boost(&params, &data, None, trained.best_round)?.model;
    }
    if let Some(line) = calibration {
        model = line.write_into(&model).context("calibrate the ranker")?;
    }
    let forest = parse(&model)?;
    std::fs::write(out.join(crate::bundle::files::RANKER), model)?;
    reference::write(source, models, &split.validation_ms, &forest, out)?;
    let gain: f64 = forest.importance().iter().map(|i| i.gain).sum();
    let mut importance: Vec<(String, f64)> =
        forest.importance().into_iter().map(|i| (i.feature, i.gain / gain.max(1e-300))).collect();
    importance.sort_by(|a, b| b.1.total_cmp(&a.1));
    let validation = trained
        .metrics
        .iter()
        .filter_map(|name| Some((name.clone(), trained.best(name)?)))
        .collect();
    Ok(Summary {
        rows,
        validation_rows,
        positives,
        trees: trained.best_round,
        refit: config.refit,
        objective: config.objective,
        calibration,
        validation,
        importance,
        missed_by_retrieval: missed,
    })
}

fn params(config: &Config, schema: &Schema, threads: usize) -> Params {
    let categories: Vec<usize> =
        (0..schema.len()).filter(|&at| schema.features()[at].is_category()).collect();
    let mut params = Params::reproducible(config.seed, threads).with_categorical(&categories);
    for (key, value) in &config.params {
        params = params.with(key, value.to_string().trim_matches('"'));
    }
    let objective = match config.objective {
        Objective::Binary => "binary",
        Objective::Lambdarank => "lambdarank",
    };
    params = params.with("objective", objective);
    match config.metric.split_once('@') {
        Some((name, k)) => params.with("metric", name).with("eval_at", k),
        None => params.with("metric", &config.metric),
    }
}

/// Trains at most so many trees, until `watched` gets no better.
fn boost(
    params: &Params,
    data: &Dataset,
    watched: Option<(&Dataset, EarlyStop)>,
    rounds: u32,
) -> Result<Trained> {
    let bar = progress::bar("train ranker", u64::from(rounds));
    let (check, stop) = watched.unzip();
    let trained = lightgbm::train(params, data, check, rounds, stop, |round| {
        bar.set_position(u64::from(round.round));
        if let (Some(name), Some(value)) = (round.metrics.first(), round.values.first()) {
            bar.set_message(format!("{name} {value:.4}"));
        }
    })?;
    bar.finish_and_clear();
    Ok(trained)
}

fn parse(model: &str) -> Result<Forest> {
    Forest::parse(model).context("LightGBM wrote a model that the evaluator refuses")
}

/// Scores of the validation rows as probabilities. A ranking objective promises none by itself, so
/// there nothing is left as it is.
fn calibration(forest: &Forest, valid: &Rows, config: &Config) -> Result<Option<Platt>> {
    if config.calibration == Calibration::None {
        return Ok(None);
    }
    let width = forest.feature_count();
    let score = |row: &[f32]| {
        let mut raw = [0.0];
        forest.score(&Matrix::new(row, &[], 1), &mut raw);
        raw[0]
    };
    let raw: Vec<f64> = valid.values.chunks_exact(width).map(score).collect();
    let line = Platt::fit(&raw, &valid.labels, &valid.weights).context(
        "offline.ranker.calibration = \"platt\": on the validation days higher scores do not go with \
         more successes; see the labels, or set \"none\"",
    )?;
    Ok(Some(line))
}

fn table(rows: &Rows, columns: usize) -> Table<'_> {
    Table { values: &rows.values, rows: rows.labels.len(), columns, layout: lightgbm::Layout::Rows }
}

fn target(rows: &Rows) -> Target<'_> {
    Target { labels: &rows.labels, weights: Some(&rows.weights), groups: Some(&rows.group_rows) }
}

/// The rows of a window, day by day, and how many successes retrieval missed.
fn rows(
    source: &Source,
    models: &Models,
    config: &Config,
    (window, horizon): (&Range<i64>, Horizon),
    title: &'static str,
) -> Result<(Rows, u64)> {
    let Source { loaded, impression, .. } = *source;
    let kind = Kind::of(loaded, impression, [window.start, window.end]);
    let days: Vec<i64> = window.clone().step_by(DAY_MS as usize).collect();
    let bar = progress::bar(title, days.len() as u64);
    let (mut rows, mut missed) = (Rows::default(), 0);
    for day_ms in days {
        let as_of = source.day(day_ms)?;
        let mut groups = examples::groups_of_day(source, models, &as_of, kind, horizon)?;
        missed += groups.iter().map(|g| u64::from(g.missed)).sum::<u64>();
        if kind == Kind::Retrieval {
            let step = groups.len().div_ceil(config.requests_per_day_max.max(1)).max(1);
            groups = groups.into_iter().step_by(step).collect();
            examples::sample_negatives(&mut groups, config.negatives_per_request);
        }
        rows.append(examples::rows_of_day(loaded, models.schema, &as_of, &groups)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((rows, missed))
}
