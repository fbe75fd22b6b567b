//! The stages over a small bundle: sources, fallbacks, filters, and what they allocate.

mod explain;
mod replay;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::answer::Timings;
use super::context::{Call, Scratch};
use super::deadline::Deadline;
use super::serving::Remark;
use super::*;
use crate::bundle::sample;
use crate::features::Candidate;
use crate::ffi::allocations;
use crate::monitor::{Fallback, Source};
use crate::types::{DAY_MS, ItemIdx};

const CANDIDATES: usize = 60;
/// Longer than any test: a budget that no deadline leaves.
const NEVER_US: u64 = 3_600_000_000;

fn settings() -> Settings {
    let sections: toml::Table = include_str!("../../config/default.toml").parse().unwrap();
    let section = |name: &str| sections[name].clone();
    let mut settings = Settings {
        pipeline: section("pipeline").try_into().unwrap(),
        rules: section("rules").try_into().unwrap(),
        regions: section("regions").try_into().unwrap(),
    };
    settings.pipeline.candidates = CANDIDATES;
    settings
}

/// Every source gives up to five.
fn all_sources() -> Settings {
    let mut settings = settings();
    let sources = &mut settings.pipeline.sources;
    sources.repeats.quota = 5;
    sources.similar.quota = 5;
    sources.trending.quota = 5;
    sources.popular.quota = 5;
    sources.fresh.quota = 5;
    settings.pipeline.check().unwrap();
    settings
}

struct World {
    serving: Arc<Serving>,
    /// The bundle's files are mapped as long as this lives.
    _dir: tempfile::TempDir,
}

impl World {
    fn new(settings: Settings) -> Self {
        Self::with_labels(settings, true)
    }

    fn with_labels(settings: Settings, labels: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundle = sample::open(dir.path(), labels);
        let serving = Arc::new(Serving::new(1, bundle, Arc::new(settings)).unwrap());
        Self { serving, _dir: dir }
    }

    fn region(&self, name: &str) -> Option<usize> {
        self.serving.bundle.items.regions().iter().position(|region| region == name)
    }

    fn inputs(&self, user: &str, region: Option<usize>) -> Inputs {
        let users = &self.serving.bundle.users;
        let (history, times) = users.find(user).history();
        Inputs {
            request_id: format!("request of {user}"),
            num_items: 20,
            time_ms: sample::AS_OF_MS + DAY_MS,
            user: users.row_of(user),
            region,
            context: vec![],
            history: history.to_vec(),
            history_times_ms: times.to_vec(),
            shown: (0..ITEMS_SHOWN).map(|at| ItemIdx(at * 17 % sample::ITEMS)).collect(),
            candidates: CANDIDATES,
            record: None,
            repeats: None,
            asked: None,
        }
    }

    fn context(&self, inputs: Inputs) -> Context {
        self.context_with(inputs, Box::new(Scratch::new(&self.serving)))
    }

    fn context_with(&self, inputs: Inputs, scratch: Box<Scratch>) -> Context {
        let call = Call {
            serving: self.serving.clone(),
            inputs: Arc::new(inputs),
            deadline: Deadline::after(Duration::from_secs(60)),
            cached: None,
            degraded: Vec::new(),
            timings: Timings::default(),
        };
        Context::new(call, scratch)
    }

    /// Runs all stages for a user in a region.
    fn answer(&self, user: &str, region: Option<usize>) -> (Answer, Context) {
        let mut cx = self.context(self.inputs(user, region));
        let answer = run(&mut cx);
        (answer, cx)
    }

    /// No filter was skipped, nothing is there twice.
    fn check_filters(&self, cx: &Context) {
        let eligible = self.serving.bundle.items.eligible(cx.inputs.region);
        let mut seen = HashSet::new();
        for (candidate, source) in cx.scratch.candidates.iter().zip(&cx.scratch.sources) {
            let item = candidate.item;
            assert!(eligible.get(item), "{item:?} of {source:?} is not sold here");
            assert!(!cx.inputs.shown.contains(&item), "{item:?} of {source:?} was shown");
            assert!(seen.insert(item), "{item:?} of {source:?} is there twice");
        }
        assert_eq!(cx.scratch.candidates.len(), cx.scratch.sources.len());
    }
}

const ITEMS_SHOWN: u32 = 12;

fn count(cx: &Context, source: Source) -> usize {
    cx.scratch.sources.iter().filter(|&&other| other == source).count()
}

