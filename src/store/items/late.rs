//! Items that came or changed while their bundle serves.
//!
//! A [`Late`] is immutable: a writer makes the next one from it and publishes that as a whole, so
//! that who reads sees a batch of changes entirely or not at all. It shares with its predecessor
//! what has not changed: a change copies one shard, not everything. An item keeps its row when it
//! changes; a new one gets the next row past the build, and a deleted one keeps its row too,
//! because histories name it.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::Arc;

use super::LABELS_MAX;
use crate::index::Bitmap;
use crate::types::ItemIdx;

/// Parts of a map that are copied on their own.
const SHARDS: usize = 256;

/// One item as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct LateItem {
    /// Its external id, if the build does not know it.
    pub id: Option<Arc<str>>,
    /// Deleted; what it was stays readable.
    pub gone: bool,
    pub in_stock: bool,
    /// Positions of the regions where it is offered, in stock or not.
    pub regions: Arc<[usize]>,
    pub labels: u64,
    /// What it is; `None` where the build's columns hold.
    pub content: Option<Arc<Content>>,
    /// Whether its vector has a live row in the index.
    pub has_live_row: bool,
}

/// What filters do not read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    pub title: Option<String>,
    pub category: Option<String>,
    pub category_code: Option<u32>,
    pub price: Option<f32>,
    /// Epoch milliseconds, UTC.
    pub created_ms: Option<i64>,
    pub image_url: Option<String>,
    /// In the order of the item columns.
    pub values: Vec<f32>,
    /// The ranker's bytes of the columns that depend on the item alone.
    pub bins: Vec<u8>,
}

impl LateItem {
    /// Whether a request of a region (by position; `None` is anywhere) may get the item.
    pub fn is_offered(&self, region: Option<usize>) -> bool {
        let there = |at| self.regions.contains(&at);
        !self.gone && self.in_stock && region.is_none_or(there)
    }
}

/// Everything that is late.
#[derive(Clone, Debug)]
pub struct Late {
    /// Rows of the build.
    built: usize,
    /// Rows of the build that have changed since; bits are only ever set.
    changed: Arc<Bitmap>,
    items: Shards<u32, Arc<LateItem>>,
    ids: Shards<Arc<str>, ItemIdx>,
    /// Labels that the build does not know, in order of arrival.
    labels: Arc<Vec<String>>,
}

impl Late {
    /// Nothing yet over `built` rows.
    pub fn new(built: usize) -> Self {
        Self {
            built,
            changed: Arc::new(Bitmap::new(built)),
            items: Shards::new(),
            ids: Shards::new(),
            labels: Arc::default(),
        }
    }

    /// Number of items that differ from the build.
    pub fn len(&self) -> usize {
        self.items.len
    }

    /// Whether everything is as it was built.
    pub fn is_empty(&self) -> bool {
        self.items.len == 0
    }

    /// An item, unless it is as it was built.
    #[inline]
    pub fn get(&self, item: ItemIdx) -> Option<&LateItem> {
        if self.is_empty() || (item.row() < self.built && !self.changed.get(item)) {
            return None;
        }
        self.items.get(&item.0).map(|item| &**item)
    }

    /// The row of an id that the build does not know.
    pub fn find(&self, id: &str) -> Option<ItemIdx> {
        if self.ids.len == 0 { None } else { self.ids.get(id).copied() }
    }

    /// Gives an id that the build does not know the next row.
    pub fn add(&mut self, id: &str) -> (ItemIdx, Arc<str>) {
        let (item, id) = (ItemIdx((self.built + self.ids.len) as u32), Arc::<str>::from(id));
        self.ids.insert(id.clone(), item);
        (item, id)
    }

    /// Replaces an item.
    pub fn set(&mut self, item: ItemIdx, to: LateItem) {
        if item.row() < self.built {
            // Before this version is published, others look in vain and read the build.
            self.changed.set(item, true);
        }
        self.items.insert(item.0, Arc::new(to));
    }

