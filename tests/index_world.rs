//! The index on the synthetic world: recall with the filters that a request has.
//!
//! `cargo test --release --test index_world -- --ignored --nocapture` prints recall and time at
//! 100,000 items.

use std::time::Instant;

use shortlist::commands::generate::world::{DIM, REGIONS, Setting, World};
use shortlist::index::audit::{exact_search, recall, scores};
use shortlist::index::{
    Allowed, Bitmap, Codes, Config, Filter, HnswConfig, Index, IvfIndex, Kind, Rerank, Scratch,
};
use shortlist::types::ItemIdx;

const K: usize = 500;

fn world(region_by_topic: bool) -> World {
    World::new(Setting { seed: 42, noise: 0.2, region_by_topic, start_us: 0, days: 0 })
}

/// Stored vectors of `rows`, of items or of users.
fn vectors(world: &World, rows: std::ops::Range<u64>, users: bool) -> Vec<f32> {
    let mut flat = vec![0.0; (rows.end - rows.start) as usize * DIM];
    let mut latent = [0.0; DIM];
    for (row, out) in rows.zip(flat.chunks_exact_mut(DIM)) {
        match users {
            true => world.user_latent(row, &mut latent),
            false => world.item_latent(row, &mut latent),
        }
        world.rotate(&latent, out);
    }
    flat
}

fn build(world: &World, rows: &[f32]) -> IvfIndex {
    let config = Config {
        kind: Kind::Ivf,
        recall_target: 0.95,
        lists: 0,
        codes: Codes::Auto,
        pq_rows_min: 0,
        rerank: Rerank::None,
        sample_rows_per_list: 32,
        iterations: 6,
        calibration_queries_max: 256,
        exact_rows_max: 4096,
        live_rows_max: 0,
        threads: 2,
        seed: 42,
        hnsw: HnswConfig { edges: 16, build_candidates: 100, memory_max_gib: 1.0 },
    };
    let queries = vectors(world, 100_000..100_256, true);
    let since = Instant::now();
    let index = IvfIndex::build(rows, DIM, &queries, &config, &|_, _| ()).unwrap();
    println!(
        "{} x {DIM}: built in {:.1} s, {} lists, at most {} read for the top {K}",
        index.len(),
        since.elapsed().as_secs_f64(),
        index.lists(),
        index.lists_max(K)
    );
    index
}

/// What is sold in `region` and in stock.
fn on_sale(world: &World, items: usize, region: u8) -> Bitmap {
    let allowed = Bitmap::new(items);
    for row in 0..items as u32 {
        let item = world.item(row.into());
        allowed.set(ItemIdx(row), item.in_stock && item.regions >> region & 1 == 1);
    }
    allowed
}

/// A filter over the items, as the index wants it and as exact search does.
struct Sold {
    items: Bitmap,
    allowed: Allowed,
}

/// Recall@500 and microseconds a query over `users`; `sold` gives the filter of each user.
fn measure<'a>(
    index: &IvfIndex,
    rows: &[f32],
    world: &World,
    users: std::ops::Range<u64>,
    sold: impl Fn(u64) -> Option<&'a Sold>,
) -> (f64, f64) {
    let (mut scratch, mut found) = (Scratch::default(), Vec::new());
    let queries = vectors(world, users.clone(), true);
    let (mut recalls, mut us) = (Vec::new(), Vec::new());
    for (user, query) in users.zip(queries.chunks_exact(DIM)) {
        let sold = sold(user);
        let filter = Filter { allowed: sold.map(|sold| &sold.allowed), excluded: &[] };
        let passes = |item| sold.is_none_or(|sold| sold.items.get(item));
        let exact = exact_search(rows, query, K, passes);
        index.search(query, K, &filter, &mut scratch, &mut found);
        let since = Instant::now();
        index.search(query, K, &filter, &mut scratch, &mut found);
        us.push(since.elapsed().as_secs_f64() * 1e6);
        recalls.push(recall(scores(rows, query, &found), &exact));
    }
    us.sort_by(f64::total_cmp);
    (recalls.iter().sum::<f64>() / recalls.len() as f64, us[us.len() / 2])
}

fn recall_under_each_filter(items: u64, users: u64) {
    for by_topic in [false, true] {
        let world = world(by_topic);
        let rows = vectors(&world, 0..items, false);
        let mut index = build(&world, &rows);
        let regions: Vec<Sold> = (0..REGIONS.len() as u8)
            .map(|region| {
                let items = on_sale(&world, items as usize, region);
                Sold { allowed: index.allow(&items), items }
            })
            .collect();
        let share = regions[0].items.count_ones() as f64 / items as f64;
        for target in shortlist::index::RECALL_TARGETS {
            index.set_recall_target(target).unwrap();
            let all = measure(&index, &rows, &world, 0..users, |_| None);
            let own = |user| Some(&regions[world.user(user).region as usize]);
            let own = measure(&index, &rows, &world, 0..users, own);
            println!(
                "target {target} by topic {by_topic}: all items recall {:.4} p50 {:.0} us; \
                 own region ({share:.2} pass) recall {:.4} p50 {:.0} us",
                all.0, all.1, own.0, own.1
            );
            let goal = f64::from(target) - 0.015;
            assert!(all.0 >= goal, "recall {} without a filter for target {target}", all.0);
            assert!(own.0 >= goal, "recall {} in the region for target {target}", own.0);
        }
    }
}

#[test]
fn targets_are_met_on_other_users_with_and_without_filters() {
    recall_under_each_filter(20_000, 200);
}
