//! What users would have been shown: the whole path of a request, sources, ranking and rules included,
//! asked once for each user at the beginning of the test, by the code that serves.
//!
//! Beside how much of what the user then took is among the answer, it says what the answers are as a
//! whole: how much of the catalogue anybody sees (coverage), how seldom the shown items were taken before
//! (novelty, as self-information; Vargas and Castells 2011), and how unlike one another the items of an
//! answer are (intra-list distance; Ziegler et al. 2005). Must not know how models are made.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;

use super::super::as_of::history;
use super::super::load::Loaded;
use super::super::metrics::{self, Bootstrap, Estimate};
use crate::kernels;
use crate::pipeline::{
    self, AskedArms, Call, Context, Deadline, Request, Scratch, Serving, Settings, Timings,
};
use crate::store::UserState;
use crate::types::{ItemIdx, UserId};

/// Items of an answer.
const SHOWN: usize = 20;
/// Longer than any request takes: nothing is left out for time.
const UNHURRIED: Duration = Duration::from_secs(600);
/// Requests are asked at noon.
const NOON_MS: i64 = 12 * 3_600_000;

/// Whose answers are judged, and by what.
pub struct Question<'a> {
    pub loaded: &'a Loaded,
    /// The test days.
    pub window_ms: [i64; 2],
    /// Users with a success in them.
    pub users: &'a [u32],
    /// `items x dim`, by which unlikeness is judged, whoever answers.
    pub vectors: &'a [f32],
    /// The popularity that a baseline shows to everybody, by item.
    pub popular: &'a [f32],
    pub bootstrap: Bootstrap,
}

/// What a system showed each user, by row of the item table.
pub struct Shown(Vec<Vec<u32>>);

/// Figures of some systems, and what ours have over the others.
#[derive(Default)]
pub struct Figures {
    pub figures: BTreeMap<String, Estimate>,
    pub differences: BTreeMap<String, Estimate>,
}

