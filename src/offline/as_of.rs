//! Items and users as they stood at one moment: what serving would have read on that day.

use std::path::Path;

use anyhow::{Context, Result};

use super::frame::Frame;
use super::load::Loaded;
use crate::bundle::TowerInputs;
use crate::features::{
    Dictionaries, Dictionary, HISTORY_MAX, ItemColumns, Schema, UserTable, UserTableBuilder,
};
use crate::ids::IdTable;
use crate::types::{ItemIdx, epoch_days};

/// Which columns a run reads, and how their strings are coded.
pub struct Layout {
    items: Vec<String>,
    users: Vec<String>,
    /// User maps with the item column that keys them.
    maps: Vec<(String, String)>,
    pub dictionaries: Dictionaries,
}

/// Tables of one moment.
pub struct AsOf {
    pub time_ms: i64,
    pub items: ItemColumns,
    pub users: UserTable,
}

impl Layout {
    /// Collects what schema and towers read. Strings are coded from the catalogue, from the
    /// tables in `latest` (the last materialised day) and from the context of the events.
    pub fn new(
        schema: &Schema,
        towers: &TowerInputs,
        loaded: &Loaded,
        latest: &Path,
    ) -> Result<Self> {
        let mut names: Vec<String> =
            schema.columns().iter().map(|name| (*name).to_owned()).collect();
        names.extend(towers.item_codes.iter().chain(&towers.item_dense).cloned());
        names.extend(towers.user_codes.iter().chain(&towers.user_dense).cloned());
        if loaded.users.as_ref().is_some_and(|users| users.has("region")) {
            names.push("users.region".to_owned());
        }
        names.sort_unstable();
        names.dedup();
        let mut dictionaries = loaded.context.clone();
        for name in &names {
            let Some((frame, column)) = source(name, loaded, latest)? else { continue };
            if frame.get().is_text(&column) {
                let values = frame.get().strings(&column)?.into_iter().flatten();
                dictionaries.insert(name, Dictionary::from_values(values));
            }
        }
        share_codes(&mut dictionaries, &schema.compared());
        let (users, items) = names
            .into_iter()
            .filter(|name| !name.starts_with("context."))
            .partition(|name| name.starts_with("user"));
        Ok(Self { items, users, maps: schema.maps(), dictionaries })
    }

    /// Reads the tables of `dir` as columns. Histories hold the positives before `time_ms`.
    pub fn read(&self, dir: &Path, time_ms: i64, loaded: &Loaded) -> Result<AsOf> {
        let items = self.item_columns(dir, loaded)?;
        let users = self.user_table(dir, time_ms, loaded)?;
        Ok(AsOf { time_ms, items, users })
    }

    /// The item columns alone.
    pub fn item_columns(&self, dir: &Path, loaded: &Loaded) -> Result<ItemColumns> {
        let n = loaded.item_ids.len();
        let mut columns = ItemColumns::new(n);
        for (table, names) in by_table(&self.items) {
            let frame = open_table(&table, loaded, dir)?;
            let rows = rows_of(frame.get(), "item_id", &loaded.item_ids)?;
            for (name, column) in names {
                columns.insert(&name, self.scatter(frame.get(), &name, &column, &rows, n)?);
            }
        }
        Ok(columns)
    }

    fn user_table(&self, dir: &Path, time_ms: i64, loaded: &Loaded) -> Result<UserTable> {
        let n = loaded.user_ids.len();
        let mut table = UserTableBuilder::new(loaded.user_ids.clone());
        for (name, names) in by_table(&self.users) {
            let frame = open_table(&name, loaded, dir)?;
            let rows = rows_of(frame.get(), "user_id", &loaded.user_ids)?;
            for (name, column) in names {
                table.column(&name, self.scatter(frame.get(), &name, &column, &rows, n)?);
            }
        }
        for (map, key) in &self.maps {
            let (name, column) = split(map);
            let frame = open_table(name, loaded, dir)?;
            let frame = frame.get();
            let rows = rows_of(frame, "user_id", &loaded.user_ids)?;
            let (keys, values) = (frame.strings("key")?, frame.f32(column)?);
            let mut entries = vec![Vec::new(); n];
            for (row, user) in rows.into_iter().enumerate() {
                let code = self.dictionaries.feature(key, keys[row].as_deref());
                if let (Some(user), false) = (user, code.is_nan()) {
                    entries[user].push((code as u32, values[row]));
                }
            }
            table.map(map, entries);
        }
        for user in 0..n as u32 {
            table.history(user, history(loaded, user, time_ms));
        }
        Ok(table.build())
    }

