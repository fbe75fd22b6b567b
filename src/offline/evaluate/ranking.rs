//! The ranker over the candidates of later requests, beside retrieval's order, popularity and the
//! bundle that serves; by slice; what its features give away alone, and what it makes of them.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::super::aggregates;
use super::super::as_of::AsOf;
use super::super::examples::{self, Group, Horizon, Kind, Source};
use super::super::metrics::{self, Estimate};
use super::super::{progress, recall};
use super::reliability;
use super::rival::{self, Rival};
use super::slices::{Mask, Slices};
use super::{Config, Report, Subject, bootstrap};
use crate::features::Plan;
use crate::forest::Matrix;
use crate::types::DAY_MS;

/// Rows whose features are looked at one by one.
const SAMPLE_ROWS_MAX: usize = 60_000;
/// Rows of the sample whose scores are explained.
const EXPLAINED_ROWS_MAX: usize = 400;
/// Features that the report lists.
const LISTED_MAX: usize = 30;
/// A slice of fewer rows than this says nothing.
const SLICE_ROWS_MIN: usize = 50;

/// What the model makes of a feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weight {
    pub feature: String,
    /// Share of the total gain of the splits.
    pub gain: f64,
    /// Mean absolute contribution to the raw score (SHAP; Lundberg et al. 2020), where the model
    /// says how many rows its nodes had.
    pub contribution: Option<f64>,
    /// From -1 to 1: whether larger values raise the score (correlation of value and contribution).
    pub direction: Option<f64>,
}

/// A part of the rows by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    pub name: String,
    pub rows: usize,
    pub successes: usize,
    /// `ranker/auc`, `ranker/ndcg@10`, `ranker/predicted over observed`, `ranker - previous/ndcg@10`.
    pub figures: BTreeMap<String, Estimate>,
}

/// Scores of every system over the same rows.
#[derive(Default)]
struct Scored {
    labels: Vec<f32>,
    ranker: Vec<f64>,
    probability: Vec<f64>,
    previous: Vec<f64>,
    retrieval: Vec<f64>,
    popularity: Vec<f64>,
    masks: Vec<Mask>,
    users: Vec<u32>,
    sizes: Vec<usize>,
    /// Feature rows and labels of some requests.
    sample: Vec<f32>,
    sample_labels: Vec<f32>,
}

/// What a day's scoring reads.
struct Test<'a> {
    source: &'a Source<'a>,
    subject: &'a Subject<'a>,
    previous: Option<&'a Rival>,
    popularity: Vec<f32>,
    slices: Slices,
    days: usize,
}

