//! s3: one row of features a candidate, by the code that also made the training rows. Columns of
//! the item alone lie ready in the bundle, unless the ranker wants whole rows.

use super::Context;

/// Fills constants and columns; keeps every candidate and its order.
pub fn run(cx: &mut Context) {
    let plan = &cx.bundle.plan;
    let mut constants = std::mem::take(&mut cx.scratch.constants);
    let mut columns = std::mem::take(&mut cx.scratch.columns);
    let request = cx.request_input();
    plan.constants(&request, &mut constants);
    let (items, candidates) = (cx.bundle.items.columns(), &cx.scratch.candidates);
    if cx.bundle.ranking.wants_all_columns() {
        columns.resize(plan.column_count() * candidates.len(), 0.0);
        plan.columns(&request, items, candidates, &mut columns);
    } else {
        columns.resize(plan.request_column_count() * candidates.len(), 0.0);
        plan.request_columns(&request, items, candidates, &mut columns);
    }
    (cx.scratch.constants, cx.scratch.columns) = (constants, columns);
}
