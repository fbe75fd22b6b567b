use std::collections::HashSet;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::graph::LoadError;
use super::*;
use crate::index::{Codes, Config, HnswConfig, Kind, Rerank, Scratch, audit};

fn config() -> Config {
    Config {
        kind: Kind::Hnsw,
        recall_target: 0.95,
        lists: 0,
        codes: Codes::Auto,
        pq_rows_min: 0,
        rerank: Rerank::None,
        sample_rows_per_list: 1,
        iterations: 1,
        calibration_queries_max: 16,
        exact_rows_max: 0,
        live_rows_max: 40,
        threads: 2,
        seed: 42,
        hnsw: HnswConfig { edges: 6, build_candidates: 24, memory_max_gib: 1.0 },
    }
}

/// Unit rows around `places` places; half of the `copies` are the row before.
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

/// An index that follows its graph however few rows it has.
fn build(rows: &[f32], dim: usize, queries: &[f32], config: &Config) -> HnswIndex {
    HnswIndex::build_with(rows, dim, queries, config, 0, &|_, _| ()).unwrap()
}

fn found(index: &HnswIndex, query: &[f32], k: usize, filter: &Filter) -> Vec<Hit> {
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    index.search(query, k, filter, &mut scratch, &mut out);
    out
}

#[derive(Debug, Clone)]
enum Change {
    Upsert(u32, u64),
    Remove(u32),
    RemoveAll,
    Allow(u32, bool),
}

#[derive(Debug)]
struct Case {
    n: usize,
    dim: usize,
    copies: bool,
    seed: u64,
    pass_rate: Option<f64>,
    excluded: Vec<u32>,
    exact_rows_max: usize,
    changes: Vec<Change>,
}

fn cases() -> impl Strategy<Value = Case> {
    let pass_rate = prop_oneof![Just(None), (0.0f64..1.0).prop_map(Some), Just(Some(0.0))];
    let change = prop_oneof![
        6 => (0u32..330, any::<u64>()).prop_map(|(item, seed)| Change::Upsert(item, seed)),
        6 => (0u32..330).prop_map(Change::Remove),
        1 => Just(Change::RemoveAll),
        6 => (0u32..330, any::<bool>()).prop_map(|(item, member)| Change::Allow(item, member)),
    ];
    let rest = (proptest::collection::vec(0u32..330, 0..20), 0usize..60);
    let changes = proptest::collection::vec(change, 0..30);
    (0usize..300, 1usize..12, any::<bool>(), any::<u64>(), pass_rate, rest, changes).prop_map(
        |(n, dim, copies, seed, pass_rate, (excluded, exact_rows_max), changes)| Case {
            n,
            dim,
            copies,
            seed,
            pass_rate,
            excluded,
            exact_rows_max,
            changes,
        },
    )
}

/// What an index should hold: by item, whether it is allowed.
type Members = std::collections::BTreeMap<u32, bool>;

