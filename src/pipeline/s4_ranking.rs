//! s4: the forest's score of every candidate.
//!
//! Fallback: with too little time left, or a score that is not a number, retrieval's order stands
//! and the answer says so.

use std::time::Duration;

use super::Context;
use super::context::Ranked;
use crate::monitor::Fallback;

/// Fills the ranked list, parallel to the candidates; keeps every candidate and its order.
pub fn run(cx: &mut Context) {
    let needed = Duration::from_micros(cx.serving.settings.pipeline.ranking_min_us);
    let ranked_ok = cx.deadline.allows(needed) && score(cx);
    let scratch = &mut *cx.scratch;
    scratch.ranked.clear();
    if ranked_ok {
        let ranker = &cx.serving.bundle.ranker;
        let scores = scratch.candidates.iter().zip(&scratch.raw);
        scratch.ranked.extend(
            scores.map(|(c, &raw)| Ranked { item: c.item, score: ranker.probability(raw) as f32 }),
        );
    } else {
        // A share of 1, as a probability is, so that the factors of the rules raise it.
        let by_similarity = |c: &crate::features::Candidate| Ranked {
            item: c.item,
            score: 0.5 * (1.0 + c.similarity),
        };
        scratch.ranked.extend(scratch.candidates.iter().map(by_similarity));
        cx.degrade(Fallback::RetrievalOrder);
    }
}

fn score(cx: &mut Context) -> bool {
    let Some(ahead) = &mut cx.ahead else { return false };
    let scratch = &mut *cx.scratch;
    scratch.raw.clear();
    scratch.raw.resize(scratch.candidates.len(), 0.0);
    let items = scratch.candidates.iter().map(|candidate| candidate.item);
    let (changed, candidates) = (&cx.late, &scratch.candidates);
    let late = scratch.late.iter().filter_map(|&at| {
        let item = changed.get(candidates[at as usize].item)?;
        Some((at as usize, &item.content.as_ref()?.bins[..]))
    });
    let ranking = &cx.serving.bundle.ranking;
    ranking.score(items, late, &scratch.columns, &mut ahead.ranking, &mut scratch.raw)
        && scratch.raw.iter().all(|raw| raw.is_finite())
}
