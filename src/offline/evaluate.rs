//! Step `evaluate`: the towers and the ranker on days that taught neither.
//!
//! Towers: recall over all items against popularity, recent popularity and the user's own
//! repeats, for all items and for items new to the user. Ranker: AUC, NDCG@10 and log loss over
//! the candidates of later requests, against retrieval's order, popularity and the bundle that
//! serves now. Every figure has a 95 % interval from resampled users or requests.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::as_of::AsOf;
use super::examples::{self, Group, Kind, Models, Source};
use super::load::Loaded;
use super::metrics::{self, Bootstrap, Estimate};
use super::progress;
use super::recall::{self, Scope, TowerQuery};
use crate::bundle::TowerUser;
use crate::features::Plan;
use crate::forest::{Forest, Matrix};
use crate::types::DAY_MS;

/// Section `[offline.evaluate]`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Recall is given at these.
    pub recall_at: Vec<usize>,
    /// At most so many users measure recall.
    pub users_max: usize,
    /// Days of the test window whose requests measure the ranker; towers are measured on all.
    pub ranker_days: u32,
    /// At most so many requests a day measure the ranker where there are no impressions.
    pub requests_per_day_max: usize,
    /// Length of the recent popularity baseline.
    pub recent_days: i64,
    pub bootstrap_samples: usize,
    pub seed: u64,
}

/// What is evaluated.
pub struct Subject<'a> {
    pub models: Models<'a>,
    /// `items x dim`.
    pub vectors: &'a [f32],
    pub ranker: &'a Forest,
}

/// `report.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// By system, scope and k: `towers/new-to-user/recall@500`.
    pub towers: BTreeMap<String, Estimate>,
    /// By system and metric: `ranker/ndcg@10`.
    pub ranker: BTreeMap<String, Estimate>,
    /// Differences on the same users or requests: `ranker - retrieval/ndcg@10`.
    pub differences: BTreeMap<String, Estimate>,
    pub users: usize,
    pub requests: usize,
    /// Rows behind the ranker's figures.
    pub rows: usize,
}

/// Measures everything. `previous` is the serving ranker, when it reads the same columns and codes.
pub fn run(
    source: &Source,
    subject: &Subject,
    previous: Option<&Forest>,
    test: &Range<i64>,
    config: &Config,
) -> Result<Report> {
    let mut report = Report::default();
    let as_of = source.day(test.start)?;
    measure_towers(source.loaded, &as_of, subject, test, config, &mut report)?;
    drop(as_of);
    measure_ranker(source, subject, previous, test, config, &mut report)?;
    Ok(report)
}

fn bootstrap(config: &Config) -> Bootstrap {
    Bootstrap { resamples: config.bootstrap_samples, seed: config.seed }
}

