//! Source `similar`: the neighbours of the newest item of the history that the index knows.

use crate::bundle::Bundle;
use crate::index::{self, Filter, Hit};
use crate::types::ItemIdx;

/// Buffers of the second search.
#[derive(Debug, Default)]
pub struct Scratch {
    vector: Vec<f32>,
    hits: Vec<Hit>,
}

impl Scratch {
    /// Buffers for `quota` neighbours among items of this bundle.
    pub fn new(bundle: &Bundle, quota: usize) -> Self {
        let room = if quota == 0 { 0 } else { quota + 1 };
        Self { vector: vec![0.0; bundle.index.dim()], hits: Vec::with_capacity(room) }
    }
}

/// Neighbours of the last item of `history` (oldest first) that pass the filter, nearest first, at
/// most `quota`; none without such an item.
pub fn items<'a>(
    bundle: &Bundle,
    history: &[ItemIdx],
    quota: usize,
    filter: &Filter,
    search: &mut index::Scratch,
    scratch: &'a mut Scratch,
) -> impl Iterator<Item = ItemIdx> + 'a {
    let Scratch { vector, hits } = scratch;
    hits.clear();
    let last = history.iter().rev().copied().find(|&item| bundle.index.vector_of(item, vector));
    if last.is_some() {
        // An item is its own nearest neighbour.
        bundle.index.search(vector, quota + 1, filter, search, hits);
    }
    hits.iter().map(|hit| hit.item).filter(move |&item| Some(item) != last).take(quota)
}
