use super::*;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

const COLUMNS: usize = 4;

/// Rows whose label depends on column 0, on the category in column 2, and on luck.
struct World {
    values: Vec<f32>,
    labels: Vec<f32>,
}

impl World {
    fn new(rows: usize, seed: u64) -> Self {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let (mut values, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..rows {
            let (signal, category) = (random.random::<f32>(), random.random_range(0..12));
            values.extend([
                signal,
                random.random::<f32>(),
                category as f32,
                random.random::<f32>(),
            ]);
            let chance = 0.5 * signal + if category % 3 == 0 { 0.4 } else { 0.0 };
            labels.push(f32::from(u8::from(random.random::<f32>() < chance)));
        }
        Self { values, labels }
    }

    fn table(&self) -> Table<'_> {
        let rows = self.labels.len();
        Table { values: &self.values, rows, columns: COLUMNS, layout: Layout::Rows }
    }

    fn target(&self) -> Target<'_> {
        Target::labels(&self.labels)
    }
}

fn names() -> Vec<String> {
    ["signal", "noise", "category", "more_noise"].map(String::from).to_vec()
}

fn params() -> Params {
    Params::reproducible(3, 1)
        .with("objective", "binary")
        .with("metric", "auc,binary_logloss")
        .with("num_leaves", 15)
        .with("learning_rate", 0.2)
        .with_categorical(&[2])
}

fn fit(world: &World, params: &Params, rounds: u32) -> Trained {
    let dataset = Dataset::new(world.table(), world.target(), &names(), params).unwrap();
    train(params, &dataset, None, rounds, None, |_| {}).unwrap()
}

/// The trees without the parameters, which name the thread count.
fn trees(model: &str) -> &str {
    model.split_once("end of trees").unwrap().0
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let world = World::new(3000, 1);
    let params = params().with("bagging_fraction", 0.7).with("bagging_freq", 1);
    let first = fit(&world, &params, 20).model;
    assert_eq!(first, fit(&world, &params, 20).model);
    let two = fit(&world, &params.clone().with("num_threads", 2), 20).model;
    assert_eq!(trees(&first), trees(&two), "threads do not change the trees");
    let other = fit(&world, &params.with("seed", 4), 20).model;
    assert_ne!(trees(&first), trees(&other), "the seed does");
}

