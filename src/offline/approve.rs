//! Step `approve`: the gate. A bundle is published only when it is better with confidence, or
//! not worse than the margins allow.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::evaluate::Report;

/// Section `[offline.gate]`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How much of NDCG@10 the ranker may lose against any baseline, at the lower end of the
    /// interval of the difference.
    pub ndcg_margin: f64,
    /// How much of the recall of new items the towers may lose against popularity, likewise.
    pub recall_margin: f64,
    /// The k of the recall that decides; 0 leaves the towers out of the gate.
    pub recall_at: usize,
}

/// What the gate said; `decision.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Decision {
    pub approved: bool,
    /// One line a check, passed or not.
    pub checks: Vec<Check>,
    /// Why a refused bundle goes out all the same.
    pub overridden: Option<String>,
}

/// One check of the gate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub passed: bool,
    pub text: String,
}

/// Judges a report.
pub fn decide(report: &Report, config: &Config, overridden: Option<String>) -> Result<Decision> {
    let mut checks = Vec::new();
    let differences = report.differences.iter().filter(|(name, _)| name.ends_with("/ndcg@10"));
    for (name, gain) in differences {
        checks.push(above(name, gain.lo, -config.ndcg_margin));
    }
    let suffix = format!("/new-to-user/recall@{}", config.recall_at);
    let popular = |name: &str| name.starts_with("towers - popularity") && name.ends_with(&suffix);
    let mut measured = false;
    for (name, gain) in report.differences.iter().filter(|(name, _)| popular(name)) {
        measured = true;
        checks.push(above(name, gain.lo, -config.recall_margin));
    }
    if config.recall_at > 0 && !measured {
        checks.push(Check {
            name: "towers".into(),
            passed: false,
            text: format!(
                "no recall@{} of new items was measured; put it into offline.evaluate.recall_at, \
                 or set offline.gate.recall_at = 0",
                config.recall_at
            ),
        });
    }
    let finite = report.ranker.values().chain(report.towers.values()).all(|e| e.mean.is_finite());
    checks.push(Check {
        name: "figures".into(),
        passed: finite && !report.ranker.is_empty(),
        text: format!(
            "{} ranker figures, {}",
            report.ranker.len(),
            if finite { "all finite" } else { "not all finite" }
        ),
    });
    let approved = checks.iter().all(|check| check.passed);
    Ok(Decision { approved, checks, overridden: overridden.filter(|_| !approved) })
}

fn above(name: &str, lo: f64, limit: f64) -> Check {
    let passed = lo >= limit;
    let relation = if passed { ">=" } else { "below" };
    let text = format!("lower end of the 95 % interval {lo:+.4} {relation} {limit:+.4}");
    Check { name: name.to_owned(), passed, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::metrics::Estimate;

    fn report(ndcg_lo: f64, recall_lo: f64, auc: f64) -> Report {
        let gain = |lo: f64| Estimate { mean: lo + 0.01, lo, hi: lo + 0.02 };
        let mut report = Report::default();
        report.ranker.insert("ranker/auc".into(), Estimate { mean: auc, lo: auc, hi: auc });
        report.differences.insert("ranker - previous/ndcg@10".into(), gain(ndcg_lo));
        let key = "towers - popularity/new-to-user/recall@500";
        report.differences.insert(key.into(), gain(recall_lo));
        report
    }

    fn gate() -> Config {
        Config { ndcg_margin: 0.002, recall_margin: 0.01, recall_at: 500 }
    }

    #[test]
    fn a_loss_beyond_the_margin_is_refused_by_name() {
        let decide = |r: &Report| decide(r, &gate(), None).unwrap();
        assert!(decide(&report(0.0, 0.0, 0.8)).approved);
        assert!(decide(&report(-0.001, -0.009, 0.8)).approved, "within both margins");
        let refused = decide(&report(-0.003, 0.0, 0.8));
        let failed: Vec<_> = refused.checks.iter().filter(|c| !c.passed).collect();
        assert_eq!((refused.approved, failed.len()), (false, 1));
        assert_eq!(failed[0].name, "ranker - previous/ndcg@10");
        assert!(!decide(&report(0.0, -0.02, 0.8)).approved);
        assert!(!decide(&report(0.0, 0.0, f64::NAN)).approved);
        let mut unmeasured = report(0.0, 0.0, 0.8);
        unmeasured.differences.retain(|name, _| !name.starts_with("towers"));
        assert!(!decide(&unmeasured).approved, "towers that were not measured do not pass");
        assert!(!decide(&Report::default()).approved, "nothing measured is no approval");
    }

    #[test]
    fn an_override_is_recorded_only_where_it_was_needed() {
        let why = || Some("launch day".to_owned());
        let refused = decide(&report(-1.0, 0.0, 0.8), &gate(), why()).unwrap();
        assert_eq!((refused.approved, refused.overridden.as_deref()), (false, Some("launch day")));
        let passed = decide(&report(0.0, 0.0, 0.8), &gate(), why()).unwrap();
        assert_eq!((passed.approved, passed.overridden), (true, None));
    }
}
