//! s6: what the caller shows. Display strings are read for the chosen items only.

use super::Context;
use super::answer::{Answer, AnswerItem, Timings};

/// Makes the answer; its timings are the caller's to set.
pub fn run(cx: &mut Context) -> Answer {
    let bundle = &cx.serving.bundle;
    let items = cx.items();
    items.prefetch_display(cx.scratch.ranked.iter().map(|r| r.item));
    let item = |r: &super::context::Ranked| AnswerItem {
        item_id: items.id(r.item).to_owned(),
        title: items.title(r.item).map(str::to_owned),
        category: items.category(r.item).map(str::to_owned),
        price: items.price(r.item),
        thumbnail: items.image_url(r.item).map(str::to_owned),
        score: r.score,
        source: r.source,
    };
    Answer {
        request_id: cx.inputs.request_id.clone(),
        bundle_version: bundle.manifest.bundle_version.clone(),
        variant: cx.serving.settings.pipeline.variant.clone(),
        items: cx.scratch.ranked.iter().map(item).collect(),
        degraded: cx.degraded.iter().map(|fallback| fallback.name()).collect(),
        reasons: std::mem::take(&mut cx.reasons),
        timings: Timings::default(),
        footprint: None,
    }
}
