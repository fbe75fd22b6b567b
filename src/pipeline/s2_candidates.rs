//! s2: the nearest items that pass the filters.
//!
//! In stock, region and recently shown act inside the search, so that filtered-out items cost no
//! candidate.

use super::Context;
use super::answer::Reason;
use crate::features::Candidate;
use crate::index::Filter;

/// Fills the candidates, best first.
pub fn run(cx: &mut Context) {
    let serving = cx.serving.clone();
    let (bundle, inputs) = (&serving.bundle, cx.inputs.clone());
    let filter = Filter { allowed: Some(bundle.allowed(inputs.region)), excluded: &inputs.shown };
    let scratch = &mut *cx.scratch;
    let (vector, hits) = (&scratch.vector, &mut scratch.hits);
    bundle.index.search(vector, inputs.candidates, &filter, &mut scratch.search, hits);
    scratch.candidates.clear();
    scratch.candidates.extend(hits.iter().enumerate().map(|(rank, hit)| Candidate {
        item: hit.item,
        similarity: hit.score,
        retrieval_rank: rank as f32,
        retrieval_score: hit.score,
    }));
    cx.settle_items();
    let count = cx.scratch.candidates.len();
    if count < inputs.num_items {
        let region = inputs.region.map(|at| bundle.items.regions()[at].as_str());
        let place = region.map_or(String::new(), |name| format!(" in region `{name}`"));
        let text = format!("only {count} items are in stock{place} and not shown lately");
        cx.reasons.push(Reason { code: "few_eligible_items", count, text });
    }
}
