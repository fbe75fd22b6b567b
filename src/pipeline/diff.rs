//! What two versions answer to the same logged requests, side by side: before anybody sees the new
//! one.
//!
//! Both are asked anew, without caches and deadlines, so what differs is the versions' own doing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;

use super::replay::{Replayer, Rerun};
use super::serving::Serving;
use crate::events::RequestRecord;
use crate::monitor::Dropped;

/// The overlap is of so many items of each answer.
const TOP: usize = 20;
/// Categories that a table for people shows.
const CATEGORIES_SHOWN: usize = 10;

/// The difference.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Diff {
    /// Versions of the two bundles.
    pub old: String,
    pub new: String,
    pub requests: usize,
    /// Answers that are the same items in the same order.
    pub identical: usize,
    /// Share of the old answer's first 20 items that are among the new one's: mean, and the value
    /// below which the worst twentieth and the worse half of the requests are.
    pub overlap_at_20: Spread,
    /// Places that an item which both show moved, up or down.
    pub rank_change: Spread,
    /// New score less old one of an item that both show.
    pub score_shift: Spread,
    /// The first item's score.
    pub first_score: [f64; 2],
    /// Candidates dropped a request, by rule; old and new.
    pub dropped: BTreeMap<&'static str, [f64; 2]>,
    /// Answers with fewer items than asked for.
    pub short: [usize; 2],
    /// Share of the items shown, by what brought them.
    pub sources: BTreeMap<String, [f64; 2]>,
    /// Share of the items shown, by category; old and new.
    pub categories: BTreeMap<String, [f64; 2]>,
    /// Half the sum of the differences of those shares: 0 is the same mix, 1 another one.
    pub category_distance: f64,
}

/// A mean and two quantiles; zero of nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    pub mean: f64,
    pub p05: f64,
    pub median: f64,
    pub p95: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        values.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Self { mean, p05: at(0.05), median: at(0.5), p95: at(0.95) }
    }
}

impl Diff {
    /// By how much more often the new version answers with fewer items than were asked for, as a share
    /// of the requests.
    pub fn shorter(&self) -> f64 {
        let [old, new] = self.short.map(|count| count as f64);
        (new - old) / self.requests.max(1) as f64
    }
}

/// Collects the difference request by request.
#[derive(Default)]
pub struct Comparison {
    diff: Diff,
    overlaps: Vec<f64>,
    moves: Vec<f64>,
    shifts: Vec<f64>,
    firsts: [Vec<f64>; 2],
    dropped: BTreeMap<&'static str, [usize; 2]>,
    sources: BTreeMap<String, [usize; 2]>,
    categories: BTreeMap<String, [usize; 2]>,
}

/// Asks both versions the requests that were logged in full.
pub fn compare(old: &Arc<Serving>, new: &Arc<Serving>, requests: &[RequestRecord]) -> Diff {
    let mut versions = [Replayer::new(old.clone()), Replayer::new(new.clone())];
    let mut comparison = Comparison::default();
    for request in requests {
        let Some(served) = &request.served else { continue };
        let [old, new] = versions.each_mut().map(|version| version.anew(request, served));
        comparison.add(request.num_items as usize, &old, &new);
    }
    comparison.finish(old.version(), new.version())
}

impl Comparison {
    /// Adds what both answer to a request for `wanted` items.
    pub fn add(&mut self, wanted: usize, old: &Rerun, new: &Rerun) {
        self.diff.requests += 1;
        self.diff.identical += usize::from(old.item_ids == new.item_ids);
        let ids = |rerun: &Rerun| -> HashMap<String, usize> {
            rerun.item_ids.iter().cloned().zip(0..).collect()
        };
        let (was, is) = (ids(old), ids(new));
        let top = old.item_ids.len().min(TOP);
        if top > 0 {
            let first = |id: &&String| is.get(*id).is_some_and(|&at| at < TOP);
            let common = old.item_ids[..top].iter().filter(first).count();
            self.overlaps.push(common as f64 / top as f64);
        }
        for (id, &before) in &was {
            let Some(&after) = is.get(id) else { continue };
            self.moves.push(before.abs_diff(after) as f64);
            self.shifts.push(f64::from(new.scores[after]) - f64::from(old.scores[before]));
        }
        for (at, rerun) in [old, new].into_iter().enumerate() {
            self.diff.short[at] += usize::from(rerun.item_ids.len() < wanted);
            self.firsts[at].extend(rerun.scores.first().copied().map(f64::from));
            for rule in Dropped::ALL.iter().map(|rule| rule.name()) {
                let named = rerun.served.dropped.iter().filter(|(_, why)| why == rule);
                self.dropped.entry(rule).or_default()[at] += named.count();
            }
            for source in &rerun.served.sources {
                self.sources.entry(source.clone()).or_default()[at] += 1;
            }
            for category in &rerun.categories {
                let name = category.clone().unwrap_or_else(|| "(none)".to_owned());
                self.categories.entry(name).or_default()[at] += 1;
            }
        }
    }

