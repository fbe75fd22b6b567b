//! The state machine of a rollout: shadow, then growing shares of users, then everybody; or back.
//!
//! ```text
//! shadow --> 5 % --> 25 % --> 50 % --> 100 %          each arrow: minimum time and requests, no guardrail
//!    |        |        |        |                     breached, and the CTR shown to be not much worse
//!    '--------+--------+--------'--> rolled back
//! ```

use serde::{Deserialize, Serialize};

use super::assignment::Arm;
use super::counts::{ArmCounts, Counts, StageCounts};
use super::ratio::{Comparison, Metric, compare};
use super::sequential::{Bets, Mixture};

const MINUTE_MS: i64 = 60_000;
/// The level is divided among the guardrails: the two that are worth waiting for get most of it.
const SHARE_OF_RATIOS: f64 = 0.45;
const SHARE_OF_RATES: f64 = 0.05;
/// An effect stands out at a fixed look from about this many standard errors on.
const STANDARD_ERRORS: f64 = 3.2;

/// How far a challenger has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It scores a sample of the requests; nobody sees it.
    Shadow,
    /// It serves this percentage of users.
    Percent(u8),
}

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    pub stage: Stage,
    /// Since when, epoch milliseconds.
    pub since_ms: i64,
    /// It does not advance by itself; guardrails still roll it back.
    pub paused: bool,
    /// Numbers of the states that belong to this rollout, from its first to this one.
    pub states: [u64; 2],
}

/// When a challenger advances and when it is rolled back: section `[rollout]`'s part about decisions.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Shares of users in percent, ascending, 100 last.
    pub percents: Vec<u8>,
    /// A stage lasts at least so long ...
    pub stage_min_minutes: f64,
    /// ... and until the challenger has had so many requests in it.
    pub stage_requests_min: u64,
    /// The same for the shadow stage; 0 requests leave it out.
    pub shadow_min_minutes: f64,
    pub shadow_requests_min: u64,
    /// Probability with which a challenger that is not worse is ever rolled back for its CTR,
    /// revenue, errors or p99.
    pub false_rollback_max: f64,
    /// Probability with which one that is worse by the margin ever advances.
    pub false_advance_max: f64,
    /// The relative effect at which the tests are sharpest.
    pub smallest_effect: f64,
    /// Relative loss of CTR that must be ruled out before a challenger leaves each percentage but
    /// the last; 0 waits for nothing.
    pub ctr_margins: Vec<f64>,
    /// The same for revenue per request.
    pub revenue_margins: Vec<f64>,
    /// Share of failed requests that the challenger may have above the stable version's.
    pub errors_margin: f64,
    /// Its 99th percentile may be so many times the stable version's ...
    pub p99_ratio: f64,
    /// ... and this much more, milliseconds.
    pub p99_slack_ms: f64,
    /// Requests of the stable version before its 99th percentile and errors count.
    pub stable_requests_min: u64,
    /// Population stability index of any feature against the challenger's training, at most.
    pub psi_max: f64,
    /// Clicks or sales that the challenger should have had before they are compared.
    pub expected_min: f64,
}

/// Why settings were refused.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum SettingsError {
    #[error("rollout.guard.{key} = {value}: give {rule}")]
    Range { key: &'static str, value: f64, rule: &'static str },
    #[error(
        "rollout.guard.percents = {found:?}: give ascending percentages from 1 that end with 100"
    )]
    Percents { found: Vec<u8> },
    #[error(
        "rollout.guard.{key} = {found:?}: give {expected} numbers from 0 to below 1, one for each \
         percentage but the last"
    )]
    Margins { key: &'static str, found: Vec<f64>, expected: usize },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Hold,
    /// To this percentage.
    Advance(u8),
    RollBack,
}

/// A decision with its reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub decision: Decision,
    pub reason: String,
    /// What each guardrail sees.
    pub readings: Vec<Reading>,
}

/// What one guardrail sees.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// `ctr`, `revenue`, `errors`, `p99` or `psi`.
    pub guardrail: &'static str,
    pub text: String,
    pub breached: bool,
    /// It keeps the challenger where it is.
    pub waits: bool,
}

