//! The relative difference of a ratio of sums between two arms, and its variance.
//!
//! A click-through rate is clicks over impressions, a revenue per request value over answers. What was drawn
//! is users, and a user's impressions hang together, so the variance is that of sums over groups of
//! users (delta method; Deng, Lu and Litz, "Trustworthy analysis of online A/B tests", WSDM 2017).
//! Both arms and all stages share the groups: a user who moves from one arm to the other between two
//! stages is seen to do so. Stages are compared each by itself and then averaged, because
//! the share of users and the time of day change together from one to the next.

use super::assignment::{Arm, GROUPS};
use super::counts::{ArmCounts, StageCounts};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Clicks over impressions.
    Ctr,
    /// Value over answers.
    Revenue,
}

/// The challenger beside the stable version.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The ratio by [`Arm`], over all stages, for display.
    pub rates: [f64; 2],
    /// Challenger over stable, less 1.
    pub relative: f64,
    /// Variance of `relative`.
    pub variance: f64,
    /// Clicks, or sales, that the challenger's traffic would bring at the stable version's rate:
    /// below some dozens no limit theorem holds.
    pub expected: f64,
}

/// Compares over stages in which both arms had traffic; `None` when there is none, or nothing
/// happened in the stable arm.
pub fn compare<'a>(
    metric: Metric,
    stages: impl Iterator<Item = &'a StageCounts>,
) -> Option<Comparison> {
    let stages: Vec<[Sums<'a>; 2]> = stages
        .map(|stage| Arm::ALL.map(|arm| Sums::of(metric, stage.arm(arm))))
        .filter(|[stable, challenger]| stable.top > 0.0 && challenger.bottom > 0.0)
        .collect();
    let weight = |[a, b]: &[Sums; 2]| 1.0 / (1.0 / a.bottom + 1.0 / b.bottom);
    let total: f64 = stages.iter().map(weight).sum();
    if stages.is_empty() || total <= 0.0 {
        return None;
    }
    let (mut relative, mut least, mut expected) = (0.0, 0.0, 0.0);
    let mut influence = [0.0; GROUPS];
    for stage in &stages {
        let weight = weight(stage) / total;
        let [stable, challenger] = stage;
        let ratio = challenger.rate() / stable.rate();
        relative += weight * (ratio - 1.0);
        stable.influence(-weight * ratio / stable.rate(), &mut influence);
        challenger.influence(weight / stable.rate(), &mut influence);
        let pooled = (stable.noise + challenger.noise) / (stable.bottom + challenger.bottom);
        let noise = pooled * (1.0 / stable.bottom + 1.0 / challenger.bottom);
        least += weight * weight * noise / (stable.rate() * stable.rate());
        expected += stable.happened * challenger.bottom / stable.bottom;
    }
    let groups = GROUPS as f64;
    let between = influence.iter().map(|x| x * x).sum::<f64>() * groups / (groups - 1.0);
    let sum = |arm: usize, of: fn(&Sums) -> f64| stages.iter().map(|s| of(&s[arm])).sum::<f64>();
    let rates = [0, 1].map(|arm| sum(arm, |s| s.top) / sum(arm, |s| s.bottom));
    // Never surer than single impressions allow: an arm without any click has no variance to show.
    Some(Comparison { rates, relative, variance: between.max(least), expected })
}

/// The ratio in one arm, and its variance; `None` without traffic.
pub fn rate(metric: Metric, arm: &ArmCounts) -> Option<(f64, f64)> {
    let sums = Sums::of(metric, arm);
    if sums.bottom <= 0.0 {
        return None;
    }
    let mut influence = [0.0; GROUPS];
    sums.influence(1.0, &mut influence);
    let groups = GROUPS as f64;
    let between = influence.iter().map(|x| x * x).sum::<f64>() * groups / (groups - 1.0);
    Some((sums.rate(), between.max(sums.noise / (sums.bottom * sums.bottom))))
}

/// One arm of one stage.
struct Sums<'a> {
    tops: &'a [f64],
    bottoms: &'a [f64],
    top: f64,
    bottom: f64,
    /// Sum of the variances of single impressions or answers.
    noise: f64,
    /// How many clicks or sales there were; for sales of unequal value their effective number.
    happened: f64,
}

