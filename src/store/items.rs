//! Items in memory: what filters, rules and the answer read of an item, and its feature columns.
//!
//! `items.bin` is one section file: ids, feature columns, display strings, filter bitmaps. What a
//! request reads is copied into memory, the feature columns stay mapped: of those, requests read
//! the rows that the plan gathers. What came or changed since lies over it ([`Late`]); a request
//! reads both through one [`View`].

mod late;

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

pub use late::{Content, Late, LateItem};

use crate::features::{ItemColumns, LateRows};
use crate::ids::{IdTable, Strings};
use crate::index::Bitmap;
use crate::kernels::prefetch_at;
use crate::packed::{Packing, Part, PartMut};
use crate::sections::{self, Column, Sections, SectionsWriter};
use crate::types::ItemIdx;

/// A label is a bit of a `u64`.
pub const LABELS_MAX: usize = 64;
/// One bitmap a region is kept in memory.
pub const REGIONS_MAX: usize = 4096;
/// Category code of an item without a category.
const NO_CATEGORY: u32 = u32::MAX;
/// Creation time of an item without one.
const NO_TIME: i64 = i64::MIN;

/// What the catalogue says of one item; input of [`Items::save`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemRecord {
    pub id: String,
    pub title: Option<String>,
    pub category: Option<String>,
    /// In the catalogue's currency.
    pub price: Option<f32>,
    /// Epoch milliseconds, UTC.
    pub created_ms: Option<i64>,
    pub in_stock: bool,
    pub regions: Vec<String>,
    pub labels: Vec<String>,
    pub image_url: Option<String>,
}

/// What the rules read of an item of the build: side by side, so that a candidate costs one access
/// to memory.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, packed(4))]
struct Facts {
    created_ms: i64,
    labels: u64,
    category: u32,
}

/// All items of a bundle.
pub struct Items {
    ids: IdTable,
    columns: ItemColumns,
    titles: Strings,
    images: Strings,
    categories: Vec<String>,
    facts: Part,
    price: Column<f32>,
    label_names: Vec<String>,
    region_names: Vec<String>,
    in_stock: Bitmap,
    /// Offered in the region, in stock or not, by region.
    offered: Vec<Bitmap>,
    late: ArcSwap<Late>,
}

/// Why items were refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] sections::Error),
    #[error("{path}: metadata is not JSON: {source}")]
    Metadata { path: std::path::PathBuf, source: serde_json::Error },
    #[error("{found} different {what} are over the limit of {max}")]
    TooMany { what: &'static str, found: usize, max: usize },
    #[error("{path}: item {row} has category code {code}, the table has {categories}")]
    Category { path: std::path::PathBuf, row: usize, code: u32, categories: usize },
    #[error("{path}: item {row} has label bits {bits:#x}, the table has {labels} labels")]
    Labels { path: std::path::PathBuf, row: usize, bits: u64, labels: usize },
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    columns: Vec<String>,
    categories: Vec<String>,
    labels: Vec<String>,
    regions: Vec<String>,
}

impl Items {
    /// Writes `items.bin`: `records` in row order with their feature columns.
    pub fn save(path: &Path, records: &[ItemRecord], columns: &ItemColumns) -> Result<(), Error> {
        assert_eq!(records.len(), columns.rows(), "one record a row");
        let categories = names(records.iter().filter_map(|r| r.category.as_ref()));
        let labels = names(records.iter().flat_map(|r| &r.labels));
        let regions = names(records.iter().flat_map(|r| &r.regions));
        limit("labels", labels.len(), LABELS_MAX)?;
        limit("regions", regions.len(), REGIONS_MAX)?;
        let position = |all: &[String], one: &String| all.binary_search(one).expect("collected");
        let mut file = SectionsWriter::create(path, 20 + regions.len())?;
        IdTable::new(records.iter().map(|r| r.id.as_str())).save("item", &mut file)?;
        text(records, |r| r.title.as_deref()).save("title", &mut file)?;
        text(records, |r| r.image_url.as_deref()).save("image", &mut file)?;
        let category = |r: &ItemRecord| {
            r.category.as_ref().map_or(NO_CATEGORY, |c| position(&categories, c) as u32)
        };
        file.write("category", &collect(records, category))?;
        file.write("price", &collect(records, |r| r.price.unwrap_or(f32::NAN)))?;
        file.write("created_ms", &collect(records, |r| r.created_ms.unwrap_or(NO_TIME)))?;
        let bits = |r: &ItemRecord| {
            r.labels.iter().fold(0u64, |bits, label| bits | 1 << position(&labels, label))
        };
        file.write("labels", &collect(records, bits))?;
        file.write("in_stock", &words(records, |r| r.in_stock))?;
        for (at, region) in regions.iter().enumerate() {
            let offered = words(records, |r| r.regions.contains(region));
            file.write(&format!("region.{at}"), &offered)?;
        }
        columns.save(&mut file)?;
        let columns = columns.names().to_vec();
        let metadata = Metadata { columns, categories, labels, regions };
        file.write("metadata", &serde_json::to_vec(&metadata).expect("lists of names"))?;
        Ok(file.finish()?)
    }

