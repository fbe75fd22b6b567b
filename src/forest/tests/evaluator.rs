//! The evaluator gives the bits of the walk: over forests drawn at random, hostile ones included.

use std::fmt::Write;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::*;
use crate::types::ItemIdx;

/// Scores through the evaluator; `cached[f]` sends a varying feature through bins, whose rows are
/// stored in reverse so that candidates are not simply in order.
pub(super) fn evaluate(forest: &Forest, matrix: &Matrix, cached: &[bool]) -> Vec<f64> {
    let evaluator = Evaluator::new(forest, matrix.constants.len(), cached).unwrap();
    evaluate_with(&evaluator, matrix, cached)
}

/// `None` when the model has no evaluator.
pub(super) fn evaluate_if_possible(
    forest: &Forest,
    matrix: &Matrix,
    cached: &[bool],
) -> Option<Vec<f64>> {
    let evaluator = Evaluator::new(forest, matrix.constants.len(), cached).ok()?;
    Some(evaluate_with(&evaluator, matrix, cached))
}

fn evaluate_with(evaluator: &Evaluator, matrix: &Matrix, cached: &[bool]) -> Vec<f64> {
    let rows = matrix.rows;
    let mut scratch = evaluator.scratch();
    let column = |at: usize| &matrix.columns[at * rows..][..rows];
    let of = |wanted: bool| (0..cached.len()).filter(move |&at| cached[at] == wanted);
    let cached_features: Vec<usize> = of(true).collect();
    let bins = evaluator.bin_items(rows, |feature, first, out| {
        for (row, value) in out.iter_mut().enumerate() {
            *value = column(cached_features[feature])[rows - 1 - (first + row)];
        }
    });
    let items: Vec<ItemIdx> = (0..rows as u32).rev().map(ItemIdx).collect();
    let columns: Vec<f32> = of(false).flat_map(|at| column(at).to_vec()).collect();
    let mut out = vec![f64::NAN; rows];
    let capacity = scratch.capacity();
    // Twice, because a scratch is used again and again.
    for _ in 0..2 {
        evaluator.specialise(matrix.constants, &mut scratch);
        evaluator.score(&bins, &items, &columns, &mut scratch, &mut out);
    }
    assert_eq!(scratch.capacity(), capacity, "a request allocated");
    late_rows_score_the_same(evaluator, &bins, &items, &columns, &mut scratch, &out);
    out
}

/// Every third candidate brings its bytes along, and its item is outside the bins.
fn late_rows_score_the_same(
    evaluator: &Evaluator,
    bins: &Bins,
    items: &[ItemIdx],
    columns: &[f32],
    scratch: &mut Scratch,
    expected: &[f64],
) {
    let is_late = |at: &usize| at % 3 == 1;
    let row = |at: usize| (at, bins.row(items[at].row()));
    let late = (0..items.len()).filter(is_late).map(row);
    let moved = |(at, &item)| if is_late(&at) { ItemIdx(u32::MAX) } else { item };
    let moved: Vec<ItemIdx> = items.iter().enumerate().map(moved).collect();
    let mut out = vec![f64::NAN; expected.len()];
    evaluator.score_with(bins, &moved, late, columns, scratch, &mut out);
    let bits = |scores: &[f64]| scores.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&out), bits(expected));
}

const FEATURES: usize = 6;
/// Thresholds that sit where something changes.
const EDGES: [&str; 14] = [
    "inf",
    "-inf",
    "1.7976931348623157e308",
    "-1e300",
    "0",
    "-0",
    "1e-40",
    "-1e-36",
    "1e-35",
    "1.0000000180025095e-35",
    "0.1",
    "16777217",
    "3.4028235677973366e38",
    "-1.5",
];