/// Measures the ranker into `report`.
pub fn measure(
    source: &Source,
    subject: &Subject,
    previous: Option<&Rival>,
    test: &Range<i64>,
    config: &Config,
    report: &mut Report,
) -> Result<()> {
    let Source { loaded, impression, .. } = *source;
    let end = test.end.min(test.start + i64::from(config.ranker_days) * DAY_MS);
    let window = test.start..end;
    let kind = Kind::of(loaded, impression, [window.start, window.end]);
    let mut scored = Scored::default();
    let recent_ms = test.start - config.recent_days * DAY_MS;
    let days: Vec<i64> = window.step_by(DAY_MS as usize).collect();
    let names = subject.models.schema.context_names();
    let work = Test {
        source,
        subject,
        previous,
        popularity: recall::popularity(loaded, [recent_ms, test.start]),
        slices: Slices::new(loaded, &source.layout.dictionaries, names, test.start),
        days: days.len(),
    };
    let bar = progress::bar("test requests", days.len() as u64);
    for day_ms in days {
        let as_of = source.day(day_ms)?;
        let groups =
            examples::groups_of_day(source, &subject.models, &as_of, kind, Horizon::MOMENT)?;
        let groups = match kind {
            Kind::Impressions => groups,
            Kind::Retrieval => {
                let step = groups.len().div_ceil(config.requests_per_day_max.max(1)).max(1);
                groups.into_iter().step_by(step).filter(|g| g.labels.contains(&1.0)).collect()
            }
        };
        work.score_day(&as_of, &groups, &mut scored)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    report.weights = weights(subject, &scored);
    report.alone = alone(subject, &scored);
    let scores = [&scored.ranker, &scored.previous, &scored.retrieval].into_iter();
    if scores.flatten().any(|score| !score.is_finite()) {
        report.faults.push("the ranker's scores of the test rows are not all finite".into());
        return Ok(());
    }
    summarise(scored, kind, previous.is_some(), &work.slices.names, config, report);
    Ok(())
}

impl Test<'_> {
    fn score_day(&self, as_of: &AsOf, groups: &[Group], scored: &mut Scored) -> Result<()> {
        let loaded = self.source.loaded;
        let plan = Plan::new(self.subject.models.schema, &as_of.users, &as_of.items)?;
        let names = self.subject.models.schema.context_names();
        let codes = &self.source.layout.dictionaries;
        let tables = aggregates::day_dir(self.source.features, as_of.time_ms);
        let rival = match self.previous {
            Some(rival) => Some(rival.day(&tables, as_of.time_ms, loaded)?),
            None => None,
        };
        let rows: usize = groups.iter().map(|group| group.candidates.len()).sum();
        let step = (rows * self.days).div_ceil(SAMPLE_ROWS_MAX).max(1);
        let score = |(number, group): (usize, &Group)| {
            let (constants, columns) = examples::columns_of(loaded, &plan, as_of, group);
            let rows = group.candidates.len();
            let mut raw = vec![0.0; rows];
            self.subject.ranker.score(&Matrix::new(&constants, &columns, rows), &mut raw);
            let rival: Option<&rival::Day> = rival.as_ref();
            let previous = rival.map(|rival| rival.scores(loaded, group, &names, codes));
            let before = loaded.data.before(group.user, group.time_ms);
            let successes = before.iter().filter(|e| e.positive).count();
            let masks = self.slices.masks(group, as_of, successes);
            let sample =
                if number % step == 0 { by_row(&constants, &columns, rows) } else { vec![] };
            (raw, previous, masks, sample)
        };
        let results: Vec<_> = groups.par_iter().enumerate().map(score).collect();
        for (group, (raw, previous, masks, sample)) in groups.iter().zip(results) {
            let probability = |&raw: &f64| self.subject.ranker.probability(raw);
            scored.labels.extend(&group.labels);
            scored.probability.extend(raw.iter().map(probability));
            scored.ranker.extend(raw);
            scored.previous.extend(previous.into_iter().flatten());
            scored.retrieval.extend(group.candidates.iter().map(|c| f64::from(c.similarity)));
            let count = |c: &crate::features::Candidate| f64::from(self.popularity[c.item.row()]);
            scored.popularity.extend(group.candidates.iter().map(count));
            scored.masks.extend(masks);
            scored.users.push(group.user);
            scored.sizes.push(group.candidates.len());
            if !sample.is_empty() {
                scored.sample.extend(sample);
                scored.sample_labels.extend(&group.labels);
            }
        }
        Ok(())
    }
}

fn by_row(constants: &[f32], columns: &[f32], rows: usize) -> Vec<f32> {
    let varying = columns.len() / rows.max(1);
    let mut out = Vec::with_capacity(rows * (constants.len() + varying));
    for row in 0..rows {
        out.extend_from_slice(constants);
        out.extend((0..varying).map(|column| columns[column * rows + row]));
    }
    out
}

/// AUC of each feature alone, as a score or turned round, highest first. One that nearly orders the
/// rows by itself knows the answer.
fn alone(subject: &Subject, scored: &Scored) -> Vec<(String, f64)> {
    let features = subject.models.schema.features();
    let width = features.len();
    let auc = |at: usize| {
        let value = |row: usize| {
            let value = f64::from(scored.sample[row * width + at]);
            if value.is_nan() { f64::NEG_INFINITY } else { value }
        };
        let values: Vec<f64> = (0..scored.sample_labels.len()).map(value).collect();
        let auc = metrics::auc(&scored.sample_labels, &values)?;
        Some((features[at].name.clone(), auc.max(1.0 - auc)))
    };
    let mut all: Vec<_> = (0..width).into_par_iter().filter_map(auc).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    all.truncate(LISTED_MAX);
    all
}

/// What the model makes of its features, by mean contribution, then by gain.
fn weights(subject: &Subject, scored: &Scored) -> Vec<Weight> {
    let importance = subject.ranker.importance();
    let gain: f64 = importance.iter().map(|i| i.gain).sum();
    let width = importance.len();
    let rows = scored.sample.len() / width.max(1);
    let step = rows.div_ceil(EXPLAINED_ROWS_MAX).max(1);
    let chosen: Vec<&[f32]> = scored.sample.chunks_exact(width.max(1)).step_by(step).collect();
    let explain = |row: &&[f32]| subject.ranker.contributions(row);
    let explained: Option<Vec<Vec<f64>>> = chosen.par_iter().map(explain).collect();
    let explained = explained.filter(|rows| !rows.is_empty());
    let weight = |(at, importance): (usize, crate::forest::Importance)| {
        let column = explained.as_ref().map(|rows| rows.iter().map(|row| row[at]));
        let contribution =
            column.clone().map(|c| c.map(f64::abs).sum::<f64>() / chosen.len() as f64);
        let pairs = column.map(|contributions| {
            let values = chosen.iter().map(|row| f64::from(row[at]));
            values.zip(contributions).filter(|(value, _)| value.is_finite()).collect::<Vec<_>>()
        });
        Weight {
            feature: importance.feature,
            gain: importance.gain / gain.max(1e-300),
            contribution,
            direction: pairs.and_then(|pairs| correlation(&pairs)),
        }
    };
    let mut all: Vec<Weight> = importance.into_iter().enumerate().map(weight).collect();
    let key = |w: &Weight| (w.contribution.unwrap_or(0.0), w.gain);
    all.sort_by(|a, b| key(b).0.total_cmp(&key(a).0).then(key(b).1.total_cmp(&key(a).1)));
    all.truncate(LISTED_MAX);
    all
}

