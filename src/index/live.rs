//! What changes while an index is served: which rows are alive, and rows that came after the build.
//!
//! A *place* is where a row is stored: below the number of built rows it is a row of the build, from
//! there on a row of the *delta*. Replacing an item ends its place in the build and gives it one in
//! the delta, which it keeps for good, so that the bits of filters stay with it.
//!
//! Readers take no lock: they load the current delta (an `Arc`, swapped as a whole) once a search
//! and read bits. Writers take turns. While one item is being replaced, a search may miss it, but
//! never finds it twice or half written.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::{Allowed, Changes, Error, Hit, Query, check_unit, select::Best};
use crate::index::Bitmap;
use crate::kernels::int8;
use crate::types::ItemIdx;

/// Rows copied at most for one change.
const CHUNK_ROWS: usize = 128;

pub(super) struct Live {
    dim: usize,
    built: usize,
    /// By place.
    alive: Bitmap,
    /// Built rows that are no longer alive.
    dead: AtomicUsize,
    delta: ArcSwap<Delta>,
    rows_max: usize,
    writer: Mutex<()>,
}

/// Rows added or replaced, in the order of their places.
#[derive(Clone, Default)]
pub(super) struct Delta {
    chunks: Vec<Arc<Chunk>>,
    rows: usize,
}

#[derive(Clone, Default)]
struct Chunk {
    items: Vec<ItemIdx>,
    steps: Vec<f32>,
    /// `[rows * row_bytes]`
    codes: Vec<i8>,
}

impl Live {
    /// All `built` rows alive, room for `rows_max` more.
    pub(super) fn new(built: usize, dim: usize, rows_max: usize) -> Self {
        let alive = Bitmap::new(built + rows_max);
        (0..built as u32).for_each(|place| alive.set(ItemIdx(place), true));
        Self {
            dim,
            built,
            alive,
            dead: AtomicUsize::new(0),
            delta: ArcSwap::default(),
            rows_max,
            writer: Mutex::new(()),
        }
    }

    /// Number of places.
    pub(super) fn places(&self) -> usize {
        self.alive.len()
    }

    /// The set of living places, if some built row is not in it.
    pub(super) fn mask(&self) -> Option<&Bitmap> {
        (self.dead.load(Relaxed) > 0).then_some(&self.alive)
    }

    /// Living rows, of the build and of the delta.
    pub(super) fn rows(&self) -> usize {
        self.alive.count_ones()
    }

    pub(super) fn is_alive(&self, place: usize) -> bool {
        self.alive.get(ItemIdx(place as u32))
    }

    pub(super) fn changes(&self) -> Changes {
        Changes {
            live_rows: self.delta.load().rows,
            live_rows_max: self.rows_max,
            dead: self.dead.load(Relaxed),
        }
    }

    /// Offers every living, allowed row of the delta; returns how many there were.
    pub(super) fn scan(
        &self,
        query: &Query,
        allowed: Option<&Allowed>,
        dots: &mut Vec<i32>,
        best: &mut Best,
    ) -> usize {
        let delta = self.delta.load();
        let mut passed = 0;
        for (chunk, at) in delta.chunks.iter().zip(0..) {
            dots.resize(chunk.items.len().max(dots.len()), 0);
            int8::dots(&query.steps, &chunk.codes, &mut dots[..chunk.items.len()]);
            for (row, &item) in chunk.items.iter().enumerate() {
                let place = ItemIdx((self.built + at * CHUNK_ROWS + row) as u32);
                let passes = allowed.is_none_or(|allowed| allowed.places.get(place));
                if passes && self.alive.get(place) {
                    best.offer(dots[row] as f32 * (chunk.steps[row] * query.step), item);
                    passed += 1;
                }
            }
        }
        passed
    }

    /// The score of an item of the delta, if it is there and alive.
    pub(super) fn score(&self, query: &Query, item: ItemIdx) -> Option<Hit> {
        let delta = self.delta.load();
        let row = delta.find(item).filter(|row| self.is_alive(self.built + row))?;
        let chunk = &delta.chunks[row / CHUNK_ROWS];
        let (at, bytes) = (row % CHUNK_ROWS, query.steps.len());
        let mut dot = [0];
        int8::dots(&query.steps, &chunk.codes[at * bytes..][..bytes], &mut dot);
        Some(Hit { item, score: dot[0] as f32 * (chunk.steps[at] * query.step) })
    }