fn apply(index: &HnswIndex, changes: &[Change], allowed: &Allowed, members: &mut Members) {
    for change in changes {
        match *change {
            Change::Upsert(item, seed) => {
                let row = vectors(1, index.dim(), 3, false, seed);
                let member = seed % 2 == 0;
                match index.upsert(ItemIdx(item), &row, &[(allowed, member)]) {
                    Ok(()) => _ = members.insert(item, member),
                    Err(Error::Item { .. } | Error::LiveRows { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Change::Remove(item) => {
                assert_eq!(index.remove(ItemIdx(item)), members.remove(&item).is_some());
            }
            Change::RemoveAll => {
                members.keys().for_each(|&item| assert!(index.remove(ItemIdx(item))));
                members.clear();
            }
            Change::Allow(item, member) => {
                index.set_allowed(allowed, ItemIdx(item), member);
                members.entry(item).and_modify(|known| *known = member);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn holds_k_passing_items_in_order_and_all_when_all_are_asked(
        case in cases(),
        k in prop_oneof![0usize..30, 0usize..400],
    ) {
        let mut rng = Pcg64Mcg::seed_from_u64(case.seed);
        let rows = vectors(case.n, case.dim, 7, case.copies, case.seed);
        let config = Config { exact_rows_max: case.exact_rows_max, ..config() };
        let index = build(&rows, case.dim, &[], &config);
        let set = Bitmap::new(case.n);
        let rate = case.pass_rate.unwrap_or(1.0);
        (0..case.n as u32).for_each(|item| set.set(ItemIdx(item), rng.random_bool(rate)));
        let mut members = (0..case.n as u32).map(|item| (item, set.get(ItemIdx(item)))).collect();
        let allowed = index.allow(&set);
        apply(&index, &case.changes, &allowed, &mut members);

        let excluded: Vec<ItemIdx> = case.excluded.iter().copied().map(ItemIdx).collect();
        let filter = Filter {
            allowed: case.pass_rate.is_some().then_some(&allowed),
            excluded: &excluded,
        };
        let query = vectors(1, case.dim, 1, false, case.seed ^ 1);
        let passes = |item: ItemIdx| {
            let member = members.get(&item.0);
            member.is_some_and(|&member| member || filter.allowed.is_none())
                && !excluded.contains(&item)
        };
        let items: Vec<ItemIdx> = members.keys().copied().map(ItemIdx).collect();
        let (mut scratch, mut scores, mut exact) = (Scratch::default(), Vec::new(), Vec::new());
        index.scores(&query, &items, &mut scratch, &mut scores);
        for (&item, score) in items.iter().zip(&scores) {
            prop_assert_eq!(index.allows(&allowed, item), members[&item.0]);
            let mut vector = vec![f32::NAN; case.dim];
            prop_assert!(index.vector_of(item, &mut vector));
            let differs = (kernels::dot(&query, &vector) - score).abs();
            prop_assert!(differs < 0.02, "{:?} differs by {}", item, differs);
        }
        let gone = ItemIdx(members.keys().last().map_or(0, |last| last + 1));
        prop_assert!(!index.allows(&allowed, gone) && !index.vector_of(gone, &mut vec![0.0; case.dim]));
        let scored = items.iter().zip(&scores).filter(|(item, _)| passes(**item));
        let mut naive: Vec<Hit> = scored.map(|(&item, &score)| Hit { item, score }).collect();
        naive.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.item.cmp(&b.item)));
        let passing = naive.len();
        naive.truncate(k);

        index.search_exact(&query, k, &filter, &mut scratch, &mut exact);
        prop_assert_eq!(&exact, &naive);
        let found = found(&index, &query, k, &filter);
        prop_assert_eq!(found.len(), k.min(passing));
        for pair in found.windows(2) {
            let better = pair[0].score > pair[1].score;
            prop_assert!(better || (pair[0].score == pair[1].score && pair[0].item < pair[1].item));
        }
        for hit in &found {
            prop_assert!(passes(hit.item), "{:?} does not pass the filter", hit);
            let at = items.binary_search(&hit.item).unwrap();
            prop_assert_eq!(hit.score.to_bits(), scores[at].to_bits());
        }
        if k >= passing {
            prop_assert_eq!(&found, &naive);
        }
    }
}

/// Mean share of the true top `k` found.
fn recall(index: &HnswIndex, queries: &[f32], k: usize, set: Option<&Bitmap>) -> f64 {
    let allowed = set.map(|set| index.allow(set));
    let filter = Filter { allowed: allowed.as_ref(), excluded: &[] };
    let (mut hits, mut of) = (0, 0);
    for query in queries.chunks_exact(index.dim()) {
        let passes = |item| set.is_none_or(|set| set.get(item));
        let exact = audit::exact_search(&index.vectors, query, k, passes);
        let found: HashSet<ItemIdx> =
            found(index, query, k, &filter).iter().map(|hit| hit.item).collect();
        hits += exact.iter().filter(|hit| found.contains(&hit.item)).count();
        of += exact.len();
    }
    hits as f64 / of as f64
}

#[test]
fn recall_reaches_each_target_on_other_queries_with_and_without_filters() {
    let (n, dim) = (6_000, 24);
    let all = vectors(n + 200, dim, 60, false, 3);
    let (rows, queries) = all.split_at(n * dim);
    let (calibration, other) = queries.split_at(100 * dim);
    let config = Config {
        calibration_queries_max: 100,
        hnsw: HnswConfig { edges: 12, build_candidates: 48, memory_max_gib: 1.0 },
        ..config()
    };
    let mut index = build(rows, dim, calibration, &config);
    let third = Bitmap::new(n);
    let mut rng = Pcg64Mcg::seed_from_u64(8);
    (0..n as u32).for_each(|item| third.set(ItemIdx(item), rng.random_bool(0.3)));
    for target in crate::index::RECALL_TARGETS {
        index.set_recall_target(target).unwrap();
        assert_eq!(index.recall_target(), target);
        let goal = target as f64 - 0.02;
        let (all, filtered) =
            (recall(&index, other, 50, None), recall(&index, other, 50, Some(&third)));
        assert!(all >= goal, "recall {all} for target {target}");
        assert!(filtered >= goal, "recall {filtered} under the filter for target {target}");
    }
    assert!(matches!(index.set_recall_target(0.5), Err(Error::RecallTarget { .. })));
}

#[test]
fn every_row_is_found_when_it_is_searched_for_itself() {
    // Hundreds of equal rows: most of them have no links to them that lead anywhere.
    let (n, dim) = (1500, 8);
    let mut rows = vectors(n, dim, 5, true, 4);
    let first: Vec<f32> = rows[..dim].to_vec();
    rows[..500 * dim].chunks_exact_mut(dim).for_each(|row| row.copy_from_slice(&first));
    let index = build(&rows, dim, &[], &config());
    assert!(index.strays() > 0, "the rows are not hard enough for this test");
    let mut scratch = Scratch::default();
    let mut out = Vec::new();
    for item in 0..n {
        search::search_graph(&index, index.vector(item), 600, 600, &mut scratch, &mut out);
        let item = ItemIdx(item as u32);
        assert!(out.iter().any(|hit| hit.item == item), "{item:?} is out of reach");
    }
}

#[test]
fn a_query_that_is_no_number_gets_its_items() {
    let index = build(&vectors(300, 4, 3, false, 1), 4, &[], &config());
    for bad in [f32::NAN, f32::INFINITY, 0.0] {
        let hits = found(&index, &[bad; 4], 20, &Filter::default());
        let items: HashSet<ItemIdx> = hits.iter().map(|hit| hit.item).collect();
        assert_eq!(items.len(), 20);
    }
}

#[test]
fn unusable_input_is_refused_with_its_row_and_its_fix() {
    let good = vectors(20, 4, 3, false, 1);
    let refused = |values: &[f32], queries: &[f32], config: &Config| {
        let built = HnswIndex::build(values, 4, queries, config, &|_, _| ());
        built.err().unwrap().to_string()
    };
    for bad in [[0.0; 4], [f32::NAN; 4], [f32::INFINITY, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]] {
        let mut rows = good.clone();
        rows[28..32].copy_from_slice(&bad);
        assert!(refused(&rows, &[], &config()).starts_with("item 7 has length "));
        assert!(refused(&good, &bad, &config()).starts_with("query 0 has length "));
    }
    assert!(refused(&good[..7], &[], &config()).contains("7 values"));
    let with = |edges, build_candidates, memory_max_gib| Config {
        hnsw: HnswConfig { edges, build_candidates, memory_max_gib },
        ..config()
    };
    let edges = refused(&good, &[], &with(256, 24, 1.0));
    assert_eq!(edges, "index.hnsw.edges is 256, expected 2 to 255");
    let candidates = refused(&good, &[], &with(6, 0, 1.0));
    assert_eq!(candidates, "index.hnsw.build_candidates is 0, expected at least 1");
    assert!(refused(&good, &[], &with(6, 24, f64::NAN)).contains("memory_max_gib"));
}

#[test]
fn a_graph_that_does_not_fit_is_refused_with_what_it_needs() {
    let dim = 128;
    let rows = vectors(20_000, dim, 9, false, 1);
    let config = Config {
        hnsw: HnswConfig { edges: 16, build_candidates: 100, memory_max_gib: 0.05 },
        ..config()
    };
    let error = HnswIndex::build(&rows, dim, &[], &config, &|_, _| ()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "a graph of 20000 items of dimension 128 with 16 edges needs 0.06 GiB, over the 0.05 GiB \
         of index.hnsw.memory_max_gib: raise it, or choose index.kind = \"ivf\""
    );
}

#[test]
fn progress_ends_at_its_total() {
    let last = std::cell::Cell::new((0, 1));
    let report = |done: u64, total: u64| {
        assert!(done >= last.get().0 && done <= total);
        last.set((done, total));
    };
    let rows = vectors(500, 8, 20, false, 1);
    HnswIndex::build(&rows, 8, &[], &config(), &report).unwrap();
    assert_eq!(last.get().0, last.get().1);
}

fn saved(n: usize, dir: &Path) -> (HnswIndex, PathBuf) {
    let index = build(&vectors(n, 6, 9, true, 2), 6, &[], &config());
    let path = dir.join("index.bin");
    index.save(&path).unwrap();
    (index, path)
}

#[test]
fn a_file_answers_like_the_index_that_wrote_it() {
    let dir = tempfile::tempdir().unwrap();
    for n in [0, 1, 5, 700] {
        let (index, path) = saved(n, dir.path());
        let mut opened = HnswIndex::open(&path).unwrap();
        opened.rows_per_candidate = 0;
        assert_eq!((opened.len(), opened.dim(), opened.strays()), (n, 6, index.strays()));
        assert_eq!(opened.candidates(), index.candidates());
        assert_eq!((opened.recall_target(), opened.changes().live_rows_max), (0.95, 0));
        for query in vectors(20, 6, 9, false, 3).chunks_exact(6) {
            let hits = found(&index, query, 50, &Filter::default());
            assert_eq!(hits, found(&opened, query, 50, &Filter::default()));
            assert_eq!(hits.len(), n.min(50));
        }
        // What was read can be written and read again.
        opened.save(&path).unwrap();
        HnswIndex::open(&path).unwrap();
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_damaged_file_is_refused_or_unharmed() {
    let dir = tempfile::tempdir().unwrap();
    let (index, path) = saved(40, dir.path());
    let good = std::fs::read(&path).unwrap();
    let broken = dir.path().join("broken.bin");
    let query = vectors(1, 6, 9, false, 3);
    let whole = found(&index, &query, 40, &Filter::default());
    for at in (0..good.len()).step_by(7) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&broken, &bytes).unwrap();
        // Some bytes are padding, and mean nothing.
        let Ok(opened) = HnswIndex::open(&broken) else { continue };
        assert_eq!(found(&opened, &query, 40, &Filter::default()), whole, "byte {at}");
    }
    for length in (0..good.len()).step_by(331) {
        std::fs::write(&broken, &good[..length]).unwrap();
        assert!(HnswIndex::open(&broken).is_err(), "cut to {length} bytes");
    }
    std::fs::write(&broken, b"PK\x03\x04 something else").unwrap();
    assert!(HnswIndex::open(&broken).is_err());
}

#[test]
fn parts_that_do_not_fit_together_are_refused() {
    // Valid checksums, wrong content.
    let dir = tempfile::tempdir().unwrap();
    let (_, path) = saved(60, dir.path());
    let broken = dir.path().join("broken.bin");
    let error = |path| {
        HnswIndex::open(path).err().map(|error: Error| error.to_string()).unwrap_or_default()
    };
    let reopened = |damage: &dyn Fn(&mut HnswIndex)| {
        let mut index = HnswIndex::open(&path).unwrap();
        damage(&mut index);
        index.save(&broken).unwrap();
        error(&broken)
    };
    assert_eq!(reopened(&|_| ()), "");
    let depths = reopened(&|index| index.calibration.candidates[0] = 1);
    assert!(depths.contains("candidates for recall 0.9 do not rise"), "{depths}");
    let strays = reopened(&|index| index.strays = vec![ItemIdx(3), ItemIdx(3)]);
    assert!(strays.contains("slot 1 names item 3, which is twice there"), "{strays}");
    let strays = reopened(&|index| index.strays = vec![ItemIdx(60)]);
    assert!(strays.contains("slot 0 names item 60"), "{strays}");
    let number = reopened(&|index| index.vectors = Arc::new(vec![f32::NAN; 360].into()));
    assert!(number.contains("vector number 0 is NaN"), "{number}");
    let fewer = reopened(&|index| index.vectors = Arc::new(index.vectors[6..].to_vec().into()));
    assert!(fewer.contains("`hnsw.points` holds 1452 elements, expected 1428"), "{fewer}");

    for (name, expected) in [("hnsw.meta", "format 9 is not supported"), ("ivf.meta", "no section")]
    {
        let mut writer = crate::sections::SectionsWriter::create(&broken, 1).unwrap();
        writer.write(name, &[9u64]).unwrap();
        writer.finish().unwrap();
        assert!(error(&broken).contains(expected), "{}", error(&broken));
    }
}

#[test]
fn a_graph_that_its_crate_would_choke_on_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let index = build(&vectors(60, 6, 9, false, 2), 6, &[], &config());
    let load = |damage: &dyn Fn(&mut Vec<u8>, &mut Vec<u8>)| {
        let graph = index.graph.as_ref().unwrap();
        let refused = graph.dump(dir.path().join("dump"), |links, points| {
            let (mut links, mut points) = (links.to_vec(), points.to_vec());
            damage(&mut links, &mut points);
            let loaded = Graph::load(&links, &points, Arc::clone(&index.vectors), 6);
            Ok(match loaded {
                Ok(_) => String::new(),
                Err(LoadError::Io(error)) => error.to_string(),
                Err(LoadError::Damage(damage)) => damage.to_string(),
            })
        });
        refused.unwrap()
    };
    assert_eq!(load(&|_, _| ()), "");
    let twice = load(&|_, points| points.copy_within(12..36, 36));
    assert!(twice.contains("slot 1 names item"), "{twice}");
    let beyond = load(&|_, points| (points[16], points[32]) = (200, 200));
    assert!(beyond.contains("slot 0 names item"), "{beyond}");
    let foreign = load(&|links, _| links[..4].fill(0));
    assert!(foreign.contains("bad magic"), "{foreign}");
    let many = load(&|links, _| links[23..31].fill(1));
    assert!(many.contains("points in a dump of version 4, expected 60"), "{many}");
    let cut = load(&|links, _| links.truncate(links.len() / 2));
    assert!(cut.starts_with("the graph was not read: "), "{cut}");
}
