//! Items and times in one block of bytes: a user's history, or what was shown to a user.
//!
//! ```text
//! entry: i64 time, epoch ms | item id, UTF-8 | u16 length of the id       (little-endian)
//! ```
//! Entries follow one another, oldest first in order of arrival. The length stands behind its id,
//! because the block is read from its end: a list is extended by appending bytes, which Redis does
//! atomically for any number of writers, and its newest entries are found without reading the rest.

use std::sync::Arc;

/// Bytes of an entry beside its id.
const FRAME_BYTES: usize = 10;

/// A list of items and times; copies share the block.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ItemList(Arc<[u8]>);

impl ItemList {
    /// The newest `max` entries of a block; false when the block is damaged, and then those behind
    /// the damage.
    pub fn read(bytes: &[u8], max: usize) -> (Self, bool) {
        let (tail, sound) = tail(bytes, max);
        (Self(tail.into()), sound)
    }

    /// This list with a block of entries behind it, at most the newest `max`.
    #[must_use]
    pub fn with(&self, block: &[u8], max: usize) -> Self {
        let all = [&*self.0, block].concat();
        Self(tail(&all, max).0.into())
    }

    /// Items and times (epoch ms), newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = (&str, i64)> {
        Backward(&self.0).filter_map(|(id, time_ms)| Some((std::str::from_utf8(id).ok()?, time_ms)))
    }

    /// The block.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Appends an entry to a block; an id that is longer than any caller's is left out.
pub fn push(block: &mut Vec<u8>, item: &str, time_ms: i64) {
    let Ok(length) = u16::try_from(item.len()) else { return };
    block.extend_from_slice(&time_ms.to_le_bytes());
    block.extend_from_slice(item.as_bytes());
    block.extend_from_slice(&length.to_le_bytes());
}

/// The bytes of the newest `max` entries; false when an entry among them is damaged.
fn tail(bytes: &[u8], max: usize) -> (&[u8], bool) {
    let mut entries = Backward(bytes);
    let taken = entries.by_ref().take(max).count();
    (&bytes[entries.0.len()..], taken == max || entries.0.is_empty())
}

/// Reads a block from its end; what remains is what has not been read.
struct Backward<'a>(&'a [u8]);

impl<'a> Iterator for Backward<'a> {
    type Item = (&'a [u8], i64);

    fn next(&mut self) -> Option<Self::Item> {
        let (rest, length) = self.0.split_last_chunk::<2>()?;
        let length = u16::from_le_bytes(*length) as usize;
        let (rest, id) = rest.split_at_checked(rest.len().checked_sub(length)?)?;
        let (rest, time_ms) = rest.split_last_chunk::<8>()?;
        self.0 = rest;
        Some((id, i64::from_le_bytes(*time_ms)))
    }
}

/// Bytes beyond which a stored list is worth cutting to `max` entries: twice those of `max`
/// entries of the size of `block`'s first, so that most writes append and few cut.
pub fn cut_above_bytes(block: &[u8], max: usize) -> usize {
    let entries = Backward(block).count().max(1);
    2 * max * (block.len() / entries).max(FRAME_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(entries: &[(&str, i64)]) -> Vec<u8> {
        let mut block = Vec::new();
        entries.iter().for_each(|(item, time_ms)| push(&mut block, item, *time_ms));
        block
    }

    fn entries(list: &ItemList) -> Vec<(&str, i64)> {
        list.newest_first().collect()
    }

    #[test]
    fn the_newest_are_kept_and_come_first() {
        let (list, sound) = ItemList::read(&block(&[("a", 1), ("", -2), ("löwe", 3)]), 2);
        assert!(sound);
        assert_eq!(entries(&list), [("löwe", 3), ("", -2)]);
        let list = list.with(&block(&[("b", 4)]), 2);
        assert_eq!(entries(&list), [("b", 4), ("löwe", 3)]);
        assert_eq!(list.bytes(), block(&[("löwe", 3), ("b", 4)]));
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        assert_eq!(block(&[("ab", 258)]), [2, 1, 0, 0, 0, 0, 0, 0, b'a', b'b', 2, 0]);
    }

    #[test]
    fn damage_costs_what_lies_before_it() {
        let good = block(&[("a", 1), ("b", 2), ("c", 3)]);
        let (list, sound) = ItemList::read(&good[5..], 9);
        assert!(!sound);
        assert_eq!(entries(&list), [("c", 3), ("b", 2)]);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = 0xff;
            let (list, _) = ItemList::read(&bad, 9);
            assert!(list.newest_first().count() <= 3, "{at}");
        }
        assert!(!ItemList::read(&[1], 9).1);
        assert!(ItemList::read(&[], 9).1);
    }

    #[test]
    fn a_list_is_cut_when_it_holds_twice_what_is_kept() {
        let one = block(&[("ab", 1)]);
        assert_eq!(cut_above_bytes(&one, 50), 2 * 50 * one.len());
        assert_eq!(cut_above_bytes(&one.repeat(3), 50), 2 * 50 * one.len());
    }
}