    /// A column of a table in dense order.
    fn scatter(
        &self,
        frame: &Frame,
        name: &str,
        column: &str,
        rows: &[Option<usize>],
        n: usize,
    ) -> Result<Vec<f32>> {
        let values = self.values(frame, name, column)?;
        let mut out = vec![f32::NAN; n];
        for (value, row) in values.into_iter().zip(rows) {
            if let Some(row) = *row {
                out[row] = value;
            }
        }
        Ok(out)
    }

    fn values(&self, frame: &Frame, name: &str, column: &str) -> Result<Vec<f32>> {
        if frame.is_text(column) {
            let dictionary = self.dictionaries.get(name).context("text columns are coded")?;
            let strings = frame.strings(column)?;
            return Ok(strings.iter().map(|s| dictionary.feature(s.as_deref())).collect());
        }
        if frame.is_number(column) {
            return frame.f32(column);
        }
        let days = |time: Option<i64>| time.map_or(f32::NAN, |ms| epoch_days(ms) as f32);
        Ok(frame.i64(column)?.into_iter().map(days).collect())
    }
}

/// A user's positives before a moment, oldest first, at most [`HISTORY_MAX`].
pub fn history(loaded: &Loaded, user: u32, time_ms: i64) -> Vec<(ItemIdx, i64)> {
    let past = loaded.data.before(user, time_ms).iter().rev().filter(|e| e.positive);
    let mut history: Vec<_> = past
        .take(HISTORY_MAX)
        .map(|e| (ItemIdx(e.item), if e.timed { e.time_ms } else { i64::MIN }))
        .collect();
    history.reverse();
    history
}

/// Gives compared columns one dictionary. Twice over the pairs joins chains of three; the default
/// schemas have none longer.
fn share_codes(dictionaries: &mut Dictionaries, compared: &[(&str, &str)]) {
    for (a, b) in compared.iter().chain(compared) {
        if let (Some(one), Some(two)) = (dictionaries.get(a), dictionaries.get(b)) {
            let both = one.union(two);
            dictionaries.insert(a, both.clone());
            dictionaries.insert(b, both);
        }
    }
}

/// A frame that is the run's own or was read for the occasion.
enum Table<'a> {
    Collected(&'a Frame),
    Read(Frame),
}

impl Table<'_> {
    fn get(&self) -> &Frame {
        match self {
            Table::Collected(frame) => frame,
            Table::Read(frame) => frame,
        }
    }
}

fn open_table<'a>(table: &str, loaded: &'a Loaded, dir: &Path) -> Result<Table<'a>> {
    match table {
        "items" => Ok(Table::Collected(&loaded.items)),
        "texts" => loaded.texts.as_ref().map(Table::Collected).context(
            "the schema or the towers read `texts`, but there are none: set offline.text.model",
        ),
        "users" => loaded.users.as_ref().map(Table::Collected).context(
            "the schema or offline.towers.inputs reads `users`, but no users were imported",
        ),
        _ => Frame::open(&dir.join(format!("{table}.parquet"))).map(Table::Read),
    }
}

/// The frame and column of `table.column`, unless it is of the context.
fn source<'a>(
    name: &str,
    loaded: &'a Loaded,
    latest: &Path,
) -> Result<Option<(Table<'a>, String)>> {
    let (table, column) = split(name);
    if table == "context" {
        return Ok(None);
    }
    Ok(Some((open_table(table, loaded, latest)?, column.to_owned())))
}

fn split(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or((name, ""))
}

/// Names grouped by table, so that each table is read once: (full name, column).
fn by_table(names: &[String]) -> Vec<(String, Vec<(String, String)>)> {
    let mut tables: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for name in names {
        let (table, column) = split(name);
        let entry = (name.clone(), column.to_owned());
        match tables.iter_mut().find(|(t, _)| t == table) {
            Some((_, columns)) => columns.push(entry),
            None => tables.push((table.to_owned(), vec![entry])),
        }
    }
    tables
}

fn rows_of(frame: &Frame, id: &str, ids: &IdTable) -> Result<Vec<Option<usize>>> {
    let found = |id: &String| ids.find(id).map(|row| row as usize);
    Ok(frame.ids(id)?.iter().map(found).collect())
}
