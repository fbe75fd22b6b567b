//! What another ranking would have earned, from the log of one that explored.
//!
//! The log says of each place which item stood there, with what probability, and what came of it; the
//! target says which item it would have put there. Assumed is that what an item earns at a place does not
//! depend on the items at the other places (item-position model; Li, Abbasi-Yadkori, Kveton et al.,
//! "Offline evaluation of ranking policies with click models", KDD 2018). With `w` = 1 / probability
//! where both have the same item and 0 elsewhere, the estimates of the reward a place are
//!
//! - IPS, the mean of `w * reward` (Horvitz and Thompson 1952);
//! - SNIPS, `sum(w * reward) / sum(w)` place by place (Swaminathan and Joachims, NIPS 2015): a little bias,
//!   far less variance;
//! - doubly robust, the mean of `model(target) + w * (reward - model(logged))` (Dudik, Langford and Li,
//!   ICML 2011): right when the probabilities are, and closer the better the model. The model is an item's
//!   clicks over the clicks expected at its places (Zhang and Jones, WWW 2007), shrunk to 1 and fitted on the
//!   users of the other fold.
//!
//! The mean of `w` is 1 where the log could have shown all that the target wants, and less where it could
//! not: then IPS is too low by what is missing, and the report says so. Intervals are of 95 %, over groups of
//! users, as in `ratio`.

use std::collections::HashMap;

use super::assignment::GROUPS;

/// Expected clicks that weigh as much as an item's own.
const SHRINKAGE: f64 = 5.0;
/// Two-sided 95 % of a normal distribution.
const Z: f64 = 1.96;

/// One place of a logged answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// The item that stood there; any numbering.
    pub shown: u32,
    /// The item that the target puts there; `None` when its answer is shorter.
    pub target: Option<u32>,
    /// The probability with which `shown` stood there, above 0.
    pub propensity: f64,
    /// What came of it: 1 for a click, or a value.
    pub reward: f64,
}

/// One logged answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Whom it was for: a hash of the user.
    pub user: u64,
    /// From the first place.
    pub places: Vec<Place>,
}

/// A mean and its interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// What a log says of a target.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Report {
    pub answers: usize,
    pub places: usize,
    /// Places where the target has the item that stood there.
    pub matching: usize,
    /// The reward a place of the log itself.
    pub logged: Estimate,
    pub ips: Estimate,
    pub snips: Estimate,
    pub doubly_robust: Estimate,
    /// Doubly robust, less `logged`: a difference of two estimates from the same users.
    pub gain: Estimate,
    /// Mean of the weights; 1 but for chance when the log could have shown all that the target wants.
    pub support: Estimate,
    /// Square of the sum of the weights over the sum of their squares: places that count.
    pub effective_places: f64,
}

/// Estimates what the target earns.
pub fn evaluate(log: &[Answer]) -> Report {
    let models = [Model::fit(log, 1), Model::fit(log, 0)];
    let places_max = log.iter().map(|answer| answer.places.len()).max().unwrap_or(0);
    let mut places = Sums::default();
    let (mut logged, mut ips, mut doubly) = (Sums::default(), Sums::default(), Sums::default());
    let mut weights = Sums::default();
    let mut by_place = vec![[Sums::default(), Sums::default(), Sums::default()]; places_max];
    let (mut matching, mut squares) = (0, 0.0);
    for answer in log {
        let group = (answer.user % GROUPS as u64) as usize;
        let model = &models[fold(answer.user)];
        for (at, place) in answer.places.iter().enumerate() {
            let same = place.target == Some(place.shown);
            let weight = if same { 1.0 / place.propensity } else { 0.0 };
            let target = place.target.map_or(0.0, |item| model.predict(item, at));
            let residual = place.reward - model.predict(place.shown, at);
            places.add(group, 1.0);
            logged.add(group, place.reward);
            ips.add(group, weight * place.reward);
            doubly.add(group, target + weight * residual);
            weights.add(group, weight);
            let [count, top, bottom] = &mut by_place[at];
            count.add(group, 1.0);
            top.add(group, weight * place.reward);
            bottom.add(group, weight);
            matching += usize::from(same);
            squares += weight * weight;
        }
    }
    let total = weights.total();
    let gain = doubly.minus(&logged);
    Report {
        answers: log.len(),
        places: places.total() as usize,
        matching,
        logged: ratio(&logged, &places),
        ips: ratio(&ips, &places),
        snips: self_normalised(&by_place, places.total()),
        doubly_robust: ratio(&doubly, &places),
        gain: ratio(&gain, &places),
        support: ratio(&weights, &places),
        effective_places: if squares > 0.0 { total * total / squares } else { 0.0 },
    }
}

