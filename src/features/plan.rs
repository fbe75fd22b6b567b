//! A schema with its columns resolved: fills the constants and the columns of one request.

use super::ops::{self, Op, Role};
use super::{Feature, HISTORY_MAX, ItemColumns, ItemRows, Schema, UserRow, UserTable};
use crate::types::ItemIdx;

/// One candidate of a request, in retrieval order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub item: ItemIdx,
    /// Inner product of the user's and the item's unit vectors.
    pub similarity: f32,
    /// Position in the retrieval's answer, from 0; NaN when another source brought the item.
    pub retrieval_rank: f32,
    /// Score of the retrieval; NaN likewise.
    pub retrieval_score: f32,
}

/// The user's last events, oldest first, at most [`HISTORY_MAX`]; a time of `i64::MIN` is unknown.
#[derive(Clone, Copy, Debug, Default)]
pub struct History<'a> {
    pub items: &'a [ItemIdx],
    pub times_ms: &'a [i64],
}

impl<'a> History<'a> {
    /// The newest [`HISTORY_MAX`] of two parallel slices.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn new(items: &'a [ItemIdx], times_ms: &'a [i64]) -> Self {
        assert_eq!(items.len(), times_ms.len(), "one time an item");
        let from = items.len().saturating_sub(HISTORY_MAX);
        Self { items: &items[from..], times_ms: &times_ms[from..] }
    }
}

/// Everything about a request that features read.
#[derive(Clone, Copy, Debug)]
pub struct RequestInput<'a> {
    /// Epoch milliseconds, UTC.
    pub time_ms: i64,
    pub user: UserRow<'a>,
    /// Codes in the order of [`Schema::context_names`].
    pub context: &'a [f32],
    pub history: History<'a>,
}

/// Where a reference was found.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Slot {
    User(usize),
    Context(usize),
    Item(usize),
    Map(usize),
    /// The item itself, as the key of a history feature.
    ItemItself,
}

/// A schema bound to the columns of one user table and one item table.
#[derive(Clone, Debug)]
pub struct Plan {
    constants: Vec<Step>,
    columns: Vec<Step>,
}

#[derive(Clone, Debug)]
struct Step {
    op: Op<Slot>,
    default: Option<f32>,
    /// Whether neither a user, nor the context, the time or the history is read.
    item_only: bool,
}

/// Why a schema does not fit its tables.
#[derive(Debug, thiserror::Error)]
#[error("feature `{feature}` reads `{reference}`, which is not there; `{table}` has: {known}")]
pub struct PlanError {
    feature: String,
    reference: String,
    table: String,
    known: String,
}

impl Plan {
    /// Finds every column that the schema reads.
    ///
    /// # Errors
    /// Names the first feature whose column or map is absent, and what its table has.
    pub fn new(schema: &Schema, users: &UserTable, items: &ItemColumns) -> Result<Self, PlanError> {
        let context = schema.context_names();
        let steps = schema
            .features()
            .iter()
            .map(|feature| step(feature, users, &context, items))
            .collect::<Result<Vec<_>, _>>()?;
        let columns = steps[schema.constants()..].to_vec();
        Ok(Self { constants: steps[..schema.constants()].to_vec(), columns })
    }

    /// Number of user and context columns.
    pub fn constant_count(&self) -> usize {
        self.constants.len()
    }

    /// Number of item and cross columns.
    pub fn column_count(&self) -> usize {
        self.columns.len()
    }

    /// Fills the user and context columns: `out` has [`Plan::constant_count`] values.
    pub fn constants(&self, request: &RequestInput, out: &mut [f32]) {
        assert_eq!(out.len(), self.constants.len(), "one value a constant column");
        for (step, value) in self.constants.iter().zip(out) {
            let read = |slot: Slot| match slot {
                Slot::User(at) => request.user.value(at),
                Slot::Context(at) => request.context[at],
                Slot::Item(_) | Slot::Map(_) | Slot::ItemItself => f32::NAN,
            };
            let (now, past) = (request.time_ms, request.history.items.len());
            *value = step.or_default(scalar(&step.op, now, past, read));
        }
    }

    /// Of each item and cross column, whether it depends on the item alone: such a column can be
    /// computed once for all items.
    pub fn item_only(&self) -> Vec<bool> {
        self.columns.iter().map(|step| step.item_only).collect()
    }

    /// Fills column `at`, which depends on the item alone, for items from `first_row` on.
    pub fn item_column(&self, at: usize, items: &ItemColumns, first_row: usize, out: &mut [f32]) {
        for (row, value) in out.iter_mut().enumerate() {
            *value = self.item_value(at, |column| items.column(column)[first_row + row]);
        }
    }

