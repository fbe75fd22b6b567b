//! Source `fresh`: new items that have hardly been shown, so that they can prove themselves.
//!
//! Every request walks the list in an order of its own, which follows from its id alone: a
//! replayed request makes the same choice, and over many requests each item has the same chance.

use crate::pipeline::seed::hash;
use crate::types::ItemIdx;

/// All of `list`, in the order of a request.
pub fn items<'a>(list: &'a [ItemIdx], request_id: &str) -> impl Iterator<Item = ItemIdx> + 'a {
    let (len, hash) = (list.len().max(1), hash(request_id));
    let start = (hash % len as u64) as usize;
    // Every step without a common divisor with the length visits each place once.
    let wanted = ((hash >> 32) % len as u64) as usize;
    let step = (wanted..).find(|&step| divisor(step, len) == 1).unwrap_or(1);
    (0..list.len()).map(move |at| list[(start + at * step) % len])
}

fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(len: u32, request_id: &str) -> Vec<u32> {
        let list: Vec<ItemIdx> = (0..len).map(ItemIdx).collect();
        items(&list, request_id).map(|item| item.0).collect()
    }

    #[test]
    fn a_request_sees_every_item_once_and_the_same_way_again() {
        for len in [0, 1, 2, 6, 97, 1000] {
            for id in ["", "a", "0199f3c2-1111", "0199f3c2-1112"] {
                let mut seen = walk(len, id);
                assert_eq!(seen, walk(len, id), "{len} items, request `{id}`");
                seen.sort_unstable();
                assert!(seen.iter().copied().eq(0..len), "{len} items, request `{id}`");
            }
        }
    }

    #[test]
    fn over_many_requests_every_item_comes_first_about_as_often() {
        let mut first = [0usize; 50];
        for at in 0..5000 {
            first[walk(50, &format!("0199f3c2-{at:04}"))[0] as usize] += 1;
        }
        // 100 each; five standard deviations of that are 50.
        assert!(first.iter().all(|count| (50..150).contains(count)), "{first:?}");
    }
}