/// Whose model predicts for this user: the one that has not seen them.
fn fold(user: u64) -> usize {
    ((user / GROUPS as u64) % 2) as usize
}

/// Clicks by place, and by item over what its places expect.
#[derive(Default)]
struct Model {
    by_place: Vec<f64>,
    by_item: HashMap<u32, f64>,
}

impl Model {
    /// Of the users of one fold.
    fn fit(log: &[Answer], of: usize) -> Self {
        let mut sums: Vec<[f64; 2]> = Vec::new();
        let seen = || log.iter().filter(|answer| fold(answer.user) == of);
        for answer in seen() {
            sums.resize(sums.len().max(answer.places.len()), [0.0; 2]);
            for (sum, place) in sums.iter_mut().zip(&answer.places) {
                sum[0] += place.reward;
                sum[1] += 1.0;
            }
        }
        let by_place: Vec<f64> = sums.iter().map(|[top, n]| top / n.max(1.0)).collect();
        let mut items: HashMap<u32, [f64; 2]> = HashMap::new();
        for answer in seen() {
            for (expected, place) in by_place.iter().zip(&answer.places) {
                let sums = items.entry(place.shown).or_default();
                sums[0] += place.reward;
                sums[1] += expected;
            }
        }
        // In units of clicks: for values, of the mean reward.
        let shrunk = |[top, expected]: [f64; 2]| (top + SHRINKAGE) / (expected + SHRINKAGE);
        let by_item = items.into_iter().map(|(item, sums)| (item, shrunk(sums))).collect();
        Self { by_place, by_item }
    }

    fn predict(&self, item: u32, place: usize) -> f64 {
        let by_place = self.by_place.get(place).copied().unwrap_or(0.0);
        by_place * self.by_item.get(&item).copied().unwrap_or(1.0)
    }
}

/// A sum over groups of users.
#[derive(Clone)]
struct Sums(Box<[f64; GROUPS]>);

impl Default for Sums {
    fn default() -> Self {
        Self(Box::new([0.0; GROUPS]))
    }
}

impl Sums {
    fn add(&mut self, group: usize, value: f64) {
        self.0[group] += value;
    }

    fn total(&self) -> f64 {
        self.0.iter().sum()
    }

    fn minus(&self, other: &Self) -> Self {
        let mut result = self.clone();
        result.0.iter_mut().zip(&other.0[..]).for_each(|(value, other)| *value -= other);
        result
    }
}

/// `top / bottom`, and its error over groups.
fn ratio(top: &Sums, bottom: &Sums) -> Estimate {
    let total = bottom.total();
    if total <= 0.0 {
        return Estimate::default();
    }
    let value = top.total() / total;
    let influence = |group: usize| (top.0[group] - value * bottom.0[group]) / total;
    interval(value, influence)
}

/// The mean over places of `sum(w * reward) / sum(w)`, weighed by how often there was one. A place where
/// nothing matches takes the ratio of all.
fn self_normalised(by_place: &[[Sums; 3]], places: f64) -> Estimate {
    let sum = |of: usize| by_place.iter().map(|sums| sums[of].total()).sum::<f64>();
    if sum(2) <= 0.0 {
        return Estimate { value: f64::NAN, low: f64::NAN, high: f64::NAN };
    }
    let overall = sum(1) / sum(2);
    let (mut value, mut influence) = (0.0, [0.0; GROUPS]);
    for [count, top, bottom] in by_place {
        let (share, total) = (count.total() / places, bottom.total());
        let here = if total > 0.0 { top.total() / total } else { overall };
        value += share * here;
        for (group, influence) in influence.iter_mut().enumerate().filter(|_| total > 0.0) {
            *influence += share * (top.0[group] - here * bottom.0[group]) / total;
        }
    }
    interval(value, |group| influence[group])
}

