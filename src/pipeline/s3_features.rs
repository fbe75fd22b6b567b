//! s3: one row of features a candidate, by the code that also made the training rows. Columns of
//! the item alone lie ready in the bundle, unless the ranker wants whole rows.

use super::Context;
use super::context::{Inputs, request_input};
use super::deadline::Part;
use super::serving::Serving;
use crate::features::ItemRows;

/// Fills the user and context columns, which need no candidate.
pub fn constants(serving: &Serving, inputs: &Inputs, out: &mut [f32]) {
    serving.bundle.plan.constants(&request_input(serving, inputs), out);
}

/// Fills the columns of the candidates; keeps every candidate and its order. Fallback: without the
/// time to rank them, none.
pub fn run(cx: &mut Context) {
    let needed = cx.serving.settings.pipeline.budgets_us.from_features();
    cx.unranked = cx.unranked || !cx.has_time(Part::Features, needed);
    if cx.unranked {
        return;
    }
    let bundle = &cx.serving.bundle;
    let request = request_input(&cx.serving, &cx.inputs);
    let view = bundle.items.view_of(cx.late.clone());
    let scratch = &mut *cx.scratch;
    let (candidates, columns) = (&scratch.candidates, &mut scratch.columns);
    let gathered = &mut scratch.gathered;
    let items = ItemRows::new(bundle.items.columns(), &bundle.rows, &view, &scratch.late);
    let plan = &bundle.plan;
    if bundle.ranking.wants_all_columns() {
        columns.resize(plan.column_count() * candidates.len(), 0.0);
        plan.columns(&request, items, candidates, gathered, columns);
    } else {
        columns.resize(plan.request_column_count() * candidates.len(), 0.0);
        plan.request_columns(&request, items, candidates, gathered, columns);
    }
}
