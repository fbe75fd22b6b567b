use std::cell::Cell;
use std::path::Path;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::*;
use crate::index::{Bitmap, Config, Error, exact_search};
use crate::sections::Sections;

fn config() -> Config {
    Config {
        recall_target: 0.95,
        lists: 0,
        sample_rows_per_list: 32,
        iterations: 4,
        calibration_queries_max: 64,
        exact_rows_max: 0,
        threads: 2,
        seed: 42,
    }
}

/// Unit rows around `places` places; `copies` of them are the row before.
fn vectors(n: usize, dim: usize, places: usize, copies: bool, seed: u64) -> Vec<f32> {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let centres: Vec<f32> = (0..places * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
    let mut rows: Vec<f32> = Vec::with_capacity(n * dim);
    for row in 0..n {
        if copies && row > 0 && rng.random_bool(0.5) {
            rows.extend_from_within((row - 1) * dim..row * dim);
            continue;
        }
        let centre = rng.random_range(0..places) * dim;
        let place = &centres[centre..centre + dim];
        rows.extend(place.iter().map(|x| x + rng.random_range(-0.6f32..0.6)));
        assert!(kernels::normalise(&mut rows[row * dim..]) > 0.0);
    }
    rows
}

fn build(rows: &[f32], dim: usize) -> IvfIndex {
    IvfIndex::build(rows, dim, &[], &config(), &|_, _| ()).unwrap()
}

#[derive(Debug)]
struct Case {
    index: IvfIndex,
    query: Vec<f32>,
    allowed: Option<Bitmap>,
    excluded: Vec<ItemIdx>,
}

impl Case {
    fn filter(&self) -> Filter<'_> {
        Filter { allowed: self.allowed.as_ref(), excluded: &self.excluded }
    }

    fn passes(&self, item: ItemIdx) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.get(item))
            && !self.excluded.contains(&item)
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let pass_rate = prop_oneof![Just(None), (0.0f64..1.0).prop_map(Some), Just(Some(0.01))];
    (0usize..400, 1usize..20, any::<bool>(), any::<u64>(), pass_rate, 0usize..30, 0usize..60)
        .prop_map(|(n, dim, copies, seed, pass_rate, excluded, exact_rows_max)| {
            let mut rng = Pcg64Mcg::seed_from_u64(seed);
            let rows = vectors(n, dim, 7, copies, seed);
            let config = Config { exact_rows_max, ..config() };
            let allowed = pass_rate.map(|rate| {
                let mut allowed = Bitmap::new(n);
                (0..n as u32).for_each(|item| allowed.set(ItemIdx(item), rng.random_bool(rate)));
                allowed
            });
            // Some of the excluded items do not exist: the bundle they were shown from is gone.
            let excluded = (0..excluded).map(|_| ItemIdx(rng.random_range(0..500))).collect();
            Case {
                index: IvfIndex::build(&rows, dim, &[], &config, &|_, _| ()).unwrap(),
                query: vectors(1, dim, 1, false, seed + 1),
                allowed,
                excluded,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn finds_k_passing_items_in_order_and_all_when_all_are_asked(case in cases(), k in 0usize..450) {
        let (n, filter) = (case.index.len(), case.filter());
        let (mut scratch, mut found, mut exact) = (Scratch::default(), Vec::new(), Vec::new());
        exact_search(&case.index, &case.query, k, &filter, &mut scratch, &mut exact);
        case.index.search(&case.query, k, &filter, &mut scratch, &mut found);

        let mut naive: Vec<Hit> = (0..n as u32)
            .map(ItemIdx)
            .filter(|&item| case.passes(item))
            .map(|item| Hit { item, score: kernels::dot(&case.query, case.index.vector(item)) })
            .collect();
        naive.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.item.cmp(&b.item)));
        let passing = naive.len();
        naive.truncate(k);
        prop_assert_eq!(&exact, &naive);

        prop_assert_eq!(found.len(), k.min(passing));
        for pair in found.windows(2) {
            let better = pair[0].score > pair[1].score;
            prop_assert!(better || (pair[0].score == pair[1].score && pair[0].item < pair[1].item));
        }
        for hit in &found {
            prop_assert!(case.passes(hit.item), "{:?} does not pass the filter", hit);
            prop_assert_eq!(hit.score, kernels::dot(&case.query, case.index.vector(hit.item)));
        }
        if k >= passing {
            prop_assert_eq!(&found, &exact);
        }
    }
}