/// The text of a random tree: `leaves` leaves, features 4 and 5 categorical.
fn tree(random: &mut Pcg64Mcg, number: usize, leaves: usize, codes: u32) -> String {
    let nodes = leaves - 1;
    let mut children = vec![[0_i32; 2]; nodes];
    // Node n replaces a random leaf of the tree of n nodes; a chain when always the last.
    let chain = random.random_bool(0.2);
    let mut open: Vec<(usize, usize)> = Vec::new();
    for node in 0..nodes {
        if node > 0 {
            let at = if chain { open.len() - 1 } else { random.random_range(0..open.len()) };
            let (parent, side) = open.swap_remove(at);
            children[parent][side] = node as i32;
        }
        open.extend([(node, 0), (node, 1)]);
    }
    for (leaf, (parent, side)) in open.into_iter().enumerate() {
        children[parent][side] = !(leaf as i32);
    }
    let (mut feature, mut threshold, mut decision) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bounds, mut words) = (vec![0], Vec::<u32>::new());
    for _ in 0..nodes {
        let f = random.random_range(0..FEATURES);
        feature.push(f.to_string());
        if f < 4 {
            let missing = [0_u8, 4, 8].choose(random).unwrap() | random.random_range(0..2) << 1;
            decision.push(missing.to_string());
            threshold.push(match random.random_range(0..8) {
                0 => (*EDGES.choose(random).unwrap()).to_owned(),
                1 => format!("{}", random.random_range(-9..9)),
                _ => format!("{}", random.random_range(-3.0_f64..3.0)),
            });
        } else {
            decision.push("1".to_owned());
            threshold.push((bounds.len() - 1).to_string());
            let set = random.random_range(0..=codes.div_ceil(32));
            let density = *[0, 0x0101_0101, 0x5555_5555, u32::MAX].choose(random).unwrap();
            words.extend((0..set).map(|_| random.random::<u32>() & density));
            bounds.push(words.len());
        }
    }
    let join =
        |side: usize| children.iter().map(|c| c[side].to_string()).collect::<Vec<_>>().join(" ");
    let text = |list: &[String]| list.join(" ");
    let numbers = |list: &[usize]| list.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    let values: Vec<String> =
        (0..leaves).map(|_| random.random_range(-1.0_f64..1.0).to_string()).collect();
    let mut out = format!("Tree={number}\nnum_leaves={leaves}\nnum_cat={}\n", bounds.len() - 1);
    writeln!(out, "split_feature={}\nthreshold={}", text(&feature), text(&threshold)).unwrap();
    writeln!(out, "decision_type={}", text(&decision)).unwrap();
    writeln!(out, "left_child={}\nright_child={}", join(0), join(1)).unwrap();
    writeln!(out, "leaf_value={}", text(&values)).unwrap();
    if bounds.len() > 1 {
        let words: Vec<String> = words.iter().map(u32::to_string).collect();
        writeln!(out, "cat_boundaries={}\ncat_threshold={}", numbers(&bounds), text(&words))
            .unwrap();
    }
    out + "\n"
}

/// The text of a random model.
pub(super) fn model(random: &mut Pcg64Mcg, leaves_max: usize) -> String {
    let trees = random.random_range(1..20);
    let most = [2, 5, 31, 200, 300, 900].choose(random).copied().unwrap().min(leaves_max);
    let codes = *[4, 40, 130, 1200].choose(random).unwrap();
    let mut text = format!(
        "tree\nversion=v4\nnum_class=1\nmax_feature_idx={}\nfeature_names=a b c d e f\n\n",
        FEATURES - 1
    );
    for number in 0..trees {
        let leaves = random.random_range(1..=most);
        text += &tree(random, number, leaves, codes);
    }
    text + "end of trees\n"
}

fn value(random: &mut Pcg64Mcg, feature: usize) -> f32 {
    match random.random_range(0..10) {
        0 => f32::NAN,
        1 => EDGES.choose(random).unwrap().parse::<f64>().unwrap() as f32,
        2 => 0.0,
        3 if feature < 4 => random.random_range(-9..9) as f32,
        _ if feature < 4 => random.random_range(-3.2_f32..3.2),
        _ => random.random_range(-2.0_f32..1300.0),
    }
}