#[test]
fn threads_that_train_at_once_do_not_disturb_one_another() {
    let world = World::new(2000, 2);
    let alone = [1, 2].map(|threads| fit(&world, &params().with("num_threads", threads), 10).model);
    let together: Vec<String> = std::thread::scope(|scope| {
        let run = |threads: usize| {
            let world = &world;
            move || fit(world, &params().with("num_threads", threads), 10).model
        };
        let workers: Vec<_> = [1, 2, 1, 2].map(|threads| scope.spawn(run(threads))).into();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    for (number, model) in together.iter().enumerate() {
        assert_eq!(*model, alone[number % 2]);
    }
}

#[test]
fn both_layouts_are_the_same_matrix() {
    let world = World::new(1500, 3);
    let rows = world.labels.len();
    let columns: Vec<f32> = (0..COLUMNS)
        .flat_map(|column| (0..rows).map(move |row| (row, column)))
        .map(|(row, column)| world.values[row * COLUMNS + column])
        .collect();
    let turned = Table { values: &columns, layout: Layout::Columns, ..world.table() };
    let dataset = Dataset::new(turned, world.target(), &names(), &params()).unwrap();
    let model = train(&params(), &dataset, None, 5, None, |_| {}).unwrap().model;
    assert_eq!(model, fit(&world, &params(), 5).model);
    let by_rows = predict_raw(&model, world.table()).unwrap();
    assert_eq!(by_rows, predict_raw(&model, turned).unwrap());
}

#[test]
fn early_stopping_keeps_the_best_round_in_either_direction() {
    let (world, later) = (World::new(1000, 4), World::new(1000, 5));
    let train_set = Dataset::new(world.table(), world.target(), &names(), &params()).unwrap();
    let valid = train_set.validation(later.table(), later.target(), &params()).unwrap();
    for (metric, sign) in [("auc", 1.0), ("binary_logloss", -1.0)] {
        let mut seen = Vec::new();
        let stop = Some(EarlyStop { metric, patience_rounds: 5 });
        let trained = train(&params(), &train_set, Some(&valid), 300, stop, |round| {
            let column = round.metrics.iter().position(|name| name == metric).unwrap();
            seen.push(round.values[column]);
        })
        .unwrap();
        let best = seen.iter().copied().fold(f64::NEG_INFINITY, |a, b| a.max(sign * b));
        assert_eq!(trained.best(metric).map(|value| sign * value), Some(best));
        assert_eq!(seen.len(), trained.history.len());
        assert_eq!(seen.len() as u32, trained.best_round + 5, "{metric} stopped in time");
        assert_eq!(trained.model.matches("\nTree=").count() as u32, trained.best_round);
        // The metric of the text itself, computed here, is the one reported.
        let scores = predict_transformed(&trained.model, later.table()).unwrap();
        if metric == "binary_logloss" {
            let loss: f64 = later
                .labels
                .iter()
                .zip(&scores)
                .map(|(&y, &p)| if y > 0.0 { -p.ln() } else { -(1.0 - p).ln() })
                .sum::<f64>()
                / scores.len() as f64;
            assert!((loss - -best).abs() < 1e-9, "{loss} {best}");
        }
    }
}

#[test]
fn names_categories_weights_and_groups_reach_the_model() {
    let world = World::new(2000, 6);
    let groups = vec![20_u32; 100];
    let params =
        params().with("objective", "lambdarank").with("metric", "ndcg").with("eval_at", "5,10");
    let target = Target { groups: Some(&groups), ..world.target() };
    let train_set = Dataset::new(world.table(), target, &names(), &params).unwrap();
    let valid = train_set.validation(world.table(), target, &params).unwrap();
    let stop = Some(EarlyStop { metric: "ndcg@10", patience_rounds: 3 });
    let trained = train(&params, &train_set, Some(&valid), 10, stop, |_| {}).unwrap();
    assert_eq!(trained.metrics, ["ndcg@5", "ndcg@10"]);
    assert!(trained.best("ndcg@10").unwrap() > 0.7);
    assert!(trained.model.contains("\nobjective=lambdarank\n"));
    assert!(trained.model.contains("\nfeature_names=signal noise category more_noise\n"));
    assert!(trained.model.contains("\ncat_threshold="), "column 2 is split as a category");

    // Rows of weight zero teach nothing: their labels may be turned without a trace.
    let weights: Vec<f32> = (0..2000).map(|row| if row < 1000 { 1.0 } else { 0.0 }).collect();
    let mut turned = world.labels.clone();
    turned[1000..].iter_mut().for_each(|label| *label = 1.0 - *label);
    let params = self::params().with("boost_from_average", "false");
    let fit_labels = |labels: &[f32]| {
        let target = Target { weights: Some(&weights), ..Target::labels(labels) };
        let dataset = Dataset::new(world.table(), target, &names(), &params).unwrap();
        train(&params, &dataset, None, 3, None, |_| {}).unwrap().model
    };
    assert_eq!(fit_labels(&world.labels), fit_labels(&turned));
}

#[test]
fn data_without_anything_to_split_gives_a_constant_model() {
    let world = World { values: vec![1.0; 100 * COLUMNS], labels: [0.0, 1.0].repeat(50) };
    let trained = fit(&world, &params(), 10);
    assert_eq!(trained.best_round, 1);
    let scores = predict_transformed(&trained.model, world.table()).unwrap();
    assert!(scores.iter().all(|score| (score - 0.5).abs() < 1e-6));
}

#[test]
fn what_lightgbm_would_misread_is_refused_before_it_is_called() {
    let world = World::new(10, 7);
    let fails = |table: Table, target: Target, names: &[String], params: &Params| {
        Dataset::new(table, target, names, params).err().expect("refused").to_string()
    };
    let (table, target) = (world.table(), world.target());
    let cut = Table { values: &world.values[1..], ..table };
    assert_eq!(fails(cut, target, &names(), &params()), "matrix: 39 values, expected 40");
    let empty = Table { values: &[], rows: 0, ..table };
    assert!(fails(empty, Target::labels(&[]), &names(), &params()).contains("is empty"));
    let short = Target::labels(&world.labels[1..]);
    assert_eq!(fails(table, short, &names(), &params()), "labels: 9 values, expected 10");
    let mut labels = world.labels.clone();
    labels[4] = f32::NAN;
    assert!(
        fails(table, Target::labels(&labels), &names(), &params()).starts_with("label of row 4")
    );
    let weights = Target { weights: Some(&[-1.0; 10]), ..target };
    assert!(fails(table, weights, &names(), &params()).starts_with("weight of row 0"));
    let groups = Target { groups: Some(&[4, 5]), ..target };
    assert!(fails(table, groups, &names(), &params()).contains("hold 9 rows"));
    let mut blank = names();
    blank[1] = "two words".into();
    assert!(fails(table, target, &blank, &params()).contains("`two words`"));
    let injected = params().with("max_bin", "15 objective=regression");
    assert!(fails(table, target, &names(), &injected).contains("parameter `max_bin"));
}

#[test]
fn what_lightgbm_refuses_comes_back_in_its_own_words() {
    let world = World::new(500, 8);
    let dataset = Dataset::new(world.table(), world.target(), &names(), &params()).unwrap();
    let run = |params: &Params, valid: Option<&Dataset>, metric: Option<&str>| {
        let stop = metric.map(|metric| EarlyStop { metric, patience_rounds: 1 });
        train(params, &dataset, valid, 1, stop, |_| {}).unwrap_err().to_string()
    };
    let nonsense = run(&params().with("objective", "nonsense"), None, None);
    assert!(nonsense.contains("LGBM_BoosterCreate") && nonsense.contains("nonsense"), "{nonsense}");
    assert!(run(&params(), None, Some("auc")).contains("needs a validation set"));
    let valid = dataset.validation(world.table(), world.target(), &params()).unwrap();
    let unknown = run(&params(), Some(&valid), Some("ndcg@5"));
    assert!(unknown.contains("[\"auc\", \"binary_logloss\"]"), "{unknown}");
    let narrow = Table { values: &world.values[..3], rows: 1, columns: 3, layout: Layout::Rows };
    let model = fit(&world, &params(), 2).model;
    let shape = predict_raw(&model, narrow).unwrap_err().to_string();
    assert!(shape.contains("number of features"), "{shape}");
}

#[test]
fn a_predictor_scores_as_the_oracle_and_refuses_other_shapes() {
    let world = World::new(300, 5);
    let model = fit(&world, &params(), 8).model;
    let predictor = Predictor::new(&model).unwrap();
    let mut scores = vec![0.0; 300];
    predictor.raw(world.table(), &mut scores).unwrap();
    assert_eq!(scores, predict_raw(&model, world.table()).unwrap());
    let owed = predictor.contributions(world.table()).unwrap();
    for (row, score) in owed.chunks_exact(COLUMNS + 1).zip(&scores) {
        assert!((row.iter().sum::<f64>() - score).abs() < 1e-9);
    }
    let narrow = Table { columns: 2, rows: 600, ..world.table() };
    let message = predictor.raw(narrow, &mut [0.0; 600]).unwrap_err().to_string();
    assert_eq!(message, "columns of the table: 2 values, expected 4");
    let message = predictor.raw(world.table(), &mut scores[1..]).unwrap_err().to_string();
    assert_eq!(message, "places for the prediction: 299 values, expected 300");
    assert!(Predictor::new("no model").is_err());
    let three = params()
        .with("objective", "multiclass")
        .with("num_class", 3)
        .with("metric", "multi_logloss");
    let labels: Vec<f32> = (0..300).map(|row| (row % 3) as f32).collect();
    let target = Target::labels(&labels);
    let dataset = Dataset::new(world.table(), target, &names(), &three).unwrap();
    let model = train(&three, &dataset, None, 3, None, |_| {}).unwrap().model;
    let message = Predictor::new(&model).err().map(|error| error.to_string());
    assert_eq!(message.as_deref(), Some("classes: 3 values, expected 1"));
}
