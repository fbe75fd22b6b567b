//! One search of the index: criterion over sizes, codes, recall targets and filters.
//!
//! `cargo bench --bench index` builds indexes of the synthetic set (`shortlist generate`'s law) in
//! memory; `SHORTLIST_BENCH_ITEMS` sets the number of items. The comparison with other libraries is
//! `make bench-index` (`bench/peers/index.py`).

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use shortlist::commands::generate::world::{DIM, Setting, World};
use shortlist::config::Config;
use shortlist::index::{Allowed, Bitmap, Codes, Filter, Index, IvfIndex, RECALL_TARGETS, Scratch};
use shortlist::kernels::{int8, pq};
use shortlist::types::ItemIdx;

const K: usize = 500;
const QUERIES: u64 = 256;

/// Stored vectors of items or of users.
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

/// A set that lets one item in `one_in` pass.
fn one_in(index: &dyn Index, one_in: u32) -> Allowed {
    let mut random = Pcg64Mcg::seed_from_u64(5);
    let set = Bitmap::new(index.len());
    for item in 0..index.len() as u32 {
        set.set(ItemIdx(item), random.random_ratio(1, one_in));
    }
    index.allow(&set)
}

fn searches(criterion: &mut Criterion) {
    let items = std::env::var("SHORTLIST_BENCH_ITEMS").ok();
    let items: u64 = items.map_or(200_000, |items| items.parse().expect("a number of items"));
    let world =
        World::new(Setting { seed: 42, noise: 0.2, region_by_topic: false, start_us: 0, days: 0 });
    let rows = vectors(&world, 0..items, false);
    let calibration = vectors(&world, 10_000..10_000 + QUERIES, true);
    let queries = vectors(&world, 0..QUERIES, true);
    let defaults = Config::load(None).expect("the defaults are a configuration").index;
    let mut group = criterion.benchmark_group(format!("search/{items}"));
    for codes in [Codes::Compact, Codes::Pq] {
        let config = shortlist::index::Config { codes, ..defaults.clone() };
        let mut index = IvfIndex::build(&rows, DIM, &calibration, &config, &|_, _| ())
            .expect("an index of the synthetic set");
        for target in RECALL_TARGETS {
            index.set_recall_target(target).expect("a calibrated target");
            let id = BenchmarkId::new(format!("{codes:?}"), target);
            group.bench_function(id, |bencher| search(bencher, &index, &queries, None));
        }
        index.set_recall_target(0.95).expect("a calibrated target");
        for rarity in [2, 10, 100] {
            let allowed = one_in(&index, rarity);
            let id = BenchmarkId::new(format!("{codes:?}"), format!("1 in {rarity} passes"));
            group.bench_function(id, |bencher| search(bencher, &index, &queries, Some(&allowed)));
        }
    }
    group.finish();
}

/// One search after the other, each of the next query.
fn search(
    bencher: &mut criterion::Bencher,
    index: &IvfIndex,
    queries: &[f32],
    allowed: Option<&Allowed>,
) {
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    let filter = Filter { allowed, excluded: &[] };
    let mut next = queries.chunks_exact(DIM).cycle();
    bencher.iter(|| {
        let query = next.next().expect("a cycle does not end");
        index.search(query, K, &filter, &mut scratch, &mut out);
        black_box(out.len())
    });
}

/// The two kernels that a search spends its time in, over rows in cache.
fn kernels(criterion: &mut Criterion) {
    let rows: Vec<i8> = (0..1024 * DIM).map(|i| (i * 31 % 255) as i8).collect();
    let mut dots = vec![0; 1024];
    criterion.bench_function("int8::dots/1024x128", |bencher| {
        bencher.iter(|| int8::dots(black_box(&rows[..DIM]), &rows, &mut dots));
    });
    let table: Vec<u8> = (0..DIM / 2 * pq::ENTRIES).map(|i| (i * 7 % 200) as u8).collect();
    let codes = vec![0x35; 1024 / pq::BLOCK_ROWS * pq::block_bytes(DIM / 2)];
    let mut sums = vec![0; 1024];
    criterion.bench_function("pq::sums/1024x64", |bencher| {
        bencher.iter(|| pq::sums(black_box(&table), &codes, 1, &mut sums));
    });
}

fn main() {
    let mut criterion = Criterion::default().sample_size(30).configure_from_args();
    kernels(&mut criterion);
    searches(&mut criterion);
    criterion.final_summary();
}
