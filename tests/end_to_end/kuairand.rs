//! The ranker on real impressions: KuaiRand-Pure, is_click, 30 April 2022.

use std::path::Path;

use crate::support::run;

/// AUC of a plain LightGBM over the given columns less what a changed feature may cost: the goal
/// is to equal it.
const AUC_MIN: f64 = 0.755;
const GAUC_MIN: f64 = 0.650;

#[test]
fn equals_a_plain_lightgbm_on_real_impressions() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let input = root.join("../shared/data/kuairand-pure");
    if !input.exists() {
        println!("skipped: the data set KuaiRand-Pure is not at {}", input.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (data, work, models) = (at("data"), at("work"), at("models"));
    let config = root.join("config/kuairand.toml").display().to_string();
    let sql = root.join("config/kuairand/import.sql").display().to_string();
    let input = input.display().to_string();
    run(root, &[], &["import", "--sql", &sql, "--input", &input, "--out", &data]);
    let settings = [
        ("SHORTLIST__OFFLINE__DATA_DIR", data.as_str()),
        ("SHORTLIST__OFFLINE__WORK_DIR", &work),
        ("SHORTLIST__REGISTRY__URL", &models),
    ];
    run(root, &settings, &["--config", &config, "pipeline", "evaluate"]);
    let report = std::fs::read(dir.path().join("work/evaluate/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let mean = |metric: &str| report["ranker"][metric]["mean"].as_f64().unwrap();
    let (auc, gauc) = (mean("ranker/auc"), mean("ranker/gauc"));
    println!("KuaiRand-Pure, 30 April: AUC {auc:.4}, GAUC {gauc:.4}");
    assert!(auc >= AUC_MIN, "AUC {auc}");
    assert!(gauc >= GAUC_MIN, "GAUC {gauc}");
}
