//! Changes of items while a bundle serves, applied to columns, bins, filters and index as one step.
//!
//! A batch is *prepared* first: every value is checked, every vector encoded, the next version of
//! the late items made; nothing of it can be seen yet, and it may be refused. Then it is *committed*,
//! which cannot fail: the late items are published as a whole, then the index follows. A request
//! that searches in between may find an item by what it was; it reads the late items after its
//! search and leaves out what they no longer offer, so filters and columns are of one version.
//!
//! An item keeps its row, so that histories, recently shown items and the id tables of the towers
//! mean the same item before and after. Only what the item tower reads makes a new vector, and with
//! it a live row of the index.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Attribute, Bundle, Change, Error, Patch, TowerInputs, Upsert, code, files, positions};
use crate::monitor;
use crate::store::items::{Content, Late, LateItem, View};
use crate::towers::{ItemInput, Scratch};
use crate::types::{ItemIdx, epoch_days};

/// Names of item columns that are fields of a record, not attributes.
const FIELDS: [&str; 11] = [
    "item_id",
    "title",
    "category",
    "price",
    "created_at",
    "created_ms",
    "created_day",
    "in_stock",
    "regions",
    "labels",
    "image_url",
];

/// Which item columns feed the item tower.
#[derive(Clone, Debug)]
pub(super) struct TowerItem {
    pub codes: Vec<usize>,
    pub dense: Vec<usize>,
}

impl TowerItem {
    pub fn new(inputs: &TowerInputs, columns: &[String]) -> Result<Self, Error> {
        let codes = positions(&inputs.item_codes, columns, files::ITEMS)?;
        Ok(Self { codes, dense: positions(&inputs.item_dense, columns, files::ITEMS)? })
    }
}

/// How far a bundle has followed the change log.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// The last batch that is in.
    done: AtomicU64,
    /// The last one that has begun to come in.
    begun: AtomicU64,
}

/// A batch that waits to be committed.
pub struct Prepared {
    late: Arc<Late>,
    /// Items that change, with a new vector or without.
    items: BTreeMap<ItemIdx, Option<Vec<f32>>>,
}

/// Why changes were refused; none of their batch is applied.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("no item `{id}`: POST it first")]
    Unknown { at: usize, id: String },
    #[error(
        "region `{region}` is not in the bundle: known are {known}; a new one comes with the next \
         build"
    )]
    Region { at: usize, region: String, known: String },
    #[error("attribute `{name}` is a field of its own: give it outside `attributes`")]
    Field { at: usize, name: String },
    #[error("attribute `{name}` is {found}: the bundle's column is {wanted}")]
    Type { at: usize, name: String, found: String, wanted: &'static str },
    #[error(
        "all {max} live rows of the index are taken: publish a new bundle, or raise \
         index.live_rows_max and restart"
    )]
    LiveRows { max: usize },
    #[error(
        "{found} changed items are over items.changed_max = {max}: publish a new bundle, or raise it"
    )]
    Changed { found: usize, max: usize },
}

impl Bundle {
    /// The number of the last batch of the change log that is in this bundle.
    pub fn applied(&self) -> u64 {
        self.applied.done.load(Ordering::Acquire)
    }

    /// The number of the last batch that has begun to come in: who read [`Bundle::applied`] first and
    /// finds the same number here has seen no change in between.
    pub fn applying(&self) -> u64 {
        self.applied.begun.load(Ordering::Acquire)
    }

    /// Says that batches up to `n` are in this bundle already, or need not be.
    pub fn skip_to(&self, n: u64) {
        self.applied.begun.store(n, Ordering::Release);
        self.applied.done.store(n, Ordering::Release);
    }

    /// Prepares new changes; `changed_max` bounds the items that differ from the build. Writers take
    /// turns: no other batch may be committed before this one is, or is dropped.
    ///
    /// # Errors
    /// When a value is wrong, an item is unknown, or there is no room.
    pub fn prepare(&self, changes: &[Change], changed_max: usize) -> Result<Prepared, Refused> {
        let mut editor = Editor::new(self, true);
        for (at, change) in changes.iter().enumerate() {
            editor.edit(at, change)?;
        }
        let found = editor.view.late().len();
        if found > changed_max {
            return Err(Refused::Changed { found, max: changed_max });
        }
        Ok(editor.finish())
    }

    /// Prepares changes that were taken elsewhere or before, perhaps on another bundle: what this one
    /// cannot follow is logged and left out, and the rest of the batch counts. Limits do not: what is
    /// left out could be a safety label.
    pub fn prepare_again(&self, changes: &[Change]) -> Prepared {
        let mut editor = Editor::new(self, false);
        for (at, change) in changes.iter().enumerate() {
            if let Err(refused) = editor.edit(at, change) {
                tracing::warn!("a change of an item does not apply to this bundle: {refused}");
            }
        }
        editor.finish()
    }

