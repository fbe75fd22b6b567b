//! A set of items as plain 64-bit words, one bit a row of the item table.

use crate::types::ItemIdx;

/// Which items of one bundle are in a set; the number of members is kept, so asking is free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    len: usize,
    ones: usize,
}

impl Bitmap {
    /// An empty set over `len` items.
    pub fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len, ones: 0 }
    }

    /// The set of all `len` items.
    pub fn full(len: usize) -> Self {
        let mut words = vec![u64::MAX; len.div_ceil(64)];
        if let Some(last) = words.last_mut()
            && !len.is_multiple_of(64)
        {
            *last = (1 << (len % 64)) - 1;
        }
        Self { words, len, ones: len }
    }

    /// The set whose bits are `words`; what lies past `len` is dropped.
    ///
    /// # Panics
    /// When `words` is not as long as `len` items need.
    pub fn from_words(len: usize, mut words: Vec<u64>) -> Self {
        assert_eq!(words.len(), len.div_ceil(64), "words of a bitmap of {len}");
        if let Some(last) = words.last_mut()
            && !len.is_multiple_of(64)
        {
            *last &= (1 << (len % 64)) - 1;
        }
        let ones = words.iter().map(|word| word.count_ones() as usize).sum();
        Self { words, len, ones }
    }

    /// How many items the set ranges over (not how many are in it).
    #[allow(clippy::len_without_is_empty)] // `is_empty` would read as "holds no item"
    pub fn len(&self) -> usize {
        self.len
    }

    /// How many items are in the set.
    pub fn count_ones(&self) -> usize {
        self.ones
    }

    /// Puts an item into the set or takes it out.
    ///
    /// # Panics
    /// When the item is not below [`Bitmap::len`].
    #[inline]
    pub fn set(&mut self, item: ItemIdx, member: bool) {
        assert!(item.row() < self.len, "item {} of a bitmap of {}", item.0, self.len);
        let (word, bit) = (&mut self.words[item.row() / 64], 1u64 << (item.row() % 64));
        let was = *word & bit != 0;
        if member != was {
            *word ^= bit;
            self.ones = if member { self.ones + 1 } else { self.ones - 1 };
        }
    }

    /// Whether an item is in the set; false for an item that the set does not range over.
    #[inline]
    pub fn get(&self, item: ItemIdx) -> bool {
        self.words.get(item.row() / 64).is_some_and(|word| word >> (item.row() % 64) & 1 != 0)
    }

    /// Keeps the items that are also in `other`.
    ///
    /// # Panics
    /// When the two range over different numbers of items.
    pub fn and_with(&mut self, other: &Bitmap) {
        assert_eq!(self.len, other.len, "intersection of bitmaps of different lengths");
        self.ones = 0;
        for (word, &mask) in self.words.iter_mut().zip(&other.words) {
            *word &= mask;
            self.ones += word.count_ones() as usize;
        }
    }

    /// Becomes a copy of `other`; allocates only when it has never been that long.
    pub fn copy_from(&mut self, other: &Bitmap) {
        self.words.clear();
        self.words.extend_from_slice(&other.words);
        (self.len, self.ones) = (other.len, other.ones);
    }

    /// The items of the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ItemIdx> + '_ {
        self.words.iter().enumerate().flat_map(|(at, &word)| {
            let next = |&left: &u64| Some(left & (left - 1)).filter(|&left| left != 0);
            std::iter::successors(Some(word).filter(|&word| word != 0), next)
                .map(move |left| ItemIdx((at * 64) as u32 + left.trailing_zeros()))
        })
    }

    /// The bits, item `i` in bit `i % 64` of word `i / 64`; the bits past the end are zero.
    #[inline]
    pub fn words(&self) -> &[u64] {
        &self.words
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(
            len in 0usize..300,
            changes in proptest::collection::vec((any::<u32>(), any::<bool>()), 0..200),
            full in any::<bool>(),
        ) {
            let mut bitmap = if full { Bitmap::full(len) } else { Bitmap::new(len) };
            let mut set: BTreeSet<u32> = if full { (0..len as u32).collect() } else { BTreeSet::new() };
            for (item, member) in changes.into_iter().filter(|_| len > 0) {
                let item = item % len as u32;
                bitmap.set(ItemIdx(item), member);
                if member { set.insert(item); } else { set.remove(&item); }
            }
            prop_assert_eq!(bitmap.count_ones(), set.len());
            prop_assert!(bitmap.iter().map(|item| item.0).eq(set.iter().copied()));
            let mut thirds = Bitmap::new(len);
            (0..len as u32).step_by(3).for_each(|item| thirds.set(ItemIdx(item), true));
            let mut both = Bitmap::new(0);
            both.copy_from(&bitmap);
            both.and_with(&thirds);
            let expected: Vec<u32> = set.iter().copied().filter(|item| item % 3 == 0).collect();
            prop_assert_eq!(both.count_ones(), expected.len());
            for item in 0..len as u32 + 70 {
                prop_assert_eq!(both.get(ItemIdx(item)), expected.contains(&item));
            }
        }
    }
}