impl<'a> Sums<'a> {
    fn of(metric: Metric, arm: &'a ArmCounts) -> Self {
        let groups = &arm.groups;
        let (tops, bottoms) = match metric {
            Metric::Ctr => (&groups.clicks, &groups.impressions),
            Metric::Revenue => (&groups.value, &groups.answers),
        };
        let (top, bottom) = (tops.iter().sum::<f64>(), bottoms.iter().sum::<f64>());
        let (noise, happened) = match metric {
            Metric::Ctr => (top * (1.0 - top / bottom.max(1.0)).max(0.1), top),
            Metric::Revenue => (arm.value_squares, top * top / arm.value_squares.max(1e-12)),
        };
        Self { tops, bottoms, top, bottom, noise, happened }
    }

    fn rate(&self) -> f64 {
        self.top / self.bottom
    }

    /// Adds what each group contributes to the error of the rate, times `scale`.
    fn influence(&self, scale: f64, to: &mut [f64; GROUPS]) {
        let rate = self.rate();
        let (top, bottom) = (|at| value(self.tops, at), |at| value(self.bottoms, at));
        for (at, to) in to.iter_mut().enumerate() {
            *to += scale * (top(at) - rate * bottom(at)) / self.bottom;
        }
    }
}

fn value(column: &[f64], at: usize) -> f64 {
    column.get(at).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    use super::*;
    use crate::experiments::counts::Groups;

    /// Users who look often or seldom, and click often or seldom; always the same in all.
    fn world(seed: u64, users: usize, stages: usize) -> Vec<StageCounts> {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let column = || vec![0.0; GROUPS];
        let arm = || ArmCounts {
            groups: Groups { impressions: column(), clicks: column(), ..Groups::default() },
            ..ArmCounts::default()
        };
        let mut counts: Vec<StageCounts> =
            (0..stages as u64).map(|state| StageCounts { state, arms: [arm(), arm()] }).collect();
        for _ in 0..users {
            let looks = if random.random_bool(0.1) { 100 } else { 10 };
            let rate = if random.random_bool(0.2) { 0.2 } else { 0.05 };
            let (slot, group) = (random.random_range(0..100), random.random_range(0..GROUPS));
            for (at, stage) in counts.iter_mut().enumerate() {
                let challenger = slot < [25, 50][at];
                let groups = &mut stage.arms[usize::from(challenger)].groups;
                groups.impressions[group] += f64::from(looks);
                let clicks = (0..looks).filter(|_| random.random_bool(rate)).count();
                groups.clicks[group] += clicks as f64;
            }
        }
        counts
    }

    #[test]
    fn the_variance_is_that_of_users_also_of_those_who_change_sides() {
        for stages in [1, 2] {
            let all: Vec<Comparison> = (0..200)
                .map(|seed| compare(Metric::Ctr, world(seed, 4000, stages).iter()).unwrap())
                .collect();
            let n = all.len() as f64;
            let mean = all.iter().map(|c| c.relative).sum::<f64>() / n;
            let spread = all.iter().map(|c| (c.relative - mean).powi(2)).sum::<f64>() / (n - 1.0);
            let said = all.iter().map(|c| c.variance).sum::<f64>() / n;
            // 200 runs know a variance to 10 %.
            assert!((0.7..1.4).contains(&(said / spread)), "{stages}: {said} against {spread}");
            let single = all.iter().map(|c| c.rates[0]).sum::<f64>() / n;
            assert!((single - 0.08).abs() < 0.002, "{single}");
        }
    }

    #[test]
    fn an_arm_without_a_click_is_not_taken_for_certain() {
        let mut stages = world(1, 500, 1);
        stages[0].arms[1].groups.clicks.fill(0.0);
        let found = compare(Metric::Ctr, stages.iter()).unwrap();
        assert_eq!(found.relative, -1.0);
        assert!(found.variance > 0.0005, "{}", found.variance);
        stages[0].arms[0].groups.clicks.fill(0.0);
        assert_eq!(compare(Metric::Ctr, stages.iter()), None);
        assert_eq!(compare(Metric::Revenue, stages.iter()), None);
    }
}