#[test]
fn with_all_quotas_zero_there_is_retrieval_alone() {
    let world = World::new(settings());
    let (answer, cx) = world.answer("u0", None);
    world.check_filters(&cx);
    assert_eq!(count(&cx, Source::Ann), CANDIDATES);
    let of_hits = |(rank, hit): (usize, &crate::index::Hit)| Candidate {
        item: hit.item,
        similarity: hit.score,
        retrieval_rank: rank as f32,
        retrieval_score: hit.score,
    };
    let expected: Vec<Candidate> = cx.scratch.hits.iter().enumerate().map(of_hits).collect();
    assert_eq!(cx.scratch.candidates, expected);
    assert!(answer.degraded.is_empty() && answer.items.len() == 20);
}

#[test]
fn every_source_passes_every_filter_and_keeps_to_its_quota() {
    let world = World::new(all_sources());
    let mut found = HashSet::new();
    for region in [None, world.region("north"), world.region("south")] {
        for user in ["u0", "u1", "u2"] {
            let (_, cx) = world.answer(user, region);
            world.check_filters(&cx);
            assert_eq!(cx.scratch.candidates.len(), CANDIDATES, "{user} in {region:?}");
            for &source in &Source::ALL[1..] {
                assert!(count(&cx, source) <= 5, "{source:?}");
            }
            found.extend(cx.scratch.sources.iter().copied());
        }
    }
    assert_eq!(found.len(), Source::ALL.len(), "{found:?}");
}

#[test]
fn what_retrieval_found_too_keeps_its_rank_and_the_rest_has_a_true_similarity() {
    let world = World::new(all_sources());
    let (_, cx) = world.answer("u1", None);
    let items: Vec<ItemIdx> = cx.scratch.candidates.iter().map(|c| c.item).collect();
    let (mut scratch, mut scores) = (crate::index::Scratch::default(), Vec::new());
    world.serving.bundle.index.scores(&cx.scratch.vector, &items, &mut scratch, &mut scores);
    let mut unretrieved = 0;
    for (candidate, score) in cx.scratch.candidates.iter().zip(scores) {
        assert_eq!(candidate.similarity, score);
        match cx.scratch.hits.iter().position(|hit| hit.item == candidate.item) {
            Some(rank) => assert_eq!(candidate.retrieval_rank, rank as f32),
            None => {
                unretrieved += 1;
                assert!(candidate.retrieval_rank.is_nan() && candidate.retrieval_score.is_nan());
            }
        }
    }
    assert!(unretrieved > 5, "{unretrieved}");
    let repeats = cx.scratch.candidates.iter().zip(&cx.scratch.sources);
    for (candidate, _) in repeats.filter(|(_, source)| **source == Source::Repeats) {
        assert!(cx.inputs.history.contains(&candidate.item));
    }
}

#[test]
fn an_item_that_goes_out_of_stock_is_gone_from_every_source() {
    let world = World::new(all_sources());
    let (_, before) = world.answer("u2", None);
    let bundle = &world.serving.bundle;
    for candidate in &before.scratch.candidates {
        bundle.index.set_allowed(bundle.allowed(None), candidate.item, false);
    }
    let (_, after) = world.answer("u2", None);
    let gone: HashSet<_> = before.scratch.candidates.iter().map(|c| c.item).collect();
    assert!(after.scratch.candidates.iter().all(|c| !gone.contains(&c.item)));
    assert!(count(&after, Source::Popular) > 0, "the next ones step forward");
}

#[test]
fn another_request_explores_other_fresh_items_and_the_same_one_the_same() {
    let world = World::new(all_sources());
    let fresh = |request_id: &str| {
        let inputs = Inputs { request_id: request_id.into(), ..world.inputs("u0", None) };
        let mut cx = world.context(inputs);
        run(&mut cx);
        let pairs = cx.scratch.candidates.iter().zip(&cx.scratch.sources);
        let fresh = pairs.filter(|(_, source)| **source == Source::Fresh);
        fresh.map(|(candidate, _)| candidate.item).collect::<Vec<_>>()
    };
    assert_eq!(fresh("a"), fresh("a"));
    assert_ne!(fresh("a"), fresh("b"));
    assert!(fresh("a").iter().all(|item| item.0 <= 30), "older than 30 days");
}