#[test]
fn scores_have_the_bits_of_the_walk() {
    let mut wide = 0;
    for seed in 0..600 {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let forest = Forest::parse(&model(&mut random, 900)).unwrap();
        wide += usize::from(forest.trees.iter().any(|tree| tree.leaves > 256));
        let constants = random.random_range(0..=FEATURES);
        let rows = *[1, 31, 32, 33, 500, 512, 513, 1100].choose(&mut random).unwrap();
        let fixed: Vec<f32> = (0..constants).map(|f| value(&mut random, f)).collect();
        let columns: Vec<f32> = (constants..FEATURES)
            .flat_map(|f| (0..rows).map(|_| value(&mut random, f)).collect::<Vec<_>>())
            .collect();
        let matrix = Matrix { constants: &fixed, columns: &columns, rows };
        let mut walked = vec![f64::NAN; rows];
        forest.score(&matrix, &mut walked);
        let cached: Vec<bool> = (constants..FEATURES).map(|_| random.random()).collect();
        let found = evaluate(&forest, &matrix, &cached);
        let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits();
        assert!(found.iter().zip(&walked).all(same), "seed {seed}");
    }
    assert!(wide > 100, "{wide} models with leaf numbers of two bytes");
}

#[test]
fn leaf_numbers_of_three_bytes() {
    let mut random = Pcg64Mcg::seed_from_u64(1);
    let text = "tree\nversion=v4\nnum_class=1\nmax_feature_idx=5\nfeature_names=a b c d e f\n";
    let text = format!("{text}{}end of trees\n", tree(&mut random, 0, 70_000, 40));
    let forest = Forest::parse(&text).unwrap();
    let columns: Vec<f32> = (0..FEATURES * 40).map(|at| value(&mut random, at / 40)).collect();
    let matrix = Matrix::new(&[], &columns, 40);
    let mut walked = vec![0.0; 40];
    forest.score(&matrix, &mut walked);
    assert_eq!(evaluate(&forest, &matrix, &[false; FEATURES]), walked);
}

#[test]
fn no_rows_and_no_trees() {
    let text = "tree\nversion=v4\nnum_class=1\nmax_feature_idx=0\nfeature_names=a\nend of trees\n";
    let forest = Forest::parse(text).unwrap();
    let scored = |rows: usize| {
        evaluate(&forest, &Matrix { constants: &[], columns: &vec![1.0; rows], rows }, &[false])
    };
    assert!(scored(0).is_empty());
    assert_eq!(scored(3), [0.0; 3]);
}

#[test]
fn features_must_add_up_and_size_is_bounded() {
    let forest = Forest::parse(SMALL).unwrap();
    let message = Evaluator::new(&forest, 1, &[false]).unwrap_err().to_string();
    assert_eq!(message, "1 constant and 1 varying features, the model has 3");
    let values: Vec<String> = (0..4096 * 254 + 1).map(|at| at.to_string()).collect();
    let nodes = values.len();
    let left: Vec<String> = (0..nodes).map(|at| (-1 - at as i64).to_string()).collect();
    let right: Vec<String> = (0..nodes)
        .map(|at| if at + 1 < nodes { at as i64 + 1 } else { -1 - nodes as i64 }.to_string())
        .collect();
    let text = format!(
        "tree\nversion=v4\nnum_class=1\nmax_feature_idx=0\nfeature_names=a\nTree=0\n\
         num_leaves={}\nsplit_feature={}\nthreshold={}\nleft_child={}\nright_child={}\n\
         leaf_value={}\nend of trees\n",
        nodes + 1,
        vec!["0"; nodes].join(" "),
        values.join(" "),
        left.join(" "),
        right.join(" "),
        vec!["1"; nodes + 1].join(" "),
    );
    let forest = Forest::parse(&text).unwrap();
    assert_eq!(Evaluator::new(&forest, 0, &[false]).unwrap_err(), CompileError::TooLarge);
}
