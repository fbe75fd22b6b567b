//! The rows of the two logs as Arrow columns. Timestamps are UTC microseconds in files.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float32Builder, Float64Array, Int32Array, Int32Builder, ListBuilder, StringArray,
    StringBuilder, TimestampMicrosecondArray, UInt32Array,
};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use super::{Row, Served, served};
use crate::monitor::{Log, Stage};

/// A request that is logged in full takes some 12 KiB, 400 bytes otherwise.
const FULL_PLACES: usize = 32;

/// One row of `events/`: what a user did or saw. The columns are those of the data contract.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Unique; an event sent twice is recognised by it.
    pub event_id: String,
    pub user_id: String,
    pub item_id: String,
    /// `impression`, `click`, `cart`, `purchase`, ...
    pub event: String,
    /// Epoch milliseconds, UTC.
    pub time_ms: i64,
    /// Revenue or rating.
    pub value: Option<f64>,
    /// An outcome that was imported; events taken here have none.
    pub label: Option<f64>,
    /// The answer that showed the item.
    pub request_id: Option<String>,
    /// Where in that answer, from 1.
    pub position: Option<i32>,
    pub device: Option<String>,
    pub region: Option<String>,
    pub variant: Option<String>,
    pub bundle_version: Option<String>,
    /// The probability with which the item was shown there, for experiments.
    pub propensity: Option<f64>,
}

/// One row of `requests/`: an answer and how it came about.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RequestRecord {
    pub request_id: String,
    /// Epoch milliseconds, UTC: the time that the answer was computed for.
    pub time_ms: i64,
    pub user_id: String,
    pub device: Option<String>,
    pub region: Option<String>,
    pub bundle_version: String,
    pub variant: String,
    /// How many items were asked for.
    pub num_items: i32,
    /// The items in order, from position 1.
    pub item_ids: Vec<String>,
    /// Parallel to `item_ids`.
    pub scores: Vec<f32>,
    /// Fallbacks that were taken.
    pub degraded: Vec<&'static str>,
    /// Microseconds by stage, in the order of [`Stage::ALL`].
    pub stage_us: [u32; 6],
    pub total_us: u32,
    /// All that decided the answer, for a request that is logged in full.
    pub served: Option<Box<Served>>,
}

impl Row for EventRecord {
    const LOG: Log = Log::Events;

    fn time_ms(&self) -> i64 {
        self.time_ms
    }

    fn id(&self) -> &str {
        &self.event_id
    }

    fn batch(rows: &[Self]) -> RecordBatch {
        columns([
            ("event_id", text(rows, |r| &r.event_id)),
            ("user_id", text(rows, |r| &r.user_id)),
            ("item_id", text(rows, |r| &r.item_id)),
            ("event", text(rows, |r| &r.event)),
            ("timestamp", time(rows, |r| r.time_ms)),
            ("value", float(rows, |r| r.value)),
            ("label", float(rows, |r| r.label)),
            ("request_id", nullable(rows, |r| &r.request_id)),
            ("position", Arc::new(rows.iter().map(|r| r.position).collect::<Int32Array>())),
            ("device", nullable(rows, |r| &r.device)),
            ("region", nullable(rows, |r| &r.region)),
            ("variant", nullable(rows, |r| &r.variant)),
            ("bundle_version", nullable(rows, |r| &r.bundle_version)),
            ("propensity", float(rows, |r| r.propensity)),
        ])
    }
}

impl Row for RequestRecord {
    const LOG: Log = Log::Requests;
    const PLACES_MAX: usize = FULL_PLACES;

    fn time_ms(&self) -> i64 {
        self.time_ms
    }

    fn id(&self) -> &str {
        &self.request_id
    }

    fn places(&self) -> usize {
        if self.served.is_some() { FULL_PLACES } else { 1 }
    }

    fn batch(rows: &[Self]) -> RecordBatch {
        let (mut items, mut positions) = (list(StringBuilder::new()), list(Int32Builder::new()));
        let (mut scores, mut degraded) = (list(Float32Builder::new()), list(StringBuilder::new()));
        for row in rows {
            items.append_value(row.item_ids.iter().map(Some));
            positions.append_value((1..=row.item_ids.len() as i32).map(Some));
            scores.append_value(row.scores.iter().map(|&score| Some(score)));
            degraded.append_value(row.degraded.iter().map(Some));
        }
        let mut all: Vec<(String, ArrayRef)> = [
            ("request_id", text(rows, |r| &r.request_id)),
            ("timestamp", time(rows, |r| r.time_ms)),
            ("user_id", text(rows, |r| &r.user_id)),
            ("device", nullable(rows, |r| &r.device)),
            ("region", nullable(rows, |r| &r.region)),
            ("bundle_version", text(rows, |r| &r.bundle_version)),
            ("variant", text(rows, |r| &r.variant)),
            ("num_items", Arc::new(rows.iter().map(|r| Some(r.num_items)).collect::<Int32Array>())),
            ("item_ids", Arc::new(items.finish())),
            ("positions", Arc::new(positions.finish())),
            ("scores", Arc::new(scores.finish())),
            ("degraded", Arc::new(degraded.finish())),
        ]
        .into_iter()
        .map(|(name, column): (&str, ArrayRef)| (name.to_owned(), column))
        .collect();
        for (at, stage) in Stage::ALL.iter().enumerate() {
            let column: UInt32Array = rows.iter().map(|r| Some(r.stage_us[at])).collect();
            all.push((format!("{}_us", stage.name()), Arc::new(column)));
        }
        let total: UInt32Array = rows.iter().map(|r| Some(r.total_us)).collect();
        all.push(("total_us".to_owned(), Arc::new(total)));
        all.extend(served::columns(rows));
        columns(all)
    }
}

/// Every column is nullable in the file, so that files of different versions merge.
fn columns<N: AsRef<str>>(columns: impl IntoIterator<Item = (N, ArrayRef)>) -> RecordBatch {
    let nullable = columns.into_iter().map(|(name, column)| (name, column, true));
    RecordBatch::try_from_iter_with_nullable(nullable).expect("columns of one length")
}

fn list<B: arrow::array::ArrayBuilder>(values: B) -> ListBuilder<B> {
    ListBuilder::new(values)
}

fn text<R>(rows: &[R], get: impl Fn(&R) -> &String) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(rows.iter().map(get)))
}

fn nullable<R>(rows: &[R], get: impl Fn(&R) -> &Option<String>) -> ArrayRef {
    Arc::new(rows.iter().map(|row| get(row).as_deref()).collect::<StringArray>())
}

fn float<R>(rows: &[R], get: impl Fn(&R) -> Option<f64>) -> ArrayRef {
    Arc::new(rows.iter().map(get).collect::<Float64Array>())
}

fn time<R>(rows: &[R], get_ms: impl Fn(&R) -> i64) -> ArrayRef {
    let times = rows.iter().map(|row| get_ms(row).saturating_mul(1000));
    Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
}
