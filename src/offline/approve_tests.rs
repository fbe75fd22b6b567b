use super::*;
use crate::offline::audit::Leak;

const START: i64 = 1_700_006_400_000;
const WINDOW: [i64; 2] = [START, START + DAY_MS];

fn report(ndcg_lo: f64, recall_lo: f64, auc: f64) -> Report {
    let gain = |lo: f64| Estimate { mean: lo + 0.01, lo, hi: lo + 0.02 };
    let mut report = Report {
        window_ms: WINDOW,
        alone: vec![("similarity".into(), 0.8)],
        baseline: Some(Baseline {
            version: "yesterday".into(),
            as_of_ms: START,
            trained_until_ms: START - DAY_MS,
            silent: None,
        }),
        ..Report::default()
    };
    report.ranker.insert("ranker/auc".into(), Estimate { mean: auc, lo: auc, hi: auc });
    report.differences.insert("ranker - previous/ndcg@10".into(), gain(ndcg_lo));
    let key = "towers - popularity/new-to-user/recall@500";
    report.differences.insert(key.into(), gain(recall_lo));
    report
}

fn gate() -> Config {
    Config {
        ndcg_margin: 0.002,
        recall_margin: 0.01,
        recall_at: 500,
        auc_min: 0.5,
        leak_auc_max: 0.99,
        baseline_days_max: 7,
    }
}

fn asked() -> Asked<'static> {
    Asked { window_ms: WINDOW, serving: Some("yesterday") }
}

/// The one check that fails.
fn refusal(report: &Report) -> Check {
    let decision = decide(report, asked(), &gate(), None);
    assert!(!decision.approved);
    let mut failed: Vec<Check> = decision.checks.into_iter().filter(|c| !c.passed).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    failed.remove(0)
}

#[test]
fn a_loss_beyond_the_margin_is_refused_by_name() {
    let approved = |r: &Report| decide(r, asked(), &gate(), None).approved;
    assert!(approved(&report(0.0, 0.0, 0.8)));
    assert!(approved(&report(-0.001, -0.009, 0.8)), "within both margins");
    let refused = refusal(&report(-0.003, 0.0, 0.8));
    assert_eq!(refused.name, "ranker - previous/ndcg@10");
    assert!(refused.text.starts_with("perhaps worse") && refused.text.contains("ndcg_margin"));
    assert!(refusal(&report(-0.5, 0.0, 0.8)).text.starts_with("worse"));
    assert!(refusal(&report(0.0, -0.02, 0.8)).name.starts_with("towers - popularity"));
    let mut unmeasured = report(0.0, 0.0, 0.8);
    unmeasured.differences.retain(|name, _| !name.starts_with("towers"));
    assert_eq!(refusal(&unmeasured).name, "towers", "what was not measured does not pass");
    assert!(!approved(&Report::default()), "nothing measured is no approval");
    let mut against_previous = report(0.0, 0.0, 0.8);
    let lost = Estimate { mean: -0.3, lo: -0.4, hi: -0.2 };
    let key = "towers - previous/new-to-user/recall@500";
    against_previous.differences.insert(key.into(), lost);
    assert_eq!(refusal(&against_previous).name, key);
}

#[test]
fn chance_faults_and_figures_that_are_no_numbers_are_refused() {
    assert_eq!(refusal(&report(0.0, 0.0, 0.5)).name, "chance");
    let mut broken = report(0.0, 0.0, 0.8);
    broken.faults.push("ranker.txt: leaf 3 of tree 0 is NaN".into());
    let refused = refusal(&broken);
    assert_eq!(refused.name, "models");
    assert!(refused.text.contains("leaf 3 of tree 0"), "{}", refused.text);
    let mut nan = report(0.0, 0.0, 0.8);
    nan.ranker.insert("ranker/gauc".into(), Estimate { mean: f64::NAN, lo: 0.1, hi: 0.2 });
    let refused = refusal(&nan);
    assert_eq!(
        (refused.name.as_str(), refused.text.as_str()),
        ("figures", "not finite: ranker/gauc")
    );
    // A NaN that decides does not slip through a comparison.
    assert!(!decide(&report(f64::NAN, 0.0, 0.8), asked(), &gate(), None).approved);
    assert!(!decide(&report(0.0, 0.0, f64::NAN), asked(), &gate(), None).approved);
}

#[test]
fn leaks_are_refused_by_the_features_name() {
    let mut future = report(0.0, 0.0, 0.8);
    let leak = |feature: &str| Leak {
        feature: feature.into(),
        day: "2026-01-09".into(),
        rows: 12,
        compared: 100,
    };
    future.leaks = vec![leak("item_positives_7d")];
    let refused = refusal(&future);
    assert_eq!(refused.name, "leak: future");
    assert!(refused.text.contains("item_positives_7d as of 2026-01-09"), "{}", refused.text);
    let mut telling = report(0.0, 0.0, 0.8);
    telling.alone.insert(0, ("context_checkout".into(), 0.997));
    let refused = refusal(&telling);
    assert_eq!(refused.name, "leak: alone");
    assert!(refused.text.contains("context_checkout (AUC 0.9970)"), "{}", refused.text);
    assert!(!refused.text.contains("similarity"));
}

#[test]
fn a_stale_or_strange_baseline_is_refused_with_what_to_do() {
    let with = |change: &dyn Fn(&mut Baseline)| {
        let mut report = report(0.0, 0.0, 0.8);
        change(report.baseline.as_mut().unwrap());
        refusal(&report)
    };
    let stale = with(&|b| b.as_of_ms = START - 8 * DAY_MS);
    assert!(stale.text.contains("8 days before the test (at most 7"), "{}", stale.text);
    assert!(stale.text.contains("pipeline refresh"), "{}", stale.text);
    let seen = with(&|b| b.trained_until_ms = START + 1);
    assert!(seen.text.contains("it has seen the answers"), "{}", seen.text);
    let silent = with(&|b| b.silent = Some("it does not open".into()));
    assert!(silent.text.contains("it does not open"), "{}", silent.text);
    let other = with(&|b| b.version = "last week".into());
    assert!(other.text.contains("compared with last week, but yesterday serves"), "{}", other.text);
    let mut none = report(0.0, 0.0, 0.8);
    none.baseline = None;
    assert!(refusal(&none).text.contains("compared with nothing, but yesterday serves"));
    let first = Asked { serving: None, ..asked() };
    assert!(decide(&none, first, &gate(), None).approved, "the first bundle has no baseline");
    let mut elsewhere = report(0.0, 0.0, 0.8);
    elsewhere.window_ms = [START - DAY_MS, START];
    assert_eq!(refusal(&elsewhere).name, "window");
    let mut lenient = gate();
    lenient.baseline_days_max = 0;
    let mut old = report(0.0, 0.0, 0.8);
    old.baseline.as_mut().unwrap().as_of_ms = 0;
    assert!(decide(&old, asked(), &lenient, None).approved, "0 asks nothing");
}

#[test]
fn an_override_is_recorded_with_who_and_why_only_where_it_was_needed() {
    let word = || Override { who: "ada".into(), why: "launch day".into(), time_ms: 7 };
    let refused = decide(&report(-1.0, 0.0, 0.8), asked(), &gate(), Some(word()));
    assert_eq!((refused.approved, refused.overridden), (false, Some(word())));
    let passed = decide(&report(0.0, 0.0, 0.8), asked(), &gate(), Some(word()));
    assert_eq!((passed.approved, passed.overridden), (true, None));
}
