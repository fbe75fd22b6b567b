//! What the answers were, in all and second by second.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::client::Answer;

/// Kinds of degraded answers that are told apart; bits of [`Sample::degraded`].
const KINDS_MAX: usize = 32;

/// One request. A status of 0 says that there was no answer.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When it was to leave, microseconds since the end of the warm-up.
    pub at_us: u64,
    /// From then to the answer's last byte.
    pub latency_us: u64,
    pub status: u16,
    pub items: u16,
    /// One bit a kind of [`Kinds`].
    pub degraded: u32,
}

/// Names of fallbacks in the order in which they were first seen.
#[derive(Debug, Default, Clone)]
pub struct Kinds(Vec<String>);

impl Kinds {
    /// The fallbacks of an answer as bits, and its items.
    pub fn read(&mut self, answer: &Answer<'_>) -> (u32, u16) {
        let body = String::from_utf8_lossy(answer.body);
        let items = body.matches(r#""item_id":"#).count() as u16;
        let list = body.split_once(r#""degraded":["#).and_then(|(_, rest)| rest.split_once(']'));
        let names = list.map_or("", |(names, _)| names);
        (
            names
                .split(',')
                .filter(|name| !name.is_empty())
                .fold(0, |bits, name| bits | self.bit(name)),
            items,
        )
    }

    fn bit(&mut self, quoted: &str) -> u32 {
        let name = quoted.trim().trim_matches('"');
        let at = self.0.iter().position(|known| known == name).unwrap_or_else(|| {
            self.0.push(name.to_owned());
            self.0.len() - 1
        });
        1 << at.min(KINDS_MAX - 1)
    }
}

/// Everything that one run saw after its warm-up.
#[derive(Debug, Clone)]
pub struct Report {
    pub seconds: u64,
    pub deadline_us: u64,
    pub num_items: u16,
    pub samples: Vec<Sample>,
    pub kinds: Kinds,
    /// How late requests left, microseconds.
    pub late_us: Vec<u64>,
    pub reopened: u64,
    pub connections: usize,
}

impl Report {
    /// Totals; rates a second, times in milliseconds. Percentiles are of answers with status 200.
    pub fn json(&self) -> Value {
        let mut status = BTreeMap::<String, u64>::new();
        let mut degraded = BTreeMap::<&str, u64>::new();
        for sample in &self.samples {
            *status.entry(sample.status.to_string()).or_default() += 1;
            for (at, kind) in self.kinds.0.iter().enumerate().take(KINDS_MAX) {
                *degraded.entry(kind).or_default() += u64::from(sample.degraded >> at & 1);
            }
        }
        let answered = |sample: &&Sample| {
            sample.status != 0 && sample.at_us + sample.latency_us <= self.seconds * 1_000_000
        };
        let rate = |count: usize| count as f64 / self.seconds as f64;
        let errors = status.remove("0").unwrap_or(0);
        json!({
            "seconds": self.seconds,
            "offered_rps": rate(self.samples.len()),
            "achieved_rps": rate(self.samples.iter().filter(answered).count()),
            "good_rps": rate(self.samples.iter().filter(|sample| self.is_good(sample)).count()),
            "latency_ms": percentiles(self.samples.iter().filter(|s| s.status == 200).map(|s| s.latency_us)),
            "send_late_ms": percentiles(self.late_us.iter().copied()),
            "status": status,
            "errors": errors,
            "connections": self.connections,
            "reopened": self.reopened,
            "degraded_answers": self.samples.iter().filter(|s| s.degraded != 0).count(),
            "degraded": degraded,
            "short_answers": self.samples.iter().filter(|s| self.is_short(s)).count(),
        })
    }

    /// Second by second, by the time at which requests were to leave.
    pub fn timeline(&self) -> String {
        let mut seconds = vec![Vec::new(); self.seconds as usize];
        for sample in &self.samples {
            if let Some(second) = seconds.get_mut((sample.at_us / 1_000_000) as usize) {
                second.push(*sample);
            }
        }
        let mut out =
            "second,sent,ok,good,refused,errors,degraded,short,p50_ms,p99_ms,max_ms\n".to_owned();
        for (second, samples) in seconds.iter().enumerate() {
            let count = |is: &dyn Fn(&Sample) -> bool| samples.iter().filter(|s| is(s)).count();
            let ms = percentiles(samples.iter().filter(|s| s.status == 200).map(|s| s.latency_us));
            let _ = writeln!(
                out,
                "{second},{},{},{},{},{},{},{},{},{},{}",
                samples.len(),
                count(&|s| s.status == 200),
                count(&|s| self.is_good(s)),
                count(&|s| matches!(s.status, 429 | 503)),
                count(&|s| !matches!(s.status, 200 | 429 | 503)),
                count(&|s| s.degraded != 0),
                count(&|s| self.is_short(s)),
                ms["p50"],
                ms["p99"],
                ms["max"],
            );
        }
        out
    }

    fn is_good(&self, sample: &Sample) -> bool {
        sample.status == 200 && sample.latency_us <= self.deadline_us
    }

    fn is_short(&self, sample: &Sample) -> bool {
        sample.status == 200 && sample.items < self.num_items
    }
}

/// Milliseconds of exact percentiles (nearest rank) of microseconds; 0 for none.
fn percentiles(us: impl Iterator<Item = u64>) -> Value {
    let mut us: Vec<u64> = us.collect();
    us.sort_unstable();
    let at = |share: f64| {
        let rank = (share * us.len() as f64).ceil() as usize;
        us.get(rank.saturating_sub(1)).map_or(0.0, |&us| us as f64 / 1e3)
    };
    json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99.9": at(0.999), "max": at(1.0) })
}
