//! Now and then another item at one place, and what the chances were: so that the log can say what an
//! answer in another order would have earned (`experiments::off_policy`).
//!
//! Of a share of the answers one place is drawn. What goes there is drawn from the other items of the
//! answer, which then swap their places, and from the next candidates that no rule holds back. So every
//! one of these items has a known chance of every place, small but never zero.

use serde::{Deserialize, Serialize};

use super::super::ConfigError;
use super::super::context::Ranked;
use super::super::seed;

/// Names of the draws among those of a request.
const WHETHER: u64 = 2;
const PLACE: u64 = 3;
const ITEM: u64 = 4;

/// Section `[rules.exploration]`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Share of the answers in which one place is drawn.
    pub share: f64,
    /// How many candidates after the answer's take part.
    pub pool: usize,
}

impl Config {
    /// Refuses a share that is none.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (key, value) = ("rules.exploration.share", self.share);
        if !(0.0..=1.0).contains(&value) {
            return Err(ConfigError::Range { key, value, rule: "a share from 0 to 1" });
        }
        Ok(())
    }
}

/// Whether a place of this request's answer is drawn.
pub fn is_drawn(request_id: &str, share: f64) -> bool {
    seed::draw(request_id, WHETHER) < share
}

/// An answer and the candidates that take part, before and after the draw.
pub struct Draw {
    /// How many items the answer has.
    places: usize,
    /// How many items may come to a place: those of the answer but its own, and the pool.
    choices: usize,
    /// The place that was drawn, and what comes there: a position in the list.
    changed: Option<(usize, usize)>,
    share: f64,
}

impl Draw {
    /// For a list of `places` items and a pool of `pool` after them. The same request draws the same.
    pub fn new(request_id: &str, share: f64, places: usize, pool: usize) -> Self {
        let choices = (places + pool).saturating_sub(1);
        let drawn = places > 0 && choices > 0 && is_drawn(request_id, share);
        let changed = drawn.then(|| {
            let among = |purpose, n: usize| (seed::draw(request_id, purpose) * n as f64) as usize;
            let place = among(PLACE, places);
            let item = among(ITEM, choices);
            (place, if item < place { item } else { item + 1 })
        });
        Self { places, choices, changed, share }
    }

    /// Changes the list; the pool stands after the places.
    pub fn apply(&self, list: &mut [Ranked]) {
        if let Some((place, item)) = self.changed {
            list.swap(place, item);
        }
    }

    /// The probability, over all draws, of what now stands at each place.
    pub fn propensities(&self, out: &mut Vec<f64>) {
        out.clear();
        if self.choices == 0 {
            out.resize(self.places, 1.0);
            return;
        }
        let (places, choices) = (self.places as f64, self.choices as f64);
        // One item at one place, by one of its two draws: that place and it, or its place and that item.
        let one = self.share / (places * choices);
        // The place itself is drawn, or another one and the item that stands here.
        let leaves = self.share / places + (places - 1.0) * one;
        out.resize(self.places, 1.0 - leaves);
        if let Some((place, item)) = self.changed {
            out[place] = if item < self.places { 2.0 * one } else { one };
            if item < self.places {
                out[item] = 2.0 * one;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::monitor::Source;
    use crate::types::ItemIdx;

    fn list(n: u32) -> Vec<Ranked> {
        let ranked = |at| Ranked { item: ItemIdx(at), score: 0.0, source: Source::Ann };
        (0..n).map(ranked).collect()
    }

    #[test]
    fn propensities_are_the_frequencies() {
        for (places, pool) in [(4_usize, 3_usize), (3, 0), (1, 2)] {
            let (share, n) = (0.6, 60_000);
            let (mut seen, mut said) = (BTreeMap::new(), BTreeMap::new());
            for at in 0..n {
                let mut items = list((places + pool) as u32);
                let draw = Draw::new(&format!("request-{at}"), share, places, pool);
                draw.apply(&mut items);
                let mut propensities = Vec::new();
                draw.propensities(&mut propensities);
                for (place, &propensity) in propensities.iter().enumerate() {
                    let key = (place, items[place].item.0);
                    *seen.entry(key).or_insert(0_usize) += 1;
                    let before = said.insert(key, propensity);
                    assert!(before.is_none_or(|p| p == propensity), "one chance of one outcome");
                }
            }
            assert_eq!(seen.len(), places * (places + pool), "every item at every place");
            for (key, count) in seen {
                let (p, n) = (said[&key], f64::from(n));
                let spread = (n * p * (1.0 - p)).sqrt();
                let off = (count as f64 - n * p).abs();
                assert!(off < 5.0 * spread + 1.0, "{places}+{pool} {key:?}: {count} of {}", n * p);
            }
        }
    }

    #[test]
    fn an_answer_that_nothing_can_change_is_certain() {
        for (share, places) in [(1.0, 1), (1.0, 0), (0.0, 5)] {
            let draw = Draw::new("request", share, places, 0);
            let mut items = list(places as u32);
            draw.apply(&mut items);
            assert_eq!(items, list(places as u32));
            let mut propensities = vec![0.5];
            draw.propensities(&mut propensities);
            assert_eq!(propensities, vec![1.0; places]);
        }
    }
}
