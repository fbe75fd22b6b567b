//! The words every module shares: external ids, the dense item index, times.
//!
//! An external id is what a caller sends (any string); the dense index is a row of one bundle's
//! item table. They are different types so that one can never be passed for the other.

use std::fmt;

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

/// Milliseconds in a day; SQL and Rust both count time in epoch milliseconds, UTC.
pub const DAY_MS: i64 = 86_400_000;

/// A caller's id of a user.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub String);

/// A caller's id of an item.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ItemId(pub String);

/// A row of the item table of one bundle. Meaningless in any other bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(transparent)]
pub struct ItemIdx(pub u32);

impl ItemIdx {
    /// The row as a slice index.
    #[inline]
    pub fn row(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Days since the epoch as a float: the unit of time columns and of ages in features.
#[inline]
pub fn epoch_days(time_ms: i64) -> f64 {
    time_ms as f64 / DAY_MS as f64
}

/// Midnight UTC of the day that holds `time_ms`.
#[inline]
pub fn day_start_ms(time_ms: i64) -> i64 {
    time_ms.div_euclid(DAY_MS) * DAY_MS
}

/// `YYYY-MM-DD` of the day that holds `time_ms`, UTC.
pub fn date_of(time_ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(time_ms)
        .map(|time| time.format("%Y-%m-%d").to_string())
        .unwrap_or_else(|| format!("out-of-range-{time_ms}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_utc_and_floor_before_the_epoch() {
        assert_eq!(day_start_ms(DAY_MS + 5), DAY_MS);
        assert_eq!(day_start_ms(-1), -DAY_MS);
        assert_eq!(date_of(1_512_086_400_000), "2017-12-01");
    }
}
