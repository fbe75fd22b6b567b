//! A thousand models with options drawn at random, trained and scored by LightGBM.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::evaluator::evaluate;
use super::*;
use crate::ffi::lightgbm::{Dataset, Layout, Params, Predictor, Table, Target, train};

const MODELS: u64 = 1000;
const COLUMNS: usize = 10;
/// The last columns hold codes, of up to so many categories.
const CATEGORIES: [u32; 3] = [3, 30, 1500];
const TRAINING_ROWS: usize = 400;
/// Rows of the models with so many splits that a feature has more than 255 thresholds.
const FINE_ROWS: usize = 2000;
const WILD: [f32; 14] = [
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    0.0,
    -0.0,
    1e-36,
    -1e-36,
    1e-35,
    -1e-35,
    f32::MAX,
    f32::MIN,
    -1.0,
    3.7,
    1600.0,
];

/// How the columns of one model are drawn.
struct World {
    codes: [u32; 3],
    missing: f64,
    zero: f64,
    infinite: f64,
}

impl World {
    fn new(random: &mut Pcg64Mcg) -> Self {
        let share = |random: &mut Pcg64Mcg| *[0.0, 0.0, 0.05, 0.4].choose(random).unwrap();
        let codes = CATEGORIES.map(|most| random.random_range(1..=most));
        let (missing, zero, infinite) = (share(random), share(random), share(random) * 0.2);
        Self { codes, missing, zero, infinite }
    }

    fn row(&self, random: &mut Pcg64Mcg) -> [f32; COLUMNS] {
        std::array::from_fn(|column| {
            let code = column.checked_sub(COLUMNS - CATEGORIES.len());
            if random.random_bool(self.missing) {
                return f32::NAN;
            }
            match (code, column) {
                (Some(at), _) => random.random_range(0..self.codes[at]) as f32,
                _ if random.random_bool(self.zero) => 0.0,
                _ if random.random_bool(self.infinite) => {
                    *[f32::INFINITY, f32::NEG_INFINITY].choose(random).unwrap()
                }
                (_, 0..3) => random.random_range(-2.0..2.0),
                (_, 3..5) => (random.random_range(-1.0_f32..1.0) * 8.0).round(),
                _ => random.random_range(-40.0_f32..40.0).exp(),
            }
        })
    }

    fn wild_row(&self, random: &mut Pcg64Mcg) -> [f32; COLUMNS] {
        let row = self.row(random);
        row.map(|value| match random.random_range(0..5) {
            0 => *WILD.choose(random).unwrap(),
            _ => value,
        })
    }
}

fn label(row: &[f32; COLUMNS], random: &mut Pcg64Mcg) -> f32 {
    let finite = |value: f32| if value.is_finite() { value.clamp(-5.0, 5.0) } else { 0.5 };
    let code = if row[9].is_nan() { 1.0 } else { row[9] };
    let shape = finite(row[0]) + finite(row[3]) * finite(row[1]) + finite(row[6]);
    shape + if code % 7.0 < 3.0 { 1.5 } else { -1.5 } + random.random_range(-1.0_f32..1.0)
}

fn params(random: &mut Pcg64Mcg) -> Params {
    let objective = *["binary", "regression", "lambdarank"].choose(random).unwrap();
    let mut params = Params::reproducible(random.random_range(0..1000), 1)
        .with("objective", objective)
        .with("num_leaves", *[2, 4, 31, 127, 300].choose(random).unwrap())
        .with("max_depth", *[-1, 2, 6].choose(random).unwrap())
        .with("min_data_in_leaf", *[1, 1, 5, 500].choose(random).unwrap())
        .with("min_sum_hessian_in_leaf", 0.001)
        .with("min_data_per_group", *[1, 20].choose(random).unwrap())
        .with("cat_smooth", *[0.0, 10.0].choose(random).unwrap())
        .with("cat_l2", 0.1)
        .with("max_cat_threshold", *[4, 256].choose(random).unwrap())
        .with("max_cat_to_onehot", *[1, 4, 2000].choose(random).unwrap())
        .with("max_bin", *[15, 255, 1023].choose(random).unwrap())
        .with("min_data_in_bin", *[1, 3].choose(random).unwrap())
        .with("learning_rate", *[0.05, 0.5].choose(random).unwrap())
        .with("use_missing", random.random_bool(0.8))
        .with("zero_as_missing", random.random_bool(0.25))
        .with("extra_trees", random.random_bool(0.3))
        .with("feature_fraction", *[0.5, 1.0].choose(random).unwrap());
    params = match random.random_range(0..6) {
        0 => params.with("boosting", "dart"),
        1 if objective != "lambdarank" => {
            params.with("boosting", "rf").with("bagging_freq", 1).with("bagging_fraction", 0.6)
        }
        _ => params,
    };
    if random.random_bool(0.7) {
        params = params.with_categorical(&[COLUMNS - 3, COLUMNS - 2, COLUMNS - 1]);
    }
    params
}

/// What the thousand models had between them.
#[derive(Debug, Default)]
struct Seen {
    average: usize,
    single_leaf: usize,
    many_thresholds: usize,
    many_categories: usize,
    wide_trees: usize,
    infinite_thresholds: usize,
    zero_missing: usize,
}

