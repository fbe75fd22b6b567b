//! Features of the request's time, UTC.

use crate::types::{DAY_MS, epoch_days};

/// Days from `since` (epoch days) to the request.
#[inline]
pub fn age_days(time_ms: i64, since: f32) -> f32 {
    (epoch_days(time_ms) - f64::from(since)) as f32
}

/// 0 to 23.
pub fn hour_of_day(time_ms: i64) -> f32 {
    (time_ms.rem_euclid(DAY_MS) / 3_600_000) as f32
}

/// 0 is Monday, 6 is Sunday; 1970-01-01 was a Thursday.
pub fn day_of_week(time_ms: i64) -> f32 {
    (time_ms.div_euclid(DAY_MS) + 3).rem_euclid(7) as f32
}

/// 1 to 31.
pub fn day_of_month(time_ms: i64) -> f32 {
    use chrono::Datelike;
    chrono::DateTime::from_timestamp_millis(time_ms).map_or(f32::NAN, |time| time.day() as f32)
}

/// 1 on Saturday and Sunday.
pub fn is_weekend(time_ms: i64) -> f32 {
    if day_of_week(time_ms) >= 5.0 { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar_of_a_known_instant() {
        // 2017-12-01 was a Friday.
        let time_ms = 1_512_086_400_000 + 17 * 3_600_000 + 59 * 60_000;
        assert_eq!((hour_of_day(time_ms), day_of_week(time_ms)), (17.0, 4.0));
        assert_eq!((day_of_month(time_ms), is_weekend(time_ms)), (1.0, 0.0));
        assert_eq!(is_weekend(time_ms + DAY_MS), 1.0);
        assert_eq!(hour_of_day(-1), 23.0);
        assert_eq!(age_days(2 * DAY_MS, 0.5), 1.5);
        assert!(age_days(0, f32::NAN).is_nan());
    }
}