#[test]
fn quotas_shrink_with_the_candidates() {
    let world = World::new(all_sources());
    let inputs = Inputs { candidates: CANDIDATES / 2, ..world.inputs("u0", None) };
    let mut cx = world.context(inputs);
    run(&mut cx);
    assert_eq!(cx.scratch.candidates.len(), CANDIDATES / 2);
    assert!(count(&cx, Source::Ann) >= CANDIDATES / 2 - 10, "{:?}", cx.scratch.sources);
}

/// What stands in for retrieval: popular items of the region that may be shown, in their order.
fn check_popular(world: &World, answer: &Answer, cx: &Context) {
    world.check_filters(cx);
    assert_eq!(answer.degraded, ["popular_items"]);
    assert_eq!(count(cx, Source::Popular), cx.scratch.candidates.len());
    assert!(cx.scratch.hits.is_empty(), "an audit must not see the hits of another request");
    let columns = world.serving.bundle.items.columns();
    let wanted = columns.get("item_stats.positives_28d").unwrap();
    let of = |item: ItemIdx| wanted.value(item.row());
    assert!(cx.scratch.candidates.is_sorted_by(|a, b| of(a.item) >= of(b.item)));
    assert_eq!(answer.items.len(), 20);
    for item in &answer.items {
        let row: u32 = item.item_id[1..].parse().unwrap();
        assert!(!sample::is_labelled(row), "{row} carries a blocked label");
    }
}

fn blocking() -> Settings {
    let mut settings = settings();
    settings.rules.blocked_labels = vec![sample::LABEL.into()];
    // What a boost does to the order is not what is tested.
    settings.rules.freshness_boost = 0.0;
    settings
}

#[test]
fn without_time_for_retrieval_the_popular_items_of_the_region_are_served() {
    let mut settings = blocking();
    settings.pipeline.budgets_us.candidates = NEVER_US;
    let world = World::new(settings);
    let (answer, cx) = world.answer("u0", world.region("north"));
    check_popular(&world, &answer, &cx);
}

#[test]
fn a_retrieval_that_panics_costs_its_candidates_only() {
    let world = World::new(blocking());
    let mut cx = world.context(world.inputs("u0", world.region("south")));
    s1(&mut cx);
    // The index refuses a query of another length by panicking.
    let number = cx.scratch.vector.pop().unwrap();
    s2(&mut cx);
    s3(&mut cx);
    s4(&mut cx);
    s5(&mut cx);
    let answer = s6(&mut cx);
    check_popular(&world, &answer, &cx);
    // The same buffers serve the next request as ever.
    let mut scratch = cx.into_scratch();
    scratch.vector.push(number);
    let mut cx = world.context_with(world.inputs("u0", None), scratch);
    let again = run(&mut cx);
    let (whole, _) = world.answer("u0", None);
    assert_eq!(again.items, whole.items);
    assert!(again.degraded.is_empty());
}

#[test]
fn late_sources_cost_their_candidates_and_late_ranking_the_order() {
    let mut settings = all_sources();
    settings.pipeline.budgets_us.sources = NEVER_US;
    let (answer, cx) = World::new(settings.clone()).answer("u0", None);
    assert_eq!(answer.degraded, ["fewer_sources"]);
    assert_eq!(count(&cx, Source::Ann), CANDIDATES);

    for late in ["features", "ranking"] {
        let mut settings = settings.clone();
        settings.pipeline.sources.fresh.quota = 0;
        settings.rules.freshness_boost = 0.0;
        settings.rules.max_per_category = 20;
        let budgets = &mut settings.pipeline.budgets_us;
        budgets.sources = 0;
        match late {
            "features" => budgets.features = NEVER_US,
            _ => budgets.ranking = NEVER_US,
        }
        let (answer, cx) = World::new(settings).answer("u0", None);
        assert_eq!(cx.degraded, [Fallback::FewerSources, Fallback::RetrievalOrder], "{late}");
        let ids = |hit: &crate::index::Hit| format!("i{:03}", hit.item.0);
        let expected: Vec<String> = cx.scratch.hits[..20].iter().map(ids).collect();
        let found: Vec<String> = answer.items.iter().map(|item| item.item_id.clone()).collect();
        assert_eq!(found, expected, "{late}");
    }
}

