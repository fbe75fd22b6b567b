//! Recall of a scorer over all items, by user: hits among the first k over `min(k, relevant)`.

use std::collections::HashSet;

use super::as_of::{AsOf, history};
use super::load::Loaded;
use crate::bundle::{EncodeScratch, TowerUser};
use crate::kernels;
use crate::towers::Towers;
use crate::types::ItemIdx;

/// Which items count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything that the user took in the window.
    All,
    /// What the user had not taken before it; what was taken before cannot be recommended either.
    NewToUser,
    /// What nobody had taken before it, among such items alone: what content says of new items.
    Unseen,
}

/// Users with a positive in the window, at most `users_max`, evenly spread.
pub fn users_with(loaded: &Loaded, window_ms: [i64; 2], users_max: usize) -> Vec<u32> {
    let has = |&user: &u32| {
        let span = loaded.data.user(user);
        let from = span.partition_point(|e| e.time_ms < window_ms[0]);
        span[from..].iter().any(|e| e.positive && e.timed && e.time_ms < window_ms[1])
    };
    let all: Vec<u32> = (0..loaded.data.users.len() as u32).filter(has).collect();
    let step = all.len().div_ceil(users_max.max(1)).max(1);
    all.into_iter().step_by(step).collect()
}

/// Recall at each of `ks` by user; `None` where nothing is relevant. `score` writes one score an
/// item; an item of score `-inf` is never recommended.
pub fn measure(
    loaded: &Loaded,
    window_ms: [i64; 2],
    users: &[u32],
    scope: Scope,
    ks: &[usize],
    mut score: impl FnMut(u32, &mut [f32]),
) -> Vec<Vec<Option<f64>>> {
    let n = loaded.item_ids.len();
    let k_max = ks.iter().copied().max().unwrap_or(0).min(n);
    let seen: Vec<bool> = match scope {
        Scope::Unseen => {
            let before = popularity(loaded, [i64::MIN, window_ms[0]]);
            before.into_iter().map(|count| count > 0.0).collect()
        }
        _ => Vec::new(),
    };
    let mut scores = vec![0.0f32; n];
    let mut order: Vec<u32> = Vec::with_capacity(n);
    users
        .iter()
        .map(|&user| {
            let before: HashSet<u32> = loaded
                .data
                .before(user, window_ms[0])
                .iter()
                .filter(|e| e.positive)
                .map(|e| e.item)
                .collect();
            let span = loaded.data.before(user, window_ms[1]);
            let from = span.partition_point(|e| e.time_ms < window_ms[0]);
            let mut relevant: HashSet<u32> =
                span[from..].iter().filter(|e| e.positive && e.timed).map(|e| e.item).collect();
            match scope {
                Scope::All => {}
                Scope::NewToUser => relevant.retain(|item| !before.contains(item)),
                Scope::Unseen => relevant.retain(|&item| !seen[item as usize]),
            }
            if relevant.is_empty() {
                return vec![None; ks.len()];
            }
            score(user, &mut scores);
            if scope == Scope::NewToUser {
                before.iter().for_each(|&item| scores[item as usize] = f32::NEG_INFINITY);
            }
            let known = scores.iter_mut().zip(&seen).filter(|(_, seen)| **seen);
            known.for_each(|(score, _)| *score = f32::NEG_INFINITY);
            top(&scores, k_max, &mut order);
            let hit_at = |k: usize| {
                let hits = order.iter().take(k).filter(|item| relevant.contains(item)).count();
                Some(hits as f64 / k.min(relevant.len()) as f64)
            };
            ks.iter().map(|&k| hit_at(k)).collect()
        })
        .collect()
}

/// The `k` items of the highest finite scores, best first, ties by item.
fn top(scores: &[f32], k: usize, out: &mut Vec<u32>) {
    let better =
        |&a: &u32, &b: &u32| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b));
    out.clear();
    out.extend((0..scores.len() as u32).filter(|&i| scores[i as usize] > f32::NEG_INFINITY));
    if k < out.len() && k > 0 {
        out.select_nth_unstable_by(k - 1, better);
        out.truncate(k);
    }
    out.sort_unstable_by(better);
}

/// Scores items by the towers.
pub struct TowerQuery<'a> {
    loaded: &'a Loaded,
    as_of: &'a AsOf,
    towers: &'a Towers,
    tower_user: &'a TowerUser,
    scratch: EncodeScratch,
    vector: Vec<f32>,
}

impl<'a> TowerQuery<'a> {
    /// Users and their numbers as of `as_of`; histories end before it.
    pub fn new(
        loaded: &'a Loaded,
        as_of: &'a AsOf,
        towers: &'a Towers,
        tower_user: &'a TowerUser,
    ) -> Self {
        let (scratch, vector) = (EncodeScratch::new(towers), vec![0.0; towers.dim()]);
        Self { loaded, as_of, towers, tower_user, scratch, vector }
    }

    /// Inner products of the user's vector with all `items x dim` vectors.
    pub fn scores(&mut self, user: u32, vectors: &[f32], out: &mut [f32]) {
        let past: Vec<ItemIdx> =
            history(self.loaded, user, self.as_of.time_ms).into_iter().map(|(i, _)| i).collect();
        let row = self.as_of.users.row(user);
        self.tower_user.encode(self.towers, row, &past, &mut self.scratch, &mut self.vector);
        for (score, vector) in out.iter_mut().zip(vectors.chunks_exact(self.vector.len())) {
            *score = kernels::dot(&self.vector, vector);
        }
    }
}

/// Positives of each item in a window: the popularity baseline.
pub fn popularity(loaded: &Loaded, window_ms: [i64; 2]) -> Vec<f32> {
    let mut counts = vec![0.0; loaded.item_ids.len()];
    let inside = |t: i64| window_ms[0] <= t && t < window_ms[1];
    for event in loaded.data.events.iter().filter(|e| e.positive && inside(e.time_ms)) {
        counts[event.item as usize] += 1.0;
    }
    counts
}

/// How often a user took each item before a moment: the repeats baseline. Items never taken are
/// not recommended.
pub fn repeats(loaded: &Loaded, user: u32, time_ms: i64, out: &mut [f32]) {
    out.fill(f32::NEG_INFINITY);
    for event in loaded.data.before(user, time_ms).iter().filter(|e| e.positive) {
        let count = &mut out[event.item as usize];
        *count = count.max(0.0) + 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_ties_go_by_item() {
        let mut out = Vec::new();
        top(&[1.0, 3.0, f32::NEG_INFINITY, 3.0, 2.0], 3, &mut out);
        assert_eq!(out, [1, 3, 4]);
        top(&[1.0, f32::NEG_INFINITY], 5, &mut out);
        assert_eq!(out, [0]);
        top(&[], 5, &mut out);
        assert!(out.is_empty());
    }
}
