//! From collected tables to the dataset: dense ids, codes, positives.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::dataset::{Dataset, Event};
use super::frame::Frame;
use crate::features::{Dictionaries, Dictionary};
use crate::ids::IdTable;

/// Section `[offline.signals]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Events that count as a success, besides an imported label of 1.
    pub positive_events: Vec<String>,
    /// The event that shows an item; rows of the ranker are made from these where they exist.
    pub impression_event: String,
}

/// Everything a run knows, in memory.
pub struct Loaded {
    pub data: Dataset,
    /// The collected items and users, whose row order is the dense one of [`Dataset::items`].
    pub items: Frame,
    pub users: Option<Frame>,
    /// What the items' texts say in numbers.
    pub texts: Option<Frame>,
    pub item_ids: IdTable,
    pub user_ids: IdTable,
    /// Dictionaries of the context columns.
    pub context: Dictionaries,
}

impl Loaded {
    /// Reads `events`, `items` and, where there are, `users` and `histories` of a directory.
    pub fn open(dir: &Path, config: &Config) -> Result<Self> {
        let items = Frame::open(&dir.join("items.parquet"))?;
        let item_names = items.ids("item_id")?;
        let item_ids = IdTable::new(item_names.iter().map(String::as_str));
        let optional = |name: &str| -> Result<Option<Frame>> {
            let path = dir.join(name);
            if path.exists() { Frame::open(&path).map(Some) } else { Ok(None) }
        };
        let users = optional("users.parquet")?;
        let histories = optional("histories.parquet")?;
        let texts = optional("texts.parquet")?;
        let events = Frame::open(&dir.join("events.parquet"))?;
        let user_names = user_names(&[Some(&events), users.as_ref(), histories.as_ref()])?;
        let user_ids = IdTable::new(user_names.iter().map(String::as_str));
        let mut context = Dictionaries::default();
        let mut data = Dataset {
            users: user_names,
            items: item_names,
            context: context_columns(&events, &mut context)?,
            ..Dataset::default()
        };
        let ids = Ids { items: &item_ids, users: &user_ids };
        push_events(&events, config, &ids, &mut data)?;
        if let Some(histories) = &histories {
            push_histories(histories, config, &ids, &mut data)?;
        }
        if data.kinds.len() > u8::MAX as usize {
            bail!("{} different event names; at most 255 are supported", data.kinds.len());
        }
        let data = data.index_by_user();
        Ok(Self { data, items, users, texts, item_ids, user_ids, context })
    }

    /// The collected users in dense order: row of the frame by dense user.
    pub fn user_rows(&self) -> Result<Vec<Option<usize>>> {
        let mut rows = vec![None; self.data.users.len()];
        if let Some(frame) = &self.users {
            for (row, id) in frame.ids("user_id")?.iter().enumerate() {
                if let Some(user) = self.user_ids.find(id) {
                    rows[user as usize] = Some(row);
                }
            }
        }
        Ok(rows)
    }
}

struct Ids<'a> {
    items: &'a IdTable,
    users: &'a IdTable,
}

fn user_names(frames: &[Option<&Frame>]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for frame in frames.iter().copied().flatten() {
        names.extend(frame.ids("user_id")?);
        names.sort_unstable();
        names.dedup();
    }
    Ok(names)
}

fn context_columns(
    events: &Frame,
    dictionaries: &mut Dictionaries,
) -> Result<Vec<(String, Vec<f32>)>> {
    let mut columns = Vec::new();
    for column in events.names() {
        let name = match column.as_str() {
            "device" | "region" => format!("context.{column}"),
            other => match other.strip_prefix("context_") {
                Some(name) => format!("context.{name}"),
                None => continue,
            },
        };
        let values = events.strings(&column)?;
        let dictionary = Dictionary::from_values(values.iter().flatten().cloned());
        columns.push((
            name.clone(),
            values.iter().map(|v| dictionary.feature(v.as_deref())).collect(),
        ));
        dictionaries.insert(&name, dictionary);
    }
    Ok(columns)
}

fn push_events(events: &Frame, config: &Config, ids: &Ids, data: &mut Dataset) -> Result<()> {
    let optional_f32 = |name: &str| -> Result<Vec<f32>> {
        if events.has(name) { events.f32(name) } else { Ok(vec![f32::NAN; events.rows()]) }
    };
    let (users, items) = (events.ids("user_id")?, events.ids("item_id")?);
    let (names, times) = (events.ids("event")?, events.i64("ts_ms")?);
    let (values, labels) = (optional_f32("value")?, optional_f32("label")?);
    let requests = if events.has("request_id") {
        events.strings("request_id")?
    } else {
        vec![None; events.rows()]
    };
    let mut request_ids = std::collections::HashMap::new();
    let mut kept = Vec::with_capacity(events.rows());
    for row in 0..events.rows() {
        let Some(item) = ids.items.find(&items[row]) else {
            kept.push(false);
            continue;
        };
        kept.push(true);
        let kind = kind(&mut data.kinds, &names[row]);
        let positive = config.positive_events.contains(&names[row]) || labels[row] >= 0.5;
        let next = request_ids.len() as u32;
        let request = requests[row]
            .as_deref()
            .map_or(u32::MAX, |id| *request_ids.entry(id.to_owned()).or_insert(next));
        data.events.push(Event {
            user: ids.users.find(&users[row]).context("every event's user was collected")?,
            item,
            time_ms: times[row].context("a collected event has a time")?,
            timed: true,
            positive,
            kind,
            value: values[row],
            label: labels[row],
            request,
        });
    }
    let unknown = kept.iter().filter(|&&kept| !kept).count();
    if unknown > 0 {
        tracing::warn!("{unknown} events name items that the catalogue does not have; left out");
        for (_, column) in &mut data.context {
            let mut row = 0;
            column.retain(|_| {
                row += 1;
                kept[row - 1]
            });
        }
    }
    Ok(())
}

/// A history becomes events a millisecond apart that end just before its `as_of`.
fn push_histories(histories: &Frame, config: &Config, ids: &Ids, data: &mut Dataset) -> Result<()> {
    let (users, names) = (histories.ids("user_id")?, histories.ids("event")?);
    let (lists, as_of) = (histories.lists("item_ids")?, histories.i64("as_of_ms")?);
    let before = data.events.len();
    for row in 0..histories.rows() {
        let user = ids.users.find(&users[row]).context("every history's user was collected")?;
        let end_ms = as_of[row].context("a history has an as_of")?;
        let kind = kind(&mut data.kinds, &names[row]);
        let items: Vec<u32> = lists[row].iter().filter_map(|id| ids.items.find(id)).collect();
        let first_ms = end_ms - items.len() as i64;
        data.events.extend(items.into_iter().zip(first_ms..).map(|(item, time_ms)| Event {
            user,
            item,
            time_ms,
            timed: false,
            positive: config.positive_events.contains(&names[row]),
            kind,
            value: f32::NAN,
            label: f32::NAN,
            request: u32::MAX,
        }));
    }
    let added = data.events.len() - before;
    data.context
        .iter_mut()
        .for_each(|(_, column)| column.extend(std::iter::repeat_n(f32::NAN, added)));
    Ok(())
}

fn kind(kinds: &mut Vec<String>, name: &str) -> u8 {
    let at = kinds.iter().position(|k| k == name).unwrap_or_else(|| {
        kinds.push(name.to_owned());
        kinds.len() - 1
    });
    at as u8
}
