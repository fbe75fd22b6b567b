//! What the day's data look like, and whether a day may learn from them.
//!
//! Counts, nulls, ranges, late events, holes in references, and how the last day differs from the
//! one before it. The report stands in the work directory (`collect/report.json`, `report.md`) and
//! in the bundle. Invariant: every row read is kept or in the quarantine; a report that cannot
//! account for one is an error.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::frame::Frame;
use super::raw::Counts;
use crate::types::date_of;

/// Section `[offline.collect]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub events_min: u64,
    pub share_max: ShareMax,
    pub drift: DriftMax,
}

/// The largest bearable share of the window's events that fail a check.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareMax {
    pub wrong_type: f64,
    pub null_id: f64,
    pub duplicate_id: f64,
    pub outside_window: f64,
    pub unknown_item: f64,
    pub unknown_user: f64,
    pub negative_value: f64,
    pub late: f64,
    /// Of a table of the catalogue: rows without a key or with a value of a wrong type.
    pub catalogue: f64,
}

/// How far the last day may be from the one before it; 0 asks nothing.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriftMax {
    pub events_min: u64,
    pub rows_ratio: f64,
    pub null_share: f64,
    pub value_ratio: f64,
    pub mix_psi: f64,
}

/// What was found and kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    pub from: String,
    pub to: String,
    pub days: usize,
    pub events_read: u64,
    pub events_kept: u64,
    pub events_quarantined: u64,
    /// Rows of the quarantine by what is wrong with them; one row may have several reasons.
    pub reasons: BTreeMap<String, u64>,
    pub items: Counts,
    pub users: Counts,
    pub histories: Counts,
    /// Successes without a time: the items of histories of those events.
    pub untimed_positives: u64,
    /// Successes among the events by day (midnight, epoch ms).
    pub positives: BTreeMap<i64, u64>,
    /// Events whose time is not of the day that their folder names; kept.
    pub late: u64,
    /// The counts of `sql/validate.sql` by column.
    pub counts: BTreeMap<String, u64>,
    /// Smallest and largest values by column.
    pub ranges: BTreeMap<String, f64>,
    /// Shares of nulls among the window's events, by column.
    pub null_shares: BTreeMap<String, f64>,
    pub kinds: Vec<EventKind>,
    pub drift: Option<Drift>,
    pub checks: Vec<Check>,
    pub unknown_columns: Vec<String>,
    pub seconds: f64,
}

/// A kind of event.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EventKind {
    pub event: String,
    pub events: u64,
    pub share: f64,
    /// Mean of the values that are given.
    pub value_mean: Option<f64>,
}

/// The last day beside the one before it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Drift {
    pub yesterday: DayStats,
    pub today: DayStats,
    /// Population stability index of the event mix: below 0.1 is alike, above 0.25 another mix.
    pub mix_psi: f64,
}

/// One day's events.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DayStats {
    pub date: String,
    pub events: u64,
    pub value_mean: Option<f64>,
    pub null_shares: BTreeMap<String, f64>,
    pub kinds: Vec<EventKind>,
}

/// A threshold and what was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Check {
    pub check: String,
    pub value: f64,
    pub limit: f64,
    pub passed: bool,
    /// What the figure is, and what to do when it is too large.
    pub text: String,
}

/// Columns of events whose nulls are counted.
const NULLABLE: [&str; 6] = ["value", "label", "request_id", "position", "region", "device"];
/// Shares below this are taken for this in the index of the mix: a kind may come or go.
const SHARE_MIN: f64 = 1e-4;

impl Report {
    /// Takes over the row of `sql/validate.sql`.
    pub fn count(&mut self, row: &BTreeMap<String, f64>) {
        for (name, &value) in row {
            if name.starts_with("min_") || name.starts_with("max_") {
                if !value.is_nan() {
                    self.ranges.insert(name.clone(), value);
                }
            } else {
                self.counts.insert(name.clone(), if value.is_nan() { 0 } else { value as u64 });
            }
        }
        let events = self.counts.get("events").copied().unwrap_or(0).max(1) as f64;
        for column in NULLABLE {
            let nulls = self.counts.get(&format!("null_{column}")).copied().unwrap_or(0);
            self.null_shares.insert(column.to_owned(), nulls as f64 / events);
        }
    }