    /// Maps what [`Items::save`] wrote and checks that the parts fit.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = Sections::open(path)?;
        file.will_need();
        let metadata: Metadata = serde_json::from_slice(&file.get::<u8>("metadata")?)
            .map_err(|source| Error::Metadata { path: path.to_owned(), source })?;
        limit("labels", metadata.labels.len(), LABELS_MAX)?;
        limit("regions", metadata.regions.len(), REGIONS_MAX)?;
        let ids = IdTable::open("item", &file)?;
        let n = ids.len();
        let facts = facts(path, &file, n, &metadata)?;
        let bitmap = |name: &str| -> Result<Bitmap, Error> {
            let words = file.get_exact::<u64>(name, n.div_ceil(64))?;
            Ok(Bitmap::from_words(n, words.to_vec()))
        };
        Ok(Self {
            columns: ItemColumns::open(n, metadata.columns, &file)?,
            titles: Strings::open("title", &file)?,
            images: Strings::open("image", &file)?,
            categories: metadata.categories,
            facts,
            price: file.keep_exact("price", n)?,
            label_names: metadata.labels,
            in_stock: bitmap("in_stock")?,
            offered: (0..metadata.regions.len())
                .map(|at| bitmap(&format!("region.{at}")))
                .collect::<Result<_, _>>()?,
            region_names: metadata.regions,
            late: ArcSwap::from_pointee(Late::new(n)),
            ids,
        })
    }

    /// Bytes of a row of [`Items::fill_facts`].
    pub const FACT_BYTES: usize = size_of::<Facts>();

    /// Writes what the rules read of each item into rows of [`Items::FACT_BYTES`]; [`Items::read_facts`] reads them there
    /// from then on.
    pub fn fill_facts(&self, mut part: PartMut) {
        (0..self.len()).for_each(|row| part.row(row).copy_from_slice(self.facts.row(row)));
    }

    /// Reads what the rules read from rows that [`Items::fill_facts`] has written.
    pub fn read_facts(&mut self, part: Part) {
        self.facts = part;
    }

    fn facts(&self, item: ItemIdx) -> &Facts {
        bytemuck::from_bytes(self.facts.row(item.row()))
    }

    /// Number of items of the build.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether nothing was built.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The row of an external id; deleted items have one too.
    pub fn find(&self, id: &str) -> Option<ItemIdx> {
        self.ids.find(id).map(ItemIdx).or_else(|| self.late.load().find(id))
    }

    /// What [`Items::find`] says of each id, in their order, in a fraction of the time.
    pub fn find_each<'a, T>(
        &self,
        ids: impl IntoIterator<Item = (&'a str, T)>,
        mut found: impl FnMut(T, Option<ItemIdx>),
    ) {
        let late = self.late.load();
        self.ids.find_each(ids, |id, with, row| {
            found(with, row.map(ItemIdx).or_else(|| late.find(id)));
        });
    }

    /// The feature columns of the build.
    pub fn columns(&self) -> &ItemColumns {
        &self.columns
    }

    /// Region names, sorted; a region's position is its index elsewhere.
    pub fn regions(&self) -> &[String] {
        &self.region_names
    }

    /// Category names, sorted; a category's code is its position.
    pub fn categories(&self) -> &[String] {
        &self.categories
    }

    /// Label names of the build, sorted.
    pub fn label_names(&self) -> &[String] {
        &self.label_names
    }

    /// Items of the build in stock, in a region by position or anywhere.
    pub fn eligible(&self, region: Option<usize>) -> Bitmap {
        let Some(at) = region else { return self.in_stock.clone() };
        let both = self.in_stock.words().zip(self.offered[at].words()).map(|(a, b)| a & b);
        Bitmap::from_words(self.len(), both.collect())
    }

    /// All items as they stand now. What is read through one view fits together.
    pub fn view(&self) -> View<'_> {
        self.view_of(self.late())
    }

    /// All items as they stood when `late` was taken.
    pub fn view_of(&self, late: Arc<Late>) -> View<'_> {
        View { items: self, late }
    }

    /// What differs from the build now.
    pub fn late(&self) -> Arc<Late> {
        self.late.load_full()
    }

    /// Replaces what is late, for all views that are taken from now on. Writers take turns.
    pub fn publish(&self, late: Arc<Late>) {
        self.late.store(late);
    }
}

