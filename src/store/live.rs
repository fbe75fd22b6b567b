//! What has happened to a user since the bundle was made: items shown, events taken.
//!
//! Items are kept by their external id, because a new bundle numbers them anew. The row of an id
//! is remembered beside it with the number of the snapshot that it holds for, so that a request
//! looks ids up once a bundle and not once a request. Bounded in users, in items a user, and in
//! time; the user unseen for longest goes first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache as Moka;
use serde::Deserialize;

use super::Error;
use crate::types::{ItemId, ItemIdx, UserId};

/// Section `[store.live]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Users that are remembered.
    pub users_max: u64,
    /// Items shown that are remembered of a user.
    pub shown_max: usize,
    /// How long an item counts as recently shown, seconds.
    pub shown_ttl_s: u64,
    /// Events that are remembered of a user.
    pub history_max: usize,
    /// A user unseen for this long is forgotten, seconds.
    pub idle_ttl_s: u64,
}

impl Config {
    /// Refuses a state that could hold nothing.
    pub fn check(&self) -> Result<(), Error> {
        for (key, value) in [
            ("store.live.users_max", self.users_max),
            ("store.live.shown_max", self.shown_max as u64),
            ("store.live.shown_ttl_s", self.shown_ttl_s),
            ("store.live.history_max", self.history_max as u64),
            ("store.live.idle_ttl_s", self.idle_ttl_s),
        ] {
            if value == 0 {
                return Err(Error::Zero { key });
            }
        }
        Ok(())
    }
}

/// The live state of all users.
pub struct Live {
    users: Moka<String, Arc<Mutex<State>>>,
    shown_max: usize,
    shown_ttl_ms: i64,
    history_max: usize,
}

#[derive(Default)]
struct State {
    /// Oldest first; an item stands here once, at its last time.
    shown: VecDeque<Seen>,
    /// Oldest first.
    history: VecDeque<Seen>,
    sequence: u64,
}

struct Seen {
    item: Box<str>,
    time_ms: i64,
    /// The snapshot for which `row` was looked up; 0 is none.
    snapshot: u64,
    row: Option<ItemIdx>,
}

impl Live {
    /// An empty state.
    pub fn new(config: &Config) -> Self {
        Self {
            users: Moka::builder()
                .max_capacity(config.users_max)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_idle(Duration::from_secs(config.idle_ttl_s))
                .build(),
            shown_max: config.shown_max,
            shown_ttl_ms: config.shown_ttl_s as i64 * 1000,
            history_max: config.history_max,
        }
    }

    /// Remembers that items were shown to a user.
    pub fn push_shown<'a>(
        &self,
        user: &UserId,
        items: impl IntoIterator<Item = &'a str>,
        time_ms: i64,
    ) {
        let state = self.user(user);
        let shown = &mut lock(&state).shown;
        for item in items {
            shown.retain(|seen| &*seen.item != item);
            insert(shown, Seen::new(item, time_ms), self.shown_max);
        }
    }

    /// Remembers an event of a user, and gives the history a new sequence.
    pub fn push_history(&self, user: &UserId, item: &ItemId, time_ms: i64) {
        let state = self.user(user);
        let state = &mut *lock(&state);
        insert(&mut state.history, Seen::new(&item.0, time_ms), self.history_max);
        state.sequence = fold(state.sequence, &item.0, time_ms);
    }

    /// Names what this user's history holds beyond the bundle: 0 for nothing, else a fingerprint
    /// of the events in their order of arrival. Equal sequences mean equal histories, on every
    /// replica and after a restart, so an embedding cached under one can be told from another.
    pub fn sequence(&self, user: &UserId) -> u64 {
        self.users.get(user.0.as_str()).map_or(0, |state| lock(&state).sequence)
    }

    /// Appends the rows of the items shown to a user within the configured time before `now_ms`,
    /// oldest first. `snapshot` numbers (from 1) the bundle that `row_of` looks ids up in; items
    /// that it does not know are left out.
    pub fn shown(
        &self,
        user: &UserId,
        now_ms: i64,
        snapshot: u64,
        row_of: impl Fn(&str) -> Option<ItemIdx>,
        out: &mut Vec<ItemIdx>,
    ) {
        let Some(state) = self.users.get(user.0.as_str()) else { return };
        let mut state = lock(&state);
        while state.shown.front().is_some_and(|s| s.time_ms + self.shown_ttl_ms <= now_ms) {
            state.shown.pop_front();
        }
        out.extend(state.shown.iter_mut().filter_map(|seen| seen.row(snapshot, &row_of)));
    }

    /// Appends rows and times (epoch ms) of a user's events after `since_ms` (when the bundle's
    /// histories end), oldest first; `snapshot` and `row_of` as for [`Live::shown`].
    pub fn history(
        &self,
        user: &UserId,
        since_ms: i64,
        snapshot: u64,
        row_of: impl Fn(&str) -> Option<ItemIdx>,
        items: &mut Vec<ItemIdx>,
        times_ms: &mut Vec<i64>,
    ) {
        let Some(state) = self.users.get(user.0.as_str()) else { return };
        for seen in lock(&state).history.iter_mut().filter(|seen| seen.time_ms > since_ms) {
            if let Some(row) = seen.row(snapshot, &row_of) {
                items.push(row);
                times_ms.push(seen.time_ms);
            }
        }
    }

    fn user(&self, user: &UserId) -> Arc<Mutex<State>> {
        let id = user.0.as_str();
        self.users.get(id).unwrap_or_else(|| self.users.entry_by_ref(id).or_default().into_value())
    }
}