/// Mean share of the true top `k` found, over `queries`.
fn recall(index: &IvfIndex, queries: &[f32], k: usize, allowed: Option<&Bitmap>) -> f64 {
    let filter = Filter { allowed, excluded: &[] };
    let (mut scratch, mut found, mut exact) = (Scratch::default(), Vec::new(), Vec::new());
    let (mut hits, mut of) = (0, 0);
    for query in queries.chunks_exact(index.dim()) {
        exact_search(index, query, k, &filter, &mut scratch, &mut exact);
        index.search(query, k, &filter, &mut scratch, &mut found);
        let found: std::collections::HashSet<ItemIdx> = found.iter().map(|hit| hit.item).collect();
        hits += exact.iter().filter(|hit| found.contains(&hit.item)).count();
        of += exact.len();
    }
    hits as f64 / of as f64
}

#[test]
fn recall_reaches_each_target_on_other_queries_with_and_without_filters() {
    let (n, dim) = (20_000, 24);
    let all = vectors(n + 400, dim, 60, false, 3);
    let (rows, queries) = all.split_at(n * dim);
    let (calibration, other) = queries.split_at(200 * dim);
    let config = Config { calibration_queries_max: 200, ..config() };
    let mut index = IvfIndex::build(rows, dim, calibration, &config, &|_, _| ()).unwrap();
    let mut tenth = Bitmap::new(n);
    let mut rng = Pcg64Mcg::seed_from_u64(8);
    (0..n as u32).for_each(|item| tenth.set(ItemIdx(item), rng.random_bool(0.1)));
    for target in crate::index::RECALL_TARGETS {
        index.set_recall_target(target).unwrap();
        assert!(index.probes(100) < index.lists() / 2, "reads most of the index");
        let goal = target as f64 - 0.02;
        let (all, filtered) =
            (recall(&index, other, 100, None), recall(&index, other, 100, Some(&tenth)));
        assert!(all >= goal, "recall {all} for target {target}");
        assert!(filtered >= goal, "recall {filtered} under the filter for target {target}");
    }
    assert!(matches!(index.set_recall_target(0.5), Err(Error::RecallTarget { .. })));
}

#[test]
fn a_filter_that_has_to_do_with_the_query_keeps_its_recall() {
    // Only items far from the query pass: the pass rate of the nearest lists is close to zero.
    let (n, dim) = (20_000, 16);
    let index = build(&vectors(n, dim, 40, false, 5), dim);
    let queries = vectors(30, dim, 40, false, 5);
    for query in queries.chunks_exact(dim) {
        let mut far = Bitmap::new(n);
        for item in (0..n as u32).map(ItemIdx) {
            far.set(item, kernels::dot(query, index.vector(item)) < 0.2);
        }
        let found = recall(&index, query, 100, Some(&far));
        assert!(found >= 0.85, "recall {found} with {} passing items", far.count_ones());
    }
}

#[test]
fn the_same_for_any_number_of_threads() {
    let rows = vectors(3000, 8, 20, false, 1);
    let one =
        IvfIndex::build(&rows, 8, &[], &Config { threads: 1, ..config() }, &|_, _| ()).unwrap();
    let three =
        IvfIndex::build(&rows, 8, &[], &Config { threads: 3, ..config() }, &|_, _| ()).unwrap();
    assert_eq!(*one.centroids, *three.centroids);
    assert_eq!(*one.ids, *three.ids);
    assert_eq!(one.calibration, three.calibration);
}

#[test]
fn progress_ends_at_its_total() {
    let last = Cell::new((0, 1));
    let report = |done: u64, total: u64| {
        assert!(done >= last.get().0 && done <= total);
        last.set((done, total));
    };
    IvfIndex::build(&vectors(2000, 8, 20, false, 1), 8, &[], &config(), &report).unwrap();
    assert_eq!(last.get().0, last.get().1);
}

#[test]
fn a_grown_scratch_grows_no_further() {
    let index = build(&vectors(5000, 8, 20, false, 1), 8);
    let mut allowed = Bitmap::full(5000);
    (0..5000).step_by(2).for_each(|item| allowed.set(ItemIdx(item), false));
    let filter = Filter { allowed: Some(&allowed), excluded: &[ItemIdx(3), ItemIdx(1)] };
    let queries = vectors(40, 8, 20, false, 9);
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    let capacities = |scratch: &Scratch, out: &Vec<Hit>| {
        let Scratch { scores, order, passing, excluded, best: _ } = scratch;
        [
            scores.capacity(),
            order.capacity(),
            passing.capacity(),
            excluded.capacity(),
            out.capacity(),
        ]
    };
    for query in queries.chunks_exact(8) {
        index.search(query, 100, &filter, &mut scratch, &mut out);
    }
    let grown = capacities(&scratch, &out);
    for query in queries.chunks_exact(8) {
        index.search(query, 100, &filter, &mut scratch, &mut out);
        assert_eq!(capacities(&scratch, &out), grown);
    }
}

