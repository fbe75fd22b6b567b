//! What is refused before training starts.

use super::super::model::POOLS_MAX;
use super::super::{Config, Error};
use super::Data;

pub(super) fn config(config: &Config) -> Result<(), Error> {
    let refuse = |key, found: String, rule| Err(Error::Config { key, found, rule });
    if config.dim == 0 || !config.dim.is_multiple_of(32) || config.dim > 1024 {
        return refuse("dim", config.dim.to_string(), "a multiple of 32 up to 1024");
    }
    if config.id_dim == 0 || config.id_dim > 1024 {
        return refuse("id_dim", config.id_dim.to_string(), "between 1 and 1024");
    }
    if config.hidden.iter().any(|&width| width == 0 || width > 8192) {
        return refuse("hidden", format!("{:?}", config.hidden), "widths between 1 and 8192");
    }
    if config.history_max == 0 || config.history_max > 10_000 {
        return refuse("history_max", config.history_max.to_string(), "between 1 and 10000");
    }
    let lives = &config.pool_half_lives_events;
    if lives.is_empty() || lives.len() > POOLS_MAX || !lives.iter().all(|&life| life > 0.0) {
        let rule = "one to eight numbers above 0 (inf counts all events alike)";
        return refuse("pool_half_lives_events", format!("{lives:?}"), rule);
    }
    if config.batch_rows < 2 {
        return refuse("batch_rows", config.batch_rows.to_string(), "at least 2");
    }
    if !(config.scale > 0.0 && config.scale <= 100.0) {
        return refuse("scale", config.scale.to_string(), "above 0, at most 100");
    }
    if !(0.0..1.0).contains(&config.id_dropout) {
        return refuse("id_dropout", config.id_dropout.to_string(), "in [0, 1)");
    }
    if config.half_life_days.is_nan() || config.half_life_days <= 0.0 {
        return refuse("half_life_days", config.half_life_days.to_string(), "above 0 (inf: off)");
    }
    Ok(())
}

impl Data<'_> {
    pub(super) fn check(&self) -> Result<(), Error> {
        let users = self.user_offsets.len().saturating_sub(1);
        let events = self.event_items.len();
        let item_codes = self.items * self.item_code_cardinalities.len();
        let last = self.user_offsets.last().map_or(0, |&last| last as usize);
        let user_codes = users * self.user_code_cardinalities.len();
        let row_dense = self.rows.len() * self.user_dense;
        for (what, found, expected) in [
            ("item_codes", self.item_codes.len(), item_codes),
            ("user_codes", self.user_codes.len(), user_codes),
            ("event_weights", self.event_weights.len(), events),
            ("user_offsets (last)", last, events),
            ("row_dense", self.row_dense.len(), row_dense),
        ] {
            if found != expected {
                return Err(Error::Data { what, found, expected });
            }
        }
        for snapshot in self.snapshots {
            let expected = self.items * self.item_dense;
            if snapshot.len() != expected {
                return Err(Error::Data { what: "a snapshot", found: snapshot.len(), expected });
            }
        }
        let range = |what, found: u64, limit: u64| {
            if found < limit { Ok(()) } else { Err(Error::DataRange { what, found, limit }) }
        };
        for &cardinality in self.item_code_cardinalities {
            range("codes of an item column", cardinality.into(), u16::MAX.into())?;
        }
        for item in self.event_items {
            range("item", item.0.into(), self.items as u64)?;
        }
        for row in self.rows {
            range("user", row.user.into(), users as u64)?;
            range("snapshot", row.snapshot.into(), self.snapshots.len() as u64)?;
            range("begin of a row", row.begin.into(), u64::from(row.end).max(1))?;
            range(
                "end of a row",
                row.end.into(),
                u64::from(self.user_offsets[row.user as usize + 1]) + 1,
            )?;
            range(
                "user's first event",
                self.user_offsets[row.user as usize].into(),
                u64::from(row.begin) + 1,
            )?;
        }
        Ok(())
    }
}