impl Question<'_> {
    /// The answers of a bundle. Every user's past is the same for every bundle.
    pub fn ask(&self, serving: &Arc<Serving>) -> Shown {
        let ask = |scratch: &mut Option<Box<Scratch>>, &user: &u32| {
            let free = scratch.take().unwrap_or_else(|| Box::new(Scratch::new(serving)));
            let mut cx = Context::new(self.call(serving, user), free);
            let answer = pipeline::run(&mut cx);
            *scratch = Some(cx.into_scratch());
            let row = |item: &pipeline::AnswerItem| self.loaded.item_ids.find(&item.item_id);
            answer.items.iter().filter_map(row).collect()
        };
        Shown(self.users.par_iter().map_init(|| None, ask).collect())
    }

    fn call(&self, serving: &Arc<Serving>, user: u32) -> Call {
        let request = Request {
            request_id: format!("evaluation-{user}"),
            user_id: UserId(self.loaded.data.users[user as usize].clone()),
            num_items: SHOWN,
            device: None,
            region: None,
            location: None,
            context: Vec::new(),
            history: None,
            time_ms: self.window_ms[0] + NOON_MS,
            arms: AskedArms::default(),
        };
        let candidates = serving.settings.pipeline.candidates;
        let row = serving.bundle.users.row_of(&request.user_id.0);
        let (mut inputs, _) =
            pipeline::inputs(serving, row, &UserState::default(), &request, candidates);
        let known = |(item, time): (ItemIdx, i64)| {
            let id = &self.loaded.data.items[item.row()];
            Some((serving.bundle.items.find(id)?, time))
        };
        let past = history(self.loaded, user, self.window_ms[0]);
        (inputs.history, inputs.history_times_ms) = past.into_iter().filter_map(known).unzip();
        Call {
            serving: serving.clone(),
            inputs: Arc::new(inputs),
            deadline: Deadline::after(UNHURRIED),
            cached: None,
            degraded: Vec::new(),
            timings: Timings::default(),
        }
    }

    /// The most popular items for everybody.
    pub fn popular(&self) -> Shown {
        let mut order: Vec<u32> = (0..self.popular.len() as u32).collect();
        let count = |item: u32| self.popular[item as usize];
        order.sort_by(|&a, &b| count(b).total_cmp(&count(a)).then(a.cmp(&b)));
        order.truncate(SHOWN);
        Shown(vec![order; self.users.len()])
    }

    /// What each user took most often, then what is popular.
    pub fn repeats(&self) -> Shown {
        let popular = self.popular();
        let of = |(&user, popular): (&u32, &Vec<u32>)| {
            let mut counts: BTreeMap<u32, (u32, i64)> = BTreeMap::new();
            for event in self.loaded.data.before(user, self.window_ms[0]) {
                if event.positive {
                    let count = counts.entry(event.item).or_default();
                    *count = (count.0 + 1, event.time_ms);
                }
            }
            let mut own: Vec<_> = counts.into_iter().collect();
            own.sort_by_key(|&(item, (count, last))| std::cmp::Reverse((count, last, item)));
            let mut shown: Vec<u32> = own.into_iter().map(|(item, _)| item).take(SHOWN).collect();
            let more: Vec<u32> =
                popular.iter().copied().filter(|item| !shown.contains(item)).collect();
            shown.extend(more.into_iter().take(SHOWN - shown.len()));
            shown
        };
        Shown(self.users.iter().zip(&popular.0).map(of).collect())
    }

    /// The figures of all systems; each of the first `ours` is compared with those after it.
    pub fn judge(&self, systems: &[(&str, Shown)], ours: usize) -> Figures {
        let mut found = Figures::default();
        let taken: Vec<HashSet<u32>> = self.users.iter().map(|&user| self.taken(user)).collect();
        let new: Vec<bool> = self
            .users
            .iter()
            .map(|&user| {
                self.loaded.data.before(user, self.window_ms[0]).iter().all(|e| !e.positive)
            })
            .collect();
        let recall = |shown: &Shown, of: &dyn Fn(usize) -> bool| {
            let by_user = shown.0.iter().zip(&taken).enumerate().map(|(at, (shown, taken))| {
                if of(at) { metrics::recall_at(shown, taken, SHOWN) } else { None }
            });
            metrics::by_group(by_user)
        };
        let everybody = |_: usize| true;
        let newcomers = |at: usize| new[at];
        let recalls: Vec<_> = systems.iter().map(|(_, shown)| recall(shown, &everybody)).collect();
        for (at, (name, shown)) in systems.iter().enumerate() {
            let figures = [
                ("recall@20", metrics::estimate(&recalls[at], self.bootstrap)),
                (
                    "recall@20 of new users",
                    metrics::estimate(&recall(shown, &newcomers), self.bootstrap),
                ),
                ("coverage", self.coverage(shown)),
                ("novelty", self.mean(shown, |items| self.novelty(items))),
                ("distance", self.mean(shown, |items| self.distance(items))),
                ("share of new items", self.mean(shown, |items| self.unseen(items))),
            ];
            for (figure, value) in figures {
                if let Some(value) = value {
                    found.figures.insert(format!("{name}/{figure}"), value);
                }
            }
            for (ours, (better, _)) in systems[..at.min(ours)].iter().enumerate() {
                let pair = (&recalls[ours], &recalls[at]);
                if let Some(gain) = metrics::paired_difference(pair.0, pair.1, self.bootstrap) {
                    found.differences.insert(format!("{better} - {name}/recall@20"), gain);
                }
            }
        }
        found
    }

    /// What a user took in the test.
    fn taken(&self, user: u32) -> HashSet<u32> {
        let span = self.loaded.data.before(user, self.window_ms[1]);
        let from = span.partition_point(|e| e.time_ms < self.window_ms[0]);
        span[from..].iter().filter(|e| e.positive && e.timed).map(|e| e.item).collect()
    }

    /// Share of the catalogue that half of the users, drawn at random, are shown together. (Users drawn
    /// with replacement see less than the same number of different ones, so a bootstrap would lie.)
    fn coverage(&self, shown: &Shown) -> Option<Estimate> {
        let mut users: Vec<&Vec<u32>> = shown.0.iter().collect();
        let (items, half) = (self.loaded.item_ids.len(), users.len().div_ceil(2));
        let mut seen_in = vec![0usize; items];
        let mut random = Pcg64Mcg::seed_from_u64(self.bootstrap.seed);
        let share = |turn: usize| {
            let (drawn, _) = users.partial_shuffle(&mut random, half);
            let mut distinct = 0;
            for &item in drawn.iter().copied().flatten() {
                distinct += usize::from(seen_in[item as usize] != turn);
                seen_in[item as usize] = turn;
            }
            distinct as f64 / items as f64
        };
        let mut shares: Vec<f64> = (1..=self.bootstrap.resamples).map(share).collect();
        shares.sort_unstable_by(f64::total_cmp);
        let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
        let [lo, hi] = [0.025, 0.975].map(|at| metrics::percentile(&shares, at));
        (half > 0).then_some(Estimate { mean, lo, hi })
    }

    fn mean(&self, shown: &Shown, of: impl Fn(&[u32]) -> Option<f64>) -> Option<Estimate> {
        let values = metrics::by_group(shown.0.iter().map(|items| of(items)));
        metrics::estimate(&values, self.bootstrap)
    }

    /// Mean of `-log2` of the share of lately taken items that each one was, with one taken at least.
    fn novelty(&self, items: &[u32]) -> Option<f64> {
        let total: f64 = self.popular.iter().map(|count| f64::from(*count)).sum();
        let bits = |item: &u32| {
            -(f64::from(self.popular[*item as usize].max(1.0)) / total.max(1.0)).log2()
        };
        (!items.is_empty()).then(|| items.iter().map(bits).sum::<f64>() / items.len() as f64)
    }

    /// Mean distance of the pairs, 1 less their cosine.
    fn distance(&self, items: &[u32]) -> Option<f64> {
        let dim = self.vectors.len() / self.loaded.item_ids.len().max(1);
        let vector = |item: u32| &self.vectors[item as usize * dim..][..dim];
        let (mut sum, mut pairs) = (0.0, 0.0);
        for (at, &a) in items.iter().enumerate() {
            for &b in &items[at + 1..] {
                sum += 1.0 - f64::from(kernels::dot(vector(a), vector(b)));
                pairs += 1.0;
            }
        }
        (pairs > 0.0).then(|| sum / pairs)
    }

    /// Share of the items that nobody had taken lately.
    fn unseen(&self, items: &[u32]) -> Option<f64> {
        let unseen = items.iter().filter(|item| self.popular[**item as usize] == 0.0).count();
        (!items.is_empty()).then(|| unseen as f64 / items.len() as f64)
    }
}

/// A bundle as the evaluation asks it: as configured, but nothing is left to chance.
///
/// # Errors
/// When the ranker cannot be evaluated as configured.
pub fn serving(bundle: crate::bundle::Bundle, settings: &Settings) -> Result<Arc<Serving>> {
    let mut settings = settings.clone();
    settings.rules.exploration.share = 0.0;
    Ok(Arc::new(Serving::new(1, bundle, Arc::new(settings))?))
}

/// The same bundle without business rules: what sources and ranking alone would show.
pub fn ranked(serving: &Serving) -> Arc<Serving> {
    let mut settings = Settings::clone(&serving.settings);
    settings.rules.max_per_category = SHOWN;
    settings.rules.blocked_labels.clear();
    settings.rules.freshness_boost = 0.0;
    Arc::new(serving.under(Arc::new(settings)))
}
