//! From what each source proposes to one list without duplicates.

use crate::features::Candidate;
use crate::index::{self, Hit, Index};
use crate::monitor::Source;
use crate::types::ItemIdx;

/// An item that a source beside retrieval proposes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    pub item: ItemIdx,
    pub source: Source,
    pub retrieved: bool,
}

/// Buffers of what is proposed.
#[derive(Debug, Default)]
pub struct Buffers {
    pub picks: Vec<Pick>,
    items: Vec<ItemIdx>,
    scores: Vec<f32>,
}

impl Buffers {
    /// Buffers for so many picks.
    pub fn new(picks: usize) -> Self {
        Self {
            picks: Vec::with_capacity(picks),
            items: Vec::with_capacity(picks),
            scores: Vec::with_capacity(picks),
        }
    }

    /// Makes candidates of retrieval's hits for `vector` and the picks, at most `wanted`. What
    /// retrieval has not found has no rank and no score there, but a similarity as any other.
    pub fn join(
        &mut self,
        index: &dyn Index,
        vector: &[f32],
        search: &mut index::Scratch,
        hits: &[Hit],
        wanted: usize,
        (candidates, sources): (&mut Vec<Candidate>, &mut Vec<Source>),
    ) {
        let Self { picks, items, scores } = self;
        blend(hits, wanted, picks, candidates, sources);
        if picks.is_empty() {
            return;
        }
        items.clear();
        items.extend(picks.iter().map(|pick| pick.item));
        index.scores(vector, items, search, scores);
        // An item may have gone since it was proposed: it has no similarity.
        for (pick, &similarity) in picks.iter().zip(&*scores).filter(|(_, s)| !s.is_nan()) {
            sources.push(pick.source);
            candidates.push(unretrieved(pick.item, similarity));
        }
    }
}

/// A candidate that retrieval has not found.
pub fn unretrieved(item: ItemIdx, similarity: f32) -> Candidate {
    Candidate { item, similarity, retrieval_rank: f32::NAN, retrieval_score: f32::NAN }
}

/// Adds retrieval's `hits` (best first) to the candidates, and leaves in `picks` what retrieval has
/// not found, by item. With those there will be at most `wanted`: the worst hits that nobody else
/// proposes make room. A hit that another source proposes stays, carries the first such source, and
/// keeps its rank and score.
fn blend(
    hits: &[Hit],
    wanted: usize,
    picks: &mut Vec<Pick>,
    candidates: &mut Vec<Candidate>,
    sources: &mut Vec<Source>,
) {
    picks.sort_unstable_by_key(|pick| (pick.item, pick.source as u8));
    picks.dedup_by_key(|pick| pick.item);
    let mut places = wanted.saturating_sub(picks.len());
    for (rank, hit) in hits.iter().enumerate() {
        let source = match picks.binary_search_by_key(&hit.item, |pick| pick.item) {
            Ok(at) => {
                picks[at].retrieved = true;
                picks[at].source
            }
            Err(_) if places == 0 => continue,
            Err(_) => {
                places -= 1;
                Source::Ann
            }
        };
        sources.push(source);
        candidates.push(Candidate {
            item: hit.item,
            similarity: hit.score,
            retrieval_rank: rank as f32,
            retrieval_score: hit.score,
        });
    }
    picks.retain(|pick| !pick.retrieved);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(item: u32, source: Source) -> Pick {
        Pick { item: ItemIdx(item), source, retrieved: false }
    }

    #[test]
    fn a_hit_that_is_also_proposed_keeps_its_rank_and_the_worst_others_make_room() {
        let hit = |(rank, &item): (usize, &u32)| Hit { item: ItemIdx(item), score: -(rank as f32) };
        let hits: Vec<Hit> = [9, 4, 7, 2, 5].iter().enumerate().map(hit).collect();
        let mut picks = vec![
            pick(5, Source::Popular),
            pick(5, Source::Repeats),
            pick(1, Source::Fresh),
            pick(8, Source::Similar),
        ];
        let (mut candidates, mut sources) = (Vec::new(), Vec::new());
        blend(&hits, 5, &mut picks, &mut candidates, &mut sources);
        let found: Vec<_> = candidates.iter().map(|c| (c.item.0, c.retrieval_rank)).collect();
        assert_eq!(found, [(9, 0.0), (4, 1.0), (5, 4.0)]);
        assert_eq!(sources, [Source::Ann, Source::Ann, Source::Repeats]);
        assert_eq!(picks, [pick(1, Source::Fresh), pick(8, Source::Similar)]);
    }
}