    /// The place of an item whose built row, if it has one, is at `built`.
    pub(super) fn place(&self, item: ItemIdx, built: Option<usize>) -> Option<usize> {
        if let Some(place) = built.filter(|&place| self.is_alive(place)) {
            return Some(place);
        }
        let row = self.delta.load().find(item)?;
        Some(self.built + row).filter(|&place| self.is_alive(place))
    }

    /// Whether the item is there and its place in the set; `built` as for [`Live::place`].
    pub(super) fn allows(&self, allowed: &Allowed, item: ItemIdx, built: Option<usize>) -> bool {
        self.place(item, built).is_some_and(|place| allowed.places.get(ItemIdx(place as u32)))
    }

    /// Writes the vector of a living row of the delta; false when the item has none.
    pub(super) fn vector(&self, item: ItemIdx, out: &mut [f32]) -> bool {
        let delta = self.delta.load();
        let Some(row) = delta.find(item).filter(|row| self.is_alive(self.built + row)) else {
            return false;
        };
        let chunk = &delta.chunks[row / CHUNK_ROWS];
        let (at, bytes) = (row % CHUNK_ROWS, int8::row_bytes(self.dim));
        let codes = &chunk.codes[at * bytes..][..self.dim];
        out.iter_mut().zip(codes).for_each(|(x, &code)| *x = f32::from(code) * chunk.steps[at]);
        true
    }

    /// See [`super::Index::upsert`]; `built` as for [`Live::place`].
    pub(super) fn upsert(
        &self,
        item: ItemIdx,
        built: Option<usize>,
        vector: &[f32],
        sets: &[(&Allowed, bool)],
    ) -> Result<(), Error> {
        assert_eq!(vector.len(), self.dim, "vector of another dimension than the index");
        check_unit("item", item.row(), vector)?;
        if item.row() >= self.places() {
            return Err(Error::Item { item: item.0, max: self.places() });
        }
        let _turn = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut delta = Delta::clone(&self.delta.load());
        let row = delta.find(item).unwrap_or(delta.rows);
        if row == self.rows_max {
            return Err(Error::LiveRows { max: self.rows_max });
        }
        let place = ItemIdx((self.built + row) as u32);
        for (set, member) in sets {
            set.places.set(place, *member);
        }
        delta.put(row, item, vector);
        if let Some(built) = built {
            self.end(built);
        }
        self.delta.store(Arc::new(delta));
        self.alive.set(place, true);
        Ok(())
    }

    /// See [`super::Index::remove`].
    pub(super) fn remove(&self, item: ItemIdx, built: Option<usize>) -> bool {
        let _turn = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        match self.place(item, built) {
            Some(place) if place < self.built => self.end(place),
            Some(place) => self.alive.set(ItemIdx(place as u32), false),
            None => return false,
        }
        true
    }

    fn end(&self, built: usize) {
        if self.is_alive(built) {
            // Counted first: a search that sees no dead row does not look at the bits.
            self.dead.fetch_add(1, Relaxed);
            self.alive.set(ItemIdx(built as u32), false);
        }
    }
}

impl Delta {
    fn find(&self, item: ItemIdx) -> Option<usize> {
        let within = |chunk: &Arc<Chunk>| chunk.items.iter().position(|&other| other == item);
        let mut chunks = self.chunks.iter().enumerate();
        chunks.find_map(|(at, chunk)| within(chunk).map(|row| at * CHUNK_ROWS + row))
    }

    /// Writes row `row`, at most one past the end, into a copy of its chunk.
    fn put(&mut self, row: usize, item: ItemIdx, vector: &[f32]) {
        let (at, within) = (row / CHUNK_ROWS, row % CHUNK_ROWS);
        if at == self.chunks.len() {
            self.chunks.push(Arc::default());
        }
        let chunk = Arc::make_mut(&mut self.chunks[at]);
        let bytes = int8::row_bytes(vector.len());
        if within == chunk.items.len() {
            chunk.items.push(item);
            chunk.steps.push(0.0);
            chunk.codes.resize(chunk.codes.len() + bytes, 0);
            self.rows += 1;
        }
        chunk.steps[within] = int8::step_of(vector);
        let codes = &mut chunk.codes[within * bytes..][..bytes];
        int8::quantise(vector, chunk.steps[within], codes);
    }
}
