//! `shortlist features suggest`: a feature schema to start from.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use crate::features::Schema;
use crate::offline::frame::Frame;

/// Columns of items that are no features: names, addresses, what filters and rules use.
const NOT_OF_ITEMS: [&str; 7] =
    ["item_id", "title", "image_url", "created_at", "in_stock", "regions", "labels"];
/// User maps exist for these item columns.
const MAPS: [(&str, &str); 3] =
    [("category", "user_category"), ("brand", "user_brand"), ("department", "user_department")];

/// The schema's text.
pub fn suggest(data: &Path) -> Result<String> {
    let mut out = Writer::default();
    out.text.push_str("# A schema to start from; the format: docs/features.md.\n");
    for window in ["1d", "7d", "28d", "all"] {
        for what in ["impressions", "clicks", "purchases", "positives", "revenue"] {
            let column = format!("{what}_{window}");
            out.source("user", &format!("user_{column}"), "log1p", &format!("user_stats.{column}"));
            out.source("item", &format!("item_{column}"), "log1p", &format!("item_stats.{column}"));
        }
    }
    for column in ["ctr_28d", "avg_value", "trend_7d_28d"] {
        out.source("user", &format!("user_{column}"), "raw", &format!("user_stats.{column}"));
        out.source("item", &format!("item_{column}"), "raw", &format!("item_stats.{column}"));
    }
    out.source("user", "user_recency_days", "age_since", "user_stats.last_day");
    out.source("item", "item_recency_days", "age_since", "item_stats.last_day");
    out.source("item", "item_first_days", "age_since", "item_stats.first_day");
    for (name, op) in [("hour", "hour_of_day"), ("weekday", "day_of_week")] {
        out.plain("context", name, op);
    }
    out.plain("user", "history_length", "history_length");
    out.plain("cross", "similarity", "dot");
    out.of("item", "item");
    let items = Frame::open(&data.join("items"))?;
    out.columns(&items, "item", "items", &NOT_OF_ITEMS);
    for (column, map) in MAPS.into_iter().filter(|(column, _)| items.has(column)) {
        let key = format!("items.{column}");
        for value in ["share", "share_28d", "count_all"] {
            let head = out.head("cross", &format!("{map}_{value}"), "lookup");
            let _ = writeln!(out.text, "{head}map = \"{map}.{value}\"\nkey = \"{key}\"\n");
        }
        out.of(column, &key);
    }
    if data.join("users").is_dir() {
        let users = Frame::open(&data.join("users"))?;
        out.columns(&users, "user", "users", &["user_id"]);
    }
    Schema::parse(&out.text)?;
    Ok(out.text)
}

#[derive(Default)]
struct Writer {
    text: String,
}

impl Writer {
    fn head(&self, scope: &str, name: &str, op: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
        let name: String = name.chars().map(plain).collect();
        format!("[[feature]]\nname = \"{name}\"\nscope = \"{scope}\"\nop = \"{op}\"\n")
    }

    fn plain(&mut self, scope: &str, name: &str, op: &str) {
        let head = self.head(scope, name, op);
        let _ = writeln!(self.text, "{head}");
    }

    fn source(&mut self, scope: &str, name: &str, op: &str, source: &str) {
        let head = self.head(scope, name, op);
        let _ = writeln!(self.text, "{head}source = \"{source}\"\n");
    }

    /// What the history says of a key.
    fn of(&mut self, name: &str, of: &str) {
        for op in ["history_count", "seconds_since_last"] {
            let head = self.head("cross", &format!("{op}_{name}"), op);
            let _ = writeln!(self.text, "{head}of = \"{of}\"\n");
        }
    }

    /// Every column of a table that can be a feature: strings as categories, numbers as they are.
    fn columns(&mut self, frame: &Frame, scope: &str, table: &str, without: &[&str]) {
        for column in frame.names() {
            let op = if frame.is_text(&column) { "category" } else { "raw" };
            let usable = frame.is_text(&column) || frame.is_number(&column);
            if !usable || without.contains(&column.as_str()) {
                continue;
            }
            self.source(scope, &format!("{scope}_{column}_is"), op, &format!("{table}.{column}"));
        }
    }
}
