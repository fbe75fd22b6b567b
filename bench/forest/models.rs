//! Models of the sizes that are compared, and a request for each.
//!
//! 120 features as in a request: 30 of the user and 15 of the context, which are the same for all
//! candidates, 45 of the item, 30 of the pair. How many splits fall on the first two groups decides
//! how much of a forest can be pruned, so the labels lean on them until that share is .50 +- .02.

use std::path::PathBuf;

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use shortlist::ffi::lightgbm::{self, Dataset, Layout, Params, Table, Target};

pub const FEATURES: usize = 120;
pub const CONSTANTS: usize = 45;
pub const ITEM_FEATURES: usize = 45;
/// Candidates of the request.
pub const ROWS: usize = 500;

/// A model to train.
pub struct Spec {
    pub trees: u32,
    pub leaves: u32,
    /// 30 of the features hold category codes.
    pub categorical: bool,
}

pub const SPECS: [Spec; 5] = [
    Spec { trees: 100, leaves: 31, categorical: false },
    Spec { trees: 300, leaves: 63, categorical: false },
    Spec { trees: 300, leaves: 63, categorical: true },
    Spec { trees: 500, leaves: 127, categorical: false },
    Spec { trees: 1000, leaves: 63, categorical: false },
];

impl Spec {
    pub fn work(&self) -> String {
        format!("{ROWS}x{FEATURES}/{}x{}", self.trees, self.leaves)
    }

    pub fn kind(&self) -> &'static str {
        if self.categorical { "cat" } else { "num" }
    }

    pub fn name(&self) -> String {
        format!("{}x{}-{}", self.trees, self.leaves, self.kind())
    }
}

/// A trained model and one request.
pub struct Model {
    pub text: String,
    /// Row-major.
    pub values: Vec<f32>,
    pub rows: usize,
    /// Share of the splits on constant features.
    pub constant_share: f64,
    /// Where text and rows lie, for peers in other processes.
    pub text_path: PathBuf,
    pub rows_path: PathBuf,
}

impl Model {
    pub fn value(&self, row: usize, feature: usize) -> f32 {
        self.values[row * FEATURES + feature]
    }

    /// The same model for a request of another size.
    pub fn with_rows(&self, rows: usize) -> Self {
        let values = request(rows);
        let (text, text_path) = (self.text.clone(), self.text_path.clone());
        let (constant_share, rows_path) = (self.constant_share, self.rows_path.clone());
        Self { text, values, rows, constant_share, text_path, rows_path }
    }
}

/// Trains the model, or reads what an earlier run trained.
pub fn load(spec: &Spec) -> Model {
    let dir = folder();
    std::fs::create_dir_all(&dir).expect("a folder for models");
    let text_path = dir.join(format!("{}.txt", spec.name()));
    let text = std::fs::read_to_string(&text_path).unwrap_or_else(|_| {
        let text = generate(spec);
        std::fs::write(&text_path, &text).expect("room for a model");
        text
    });
    let values = request(ROWS);
    let rows_path = dir.join("rows.f32");
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(&rows_path, bytes).expect("room for the rows");
    let constant_share = constant_share(&text);
    Model { text, values, rows: ROWS, constant_share, text_path, rows_path }
}

/// Beside the executable: `target/release/deps/forest-... -> target/bench-forest`.
fn folder() -> PathBuf {
    let exe = std::env::current_exe().expect("a path of this program");
    let target = exe.ancestors().nth(3).expect("target/<profile>/deps/<name>");
    target.join("bench-forest")
}

/// The first trees of a model.
pub fn first_trees(text: &str, trees: usize) -> String {
    let end = text.find(&format!("Tree={trees}\n")).or_else(|| text.find("end of trees"));
    let lines = text[..end.unwrap_or(text.len())].lines();
    // The header's sizes are those of all trees, and optional.
    let kept: Vec<&str> = lines.filter(|line| !line.starts_with("tree_sizes=")).collect();
    kept.join("\n") + "\nend of trees\n"
}

/// Share of split nodes on the constant features, from the text.
pub fn constant_share(text: &str) -> f64 {
    share_below(text, CONSTANTS)
}

/// Share of split nodes on the first features.
pub fn share_below(text: &str, features: usize) -> f64 {
    let (mut constant, mut all) = (0, 0);
    for line in text.lines().filter_map(|line| line.strip_prefix("split_feature=")) {
        for feature in line.split_ascii_whitespace() {
            all += 1;
            let feature: usize = feature.parse().expect("a feature's number");
            constant += usize::from(feature < features);
        }
    }
    f64::from(constant as u32) / f64::from(all.max(1) as u32)
}

