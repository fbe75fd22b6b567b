//! What a finished request leaves in the metrics.

use super::answer::Answer;
use super::context::{Context, Drops};
use crate::monitor::{self, Dropped, Fallback, Stage};

/// The counts of one request that its answer does not carry.
#[derive(Clone, Debug)]
pub struct Counts {
    candidates: usize,
    drops: Drops,
    degraded: Vec<Fallback>,
}

impl Counts {
    /// Reads them off the context after the last stage.
    pub fn of(cx: &Context) -> Self {
        Self {
            candidates: cx.scratch.candidates.len(),
            drops: cx.drops,
            degraded: cx.degraded.clone(),
        }
    }
}

/// Counts a finished request.
pub fn answered(answer: &Answer, counts: &Counts) {
    for (&stage, took) in Stage::ALL.iter().zip(answer.timings.stages) {
        monitor::stage_seconds(stage, took);
    }
    counts.degraded.iter().for_each(|&kind| monitor::fallback(kind));
    monitor::candidates(counts.candidates);
    monitor::items_returned(answer.items.len());
    let Drops { blocked_label, duplicate, recently_shown, category_cap } = counts.drops;
    monitor::dropped(Dropped::BlockedLabel, blocked_label);
    monitor::dropped(Dropped::Duplicate, duplicate);
    monitor::dropped(Dropped::RecentlyShown, recently_shown);
    monitor::dropped(Dropped::CategoryCap, category_cap);
}