/// The items of one moment.
#[derive(Clone)]
pub struct View<'a> {
    items: &'a Items,
    late: Arc<Late>,
}

impl LateRows for View<'_> {
    #[inline]
    fn values(&self, item: ItemIdx) -> Option<&[f32]> {
        self.content(item).map(|content| &content.values[..])
    }
}

impl View<'_> {
    /// What differs from the build.
    pub fn late(&self) -> &Late {
        &self.late
    }

    /// See [`View::late`]; changes are this view's alone until they are published.
    pub fn late_mut(&mut self) -> &mut Late {
        Arc::make_mut(&mut self.late)
    }

    /// See [`View::late`].
    pub fn into_late(self) -> Arc<Late> {
        self.late
    }

    /// The row of an external id; deleted items have one too.
    pub fn find(&self, id: &str) -> Option<ItemIdx> {
        self.items.ids.find(id).map(ItemIdx).or_else(|| self.late.find(id))
    }

    /// What an item is, unless it is as it was built.
    #[inline]
    pub fn content(&self, item: ItemIdx) -> Option<&Content> {
        self.late.get(item)?.content.as_deref()
    }

    /// Whether a request of a region (by position; `None` is anywhere) may get an item.
    pub fn is_offered(&self, item: ItemIdx, region: Option<usize>) -> bool {
        let built = || {
            let there = |at: usize| self.items.offered[at].get(item);
            self.items.in_stock.get(item) && region.is_none_or(there)
        };
        self.late.get(item).map_or_else(built, |late| late.is_offered(region))
    }

    /// The external id of an item.
    pub fn id(&self, item: ItemIdx) -> &str {
        let late = self.late.get(item).and_then(|late| late.id.as_deref());
        late.unwrap_or_else(|| self.items.ids.id(item.0))
    }

    /// The bits of these labels; a label that no item carries has no bit.
    pub fn label_bits<'b>(&self, labels: impl IntoIterator<Item = &'b String>) -> u64 {
        let bit = |label| self.late.label_bit(&self.items.label_names, label);
        labels.into_iter().fold(0, |bits, label| bits | bit(label))
    }

    /// The labels of an item as bits.
    #[inline]
    pub fn labels(&self, item: ItemIdx) -> u64 {
        self.late.get(item).map_or_else(|| self.items.facts(item).labels, |late| late.labels)
    }

    /// The category code of an item: a position in [`Items::categories`], or beyond them for one
    /// that the build does not know.
    #[inline]
    pub fn category_code(&self, item: ItemIdx) -> Option<u32> {
        let built = || Some(self.items.facts(item).category).filter(|&code| code != NO_CATEGORY);
        self.content(item).map_or_else(built, |content| content.category_code)
    }

    /// When an item was made, epoch milliseconds.
    #[inline]
    pub fn created_ms(&self, item: ItemIdx) -> Option<i64> {
        let built = || Some(self.items.facts(item).created_ms).filter(|&time| time != NO_TIME);
        self.content(item).map_or_else(built, |content| content.created_ms)
    }

    /// Age in days at `now_ms`; `None` without a creation time.
    #[inline]
    pub fn age_days(&self, item: ItemIdx, now_ms: i64) -> Option<f64> {
        let days = |created_ms| (now_ms - created_ms) as f64 / crate::types::DAY_MS as f64;
        self.created_ms(item).map(days)
    }

    /// Asks for what a person is shown of these items.
    pub fn prefetch_display(&self, items: impl Iterator<Item = ItemIdx> + Clone) {
        let Items { ids, titles, images, price, .. } = self.items;
        let built = items.map(ItemIdx::row).filter(|&row| row < self.items.len());
        let strings = [ids.strings(), titles, images];
        for row in built.clone() {
            strings.iter().for_each(|strings| strings.prefetch_place(row));
            prefetch_at(price, row);
        }
        built.for_each(|row| strings.iter().for_each(|strings| strings.prefetch(row)));
    }

    /// What a person is shown.
    pub fn title(&self, item: ItemIdx) -> Option<&str> {
        match self.content(item) {
            Some(content) => content.title.as_deref(),
            None => Some(self.items.titles.get(item.row())).filter(|title| !title.is_empty()),
        }
    }

    /// Category name.
    pub fn category(&self, item: ItemIdx) -> Option<&str> {
        match self.content(item) {
            Some(content) => content.category.as_deref(),
            None => {
                self.category_code(item).map(|code| self.items.categories[code as usize].as_str())
            }
        }
    }

    /// Price in the catalogue's currency.
    pub fn price(&self, item: ItemIdx) -> Option<f32> {
        let built = || Some(self.items.price[item.row()]).filter(|price| !price.is_nan());
        self.content(item).map_or_else(built, |content| content.price)
    }

    /// Address of the image.
    pub fn image_url(&self, item: ItemIdx) -> Option<&str> {
        match self.content(item) {
            Some(content) => content.image_url.as_deref(),
            None => Some(self.items.images.get(item.row())).filter(|url| !url.is_empty()),
        }
    }

    /// An item in whole, late or as it was built, to make a change from.
    ///
    /// # Panics
    /// When it is neither.
    pub fn item(&self, item: ItemIdx) -> LateItem {
        if let Some(late) = self.late.get(item) {
            return late.clone();
        }
        let regions = (0..self.items.offered.len()).filter(|&at| self.items.offered[at].get(item));
        LateItem {
            id: None,
            gone: false,
            in_stock: self.items.in_stock.get(item),
            regions: regions.collect(),
            labels: self.items.facts(item).labels,
            content: None,
            has_live_row: false,
        }
    }

    /// What an item is, late or as it was built, but for its bins.
    pub fn content_of(&self, item: ItemIdx) -> Content {
        if let Some(content) = self.content(item) {
            return content.clone();
        }
        let columns = &self.items.columns;
        let mut values = vec![f32::NAN; columns.names().len()];
        columns.copy_row(item, &mut values);
        Content {
            title: self.title(item).map(str::to_owned),
            category: self.category(item).map(str::to_owned),
            category_code: self.category_code(item),
            price: self.price(item),
            created_ms: self.created_ms(item),
            image_url: self.image_url(item).map(str::to_owned),
            values,
            bins: Vec::new(),
        }
    }
}

