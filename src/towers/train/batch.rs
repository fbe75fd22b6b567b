//! Which rows and candidates make a batch, and how likely each candidate was to be among them.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::types::ItemIdx;

use super::super::{Config, Error, Towers};
use super::Data;

/// One positive of a batch: the row's softmax is pulled towards the candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Target {
    /// Position in [`Batch::rows`].
    pub row: u32,
    /// Position in [`Batch::candidates`].
    pub candidate: u32,
    pub weight: f32,
}

/// A batch; refilled in place.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub snapshot: usize,
    /// Positions in `Data::rows`.
    pub rows: Vec<u32>,
    /// Distinct items.
    pub candidates: Vec<u32>,
    /// Id row of each candidate; 0 where dropout hides it.
    pub id_rows: Vec<u32>,
    /// Logarithm of the probability that the candidate stands in a batch.
    pub log_inclusion: Vec<f32>,
    /// By row.
    pub targets: Vec<Target>,
    /// What the loss is divided by: the weights without recency, so that a batch of an old
    /// snapshot moves the weights less, not as much along an older direction.
    pub weight: f64,
    /// `rows x candidates`: not a negative of the row.
    pub blocked: Vec<bool>,
    /// Position in `candidates` by item, `u32::MAX` when not there.
    slot: Vec<u32>,
}

/// A planned batch.
pub(super) struct Span {
    group: usize,
    rows: Vec<u32>,
}

/// Rows by snapshot with what the sampling probabilities need.
pub(super) struct Sampler<'a> {
    data: &'a Data<'a>,
    groups: Vec<Group>,
    /// Effective weight by event.
    weights: Vec<f32>,
    batch_rows: usize,
    random_negatives: usize,
    id_dropout: f32,
    mask_owned: bool,
    basket_damping: f32,
    half_life_days: f32,
}

struct Group {
    snapshot: usize,
    rows: Vec<u32>,
    /// Items and the number of rows they are a positive of; by item.
    counts: Vec<(u32, u32)>,
}

impl<'a> Sampler<'a> {
    pub fn new(data: &'a Data<'a>, config: &Config) -> Result<Self, Error> {
        let weights = effective_weights(data, config);
        let mut groups: Vec<Group> = (0..data.snapshots.len())
            .map(|snapshot| Group { snapshot, rows: Vec::new(), counts: Vec::new() })
            .collect();
        for (index, row) in data.rows.iter().enumerate() {
            let span = row.begin as usize..row.end as usize;
            if weights[span].iter().any(|&weight| weight > 0.0) {
                groups[row.snapshot as usize].rows.push(index as u32);
            }
        }
        groups.retain(|group| !group.rows.is_empty());
        if groups.is_empty() {
            return Err(Error::NoPositives);
        }
        for group in &mut groups {
            group.counts = count_rows_by_item(data, &weights, &group.rows);
        }
        Ok(Self {
            data,
            groups,
            weights,
            batch_rows: config.batch_rows,
            random_negatives: config.random_negatives.min(data.items),
            id_dropout: config.id_dropout,
            mask_owned: config.mask_owned,
            basket_damping: config.basket_damping,
            half_life_days: config.half_life_days,
        })
    }

    pub fn batches_an_epoch(&self) -> usize {
        self.groups.iter().map(|group| group.rows.len().div_ceil(self.batch_rows)).sum()
    }

    /// Every row once, in batches of one snapshot each, in random order.
    pub fn epoch(&self, rng: &mut StdRng) -> Vec<Span> {
        let mut plan = Vec::with_capacity(self.batches_an_epoch());
        for (index, group) in self.groups.iter().enumerate() {
            let mut rows = group.rows.clone();
            rows.shuffle(rng);
            let batches = rows.len().div_ceil(self.batch_rows);
            for chunk in rows.chunks(rows.len().div_ceil(batches)) {
                plan.push(Span { group: index, rows: chunk.to_vec() });
            }
        }
        plan.shuffle(rng);
        plan
    }

    pub fn fill(&self, towers: &Towers, span: &Span, rng: &mut StdRng, batch: &mut Batch) {
        let group = &self.groups[span.group];
        batch.reset(self.data.items, group.snapshot, &span.rows);
        for (at, &row) in span.rows.iter().enumerate() {
            self.add_targets(at as u32, row, batch);
        }
        for _ in 0..self.random_negatives {
            batch.candidate(rng.random_range(0..self.data.items as u32));
        }
        self.describe_candidates(group, towers, span.rows.len(), rng, batch);
        self.block(batch);
    }

