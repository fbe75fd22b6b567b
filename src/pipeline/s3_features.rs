//! s3: one row of features a candidate, by the code that also made the training rows.

use super::Context;

/// Fills constants and columns; keeps every candidate and its order.
pub fn run(cx: &mut Context) {
    let plan = &cx.bundle.plan;
    let mut constants = std::mem::take(&mut cx.scratch.constants);
    let mut columns = std::mem::take(&mut cx.scratch.columns);
    columns.resize(plan.column_count() * cx.scratch.candidates.len(), 0.0);
    let request = cx.request_input();
    plan.constants(&request, &mut constants);
    plan.columns(&request, cx.bundle.items.columns(), &cx.scratch.candidates, &mut columns);
    (cx.scratch.constants, cx.scratch.columns) = (constants, columns);
}