    /// The whole of it.
    pub fn finish(self, old: &str, new: &str) -> Diff {
        let mut diff = self.diff;
        (diff.old, diff.new) = (old.to_owned(), new.to_owned());
        diff.overlap_at_20 = Spread::of(self.overlaps);
        diff.rank_change = Spread::of(self.moves);
        diff.score_shift = Spread::of(self.shifts);
        diff.first_score = self.firsts.map(|scores| Spread::of(scores).mean);
        let requests = diff.requests.max(1) as f64;
        let a_request = |[old, new]: [usize; 2]| [old as f64 / requests, new as f64 / requests];
        let dropped = self.dropped.into_iter();
        diff.dropped = dropped.map(|(rule, counts)| (rule, a_request(counts))).collect();
        (diff.sources, diff.categories) = (shares(self.sources), shares(self.categories));
        let distances = diff.categories.values().map(|[old, new]| (old - new).abs());
        diff.category_distance = distances.sum::<f64>() / 2.0;
        diff
    }
}

fn shares(counts: BTreeMap<String, [usize; 2]>) -> BTreeMap<String, [f64; 2]> {
    let total = |at: usize| counts.values().map(|count| count[at]).sum::<usize>().max(1) as f64;
    let totals = [total(0), total(1)];
    let share = |count: [usize; 2]| [count[0] as f64 / totals[0], count[1] as f64 / totals[1]];
    counts.into_iter().map(|(name, count)| (name, share(count))).collect()
}

impl Diff {
    /// A table for a person.
    pub fn lines(&self) -> Vec<String> {
        let spread = |name: &str, s: &Spread| {
            format!("{name:<22}{:>10.4}{:>10.4}{:>10.4}{:>10.4}", s.mean, s.p05, s.median, s.p95)
        };
        let pair = |name: &str, [old, new]: [f64; 2]| format!("{name:<22}{old:>10.4}{new:>10.4}");
        let mut lines = vec![
            format!("{} -> {}", self.old, self.new),
            format!("{} requests, {} with the same answer", self.requests, self.identical),
            format!("{:<22}{:>10}{:>10}{:>10}{:>10}", "", "mean", "p05", "median", "p95"),
            spread("overlap at 20", &self.overlap_at_20),
            spread("places moved", &self.rank_change),
            spread("score shift", &self.score_shift),
            format!("{:<22}{:>10}{:>10}", "", "old", "new"),
            pair("first score", self.first_score),
            pair("short answers", self.short.map(|count| count as f64)),
        ];
        lines.extend(
            self.dropped.iter().map(|(rule, both)| pair(&format!("dropped {rule}"), *both)),
        );
        lines.extend(self.sources.iter().map(|(name, both)| pair(&format!("from {name}"), *both)));
        lines.push(format!("mix of categories differs by {:.4}", self.category_distance));
        let mut moved: Vec<_> = self.categories.iter().collect();
        moved.sort_by(|(_, a), (_, b)| (b[1] - b[0]).abs().total_cmp(&(a[1] - a[0]).abs()));
        let shown = moved.into_iter().take(CATEGORIES_SHOWN);
        lines.extend(shown.map(|(name, both)| pair(&format!("  {name}"), *both)));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rerun(ids: &[&str], scores: &[f32]) -> Rerun {
        Rerun {
            item_ids: ids.iter().map(|&id| id.to_owned()).collect(),
            scores: scores.to_vec(),
            categories: ids.iter().map(|id| Some(id[..1].to_owned())).collect(),
            ..Rerun::default()
        }
    }

    #[test]
    fn overlap_moves_shifts_and_mix_are_those_of_the_answers() {
        let mut comparison = Comparison::default();
        let (a, b) = (rerun(&["a1", "b1"], &[0.5, 0.25]), rerun(&["b1", "c1"], &[0.5, 0.125]));
        comparison.add(2, &a, &a);
        comparison.add(3, &a, &b);
        let diff = comparison.finish("old", "new");
        assert_eq!((diff.requests, diff.identical, diff.short), (2, 1, [1, 1]));
        assert_eq!(diff.overlap_at_20.mean, 0.75);
        // Three items are in both: two unmoved, one a place up and 0.25 higher.
        assert_eq!(diff.rank_change.mean, 1.0 / 3.0);
        assert_eq!(diff.score_shift.mean, 0.25 / 3.0);
        assert_eq!(diff.categories["a"], [0.5, 0.25]);
        assert_eq!(diff.categories["c"], [0.0, 0.25]);
        assert_eq!(diff.category_distance, 0.25);
        assert!(diff.lines().iter().any(|line| line.starts_with("overlap at 20")));
    }
}
