//! What a finished request leaves in the metrics.

use super::answer::Answer;
use super::context::{Context, Drops};
use crate::monitor::{self, Dropped, Fallback, Source, Stage};

/// The counts of one request that its answer does not carry.
#[derive(Clone, Debug)]
pub struct Counts {
    candidates: usize,
    by_source: [usize; Source::ALL.len()],
    drops: Drops,
    degraded: Vec<Fallback>,
}

impl Counts {
    /// Reads them off the context after the last stage.
    pub fn of(cx: &Context) -> Self {
        Self {
            candidates: cx.scratch.candidates.len(),
            by_source: by_source(cx.scratch.sources.iter().copied()),
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
    let returned = by_source(answer.items.iter().map(|item| item.source));
    for (at, &source) in Source::ALL.iter().enumerate() {
        monitor::candidates_by_source(source, counts.by_source[at]);
        monitor::items_returned(source, returned[at]);
    }
    let Drops { blocked_label, duplicate, recently_shown, category_cap } = counts.drops;
    monitor::dropped(Dropped::BlockedLabel, blocked_label);
    monitor::dropped(Dropped::Duplicate, duplicate);
    monitor::dropped(Dropped::RecentlyShown, recently_shown);
    monitor::dropped(Dropped::CategoryCap, category_cap);
}

/// How many of each, by position in [`Source::ALL`].
fn by_source(sources: impl Iterator<Item = Source>) -> [usize; Source::ALL.len()] {
    let mut counts = [0; Source::ALL.len()];
    sources.for_each(|source| counts[source as usize] += 1);
    counts
}
