//! s4: the forest's score of every candidate.
//!
//! Fallback: with too little time left, or a score that is not a number, the order in which s2 left
//! the candidates stands, and the answer says so.

use super::Context;
use super::context::{Ranked, Scratch};
use super::deadline::Part;
use crate::features::Candidate;
use crate::monitor::Fallback;

/// Fills the ranked list, parallel to the candidates; keeps every candidate and its order.
pub fn run(cx: &mut Context) {
    let needed = cx.serving.settings.pipeline.budgets_us.from_ranking();
    let ranked_ok = !cx.unranked && cx.has_time(Part::Ranking, needed) && score(cx);
    let Scratch { candidates, sources, raw, ranked, .. } = &mut *cx.scratch;
    ranked.clear();
    let brought = candidates.iter().zip(&*sources);
    if ranked_ok {
        let ranker = &cx.serving.bundle.ranker;
        ranked.extend(brought.zip(&*raw).map(|((candidate, &source), &raw)| Ranked {
            item: candidate.item,
            score: ranker.probability(raw) as f32,
            source,
        }));
    } else {
        let count = candidates.len() as f32;
        ranked.extend(brought.zip(0..).map(|((candidate, &source), place)| Ranked {
            item: candidate.item,
            score: unranked(candidate, place as f32 / count),
            source,
        }));
        // Popular items in their order are said already.
        if !cx.degraded.contains(&Fallback::PopularItems) {
            cx.degrade(Fallback::RetrievalOrder);
        }
    }
}

/// A share of 1, as a probability is, so that the factors of the rules raise it. Without a
/// similarity, the place among the candidates decides, from 0 to below 1.
fn unranked(candidate: &Candidate, place: f32) -> f32 {
    if candidate.similarity.is_nan() {
        0.5 * (1.0 - place)
    } else {
        0.5 * (1.0 + candidate.similarity)
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
