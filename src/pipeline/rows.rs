//! Rows of a request as the ranker saw them, taken from its buffers before the next request has them.
//!
//! What of a row depends on the item alone is not in the buffers and is read from the bundle's file, for which no
//! request should wait. So who draws a request takes its [`Rows`], and asks for their features on a thread of its own.

use std::sync::Arc;

use super::context::Context;
use super::serving::Serving;
use crate::store::items::Late;
use crate::types::ItemIdx;

/// Rows of one request.
#[derive(Clone)]
pub struct Rows {
    serving: Arc<Serving>,
    late: Arc<Late>,
    /// `None` was not among the candidates.
    items: Vec<Option<ItemIdx>>,
    /// Values of the user and of the context.
    constants: Vec<f32>,
    /// The columns that came with the request, row by row.
    columns: Vec<f32>,
    /// Whether those are all columns that are no constants.
    whole: bool,
    /// Whether the request was filled with features at all.
    filled: bool,
}

impl Rows {
    /// The rows of candidates by their positions.
    pub fn of(cx: &Context, rows: &[Option<usize>]) -> Self {
        let (bundle, scratch) = (&cx.serving.bundle, &*cx.scratch);
        let ahead = cx.ahead.as_ref().filter(|_| !cx.unranked);
        let (columns, count) = (&scratch.columns, scratch.candidates.len());
        let taken = |row: usize| columns.iter().skip(row).step_by(count.max(1)).copied();
        let present = rows.iter().flatten().filter(|_| ahead.is_some());
        Self {
            serving: cx.serving.clone(),
            late: cx.late.clone(),
            items: rows.iter().map(|row| row.map(|row| scratch.candidates[row].item)).collect(),
            constants: ahead.map(|ahead| ahead.constants.clone()).unwrap_or_default(),
            columns: present.flat_map(|&row| taken(row)).collect(),
            whole: bundle.ranking.wants_all_columns(),
            filled: ahead.is_some(),
        }
    }

    /// Whether the request went without features.
    pub fn is_empty(&self) -> bool {
        !self.filled
    }

    /// The schema's columns, row by row; none where the request went without.
    pub fn features(&self) -> Vec<f32> {
        let bundle = &self.serving.bundle;
        if !self.filled {
            return Vec::new();
        }
        let width = bundle.schema.len();
        let item_only = bundle.plan.item_only();
        let built = bundle.items.columns();
        let mut row = vec![f32::NAN; built.names().len()];
        let mut columns = self.columns.iter();
        let mut out = Vec::with_capacity(self.items.len() * width);
        for &item in &self.items {
            let Some(item) = item else {
                out.resize(out.len() + width, f32::NAN);
                continue;
            };
            out.extend(&self.constants);
            let late = self.late.get(item).and_then(|late| late.content.as_ref());
            match late {
                Some(content) => row.copy_from_slice(&content.values),
                None => built.copy_row(item, &mut row),
            }
            out.extend(item_only.iter().enumerate().map(|(at, &only)| match only && !self.whole {
                true => bundle.plan.item_value(at, |column| row[column]),
                false => columns.next().copied().unwrap_or(f32::NAN),
            }));
        }
        out
    }
}