impl Settings {
    /// Refuses what no decision could be made with.
    pub fn check(&self) -> Result<(), SettingsError> {
        let ascending = self.percents.windows(2).all(|pair| pair[0] < pair[1]);
        let (first, last) = (self.percents.first(), self.percents.last());
        if !ascending || first == Some(&0) || last != Some(&100) {
            return Err(SettingsError::Percents { found: self.percents.clone() });
        }
        let probability = "more than 0 and less than 0.5";
        let positive = "more than 0";
        let least = "0 or more";
        let within = |value: f64| value > 0.0 && value < 0.5;
        for (key, value, right, rule) in [
            ("stage_min_minutes", self.stage_min_minutes, self.stage_min_minutes >= 0.0, least),
            ("shadow_min_minutes", self.shadow_min_minutes, self.shadow_min_minutes >= 0.0, least),
            (
                "false_rollback_max",
                self.false_rollback_max,
                within(self.false_rollback_max),
                probability,
            ),
            (
                "false_advance_max",
                self.false_advance_max,
                within(self.false_advance_max),
                probability,
            ),
            ("smallest_effect", self.smallest_effect, self.smallest_effect > 0.0, positive),
            (
                "errors_margin",
                self.errors_margin,
                self.errors_margin > 0.0 && self.errors_margin < 1.0,
                "more than 0 and less than 1",
            ),
            ("p99_ratio", self.p99_ratio, self.p99_ratio >= 1.0, "1 or more"),
            ("p99_slack_ms", self.p99_slack_ms, self.p99_slack_ms >= 0.0, least),
            ("psi_max", self.psi_max, self.psi_max > 0.0, positive),
            ("expected_min", self.expected_min, self.expected_min >= 30.0, "30 or more"),
        ] {
            if !right {
                return Err(SettingsError::Range { key, value, rule });
            }
        }
        let expected = self.percents.len() - 1;
        let margins =
            [("ctr_margins", &self.ctr_margins), ("revenue_margins", &self.revenue_margins)];
        for (key, found) in margins {
            if found.len() != expected || !found.iter().all(|margin| (0.0..1.0).contains(margin)) {
                return Err(SettingsError::Margins { key, found: found.clone(), expected });
            }
        }
        Ok(())
    }

    /// Where a rollout begins.
    pub fn first(&self) -> Stage {
        match self.shadow_requests_min {
            0 => Stage::Percent(self.percents[0]),
            _ => Stage::Shadow,
        }
    }

    /// The percentage after a stage; `None` after the last.
    pub fn after(&self, stage: Stage) -> Option<u8> {
        match stage {
            Stage::Shadow => self.percents.first().copied(),
            Stage::Percent(at) => self.percents.iter().copied().find(|&percent| percent > at),
        }
    }
}

impl Stage {
    /// Share of users that see the challenger.
    pub fn percent(self) -> u8 {
        match self {
            Stage::Shadow => 0,
            Stage::Percent(percent) => percent,
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stage::Shadow => f.write_str("shadow"),
            Stage::Percent(percent) => write!(f, "{percent} %"),
        }
    }
}

/// Decides, from what all replicas have counted. `counts` may hold states of other rollouts; they
/// are left out.
pub fn decide(state: &State, counts: &Counts, now_ms: i64, settings: &Settings) -> Verdict {
    let [first, last] = state.states;
    let own = || counts.stages.iter().filter(move |s| (first..=last).contains(&s.state));
    let here = counts.stage(last);
    let readings = readings(state.stage, own, here, settings);
    let verdict = |decision, reason| Verdict { decision, reason, readings: readings.clone() };
    let breaches: Vec<&str> =
        readings.iter().filter(|r| r.breached).map(|r| r.text.as_str()).collect();
    if !breaches.is_empty() {
        return verdict(Decision::RollBack, breaches.join("; "));
    }
    let Some(next) = settings.after(state.stage) else {
        return verdict(Decision::Hold, "everybody sees it".to_owned());
    };
    if state.paused {
        return verdict(Decision::Hold, "paused".to_owned());
    }
    let requests = here.map_or(0, |stage| stage.arm(Arm::Challenger).requests);
    let (minutes_min, requests_min) = match state.stage {
        Stage::Shadow => (settings.shadow_min_minutes, settings.shadow_requests_min),
        Stage::Percent(_) => (settings.stage_min_minutes, settings.stage_requests_min),
    };
    let minutes = (now_ms - state.since_ms) as f64 / MINUTE_MS as f64;
    if minutes < minutes_min {
        let text = format!("{minutes:.0} of at least {minutes_min:.0} minutes at {}", state.stage);
        return verdict(Decision::Hold, text);
    }
    if requests < requests_min {
        let text = format!(
            "{requests} of at least {requests_min} requests of the challenger at {}",
            state.stage
        );
        return verdict(Decision::Hold, text);
    }
    if let Some(waits) = readings.iter().find(|reading| reading.waits) {
        return verdict(Decision::Hold, waits.text.clone());
    }
    let seen: Vec<&str> = readings.iter().map(|r| r.text.as_str()).collect();
    let text = format!("no guardrail breached after {minutes:.0} minutes: {}", seen.join("; "));
    verdict(Decision::Advance(next), text)
}

/// What each guardrail sees.
fn readings<'a, I: Iterator<Item = &'a StageCounts>>(
    stage: Stage,
    own: impl Fn() -> I,
    here: Option<&StageCounts>,
    settings: &Settings,
) -> Vec<Reading> {
    let mut readings = Vec::new();
    if stage != Stage::Shadow {
        let at = settings.percents.iter().position(|&percent| percent == stage.percent());
        let margin = |of: &[f64]| at.and_then(|at| of.get(at).copied()).unwrap_or(0.0);
        let (ctr, revenue) = (margin(&settings.ctr_margins), margin(&settings.revenue_margins));
        for (metric, margin) in [(Metric::Ctr, ctr), (Metric::Revenue, revenue)] {
            readings.push(ratio(metric, margin, compare(metric, own()), settings));
        }
    }
    if let Some(here) = here {
        let [stable, challenger] = &here.arms;
        readings.push(errors(stable, challenger, settings));
        readings.extend(p99(stable, challenger, settings));
        readings.extend(psi(challenger, settings));
    }
    readings
}