    /// Takes over the rows of `sql/event_days.sql`. An event counts as a success when it is of one
    /// of `positive_events` or has a positive label.
    pub fn compare_days(&mut self, days: &Frame, positive_events: &[String]) -> Result<()> {
        let rows = day_rows(days)?;
        for row in &rows {
            let all = positive_events.contains(&row.event);
            let positives = if all { row.events } else { row.labelled };
            *self.positives.entry(row.day_ms).or_default() += positives;
        }
        self.kinds = stats("", rows.iter()).kinds;
        let mut dates: Vec<i64> = rows.iter().map(|row| row.day_ms).collect();
        dates.sort_unstable();
        dates.dedup();
        let [.., yesterday, today] = dates[..] else { return Ok(()) };
        let of = |day: i64| stats(&date_of(day), rows.iter().filter(|row| row.day_ms == day));
        let (yesterday, today) = (of(yesterday), of(today));
        let mix_psi = psi(&yesterday.kinds, &today.kinds);
        self.drift = Some(Drift { yesterday, today, mix_psi });
        Ok(())
    }

    /// Compares every figure with its limit.
    pub fn judge(&mut self, config: &Config, users_known: bool) {
        let mut checks = Vec::new();
        let max = &config.share_max;
        let count = |name: &str| self.counts.get(name).copied().unwrap_or(0);
        let wrong_type = self.reasons.get("wrong_type").copied().unwrap_or(0);
        for (name, rows, limit, fix) in [
            ("wrong_type", wrong_type, max.wrong_type, "have the source write the column's type"),
            ("null_id", count("null_id"), max.null_id, "have the source fill ids, event and time"),
            (
                "duplicate_id",
                count("duplicate_id"),
                max.duplicate_id,
                "find out who sends events twice",
            ),
            (
                "outside_window",
                count("outside_window"),
                max.outside_window,
                "put events into the folder of their own day",
            ),
            (
                "unknown_item",
                count("unknown_item"),
                max.unknown_item,
                "import the items that these events name",
            ),
            (
                "unknown_user",
                if users_known { count("unknown_user") } else { 0 },
                max.unknown_user,
                "import the users that these events name",
            ),
            (
                "negative_value",
                count("negative_value"),
                max.negative_value,
                "values are revenues or ratings; send refunds as another event",
            ),
            ("late", self.late, max.late, "put events into the folder of their own day"),
        ] {
            let value = rows as f64 / self.events_read.max(1) as f64;
            let text = format!(
                "{rows} of {} events from {} to {}; {fix}",
                self.events_read, self.from, self.to
            );
            checks.push(Check::new(&format!("share_max.{name}"), value, limit, text));
        }
        for (name, table) in
            [("items", &self.items), ("users", &self.users), ("histories", &self.histories)]
        {
            let value = table.quarantined as f64 / table.read.max(1) as f64;
            let text = format!(
                "{} of {} rows of {name} have no key or a value of a wrong type; correct them at \
                 their source",
                table.quarantined, table.read
            );
            checks.push(Check::new("share_max.catalogue", value, max.catalogue, text));
        }
        checks.extend(self.drift_checks(&config.drift));
        self.checks = checks;
    }

    fn drift_checks(&self, max: &DriftMax) -> Vec<Check> {
        let Some(Drift { yesterday, today, mix_psi }) = &self.drift else { return Vec::new() };
        // A handful of events differ by chance; a day that lost nearly all of them does not.
        if yesterday.events < max.events_min {
            return Vec::new();
        }
        let mut checks = Vec::new();
        let mut add = |name: &str, value: f64, limit: f64, what: String| {
            if limit > 0.0 {
                let text = format!(
                    "{what} ({} beside {}); look at what writes the events, or allow it",
                    today.date, yesterday.date
                );
                checks.push(Check::new(&format!("drift.{name}"), value, limit, text));
            }
        };
        let (a, b) = (yesterday.events as f64, today.events as f64);
        let what = format!("{} events after {}", today.events, yesterday.events);
        add("rows_ratio", ratio(a, b), max.rows_ratio, what);
        if today.events >= max.events_min {
            for (column, before) in &yesterday.null_shares {
                let now = today.null_shares.get(column).copied().unwrap_or(0.0);
                let what = format!("share of events without {column}: {now:.3} after {before:.3}");
                add("null_share", (now - before).abs(), max.null_share, what);
            }
            if let (Some(before), Some(now)) = (yesterday.value_mean, today.value_mean) {
                let what = format!("mean value {now:.4} after {before:.4}");
                add("value_ratio", ratio(before, now), max.value_ratio, what);
            }
            add("mix_psi", *mix_psi, max.mix_psi, "the shares of the kinds of events".to_owned());
        }
        checks
    }

    /// Whether more successes before a moment have a time than have none.
    pub fn is_timed(&self, before_ms: i64) -> bool {
        self.positives.range(..before_ms).map(|(_, n)| n).sum::<u64>() > self.untimed_positives
    }

