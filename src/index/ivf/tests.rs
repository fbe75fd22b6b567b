#[path = "tests/fuzz.rs"]
mod fuzz;

use std::cell::Cell;
use std::collections::HashSet;
use std::path::Path;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::*;
use crate::index::audit::exact_search;
use crate::index::{Codes, Config, HnswConfig, Kind, Rerank, Scratch};
use crate::sections::Sections;

fn config() -> Config {
    Config {
        kind: Kind::Ivf,
        recall_target: 0.95,
        lists: 0,
        codes: Codes::Compact,
        pq_rows_min: 0,
        rerank: Rerank::None,
        sample_rows_per_list: 32,
        iterations: 4,
        calibration_queries_max: 64,
        exact_rows_max: 0,
        live_rows_max: 300,
        threads: 2,
        seed: 42,
        hnsw: HnswConfig { edges: 16, build_candidates: 100, memory_max_gib: 1.0 },
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

/// An index that has seen changes, and what should be in it.
#[derive(Debug)]
struct Case {
    index: IvfIndex,
    query: Vec<f32>,
    filter: Option<Allowed>,
    allowed: HashSet<ItemIdx>,
    excluded: Vec<ItemIdx>,
    present: HashSet<ItemIdx>,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Upsert { item: u32, allowed: bool },
    Remove(u32),
    Allow { item: u32, member: bool },
    RemoveAll,
}

impl Case {
    fn filter(&self) -> Filter<'_> {
        Filter { allowed: self.filter.as_ref(), excluded: &self.excluded }
    }

    fn passes(&self, item: ItemIdx) -> bool {
        self.present.contains(&item)
            && (self.filter.is_none() || self.allowed.contains(&item))
            && !self.excluded.contains(&item)
    }

    fn change(&mut self, change: Change, seed: u64) {
        match change {
            Change::Upsert { item, allowed } => {
                let item = ItemIdx(item);
                let vector = vectors(1, self.query.len(), 3, false, seed);
                let sets: Vec<_> = self.filter.iter().map(|set| (set, allowed)).collect();
                self.index.upsert(item, &vector, &sets).unwrap();
                self.present.insert(item);
                if allowed {
                    self.allowed.insert(item)
                } else {
                    self.allowed.remove(&item)
                };
            }
            Change::Remove(item) => {
                let was = self.present.remove(&ItemIdx(item));
                assert_eq!(self.index.remove(ItemIdx(item)), was);
            }
            Change::Allow { item, member } => {
                let item = ItemIdx(item);
                if let Some(set) = self.filter.as_ref().filter(|_| self.present.contains(&item)) {
                    self.index.set_allowed(set, item, member);
                    if member {
                        self.allowed.insert(item)
                    } else {
                        self.allowed.remove(&item)
                    };
                }
            }
            Change::RemoveAll => {
                self.present.drain().for_each(|item| assert!(self.index.remove(item)));
            }
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let item = || 0u32..500;
    let one = prop_oneof![
        4 => (item(), any::<bool>()).prop_map(|(item, allowed)| Change::Upsert { item, allowed }),
        4 => item().prop_map(Change::Remove),
        2 => (item(), any::<bool>()).prop_map(|(item, member)| Change::Allow { item, member }),
    ];
    let many = proptest::collection::vec(one, 0..40);
    (many.clone(), prop_oneof![9 => Just(None), 1 => many.prop_map(Some)]).prop_map(|(mut a, b)| {
        if let Some(after) = b {
            a.push(Change::RemoveAll);
            a.extend(after);
        }
        a
    })
}

fn cases() -> impl Strategy<Value = Case> {
    let pass_rate = prop_oneof![Just(None), (0.0f64..1.0).prop_map(Some), Just(Some(0.01))];
    let kind = (any::<bool>(), any::<bool>(), any::<bool>());
    ((0usize..400, 1usize..40, kind, any::<u64>(), pass_rate, 0usize..30, 0usize..60), changes())
        .prop_map(
            |((n, dim, (copies, pq, half), seed, rate, excluded, exact_rows_max), changes)| {
                let mut rng = Pcg64Mcg::seed_from_u64(seed);
                let rows = vectors(n, dim, 7, copies, seed);
                let codes = if pq { Codes::Pq } else { Codes::Compact };
                let rerank = if half { Rerank::F16 } else { Rerank::None };
                let config =
                    Config { exact_rows_max, codes, rerank, live_rows_max: 600, ..config() };
                let index = IvfIndex::build(&rows, dim, &[], &config, &|_, _| ()).unwrap();
                let set = Bitmap::new(n);
                let rate_or_none = rate.unwrap_or(0.0);
                (0..n as u32)
                    .for_each(|item| set.set(ItemIdx(item), rng.random_bool(rate_or_none)));
                let mut case = Case {
                    query: vectors(1, dim, 1, false, seed + 1),
                    filter: rate.map(|_| index.allow(&set)),
                    allowed: set.iter().collect(),
                    // Some of the excluded items do not exist: the bundle they are from is gone.
                    excluded: (0..excluded).map(|_| ItemIdx(rng.random_range(0..600))).collect(),
                    present: (0..n as u32).map(ItemIdx).collect(),
                    index,
                };
                for (change, at) in changes.into_iter().zip(0..) {
                    case.change(change, seed ^ at);
                }
                case
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn finds_k_passing_items_in_order_and_all_when_all_are_asked(case in cases(), k in 0usize..450) {
        let (mut scratch, mut found, mut scores) = (Scratch::default(), Vec::new(), Vec::new());
        case.index.search(&case.query, k, &case.filter(), &mut scratch, &mut found);

        let every: Vec<ItemIdx> = (0..600).map(ItemIdx).collect();
        case.index.scores(&case.query, &every, &mut scratch, &mut scores);
        for (item, score) in every.iter().zip(&scores) {
            let present = case.present.contains(item);
            prop_assert_eq!(score.is_nan(), !present, "{:?}", item);
            if let Some(set) = &case.filter {
                let allowed = present && case.allowed.contains(item);
                prop_assert_eq!(case.index.allows(set, *item), allowed, "{:?}", item);
            }
            let mut vector = vec![f32::NAN; case.query.len()];
            prop_assert_eq!(case.index.vector_of(*item, &mut vector), present, "{:?}", item);
            let differs = (kernels::dot(&case.query, &vector) - score).abs();
            prop_assert!(!present || differs < 0.02, "{:?} differs by {}", item, differs);
        }
        let hits = every.iter().zip(&scores).map(|(&item, &score)| Hit { item, score });
        let mut naive: Vec<Hit> = hits.filter(|hit| case.passes(hit.item)).collect();
        naive.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.item.cmp(&b.item)));

        prop_assert_eq!(found.len(), k.min(naive.len()));
        for pair in found.windows(2) {
            let better = pair[0].score > pair[1].score;
            prop_assert!(better || (pair[0].score == pair[1].score && pair[0].item < pair[1].item));
        }
        for hit in &found {
            prop_assert!(case.passes(hit.item), "{:?} does not pass the filter", hit);
            prop_assert_eq!(hit.score, scores[hit.item.row()]);
        }
        if k >= naive.len() {
            prop_assert_eq!(&found, &naive);
        }
    }
}

/// Mean share of the true top `k` of `rows` found, over `queries`.
fn recall(index: &IvfIndex, rows: &[f32], queries: &[f32], k: usize, set: Option<&Bitmap>) -> f64 {
    let allowed = set.map(|set| index.allow(set));
    let filter = Filter { allowed: allowed.as_ref(), excluded: &[] };
    let (mut scratch, mut found) = (Scratch::default(), Vec::new());
    let (mut hits, mut of) = (0, 0);
    for query in queries.chunks_exact(index.dim()) {
        let exact = exact_search(rows, query, k, |item| set.is_none_or(|set| set.get(item)));
        index.search(query, k, &filter, &mut scratch, &mut found);
        let found: HashSet<ItemIdx> = found.iter().map(|hit| hit.item).collect();
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
    let tenth = Bitmap::new(n);
    let mut rng = Pcg64Mcg::seed_from_u64(8);
    (0..n as u32).for_each(|item| tenth.set(ItemIdx(item), rng.random_bool(0.1)));
    for (codes, rerank) in
        [(Codes::Compact, Rerank::None), (Codes::Pq, Rerank::None), (Codes::Pq, Rerank::F16)]
    {
        let config = Config { calibration_queries_max: 200, codes, rerank, ..config() };
        let mut index = IvfIndex::build(rows, dim, calibration, &config, &|_, _| ()).unwrap();
        for target in crate::index::RECALL_TARGETS {
            index.set_recall_target(target).unwrap();
            let goal = target as f64 - 0.02;
            let all = recall(&index, rows, other, 100, None);
            let filtered = recall(&index, rows, other, 100, Some(&tenth));
            assert!(all >= goal, "{codes:?} {rerank:?}: recall {all} for target {target}");
            assert!(filtered >= goal, "{codes:?} {rerank:?}: filtered {filtered} for {target}");
        }
        assert!(matches!(index.set_recall_target(0.5), Err(Error::RecallTarget { .. })));
    }
}

#[test]
fn a_filter_that_has_to_do_with_the_query_keeps_its_recall() {
    // Only items far from the query pass: the pass rate of the nearest lists is close to zero.
    let (n, dim) = (20_000, 16);
    let rows = vectors(n, dim, 40, false, 5);
    let index = build(&rows, dim);
    let queries = vectors(30, dim, 40, false, 5);
    for query in queries.chunks_exact(dim) {
        let far = Bitmap::new(n);
        for (item, row) in (0..).map(ItemIdx).zip(rows.chunks_exact(dim)) {
            far.set(item, kernels::dot(query, row) < 0.2);
        }
        let found = recall(&index, &rows, query, 100, Some(&far));
        assert!(found >= 0.85, "recall {found} with {} passing items", far.count_ones());
    }
}

#[test]
fn room_for_live_rows_ends_with_an_error_that_says_so() {
    let mut index = build(&vectors(50, 4, 3, false, 1), 4);
    index.set_live_rows_max(2);
    let vector = [1.0, 0.0, 0.0, 0.0];
    index.upsert(ItemIdx(50), &vector, &[]).unwrap();
    index.upsert(ItemIdx(3), &vector, &[]).unwrap();
    index.upsert(ItemIdx(3), &vector, &[]).unwrap();
    assert!(index.remove(ItemIdx(50)));
    index.upsert(ItemIdx(50), &vector, &[]).unwrap();
    let full = index.upsert(ItemIdx(4), &vector, &[]).unwrap_err().to_string();
    assert!(full.contains("all 2 live rows are taken"), "{full}");
    let past = index.upsert(ItemIdx(52), &vector, &[]).unwrap_err().to_string();
    assert!(past.contains("item 52 is past the 52"), "{past}");
    let zero = index.upsert(ItemIdx(3), &[0.0; 4], &[]).unwrap_err().to_string();
    assert!(zero.contains("item 3 has length 0"), "{zero}");
    assert_eq!(index.changes(), Changes { live_rows: 2, live_rows_max: 2, dead: 1 });
}

#[test]
fn searches_during_changes_find_k_items_and_none_twice() {
    let (n, dim, k) = (3000, 16, 50);
    let rows = vectors(n, dim, 20, false, 1);
    let mut index = build(&rows, dim);
    index.set_live_rows_max(n);
    let allowed = index.allow(&Bitmap::full(n));
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Half of the items are replaced, a third of those removed again.
            for item in (0..n as u32).step_by(2) {
                let vector = vectors(1, dim, 20, false, item.into());
                index.upsert(ItemIdx(item), &vector, &[(&allowed, true)]).unwrap();
                if item % 3 == 0 {
                    assert!(index.remove(ItemIdx(item)));
                }
            }
            ended.store(true, std::sync::atomic::Ordering::Release);
        });
        let (mut scratch, mut found) = (Scratch::default(), Vec::new());
        let filter = Filter { allowed: Some(&allowed), excluded: &[] };
        loop {
            let last = ended.load(std::sync::atomic::Ordering::Acquire);
            for query in vectors(20, dim, 20, false, 77).chunks_exact(dim) {
                index.search(query, k, &filter, &mut scratch, &mut found);
                let items: HashSet<ItemIdx> = found.iter().map(|hit| hit.item).collect();
                assert_eq!((found.len(), items.len()), (k, k));
            }
            if last {
                break;
            }
        }
    });
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
    let set = Bitmap::full(5000);
    (0..5000).step_by(2).for_each(|item| set.set(ItemIdx(item), false));
    let allowed = index.allow(&set);
    let filter = Filter { allowed: Some(&allowed), excluded: &[ItemIdx(3), ItemIdx(1)] };
    let queries = vectors(40, 8, 20, false, 9);
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    for query in queries.chunks_exact(8) {
        index.search(query, 100, &filter, &mut scratch, &mut out);
    }
    let grown = (scratch.capacity(), out.capacity());
    for query in queries.chunks_exact(8) {
        index.search(query, 100, &filter, &mut scratch, &mut out);
        assert_eq!((scratch.capacity(), out.capacity()), grown);
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
    let config = Config { codes: Codes::Pq, rerank: Rerank::F16, ..config() };
    let index = IvfIndex::build(&vectors(n, 6, 9, true, 2), 6, &[], &config, &|_, _| ()).unwrap();
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
        let items: HashSet<ItemIdx> = out.iter().map(|hit| hit.item).collect();
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
    let margin = reopened(&|index| index.calibration.margins[0] = f32::NAN);
    assert!(margin.contains("calibration for recall 0.9 "), "{margin}");
    let nan = reopened(&|index| {
        let mut centroids = index.centroids.to_vec();
        centroids[7] = f32::NAN;
        index.centroids = centroids.into();
    });
    assert!(nan.contains("centroid number 7 is NaN"), "{nan}");
    let short = reopened(&|index| index.residuals = index.residuals[32..].to_vec().into());
    assert!(short.contains("`ivf.residuals` holds 1888 elements, expected 1920"), "{short}");
}