    /// The value of column `at`, which depends on the item alone, for the item whose value in an
    /// item column is `value(column)`.
    pub fn item_value(&self, at: usize, value: impl Fn(usize) -> f32) -> f32 {
        let step = &self.columns[at];
        assert!(step.item_only, "column {at} needs a request");
        let read = |slot: Slot| match slot {
            Slot::Item(at) => value(at),
            _ => f32::NAN,
        };
        // Neither time nor history is read by an operation of the item alone.
        step.or_default(scalar(&step.op, 0, 0, read))
    }

    /// Number of columns that [`Plan::request_columns`] fills.
    pub fn request_column_count(&self) -> usize {
        self.columns.iter().filter(|step| !step.item_only).count()
    }

    /// Fills the columns that need a request, in the order of [`Plan::columns`], column-major.
    pub fn request_columns<'a>(
        &self,
        request: &RequestInput,
        items: impl Into<ItemRows<'a>>,
        candidates: &[Candidate],
        out: &mut [f32],
    ) {
        let steps = self.columns.iter().filter(|step| !step.item_only);
        fill_all(steps, request, &items.into(), candidates, out);
    }

    /// Fills the item and cross columns: `out` is column-major,
    /// [`Plan::column_count`] x `candidates.len()`.
    pub fn columns<'a>(
        &self,
        request: &RequestInput,
        items: impl Into<ItemRows<'a>>,
        candidates: &[Candidate],
        out: &mut [f32],
    ) {
        fill_all(self.columns.iter(), request, &items.into(), candidates, out);
    }
}

/// A column after the other.
fn fill_all<'a>(
    steps: impl Iterator<Item = &'a Step> + Clone,
    request: &RequestInput,
    items: &ItemRows,
    candidates: &[Candidate],
    out: &mut [f32],
) {
    assert_eq!(out.len(), steps.clone().count() * candidates.len(), "one value a cell");
    if candidates.is_empty() {
        return;
    }
    for (step, column) in steps.zip(out.chunks_exact_mut(candidates.len())) {
        fill(&step.op, request, items, candidates, column);
        if let Some(default) = step.default {
            column.iter_mut().filter(|v| v.is_nan()).for_each(|v| *v = default);
        }
    }
}

impl Step {
    fn or_default(&self, value: f32) -> f32 {
        if value.is_nan() { self.default.unwrap_or(value) } else { value }
    }
}

/// A column of one value a candidate.
fn fill(
    op: &Op<Slot>,
    request: &RequestInput,
    items: &ItemRows,
    candidates: &[Candidate],
    out: &mut [f32],
) {
    let mut buffer = [0.0; HISTORY_MAX];
    let keys = match op {
        Op::HistoryCount { of } | Op::HistoryShare { of } | Op::SecondsSinceLast { of } => {
            history_keys(*of, request, items, &mut buffer)
        }
        _ => &[],
    };
    fill_from(op, request, keys, |at, item| items.built(at, item), candidates, out);
    for &position in items.late_positions() {
        let one = position as usize..=position as usize;
        let value = |at, item| items.value(at, item);
        fill_from(op, request, keys, value, &candidates[one.clone()], &mut out[one]);
    }
}

/// [`fill`] with the item columns as a function, and the keys of the history of the operations that
/// look for the candidate in it.
fn fill_from(
    op: &Op<Slot>,
    request: &RequestInput,
    keys: &[f32],
    value: impl Fn(usize, ItemIdx) -> f32,
    candidates: &[Candidate],
    out: &mut [f32],
) {
    let each = |out: &mut [f32], f: &dyn Fn(&Candidate) -> f32| {
        for (value, candidate) in out.iter_mut().zip(candidates) {
            *value = f(candidate);
        }
    };
    match *op {
        Op::Dot => each(out, &|c| c.similarity),
        Op::RetrievalRank => each(out, &|c| c.retrieval_rank),
        Op::RetrievalScore => each(out, &|c| c.retrieval_score),
        Op::Lookup { map: Slot::Map(map), key: Slot::Item(key) } => {
            let map = request.user.map(map);
            each(out, &|c| map.get(value(key, c.item)));
        }
        Op::HistoryCount { of } => {
            each(out, &|c| ops::history::count(keys, item_key(of, &value, c.item)));
        }
        Op::HistoryShare { of } => {
            each(out, &|c| ops::history::share(keys, item_key(of, &value, c.item)));
        }
        Op::SecondsSinceLast { of } => {
            let (times, now) = (request.history.times_ms, request.time_ms);
            each(out, &|c| {
                ops::history::seconds_since_last(keys, times, item_key(of, &value, c.item), now)
            });
        }
        _ => each(out, &|c| {
            let read = |slot: Slot| match slot {
                Slot::User(at) => request.user.value(at),
                Slot::Context(at) => request.context[at],
                Slot::Item(at) => value(at, c.item),
                Slot::Map(_) | Slot::ItemItself => f32::NAN,
            };
            scalar(op, request.time_ms, request.history.items.len(), read)
        }),
    }
}

