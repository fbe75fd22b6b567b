//! Features of a candidate against the user's last events.
//!
//! A missing key (NaN) equals nothing. An empty history counts 0 and has no last time.

use crate::features::HISTORY_MAX;

/// Places of the table: more than twice as many as keys, so that a search ends soon.
const PLACES: usize = 128;
const _: () = assert!(PLACES > 2 * HISTORY_MAX && PLACES.is_power_of_two());

/// The events of a history by key: a hash table with open addressing.
pub struct Past {
    events: usize,
    places: [Place; PLACES],
}

#[derive(Clone, Copy)]
struct Place {
    /// Bits of the key; codes and rows have no two zeros.
    key: u32,
    /// Events with that key; 0 is a free place.
    count: u32,
    /// Time of the last one.
    last_ms: i64,
}

impl Past {
    /// `keys` and `times_ms` are parallel, oldest first, at most [`HISTORY_MAX`]; `i64::MIN` is an
    /// unknown time.
    ///
    /// # Panics
    /// When there are more keys.
    pub fn new(keys: &[f32], times_ms: &[i64]) -> Self {
        assert!(keys.len() <= HISTORY_MAX, "a history of {} keys", keys.len());
        let free = Place { key: 0, count: 0, last_ms: i64::MIN };
        let mut past = Self { events: keys.len(), places: [free; PLACES] };
        for (&key, &time_ms) in keys.iter().zip(times_ms).filter(|(key, _)| !key.is_nan()) {
            let place = past.place(key);
            let count = past.places[place].count + 1;
            past.places[place] = Place { key: key.to_bits(), count, last_ms: time_ms };
        }
        past
    }

    /// How many of the history's keys equal `key`; missing for a missing key.
    #[inline]
    pub fn count(&self, key: f32) -> f32 {
        if key.is_nan() { f32::NAN } else { self.places[self.place(key)].count as f32 }
    }

    /// [`Past::count`] over the history's length; missing for an empty history.
    #[inline]
    pub fn share(&self, key: f32) -> f32 {
        if self.events == 0 { f32::NAN } else { self.count(key) / self.events as f32 }
    }

    /// Seconds from the last event with that key to `now_ms`; missing when there is none, or when
    /// its time is unknown.
    #[inline]
    pub fn seconds_since_last(&self, key: f32, now_ms: i64) -> f32 {
        let last_ms = if key.is_nan() { i64::MIN } else { self.places[self.place(key)].last_ms };
        if last_ms == i64::MIN {
            return f32::NAN;
        }
        ((now_ms - last_ms) as f64 / 1000.0) as f32
    }

    /// Where a key stands, or the free place where it would.
    #[inline]
    fn place(&self, key: f32) -> usize {
        let bits = key.to_bits();
        // Fibonacci hashing (Knuth, TAOCP 6.4): codes and rows differ in few bits.
        let mut at = (bits.wrapping_mul(0x9E37_79B9) >> 25) as usize;
        while self.places[at].count > 0 && self.places[at].key != bits {
            at = (at + 1) % PLACES;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counts_shares_and_last_times() {
        let past = Past::new(&[1.0, 2.0, 1.0, f32::NAN], &[1_000, 2_000, 3_000, 4_000]);
        assert_eq!((past.count(1.0), past.count(7.0), past.share(2.0)), (2.0, 0.0, 0.25));
        assert_eq!(past.seconds_since_last(1.0, 10_000), 7.0);
        assert!(past.seconds_since_last(7.0, 10_000).is_nan());
        assert!(Past::new(&[1.0], &[i64::MIN]).seconds_since_last(1.0, 10_000).is_nan());
        assert!(past.count(f32::NAN).is_nan() && past.seconds_since_last(f32::NAN, 1).is_nan());
        let none = Past::new(&[], &[]);
        assert!(none.share(1.0).is_nan() && none.count(1.0) == 0.0);
    }

    proptest! {
        #[test]
        fn any_history_counts_as_a_walk_over_it_does(
            keys in proptest::collection::vec(0u32..40_000_000, 0..=HISTORY_MAX),
            other in 0u32..40_000_000,
            now in 0i64..1_000_000,
        ) {
            let keys: Vec<f32> = keys.into_iter().map(|key| f32::from_bits(key / 3)).collect();
            let times: Vec<i64> = (0..keys.len() as i64).map(|at| at * 1000).collect();
            let past = Past::new(&keys, &times);
            for key in keys.iter().copied().chain([f32::from_bits(other)]) {
                let equal = |k: &f32| k.to_bits() == key.to_bits();
                prop_assert_eq!(past.count(key), keys.iter().filter(|k| equal(k)).count() as f32);
                let last = keys.iter().rposition(equal).map(|at| times[at]);
                let seconds = last.map(|time| ((now - time) as f64 / 1000.0) as f32);
                let found = past.seconds_since_last(key, now);
                prop_assert_eq!(seconds, Some(found).filter(|f| !f.is_nan()));
            }
        }
    }
}