    fn add_targets(&self, at: u32, row: u32, batch: &mut Batch) {
        let row = &self.data.rows[row as usize];
        let first = batch.targets.len();
        for event in row.begin as usize..row.end as usize {
            let weight = self.weights[event];
            if weight <= 0.0 {
                continue;
            }
            let candidate = batch.candidate(self.data.event_items[event].0);
            let twice = batch.targets[first..].iter_mut().find(|t| t.candidate == candidate);
            match twice {
                Some(target) => target.weight = target.weight.max(weight),
                None => batch.targets.push(Target { row: at, candidate, weight }),
            }
        }
        let basket = &mut batch.targets[first..];
        let total: f32 = basket.iter().map(|target| target.weight).sum();
        let share = total.max(1e-6).powf(-self.basket_damping);
        batch.weight += f64::from(total * share);
        let recency = (-row.age_days / self.half_life_days).exp2();
        basket.iter_mut().for_each(|target| target.weight *= share * recency);
    }

    fn describe_candidates(
        &self,
        group: &Group,
        towers: &Towers,
        rows: usize,
        rng: &mut StdRng,
        batch: &mut Batch,
    ) {
        let items = f64::from(towers.shape().items);
        let draws = self.random_negatives as f64;
        let row_share = rows as f64 / group.rows.len() as f64;
        for &item in &batch.candidates {
            let dropped = self.id_dropout > 0.0 && rng.random::<f32>() < self.id_dropout;
            batch.id_rows.push(if dropped { 0 } else { towers.id_row(ItemIdx(item)) });
            let found = group.counts.binary_search_by_key(&item, |&(item, _)| item);
            let count = found.map_or(0, |at| group.counts[at].1);
            let absent = (1.0 - row_share).powi(count as i32) * (1.0 - 1.0 / items).powf(draws);
            batch.log_inclusion.push((1.0 - absent).max(1e-12).ln() as f32);
        }
    }

    /// A row's positives are no negatives of it, nor, with `mask_owned`, what the user already
    /// had: the softmax then says nothing about those.
    fn block(&self, batch: &mut Batch) {
        let width = batch.candidates.len();
        batch.blocked.resize(batch.rows.len() * width, false);
        for target in &batch.targets {
            batch.blocked[target.row as usize * width + target.candidate as usize] = true;
        }
        if !self.mask_owned {
            return;
        }
        let data = self.data;
        for (at, &row) in batch.rows.iter().enumerate() {
            let row = &data.rows[row as usize];
            let past = data.user_offsets[row.user as usize] as usize..row.begin as usize;
            for item in &data.event_items[past] {
                let slot = batch.slot[item.row()];
                if slot != u32::MAX {
                    batch.blocked[at * width + slot as usize] = true;
                }
            }
        }
    }
}

impl Batch {
    fn reset(&mut self, items: usize, snapshot: usize, rows: &[u32]) {
        self.slot.resize(items, u32::MAX);
        for &item in &self.candidates {
            self.slot[item as usize] = u32::MAX;
        }
        self.candidates.clear();
        self.id_rows.clear();
        self.log_inclusion.clear();
        self.targets.clear();
        self.weight = 0.0;
        self.blocked.clear();
        self.rows.clear();
        self.rows.extend_from_slice(rows);
        self.snapshot = snapshot;
    }

    fn candidate(&mut self, item: u32) -> u32 {
        let slot = &mut self.slot[item as usize];
        if *slot == u32::MAX {
            *slot = self.candidates.len() as u32;
            self.candidates.push(item);
        }
        *slot
    }
}

/// Weight of every event as a positive: the caller's, times the repeat weight where the user had
/// the item before the moment. Events outside the rows stay 0.
fn effective_weights(data: &Data, config: &Config) -> Vec<f32> {
    let mut order: Vec<u32> = (0..data.rows.len() as u32).collect();
    order.sort_by_key(|&row| {
        let row = &data.rows[row as usize];
        (row.user, row.begin)
    });
    let mut weights = vec![0.0; data.event_items.len()];
    // The user whose past the item was last seen in, plus one.
    let mut seen = vec![0u32; data.items];
    let (mut user, mut next) = (u32::MAX, 0);
    for &row in &order {
        let row = &data.rows[row as usize];
        if row.user != user {
            user = row.user;
            next = data.user_offsets[user as usize] as usize;
        }
        for item in &data.event_items[next.min(row.begin as usize)..row.begin as usize] {
            seen[item.row()] = user + 1;
        }
        next = row.begin as usize;
        let span = row.begin as usize..row.end as usize;
        let events = data.event_items[span.clone()].iter().zip(&data.event_weights[span.clone()]);
        for (weight, (item, given)) in weights[span].iter_mut().zip(events) {
            let repeat = seen[item.row()] == user + 1;
            *weight = given * if repeat { config.repeat_weight } else { 1.0 };
        }
    }
    weights
}

fn count_rows_by_item(data: &Data, weights: &[f32], rows: &[u32]) -> Vec<(u32, u32)> {
    let mut items = Vec::new();
    for &row in rows {
        let row = &data.rows[row as usize];
        let first = items.len();
        let span = row.begin as usize..row.end as usize;
        for (item, &weight) in data.event_items[span.clone()].iter().zip(&weights[span]) {
            if weight > 0.0 && !items[first..].contains(&item.0) {
                items.push(item.0);
            }
        }
    }
    items.sort_unstable();
    items.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect()
}
