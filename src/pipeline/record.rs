//! A request as the request log keeps it in full, and the inputs that a record stands for.
//!
//! What is written is what the stages had in their hands, not what could be computed again: the
//! features are those that the ranker saw.

use std::sync::Arc;

use super::context::{Context, Inputs};
use super::deadline::{Lost, Part};
use super::gather;
use super::seed;
use super::serving::Serving;
use crate::events::{RequestRecord, Served};
use crate::features::UserRecord;
use crate::monitor::Fallback;
use crate::types::ItemIdx;

/// Names the draw of [`is_drawn`] among those of a request.
const PURPOSE: u64 = 1;

/// Whether a request is one of those that are logged in full.
pub fn is_drawn(request_id: &str, share: f64) -> bool {
    share > 0.0 && seed::draw(request_id, PURPOSE) < share
}

/// What the request log keeps of a finished request; `None` for one that is not logged in full.
pub fn served(cx: &Context) -> Option<Box<Served>> {
    let asked = cx.inputs.asked.as_ref()?;
    let (serving, inputs, items) = (&cx.serving, &cx.inputs, cx.items());
    let id = |&item: &ItemIdx| items.id(item).to_owned();
    let time = |&time_ms: &i64| (time_ms != i64::MIN).then_some(time_ms);
    let history = inputs.history.iter().zip(&inputs.history_times_ms);
    let record = |record: &Arc<UserRecord>| (record.bytes().collect(), serving.fit.layout());
    let rows: Vec<Option<usize>> = cx.scratch.ranked.iter().map(|r| row_of(cx, r.item)).collect();
    let place = |row: &Option<usize>| row.map(|row| cx.scratch.candidates[row]);
    Some(Box::new(Served {
        context: asked.context.clone(),
        region: inputs.region.map(|at| serving.bundle.items.regions()[at].clone()),
        history: history.map(|(item, at)| (id(item), time(at))).collect(),
        shown: inputs.shown.iter().map(id).collect(),
        user_record: inputs.record.as_ref().map(record),
        vector: cx.scratch.vector.clone(),
        vector_cached: cx.cached.is_some(),
        candidates: inputs.candidates as u32,
        quality: asked.quality,
        item_changes: [serving.made_at, cx.item_changes[0], cx.item_changes[1]],
        lost: cx.lost.names().map(str::to_owned).collect(),
        settings: serving.settings_text.clone(),
        features: features(cx, &rows),
        sources: cx.scratch.ranked.iter().map(|r| r.source.name().to_owned()).collect(),
        retrieval_ranks: rows
            .iter()
            .map(|row| place(row).map_or(f32::NAN, |c| c.retrieval_rank))
            .collect(),
        similarities: rows
            .iter()
            .map(|row| place(row).map_or(f32::NAN, |c| c.similarity))
            .collect(),
        raw_scores: rows.iter().map(|&row| raw_score(cx, row)).collect(),
        propensities: cx.scratch.propensities.clone(),
        dropped: cx.scratch.dropped.iter().map(|(i, why)| (id(i), why.name().to_owned())).collect(),
    }))
}

/// Where an item stands among the candidates.
pub fn row_of(cx: &Context, item: ItemIdx) -> Option<usize> {
    cx.scratch.candidates.iter().position(|candidate| candidate.item == item)
}

/// The ranker's raw score of a candidate; NaN where the request was not ranked.
pub fn raw_score(cx: &Context, row: Option<usize>) -> f64 {
    let unranked = cx.unranked
        || cx.lost.has(Part::Ranking)
        || cx.degraded.contains(&Fallback::RetrievalOrder);
    let score = row.filter(|_| !unranked).and_then(|row| cx.scratch.raw.get(row));
    score.copied().unwrap_or(f64::NAN)
}

/// The schema's columns of candidates by their rows, as the ranker saw them; none where the request
/// went without.
pub fn features(cx: &Context, rows: &[Option<usize>]) -> Vec<f32> {
    let (bundle, scratch) = (&cx.serving.bundle, &*cx.scratch);
    let Some(ahead) = cx.ahead.as_ref().filter(|_| !cx.unranked) else { return Vec::new() };
    let (columns, count) = (&scratch.columns, scratch.candidates.len());
    let (item_only, whole) = (bundle.plan.item_only(), bundle.ranking.wants_all_columns());
    let mut out = Vec::with_capacity(rows.len() * bundle.schema.len());
    for &row in rows {
        let Some(row) = row else {
            out.resize(out.len() + bundle.schema.len(), f32::NAN);
            continue;
        };
        out.extend(&ahead.constants);
        let item = scratch.candidates[row].item;
        let late = cx.late.get(item).and_then(|late| late.content.as_ref());
        let value = |column: usize| match late {
            Some(content) => content.values[column],
            None => bundle.items.columns().column(column)[item.row()],
        };
        let mut place = 0;
        for (at, &only) in item_only.iter().enumerate() {
            if only && !whole {
                out.push(bundle.plan.item_value(at, value));
            } else {
                out.push(columns[place * count + row]);
                place += 1;
            }
        }
    }
    out
}

/// The inputs that a record stands for on a version, and what of them that version does not know.
/// With `repeat`, the parts that the request went without are left out again.
pub fn inputs(serving: &Serving, request: &RequestRecord, served: &Served, repeat: bool) -> Inputs {
    let bundle = &serving.bundle;
    let find = |id: &String| bundle.items.find(id);
    let known = served.history.iter().filter_map(|(id, time)| Some((find(id)?, *time)));
    let (history, history_times_ms) =
        known.map(|(item, time_ms)| (item, time_ms.unwrap_or(i64::MIN))).unzip();
    let region = served.region.as_ref();
    let region = region.and_then(|name| bundle.items.regions().iter().position(|r| r == name));
    let record = served.user_record.as_ref().filter(|(_, layout)| *layout == serving.fit.layout());
    let (columns, maps) = (bundle.users.columns().len(), bundle.users.map_names().len());
    let record = record.and_then(|(bytes, _)| UserRecord::read(bytes, columns, maps));
    let lost = || Lost::of(served.lost.iter().map(String::as_str));
    Inputs {
        request_id: request.request_id.clone(),
        num_items: request.num_items as usize,
        time_ms: request.time_ms,
        user: bundle.users.row_of(&request.user_id),
        record: record.map(Arc::new),
        region,
        context: gather::context_codes(serving, request.device.as_deref(), &served.context, region),
        history,
        history_times_ms,
        shown: served.shown.iter().filter_map(find).collect(),
        candidates: served.candidates as usize,
        repeats: Some(if repeat { lost() } else { Lost::default() }),
        asked: None,
    }
}