#[test]
fn unusable_input_is_refused_with_its_row() {
    let good = vectors(20, 4, 3, false, 1);
    let refused = |values: &[f32], queries: &[f32]| {
        IvfIndex::build(values, 4, queries, &config(), &|_, _| ()).err().unwrap().to_string()
    };
    for bad in [[0.0; 4], [f32::NAN; 4], [f32::INFINITY, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]] {
        let mut rows = good.clone();
        rows[28..32].copy_from_slice(&bad);
        assert!(refused(&rows, &[]).starts_with("item 7 has length "), "{}", refused(&rows, &[]));
        assert!(refused(&good, &bad).starts_with("query 0 has length "));
    }
    assert!(refused(&good[..7], &[]).contains("7 values"));
    let none = Config { iterations: 0, ..config() };
    let error = IvfIndex::build(&good, 4, &[], &none, &|_, _| ()).err().unwrap();
    assert_eq!(error.to_string(), "index.iterations is 0, expected at least 1");
}

fn saved(n: usize, dir: &Path) -> (IvfIndex, std::path::PathBuf) {
    let index = build(&vectors(n, 6, 9, true, 2), 6);
    let path = dir.join("index.bin");
    index.save(&path).unwrap();
    (index, path)
}

#[test]
fn a_file_answers_like_the_index_that_wrote_it() {
    let dir = tempfile::tempdir().unwrap();
    for n in [0, 1, 5, 700] {
        let (index, path) = saved(n, dir.path());
        let opened = IvfIndex::open(&path).unwrap();
        Sections::open(&path).unwrap().verify().unwrap();
        assert_eq!((opened.len(), opened.dim(), opened.lists()), (n, 6, index.lists()));
        assert_eq!(opened.recall_target(), 0.95);
        let (mut scratch, mut a, mut b) = (Scratch::default(), Vec::new(), Vec::new());
        for query in vectors(20, 6, 9, false, 3).chunks_exact(6) {
            index.search(query, 50, &Filter::default(), &mut scratch, &mut a);
            opened.search(query, 50, &Filter::default(), &mut scratch, &mut b);
            assert_eq!(a, b);
            assert_eq!(a.len(), n.min(50));
        }
    }
}

#[test]
fn a_damaged_file_is_refused_or_harmless_and_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let (_, path) = saved(60, dir.path());
    let good = std::fs::read(&path).unwrap();
    let broken = dir.path().join("broken.bin");
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    let query = vectors(1, 6, 9, false, 3);
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&broken, &bytes).unwrap();
        let Ok(index) = IvfIndex::open(&broken) else { continue };
        index.search(&query, 60, &Filter::default(), &mut scratch, &mut out);
        assert_eq!(out.len(), 60, "byte {at}");
        let items: std::collections::HashSet<ItemIdx> = out.iter().map(|hit| hit.item).collect();
        assert_eq!(items.len(), 60, "byte {at}");
    }
    for length in (0..good.len()).step_by(13) {
        std::fs::write(&broken, &good[..length]).unwrap();
        assert!(IvfIndex::open(&broken).is_err(), "cut to {length} bytes");
    }
}

#[test]
fn parts_that_do_not_fit_together_are_refused() {
    // Valid sections, wrong content: what a checksum cannot see.
    let dir = tempfile::tempdir().unwrap();
    let (index, path) = saved(60, dir.path());
    let reopened = |damage: &dyn Fn(&mut IvfIndex)| {
        let mut index = IvfIndex::open(&path).unwrap();
        damage(&mut index);
        let broken = dir.path().join("broken.bin");
        index.save(&broken).unwrap();
        IvfIndex::open(&broken).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(reopened(&|_| ()), "");
    let twice = reopened(&|index| {
        let mut ids = index.ids.to_vec();
        ids[1] = ids[0];
        index.ids = ids.into();
    });
    assert!(twice.contains("slot 1 names item"), "{twice}");
    let backwards = reopened(&|index| {
        let mut offsets = index.offsets.to_vec();
        offsets[1] = 61;
        index.offsets = offsets.into();
    });
    assert!(backwards.contains("list 0 ends at 61"), "{backwards}");
    let lists = index.lists() as u32;
    let probes = reopened(&|index| index.calibration.probes[0] = lists + 1);
    assert!(probes.contains("calibration for recall 0.9 "), "{probes}");
    let short = reopened(&|index| index.vectors = index.vectors[6..].to_vec().into());
    assert!(short.contains("`ivf.vectors` holds 354 elements, expected 360"), "{short}");
}