    /// Applies batch `n`.
    pub fn commit(&self, n: u64, prepared: Prepared) {
        let Prepared { late, items } = prepared;
        self.applied.begun.store(n, Ordering::Release);
        self.items.publish(late.clone());
        for (item, vector) in items {
            let now = late.get(item).expect("every prepared item is late");
            let regions = std::iter::once(None).chain((0..self.items.regions().len()).map(Some));
            let sets = self.allowed.iter().zip(regions);
            let sets: Vec<_> = sets.map(|(set, region)| (set, now.is_offered(region))).collect();
            match vector {
                Some(vector) => {
                    if let Err(error) = self.index.upsert(item, &vector, &sets) {
                        tracing::error!("item {} keeps its old vector: {error}", item.0);
                    }
                }
                None => {
                    sets.iter().for_each(|(set, member)| self.index.set_allowed(set, item, *member))
                }
            }
            if now.gone {
                self.index.remove(item);
            }
        }
        self.skip_to(n);
        monitor::items_changed(n, late.len(), self.index.changes().live_rows);
    }
}

/// Makes the next version of the late items.
struct Editor<'a> {
    bundle: &'a Bundle,
    view: View<'a>,
    items: BTreeMap<ItemIdx, Option<Vec<f32>>>,
    scratch: Scratch,
    /// Live rows of the index that are free.
    free_rows: usize,
    /// Whether what does not fit is refused, or left out.
    strict: bool,
}

impl<'a> Editor<'a> {
    fn new(bundle: &'a Bundle, strict: bool) -> Self {
        let changes = bundle.index.changes();
        Self {
            bundle,
            view: bundle.items.view(),
            items: BTreeMap::new(),
            scratch: bundle.towers.scratch(),
            free_rows: changes.live_rows_max.saturating_sub(changes.live_rows),
            strict,
        }
    }

    fn finish(self) -> Prepared {
        Prepared { late: self.view.into_late(), items: self.items }
    }

    fn edit(&mut self, at: usize, change: &Change) -> Result<(), Refused> {
        match change {
            Change::Upsert(upsert) => self.upsert(at, upsert),
            Change::Patch(patch) => self.patch(at, patch),
            Change::Delete { id } => {
                let item = self.living(at, id)?;
                let gone = LateItem { gone: true, ..self.view.item(item) };
                self.items.entry(item).or_default();
                self.view.late_mut().set(item, gone);
                Ok(())
            }
        }
    }

    fn upsert(&mut self, at: usize, upsert: &Upsert) -> Result<(), Refused> {
        let record = &upsert.record;
        let regions = self.regions(at, &record.regions)?;
        self.check_attributes(at, upsert)?;
        let known = self.view.find(&record.id);
        let before = known.map(|item| self.view.content_of(item));
        let values = self.values(upsert, before.as_ref().map(|before| &before.values[..]));
        let category_code = record.category.as_ref().map(|category| {
            let known = self.bundle.items.categories().binary_search(category);
            // Beyond all codes of the build: for telling categories apart, nothing else.
            known.map_or(crate::ids::hash(category) as u32 | 1 << 31, |code| code as u32)
        });
        let content = Content {
            title: record.title.clone(),
            category: record.category.clone(),
            category_code,
            price: record.price,
            created_ms: record.created_ms,
            image_url: record.image_url.clone(),
            bins: self.bundle.ranking.bins_of(&self.bundle.plan, &values),
            values,
        };
        let labels = self.labels(&record.labels);
        let (item, id, was) = match known {
            Some(item) => (item, self.view.item(item).id, Some(self.view.item(item))),
            None => {
                let (item, id) = self.view.late_mut().add(&record.id);
                (item, Some(id), None)
            }
        };
        let next = LateItem {
            id,
            gone: false,
            in_stock: record.in_stock,
            regions,
            labels,
            content: Some(Arc::new(content)),
            has_live_row: was.as_ref().is_some_and(|was| was.has_live_row),
        };
        let living = was.is_some_and(|was| !was.gone);
        self.put(item, next, before.filter(|_| living).as_ref())
    }

    fn patch(&mut self, at: usize, patch: &Patch) -> Result<(), Refused> {
        let item = self.living(at, &patch.id)?;
        let mut next = self.view.item(item);
        next.in_stock = patch.in_stock.unwrap_or(next.in_stock);
        if let Some(regions) = &patch.regions {
            next.regions = self.regions(at, regions)?;
        }
        if let Some(labels) = &patch.labels {
            next.labels = self.labels(labels);
        }
        let before = self.view.content_of(item);
        if let Some(price) = patch.price {
            let mut content = Content { price: Some(price), ..before.clone() };
            if let Some(column) = self.bundle.items.columns().find("items.price") {
                content.values[column] = price;
            }
            content.bins = self.bundle.ranking.bins_of(&self.bundle.plan, &content.values);
            next.content = Some(Arc::new(content));
        }
        self.put(item, next, Some(&before))
    }

