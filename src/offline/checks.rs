//! The checks that every row of an import passes through, and their limits.
//!
//! A row may fail several; its faults are bits in the order of [`CHECKS`]. Must not know where
//! rows come from or go to.

use std::collections::HashSet;

use anyhow::{Context, bail};
use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType};

use crate::offline::import::Config;
use crate::offline::tables::Table;
use crate::types::DAY_MS;

/// The checks in the order of their bits.
pub(super) const CHECKS: [&str; 6] = [
    "wrong_type",
    "null_id",
    "negative_price",
    "date_out_of_range",
    "unknown_item",
    "duplicate_id",
];
const WRONG_TYPE: u8 = 1;
const NULL_ID: u8 = 2;
const NEGATIVE_PRICE: u8 = 4;
const DATE_OUT_OF_RANGE: u8 = 8;
const UNKNOWN_ITEM: u8 = 16;
const DUPLICATE_ID: u8 = 32;

/// The configuration, checked.
pub(super) struct Limits {
    pub time_us: std::ops::Range<i64>,
    pub examples_max: usize,
    pub share_max: [f64; CHECKS.len()],
}

impl Limits {
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let midnight_us = |key: &str, date: &str| -> anyhow::Result<i64> {
            let date: chrono::NaiveDate = date
                .parse()
                .with_context(|| format!("import.{key} = \"{date}\" is not a date YYYY-MM-DD"))?;
            Ok(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros())
        };
        let from = midnight_us("date_min", &config.date_min)?;
        let to = midnight_us("date_max", &config.date_max)? + DAY_MS * 1000;
        if from >= to {
            bail!("import.date_min {} is after date_max {}", config.date_min, config.date_max);
        }
        let share = &config.share_max;
        let share_max = [
            share.wrong_type,
            share.null_id,
            share.negative_price,
            share.date_out_of_range,
            share.unknown_item,
            share.duplicate_id,
        ];
        for (name, share) in CHECKS.iter().zip(share_max) {
            if !(0.0..=1.0).contains(&share) {
                bail!("import.share_max.{name} = {share} is no share between 0 and 1");
            }
        }
        Ok(Self { time_us: from..to, examples_max: config.example_rows, share_max })
    }
}

/// Whether a check (one bit) has a meaning for a table.
pub(super) fn applies(table: Table, check: u8) -> bool {
    match check {
        NEGATIVE_PRICE => table == Table::Items,
        UNKNOWN_ITEM => table == Table::Events,
        DATE_OUT_OF_RANGE => table != Table::Users,
        _ => true,
    }
}

/// The names of the checks of a row's bits.
pub(super) fn reason(fault: u8) -> String {
    let names = CHECKS.iter().enumerate().filter(|(bit, _)| (fault >> bit) & 1 == 1);
    names.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

/// Looks at the rows of a table, batch after batch.
pub(super) struct Checker<'a> {
    pub table: Table,
    /// The ids of the catalogue, when events are checked.
    pub known_items: Option<&'a HashSet<String>>,
    pub limits: &'a Limits,
    /// Hashes of the keys that occurred.
    pub seen: HashSet<[u8; 16]>,
}

impl Checker<'_> {
    /// Per row the checks it fails, as bits.
    pub fn faults(&mut self, batch: &RecordBatch, lost: &[Vec<usize>]) -> Vec<u8> {
        let mut faults = vec![0u8; batch.num_rows()];
        for &row in lost.iter().flatten() {
            faults[row] |= WRONG_TYPE;
        }
        for spec in self.table.specs().iter().filter(|spec| spec.required) {
            let column = batch.column_by_name(spec.name).expect("canonical column");
            let texts = column.as_string_opt::<i32>();
            for (row, fault) in faults.iter_mut().enumerate() {
                let empty = texts.is_some_and(|t| t.is_valid(row) && t.value(row).is_empty());
                // A value that was lost in the conversion is a wrong type, not a missing one.
                if empty || (column.is_null(row) && *fault & WRONG_TYPE == 0) {
                    *fault |= NULL_ID;
                }
            }
        }
        for name in ["timestamp", "created_at", "as_of"] {
            if let Some(column) = batch.column_by_name(name) {
                let times = column.as_primitive::<TimestampMicrosecondType>();
                for (fault, time) in faults.iter_mut().zip(times) {
                    if time.is_some_and(|time| !self.limits.time_us.contains(&time)) {
                        *fault |= DATE_OUT_OF_RANGE;
                    }
                }
            }
        }
        if let Some(column) = batch.column_by_name("price").filter(|_| self.table == Table::Items) {
            for (fault, price) in faults.iter_mut().zip(column.as_primitive::<Float64Type>()) {
                if price.is_some_and(|price| price < 0.0) {
                    *fault |= NEGATIVE_PRICE;
                }
            }
        }
        if let Some(known) = self.known_items.filter(|_| self.table == Table::Events) {
            for (fault, id) in faults.iter_mut().zip(text(batch, "item_id")) {
                if id.is_some_and(|id| !known.contains(id)) {
                    *fault |= UNKNOWN_ITEM;
                }
            }
        }
        self.mark_duplicates(batch, &mut faults);
        faults
    }

    fn mark_duplicates(&mut self, batch: &RecordBatch, faults: &mut [u8]) {
        let columns: Vec<&StringArray> =
            self.table.key().iter().map(|name| text(batch, name)).collect();
        for (row, fault) in faults.iter_mut().enumerate() {
            if columns.iter().any(|column| column.is_null(row)) {
                continue;
            }
            let mut hash = blake3::Hasher::new();
            for column in &columns {
                hash.update(column.value(row).as_bytes()).update(&[0xff]);
            }
            let digest = hash.finalize();
            let short: [u8; 16] = digest.as_bytes()[..16].try_into().expect("16 of 32 bytes");
            if !self.seen.insert(short) {
                *fault |= DUPLICATE_ID;
            }
        }
    }
}

/// A canonical column of strings.
pub(super) fn text<'a>(batch: &'a RecordBatch, name: &str) -> &'a StringArray {
    batch.column_by_name(name).expect("canonical column").as_string::<i32>()
}
