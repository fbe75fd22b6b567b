//! A rollout under a simulated clock: the decision code that ships, on traffic whose truth is known.
//!
//! Users differ in how often they come (log-normal) and in how often they click (log-normal), and
//! keep both; every second one reacts to the challenger, twice as strongly. Traffic and CTR swing with the
//! time of day. A request shows a fixed number of items, each of which is clicked or not. Requests of a user come
//! as a Poisson process, so those of a group of users with k clicks do too, and are drawn so: the
//! same distribution as user by user, thousands of times faster.

use rand::SeedableRng;
use rand_distr::{Distribution, LogNormal, Poisson};
use rand_pcg::Pcg64Mcg;

use super::assignment::{Arm, GROUPS, SLOTS, draw};
use super::counts::{Counts, Groups, StageCounts};
use super::ratio::{Metric, compare, rate};
use super::rollout::{Decision, Settings, Stage, State, decide};
use super::sequential::Mixture;

const HOUR_MS: i64 = 3_600_000;
/// Level of the intervals whose coverage is reported.
const ALPHA: f64 = 0.05;
/// What 95 % of a normal distribution lie within.
const Z: f64 = 1.96;

/// The traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// Users who come at all.
    pub users: usize,
    pub requests_per_day: f64,
    /// Items that a user sees of one answer.
    pub impressions_per_request: usize,
    /// Click-through rate of the stable version.
    pub ctr: f64,
    /// Standard deviation of the logarithm of a user's own CTR ...
    pub ctr_spread: f64,
    /// ... and of the frequency of visits.
    pub activity_spread: f64,
    /// Share of the clicks that become sales, and the mean value of one.
    pub sales_per_click: f64,
    pub sale_value: f64,
    /// Time between two looks at the counts.
    pub look_minutes: f64,
    /// After so many days the rehearsal ends undecided.
    pub days_max: f64,
}

/// How a rollout ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    RolledBack,
    Promoted,
    Undecided,
}

/// One rehearsed rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub ended: Ended,
    /// Share of users that saw the challenger at the end, before it was rolled back or promoted.
    pub percent: u8,
    /// From the first user that saw it to the end.
    pub hours: f64,
    pub reason: String,
    /// What was measured at the end.
    pub relative: f64,
    /// Whether the interval that may be looked at always held the true effect at every look.
    pub held_always: bool,
    /// Whether the plain 95 % intervals of both CTRs, stable and challenger, held the true ones when
    /// the first stage had lasted its minimum.
    pub held_once: Option<[bool; 2]>,
}

/// Runs one rollout of a challenger with this relative effect on the CTR.
///
/// # Panics
/// When a spread is negative or not finite.
pub fn rehearse(world: &World, settings: &Settings, effect: f64, seed: u64) -> Outcome {
    let mut random = Pcg64Mcg::seed_from_u64(seed);
    let traffic = Traffic::new(world, settings, effect, seed, &mut random);
    let mut counts = Counts::default();
    let mut state = State {
        stage: Stage::Percent(settings.percents[0]),
        since_ms: 0,
        paused: false,
        states: [1, 1],
    };
    let mut truth = Truth::default();
    let mut outcome = Outcome {
        ended: Ended::Undecided,
        percent: 0,
        hours: 0.0,
        reason: String::new(),
        relative: 0.0,
        held_always: true,
        held_once: None,
    };
    let step_ms = (world.look_minutes * 60_000.0) as i64;
    let mut now_ms = 0;
    while (now_ms as f64) < world.days_max * 24.0 * HOUR_MS as f64 {
        let part = step_ms as f64 / (24.0 * HOUR_MS as f64);
        traffic.draw(&state, now_ms, part, &mut random, &mut counts, &mut truth);
        now_ms += step_ms;
        if let Some(found) = compare(Metric::Ctr, counts.stages.iter()) {
            outcome.relative = found.relative;
            let information = (3.2 / settings.smallest_effect).powi(2);
            let width = Mixture::tuned(information, ALPHA).two_sided(found.variance, ALPHA);
            let enough = found.expected >= settings.expected_min;
            outcome.held_always &= !enough || (found.relative - effect).abs() <= width;
        }
        let minutes = now_ms as f64 / 60_000.0;
        if outcome.held_once.is_none() && minutes >= settings.stage_min_minutes {
            outcome.held_once = Some(truth.held(&counts.stages[0]));
        }
        let verdict = decide(&state, &counts, now_ms, settings);
        outcome.percent = state.stage.percent();
        outcome.hours = now_ms as f64 / HOUR_MS as f64;
        outcome.reason = verdict.reason;
        match verdict.decision {
            Decision::Hold => {}
            Decision::RollBack => {
                outcome.ended = Ended::RolledBack;
                break;
            }
            Decision::Advance(100) => {
                outcome.ended = Ended::Promoted;
                break;
            }
            Decision::Advance(percent) => {
                let last = state.states[1] + 1;
                state = State {
                    stage: Stage::Percent(percent),
                    since_ms: now_ms,
                    states: [1, last],
                    ..state
                };
            }
        }
    }
    outcome
}

/// Rates a day of requests with k clicks, by group.
type Rates = Vec<Vec<f64>>;

/// What users do.
struct Traffic<'a> {
    world: &'a World,
    effect: f64,
    /// By segment of users between two percentages, under the stable version and the challenger.
    segments: Vec<[Rates; 2]>,
    /// Where the segments end, percent.
    ends: Vec<u8>,
    values: LogNormal<f64>,
}

