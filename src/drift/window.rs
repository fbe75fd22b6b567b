//! What serving sees: counts of the last while, in parts that leave one by one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde::Serialize;

use super::{Counts, Reference, SHIFTED_MIN, STABLE_MAX, psi};

/// A window leaves in so many parts.
const PARTS: usize = 6;

/// One request that was drawn.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Rows of the reference's population, row by row.
    pub rows: &'a [f32],
    /// Their raw scores; NaN for none.
    pub scores: &'a [f64],
    /// Categories of the items returned.
    pub shown: &'a [Option<String>],
}

/// Counts of the last while beside a reference.
pub struct Window {
    reference: Arc<Reference>,
    /// By category shown: its bin.
    categories: HashMap<String, usize>,
    length_ms: i64,
    /// Oldest first.
    parts: VecDeque<Part>,
}

struct Part {
    since_ms: i64,
    /// By feature, then the score, then the categories shown.
    counts: Vec<Counts>,
}

/// What a distance means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Stable,
    Moderate,
    Shifted,
}

/// One variable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    pub psi: f64,
    pub verdict: Verdict,
    pub bins: Vec<Shown>,
}

/// One bin.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    pub bin: String,
    /// Shares of the rows.
    pub training: f64,
    pub serving: f64,
}

/// All variables at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Requests that were drawn.
    pub requests: u64,
    /// Since when, epoch milliseconds.
    pub since_ms: i64,
    /// The furthest first.
    pub features: Vec<Row>,
    pub score: Row,
    /// The mix of categories shown.
    pub categories: Row,
}

impl Verdict {
    /// Of a population stability index.
    pub fn of(psi: f64) -> Self {
        match psi {
            psi if psi > SHIFTED_MIN => Verdict::Shifted,
            psi if psi > STABLE_MAX => Verdict::Moderate,
            _ => Verdict::Stable,
        }
    }
}

impl Window {
    /// Of so many milliseconds.
    pub fn new(reference: Arc<Reference>, length_ms: i64) -> Self {
        let names = reference.categories.iter().cloned().zip(0..).collect();
        Self { reference, categories: names, length_ms: length_ms.max(1), parts: VecDeque::new() }
    }

    /// Adds a request.
    pub fn add(&mut self, sample: &Sample, now_ms: i64) {
        self.forget(now_ms);
        let part_ms = (self.length_ms / PARTS as i64).max(1);
        if self.parts.back().is_none_or(|part| now_ms - part.since_ms >= part_ms) {
            let (reference, since_ms) = (&self.reference, now_ms);
            let of_features = reference.features.iter().map(|f| Counts::new(f.bins.len()));
            let mut counts: Vec<Counts> = of_features.collect();
            counts.push(Counts::new(reference.score.bins.len()));
            counts.push(Counts::new(reference.shown.bins.len()));
            self.parts.push_back(Part { since_ms, counts });
        }
        let Some(part) = self.parts.back_mut() else { return };
        let reference = &self.reference;
        let width = reference.features.len();
        for row in sample.rows.chunks_exact(width) {
            let features = part.counts.iter_mut().zip(&reference.features).zip(row);
            features.for_each(|((counts, f), &value)| counts.bins[f.bins.place(value)] += 1.0);
        }
        for &score in sample.scores {
            part.counts[width].bins[reference.score.bins.place(score as f32)] += 1.0;
        }
        for name in sample.shown.iter().flatten() {
            let at = self.categories.get(name).copied().unwrap_or(reference.categories.len());
            part.counts[width + 1].bins[at] += 1.0;
        }
        part.counts.iter_mut().for_each(|counts| counts.requests += 1.0);
    }

    fn forget(&mut self, now_ms: i64) {
        while self.parts.front().is_some_and(|part| now_ms - part.since_ms > self.length_ms) {
            self.parts.pop_front();
        }
    }

    /// What is known now; `None` of fewer requests than `requests_min`. `name` knows what a code of a
    /// feature stands for.
    pub fn report(
        &mut self,
        now_ms: i64,
        requests_min: u64,
        name: impl Fn(&str, u32) -> Option<String>,
    ) -> Option<Report> {
        self.forget(now_ms);
        let since_ms = self.parts.front()?.since_ms;
        let mut all = self.parts.front()?.counts.clone();
        for part in self.parts.iter().skip(1) {
            for (sum, counts) in all.iter_mut().zip(&part.counts) {
                sum.bins.iter_mut().zip(&counts.bins).for_each(|(a, b)| *a += b);
                sum.requests += counts.requests;
            }
        }
        let requests = all[0].requests as u64;
        if requests < requests_min {
            return None;
        }
        let reference = &self.reference;
        let width = reference.features.len();
        let variable = |v: &super::Variable, counts: &Counts| {
            row(&v.name, &v.counts, counts, |at| v.bins.label(at, |code| name(&v.name, code)))
        };
        let features = reference.features.iter().zip(&all);
        let mut features: Vec<Row> = features.map(|(v, counts)| variable(v, counts)).collect();
        features.sort_by(|a, b| b.psi.total_cmp(&a.psi));
        let category = |at: usize| reference.categories.get(at).map_or("other", String::as_str);
        let categories = row("categories shown", &reference.shown, &all[width + 1], |at| {
            category(at).to_owned()
        });
        let score = variable(&reference.score, &all[width]);
        Some(Report { requests, since_ms, features, score, categories })
    }
}