    /// The bits of labels that items carry. A label that the build (`built`, sorted) does not know
    /// gets the next free bit.
    pub fn add_labels(&mut self, built: &[String], labels: &[String]) -> u64 {
        for label in labels {
            let known = built.binary_search(label).is_ok() || self.labels.contains(label);
            if !known && built.len() + self.labels.len() < LABELS_MAX - 1 {
                Arc::make_mut(&mut self.labels).push(label.clone());
            }
        }
        labels.iter().fold(0, |bits, label| bits | self.label_bit(built, label))
    }

    /// The bit of a label; none for one that no item carries. When every bit but the last is taken,
    /// all further labels share the last: an item is then blocked for one too many, never for one
    /// too few.
    pub fn label_bit(&self, built: &[String], label: &String) -> u64 {
        let late = || self.labels.iter().position(|l| l == label).map(|at| built.len() + at);
        match built.binary_search(label).ok().or_else(late) {
            Some(at) => 1 << at.min(LABELS_MAX - 1),
            None if built.len() + self.labels.len() >= LABELS_MAX - 1 => 1 << (LABELS_MAX - 1),
            None => 0,
        }
    }
}

/// A hash map whose copies share the parts that are alike.
#[derive(Clone, Debug)]
struct Shards<K, V> {
    parts: Vec<Arc<HashMap<K, V>>>,
    len: usize,
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    fn new() -> Self {
        Self { parts: vec![Arc::default(); SHARDS], len: 0 }
    }

    fn part(key: &(impl Hash + ?Sized)) -> usize {
        BuildHasherDefault::<DefaultHasher>::default().hash_one(key) as usize % SHARDS
    }

    fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.parts[Self::part(key)].get(key)
    }

    fn insert(&mut self, key: K, value: V) {
        let part = Arc::make_mut(&mut self.parts[Self::part(&key)]);
        self.len += usize::from(part.insert(key, value).is_none());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(labels: u64) -> LateItem {
        LateItem {
            id: None,
            gone: false,
            in_stock: true,
            regions: Arc::new([1]),
            labels,
            content: None,
            has_live_row: false,
        }
    }

    #[test]
    fn a_version_does_not_see_what_came_after_it() {
        let mut next = Late::new(10);
        next.set(ItemIdx(3), item(1));
        let before = next.clone();
        let (new, id) = next.add("new");
        next.set(new, LateItem { id: Some(id), ..item(2) });
        next.set(ItemIdx(3), item(4));
        next.set(ItemIdx(4), item(8));
        let labels = |late: &Late, row| late.get(ItemIdx(row)).map(|item| item.labels);
        assert_eq!([3, 4, 10].map(|row| labels(&before, row)), [Some(1), None, None]);
        assert_eq!([3, 4, 10].map(|row| labels(&next, row)), [Some(4), Some(8), Some(2)]);
        assert_eq!((before.find("new"), next.find("new")), (None, Some(ItemIdx(10))));
        assert_eq!((before.len(), next.len(), labels(&next, 5)), (1, 3, None));
    }

    #[test]
    fn labels_without_a_bit_of_their_own_block_too_much_and_never_too_little() {
        let built: Vec<String> = (0..60).map(|at| format!("built-{at:02}")).collect();
        let name = |name: &str| name.to_owned();
        let mut late = Late::new(0);
        assert_eq!(late.label_bit(&built, &name("recalled")), 0, "no item carries it");
        assert_eq!(late.add_labels(&built, &[name("recalled")]), 1 << 60);
        assert_eq!(
            late.add_labels(&built, &[name("built-07"), name("recalled")]),
            1 << 7 | 1 << 60
        );
        late.add_labels(&built, &[name("b"), name("c")]);
        assert_eq!(late.add_labels(&built, &[name("d")]), 1 << 63);
        assert_eq!(late.label_bit(&built, &name("never seen")), 1 << 63);
        assert_eq!(late.label_bit(&built, &name("c")), 1 << 62);
    }

    #[test]
    fn an_item_is_offered_in_stock_and_where_it_is_sold() {
        let offered = item(0);
        assert_eq!([None, Some(0), Some(1)].map(|r| offered.is_offered(r)), [true, false, true]);
        assert!(!LateItem { in_stock: false, ..item(0) }.is_offered(Some(1)));
        assert!(!LateItem { gone: true, ..item(0) }.is_offered(None));
    }
}
