//! A request as the request log keeps it in full, and the inputs that a record stands for.
//!
//! What is written is what the stages had in their hands, not what could be computed again: the
//! features are those that the ranker saw.

use std::sync::Arc;

use super::context::{Context, Inputs};
use super::deadline::{Lost, Part};
use super::gather;
use super::rows::Rows;
use super::seed;
use super::serving::Serving;
use crate::events::{RequestRecord, Served};
use crate::features::{Candidate, UserRecord};
use crate::monitor::{Dropped, Fallback, Source};
use crate::store::items::Late;
use crate::types::ItemIdx;

/// Names the draw of [`is_drawn`] among those of a request.
const PURPOSE: u64 = 1;

/// Whether a request is one of those that are logged in full.
pub fn is_drawn(request_id: &str, share: f64) -> bool {
    share > 0.0 && seed::draw(request_id, PURPOSE) < share
}

/// What a request that is logged in full leaves behind: taken from its buffers as it is, and made a record of by
/// [`Footprint::served`], for which nobody waits.
pub struct Footprint {
    serving: Arc<Serving>,
    late: Arc<Late>,
    inputs: Arc<Inputs>,
    vector: Vec<f32>,
    vector_cached: bool,
    item_changes: [u64; 2],
    lost: Lost,
    /// Of the items of the answer, in its order.
    rows: Rows,
    places: Vec<Option<Candidate>>,
    sources: Vec<Source>,
    raw_scores: Vec<f64>,
    propensities: Vec<f64>,
    dropped: Vec<(ItemIdx, Dropped)>,
}

/// What is left of a finished request; `None` of one that is not logged in full.
pub fn footprint(cx: &Context) -> Option<Arc<Footprint>> {
    cx.inputs.asked.as_ref()?;
    let scratch = &cx.scratch;
    let rows: Vec<Option<usize>> = scratch.ranked.iter().map(|r| row_of(cx, r.item)).collect();
    Some(Arc::new(Footprint {
        serving: cx.serving.clone(),
        late: cx.late.clone(),
        inputs: cx.inputs.clone(),
        vector: scratch.vector.clone(),
        vector_cached: cx.cached.is_some(),
        item_changes: cx.item_changes,
        lost: cx.lost,
        places: rows.iter().map(|row| row.map(|row| scratch.candidates[row])).collect(),
        sources: scratch.ranked.iter().map(|r| r.source).collect(),
        raw_scores: rows.iter().map(|&row| raw_score(cx, row)).collect(),
        propensities: scratch.propensities.clone(),
        dropped: scratch.dropped.clone(),
        rows: Rows::of(cx, &rows),
    }))
}

impl Footprint {
    /// What the request log keeps.
    pub fn served(&self) -> Served {
        let (serving, inputs) = (&self.serving, &self.inputs);
        let items = serving.bundle.items.view_of(self.late.clone());
        let id = |&item: &ItemIdx| items.id(item).to_owned();
        let time = |&time_ms: &i64| (time_ms != i64::MIN).then_some(time_ms);
        let history = inputs.history.iter().zip(&inputs.history_times_ms);
        let record = |record: &Arc<UserRecord>| (record.bytes().collect(), serving.fit.layout());
        let of_places = |value: fn(&Candidate) -> f32| {
            self.places.iter().map(|place| place.as_ref().map_or(f32::NAN, value)).collect()
        };
        let dropped = self.dropped.iter();
        Served {
            context: inputs.asked.as_ref().map(|asked| asked.context.clone()).unwrap_or_default(),
            region: inputs.region.map(|at| serving.bundle.items.regions()[at].clone()),
            history: history.map(|(item, at)| (id(item), time(at))).collect(),
            shown: inputs.shown.iter().map(id).collect(),
            user_record: inputs.record.as_ref().map(record),
            vector: self.vector.clone(),
            vector_cached: self.vector_cached,
            candidates: inputs.candidates as u32,
            quality: inputs.asked.as_ref().map_or(0.0, |asked| asked.quality),
            item_changes: [serving.made_at, self.item_changes[0], self.item_changes[1]],
            lost: self.lost.names().map(str::to_owned).collect(),
            settings: serving.settings_text.clone(),
            features: self.rows.features(),
            sources: self.sources.iter().map(|source| source.name().to_owned()).collect(),
            retrieval_ranks: of_places(|candidate| candidate.retrieval_rank),
            similarities: of_places(|candidate| candidate.similarity),
            raw_scores: self.raw_scores.clone(),
            propensities: self.propensities.clone(),
            dropped: dropped.map(|(item, why)| (id(item), why.name().to_owned())).collect(),
        }
    }
}

impl std::fmt::Debug for Footprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Footprint({})", self.inputs.request_id)
    }
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