    /// Sets an item, with a new vector if what the tower reads is not what it was.
    fn put(
        &mut self,
        item: ItemIdx,
        mut next: LateItem,
        before: Option<&Content>,
    ) -> Result<(), Refused> {
        let mut vector = match (&next.content, before) {
            (None, _) => None,
            (Some(now), Some(before)) if self.reads_same(&now.values, &before.values) => None,
            (Some(now), _) => Some(self.encode(item, &now.values)),
        };
        if vector.is_some() && !next.has_live_row {
            match self.free_rows.checked_sub(1) {
                Some(free) => {
                    self.free_rows = free;
                    next.has_live_row = true;
                }
                None => {
                    let full = Refused::LiveRows { max: self.bundle.index.changes().live_rows_max };
                    if self.strict {
                        return Err(full);
                    }
                    tracing::error!("item {} keeps the vector that it has, if any: {full}", item.0);
                    vector = None;
                }
            }
        }
        let entry = self.items.entry(item).or_default();
        *entry = vector.or(entry.take());
        self.view.late_mut().set(item, next);
        Ok(())
    }

    fn reads_same(&self, one: &[f32], two: &[f32]) -> bool {
        let TowerItem { codes, dense } = &self.bundle.tower_item;
        codes.iter().chain(dense).all(|&at| one[at].to_bits() == two[at].to_bits())
    }

    fn encode(&mut self, item: ItemIdx, values: &[f32]) -> Vec<f32> {
        let TowerItem { codes, dense } = &self.bundle.tower_item;
        let codes: Vec<u32> = codes.iter().map(|&at| code(values[at])).collect();
        let dense: Vec<f32> = dense.iter().map(|&at| values[at]).collect();
        let towers = &self.bundle.towers;
        let mut vector = vec![0.0; towers.dim()];
        let input = ItemInput { item, codes: &codes, dense: &dense };
        towers.encode_item(&input, &mut self.scratch, &mut vector);
        vector
    }

    /// The row of an item that has not been deleted.
    fn living(&self, at: usize, id: &str) -> Result<ItemIdx, Refused> {
        let living = |item: &ItemIdx| self.view.late().get(*item).is_none_or(|late| !late.gone);
        let found = self.view.find(id).filter(living);
        found.ok_or_else(|| Refused::Unknown { at, id: id.to_owned() })
    }

    fn labels(&mut self, labels: &[String]) -> u64 {
        self.view.late_mut().add_labels(self.bundle.items.label_names(), labels)
    }

    fn regions(&self, at: usize, names: &[String]) -> Result<Arc<[usize]>, Refused> {
        let known = self.bundle.items.regions();
        let mut positions = Vec::with_capacity(names.len());
        for name in names {
            match known.binary_search(name) {
                Ok(position) => positions.push(position),
                // An older bundle may not know it, nor can it be asked for it.
                Err(_) if !self.strict => {}
                Err(_) => {
                    let (region, known) = (name.clone(), known.join(", "));
                    return Err(Refused::Region { at, region, known });
                }
            }
        }
        Ok(positions.into())
    }

    /// Refuses attributes that stand in the wrong place, and text where the bundle has numbers.
    /// Those that no model reads are only kept in the log.
    fn check_attributes(&self, at: usize, upsert: &Upsert) -> Result<(), Refused> {
        if !self.strict {
            return Ok(());
        }
        for (name, value) in &upsert.attributes {
            if FIELDS.contains(&name.as_str()) {
                return Err(Refused::Field { at, name: name.clone() });
            }
            let column = format!("items.{name}");
            if self.bundle.items.columns().find(&column).is_none() {
                continue;
            }
            let wanted = match self.bundle.dictionaries.get(&column) {
                Some(_) => "text",
                None => "a number",
            };
            let found = match value {
                Attribute::Number(number) if wanted == "text" => format!("the number {number}"),
                Attribute::Text(text) if wanted != "text" => format!("the text \"{text}\""),
                _ => continue,
            };
            return Err(Refused::Type { at, name: name.clone(), found, wanted });
        }
        Ok(())
    }

    /// The item columns: those of the items table from the record, statistics as they were, missing
    /// for a new item.
    fn values(&self, upsert: &Upsert, before: Option<&[f32]>) -> Vec<f32> {
        let names = self.bundle.items.columns().names().iter().enumerate();
        names
            .map(|(at, name)| match name.strip_prefix("items.") {
                Some(field) => self.value(upsert, name, field),
                None => before.map_or(f32::NAN, |before| before[at]),
            })
            .collect()
    }

    fn value(&self, upsert: &Upsert, column: &str, field: &str) -> f32 {
        let Upsert { record, attributes } = upsert;
        if let Some(dictionary) = self.bundle.dictionaries.get(column) {
            return dictionary.feature(match field {
                "item_id" => Some(&record.id),
                "title" => record.title.as_deref(),
                "category" => record.category.as_deref(),
                "image_url" => record.image_url.as_deref(),
                _ => match attributes.get(field) {
                    Some(Attribute::Text(text)) => Some(text),
                    _ => None,
                },
            });
        }
        match (field, attributes.get(field)) {
            ("price", _) => record.price.unwrap_or(f32::NAN),
            ("created_day", _) => record.created_ms.map_or(f32::NAN, |ms| epoch_days(ms) as f32),
            ("created_ms", _) => record.created_ms.map_or(f32::NAN, |ms| ms as f32),
            ("in_stock", _) => f32::from(u8::from(record.in_stock)),
            (_, Some(Attribute::Number(number))) => *number as f32,
            _ => f32::NAN,
        }
    }
}
