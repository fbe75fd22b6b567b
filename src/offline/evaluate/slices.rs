//! Parts of the test rows that are reported by themselves: new users, new items, devices, regions.
//!
//! A row carries a bit a slice. Must not know scores.

use super::super::as_of::AsOf;
use super::super::examples::Group;
use super::super::load::Loaded;
use crate::features::Dictionaries;

/// Bits of a row.
pub type Mask = u64;
/// So many values of a column get a slice, the most frequent ones.
const VALUES_MAX: usize = 6;
/// A user with fewer successes than this before the request is not known well.
const FEW: usize = 5;
const DAY: [&str; 2] = ["context.device", "context.region"];
const USER_REGION: &str = "users.region";

/// Names of the slices, and how a row finds its bits.
pub struct Slices {
    pub names: Vec<String>,
    /// Whether an item had a success before the test.
    item_known: Vec<bool>,
    /// Column, code and bit.
    values: Vec<(String, u32, usize)>,
    context_names: Vec<String>,
}

impl Slices {
    /// The slices of a run whose test begins at `start_ms`.
    pub fn new(
        loaded: &Loaded,
        codes: &Dictionaries,
        context_names: Vec<String>,
        start_ms: i64,
    ) -> Self {
        let mut item_known = vec![false; loaded.item_ids.len()];
        for event in loaded.data.events.iter().filter(|e| e.positive && e.time_ms < start_ms) {
            item_known[event.item as usize] = true;
        }
        let fixed = ["user: no success yet", "user: 1 to 4", "user: 5 and more"];
        let items = ["item: no success yet", "item: known"];
        let mut names: Vec<String> = fixed.iter().chain(&items).map(|n| (*n).to_owned()).collect();
        let mut values = Vec::new();
        for column in DAY.into_iter().filter(|name| context_names.iter().any(|n| n == name)) {
            let Some((_, rows)) = loaded.data.context.iter().find(|(n, _)| n == column) else {
                continue;
            };
            add(column, rows, codes, &mut names, &mut values);
        }
        if values.iter().all(|(column, ..)| column != DAY[1])
            && let Some(dictionary) = codes.get(USER_REGION)
        {
            let rows: Vec<f32> = (0..dictionary.len()).map(|code| code as f32).collect();
            add(USER_REGION, &rows, codes, &mut names, &mut values);
        }
        Self { names, item_known, values, context_names }
    }

    /// One mask a candidate of a group; `successes` is how many the user had before it.
    pub fn masks(&self, group: &Group, as_of: &AsOf, successes: usize) -> Vec<Mask> {
        let user = match successes {
            0 => 0,
            n if n < FEW => 1,
            _ => 2,
        };
        let mut shared: Mask = 1 << user;
        for (column, code, bit) in &self.values {
            let value = match self.context_names.iter().position(|name| name == column) {
                Some(at) => group.context[at],
                None => {
                    let at = as_of.users.columns().iter().position(|name| name == column);
                    at.map_or(f32::NAN, |at| as_of.users.row(group.user).value(at))
                }
            };
            shared |= Mask::from(value == *code as f32) << bit;
        }
        let item = |item: usize| if self.item_known[item] { 4 } else { 3 };
        group.candidates.iter().map(|c| shared | 1 << item(c.item.row())).collect()
    }
}

fn add(
    column: &str,
    rows: &[f32],
    codes: &Dictionaries,
    names: &mut Vec<String>,
    values: &mut Vec<(String, u32, usize)>,
) {
    let Some(dictionary) = codes.get(column) else { return };
    let mut counts = vec![0usize; dictionary.len()];
    for code in rows.iter().filter(|code| !code.is_nan()) {
        counts[*code as usize] += 1;
    }
    let mut order: Vec<usize> = (0..counts.len()).filter(|&code| counts[code] > 0).collect();
    order.sort_by_key(|&code| (std::cmp::Reverse(counts[code]), code));
    let title = column.rsplit('.').next().unwrap_or(column);
    for code in order.into_iter().take(VALUES_MAX) {
        let value = dictionary.value(code as u32).unwrap_or("?");
        values.push((column.to_owned(), code as u32, names.len()));
        names.push(format!("{title}: {value}"));
    }
}
