//! Step `approve`: the gate. A bundle is published only when it is whole, knows nothing of the future,
//! was compared with what serves now, and is better with confidence, or not worse than the margins
//! allow.
//!
//! Invariant: what was not measured does not pass. Every check says what it saw, and a refusal what to
//! do about it.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::audit::Leak;
use super::evaluate::{Baseline, Report};
use super::metrics::Estimate;
use crate::types::{DAY_MS, date_of};

/// Section `[offline.gate]`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How much of NDCG@10 the ranker may lose against any baseline, at the lower end of the
    /// interval of the difference.
    pub ndcg_margin: f64,
    /// How much of the recall of new items the towers may lose against popularity and the serving
    /// bundle, and of recall@20 the whole path against the serving bundle, likewise.
    pub recall_margin: f64,
    /// The k of the recall that decides; 0 leaves recall out of the gate.
    pub recall_at: usize,
    /// The ranker's AUC, at the lower end of its interval, is above this.
    pub auc_min: f64,
    /// A feature whose AUC alone reaches this is taken for the answer itself.
    pub leak_auc_max: f64,
    /// A serving bundle that knows nothing of the last so many days before the test is no baseline;
    /// 0 asks nothing.
    pub baseline_days_max: i64,
}

impl Config {
    /// Refuses limits that nothing could pass, or everything would.
    pub fn check(&self) -> Result<()> {
        let share = |key: &str, value: f64| {
            anyhow::ensure!(
                (0.0..=1.0).contains(&value),
                "offline.gate.{key} = {value}: give a number from 0 to 1"
            );
            Ok(())
        };
        share("ndcg_margin", self.ndcg_margin)?;
        share("recall_margin", self.recall_margin)?;
        share("auc_min", self.auc_min)?;
        share("leak_auc_max", self.leak_auc_max)?;
        anyhow::ensure!(
            self.baseline_days_max >= 0,
            "offline.gate.baseline_days_max = {}: give at least 0",
            self.baseline_days_max
        );
        Ok(())
    }
}

/// What the gate said; `decision.json`, and `gate` in the bundle's report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Decision {
    pub approved: bool,
    /// One line a check, passed or not.
    pub checks: Vec<Check>,
    /// Who let a refused bundle out all the same, and why.
    pub overridden: Option<Override>,
}

/// One check of the gate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub passed: bool,
    pub text: String,
}

/// A person's word against the gate's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    pub who: String,
    pub why: String,
    /// Epoch milliseconds.
    pub time_ms: i64,
}

/// What the run that asks is about, to see that the report is of it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The test days.
    pub window_ms: [i64; 2],
    /// The bundle that serves now, as far as it is another one.
    pub serving: Option<&'a str>,
}

/// Judges a report.
pub fn decide(
    report: &Report,
    asked: Asked,
    config: &Config,
    overridden: Option<Override>,
) -> Decision {
    let mut checks = vec![models(report), figures(report)];
    checks.extend(leak(report, config));
    checks.push(window(report, asked));
    checks.push(baseline(report, asked, config));
    checks.push(chance(report, config));
    let differences = report.differences.iter().filter(|(name, _)| name.ends_with("/ndcg@10"));
    for (name, gain) in differences.filter(|(name, _)| name.starts_with("ranker - ")) {
        checks.push(not_worse(name, *gain, config.ndcg_margin, "ndcg_margin"));
    }
    checks.extend(towers(report, config));
    let approved = checks.iter().all(|check| check.passed);
    Decision { approved, checks, overridden: overridden.filter(|_| !approved) }
}

fn check(name: &str, passed: bool, text: impl Into<String>) -> Check {
    Check { name: name.to_owned(), passed, text: text.into() }
}

fn models(report: &Report) -> Check {
    match report.faults.as_slice() {
        [] => check("models", true, "every number in them is finite"),
        faults => check("models", false, format!("{}: train them again", faults.join("; "))),
    }
}

fn figures(report: &Report) -> Check {
    let all = report.ranker.iter().chain(&report.towers).chain(&report.differences);
    let bad: Vec<&str> = all
        .filter(|(_, e)| ![e.mean, e.lo, e.hi].iter().all(|value| value.is_finite()))
        .map(|(name, _)| name.as_str())
        .collect();
    let count = report.ranker.len();
    if count == 0 {
        return check("figures", false, "nothing of the ranker was measured");
    }
    match bad.as_slice() {
        [] => check("figures", true, format!("{count} ranker figures, all finite")),
        bad => check("figures", false, format!("not finite: {}", bad.join(", "))),
    }
}

/// So many leaking features stand in a line; the report has all.
const NAMED_MAX: usize = 12;

/// Two looks at leaks: rows that change when the future is taken away, and features that give the
/// answer away by themselves (Kaufman et al. 2012 call the latter the tell-tale of a leak).
fn leak(report: &Report, config: &Config) -> [Check; 2] {
    let name = |leak: &Leak| format!("{} as of {} ({} rows)", leak.feature, leak.day, leak.rows);
    let mut named: Vec<String> = report.leaks.iter().take(NAMED_MAX).map(name).collect();
    if let Some(more) = report.leaks.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        named.push(format!("and {more} more in report.json"));
    }
    let future = match named.as_slice() {
        [] => check("leak: future", true, "no feature reads what came after its row"),
        named => check(
            "leak: future",
            false,
            format!(
                "these features read what came after their rows: {}; make their tables again \
                 (remove `features` in offline.work_dir), or take them out of the schema",
                named.join(", ")
            ),
        ),
    };
    let tell = |(name, auc): &(String, f64)| format!("{name} (AUC {auc:.4})");
    let telling: Vec<String> =
        report.alone.iter().filter(|(_, auc)| *auc >= config.leak_auc_max).map(tell).collect();
    let alone = match (report.alone.first(), telling.as_slice()) {
        (None, _) => check("leak: alone", false, "no feature was looked at by itself"),
        (Some(best), []) => {
            let text = format!("the most telling feature is {}", tell(best));
            check("leak: alone", true, text)
        }
        (_, telling) => check(
            "leak: alone",
            false,
            format!(
                "these features know the answer: {}, at most {} (offline.gate.leak_auc_max) is \
                 believed; take them out of the schema, or see whether they are known before the \
                 request",
                telling.join(", "),
                config.leak_auc_max
            ),
        ),
    };
    [future, alone]
}

