//! The time split of a day's run: which days teach which model.
//!
//! ```text
//! from ... towers ... | ... ranker ... | validation | test ... to
//! ```
//! Invariant: the four windows follow one another without a gap or an overlap, so that no model
//! sees an event of a window after its own. The towers end where the ranker's rows begin, so that
//! no retrieval score of a training row has seen the row's label.

use std::ops::Range;

use crate::types::{DAY_MS, date_of, day_start_ms};

/// Lengths of the last three windows; the towers take what is before them.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub ranker_days: u32,
    pub validation_days: u32,
    pub test_days: u32,
    pub towers_days_min: u32,
}

/// Why a window cannot be split.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{found} days from {from} to {to} are too few: towers {towers} (at least), ranker {ranker}, \
         validation {validation} and test {test} days need {needed}; collect more days or shorten \
         the split"
    )]
    Short {
        from: String,
        to: String,
        found: i64,
        towers: u32,
        ranker: u32,
        validation: u32,
        test: u32,
        needed: i64,
    },
    #[error("split.{key} is 0; every window needs at least one day")]
    Empty { key: &'static str },
}

/// The windows as half-open ranges of epoch milliseconds, UTC.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Split {
    pub towers_ms: Range<i64>,
    pub ranker_ms: Range<i64>,
    pub validation_ms: Range<i64>,
    pub test_ms: Range<i64>,
}

impl Split {
    /// Cuts `[from_ms, to_ms)` into whole days, counted from the end.
    pub fn new(from_ms: i64, to_ms: i64, config: &Config) -> Result<Self, Error> {
        for (key, days) in [
            ("ranker_days", config.ranker_days),
            ("validation_days", config.validation_days),
            ("test_days", config.test_days),
            ("towers_days_min", config.towers_days_min),
        ] {
            if days == 0 {
                return Err(Error::Empty { key });
            }
        }
        let end = day_start_ms(to_ms + DAY_MS - 1);
        let test = end - i64::from(config.test_days) * DAY_MS;
        let validation = test - i64::from(config.validation_days) * DAY_MS;
        let ranker = validation - i64::from(config.ranker_days) * DAY_MS;
        if ranker - from_ms < i64::from(config.towers_days_min) * DAY_MS {
            let needed = i64::from(config.towers_days_min)
                + i64::from(config.ranker_days)
                + i64::from(config.validation_days)
                + i64::from(config.test_days);
            return Err(Error::Short {
                from: date_of(from_ms),
                to: date_of(to_ms),
                found: (end - from_ms) / DAY_MS,
                towers: config.towers_days_min,
                ranker: config.ranker_days,
                validation: config.validation_days,
                test: config.test_days,
                needed,
            });
        }
        Ok(Self {
            towers_ms: from_ms..ranker,
            ranker_ms: ranker..validation,
            validation_ms: validation..test,
            test_ms: test..end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config { ranker_days: 4, validation_days: 1, test_days: 2, towers_days_min: 3 }
    }

    #[test]
    fn windows_touch_and_cover_whole_days() {
        let from = 1_512_086_400_000;
        let split = Split::new(from, from + 20 * DAY_MS, &config()).unwrap();
        assert_eq!(split.towers_ms, from..from + 13 * DAY_MS);
        assert_eq!(split.ranker_ms.start, split.towers_ms.end);
        assert_eq!(split.validation_ms.start, split.ranker_ms.end);
        assert_eq!(split.test_ms.start, split.validation_ms.end);
        assert_eq!(split.test_ms.end, from + 20 * DAY_MS);
    }

    #[test]
    fn too_few_days_say_how_many_are_needed() {
        let error = Split::new(0, 9 * DAY_MS, &config()).unwrap_err().to_string();
        assert!(error.contains("9 days") && error.contains("need 10"), "{error}");
        let none = Config { test_days: 0, ..config() };
        assert!(Split::new(0, 20 * DAY_MS, &none).unwrap_err().to_string().contains("test_days"));
    }
}