/// What the rules read, checked: every category and label has a name.
fn facts(path: &Path, file: &Sections, n: usize, names: &Metadata) -> Result<Part, Error> {
    let (categories, known) = (names.categories.len(), names.labels.len());
    let nameless = u64::MAX.checked_shl(known as u32).unwrap_or(0);
    let category: Column<u32> = file.get_exact("category", n)?;
    let created_ms: Column<i64> = file.get_exact("created_ms", n)?;
    let labels: Column<u64> = file.get_exact("labels", n)?;
    let mut packing = Packing::new(n, [Items::FACT_BYTES]);
    let mut facts = packing.part(0);
    for row in 0..n {
        let (created_ms, labels, category) = (created_ms[row], labels[row], category[row]);
        let fact = Facts { created_ms, labels, category };
        if fact.category != NO_CATEGORY && fact.category as usize >= categories {
            let (path, code) = (path.to_owned(), fact.category);
            return Err(Error::Category { path, row, code, categories });
        }
        // A label that cannot be read might be a blocked one, so such a table serves nobody.
        if fact.labels & nameless != 0 {
            let (path, bits) = (path.to_owned(), fact.labels);
            return Err(Error::Labels { path, row, bits, labels: known });
        }
        facts.row(row).copy_from_slice(bytemuck::bytes_of(&fact));
    }
    let [facts] = packing.finish();
    Ok(facts)
}