fn window(report: &Report, asked: Asked) -> Check {
    let say = |window: [i64; 2]| format!("{} to {}", date_of(window[0]), date_of(window[1]));
    if report.window_ms == asked.window_ms {
        return check("window", true, format!("measured on {}", say(asked.window_ms)));
    }
    let text = format!(
        "the report was measured on {}, the test days are {}: run `shortlist pipeline evaluate` again",
        say(report.window_ms),
        say(asked.window_ms)
    );
    check("window", false, text)
}

fn baseline(report: &Report, asked: Asked, config: &Config) -> Check {
    let refuse = |text: String| check("baseline", false, text);
    let (found, serving) = match (&report.baseline, asked.serving) {
        (None, None) => return check("baseline", true, "nothing serves yet"),
        (found, serving) => (found.as_ref(), serving),
    };
    let name = |version: Option<&str>| version.unwrap_or("nothing").to_owned();
    let compared = found.map(|found| found.version.as_str());
    if compared != serving {
        return refuse(format!(
            "compared with {}, but {} serves: run `shortlist pipeline evaluate` again",
            name(compared),
            name(serving)
        ));
    }
    let Some(Baseline { version, as_of_ms, trained_until_ms, silent }) = found else {
        return check("baseline", true, "nothing serves yet");
    };
    if let Some(why) = silent {
        return refuse(format!(
            "{version} serves and could not be compared: {why}; `--override` publishes without a \
             comparison"
        ));
    }
    let start = asked.window_ms[0];
    if *trained_until_ms > start {
        return refuse(format!(
            "{version} learnt from events up to {}, the test begins on {}: it has seen the answers. \
             Move offline.window.until on, so that the test days are later",
            date_of(*trained_until_ms),
            date_of(start)
        ));
    }
    let days = (start - as_of_ms).max(0) / DAY_MS;
    if config.baseline_days_max > 0 && days > config.baseline_days_max {
        return refuse(format!(
            "{version} is stale: it knows nothing after {}, {days} days before the test (at most {}, \
             offline.gate.baseline_days_max). To beat it says little: refresh it with `shortlist \
             pipeline refresh`, or publish with `--override`",
            date_of(*as_of_ms),
            config.baseline_days_max
        ));
    }
    check("baseline", true, format!("compared with {version}, {days} days before the test"))
}

fn chance(report: &Report, config: &Config) -> Check {
    let limit = config.auc_min;
    match report.ranker.get("ranker/auc") {
        Some(auc) if auc.lo > limit => {
            check("chance", true, format!("AUC at least {:.4}, above {limit}", auc.lo))
        }
        Some(auc) => check(
            "chance",
            false,
            format!(
                "the lower end of the AUC's 95 % interval is {:.4}, not above {limit} \
                 (offline.gate.auc_min): the ranker is no better than chance; see its labels",
                auc.lo
            ),
        ),
        None => check("chance", false, "no AUC was measured: the test days have one outcome only"),
    }
}

fn towers(report: &Report, config: &Config) -> Vec<Check> {
    if config.recall_at == 0 {
        return Vec::new();
    }
    let suffix = format!("/new-to-user/recall@{}", config.recall_at);
    let rivals = ["towers - popularity", "towers - previous"];
    let counts =
        |name: &str| name.ends_with(&suffix) && rivals.iter().any(|rival| name.starts_with(rival));
    let found = report.differences.iter().filter(|(name, _)| counts(name));
    let mut checks: Vec<Check> = found
        .map(|(name, gain)| not_worse(name, *gain, config.recall_margin, "recall_margin"))
        .collect();
    if checks.iter().any(|check| check.name.starts_with("towers")) {
        return checks;
    }
    let text = format!(
        "no recall@{} of new items was measured; put it into offline.evaluate.recall_at, or set \
         offline.gate.recall_at = 0",
        config.recall_at
    );
    checks.push(check("towers", false, text));
    checks
}

/// A gain is not below the margin, all of its interval.
fn not_worse(name: &str, gain: Estimate, margin: f64, key: &str) -> Check {
    let passed = gain.lo >= -margin;
    let verdict = match gain {
        Estimate { lo, .. } if lo > 0.0 => "better with confidence",
        _ if passed => "not worse within the margin",
        Estimate { hi, .. } if hi < 0.0 => "worse",
        _ => "perhaps worse",
    };
    let Estimate { mean, lo, hi } = gain;
    let text = format!(
        "{verdict}: {mean:+.4}, 95 % between {lo:+.4} and {hi:+.4}; may lose {margin} \
         (offline.gate.{key})"
    );
    check(name, passed, text)
}

#[cfg(test)]
#[path = "approve_tests.rs"]
mod tests;