impl Seen {
    fn new(item: &str, time_ms: i64) -> Self {
        Self { item: item.into(), time_ms, snapshot: 0, row: None }
    }

    fn row(&mut self, snapshot: u64, row_of: &impl Fn(&str) -> Option<ItemIdx>) -> Option<ItemIdx> {
        // An id that the bundle did not know may have come since.
        if self.snapshot != snapshot || self.row.is_none() {
            self.row = row_of(&self.item);
            self.snapshot = snapshot;
        }
        self.row
    }
}

/// Events may arrive late: each goes where its time says, after those of the same time.
fn insert(list: &mut VecDeque<Seen>, seen: Seen, max: usize) {
    let at = list.partition_point(|other| other.time_ms <= seen.time_ms);
    list.insert(at, seen);
    while list.len() > max {
        list.pop_front();
    }
}

/// The next link of the chain; never 0, which means an empty history.
fn fold(sequence: u64, item: &str, time_ms: i64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(&time_ms.to_le_bytes());
    hasher.update(item.as_bytes());
    let hash = hasher.finalize();
    let eight = hash.as_bytes().first_chunk::<8>().expect("a hash of 32 bytes");
    u64::from_le_bytes(*eight).max(1)
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic while the lock was held leaves at worst one event half inserted.
    state.lock().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn live(shown_max: usize, history_max: usize, users_max: u64) -> Live {
        let (shown_ttl_s, idle_ttl_s) = (10, 600);
        Live::new(&Config { users_max, shown_max, shown_ttl_s, history_max, idle_ttl_s })
    }

    fn user(id: &str) -> UserId {
        UserId(id.into())
    }

    fn item(id: &str) -> ItemId {
        ItemId(id.into())
    }

    fn number(id: &str) -> Option<ItemIdx> {
        id.parse().ok().map(ItemIdx)
    }

    fn shown(live: &Live, now_ms: i64) -> Vec<u32> {
        let mut out = Vec::new();
        live.shown(&user("u"), now_ms, 1, number, &mut out);
        out.into_iter().map(|row| row.0).collect()
    }

    #[test]
    fn an_item_is_shown_until_its_time_is_over_or_newer_ones_push_it_out() {
        let live = live(3, 3, 10);
        live.push_shown(&user("u"), ["1", "2"], 1_000);
        live.push_shown(&user("u"), ["1", "unknown"], 5_000);
        assert_eq!(shown(&live, 10_000), [2, 1], "once, at its last time");
        assert_eq!(shown(&live, 11_000), [1], "10 s after it was shown it may come again");
        live.push_shown(&user("u"), ["4", "5", "6"], 12_000);
        assert_eq!(shown(&live, 12_000), [4, 5, 6]);
        assert!(live.sequence(&user("u")) == 0, "what was shown is no history");
    }

    #[test]
    fn history_is_in_order_of_time_and_starts_after_the_bundles() {
        let live = live(3, 3, 10);
        for (id, time_ms) in [("1", 10), ("2", 30), ("3", 20), ("4", 40)] {
            live.push_history(&user("u"), &item(id), time_ms);
        }
        let (mut items, mut times) = (Vec::new(), Vec::new());
        live.history(&user("u"), 20, 1, number, &mut items, &mut times);
        assert_eq!((items, times), (vec![ItemIdx(2), ItemIdx(4)], vec![30, 40]));
    }

    #[test]
    fn the_sequence_names_the_history() {
        let (here, there) = (live(3, 3, 10), live(3, 3, 10));
        assert_eq!(here.sequence(&user("u")), 0);
        for live in [&here, &there] {
            live.push_history(&user("u"), &item("1"), 10);
        }
        let one = here.sequence(&user("u"));
        assert_eq!(one, there.sequence(&user("u")), "equal histories, equal sequences");
        here.push_history(&user("u"), &item("1"), 20);
        there.push_history(&user("u"), &item("2"), 20);
        assert_ne!(one, here.sequence(&user("u")));
        assert_ne!(here.sequence(&user("u")), there.sequence(&user("u")));
    }

    #[test]
    fn an_id_is_looked_up_once_a_snapshot() {
        let live = live(3, 3, 10);
        live.push_shown(&user("u"), ["1"], 1_000);
        let lookups = Cell::new(0);
        for (snapshot, row) in [(1, 7), (1, 7), (2, 9)] {
            let mut out = Vec::new();
            let row_of = |_: &str| {
                lookups.set(lookups.get() + 1);
                Some(ItemIdx(row))
            };
            live.shown(&user("u"), 1_000, snapshot, row_of, &mut out);
            assert_eq!(out, [ItemIdx(row)]);
        }
        assert_eq!(lookups.get(), 2);
    }

    #[test]
    fn the_user_unseen_for_longest_is_forgotten_first() {
        let live = live(3, 3, 2);
        for (at, id) in ["a", "b", "c"].into_iter().enumerate() {
            live.push_history(&user(id), &item("1"), at as i64);
            live.users.run_pending_tasks();
        }
        assert_eq!(live.sequence(&user("a")), 0);
        assert_ne!(live.sequence(&user("c")), 0);
    }
}