    /// Stops the day when a limit is passed.
    pub fn enforce(&self) -> Result<()> {
        match self.checks.iter().find(|check| !check.passed) {
            Some(check) => bail!(
                "check `{}` failed: {:.6} is more than {} (offline.collect.{}): {}",
                check.check,
                check.value,
                check.limit,
                check.check,
                check.text
            ),
            None => Ok(()),
        }
    }

    /// Whether every row that was read is kept or in the quarantine.
    pub fn account(&self) -> Result<()> {
        if self.events_kept + self.events_quarantined == self.events_read {
            return Ok(());
        }
        bail!(
            "{} events were read, {} kept and {} put into the quarantine: {} are unaccounted for; \
             sql/events.sql and sql/quarantine.sql contradict each other",
            self.events_read,
            self.events_kept,
            self.events_quarantined,
            self.events_read as i64 - (self.events_kept + self.events_quarantined) as i64
        )
    }

    /// The report for a person, in Markdown.
    pub fn text(&self) -> String {
        let mut out = format!(
            "# Data from {} to {}\n\n{} events read on {} days, {} kept, {} in the quarantine, {} \
             late (kept). {} successes.\n\n| table | read | kept | replaced | quarantined |\n\
             |---|---|---|---|---|\n",
            self.from,
            self.to,
            self.events_read,
            self.days,
            self.events_kept,
            self.events_quarantined,
            self.late,
            self.positives.values().sum::<u64>()
        );
        for (name, t) in
            [("items", &self.items), ("users", &self.users), ("histories", &self.histories)]
        {
            let row = (t.read, t.kept, t.replaced, t.quarantined);
            out += &format!("| {name} | {} | {} | {} | {} |\n", row.0, row.1, row.2, row.3);
        }
        out += "\n| check | found | limit | | |\n|---|---|---|---|---|\n";
        for check in &self.checks {
            let mark = if check.passed { "" } else { "**FAILED**" };
            out += &format!(
                "| {} | {:.6} | {} | {mark} | {} |\n",
                check.check, check.value, check.limit, check.text
            );
        }
        out += "\n| reason in the quarantine | rows |\n|---|---|\n";
        self.reasons.iter().for_each(|(reason, n)| out += &format!("| {reason} | {n} |\n"));
        out += "\n| column | share of nulls |\n|---|---|\n";
        self.null_shares.iter().for_each(|(name, s)| out += &format!("| {name} | {s:.4} |\n"));
        out += "\n| range | value |\n|---|---|\n";
        self.ranges.iter().for_each(|(name, value)| out += &format!("| {name} | {value} |\n"));
        out += "\n| event | events | share | mean value |\n|---|---|---|---|\n";
        for kind in &self.kinds {
            let mean = kind.value_mean.map_or("-".to_owned(), |mean| format!("{mean:.4}"));
            out += &format!("| {} | {} | {:.4} | {mean} |\n", kind.event, kind.events, kind.share);
        }
        out
    }
}

impl Check {
    fn new(name: &str, value: f64, limit: f64, text: String) -> Self {
        Self { check: name.to_owned(), value, limit, passed: value <= limit, text }
    }
}

/// How many times the larger is the smaller; at least 1.
fn ratio(a: f64, b: f64) -> f64 {
    match (a.abs().max(b.abs()), a.abs().min(b.abs())) {
        (0.0, _) => 1.0,
        (large, small) => large / small.max(1e-9),
    }
}

struct DayRow {
    day_ms: i64,
    event: String,
    events: u64,
    labelled: u64,
    values: u64,
    value_sum: f64,
    nulls: Vec<u64>,
}

/// Columns whose nulls `sql/event_days.sql` counts by day.
const NULLS_BY_DAY: [&str; 5] = ["value", "label", "request_id", "region", "device"];

fn day_rows(days: &Frame) -> Result<Vec<DayRow>> {
    let (dates, events) = (days.i64("day_ms")?, days.strings("event")?);
    let count = |name: &str| -> Result<Vec<u64>> {
        Ok(days.i64(name)?.into_iter().map(|n| n.unwrap_or(0) as u64).collect())
    };
    let (rows, labelled) = (count("events")?, count("labelled")?);
    let (values, sums) = (count("values_given")?, days.f64("value_sum")?);
    let nulls = NULLS_BY_DAY
        .iter()
        .map(|name| count(&format!("null_{name}")))
        .collect::<Result<Vec<_>>>()?;
    let row = |at: usize| DayRow {
        day_ms: dates[at].unwrap_or(0),
        event: events[at].clone().unwrap_or_default(),
        events: rows[at],
        labelled: labelled[at],
        values: values[at],
        value_sum: if sums[at].is_nan() { 0.0 } else { sums[at] },
        nulls: nulls.iter().map(|column| column[at]).collect(),
    };
    Ok((0..days.rows()).map(row).collect())
}