/// Pearson's correlation; none without two different values of each.
fn correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let n = pairs.len() as f64;
    let (x, y) = pairs.iter().fold((0.0, 0.0), |(x, y), pair| (x + pair.0, y + pair.1));
    let (x, y) = (x / n, y / n);
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (a, b) in pairs {
        xx += (a - x) * (a - x);
        yy += (b - y) * (b - y);
        xy += (a - x) * (b - y);
    }
    (xx > 0.0 && yy > 0.0).then(|| xy / (xx * yy).sqrt())
}

/// Ranges of the sorted rows.
struct Grouped {
    /// A request, or, where each impression is a request of its own, a user.
    requests: Vec<Range<usize>>,
    users: Vec<Range<usize>>,
}

/// Sorts the rows by user, requests in their order.
fn group(scored: &mut Scored, kind: Kind) -> Grouped {
    let ends = scored.sizes.iter().scan(0, |end, &size| {
        *end += size;
        Some(*end - size..*end)
    });
    let requests: Vec<Range<usize>> = ends.collect();
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|&at| scored.users[at]);
    let rows: Vec<usize> = order.iter().flat_map(|&at| requests[at].clone()).collect();
    pick(&mut scored.labels, &rows);
    pick(&mut scored.masks, &rows);
    let Scored { ranker, probability, previous, retrieval, popularity, .. } = scored;
    for scores in [ranker, probability, previous, retrieval, popularity] {
        pick(scores, &rows);
    }
    let (mut sorted, mut users): (Vec<Range<usize>>, Vec<Range<usize>>) = (vec![], vec![]);
    let (mut at, mut user) = (0, None);
    for request in order {
        let end = at + scored.sizes[request];
        sorted.push(at..end);
        match users.last_mut().filter(|_| user == Some(scored.users[request])) {
            Some(group) => group.end = end,
            None => users.push(at..end),
        }
        (at, user) = (end, Some(scored.users[request]));
    }
    let requests = if kind == Kind::Retrieval { sorted } else { users.clone() };
    Grouped { requests, users }
}

fn pick<T: Copy>(values: &mut Vec<T>, rows: &[usize]) {
    if !values.is_empty() {
        *values = rows.iter().map(|&row| values[row]).collect();
    }
}

fn summarise(
    mut scored: Scored,
    kind: Kind,
    previous: bool,
    slices: &[String],
    config: &Config,
    report: &mut Report,
) {
    let groups = group(&mut scored, kind);
    report.requests = scored.sizes.len();
    report.rows = scored.labels.len();
    let labels = &scored.labels;
    let ndcg = |scores: &[f64]| metrics::ndcg_by_group(labels, scores, &groups.requests, 10);
    let ours = ndcg(&scored.ranker);
    let mut systems = vec![
        ("ranker", &scored.ranker),
        ("retrieval", &scored.retrieval),
        ("popularity", &scored.popularity),
    ];
    if previous {
        systems.push(("previous", &scored.previous));
    }
    for (name, scores) in systems {
        let theirs = ndcg(scores);
        let gauc = metrics::auc_by_group(labels, scores, &groups.users);
        let values = [
            ("auc", metrics::auc_estimate(labels, scores, &groups.users, bootstrap(config))),
            ("gauc", metrics::estimate(&gauc, bootstrap(config))),
            ("ndcg@10", metrics::estimate(&theirs, bootstrap(config))),
        ];
        for (metric, estimate) in values {
            if let Some(estimate) = estimate {
                report.ranker.insert(format!("{name}/{metric}"), estimate);
            }
        }
        if name == "ranker" {
            continue;
        }
        let gains = [
            ("ndcg@10", metrics::paired_difference(&ours, &theirs, bootstrap(config))),
            (
                "auc",
                metrics::auc_difference(
                    labels,
                    &scored.ranker,
                    scores,
                    &groups.users,
                    bootstrap(config),
                ),
            ),
        ];
        for (metric, gain) in gains {
            if let Some(gain) = gain {
                report.differences.insert(format!("ranker - {name}/{metric}"), gain);
            }
        }
    }
    let found = reliability::table(labels, &scored.probability, &groups.users, bootstrap(config));
    report.reliability = found.unwrap_or_default();
    if !report.reliability.parts.is_empty() {
        let loss = metrics::log_loss_by_group(labels, &scored.probability, &groups.requests);
        if let Some(estimate) = metrics::estimate(&loss, bootstrap(config)) {
            report.ranker.insert("ranker/logloss".into(), estimate);
        }
    }
    let slice = |(bit, name): (usize, &String)| slice(&scored, &groups, bit, name, config);
    report.slices = slices.par_iter().enumerate().filter_map(slice).collect();
}

