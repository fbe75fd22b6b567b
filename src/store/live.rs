//! What this process has itself seen of users: items shown, events taken.
//!
//! The next request of a user reads it, whatever Redis does; with `store.users = "embedded"` it is
//! all there is, and [`super::log`] keeps it over a restart. Items are kept by their external id,
//! because a new bundle numbers them anew. Bounded in users, in items a user, and in time; the user
//! unseen for longest goes first.

use std::sync::Arc;
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache as Moka;
use serde::Deserialize;

use super::Error;
use super::list::ItemList;

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
        super::nonzero(&[
            ("store.live.users_max", self.users_max),
            ("store.live.shown_max", self.shown_max as u64),
            ("store.live.shown_ttl_s", self.shown_ttl_s),
            ("store.live.history_max", self.history_max as u64),
            ("store.live.idle_ttl_s", self.idle_ttl_s),
        ])
    }

    /// How many entries of a list are kept.
    pub fn max(&self, list: List) -> usize {
        match list {
            List::History => self.history_max,
            List::Shown => self.shown_max,
        }
    }
}

/// Which of a user's two lists; the numbers stand in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum List {
    /// What the user did.
    History = 0,
    /// What the user was shown.
    Shown = 1,
}

/// A user's two lists; copies share their bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lists {
    pub history: ItemList,
    pub shown: ItemList,
}

impl Lists {
    /// One of the two.
    pub fn get(&self, list: List) -> &ItemList {
        match list {
            List::History => &self.history,
            List::Shown => &self.shown,
        }
    }

    fn get_mut(&mut self, list: List) -> &mut ItemList {
        match list {
            List::History => &mut self.history,
            List::Shown => &mut self.shown,
        }
    }
}

/// The lists of all users.
pub struct Live {
    users: Moka<String, Lists>,
    config: Config,
}

impl Live {
    /// An empty state.
    pub fn new(config: &Config) -> Self {
        let users = Moka::builder()
            .max_capacity(config.users_max)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(Duration::from_secs(config.idle_ttl_s))
            .build();
        Self { users, config: config.clone() }
    }

    /// Appends a block of entries to a user's list.
    pub fn extend(&self, user: &str, list: List, block: &[u8]) {
        let max = self.config.max(list);
        self.users.entry_by_ref(user).and_upsert_with(|lists| {
            let mut lists = lists.map(|entry| entry.into_value()).unwrap_or_default();
            let extended = lists.get(list).with(block, max);
            *lists.get_mut(list) = extended;
            lists
        });
    }

    /// A user's lists, empty ones of an unknown user.
    pub fn get(&self, user: &str) -> Lists {
        self.users.get(user).unwrap_or_default()
    }

    /// All users with their lists.
    pub fn iter(&self) -> impl Iterator<Item = (Arc<String>, Lists)> {
        self.users.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::super::list::push;
    use super::*;

    fn live(users_max: u64) -> Live {
        let (shown_ttl_s, idle_ttl_s) = (10, 600);
        Live::new(&Config { users_max, shown_max: 2, shown_ttl_s, history_max: 3, idle_ttl_s })
    }

    fn entry(item: &str, time_ms: i64) -> Vec<u8> {
        let mut block = Vec::new();
        push(&mut block, item, time_ms);
        block
    }

    #[test]
    fn each_list_keeps_its_newest() {
        let live = live(10);
        for time_ms in 1..=4 {
            live.extend("u", List::History, &entry("h", time_ms));
            live.extend("u", List::Shown, &entry("s", time_ms));
        }
        let lists = live.get("u");
        let times = |list: &ItemList| list.newest_first().map(|e| e.1).collect::<Vec<_>>();
        assert_eq!((times(&lists.history), times(&lists.shown)), (vec![4, 3, 2], vec![4, 3]));
        assert_eq!(live.get("v"), Lists::default());
    }

    #[test]
    fn the_user_unseen_for_longest_is_forgotten_first() {
        let live = live(2);
        for id in ["a", "b", "c"] {
            live.extend(id, List::History, &entry("1", 1));
            live.users.run_pending_tasks();
        }
        assert!(live.get("a").history.is_empty() && !live.get("c").history.is_empty());
    }
}
