//! s5: business rules over the ranked list. The only stage that drops, and each drop has its
//! reason.
//!
//! In this order: blocked labels never pass; an item appears once; what was shown lately is gone
//! (retrieval has left it out already; a source without filters has not); fresh items rise,
//! `score *= 1 + boost * 2^(-age / half_life)`; the best are taken, at most so many a category; of a
//! share of the answers one place is then drawn (`exploration`).

mod exploration;

use serde::{Deserialize, Serialize};

use exploration::Draw;

use super::ConfigError;
use super::Context;
use super::answer::Reason;
use super::context::{Drops, Ranked};
use crate::monitor::Dropped;
use crate::store::items::View;
use crate::types::ItemIdx;

/// Candidates that are put in order first; then as many again, and so on.
const ORDERED_FIRST: usize = 96;

/// Section `[rules]`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// At most so many items of one category.
    pub max_per_category: usize,
    /// Labels that are never shown.
    pub blocked_labels: Vec<String>,
    /// How much a brand-new item's score is raised, as a share of the score.
    pub freshness_boost: f32,
    /// The boost halves every so many days of age.
    pub freshness_half_life_days: f64,
    pub exploration: exploration::Config,
}

impl Config {
    /// Refuses rules that could show nothing or order by nonsense.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.max_per_category == 0 {
            return Err(ConfigError::Zero { key: "rules.max_per_category" });
        }
        let (key, value) = ("rules.freshness_boost", f64::from(self.freshness_boost));
        if !(0.0..=100.0).contains(&value) {
            return Err(ConfigError::Range { key, value, rule: "a share from 0 to 100" });
        }
        let (key, value) = ("rules.freshness_half_life_days", self.freshness_half_life_days);
        if !(value > 0.0 && value.is_finite()) {
            return Err(ConfigError::Range { key, value, rule: "a positive number of days" });
        }
        self.exploration.check()
    }
}

/// Orders the ranked list by its final score and cuts it to what is shown.
pub fn run(cx: &mut Context) {
    let serving = cx.serving.clone();
    let items = serving.bundle.items.view_of(cx.late.clone());
    let rules = &serving.settings.rules;
    let blocked = items.label_bits(&rules.blocked_labels);
    let mut ranked = std::mem::take(&mut cx.scratch.ranked);
    let inputs = cx.inputs.clone();
    let mut drops = Dropping::new(cx);
    ranked.retain(|r| drops.keep(items.labels(r.item) & blocked == 0, r, Dropped::BlockedLabel));
    ranked.retain(|r| drops.keep(!inputs.shown.contains(&r.item), r, Dropped::RecentlyShown));
    for r in &mut ranked {
        r.score *= 1.0 + boost(rules, items.age_days(r.item, inputs.time_ms));
    }
    let places = take(cx, &items, &mut ranked, &mut drops);
    explore(cx, &mut ranked, places);
    cx.scratch.ranked = ranked;
    (cx.drops, cx.scratch.dropped) = drops.end();
    if cx.scratch.ranked.len() < cx.inputs.num_items {
        explain(cx);
    }
}

/// Counts what is dropped, and names it where the request is logged in full.
struct Dropping {
    drops: Drops,
    named: bool,
    names: Vec<(ItemIdx, Dropped)>,
}

impl Dropping {
    fn new(cx: &mut Context) -> Self {
        let names = std::mem::take(&mut cx.scratch.dropped);
        Self { drops: Drops::default(), named: cx.inputs.asked.is_some(), names }
    }

    /// Passes `pass` on, and notes what it says no to.
    fn keep(&mut self, pass: bool, candidate: &Ranked, why: Dropped) -> bool {
        if pass {
            return true;
        }
        let drops = &mut self.drops;
        *match why {
            Dropped::BlockedLabel => &mut drops.blocked_label,
            Dropped::Duplicate => &mut drops.duplicate,
            Dropped::RecentlyShown => &mut drops.recently_shown,
            Dropped::CategoryCap => &mut drops.category_cap,
        } += 1;
        if self.named {
            self.names.push((candidate.item, why));
        }
        false
    }