fn is_category(feature: usize) -> bool {
    feature % 4 == 3
}

fn value(random: &mut Pcg64Mcg, feature: usize) -> f32 {
    if is_category(feature) {
        // Few, some and many categories, the small codes more frequent.
        let codes = [8.0_f32, 40.0, 200.0][feature / 4 % 3];
        return (random.random::<f32>().powi(2) * codes).floor();
    }
    match feature % 5 {
        0 => random.random_range(-1.0..1.0),
        1 => random.random_range(0.0_f32..1.0).powi(3),
        2 => random.random_range(-4.0_f32..4.0).exp(),
        3 if random.random_bool(0.1) => f32::NAN,
        3 => random.random_range(0.0..100.0),
        _ => random.random_range(0_u32..60) as f32,
    }
}

fn row(random: &mut Pcg64Mcg) -> Vec<f32> {
    (0..FEATURES).map(|feature| value(random, feature)).collect()
}

/// One user and context, `rows` items.
fn request(rows: usize) -> Vec<f32> {
    let mut random = Pcg64Mcg::seed_from_u64(77);
    let user = row(&mut random);
    let candidate = |_| {
        let mut row = row(&mut random);
        row[..CONSTANTS].copy_from_slice(&user[..CONSTANTS]);
        row
    };
    (0..rows).flat_map(candidate).collect()
}

/// Trains with the weight of the constant features that gives the wanted share of splits. Later
/// trees split on weaker signals, so only whole models tell their share.
fn generate(spec: &Spec) -> String {
    const TRIES: usize = 8;
    let (mut low, mut high) = (0.25_f64, 4.0_f64);
    let mut best = (f64::INFINITY, String::new());
    for _ in 0..TRIES {
        let weight = (low * high).sqrt();
        let text = train(spec, weight);
        let share = constant_share(&text);
        eprintln!("{}: weight {weight:.3} gives a share of {share:.3}", spec.name());
        if (share - 0.5).abs() < best.0 {
            best = ((share - 0.5).abs(), text);
        }
        if best.0 <= 0.015 {
            break;
        }
        if share < 0.5 { low = weight } else { high = weight }
    }
    best.1
}

/// `feature_contri` multiplies the gain of a feature's splits.
fn train(spec: &Spec, weight: f64) -> String {
    const TRAINING_ROWS: usize = 12_000;
    let mut random = Pcg64Mcg::seed_from_u64(5);
    let rows: Vec<Vec<f32>> = (0..TRAINING_ROWS).map(|_| row(&mut random)).collect();
    let strength: Vec<f32> = (0..FEATURES).map(|_| random.random_range(0.2..1.0)).collect();
    let signal = |row: &Vec<f32>, random: &mut Pcg64Mcg| {
        let part = |(feature, &value): (usize, &f32)| {
            let value = if value.is_nan() { 0.7 } else { value };
            strength[feature] * (value * (1.0 + feature as f32 * 0.37)).sin()
        };
        row.iter().enumerate().map(part).sum::<f32>() + random.random_range(-4.0_f32..4.0)
    };
    let labels: Vec<f32> =
        rows.iter().map(|row| f32::from(u8::from(signal(row, &mut random) > 1.0))).collect();
    let contributions: Vec<String> = (0..FEATURES)
        .map(|feature| if feature < CONSTANTS { weight } else { 1.0 }.to_string())
        .collect();
    let mut params = Params::reproducible(1, 1)
        .with("objective", "binary")
        .with("num_leaves", spec.leaves)
        .with("min_data_in_leaf", 20)
        // Few features to choose from at a node: the share answers the weight smoothly.
        .with("feature_fraction_bynode", 0.08)
        .with("learning_rate", 0.05)
        .with("feature_contri", contributions.join(","));
    if spec.categorical {
        let columns: Vec<usize> = (0..FEATURES).filter(|&feature| is_category(feature)).collect();
        params = params.with_categorical(&columns);
    }
    let flat = rows.concat();
    let table =
        Table { values: &flat, rows: TRAINING_ROWS, columns: FEATURES, layout: Layout::Rows };
    let names: Vec<String> = (0..FEATURES).map(|feature| format!("f{feature}")).collect();
    let dataset =
        Dataset::new(table, Target::labels(&labels), &names, &params).expect("a table of numbers");
    lightgbm::train(&params, &dataset, None, spec.trees, None, |_| {}).expect("training").model
}
