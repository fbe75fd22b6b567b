//! What training saw, as histograms; the file `reference.json` of a bundle.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Counts;

/// Bins of a number with a value.
const NUMBER_BINS: usize = 10;
/// Codes of a category that have a bin of their own; the others share one.
const CODES_MAX: usize = 20;
/// Categories shown that have a bin of their own.
const SHOWN_MAX: usize = 50;

/// Which rows are counted; serving counts the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Population {
    /// Candidates of a request.
    Candidates,
    /// What was shown.
    Shown,
}

/// Where a value falls. The last bin is for absent values, of codes the last but one for all others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bins {
    /// Upper bounds, exclusive, ascending; the last bin with a value has none.
    Numbers(Vec<f32>),
    Codes(Vec<u32>),
}

/// A feature or the score, and where training's values fell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variable {
    pub name: String,
    pub bins: Bins,
    pub counts: Counts,
}

/// All histograms of a bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    pub population: Population,
    /// In the order of the schema.
    pub features: Vec<Variable>,
    /// The ranker's raw score.
    pub score: Variable,
    /// Names of the categories shown; the last bin of the counts is for all others.
    pub categories: Vec<String>,
    pub shown: Counts,
}

impl Bins {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Bins::Numbers(bounds) => bounds.len() + 2,
            Bins::Codes(codes) => codes.len() + 2,
        }
    }

    /// Never: there is one for absent values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a value falls.
    pub fn place(&self, value: f32) -> usize {
        if value.is_nan() {
            return self.len() - 1;
        }
        match self {
            Bins::Numbers(bounds) => bounds.partition_point(|&bound| bound <= value),
            Bins::Codes(codes) => {
                let of = |&code: &u32| code as f32 == value;
                codes.iter().position(of).unwrap_or(codes.len())
            }
        }
    }

    /// What a bin holds, for a person; `name` knows what a code stands for.
    pub fn label(&self, at: usize, name: impl Fn(u32) -> Option<String>) -> String {
        if at + 1 == self.len() {
            return "absent".to_owned();
        }
        match self {
            Bins::Numbers(bounds) => match (at.checked_sub(1).map(|at| bounds[at]), bounds.get(at))
            {
                (None, None) => "any".to_owned(),
                (None, Some(high)) => format!("< {high}"),
                (Some(low), None) => format!(">= {low}"),
                (Some(low), Some(high)) => format!("{low} to {high}"),
            },
            Bins::Codes(codes) => match codes.get(at) {
                Some(&code) => name(code).unwrap_or_else(|| code.to_string()),
                None => "other".to_owned(),
            },
        }
    }

    /// Quantiles; fewer bins where values repeat.
    fn of_numbers(values: &[f32]) -> Self {
        let mut sorted: Vec<f32> = values.iter().copied().filter(|value| !value.is_nan()).collect();
        sorted.sort_unstable_by(f32::total_cmp);
        let at = |part: usize| sorted[part * sorted.len() / NUMBER_BINS];
        let mut bounds: Vec<f32> = match sorted.is_empty() {
            true => Vec::new(),
            false => (1..NUMBER_BINS).map(at).collect(),
        };
        // What begins at the least value has no bin below it.
        bounds.dedup();
        bounds.retain(|bound| Some(bound) != sorted.first());
        // A value that fills several quantiles begins a bin and ends it.
        let mut ends = Vec::new();
        for &bound in &bounds {
            let next = sorted.partition_point(|&value| value <= bound);
            let (from, n) = (sorted.partition_point(|&value| value < bound), sorted.len());
            if (next - from) * NUMBER_BINS > n && next < n {
                ends.push(sorted[next]);
            }
        }
        if let Some(&first) = sorted.first() {
            let next = sorted.partition_point(|&value| value <= first);
            if next * NUMBER_BINS > sorted.len() && next < sorted.len() {
                ends.push(sorted[next]);
            }
        }
        bounds.extend(ends);
        bounds.sort_unstable_by(f32::total_cmp);
        bounds.dedup();
        Bins::Numbers(bounds)
    }

    /// The most frequent codes.
    fn of_codes(values: &[f32]) -> Self {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for &value in values.iter().filter(|value| !value.is_nan()) {
            *counts.entry(value as u32).or_default() += 1;
        }
        let mut codes: Vec<(u32, usize)> = counts.into_iter().collect();
        codes.sort_by_key(|&(code, count)| (std::cmp::Reverse(count), code));
        codes.truncate(CODES_MAX);
        Bins::Codes(codes.into_iter().map(|(code, _)| code).collect())
    }
}

impl Variable {
    fn of(name: &str, bins: Bins, values: &[f32], requests: usize) -> Self {
        let mut counts = Counts::new(bins.len());
        values.iter().for_each(|&value| counts.bins[bins.place(value)] += 1.0);
        counts.requests = requests as f64;
        Self { name: name.to_owned(), bins, counts }
    }
}