fn interval(value: f64, influence: impl Fn(usize) -> f64) -> Estimate {
    let groups = GROUPS as f64;
    let squares: f64 = (0..GROUPS).map(|group| influence(group).powi(2)).sum();
    let error = Z * (squares * groups / (groups - 1.0)).sqrt();
    Estimate { value, low: value - error, high: value + error }
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    use super::*;

    const ITEMS: u32 = 8;
    const PLACES: usize = 4;
    /// How likely a place is looked at, ...
    const LOOKS: [f64; PLACES] = [0.9, 0.6, 0.4, 0.3];

    /// ... and an item that is looked at clicked, by users of two kinds.
    fn taste(item: u32, kind: u64) -> f64 {
        let liked = u64::from(item % 2) == kind;
        0.05 + 0.03 * f64::from(item) * if liked { 1.0 } else { 0.2 }
    }

    /// What the target shows: the best for the kind.
    fn target(kind: u64) -> Vec<u32> {
        let mut items: Vec<u32> = (0..ITEMS).collect();
        items.sort_by(|&a, &b| taste(b, kind).total_cmp(&taste(a, kind)));
        items.truncate(PLACES);
        items
    }

    fn truth() -> f64 {
        let of = |kind| -> f64 {
            target(kind).iter().zip(LOOKS).map(|(&item, looks)| looks * taste(item, kind)).sum()
        };
        (of(0) + of(1)) / 2.0 / PLACES as f64
    }

    /// A log of answers that are the items in order, but for a share, which are shuffled.
    fn log(seed: u64, answers: usize, share: f64) -> Vec<Answer> {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let answer = |_| {
            let user: u64 = random.random_range(0..2000);
            let kind = user % 2;
            let mut items: Vec<u32> = (0..ITEMS).collect();
            if random.random_bool(share) {
                items.shuffle(&mut random);
            }
            let chance = share / f64::from(ITEMS);
            let place = |(at, target): (usize, u32)| {
                let shown = items[at];
                let usual = shown as usize == at;
                let propensity = chance + if usual { 1.0 - share } else { 0.0 };
                let clicked = random.random_bool(LOOKS[at] * taste(shown, kind));
                let reward = f64::from(u8::from(clicked));
                Place { shown, target: Some(target), propensity, reward }
            };
            Answer { user, places: target(kind).into_iter().enumerate().map(place).collect() }
        };
        (0..answers).map(answer).collect()
    }

    #[test]
    fn the_intervals_hold_what_the_target_truly_earns() {
        let (runs, truth) = (100, truth());
        let mut held = [0; 3];
        let mut widths = [0.0; 3];
        for seed in 0..runs {
            let report = evaluate(&log(seed, 4000, 0.5));
            let estimates = [report.ips, report.snips, report.doubly_robust];
            for (at, estimate) in estimates.iter().enumerate() {
                held[at] += usize::from((estimate.low..estimate.high).contains(&truth));
                widths[at] += estimate.high - estimate.low;
            }
            assert!((report.support.low..report.support.high).contains(&1.0) || seed % 10 > 0);
        }
        // 95 of 100 but for chance: 4.6 standard deviations to 85.
        assert!(held.iter().all(|&held| held >= 85), "{held:?} of {runs} intervals hold {truth}");
        assert!(widths[2] < widths[0], "a model narrows the interval: {widths:?}");
        assert!(widths[1] < widths[0], "so does normalising: {widths:?}");
    }

    #[test]
    fn a_target_that_is_the_log_earns_what_the_log_did() {
        let mut log = log(1, 500, 0.0);
        for answer in &mut log {
            for place in &mut answer.places {
                place.target = Some(place.shown);
            }
        }
        let report = evaluate(&log);
        let all = [report.ips, report.snips, report.doubly_robust];
        for estimate in all {
            assert!((estimate.value - report.logged.value).abs() < 1e-12, "{report:?}");
        }
        assert_eq!((report.matching, report.support.value), (report.places, 1.0));
        assert!(report.gain.value.abs() < 1e-12);
    }

    #[test]
    fn a_target_that_the_log_never_shows_has_no_support() {
        let mut log = log(1, 500, 0.0);
        for answer in &mut log {
            answer.places.iter_mut().for_each(|place| place.target = Some(ITEMS + place.shown));
        }
        let report = evaluate(&log);
        assert_eq!(
            (report.support.value, report.ips.value, report.effective_places),
            (0.0, 0.0, 0.0)
        );
        assert!(report.snips.value.is_nan());
        assert_eq!(evaluate(&[]).answers, 0);
    }
}