fn ratio(metric: Metric, margin: f64, found: Option<Comparison>, settings: &Settings) -> Reading {
    let (guardrail, name, per) = match metric {
        Metric::Ctr => ("ctr", "CTR", "clicks"),
        Metric::Revenue => ("revenue", "revenue per request", "sales"),
    };
    let Some(found) = found.filter(|found| found.expected >= settings.expected_min) else {
        let has = found.map_or(0.0, |found| found.expected);
        let text = format!(
            "{name}: too few {per} to compare, the challenger's share would bring {has:.0} of {:.0}",
            settings.expected_min
        );
        return Reading { guardrail, text, breached: false, waits: margin > 0.0 };
    };
    let interval = Interval::of(&found, settings);
    let [low, high] = interval.shown;
    let mut text = format!(
        "{name} {:+.1} % ({:+.1} to {:+.1} %: {:.4} against {:.4})",
        100.0 * found.relative,
        100.0 * low,
        100.0 * high,
        found.rates[1],
        found.rates[0],
    );
    let breached = interval.at_most < 0.0;
    let waits = !breached && margin > 0.0 && interval.at_least < -margin;
    if breached {
        text = format!("{text}: worse than the stable version");
    } else if waits {
        text = format!("{text}: a loss of {:.1} % is not ruled out yet", 100.0 * margin);
    }
    Reading { guardrail, text, breached, waits }
}

/// What is known of a relative difference, at every look.
struct Interval {
    /// Both sides, at the level of rollbacks: for people.
    shown: [f64; 2],
    /// One-sided bounds that decide.
    at_most: f64,
    at_least: f64,
}

impl Interval {
    fn of(found: &Comparison, settings: &Settings) -> Self {
        let information = (STANDARD_ERRORS / settings.smallest_effect).powi(2);
        let back = settings.false_rollback_max * SHARE_OF_RATIOS;
        let forth = settings.false_advance_max;
        let up = Mixture::tuned(information, back).one_sided(found.variance, back);
        let down = Mixture::tuned(information, forth).one_sided(found.variance, forth);
        let both = Mixture::tuned(information, 0.05).two_sided(found.variance, 0.05);
        Self {
            shown: [found.relative - both, found.relative + both],
            at_most: found.relative + up,
            at_least: found.relative - down,
        }
    }
}

fn errors(stable: &ArmCounts, challenger: &ArmCounts, settings: &Settings) -> Reading {
    let share = |arm: &ArmCounts| arm.errors as f64 / arm.requests.max(1) as f64;
    // The stable version may fail for a moment at the start; only many requests make that its rate.
    let of_stable = match stable.requests >= settings.stable_requests_min {
        true => share(stable),
        false => 0.0,
    };
    let limit = of_stable + settings.errors_margin;
    let alpha = settings.false_rollback_max * SHARE_OF_RATES;
    let breached = Bets::against(limit).refute(challenger.errors, challenger.requests, alpha);
    let text = format!(
        "{:.3} % of {} requests of the challenger failed, {:.3} % of {} of the stable version",
        100.0 * share(challenger),
        challenger.requests,
        100.0 * share(stable),
        stable.requests
    );
    Reading { guardrail: "errors", text, breached, waits: false }
}

fn p99(stable: &ArmCounts, challenger: &ArmCounts, settings: &Settings) -> Option<Reading> {
    if stable.latency.total() < settings.stable_requests_min {
        return None;
    }
    let of_stable = stable.latency.quantile_us(0.99)?;
    let of_challenger = challenger.latency.quantile_us(0.99)?;
    let limit = of_stable * settings.p99_ratio + settings.p99_slack_ms * 1000.0;
    let alpha = settings.false_rollback_max * SHARE_OF_RATES;
    // Its p99 is above the limit when more than 1 % of its requests are.
    let over = challenger.latency.over(limit);
    let breached = Bets::against(0.01).refute(over, challenger.latency.total(), alpha);
    let text = format!(
        "p99 {:.2} ms against {:.2} ms, limit {:.2} ms",
        of_challenger / 1000.0,
        of_stable / 1000.0,
        limit / 1000.0
    );
    Some(Reading { guardrail: "p99", text, breached, waits: false })
}

fn psi(challenger: &ArmCounts, settings: &Settings) -> Option<Reading> {
    let drift = challenger.drift.as_ref()?;
    let breached = drift.psi > settings.psi_max;
    let text =
        format!("PSI of `{}` {:.3}, at most {:.3}", drift.feature, drift.psi, settings.psi_max);
    Some(Reading { guardrail: "psi", text, breached, waits: false })
}

#[cfg(test)]
mod tests;
