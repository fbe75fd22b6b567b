//! A set of items as 64-bit words, one bit a row; changed by one thread while others read it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::types::ItemIdx;

/// Which items of one bundle are in a set; the number of members is kept, so asking is free.
///
/// A change is one atomic operation on one word: who reads meanwhile sees it or does not, and
/// never anything else. No order between changes is promised.
#[derive(Debug, Default)]
pub struct Bitmap {
    words: Vec<AtomicU64>,
    len: usize,
    ones: AtomicUsize,
}

impl Bitmap {
    /// An empty set over `len` items.
    pub fn new(len: usize) -> Self {
        Self::from_words(len, vec![0; len.div_ceil(64)])
    }

    /// The set of all `len` items.
    pub fn full(len: usize) -> Self {
        Self::from_words(len, vec![u64::MAX; len.div_ceil(64)])
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
        Self {
            words: words.into_iter().map(AtomicU64::new).collect(),
            len,
            ones: AtomicUsize::new(ones),
        }
    }

    /// How many items the set ranges over (not how many are in it).
    #[allow(clippy::len_without_is_empty)] // `is_empty` would read as "holds no item"
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// How many items are in the set.
    #[inline]
    pub fn count_ones(&self) -> usize {
        self.ones.load(Relaxed)
    }

    /// Puts an item into the set or takes it out.
    ///
    /// # Panics
    /// When the item is not below [`Bitmap::len`].
    #[inline]
    pub fn set(&self, item: ItemIdx, member: bool) {
        assert!(item.row() < self.len, "item {} of a bitmap of {}", item.0, self.len);
        let (word, bit) = (&self.words[item.row() / 64], 1u64 << (item.row() % 64));
        if member && word.fetch_or(bit, Relaxed) & bit == 0 {
            self.ones.fetch_add(1, Relaxed);
        } else if !member && word.fetch_and(!bit, Relaxed) & bit != 0 {
            self.ones.fetch_sub(1, Relaxed);
        }
    }

    /// Whether an item is in the set; false for an item that the set does not range over.
    #[inline]
    pub fn get(&self, item: ItemIdx) -> bool {
        let word = self.words.get(item.row() / 64);
        word.is_some_and(|word| word.load(Relaxed) >> (item.row() % 64) & 1 != 0)
    }

    /// The items from `first` on, 64 of them, as bits; past the end the bits are zero.
    #[inline]
    pub fn bits(&self, first: usize) -> u64 {
        let word = |at: usize| self.words.get(at).map_or(0, |word| word.load(Relaxed));
        let (at, shift) = (first / 64, first % 64);
        match shift {
            0 => word(at),
            _ => word(at) >> shift | word(at + 1) << (64 - shift),
        }
    }

    /// The items of the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ItemIdx> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let next = |&left: &u64| Some(left & (left - 1)).filter(|&left| left != 0);
            std::iter::successors(Some(word.load(Relaxed)).filter(|&word| word != 0), next)
                .map(move |left| ItemIdx((at * 64) as u32 + left.trailing_zeros()))
        })
    }

    /// The bits, item `i` in bit `i % 64` of word `i / 64`; the bits past the end are zero.
    pub fn words(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.words.iter().map(|word| word.load(Relaxed))
    }
}

impl Clone for Bitmap {
    fn clone(&self) -> Self {
        Self::from_words(self.len, self.words().collect())
    }
}

impl PartialEq for Bitmap {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.words().eq(other.words())
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
            let bitmap = if full { Bitmap::full(len) } else { Bitmap::new(len) };
            let mut set: BTreeSet<u32> = if full { (0..len as u32).collect() } else { BTreeSet::new() };
            for (item, member) in changes.into_iter().filter(|_| len > 0) {
                let item = item % len as u32;
                bitmap.set(ItemIdx(item), member);
                if member { set.insert(item); } else { set.remove(&item); }
            }
            prop_assert_eq!(bitmap.count_ones(), set.len());
            prop_assert!(bitmap.iter().map(|item| item.0).eq(set.iter().copied()));
            prop_assert_eq!(&bitmap.clone(), &bitmap);
            for first in 0..len + 70 {
                let bits = (0..64).filter(|&i| bitmap.get(ItemIdx((first + i) as u32)));
                prop_assert_eq!(bitmap.bits(first), bits.fold(0, |bits, i| bits | 1 << i));
            }
            for item in 0..len as u32 + 70 {
                prop_assert_eq!(bitmap.get(ItemIdx(item)), set.contains(&item));
            }
        }
    }
}
