//! Source `repeats`: what the user had before. First the user's favourites, where the configuration names a
//! map of them, then the history, newest first.

use crate::features::{ItemColumns, Schema, UserRow};
use crate::types::ItemIdx;

/// Where a user's favourites stand, and which item each key means.
#[derive(Clone, Debug, Default)]
pub struct Repeats(Option<Favourites>);

#[derive(Clone, Debug)]
struct Favourites {
    /// Position of the map among the user's maps.
    map: usize,
    /// The item of each key; `None` where no item has it.
    items: Vec<Option<ItemIdx>>,
}

/// Why a map gives no favourites.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unusable {
    #[error("no feature looks `{map}` up, so users have none; give one op = \"lookup\"")]
    Unread { map: String },
    #[error("`{key}`, the key of `{map}`, is not one item's alone; look it up by items.item_id")]
    Shared { map: String, key: String },
}

impl Repeats {
    /// Repeats of users with these maps; an empty name is the history alone.
    pub fn new(
        map: &str,
        schema: &Schema,
        maps: &[String],
        items: &ItemColumns,
    ) -> Result<Self, Unusable> {
        if map.is_empty() {
            return Ok(Self::default());
        }
        let unread = || Unusable::Unread { map: map.to_owned() };
        let at = maps.iter().position(|name| name == map).ok_or_else(unread)?;
        let read = schema.maps().into_iter().find(|(name, _)| name == map);
        let (_, key) = read.ok_or_else(unread)?;
        let codes = items.copy_column(&key).ok_or_else(unread)?;
        let mut of_code = Vec::new();
        for (item, code) in (0..).map(ItemIdx).zip(codes) {
            if code.is_nan() {
                continue;
            }
            let code = code as usize;
            if code >= of_code.len() {
                of_code.resize(code + 1, None);
            }
            if of_code[code].replace(item).is_some() {
                return Err(Unusable::Shared { map: map.to_owned(), key });
            }
        }
        Ok(Self(Some(Favourites { map: at, items: of_code })))
    }

    /// The different items of a user, the favourites first; `history` is oldest first.
    pub fn of<'a>(
        &self,
        user: UserRow,
        history: &'a [ItemIdx],
        favourites: &'a mut Vec<(f32, ItemIdx)>,
    ) -> impl Iterator<Item = ItemIdx> + use<'a> {
        favourites.clear();
        if let Some(Favourites { map, items }) = &self.0 {
            let map = user.map(*map);
            let known = |(&key, &value): (&u32, &f32)| Some((value, (*items.get(key as usize)?)?));
            favourites.extend(map.keys.iter().zip(map.values).filter_map(known));
            favourites.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        }
        let favourites = &*favourites;
        let first = favourites.iter().map(|&(_, item)| item);
        first.chain(newest(history).filter(|item| favourites.iter().all(|(_, f)| f != item)))
    }
}

/// The different items of a history (oldest first), newest first.
fn newest(history: &[ItemIdx]) -> impl Iterator<Item = ItemIdx> {
    let newest =
        |(at, item): (usize, &ItemIdx)| (!history[at + 1..].contains(item)).then_some(*item);
    history.iter().enumerate().rev().filter_map(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::UserTableBuilder;
    use crate::ids::IdTable;

    fn items(numbers: &[u32]) -> Vec<ItemIdx> {
        numbers.iter().copied().map(ItemIdx).collect()
    }

    #[test]
    fn each_item_stands_where_it_was_last() {
        let history = items(&[1, 2, 1, 3, 2]);
        assert_eq!(newest(&history).map(|item| item.0).collect::<Vec<_>>(), [2, 3, 1]);
        assert_eq!(newest(&[]).next(), None);
    }

    #[test]
    fn favourites_come_first_by_their_number_and_only_of_a_map_keyed_by_the_item() {
        let schema = Schema::parse(
            "[[feature]]\nname = \"a\"\nscope = \"cross\"\nop = \"lookup\"\n\
             map = \"user_item.count_all\"\nkey = \"items.item_id\"\n",
        )
        .unwrap();
        let mut columns = ItemColumns::new(5);
        // Codes in an order of their own; item 4 came live and has none.
        columns.insert("items.item_id", vec![3.0, 2.0, 1.0, 0.0, f32::NAN]);
        let mut users = UserTableBuilder::new(IdTable::new(["ann", "bob"].into_iter()));
        let counts = vec![(3, 7.0), (0, 9.0), (1, 7.0), (8, 99.0)];
        users.map("user_item.count_all", vec![counts, vec![]]);
        let (users, map) = (users.build(), "user_item.count_all");
        let repeats = Repeats::new(map, &schema, users.map_names(), &columns).unwrap();
        let mut buffer = Vec::new();
        let history = items(&[2, 1, 4]);
        let mut of = |user: &str| {
            repeats.of(users.find(user), &history, &mut buffer).collect::<Vec<ItemIdx>>()
        };
        assert_eq!(of("ann"), items(&[3, 0, 2, 4, 1]));
        assert_eq!(of("bob"), items(&[4, 1, 2]));
        assert_eq!(of("nobody"), items(&[4, 1, 2]));

        let unread = Repeats::new("user_item.share", &schema, users.map_names(), &columns);
        assert_eq!(unread.unwrap_err(), Unusable::Unread { map: "user_item.share".into() });
        columns.insert("items.item_id", vec![0.0, 1.0, 1.0, 2.0, 3.0]);
        let shared = Repeats::new(map, &schema, users.map_names(), &columns).unwrap_err();
        assert_eq!(shared, Unusable::Shared { map: map.into(), key: "items.item_id".into() });
    }
}