/// The operations that need no more than values, the request's time and the history's length.
fn scalar(op: &Op<Slot>, now: i64, history: usize, read: impl Fn(Slot) -> f32) -> f32 {
    match *op {
        Op::Raw { source } | Op::Category { source } => read(source),
        Op::Log1p { source } => ops::value::log1p(read(source)),
        Op::Clip { source, min, max } => ops::value::clip(read(source), min, max),
        Op::AgeSince { source } => ops::time::age_days(now, read(source)),
        Op::HourOfDay => ops::time::hour_of_day(now),
        Op::DayOfWeek => ops::time::day_of_week(now),
        Op::DayOfMonth => ops::time::day_of_month(now),
        Op::IsWeekend => ops::time::is_weekend(now),
        Op::Ratio { source, other } => ops::pair::ratio(read(source), read(other)),
        Op::Difference { source, other } => read(source) - read(other),
        Op::Equals { source, other } => ops::pair::equals(read(source), read(other)),
        Op::HistoryLength => history as f32,
        // The schema gives these the scope `cross`, whose columns `fill` handles.
        Op::Lookup { .. }
        | Op::Dot
        | Op::HistoryCount { .. }
        | Op::HistoryShare { .. }
        | Op::SecondsSinceLast { .. }
        | Op::RetrievalRank
        | Op::RetrievalScore => f32::NAN,
    }
}

fn history_keys<'b>(
    of: Slot,
    request: &RequestInput,
    items: &ItemRows,
    buffer: &'b mut [f32; HISTORY_MAX],
) -> &'b [f32] {
    let history = request.history.items;
    for (key, &item) in buffer.iter_mut().zip(history) {
        *key = item_key(of, &|at, item| items.value(at, item), item);
    }
    &buffer[..history.len()]
}

/// The item's row counts exactly up to 2^24 in an `f32`; bits carry it exactly beyond.
fn item_key(of: Slot, value: &impl Fn(usize, ItemIdx) -> f32, item: ItemIdx) -> f32 {
    match of {
        Slot::Item(at) => value(at, item),
        _ => f32::from_bits(item.0),
    }
}

fn step(
    feature: &Feature,
    users: &UserTable,
    context: &[String],
    items: &ItemColumns,
) -> Result<Step, PlanError> {
    let op = feature.op.resolve(|reference, role| {
        let find = |names: &[String]| names.iter().position(|n| n == reference);
        let slot = match role {
            Role::Map => find(users.map_names()).map(Slot::Map),
            Role::Of if reference == "item" => Some(Slot::ItemItself),
            _ if reference.starts_with("context.") => find(context).map(Slot::Context),
            _ if reference.starts_with("user") => find(users.columns()).map(Slot::User),
            _ => items.find(reference).map(Slot::Item),
        };
        slot.ok_or_else(|| {
            let table = reference.split('.').next().unwrap_or_default().to_owned();
            let all = users.map_names().iter().chain(users.columns()).chain(items.names());
            let of_table: Vec<&str> = all
                .filter(|name| name.split('.').next() == Some(&table))
                .map(String::as_str)
                .collect();
            PlanError {
                feature: feature.name.clone(),
                reference: reference.clone(),
                known: if of_table.is_empty() { "nothing".into() } else { of_table.join(", ") },
                table,
            }
        })
    })?;
    let item_only = is_item_only(&op);
    Ok(Step { op, default: feature.default, item_only })
}

fn is_item_only(op: &Op<Slot>) -> bool {
    let plain = matches!(
        op,
        Op::Raw { .. }
            | Op::Log1p { .. }
            | Op::Clip { .. }
            | Op::Category { .. }
            | Op::Ratio { .. }
            | Op::Difference { .. }
            | Op::Equals { .. }
    );
    plain && op.references().iter().all(|(slot, _)| matches!(slot, Slot::Item(_)))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
