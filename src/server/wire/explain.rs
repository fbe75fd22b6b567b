//! `POST /v1/explain`: a request, and the item to be explained.

use serde::Serialize;
use serde_json::Value;

use super::fields::Object;
use super::{Ask, Fault, ask_of, json, parse};
use crate::pipeline::explain::{
    ExactRank, Explanation, FeatureEffect, ItemExplained, Outcome, Ranking, Retrieval, Rules,
};

/// Reads a body of `POST /v1/explain`.
pub fn explain(body: &[u8]) -> Result<(Ask, Option<String>), Fault> {
    let mut object = Object::new(parse(body)?, "")?;
    object.allow(&["request", "item"])?;
    let request = object.object("request")?;
    let request = request
        .ok_or_else(|| object.missing("request", "give a body of POST /v1/recommendations"))?;
    Ok((ask_of(request)?, object.text("item")?))
}

/// The body of its answer.
pub fn explanation(explanation: &Explanation) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        bundle_version: &'a str,
        variant: &'a str,
        candidates: usize,
        degraded: &'a [&'static str],
        items: Vec<Value>,
    }
    let answer = &explanation.answer;
    json(&Body {
        bundle_version: &answer.bundle_version,
        variant: &answer.variant,
        candidates: explanation.candidates,
        degraded: &answer.degraded,
        items: explanation.items.iter().map(item).collect(),
    })
}

fn item(item: &ItemExplained) -> Value {
    let (outcome, position, lost) = match &item.outcome {
        Outcome::Returned { position } => ("returned", Some(*position), None),
        Outcome::Lost { stage, cause, text } => {
            ("lost", None, Some(serde_json::json!({"stage": stage, "cause": cause, "text": text})))
        }
    };
    serde_json::json!({
        "item_id": item.item_id,
        "title": item.title,
        "category": item.category,
        "outcome": outcome,
        "position": position,
        "lost": lost,
        "retrieval": retrieval(&item.retrieval),
        "ranking": item.ranking.as_ref().map(ranking),
        "rules": item.rules.as_ref().map(rules),
    })
}

fn retrieval(retrieval: &Retrieval) -> Value {
    let (rank, beyond) = match retrieval.exact_rank {
        Some(ExactRank::At(rank)) => (Some(rank), None),
        Some(ExactRank::Beyond(rank)) => (None, Some(rank)),
        None => (None, None),
    };
    serde_json::json!({
        "score": retrieval.score,
        "source": retrieval.source.map(|source| source.name()),
        "rank": retrieval.rank,
        "exact_rank": rank,
        "exact_rank_beyond": beyond,
    })
}

fn ranking(ranking: &Ranking) -> Value {
    let feature = |feature: &FeatureEffect| {
        serde_json::json!({
            "name": feature.name,
            // JSON has no NaN: a missing value is null.
            "value": feature.value,
            "contribution": feature.contribution,
        })
    };
    serde_json::json!({
        "position": ranking.position,
        "raw_score": ranking.raw,
        "probability": ranking.probability,
        "expected": ranking.expected,
        "features": ranking.features.iter().map(feature).collect::<Vec<_>>(),
    })
}

fn rules(rules: &Rules) -> Value {
    serde_json::json!({
        "freshness": rules.freshness,
        "score": rules.score,
        "position": rules.position,
        "dropped": rules.dropped.map(|why| why.name()),
    })
}