/// The figures of the rows with a bit. Groups keep their places, so that systems stay paired.
fn slice(
    scored: &Scored,
    groups: &Grouped,
    bit: usize,
    name: &str,
    config: &Config,
) -> Option<Slice> {
    let rows: Vec<usize> =
        (0..scored.labels.len()).filter(|&row| scored.masks[row] >> bit & 1 == 1).collect();
    if rows.len() < SLICE_ROWS_MIN {
        return None;
    }
    let within = |groups: &[Range<usize>]| -> Vec<Range<usize>> {
        let at = |row: usize| rows.partition_point(|&kept| kept < row);
        let cut = groups.iter().map(|group| at(group.start)..at(group.end));
        cut.filter(|group| !group.is_empty()).collect()
    };
    let (requests, users) = (within(&groups.requests), within(&groups.users));
    let take = |values: &[f64]| -> Vec<f64> {
        if values.is_empty() { vec![] } else { rows.iter().map(|&row| values[row]).collect() }
    };
    let labels: Vec<f32> = rows.iter().map(|&row| scored.labels[row]).collect();
    let (ours, theirs) = (take(&scored.ranker), take(&scored.previous));
    let probability = take(&scored.probability);
    let bootstrap = bootstrap(config);
    let ndcg = |scores: &[f64]| metrics::ndcg_by_group(&labels, scores, &requests, 10);
    let gauc = metrics::auc_by_group(&labels, &ours, &users);
    let calibrated = probability.iter().all(|p| (0.0..=1.0).contains(p));
    let found = [
        ("ranker/auc", metrics::auc_estimate(&labels, &ours, &users, bootstrap)),
        ("ranker/gauc", metrics::estimate(&gauc, bootstrap)),
        ("ranker/ndcg@10", metrics::estimate(&ndcg(&ours), bootstrap)),
        (
            "ranker/predicted over observed",
            calibrated
                .then(|| reliability::ratio(&labels, &probability, &users, bootstrap))
                .flatten(),
        ),
        (
            "ranker - previous/ndcg@10",
            (!theirs.is_empty())
                .then(|| metrics::paired_difference(&ndcg(&ours), &ndcg(&theirs), bootstrap))
                .flatten(),
        ),
    ];
    let figures = found.into_iter().filter_map(|(name, f)| Some((name.to_owned(), f?))).collect();
    let successes = labels.iter().filter(|label| **label > 0.0).count();
    Some(Slice { name: name.to_owned(), rows: rows.len(), successes, figures })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impressions_are_grouped_by_user_and_keep_their_scores() {
        let mut scored = Scored {
            labels: vec![1.0, 0.0, 0.0],
            ranker: vec![0.1, 0.2, 0.3],
            probability: vec![0.1, 0.2, 0.3],
            retrieval: vec![1.0, 2.0, 3.0],
            popularity: vec![5.0, 6.0, 7.0],
            masks: vec![1, 2, 4],
            users: vec![8, 3, 8],
            sizes: vec![1, 1, 1],
            ..Scored::default()
        };
        let groups = group(&mut scored, Kind::Impressions);
        assert_eq!((groups.requests, groups.users), (vec![0..1, 1..3], vec![0..1, 1..3]));
        assert_eq!(scored.ranker, [0.2, 0.1, 0.3]);
        assert_eq!(scored.labels, [0.0, 1.0, 0.0]);
        assert_eq!(scored.popularity, [6.0, 5.0, 7.0]);
        assert_eq!(scored.masks, [2, 1, 4]);
    }

    #[test]
    fn requests_of_retrieval_are_groups_of_their_own_within_their_user() {
        let mut scored = Scored {
            labels: vec![0.0; 9],
            sizes: vec![2, 3, 4],
            users: vec![1, 0, 1],
            ..Scored::default()
        };
        let groups = group(&mut scored, Kind::Retrieval);
        assert_eq!(groups.requests, [0..3, 3..5, 5..9]);
        assert_eq!(groups.users, [0..3, 3..9]);
    }

    #[test]
    fn correlation_by_hand() {
        assert_eq!(correlation(&[(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)]), Some(1.0));
        assert_eq!(correlation(&[(1.0, -2.0), (2.0, -4.0)]).map(|r| r.round()), Some(-1.0));
        assert_eq!(correlation(&[(1.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(correlation(&[]), None);
    }
}
