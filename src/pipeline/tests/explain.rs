//! Every way in which an item can be lost is named, and what is said of a returned one is true.

use super::*;
use crate::bundle::Change;
use crate::pipeline::explain::{Error, ExactRank, ItemExplained, Outcome, explain};

fn id(item: ItemIdx) -> String {
    format!("i{:03}", item.0)
}

fn one(world: &World, inputs: Inputs, item: &str) -> ItemExplained {
    let mut found = explain(&world.serving, inputs, Some(item)).unwrap().items;
    assert_eq!(found.len(), 1);
    found.remove(0)
}

/// Stage and cause of a loss.
fn lost(item: &ItemExplained) -> (&'static str, &'static str) {
    match &item.outcome {
        Outcome::Lost { stage, cause, text } => {
            assert!(!text.is_empty());
            (stage, cause)
        }
        Outcome::Returned { position } => panic!("{} is at {position}", item.item_id),
    }
}

#[test]
fn a_returned_item_is_explained_by_its_numbers() {
    let world = World::new(settings());
    let (answer, cx) = world.answer("u1", None);
    let explained = explain(&world.serving, world.inputs("u1", None), None).unwrap();
    assert_eq!((explained.answer.items, explained.candidates), (answer.items.clone(), CANDIDATES));
    assert_eq!(explained.items.len(), 20);
    for (at, (item, shown)) in explained.items.iter().zip(&answer.items).enumerate() {
        assert_eq!(
            (&item.item_id, &item.outcome),
            (&shown.item_id, &Outcome::Returned { position: at + 1 })
        );
        let row = cx.scratch.candidates.iter().position(|c| id(c.item) == item.item_id).unwrap();
        assert_eq!(item.retrieval.score, Some(cx.scratch.candidates[row].similarity));
        assert_eq!(item.retrieval.rank, Some(row + 1));
        let Some(ExactRank::At(exact)) = item.retrieval.exact_rank else { panic!("{item:?}") };
        assert!(exact > row, "what was found before it is before it by exact comparison too");
        let ranking = item.ranking.as_ref().unwrap();
        assert_eq!(ranking.raw, cx.scratch.raw[row]);
        let effects: f64 = ranking.features.iter().map(|f| f.contribution.unwrap()).sum();
        assert!((ranking.expected.unwrap() + effects - ranking.raw).abs() < 1e-9);
        let similarity = ranking.features.iter().find(|f| f.name == "similarity").unwrap();
        assert_eq!(similarity.value, cx.scratch.candidates[row].similarity);
        let rules = item.rules.as_ref().unwrap();
        assert_eq!((rules.score, rules.dropped), (shown.score, None));
        let raised = ranking.probability as f32 * (1.0 + rules.freshness);
        assert!((raised - shown.score).abs() < 1e-6, "{raised} and {}", shown.score);
    }
}

#[test]
fn an_item_that_a_filter_keeps_out_says_which() {
    let world = World::new(settings());
    let bundle = &world.serving.bundle;
    let inputs = || world.inputs("u0", world.region("north"));
    // Every fifth item is out of stock, odd ones are not offered in the north, 17 was shown.
    assert_eq!(lost(&one(&world, inputs(), "i010")), ("s2_candidates", "out_of_stock"));
    assert_eq!(lost(&one(&world, inputs(), "i007")), ("s2_candidates", "not_in_region"));
    assert_eq!(lost(&one(&world, inputs(), "i034")), ("s2_candidates", "recently_shown"));
    let change = [Change::Delete { id: "i008".into() }];
    bundle.commit(1, bundle.prepare(&change, 10).unwrap());
    assert_eq!(lost(&one(&world, inputs(), "i008")), ("s2_candidates", "deleted"));
    let unknown = explain(&world.serving, inputs(), Some("nothing"));
    assert!(matches!(unknown, Err(Error::Unknown(id)) if id == "nothing"));
}

