//! Ids that were seen lately.

use std::collections::{HashSet, VecDeque};

/// Enough of a hash that two ids never share it.
type Mark = [u8; 16];

/// The last ids, up to a number.
pub(super) struct Seen {
    max: usize,
    marks: HashSet<Mark>,
    order: VecDeque<Mark>,
}

impl Seen {
    pub fn new(max: usize) -> Self {
        Self { max, marks: HashSet::new(), order: VecDeque::new() }
    }

    /// Remembers an id; false when it is known. The oldest one is forgotten for it.
    pub fn insert(&mut self, id: &str) -> bool {
        let hash = blake3::hash(id.as_bytes());
        let mark: Mark = hash.as_bytes()[..16].try_into().expect("32 bytes");
        if self.max == 0 {
            return true;
        }
        if !self.marks.insert(mark) {
            return false;
        }
        if self.order.len() == self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.marks.remove(&oldest);
        }
        self.order.push_back(mark);
        true
    }

    /// Forgets the last `count` ids: what came with them was refused.
    pub fn take_back(&mut self, count: usize) {
        for _ in 0..count.min(self.order.len()) {
            if let Some(mark) = self.order.pop_back() {
                self.marks.remove(&mark);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ids_are_known_and_what_was_taken_back_is_not() {
        let mut seen = Seen::new(2);
        assert!(seen.insert("a") && seen.insert("b") && !seen.insert("a"));
        assert!(seen.insert("c"), "pushes the oldest out");
        assert!(seen.insert("a") && !seen.insert("c"));
        seen.take_back(1);
        assert!(seen.insert("a") && !seen.insert("c"));
    }
}