impl<'a> Traffic<'a> {
    fn new(
        world: &'a World,
        settings: &Settings,
        effect: f64,
        seed: u64,
        random: &mut Pcg64Mcg,
    ) -> Self {
        let clicks = world.impressions_per_request + 1;
        let rates = || vec![vec![0.0; clicks]; GROUPS];
        let mut segments: Vec<[Rates; 2]> =
            settings.percents.iter().map(|_| [rates(), rates()]).collect();
        let mean_one = |spread: f64| {
            LogNormal::new(-spread * spread / 2.0, spread).expect("a finite spread, not negative")
        };
        let (activity, taste) = (mean_one(world.activity_spread), mean_one(world.ctr_spread));
        let salt = format!("rehearsal-{seed}");
        let per_user = world.requests_per_day / world.users as f64;
        for user in 0..world.users {
            let draw = draw(&salt, &user.to_string());
            let percent = u32::from(draw.slot) * 100 / SLOTS;
            let at = settings.percents.iter().position(|&end| percent < u32::from(end));
            let segment = &mut segments[at.unwrap_or(settings.percents.len() - 1)];
            let requests = per_user * activity.sample(random);
            let ctr = world.ctr * taste.sample(random);
            let reaction = if user.is_multiple_of(2) { 2.0 * effect } else { 0.0 };
            for (policy, ctr) in [ctr, ctr * (1.0 + reaction)].into_iter().enumerate() {
                add_binomial(&mut segment[policy][usize::from(draw.group)], requests, ctr);
            }
        }
        let values = LogNormal::new(world.sale_value.max(1e-9).ln() - 0.5, 1.0)
            .expect("one is a finite spread");
        Self { world, effect, segments, ends: settings.percents.clone(), values }
    }

    /// Draws what happens in a `part` of a day from `now_ms` on.
    fn draw(
        &self,
        state: &State,
        now_ms: i64,
        part: f64,
        random: &mut Pcg64Mcg,
        counts: &mut Counts,
        truth: &mut Truth,
    ) {
        let number = state.states[1];
        if counts.stages.last().is_none_or(|stage| stage.state != number) {
            let mut stage = StageCounts { state: number, ..StageCounts::default() };
            for arm in &mut stage.arms {
                let column = || vec![0.0; GROUPS];
                let (answers, impressions) = (column(), column());
                arm.groups = Groups { answers, impressions, clicks: column(), value: column() };
            }
            counts.stages.push(stage);
        }
        let stage = counts.stages.last_mut().expect("pushed above");
        let day = now_ms as f64 / (24.0 * HOUR_MS as f64) * std::f64::consts::TAU;
        // Few come at night; who comes in the evening clicks a little more.
        let (volume, mood) = (part * (1.0 + 0.6 * day.sin()), 1.0 + 0.1 * (day + 1.0).sin());
        truth.pass(number, volume, mood, self);
        for (segment, &end) in self.segments.iter().zip(&self.ends) {
            let arm = usize::from(end <= state.stage.percent());
            let to = &mut stage.arms[arm];
            for (group, by_clicks) in segment[arm].iter().enumerate() {
                let mut clicked = 0.0;
                for (clicks, &rate) in by_clicks.iter().enumerate() {
                    // Mood moves requests from no click to some; the sum stays.
                    let rate = match clicks {
                        0 => rate - (mood - 1.0) * by_clicks[1..].iter().sum::<f64>(),
                        _ => rate * mood,
                    };
                    let requests = poisson(rate * volume, random);
                    to.requests += requests as u64;
                    to.groups.answers[group] += requests;
                    to.groups.impressions[group] +=
                        requests * self.world.impressions_per_request as f64;
                    clicked += requests * clicks as f64;
                }
                to.groups.clicks[group] += clicked;
                for _ in 0..poisson(clicked * self.world.sales_per_click, random) as u64 {
                    let value = self.values.sample(random);
                    to.groups.value[group] += value;
                    to.value_squares += value * value;
                }
            }
        }
    }
}

/// Adds the rates of requests with 0, 1, .. clicks of one user.
fn add_binomial(rates: &mut [f64], requests: f64, ctr: f64) {
    let (n, ctr) = (rates.len() - 1, ctr.min(0.9));
    let mut probability = (1.0 - ctr).powi(n as i32);
    for (k, rate) in rates.iter_mut().enumerate() {
        *rate += requests * probability;
        probability *= (n - k) as f64 / (k + 1) as f64 * ctr / (1.0 - ctr);
    }
}

fn poisson(rate: f64, random: &mut Pcg64Mcg) -> f64 {
    if rate <= 0.0 {
        return 0.0;
    }
    Poisson::new(rate).map_or(0.0, |law| law.sample(random))
}

/// What the first stage's CTRs are in truth, over all users there might be.
#[derive(Default)]
struct Truth {
    volume: f64,
    clicks: [f64; 2],
}

impl Truth {
    fn pass(&mut self, state: u64, volume: f64, mood: f64, traffic: &Traffic) {
        if state != 1 {
            return;
        }
        self.volume += volume;
        for arm in Arm::ALL {
            let lift = if arm == Arm::Challenger { 1.0 + traffic.effect } else { 1.0 };
            self.clicks[arm as usize] += volume * mood * traffic.world.ctr * lift;
        }
    }

    fn held(&self, stage: &StageCounts) -> [bool; 2] {
        Arm::ALL.map(|arm| {
            let truth = self.clicks[arm as usize] / self.volume;
            rate(Metric::Ctr, stage.arm(arm))
                .is_some_and(|(rate, variance)| (rate - truth).abs() <= Z * variance.sqrt())
        })
    }
}

#[cfg(test)]
mod tests;
