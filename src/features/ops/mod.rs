//! What a feature can compute. One file a family; each function is the whole definition.

pub mod history;
pub mod pair;
pub mod time;
pub mod value;

/// An operation over references of type `S`: names in the schema, resolved slots in the plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Op<S> {
    Raw { source: S },
    Log1p { source: S },
    Clip { source: S, min: f32, max: f32 },
    Category { source: S },
    AgeSince { source: S },
    HourOfDay,
    DayOfWeek,
    DayOfMonth,
    IsWeekend,
    Ratio { source: S, other: S },
    Difference { source: S, other: S },
    Equals { source: S, other: S },
    Lookup { map: S, key: S },
    Dot,
    HistoryLength,
    HistoryCount { of: S },
    HistoryShare { of: S },
    SecondsSinceLast { of: S },
    RetrievalRank,
    RetrievalScore,
}

/// What a reference of an operation points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A column of a user, an item or the context.
    Column,
    /// A user map.
    Map,
    /// What is counted in the history: `item` or an item column.
    Of,
}

impl<S> Op<S> {
    /// The same operation with every reference replaced.
    pub fn resolve<T, E>(&self, mut f: impl FnMut(&S, Role) -> Result<T, E>) -> Result<Op<T>, E> {
        use Role::{Column, Map, Of};
        Ok(match self {
            Op::Raw { source } => Op::Raw { source: f(source, Column)? },
            Op::Log1p { source } => Op::Log1p { source: f(source, Column)? },
            Op::Clip { source, min, max } => {
                Op::Clip { source: f(source, Column)?, min: *min, max: *max }
            }
            Op::Category { source } => Op::Category { source: f(source, Column)? },
            Op::AgeSince { source } => Op::AgeSince { source: f(source, Column)? },
            Op::HourOfDay => Op::HourOfDay,
            Op::DayOfWeek => Op::DayOfWeek,
            Op::DayOfMonth => Op::DayOfMonth,
            Op::IsWeekend => Op::IsWeekend,
            Op::Ratio { source, other } => {
                Op::Ratio { source: f(source, Column)?, other: f(other, Column)? }
            }
            Op::Difference { source, other } => {
                Op::Difference { source: f(source, Column)?, other: f(other, Column)? }
            }
            Op::Equals { source, other } => {
                Op::Equals { source: f(source, Column)?, other: f(other, Column)? }
            }
            Op::Lookup { map, key } => Op::Lookup { map: f(map, Map)?, key: f(key, Column)? },
            Op::Dot => Op::Dot,
            Op::HistoryLength => Op::HistoryLength,
            Op::HistoryCount { of } => Op::HistoryCount { of: f(of, Of)? },
            Op::HistoryShare { of } => Op::HistoryShare { of: f(of, Of)? },
            Op::SecondsSinceLast { of } => Op::SecondsSinceLast { of: f(of, Of)? },
            Op::RetrievalRank => Op::RetrievalRank,
            Op::RetrievalScore => Op::RetrievalScore,
        })
    }

    /// Every reference with its role.
    pub fn references(&self) -> Vec<(&S, Role)> {
        use Role::{Column, Map, Of};
        match self {
            Op::Raw { source }
            | Op::Log1p { source }
            | Op::Clip { source, .. }
            | Op::Category { source }
            | Op::AgeSince { source } => vec![(source, Column)],
            Op::Ratio { source, other }
            | Op::Difference { source, other }
            | Op::Equals { source, other } => vec![(source, Column), (other, Column)],
            Op::Lookup { map, key } => vec![(map, Map), (key, Column)],
            Op::HistoryCount { of } | Op::HistoryShare { of } | Op::SecondsSinceLast { of } => {
                vec![(of, Of)]
            }
            Op::HourOfDay
            | Op::DayOfWeek
            | Op::DayOfMonth
            | Op::IsWeekend
            | Op::Dot
            | Op::HistoryLength
            | Op::RetrievalRank
            | Op::RetrievalScore => vec![],
        }
    }

    /// Whether the operation needs a candidate even without an item column.
    pub fn needs_candidate(&self) -> bool {
        matches!(
            self,
            Op::Dot
                | Op::RetrievalRank
                | Op::RetrievalScore
                | Op::HistoryCount { .. }
                | Op::HistoryShare { .. }
                | Op::SecondsSinceLast { .. }
        )
    }
}