    fn end(self) -> (Drops, Vec<(ItemIdx, Dropped)>) {
        (self.drops, self.names)
    }
}

/// By what share a fresh item's score is raised.
pub fn boost(config: &Config, age_days: Option<f64>) -> f32 {
    // An item from the future counts as new; one without a date as old.
    age_days.map_or(0.0, |age| {
        config.freshness_boost * (-age.max(0.0) / config.freshness_half_life_days).exp2() as f32
    })
}

/// Puts the best `count` of the candidates from `ordered` on in order behind it; says where the order ends. The
/// rest is not ordered before it is wanted: of 500 candidates, rules that drop few look at the first hundred.
fn order(ranked: &mut [Ranked], ordered: usize, count: usize) -> usize {
    let best = |a: &Ranked, b: &Ranked| b.score.total_cmp(&a.score).then(a.item.cmp(&b.item));
    let rest = &mut ranked[ordered..];
    let count = count.min(rest.len());
    if count < rest.len() {
        rest.select_nth_unstable_by(count, best);
    }
    rest[..count].sort_unstable_by(best);
    ordered + count
}

/// Keeps the best `num_items` that are neither duplicates nor over their category's cap, and after
/// them as many as exploration draws from; says how many are the answer's.
fn take(cx: &mut Context, items: &View, ranked: &mut Vec<Ranked>, drops: &mut Dropping) -> usize {
    let rules = &cx.serving.settings.rules;
    let pool = if explores(cx) { rules.exploration.pool } else { 0 };
    let counts = &mut cx.scratch.categories;
    counts.clear();
    let (mut taken, mut places, mut ordered) = (0, 0, 0);
    for at in 0..ranked.len() {
        if taken == cx.inputs.num_items + pool {
            break;
        }
        if at == ordered {
            ordered = order(ranked, ordered, ORDERED_FIRST.max(ordered));
        }
        let (candidate, answers) = (ranked[at], places < cx.inputs.num_items);
        let first = !ranked[..taken].iter().any(|r| r.item == candidate.item);
        if !(first || answers && drops.keep(false, &candidate, Dropped::Duplicate)) {
            continue;
        }
        if let Some(category) = items.category_code(candidate.item) {
            let at = counts.iter().position(|&(c, _)| c == category).unwrap_or_else(|| {
                counts.push((category, 0));
                counts.len() - 1
            });
            let fits = counts[at].1 < rules.max_per_category;
            if !(fits || answers && drops.keep(false, &candidate, Dropped::CategoryCap)) {
                continue;
            }
            counts[at].1 += usize::from(answers);
        }
        ranked[taken] = candidate;
        taken += 1;
        places += usize::from(answers);
    }
    ranked.truncate(taken);
    places
}

/// Whether this request may be changed, or its chances are to be logged.
fn explores(cx: &Context) -> bool {
    let share = cx.serving.settings.rules.exploration.share;
    share > 0.0
        && (cx.inputs.asked.is_some() || exploration::is_drawn(&cx.inputs.request_id, share))
}

/// Draws a place, perhaps, and cuts the list to the answer.
fn explore(cx: &mut Context, ranked: &mut Vec<Ranked>, places: usize) {
    cx.scratch.propensities.clear();
    if explores(cx) {
        let share = cx.serving.settings.rules.exploration.share;
        let draw = Draw::new(&cx.inputs.request_id, share, places, ranked.len() - places);
        draw.apply(ranked);
        draw.propensities(&mut cx.scratch.propensities);
    }
    ranked.truncate(places);
}

fn explain(cx: &mut Context) {
    let Drops { blocked_label, duplicate, recently_shown, category_cap } = cx.drops;
    let cap = cx.serving.settings.rules.max_per_category;
    let causes = [
        ("blocked_label", blocked_label, "candidates carry a blocked label".to_owned()),
        ("duplicate", duplicate, "candidates were there already".to_owned()),
        ("recently_shown", recently_shown, "candidates were shown lately".to_owned()),
        ("category_cap", category_cap, format!("candidates were over {cap} a category")),
    ];
    for (code, count, text) in causes {
        if count > 0 {
            cx.reasons.push(Reason { code, count, text: format!("{count} {text}") });
        }
    }
}