impl Seen {
    fn note(&mut self, forest: &Forest) {
        self.average += usize::from(forest.average);
        self.single_leaf += usize::from(forest.trees.iter().any(|tree| tree.leaves == 1));
        self.wide_trees += usize::from(forest.trees.iter().any(|tree| tree.leaves > 256));
        let mut thresholds = vec![std::collections::BTreeSet::new(); COLUMNS];
        let (mut codes, mut infinite, mut zero) = (false, false, false);
        for node in &forest.nodes {
            match node.split {
                Split::Numeric { missing_band, .. } => {
                    thresholds[node.feature as usize].insert(node.threshold.to_bits());
                    infinite |= node.threshold.is_infinite() || node.threshold.abs() > 1e300;
                    zero |= missing_band > 0.0;
                }
                Split::Categorical { words, .. } => codes |= words > 16,
            }
        }
        self.many_thresholds += usize::from(thresholds.iter().any(|list| list.len() > 255));
        self.many_categories += usize::from(codes);
        self.infinite_thresholds += usize::from(infinite);
        self.zero_missing += usize::from(zero);
    }
}

fn train_one(random: &mut Pcg64Mcg, world: &World) -> String {
    let fine = random.random_bool(0.04);
    let count = if fine { FINE_ROWS } else { TRAINING_ROWS };
    let rows: Vec<_> = (0..count).map(|_| world.row(random)).collect();
    let mut params = params(random);
    if fine {
        params = params
            .with("max_bin", 1023)
            .with("min_data_in_bin", 1)
            .with("min_data_in_leaf", 1)
            .with("max_depth", -1)
            .with("num_leaves", 300)
            .with("extra_trees", "true");
    }
    let text = format!("{params:?}");
    let labels: Vec<f32> = rows
        .iter()
        .map(|row| match label(row, random) {
            signal if text.contains("binary") => f32::from(u8::from(signal > 0.3)),
            signal if text.contains("lambdarank") => signal.clamp(0.0, 3.0).floor(),
            signal => signal,
        })
        .collect();
    let groups = vec![20_u32; count / 20];
    let table = table(&rows);
    let target = Target { groups: Some(&groups), ..Target::labels(&labels) };
    let names: Vec<String> = (0..COLUMNS).map(|column| format!("f{column}")).collect();
    let dataset = Dataset::new(table, target, &names, &params).unwrap();
    let rounds = if fine { 12 } else { random.random_range(1..12) };
    train(&params, &dataset, None, rounds, None, |_| {}).unwrap().model
}

fn table(rows: &[[f32; COLUMNS]]) -> Table<'_> {
    let (values, layout) = (rows.as_flattened(), Layout::Rows);
    Table { values, rows: rows.len(), columns: COLUMNS, layout }
}

/// LightGBM's raw scores of rows whose first columns agree, against the walk and the evaluator.
fn check(random: &mut Pcg64Mcg, world: &World, model: &str, forest: &Forest) -> f64 {
    let constants = random.random_range(0..=COLUMNS);
    let rows = random.random_range(1..40);
    let first = world.wild_row(random);
    let rows: Vec<[f32; COLUMNS]> = (0..rows)
        .map(|_| {
            let mut row = world.wild_row(random);
            row[..constants].copy_from_slice(&first[..constants]);
            row
        })
        .collect();
    let columns: Vec<f32> =
        (constants..COLUMNS).flat_map(|c| rows.iter().map(move |row| row[c])).collect();
    let matrix = Matrix { constants: &first[..constants], columns: &columns, rows: rows.len() };
    let cached: Vec<bool> = (constants..COLUMNS).map(|_| random.random()).collect();
    let found = evaluate(forest, &matrix, &cached);
    let mut walked = vec![0.0; rows.len()];
    forest.score(&matrix, &mut walked);
    assert!(walked.iter().zip(&found).all(|(a, b)| a.to_bits() == b.to_bits()));
    let predictor = Predictor::new(model).unwrap();
    let mut oracle = vec![0.0; rows.len()];
    predictor.raw(table(&rows), &mut oracle).unwrap();
    check_contributions(&predictor, forest, &rows[..rows.len().min(3)]);
    oracle.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn check_contributions(predictor: &Predictor, forest: &Forest, rows: &[[f32; COLUMNS]]) {
    let oracle = predictor.contributions(table(rows)).unwrap();
    for (row, oracle) in rows.iter().zip(oracle.chunks_exact(COLUMNS + 1)) {
        let found = forest.contributions(row).unwrap();
        let size: f64 = oracle.iter().map(|value| value.abs()).sum();
        for (ours, theirs) in found.iter().zip(oracle) {
            assert!((ours - theirs).abs() <= 1e-9 * size.max(1.0), "{found:?}\n{oracle:?}");
        }
    }
}

#[test]
fn a_thousand_random_models_score_as_lightgbm_does() {
    let mut seen = Seen::default();
    let mut worst = 0.0_f64;
    for seed in 0..MODELS {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let world = World::new(&mut random);
        let model = train_one(&mut random, &world);
        let forest = Forest::parse(&model).unwrap();
        seen.note(&forest);
        let difference = check(&mut random, &world, &model, &forest);
        assert!(difference <= 1e-12, "model {seed} differs by {difference:e}");
        worst = worst.max(difference);
    }
    eprintln!("largest difference over {MODELS} models: {worst:e}; {seen:?}");
    let least = [
        seen.average,
        seen.single_leaf,
        seen.many_thresholds,
        seen.many_categories,
        seen.wide_trees,
        seen.zero_missing,
    ];
    assert!(least.iter().all(|&count| count >= 10), "options that are not covered: {seen:?}");
}
