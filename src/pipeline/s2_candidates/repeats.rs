//! Source `repeats`: what the user had before, newest first.

use crate::types::ItemIdx;

/// The different items of a history (oldest first), newest first.
pub fn items(history: &[ItemIdx]) -> impl Iterator<Item = ItemIdx> {
    let newest =
        |(at, item): (usize, &ItemIdx)| (!history[at + 1..].contains(item)).then_some(*item);
    history.iter().enumerate().rev().filter_map(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_stands_where_it_was_last() {
        let history: Vec<ItemIdx> = [1, 2, 1, 3, 2].map(ItemIdx).to_vec();
        assert_eq!(items(&history).map(|item| item.0).collect::<Vec<_>>(), [2, 3, 1]);
        assert_eq!(items(&[]).next(), None);
    }
}