fn measure_towers(
    loaded: &Loaded,
    as_of: &AsOf,
    subject: &Subject,
    test: &Range<i64>,
    config: &Config,
    report: &mut Report,
) -> Result<()> {
    let window = [test.start, test.end];
    let users = recall::users_with(loaded, window, config.users_max);
    report.users = users.len();
    let ks = &config.recall_at;
    let popular = recall::popularity(loaded, [i64::MIN, test.start]);
    let recent_ms = test.start - config.recent_days * DAY_MS;
    let recent = recall::popularity(loaded, [recent_ms, test.start]);
    let models = &subject.models;
    let tower_user = TowerUser::new(models.tower_inputs, as_of.users.columns())?;
    let mut query = TowerQuery::new(loaded, as_of, models.towers, &tower_user);
    let bar = progress::bar("recall", 8);
    for (scope, scope_name) in [(Scope::All, "all"), (Scope::NewToUser, "new-to-user")] {
        let measure = |score: &mut dyn FnMut(u32, &mut [f32])| {
            let by_user = recall::measure(loaded, window, &users, scope, ks, score);
            bar.inc(1);
            by_user
        };
        let recent_name = format!("popularity-{}d", config.recent_days);
        let systems: [(&str, Vec<Vec<Option<f64>>>); 4] = [
            ("towers", measure(&mut |user, out| query.scores(user, subject.vectors, out))),
            ("popularity", measure(&mut |_, out| out.copy_from_slice(&popular))),
            (&recent_name, measure(&mut |_, out| out.copy_from_slice(&recent))),
            (
                "repeats",
                measure(&mut |user, out| {
                    recall::repeats(loaded, user, test.start, out);
                }),
            ),
        ];
        for (at, k) in ks.iter().enumerate() {
            let column = |by_user: &[Vec<Option<f64>>]| {
                metrics::by_group(by_user.iter().map(|user| user[at]))
            };
            let towers = column(&systems[0].1);
            for (name, by_user) in &systems {
                let values = column(by_user);
                let key = format!("{name}/{scope_name}/recall@{k}");
                if let Some(estimate) = metrics::estimate(&values, bootstrap(config)) {
                    report.towers.insert(key.clone(), estimate);
                }
                if *name != "towers" {
                    let gain = metrics::paired_difference(&towers, &values, bootstrap(config));
                    if let Some(gain) = gain {
                        report.differences.insert(format!("towers - {key}"), gain);
                    }
                }
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
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
    users: Vec<u32>,
    sizes: Vec<usize>,
}

fn measure_ranker(
    source: &Source,
    subject: &Subject,
    previous: Option<&Forest>,
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
    let popularity = recall::popularity(loaded, [recent_ms, test.start]);
    let days: Vec<i64> = window.step_by(DAY_MS as usize).collect();
    let bar = progress::bar("test requests", days.len() as u64);
    for day_ms in days {
        let as_of = source.day(day_ms)?;
        let groups = examples::groups_of_day(loaded, &subject.models, &as_of, kind, impression)?;
        let groups = match kind {
            Kind::Impressions => groups,
            Kind::Retrieval => {
                let step = groups.len().div_ceil(config.requests_per_day_max.max(1)).max(1);
                groups.into_iter().step_by(step).filter(|g| g.labels.contains(&1.0)).collect()
            }
        };
        score_day(loaded, subject, previous, &as_of, &groups, &popularity, &mut scored)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    summarise(scored, kind, previous.is_some(), config, report);
    Ok(())
}

fn score_day(
    loaded: &Loaded,
    subject: &Subject,
    previous: Option<&Forest>,
    as_of: &AsOf,
    groups: &[Group],
    popularity: &[f32],
    scored: &mut Scored,
) -> Result<()> {
    let plan = Plan::new(subject.models.schema, &as_of.users, &as_of.items)?;
    let score = |group: &Group| {
        let (constants, columns) = examples::columns_of(loaded, &plan, as_of, group);
        let rows = group.candidates.len();
        let matrix = Matrix::new(&constants, &columns, rows);
        let raw = |forest: &Forest| {
            let mut raw = vec![0.0; rows];
            forest.score(&matrix, &mut raw);
            raw
        };
        (raw(subject.ranker), previous.map(raw))
    };
    let results: Vec<_> = groups.par_iter().map(score).collect();
    for (group, (raw, previous)) in groups.iter().zip(results) {
        scored.labels.extend(&group.labels);
        scored.probability.extend(raw.iter().map(|&raw| subject.ranker.probability(raw)));
        scored.ranker.extend(raw);
        scored.previous.extend(previous.into_iter().flatten());
        scored.retrieval.extend(group.candidates.iter().map(|c| f64::from(c.similarity)));
        let count = |c: &crate::features::Candidate| f64::from(popularity[c.item.row()]);
        scored.popularity.extend(group.candidates.iter().map(count));
        scored.users.push(group.user);
        scored.sizes.push(group.candidates.len());
    }
    Ok(())
}

/// Metric groups: a request, or, where each impression is a request of its own, a user.
fn metric_groups(scored: &mut Scored, kind: Kind) -> Vec<Range<usize>> {
    let ends = scored.sizes.iter().scan(0, |end, &size| {
        *end += size;
        Some(*end - size..*end)
    });
    let requests: Vec<Range<usize>> = ends.collect();
    if kind == Kind::Retrieval {
        return requests;
    }
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|&at| scored.users[at]);
    let rows: Vec<usize> = order.iter().flat_map(|&at| requests[at].clone()).collect();
    let pick = |values: &mut Vec<f64>| {
        if !values.is_empty() {
            *values = rows.iter().map(|&row| values[row]).collect();
        }
    };
    pick(&mut scored.ranker);
    pick(&mut scored.probability);
    pick(&mut scored.previous);
    pick(&mut scored.retrieval);
    pick(&mut scored.popularity);
    scored.labels = rows.iter().map(|&row| scored.labels[row]).collect();
    let mut groups: Vec<Range<usize>> = Vec::new();
    let (mut at, mut user) = (0, None);
    for request in order {
        let end = at + scored.sizes[request];
        match groups.last_mut().filter(|_| user == Some(scored.users[request])) {
            Some(group) => group.end = end,
            None => groups.push(at..end),
        }
        (at, user) = (end, Some(scored.users[request]));
    }
    groups
}

fn summarise(mut scored: Scored, kind: Kind, previous: bool, config: &Config, report: &mut Report) {
    let groups = metric_groups(&mut scored, kind);
    report.requests = scored.sizes.len();
    report.rows = scored.labels.len();
    let labels = &scored.labels;
    let ndcg = |scores: &[f64]| metrics::ndcg_by_group(labels, scores, &groups, 10);
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
        let gauc = metrics::auc_by_group(labels, scores, &groups);
        let values = [
            ("auc", metrics::auc_estimate(labels, scores, &groups, bootstrap(config))),
            ("gauc", metrics::estimate(&gauc, bootstrap(config))),
            ("ndcg@10", metrics::estimate(&theirs, bootstrap(config))),
        ];
        for (metric, estimate) in values {
            if let Some(estimate) = estimate {
                report.ranker.insert(format!("{name}/{metric}"), estimate);
            }
        }
        if name != "ranker"
            && let Some(gain) = metrics::paired_difference(&ours, &theirs, bootstrap(config))
        {
            report.differences.insert(format!("ranker - {name}/ndcg@10"), gain);
        }
    }
    let loss = metrics::log_loss_by_group(labels, &scored.probability, &groups);
    if let Some(estimate) = metrics::estimate(&loss, bootstrap(config)) {
        report.ranker.insert("ranker/logloss".into(), estimate);
    }
}

impl Report {
    /// The report as a table for a person; the differences stand in the file.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} users, {} requests, {} rows; mean [95 % interval]",
            self.users, self.requests, self.rows
        )];
        for (title, table) in [("recall", &self.towers), ("ranking", &self.ranker)] {
            let mut by_system: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for (name, Estimate { mean, lo, hi }) in table {
                let (system, metric) = name.rsplit_once('/').unwrap_or((name, ""));
                let cell = format!("{metric} {mean:.4} [{lo:.4}, {hi:.4}]");
                by_system.entry(system).or_default().push(format!("{cell:<36}"));
            }
            lines.push(format!("-- {title}"));
            lines.extend(by_system.iter().map(|(name, cells)| {
                format!("{name:<28} {}", cells.concat()).trim_end().to_owned()
            }));
        }
        lines
    }
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
            users: vec![8, 3, 8],
            sizes: vec![1, 1, 1],
            ..Scored::default()
        };
        let groups = metric_groups(&mut scored, Kind::Impressions);
        assert_eq!(groups, [0..1, 1..3]);
        assert_eq!(scored.ranker, [0.2, 0.1, 0.3]);
        assert_eq!(scored.labels, [0.0, 1.0, 0.0]);
        assert_eq!(scored.popularity, [6.0, 5.0, 7.0]);
    }

    #[test]
    fn requests_of_retrieval_are_groups_of_their_own() {
        let mut scored = Scored { sizes: vec![2, 3], users: vec![1, 1], ..Scored::default() };
        assert_eq!(metric_groups(&mut scored, Kind::Retrieval), [0..2, 2..5]);
    }
}
