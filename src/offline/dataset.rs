//! The day's events in memory: dense ids, sorted by user and time.
//!
//! Everything that trains or evaluates reads this one structure. It is built once from the
//! collected tables; a row's past is a prefix of its user's slice, so that a look into the future
//! is a bug of an index and not of a query.

use std::ops::Range;

/// What happened, reduced to what training needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// Dense user.
    pub user: u32,
    /// Row of the item table.
    pub item: u32,
    /// Epoch milliseconds, UTC; of an event without a time, a place in the order.
    pub time_ms: i64,
    /// Whether `time_ms` is when it happened: imported histories carry an order only.
    pub timed: bool,
    /// Whether it counts as a success: what towers learn and histories hold.
    pub positive: bool,
    /// Position in [`Dataset::kinds`] (impression, click, purchase, ...).
    pub kind: u8,
    /// Revenue or rating; NaN when absent.
    pub value: f32,
    /// Imported outcome (0 or 1); NaN when absent.
    pub label: f32,
    /// Dense request, or `u32::MAX` when the event names none.
    pub request: u32,
}

/// All events of a run.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// External ids by dense user.
    pub users: Vec<String>,
    /// External ids by item row.
    pub items: Vec<String>,
    /// Names of the event kinds.
    pub kinds: Vec<String>,
    /// Sorted by user, then time, then order of arrival.
    pub events: Vec<Event>,
    /// `users.len() + 1` offsets into `events`.
    pub offsets: Vec<u32>,
    /// Codes of the context columns (`context.device`, `context.region`, `context.X` of a column
    /// `context_X`) by name, parallel to `events`; NaN when absent.
    pub context: Vec<(String, Vec<f32>)>,
}

impl Dataset {
    /// The events of one user, oldest first.
    pub fn user(&self, user: u32) -> &[Event] {
        &self.events[self.range(user)]
    }

    /// Where the events of one user stand in `events`.
    pub fn range(&self, user: u32) -> Range<usize> {
        self.offsets[user as usize] as usize..self.offsets[user as usize + 1] as usize
    }

    /// The events of one user strictly before `time_ms`.
    pub fn before(&self, user: u32, time_ms: i64) -> &[Event] {
        let events = self.user(user);
        &events[..events.partition_point(|e| e.time_ms < time_ms)]
    }

    /// Sorts `events` and derives the offsets.
    pub fn index_by_user(mut self) -> Self {
        assert!(self.events.len() < u32::MAX as usize, "at most 2^32 events a run");
        let mut order: Vec<u32> = (0..self.events.len() as u32).collect();
        order.sort_by_key(|&i| (self.events[i as usize].user, self.events[i as usize].time_ms));
        self.events = order.iter().map(|&i| self.events[i as usize]).collect();
        for (_, column) in &mut self.context {
            *column = order.iter().map(|&i| column[i as usize]).collect();
        }
        self.offsets = vec![0; self.users.len() + 1];
        for event in &self.events {
            self.offsets[event.user as usize + 1] += 1;
        }
        for user in 0..self.users.len() {
            self.offsets[user + 1] += self.offsets[user];
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(user: u32, item: u32, time_ms: i64) -> Event {
        let nan = f32::NAN;
        Event {
            user,
            item,
            time_ms,
            timed: true,
            positive: true,
            kind: 0,
            value: nan,
            label: nan,
            request: u32::MAX,
        }
    }

    #[test]
    fn a_users_past_ends_strictly_before_the_time() {
        let data = Dataset {
            users: vec!["a".into(), "b".into(), "c".into()],
            events: vec![event(2, 7, 30), event(0, 1, 20), event(2, 5, 10), event(2, 6, 30)],
            ..Dataset::default()
        }
        .index_by_user();
        let past: Vec<u32> = data.before(2, 30).iter().map(|e| e.item).collect();
        assert_eq!(past, [5]);
        let all: Vec<u32> = data.user(2).iter().map(|e| e.item).collect();
        assert_eq!(all, [5, 7, 6], "equal times keep their order of arrival");
        assert!(data.user(1).is_empty());
    }
}