/// Collects rows, then makes the histograms.
pub struct ReferenceBuilder {
    population: Population,
    /// Names of the features, and whether each is a category.
    features: Vec<(String, bool)>,
    /// By feature.
    values: Vec<Vec<f32>>,
    scores: Vec<f32>,
    requests: usize,
    shown: BTreeMap<String, f64>,
    answers: usize,
}

impl ReferenceBuilder {
    /// For these features: name, and whether it is a category.
    pub fn new(population: Population, features: Vec<(String, bool)>) -> Self {
        Self {
            population,
            values: vec![Vec::new(); features.len()],
            features,
            scores: Vec::new(),
            requests: 0,
            shown: BTreeMap::new(),
            answers: 0,
        }
    }

    /// Adds the rows of one request, row by row, and their scores.
    pub fn add(&mut self, rows: &[f32], scores: &[f64]) {
        for row in rows.chunks_exact(self.features.len()) {
            self.values.iter_mut().zip(row).for_each(|(values, &value)| values.push(value));
        }
        self.scores.extend(scores.iter().map(|&score| score as f32));
        self.requests += 1;
    }

    /// Adds the categories of one answer.
    pub fn show<'a>(&mut self, categories: impl Iterator<Item = &'a str>) {
        categories.for_each(|name| *self.shown.entry(name.to_owned()).or_default() += 1.0);
        self.answers += 1;
    }

    /// The histograms.
    pub fn build(self) -> Reference {
        let features = self.features.iter().zip(&self.values).map(|((name, category), values)| {
            let bins = if *category { Bins::of_codes(values) } else { Bins::of_numbers(values) };
            Variable::of(name, bins, values, self.requests)
        });
        let features = features.collect();
        let score =
            Variable::of("score", Bins::of_numbers(&self.scores), &self.scores, self.requests);
        let mut shown: Vec<(String, f64)> = self.shown.into_iter().collect();
        shown.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let others = shown.drain(shown.len().min(SHOWN_MAX)..).map(|(_, count)| count).sum();
        let (categories, mut bins): (Vec<String>, Vec<f64>) = shown.into_iter().unzip();
        bins.push(others);
        let shown = Counts { bins, requests: self.answers as f64 };
        Reference { population: self.population, features, score, categories, shown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_bin_and_ties_do_not_hide_the_rest() {
        let even: Vec<f32> = (0..1000).map(|at| at as f32).collect();
        let bins = Bins::of_numbers(&even);
        assert_eq!(bins.len(), NUMBER_BINS + 1);
        assert_eq!((bins.place(-1.0), bins.place(100.0), bins.place(1e9)), (0, 1, 9));
        assert_eq!((bins.place(f32::NAN), bins.label(10, |_| None)), (10, "absent".into()));
        assert_eq!(
            (bins.label(0, |_| None), bins.label(9, |_| None)),
            ("< 100".into(), ">= 900".into())
        );
        // Nine tenths are 0: what is above has a bin all the same.
        let mostly: Vec<f32> = (0..1000).map(|at| if at < 900 { 0.0 } else { at as f32 }).collect();
        let bins = Bins::of_numbers(&mostly);
        assert_ne!(bins.place(0.0), bins.place(950.0), "{bins:?}");
        // Two values have two bins, one has one, none none but for what is absent.
        let two: Vec<f32> = (0..100).map(|at| if at < 97 { 0.0 } else { 1.0 }).collect();
        let bins = Bins::of_numbers(&two);
        assert_eq!((bins.place(0.0), bins.place(1.0)), (0, 1), "{bins:?}");
        assert_eq!(Bins::of_numbers(&[7.0; 50]).place(7.0), 0);
        assert_eq!(Bins::of_numbers(&[f32::NAN; 5]).len(), 2);
    }

    #[test]
    fn a_reference_counts_every_row_and_survives_its_file() {
        let features = vec![("price".to_owned(), false), ("device".to_owned(), true)];
        let mut builder = ReferenceBuilder::new(Population::Shown, features);
        for at in 0..100 {
            let rows = [at as f32, 3.0, f32::NAN, if at % 10 == 0 { 9.0 } else { 4.0 }];
            builder.add(&rows, &[0.5, -0.5]);
            builder.show(["a", "b", "a"].into_iter());
        }
        let reference = builder.build();
        let device = &reference.features[1];
        assert_eq!(device.bins, Bins::Codes(vec![3, 4, 9]));
        assert_eq!(device.counts.bins, [100.0, 90.0, 10.0, 0.0, 0.0]);
        assert_eq!(device.counts.requests, 100.0);
        let price = &reference.features[0].counts.bins;
        assert_eq!((price.iter().sum::<f64>(), price.last()), (200.0, Some(&100.0)));
        assert_eq!((reference.categories[0].as_str(), reference.shown.bins[0]), ("a", 200.0));
        let text = serde_json::to_string(&reference).unwrap();
        assert_eq!(serde_json::from_str::<Reference>(&text).unwrap(), reference);
    }
}
