//! Features of a candidate against the user's last events.
//!
//! `keys` and `times_ms` are parallel, oldest first; `i64::MIN` is an unknown time. A missing key
//! (NaN) equals nothing. An empty history counts 0 and has no last time.

/// How many of the history's keys equal `key`; missing for a missing key.
#[inline]
pub fn count(keys: &[f32], key: f32) -> f32 {
    if key.is_nan() {
        return f32::NAN;
    }
    keys.iter().filter(|&&k| k == key).count() as f32
}

/// [`count`] over the history's length; missing for an empty history.
#[inline]
pub fn share(keys: &[f32], key: f32) -> f32 {
    if keys.is_empty() { f32::NAN } else { count(keys, key) / keys.len() as f32 }
}

/// Seconds from the last event with that key to `now_ms`; missing when there is none.
#[inline]
pub fn seconds_since_last(keys: &[f32], times_ms: &[i64], key: f32, now_ms: i64) -> f32 {
    let last = keys.iter().rposition(|&k| k == key);
    match last.map(|at| times_ms[at]) {
        Some(time_ms) if time_ms != i64::MIN => ((now_ms - time_ms) as f64 / 1000.0) as f32,
        _ => f32::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_shares_and_last_times() {
        let (keys, times) = ([1.0, 2.0, 1.0, f32::NAN], [1_000, 2_000, 3_000, 4_000]);
        assert_eq!((count(&keys, 1.0), count(&keys, 7.0), share(&keys, 2.0)), (2.0, 0.0, 0.25));
        assert_eq!(seconds_since_last(&keys, &times, 1.0, 10_000), 7.0);
        assert!(seconds_since_last(&keys, &times, 7.0, 10_000).is_nan());
        assert!(seconds_since_last(&[1.0], &[i64::MIN], 1.0, 10_000).is_nan());
        assert!(count(&keys, f32::NAN).is_nan() && share(&[], 1.0).is_nan());
        assert!(seconds_since_last(&keys, &times, f32::NAN, 10_000).is_nan());
    }
}