#[test]
fn what_a_bundle_lacks_is_remarked_and_turns_the_source_off() {
    let mut settings = all_sources();
    settings.pipeline.sources.popular.column = "item_stats.nothing".into();
    settings.rules.blocked_labels = vec![sample::LABEL.into()];
    let world = World::with_labels(settings, false);
    let remarks = &world.serving.remarks;
    let column = "item_stats.nothing".to_owned();
    assert!(remarks.contains(&Remark::NoPopularity { column: column.clone() }), "{remarks:?}");
    assert!(remarks.contains(&Remark::NoColumn { of: "popular", column }), "{remarks:?}");
    assert!(remarks.contains(&Remark::NoLabels), "{remarks:?}");
    assert!(remarks.contains(&Remark::Unlearnt { feature: "place".into() }), "{remarks:?}");
    let (_, cx) = world.answer("u0", None);
    assert_eq!(count(&cx, Source::Popular), 0);
    assert!(count(&cx, Source::Trending) > 0);
    assert!(World::new(blocking()).serving.remarks.is_empty());
}

#[test]
fn the_stages_before_the_response_allocate_nothing_once_warm() {
    let mut exploring = all_sources();
    exploring.rules.exploration.share = 1.0;
    for settings in [settings(), all_sources(), exploring] {
        let world = World::new(settings);
        let regions = [None, world.region("north"), world.region("south")];
        let asked = ["u0", "u1", "u2", "u3", "nobody"];
        let mut scratch = Box::new(Scratch::new(&world.serving));
        let mut allocated = 0;
        // The first round grows what depends on the requests; the second must find it grown.
        for warm in [false, true] {
            for (user, region) in asked.iter().flat_map(|user| regions.map(|at| (user, at))) {
                let mut inputs = world.inputs(user, region);
                inputs.num_items = 5;
                let mut cx = world.context_with(inputs, scratch);
                let during = allocations::during(|| {
                    s1(&mut cx);
                    let mut ahead = cx.ahead.take().expect("not taken yet");
                    prepare(&cx.serving, &cx.inputs, &mut ahead);
                    cx.ahead = Some(ahead);
                    s2(&mut cx);
                    s3(&mut cx);
                    s4(&mut cx);
                    s5(&mut cx);
                });
                assert!(cx.reasons.is_empty() && cx.degraded.is_empty());
                allocated += if warm { during } else { 0 };
                scratch = cx.into_scratch();
            }
        }
        assert_eq!(allocated, 0);
    }
}

#[test]
fn exploration_changes_a_place_or_swaps_two_and_keeps_the_rules() {
    let mut exploring = settings();
    exploring.rules.exploration.share = 1.0;
    exploring.rules.blocked_labels = vec![sample::LABEL.into()];
    let explored = World::new(exploring.clone());
    exploring.rules.exploration.share = 0.0;
    let settled = World::new(exploring);
    let (mut swapped, mut replaced) = (0, 0);
    for at in 0..60 {
        let [now, before] = [&explored, &settled].map(|world| {
            let mut inputs = world.inputs(["u0", "u1", "u2"][at % 3], None);
            inputs.request_id = format!("request {at}");
            inputs.num_items = 10;
            run(&mut world.context(inputs))
        });
        let ids = |answer: &Answer| -> Vec<String> {
            answer.items.iter().map(|item| item.item_id.clone()).collect()
        };
        let (now_ids, before_ids) = (ids(&now), ids(&before));
        let changed = now_ids.iter().zip(&before_ids).filter(|(a, b)| a != b).count();
        let unique: HashSet<&String> = now_ids.iter().collect();
        assert_eq!((now_ids.len(), unique.len()), (10, 10));
        match changed {
            1 => replaced += 1,
            2 => swapped += 1,
            _ => panic!("{changed} places changed: {before_ids:?}, {now_ids:?}"),
        }
        let items = explored.serving.bundle.items.view();
        let blocked = items.label_bits(&[sample::LABEL.into()]);
        for item in &now.items {
            let row = explored.serving.bundle.items.find(&item.item_id).unwrap();
            assert_eq!(items.labels(row) & blocked, 0, "{} is blocked", item.item_id);
            let same = now.items.iter().filter(|other| other.category == item.category).count();
            let most = explored.serving.settings.rules.max_per_category;
            assert!(item.category.is_none() || same <= most, "{same} of {:?}", item.category);
        }
    }
    assert!(swapped > 5 && replaced > 15, "{swapped} swapped, {replaced} replaced");
}