fn row(name: &str, training: &Counts, serving: &Counts, label: impl Fn(usize) -> String) -> Row {
    let psi = psi(training, serving);
    let share = |counts: &Counts, at: usize| {
        let total: f64 = counts.bins.iter().sum();
        if total > 0.0 { counts.bins[at] / total } else { 0.0 }
    };
    let shown =
        |at| Shown { bin: label(at), training: share(training, at), serving: share(serving, at) };
    let bins = (0..training.bins.len()).map(shown).collect();
    Row { name: name.to_owned(), psi, verdict: Verdict::of(psi), bins }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    use super::super::{Population, ReferenceBuilder};
    use super::*;

    const FEATURES: usize = 30;

    fn request(random: &mut Pcg64Mcg, shift: f32) -> (Vec<f32>, Vec<f64>, Vec<Option<String>>) {
        let mut rows = Vec::new();
        for _ in 0..5 {
            for at in 0..FEATURES {
                let value: f32 = random.random_range(0.0..1.0);
                rows.push(if at == 7 { value + shift } else { value });
            }
        }
        let scores = (0..5).map(|_| random.random_range(-3.0..3.0)).collect();
        let shown = (0..5).map(|_| Some(format!("c{}", random.random_range(0..4)))).collect();
        (rows, scores, shown)
    }

    fn window() -> (Window, Pcg64Mcg) {
        let mut random = Pcg64Mcg::seed_from_u64(11);
        let names = (0..FEATURES).map(|at| (format!("f{at}"), false)).collect();
        let mut builder = ReferenceBuilder::new(Population::Candidates, names);
        for _ in 0..500 {
            let (rows, scores, shown) = request(&mut random, 0.0);
            builder.add(&rows, &scores);
            builder.show(shown.iter().flatten().map(String::as_str));
        }
        (Window::new(Arc::new(builder.build()), 60_000), random)
    }

    #[test]
    fn a_planted_drift_is_the_first_and_the_only_one() {
        let (mut window, mut random) = window();
        for at in 0..400 {
            let (rows, scores, shown) = request(&mut random, 0.0);
            window.add(&Sample { rows: &rows, scores: &scores, shown: &shown }, at * 10);
        }
        let report = window.report(4000, 100, |_, _| None).unwrap();
        assert_eq!(report.requests, 400);
        let quiet = report.features.iter().chain([&report.score, &report.categories]);
        assert!(quiet.clone().all(|row| row.verdict == Verdict::Stable), "{report:?}");
        assert!(window.report(4000, 1000, |_, _| None).is_none(), "too few requests say nothing");
        // The old ones leave, drifted ones come.
        for at in 0..400 {
            let (rows, scores, shown) = request(&mut random, 0.4);
            window.add(&Sample { rows: &rows, scores: &scores, shown: &shown }, 100_000 + at * 10);
        }
        let report = window.report(104_000, 100, |_, _| None).unwrap();
        assert_eq!(report.requests, 400, "the first 400 are an hour and more ago");
        let [first, second] = [&report.features[0], &report.features[1]];
        assert_eq!((first.name.as_str(), first.verdict), ("f7", Verdict::Shifted));
        assert_eq!(second.verdict, Verdict::Stable);
        let sum: f64 = first.bins.iter().map(|bin| bin.serving).sum();
        assert!((sum - 1.0).abs() < 1e-9);
    }

    #[test]
    fn another_mix_of_categories_is_seen() {
        let (mut window, mut random) = window();
        for at in 0..400 {
            let (rows, scores, _) = request(&mut random, 0.0);
            let shown = vec![Some("c1".to_owned()), Some("new".to_owned()), None];
            window.add(&Sample { rows: &rows, scores: &scores, shown: &shown }, at);
        }
        let report = window.report(400, 100, |_, _| None).unwrap();
        assert_eq!(report.categories.verdict, Verdict::Shifted);
        assert_eq!(report.categories.bins.last().unwrap().bin, "other");
        assert!(report.categories.bins.last().unwrap().serving > 0.4);
    }
}
