//! `GET /v1/drift`: how far what the ranker sees is from its training.

use serde_json::{Map, Value, json};

use super::json as bytes;
use crate::drift::{SHIFTED_MIN, STABLE_MAX};
use crate::experiments::Arm;
use crate::pipeline::drift::{Drifted, Latest};

/// Features that are shown with their histograms.
const MOVERS: usize = 20;

/// The body of the answer.
pub fn drift(latest: &Latest) -> Vec<u8> {
    let mut body = Map::new();
    body.insert("thresholds".into(), json!({"moderate": STABLE_MAX, "shifted": SHIFTED_MIN}));
    for arm in Arm::ALL {
        body.insert(arm.name().into(), latest[arm as usize].as_ref().map_or(Value::Null, version));
    }
    bytes(&body)
}

fn version(drifted: &Drifted) -> Value {
    let Drifted { bundle_version, population, report } = drifted;
    let Some(report) = report else {
        return json!({
            "bundle_version": bundle_version,
            "rows": population,
            "remark": "fewer requests than drift.requests_min",
        });
    };
    let psi: Map<String, Value> =
        report.features.iter().map(|row| (row.name.clone(), json!(row.psi))).collect();
    json!({
        "bundle_version": bundle_version,
        "rows": population,
        "requests": report.requests,
        "since_ms": report.since_ms,
        "top_movers": report.features.iter().take(MOVERS).collect::<Vec<_>>(),
        "score": report.score,
        "categories_shown": report.categories,
        "psi": psi,
    })
}
