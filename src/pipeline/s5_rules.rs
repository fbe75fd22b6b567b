//! s5: business rules over the ranked list. The only stage that drops, and each drop has its
//! reason.
//!
//! In this order: blocked labels never pass; an item appears once; what was shown lately is gone
//! (retrieval has left it out already; a source without filters has not); fresh items rise,
//! `score *= 1 + boost * 2^(-age / half_life)`; the best are taken, at most so many a category.

use serde::Deserialize;

use super::ConfigError;
use super::Context;
use super::answer::Reason;
use super::context::{Drops, Ranked};

/// Section `[rules]`.
#[derive(Debug, Clone, Deserialize)]
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
        Ok(())
    }
}

/// Orders the ranked list by its final score and cuts it to what is shown.
pub fn run(cx: &mut Context) {
    let serving = cx.serving.clone();
    let (items, rules) = (&serving.bundle.items, &serving.settings.rules);
    let blocked = items.label_bits(&rules.blocked_labels);
    let mut ranked = std::mem::take(&mut cx.scratch.ranked);
    let mut drops = Drops::default();
    ranked.retain(|r| keep(items.labels(r.item) & blocked == 0, &mut drops.blocked_label));
    ranked.retain(|r| keep(!cx.inputs.shown.contains(&r.item), &mut drops.recently_shown));
    for r in &mut ranked {
        r.score *= 1.0 + boost(rules, items.age_days(r.item, cx.inputs.time_ms));
    }
    ranked.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.item.cmp(&b.item)));
    take(cx, &mut ranked, &mut drops);
    cx.scratch.ranked = ranked;
    cx.drops = drops;
    if cx.scratch.ranked.len() < cx.inputs.num_items {
        explain(cx);
    }
}

/// Counts what is not kept.
fn keep(pass: bool, dropped: &mut usize) -> bool {
    *dropped += usize::from(!pass);
    pass
}

fn boost(config: &Config, age_days: Option<f64>) -> f32 {
    // An item from the future counts as new; one without a date as old.
    age_days.map_or(0.0, |age| {
        config.freshness_boost * (-age.max(0.0) / config.freshness_half_life_days).exp2() as f32
    })
}

/// Keeps the best `num_items` that are neither duplicates nor over their category's cap.
fn take(cx: &mut Context, ranked: &mut Vec<Ranked>, drops: &mut Drops) {
    let (items, rules) = (&cx.serving.bundle.items, &cx.serving.settings.rules);
    let counts = &mut cx.scratch.categories;
    counts.clear();
    let mut taken = 0;
    for at in 0..ranked.len() {
        if taken == cx.inputs.num_items {
            break;
        }
        let candidate = ranked[at];
        if !keep(!ranked[..taken].iter().any(|r| r.item == candidate.item), &mut drops.duplicate) {
            continue;
        }
        if let Some(category) = items.category_code(candidate.item) {
            let at = counts.iter().position(|&(c, _)| c == category).unwrap_or_else(|| {
                counts.push((category, 0));
                counts.len() - 1
            });
            if !keep(counts[at].1 < rules.max_per_category, &mut drops.category_cap) {
                continue;
            }
            counts[at].1 += 1;
        }
        ranked[taken] = candidate;
        taken += 1;
    }
    ranked.truncate(taken);
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