fn collect<T>(records: &[ItemRecord], f: impl Fn(&ItemRecord) -> T) -> Vec<T> {
    records.iter().map(f).collect()
}

fn text(records: &[ItemRecord], f: impl Fn(&ItemRecord) -> Option<&str>) -> Strings {
    Strings::new(records.iter().map(|r| f(r).unwrap_or_default()))
}

fn words(records: &[ItemRecord], f: impl Fn(&ItemRecord) -> bool) -> Vec<u64> {
    let word = |chunk: &[ItemRecord]| {
        chunk.iter().enumerate().fold(0u64, |word, (bit, r)| word | u64::from(f(r)) << bit)
    };
    records.chunks(64).map(word).collect()
}

fn names<'a>(values: impl Iterator<Item = &'a String>) -> Vec<String> {
    values.collect::<std::collections::BTreeSet<_>>().into_iter().cloned().collect()
}

fn limit(what: &'static str, found: usize, max: usize) -> Result<(), Error> {
    if found > max { Err(Error::TooMany { what, found, max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, regions: &[&str], labels: &[&str], in_stock: bool) -> ItemRecord {
        let strings = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect();
        ItemRecord {
            id: id.into(),
            in_stock,
            regions: strings(regions),
            labels: strings(labels),
            ..ItemRecord::default()
        }
    }

    #[test]
    fn what_was_saved_is_what_a_request_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("items.bin");
        let mut records = vec![
            record("a", &["north", "south"], &["alcohol"], true),
            record("b", &["south"], &[], false),
            record("c", &[], &["tobacco", "alcohol"], true),
        ];
        records[0].title = Some("Ale".into());
        records[0].category = Some("beer".into());
        records[0].price = Some(2.5);
        records[0].created_ms = Some(0);
        let mut columns = ItemColumns::new(3);
        columns.insert("items.price", vec![2.5, f32::NAN, 1.0]);
        Items::save(&path, &records, &columns).unwrap();
        let items = Items::open(&path).unwrap();
        let (a, b, c) = (ItemIdx(0), ItemIdx(1), ItemIdx(2));
        assert_eq!((items.find("b"), items.find("z")), (Some(b), None));
        assert_eq!(items.regions(), ["north", "south"]);
        let view = items.view();
        assert_eq!((view.id(b), view.item(b).regions[..].to_vec()), ("b", vec![1]));
        let south = items.eligible(Some(1));
        assert_eq!((south.get(a), south.get(b)), (true, false), "b is out of stock");
        assert!(items.eligible(None).get(c) && !items.eligible(Some(0)).get(c));
        let alcohol = view.label_bits(&["alcohol".to_owned(), "unknown".to_owned()]);
        assert!(view.labels(a) & alcohol != 0 && view.labels(c) & alcohol != 0);
        assert_eq!(view.labels(b) & alcohol, 0);
        assert_eq!((view.title(a), view.title(b)), (Some("Ale"), None));
        assert_eq!((view.category(a), view.category(c)), (Some("beer"), None));
        assert_eq!((view.price(a), view.price(b)), (Some(2.5), None));
        assert_eq!((view.age_days(a, 86_400_000), view.age_days(b, 0)), (Some(1.0), None));
        assert_eq!(items.columns().get("items.price").unwrap().value(2), 1.0);
    }

    #[test]
    fn a_label_that_cannot_be_read_closes_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("items.bin");
        let records = [record("a", &[], &["x", "y", "z"], true), record("b", &[], &[], true)];
        Items::save(&path, &records, &ItemColumns::new(2)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let labels: Vec<u8> = [7u64, 0].iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let at = bytes.windows(16).position(|window| window == labels).unwrap();
        bytes[at + 8] = 8;
        std::fs::write(&path, bytes).unwrap();
        let refused = Items::open(&path).err().unwrap().to_string();
        assert!(refused.contains("item 1 has label bits 0x8, the table has 3 labels"), "{refused}");
    }
}