/// Totals over rows of days and kinds.
fn stats<'a>(date: &str, rows: impl Iterator<Item = &'a DayRow>) -> DayStats {
    // Events, values given and their sum, by kind.
    let mut kinds: BTreeMap<&str, (u64, u64, f64)> = BTreeMap::new();
    let mut nulls = [0u64; NULLS_BY_DAY.len()];
    for row in rows {
        let kind = kinds.entry(&row.event).or_default();
        *kind = (kind.0 + row.events, kind.1 + row.values, kind.2 + row.value_sum);
        nulls.iter_mut().zip(&row.nulls).for_each(|(sum, n)| *sum += n);
    }
    let total = |f: fn(&(u64, u64, f64)) -> f64| kinds.values().map(f).sum::<f64>();
    let (events, values) = (total(|k| k.0 as f64), total(|k| k.1 as f64));
    let mean = |sum: f64, n: f64| (n > 0.0).then(|| sum / n);
    let kind = |(name, k): (&&str, &(u64, u64, f64))| EventKind {
        event: (*name).to_owned(),
        events: k.0,
        share: k.0 as f64 / events.max(1.0),
        value_mean: mean(k.2, k.1 as f64),
    };
    let null = |(name, n): (&&str, &u64)| ((*name).to_owned(), *n as f64 / events.max(1.0));
    DayStats {
        date: date.to_owned(),
        events: events as u64,
        value_mean: mean(total(|k| k.2), values),
        null_shares: NULLS_BY_DAY.iter().zip(&nulls).map(null).collect(),
        kinds: kinds.iter().map(kind).collect(),
    }
}

/// The population stability index between two mixes of kinds.
fn psi(before: &[EventKind], now: &[EventKind]) -> f64 {
    let share = |kinds: &[EventKind], name: &str| {
        let found = kinds.iter().find(|kind| kind.event == name);
        found.map_or(0.0, |kind| kind.share).max(SHARE_MIN)
    };
    let mut names: Vec<&str> = before.iter().chain(now).map(|kind| kind.event.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let term = |name: &str| {
        let (p, q) = (share(before, name), share(now, name));
        (p - q) * (p / q).ln()
    };
    names.into_iter().map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(shares: &[(&str, f64)]) -> Vec<EventKind> {
        let kind = |(event, share): &(&str, f64)| EventKind {
            event: (*event).to_owned(),
            share: *share,
            ..EventKind::default()
        };
        shares.iter().map(kind).collect()
    }

    #[test]
    fn the_index_of_the_mix_is_nought_for_the_same_and_large_for_another() {
        let a = kinds(&[("impression", 0.9), ("click", 0.1)]);
        assert_eq!(psi(&a, &a), 0.0);
        assert!(psi(&a, &kinds(&[("impression", 0.88), ("click", 0.12)])) < 0.01);
        assert!(psi(&a, &kinds(&[("impression", 1.0)])) > 0.25, "a kind that is gone");
    }

    #[test]
    fn an_unaccounted_row_is_an_error() {
        let mut report = Report { events_read: 10, events_kept: 8, ..Report::default() };
        assert!(report.account().unwrap_err().to_string().contains("2 are unaccounted for"));
        report.events_quarantined = 2;
        report.account().unwrap();
    }

    #[test]
    fn a_day_that_lost_its_events_or_its_mix_is_named() {
        let day = |date: &str, events, mean| DayStats {
            date: date.to_owned(),
            events,
            value_mean: Some(mean),
            ..DayStats::default()
        };
        let mut report = Report {
            drift: Some(Drift {
                yesterday: day("2026-01-01", 9000, 2.0),
                today: day("2026-01-02", 900, 9.0),
                mix_psi: 0.5,
            }),
            ..Report::default()
        };
        let max = DriftMax {
            events_min: 500,
            rows_ratio: 3.0,
            null_share: 0.2,
            value_ratio: 3.0,
            mix_psi: 0.25,
        };
        report.checks = report.drift_checks(&max);
        assert_eq!(report.checks.iter().filter(|check| !check.passed).count(), 3);
        let error = report.enforce().unwrap_err().to_string();
        assert!(error.contains("10.000000 is more than 3"), "{error}");
        assert!(error.contains("offline.collect.drift.rows_ratio"), "{error}");
        assert!(error.contains("2026-01-02 beside 2026-01-01"), "{error}");
        let off = DriftMax { rows_ratio: 0.0, value_ratio: 0.0, mix_psi: 0.0, ..max };
        assert!(report.drift_checks(&off).iter().all(|check| check.passed));
    }
}
