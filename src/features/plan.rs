//! A schema with its columns resolved: fills the constants and the columns of one request.

mod fill;

use super::ops::{self, Op, Role};
use super::{Feature, HISTORY_MAX, ItemColumns, ItemRows, Schema, UserRow, UserTable};
use fill::fill_all;

use crate::types::ItemIdx;
pub use fill::PlanScratch;

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
    /// Item columns that the steps of `columns` read, those of requests first; a slot names a
    /// place in it.
    gathered: Vec<usize>,
    gathered_by_requests: usize,
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
        let mut columns = steps[schema.constants()..].to_vec();
        let mut gathered = Vec::new();
        columns
            .iter_mut()
            .filter(|step| !step.item_only)
            .for_each(|step| step.gather(&mut gathered));
        let gathered_by_requests = gathered.len();
        columns
            .iter_mut()
            .filter(|step| step.item_only)
            .for_each(|step| step.gather(&mut gathered));
        let constants = steps[..schema.constants()].to_vec();
        Ok(Self { constants, columns, gathered, gathered_by_requests })
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
            *value = self.item_value(at, |column| items.column(column).value(first_row + row));
        }
    }

    /// The value of column `at`, which depends on the item alone, for the item whose value in an
    /// item column is `value(column)`.
    pub fn item_value(&self, at: usize, value: impl Fn(usize) -> f32) -> f32 {
        let step = &self.columns[at];
        assert!(step.item_only, "column {at} needs a request");
        let read = |slot: Slot| match slot {
            Slot::Item(at) => value(self.gathered[at]),
            _ => f32::NAN,
        };
        // Neither time nor history is read by an operation of the item alone.
        step.or_default(scalar(&step.op, 0, 0, read))
    }

    /// Number of columns that [`Plan::request_columns`] fills.
    pub fn request_column_count(&self) -> usize {
        self.columns.iter().filter(|step| !step.item_only).count()
    }

    /// The item columns that [`Plan::request_columns`] reads: the columns of the [`super::ItemBlock`] that [`ItemRows::new`]
    /// takes, so that a candidate costs one access to memory and not one a column.
    pub fn request_rows(&self) -> &[usize] {
        &self.gathered[..self.gathered_by_requests]
    }

    /// Buffers for requests of up to `candidates`; more make them grow once.
    pub fn scratch(&self, candidates: usize) -> PlanScratch {
        PlanScratch::new(self.gathered.len(), candidates)
    }

    /// Fills the columns that need a request, in the order of [`Plan::columns`], column-major.
    pub fn request_columns<'a>(
        &self,
        request: &RequestInput,
        items: impl Into<ItemRows<'a>>,
        candidates: &[Candidate],
        scratch: &mut PlanScratch,
        out: &mut [f32],
    ) {
        let steps = self.columns.iter().filter(|step| !step.item_only);
        let read = &self.gathered[..self.gathered_by_requests];
        fill_all(steps, read, request, &items.into(), candidates, scratch, out);
    }

    /// Fills the item and cross columns: `out` is column-major,
    /// [`Plan::column_count`] x `candidates.len()`.
    pub fn columns<'a>(
        &self,
        request: &RequestInput,
        items: impl Into<ItemRows<'a>>,
        candidates: &[Candidate],
        scratch: &mut PlanScratch,
        out: &mut [f32],
    ) {
        let items = items.into();
        fill_all(self.columns.iter(), &self.gathered, request, &items, candidates, scratch, out);
    }
}

impl Step {
    /// Turns item columns into places in `gathered`, which gets those that it lacks.
    fn gather(&mut self, gathered: &mut Vec<usize>) {
        let op = self.op.resolve(|slot, _| {
            let Slot::Item(column) = *slot else { return Ok(*slot) };
            let place = gathered.iter().position(|&c| c == column).unwrap_or_else(|| {
                gathered.push(column);
                gathered.len() - 1
            });
            Ok::<_, std::convert::Infallible>(Slot::Item(place))
        });
        self.op = op.unwrap_or_else(|never| match never {});
    }

    fn or_default(&self, value: f32) -> f32 {
        if value.is_nan() { self.default.unwrap_or(value) } else { value }
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
