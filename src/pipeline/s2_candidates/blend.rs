//! From what each source proposes to one list without duplicates.

use crate::features::Candidate;
use crate::index::Hit;
use crate::monitor::Source;
use crate::types::ItemIdx;

/// An item that a source beside retrieval proposes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    pub item: ItemIdx,
    pub source: Source,
    pub retrieved: bool,
}

/// Adds retrieval's `hits` (best first) to the candidates, and leaves in `picks` what retrieval has
/// not found, by item. With those there will be at most `wanted`: the worst hits that nobody else
/// proposes make room. A hit that another source proposes stays, carries the first such source, and
/// keeps its rank and score.
pub fn blend(
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