#[test]
fn an_item_that_retrieval_does_not_find_has_its_place_in_exact_search() {
    let world = World::new(settings());
    let (_, cx) = world.answer("u1", None);
    let found: HashSet<ItemIdx> = cx.scratch.candidates.iter().map(|c| c.item).collect();
    let eligible = world.serving.bundle.items.eligible(None);
    let beyond = eligible.iter().filter(|i| !found.contains(i) && !cx.inputs.shown.contains(i));
    let mut causes = HashSet::new();
    for item in beyond.take(40) {
        let explained = one(&world, world.inputs("u1", None), &id(item));
        let (stage, cause) = lost(&explained);
        let Some(ExactRank::At(rank)) = explained.retrieval.exact_rank else { panic!() };
        assert_eq!((stage, cause == "beyond_candidates"), ("s2_candidates", rank > CANDIDATES));
        assert!(explained.ranking.is_none() && explained.rules.is_none());
        causes.insert(cause);
    }
    assert!(causes.contains("beyond_candidates"), "{causes:?}");

    // Other sources take the places of the last ones that retrieval found.
    let world = World::new(all_sources());
    let (_, cx) = world.answer("u1", None);
    let candidates: HashSet<ItemIdx> = cx.scratch.candidates.iter().map(|c| c.item).collect();
    let pushed = cx.scratch.hits.iter().find(|hit| !candidates.contains(&hit.item)).unwrap();
    let explained = one(&world, world.inputs("u1", None), &id(pushed.item));
    assert_eq!(lost(&explained), ("s2_candidates", "missed_by_search"));
}

#[test]
fn without_retrieval_an_item_that_is_not_popular_is_lost_to_that() {
    let mut settings = settings();
    settings.pipeline.budgets_us.candidates = NEVER_US;
    settings.pipeline.sources.list_rows_max = 30;
    let world = World::new(settings);
    let (_, cx) = world.answer("u0", None);
    let popular: HashSet<ItemIdx> = cx.scratch.candidates.iter().map(|c| c.item).collect();
    let eligible = world.serving.bundle.items.eligible(None);
    let other = eligible.iter().find(|i| !popular.contains(i) && !cx.inputs.shown.contains(i));
    let explained = one(&world, world.inputs("u0", None), &id(other.unwrap()));
    assert_eq!(lost(&explained), ("s2_candidates", "retrieval_failed"));
    let shown = one(&world, world.inputs("u0", None), &id(cx.scratch.ranked[2].item));
    assert_eq!(shown.outcome, Outcome::Returned { position: 3 });
    assert!(shown.ranking.is_none(), "nothing was ranked");
}

#[test]
fn a_candidate_that_is_not_shown_was_dropped_by_a_rule_or_below_the_cut() {
    let mut settings = blocking();
    settings.rules.max_per_category = 1;
    let world = World::new(settings);
    let few = || Inputs { num_items: 8, ..world.inputs("u1", None) };
    let mut cx = world.context(Inputs { asked: Some(Box::default()), ..few() });
    run(&mut cx);
    let mut seen = HashSet::new();
    for candidate in &cx.scratch.candidates {
        let explained = one(&world, few(), &id(candidate.item));
        let dropped = cx.scratch.dropped.iter().find(|(item, _)| *item == candidate.item);
        let shown = cx.scratch.ranked.iter().position(|r| r.item == candidate.item);
        let rules = explained.rules.as_ref().unwrap();
        match (shown, dropped) {
            (Some(at), _) => {
                assert_eq!(explained.outcome, Outcome::Returned { position: at + 1 });
            }
            (None, Some((_, why))) => {
                assert_eq!(lost(&explained), ("s5_rules", why.name()));
                assert_eq!(rules.dropped, Some(*why));
                seen.insert(why.name());
            }
            (None, None) => {
                assert_eq!(lost(&explained), ("s4_ranking", "below_cut"));
                assert!(rules.position > 8 && explained.ranking.is_some());
                seen.insert("below_cut");
            }
        }
    }
    assert_eq!(seen, HashSet::from(["blocked_label", "category_cap", "below_cut"]));
}
