mod evaluator;
mod fuzz;
#[cfg(feature = "etl")]
mod random_models;

use super::*;
use proptest::prelude::*;

/// Two trees over `a` (numeric, NaN goes left in tree 0), `b` (category) and `c` (unused).
/// Tree 0: a <= 0.5 ? 1 : (b in {1, 33} ? 2 : 4). Tree 1: the constant 0.25.
const SMALL: &str = "\
tree
version=v4
num_class=1
num_tree_per_iteration=1
label_index=0
max_feature_idx=2
objective=binary sigmoid:2
feature_names=a b c
feature_infos=[0:1] 0:1:33 none
tree_sizes=500 300

Tree=0
num_leaves=3
num_cat=1
split_feature=0 1
split_gain=10 2.5
threshold=0.5 0
decision_type=10 1
left_child=-1 -2
right_child=1 -3
leaf_value=1 2 4
leaf_weight=1 1 1
leaf_count=1 1 1
internal_value=0 0
internal_weight=0 0
internal_count=3 2
cat_boundaries=0 2
cat_threshold=2 2
is_linear=0
shrinkage=1


Tree=1
num_leaves=1
num_cat=0
split_feature=
split_gain=
threshold=
decision_type=
left_child=
right_child=
leaf_value=0.25
leaf_weight=
leaf_count=
internal_value=
internal_weight=
internal_count=
is_linear=0
shrinkage=1


end of trees

feature_importances:
a=10

parameters:
[boosting: gbdt]
end of parameters
";

/// Scores of rows given one by one.
fn scores(forest: &Forest, rows: &[[f32; 3]]) -> Vec<f64> {
    let columns: Vec<f32> = (0..3).flat_map(|c| rows.iter().map(move |row| row[c])).collect();
    let mut out = vec![f64::NAN; rows.len()];
    forest.score(&Matrix::new(&[], &columns, rows.len()), &mut out);
    out
}

#[test]
fn a_model_written_by_hand_scores_as_read_by_eye() {
    let forest = Forest::parse(SMALL).unwrap();
    assert_eq!(forest.feature_names(), ["a", "b", "c"]);
    assert_eq!((forest.feature_count(), forest.tree_count()), (3, 2));
    let nan = f32::NAN;
    let rows = [
        [0.5, 1.0, nan],
        [0.6, 1.0, nan],
        [0.6, 33.9, 0.0],
        [0.6, 2.0, 0.0],
        [0.6, -1.0, 0.0],
        [0.6, f32::INFINITY, 0.0],
        [0.6, nan, 0.0],
        [nan, 1.0, 0.0],
        [f32::NEG_INFINITY, 1.0, 0.0],
    ];
    assert_eq!(scores(&forest, &rows), [1.25, 2.25, 2.25, 4.25, 4.25, 4.25, 4.25, 1.25, 1.25]);
    let expected = 1.0 / (1.0 + (-2.0_f64 * 1.25).exp());
    assert_eq!(forest.probability(1.25), expected);
    let importance = forest.importance();
    assert_eq!((importance[0].gain, importance[0].splits), (10.0, 1));
    assert_eq!((importance[1].gain, importance[1].splits), (2.5, 1));
    assert_eq!(importance[2], Importance { feature: "c".into(), gain: 0.0, splits: 0 });
}

#[test]
fn constants_are_the_first_columns_of_every_row() {
    let forest = Forest::parse(SMALL).unwrap();
    let (mut split, mut whole) = ([0.0; 2], [0.0; 2]);
    forest.score(&Matrix::new(&[0.6, 1.0], &[0.0, 0.0], 2), &mut whole);
    assert_eq!(whole, [2.25, 2.25]);
    forest.score(&Matrix::new(&[0.6], &[1.0, 2.0, 0.0, 0.0], 2), &mut split);
    assert_eq!(split, [2.25, 4.25]);
    forest.score(&Matrix::new(&[0.6], &[], 0), &mut []);
}

#[test]
fn missing_values_follow_the_decision_type() {
    // (decision type, threshold) and where NaN, 0, 1e-36 and 0.5 go. L: 1, R: 4 (b = 0).
    let cases = [
        ("2 1", "-0.1 0", [4.0, 4.0, 4.0, 4.0]), // nothing is missing: NaN is 0, right of -0.1
        ("0 1", "0.1 0", [1.0, 1.0, 1.0, 4.0]),
        ("8 1", "0.1 0", [4.0, 1.0, 1.0, 4.0]), // NaN is missing, goes right
        ("10 1", "-0.1 0", [1.0, 4.0, 4.0, 4.0]), // NaN is missing, goes left
        ("6 1", "-0.1 0", [1.0, 1.0, 1.0, 4.0]), // zero and NaN are missing, go left
        ("4 1", "0.1 0", [4.0, 4.0, 4.0, 4.0]), // zero and NaN are missing, go right
        ("8 1", "0 0", [4.0, 1.0, 1.0, 4.0]),   // 1e-36 is zero to LightGBM
        ("8 1", "-1e-37 0", [4.0, 4.0, 4.0, 4.0]),
    ];
    for (decision, threshold, expected) in cases {
        let text = SMALL
            .replace("decision_type=10 1", &format!("decision_type={decision}"))
            .replace("threshold=0.5 0\n", &format!("threshold={threshold}\n"));
        let forest = Forest::parse(&text).unwrap();
        let rows = [f32::NAN, 0.0, 1e-36, 0.5].map(|a| [a, 0.0, 0.0]);
        let found: Vec<f64> = scores(&forest, &rows).iter().map(|score| score - 0.25).collect();
        assert_eq!(found, expected, "decision {decision}, threshold {threshold}");
    }
}

#[test]
fn averages_and_raw_objectives() {
    let forest = Forest::parse(&SMALL.replace("binary sigmoid:2", "regression")).unwrap();
    assert_eq!(forest.probability(3.5), 3.5);
    let text = SMALL.replace("binary sigmoid:2", "lambdarank\naverage_output");
    let forest = Forest::parse(&text).unwrap();
    assert_eq!(forest.probability(3.5), 1.75, "two trees");
    assert_eq!(scores(&forest, &[[0.0; 3]]), [1.25], "raw scores stay sums");
}

#[test]
fn refusals_name_line_and_field() {
    let cases = [
        ("tree\nversion", "xtree\nversion", "line 1: `xtree` is not the first line"),
        (
            "version=v4",
            "version=v9",
            "line 2: `version=v9` is not supported: this program reads v3",
        ),
        ("num_class=1", "num_class=3", "line 3: `num_class=3` is not supported: only models with"),
        ("iteration=1", "iteration=x", "line 4: `num_tree_per_iteration`: `x` is not a whole"),
        ("label_index=0", "lable_index=0", "line 5: unknown field `lable_index`"),
        ("x=2", "x=4294967295", "line 8: `feature_names` has 3 values, expected 4294967296"),
        ("x=2", "x=-1", "line 6: `max_feature_idx`: `-1` is not a whole number from 0"),
        ("x=2", "x=3", "line 8: `feature_names` has 3 values, expected 4"),
        ("binary sigmoid:2", "poisson", "line 7: `objective=poisson` is not supported"),
        ("binary sigmoid:2", "multiclass num_class:3", "line 7: `objective=multiclass"),
        ("binary sigmoid:2", "regression sqrt", "line 7: `objective=regression sqrt` is not"),
        ("sigmoid:2", "sigmoid:-2", "line 7: `objective`: `binary sigmoid:-2` is not"),
        ("sizes=500 300", "sizes=500", "line 10: `tree_sizes` has 1 values, expected 2"),
        ("Tree=1", "Tree=7", "line 33: `Tree`: `7` is not the next tree's number"),
        ("num_leaves=3", "num_leaves=0", "line 13: `num_leaves`: `0` is not at least 1"),
        ("num_leaves=3", "num_leaves=2147483648", "has 3 values, expected 2147483648"),
        ("num_leaves=3", "num_leaves=3\nnum_leaves=3", "line 14: field `num_leaves` stands there"),
        ("num_cat=1", "num_cat=18446744073709551615", "is not a possible count"),
        ("num_cat=1", "num_cat=0", "tree 0: `threshold` of node 1 is 0, outside 0..0"),
        ("threshold=0.5 0\n", "threshold=0.5 7\n", "`threshold` of node 1 is 7, outside 0..1"),
        ("threshold=0.5 0\n", "threshold=0.5 -1\n", "`threshold` of node 1 is -1, outside 0..1"),
        ("threshold=0.5 0\n", "threshold=nan 0\n", "line 17: `threshold`: `nan` is not a thresh"),
        ("feature=0 1", "feature=0 3", "line 15: tree 0: `split_feature` of node 1 is 3, outside"),
        ("feature=0 1", "feature=-1 1", "`split_feature` of node 0 is -1, outside 0..3"),
        ("type=10 1", "type=12 1", "line 18: `decision_type`: `12` is not a known kind"),
        ("left_child=-1 -2", "left_child=1 -2", "line 19: tree 0: node or leaf 1 has two parents"),
        ("left_child=-1 -2", "left_child=0 -2", "line 19: tree 0: node or leaf 0 has two parents"),
        ("left_child=-1 -2", "left_child=-1 0", "line 19: tree 0: node or leaf 0 has two parents"),
        ("left_child=-1 -2", "left_child=-1 -9", "`left_child` of node 1 is -9, outside 0..3"),
        ("right_child=1 -3", "right_child=2 -3", "`right_child` of node 0 is 2, outside 0..2"),
        ("right_child=1 -3", "right_child=-2 -3", "only 1 of 2 nodes are reached"),
        ("right_child=1 -3", "right_child=1", "line 20: `right_child` has 1 values, expected 2"),
        ("left_child=-1 -2\n", "", "line 32: field `left_child` is missing before this line"),
        ("leaf_value=1 2 4", "leaf_value=1 2", "line 21: `leaf_value` has 2 values, expected 3"),
        ("leaf_value=1 2 4", "leaf_value=1 inf 4", "line 21: `leaf_value`: `inf` is not finite"),
        ("boundaries=0 2", "boundaries=0 4000000000", "`cat_threshold` has 2 values, expected 400"),
        ("boundaries=0 2", "boundaries=2 0", "`cat_boundaries`: `2 0` is not a rising sequence"),
        ("is_linear=0", "is_linear=1", "`is_linear=1` is not supported: train with"),
        ("shrinkage=1", "shrinkage=1\nnew_thing=4", "unknown field `new_thing`"),
        ("end of trees", "", "unknown field `feature_importances:`"),
    ];
    for (from, to, message) in cases {
        let text = SMALL.replacen(from, to, 1);
        assert_ne!(text, SMALL, "{from}");
        let found = Forest::parse(&text).expect_err(to).to_string();
        assert!(found.contains(message), "{from} -> {to}\nfound    {found}\nexpected {message}");
    }
    let truncated = SMALL.split_once("end of trees").unwrap().0;
    let found = Forest::parse(truncated).unwrap_err().to_string();
    assert!(found.contains("before `end of trees`: it is truncated"), "{found}");
}

#[test]
fn windows_line_ends_are_read() {
    let forest = Forest::parse(&SMALL.replace('\n', "\r\n")).unwrap();
    assert_eq!(scores(&forest, &[[0.0; 3]]), [1.25]);
}

/// Whatever was accepted can be scored.
fn parse_and_score(text: &str) {
    if let Ok(forest) = Forest::parse(text) {
        let row: Vec<f32> = (0..forest.feature_count()).map(|f| f as f32 * 0.4).collect();
        let mut out = [0.0];
        forest.score(&Matrix::new(&row, &[], 1), &mut out);
        forest.score(&Matrix::new(&[], &row, 1), &mut out);
        forest.importance();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn garbled_text_never_panics(
        edits in prop::collection::vec((0..SMALL.len(), 0_u8..4, "[-0-9a-z=. \n]{0,3}"), 1..4),
        cut in 0..SMALL.len() * 4,
    ) {
        let mut text = SMALL.to_owned();
        for (at, kind, piece) in edits {
            let at = at.min(text.len());
            let end = (at + kind as usize).min(text.len());
            text.replace_range(at..end, &piece);
        }
        text.truncate(cut);
        parse_and_score(&text);
    }

    #[test]
    fn swapped_numbers_never_panic(
        edits in prop::collection::vec((0_usize..60, prop::sample::select(NUMBERS)), 1..5),
    ) {
        let is_number = |c: char| c.is_ascii_digit() || c == '-';
        let mut text = SMALL.to_owned();
        for (skip, number) in edits {
            let mut starts = text.match_indices(is_number).map(|(at, _)| at);
            if let Some(at) = starts.nth(skip + 4) {
                let end = text[at..].find(|c| !is_number(c)).map_or(text.len(), |len| at + len);
                text.replace_range(at..end, number);
            }
        }
        parse_and_score(&text);
    }
}

const NUMBERS: &[&str] = &[
    "0",
    "1",
    "2",
    "3",
    "-1",
    "-2",
    "-3",
    "7",
    "31",
    "32",
    "255",
    "256",
    "2147483647",
    "-2147483648",
    "4294967295",
    "18446744073709551615",
    "1e308",
    "-0",
    "99999999999999999999999",
];

#[cfg(feature = "etl")]
mod oracle {
    //! Models that LightGBM trains, scored by LightGBM and by the forest.

    use super::*;
    use crate::ffi::lightgbm::{
        Dataset, Layout, Params, Table, Target, predict_raw, predict_transformed, train,
    };
    use std::collections::HashSet;

    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    const COLUMNS: usize = 12;
    /// Columns 8..12 hold codes; column 11 has more categories than one-hot splits take.
    const CATEGORIES: [u32; 4] = [3, 20, 100, 900];

    fn training_row(random: &mut Pcg64Mcg) -> [f32; COLUMNS] {
        let mut row = [0.0; COLUMNS];
        for (column, value) in row.iter_mut().enumerate() {
            let plain = match column {
                0..4 => random.random_range(-2.0_f32..2.0),
                4..6 => (random.random_range(-1.0_f32..1.0) * 8.0).round(),
                6..8 => random.random_range(-8.0_f32..8.0).exp(),
                _ => random.random_range(0..CATEGORIES[column - 8]) as f32,
            };
            *value = match random.random_range(0..10) {
                0 if column % 2 == 1 => f32::NAN,
                1 | 2 if column < 8 => 0.0,
                _ => plain,
            };
        }
        row
    }

    /// A row as a request could send it: values never seen in training among them.
    fn wild_row(random: &mut Pcg64Mcg) -> [f32; COLUMNS] {
        const WILD: [f32; 16] = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            0.0,
            -0.0,
            1e-36,
            -1e-36,
            1e-35,
            -1e-35,
            2e-35,
            f32::MAX,
            f32::MIN,
            -1.0,
            3.7,
            1e10,
            901.0,
        ];
        training_row(random).map(|value| match random.random_range(0..4) {
            0 => *WILD.choose(random).unwrap(),
            _ => value,
        })
    }

    fn label(row: &[f32; COLUMNS], random: &mut Pcg64Mcg) -> f32 {
        let code = if row[11].is_nan() { 1.0 } else { row[11] };
        let shape = row[0] + row[2] * row[4].max(0.0) + if code % 7.0 < 3.0 { 1.0 } else { -1.0 };
        let missing = if row[1].is_nan() { 0.7 } else { 0.0 };
        shape + missing + row[9].max(0.0) * 0.03 + random.random_range(-1.0_f32..1.0)
    }

    /// Trains on 3,000 rows; `labels` turns the noisy signal into a label.
    fn train_model(params: &Params, rounds: u32, labels: fn(f32) -> f32) -> String {
        let mut random = Pcg64Mcg::seed_from_u64(11);
        let rows: Vec<_> = (0..3000).map(|_| training_row(&mut random)).collect();
        let labels: Vec<f32> = rows.iter().map(|row| labels(label(row, &mut random))).collect();
        let groups = [30_u32; 100];
        let table = Table {
            values: rows.as_flattened(),
            rows: 3000,
            columns: COLUMNS,
            layout: Layout::Rows,
        };
        let target = Target { groups: Some(&groups), ..Target::labels(&labels) };
        let names: Vec<String> = (0..COLUMNS).map(|column| format!("f{column}")).collect();
        let dataset = Dataset::new(table, target, &names, params).unwrap();
        train(params, &dataset, None, rounds, None, |_| {}).unwrap().model
    }

    /// Largest difference to LightGBM over wild rows, with 0, 5 and all columns constant.
    fn difference(model: &str) -> f64 {
        let forest = Forest::parse(model).unwrap();
        assert_eq!(model.matches("\nTree=").count(), forest.tree_count());
        let mut random = Pcg64Mcg::seed_from_u64(12);
        let mut worst = 0.0_f64;
        for constant in [0, 5, COLUMNS] {
            let first = wild_row(&mut random);
            let rows: Vec<_> = (0..2000)
                .map(|_| {
                    let mut row = wild_row(&mut random);
                    row[..constant].copy_from_slice(&first[..constant]);
                    row
                })
                .collect();
            let columns: Vec<f32> = (constant..COLUMNS)
                .flat_map(|column| rows.iter().map(move |row| row[column]))
                .collect();
            let mut out = vec![f64::NAN; rows.len()];
            let matrix = Matrix { constants: &first[..constant], columns: &columns, rows: 2000 };
            forest.score(&matrix, &mut out);
            let table = Table {
                values: rows.as_flattened(),
                rows: rows.len(),
                columns: COLUMNS,
                layout: Layout::Rows,
            };
            let raw = predict_raw(model, table).unwrap();
            let transformed = predict_transformed(model, table).unwrap();
            for ((ours, raw), transformed) in out.iter().zip(&raw).zip(&transformed) {
                worst = worst.max((ours - raw).abs());
                assert!(raw.is_finite());
                let gap = (forest.probability(*raw) - transformed).abs();
                assert!(gap <= 1e-12 * transformed.abs().max(1.0), "prediction differs by {gap}");
            }
        }
        worst
    }

    fn params(objective: &str) -> Params {
        Params::reproducible(5, 1)
            .with("objective", objective)
            .with("num_leaves", 31)
            .with("min_data_in_leaf", 5)
            .with("min_data_per_group", 5)
            .with_categorical(&[8, 9, 10, 11])
    }

    fn is_positive(signal: f32) -> f32 {
        f32::from(u8::from(signal > 0.3))
    }

    fn grade(signal: f32) -> f32 {
        signal.clamp(0.0, 3.0).floor()
    }

    #[test]
    fn scores_are_lightgbms_to_the_last_bit() {
        let binary = || params("binary");
        let forest = || {
            binary().with("boosting", "rf").with("bagging_freq", 1).with("bagging_fraction", 0.6)
        };
        let fine =
            || binary().with("max_bin", 1023).with("extra_trees", "true").with("num_leaves", 127);
        let same = |signal: f32| signal;
        type Labels = fn(f32) -> f32;
        let models: [(&str, Params, u32, Labels); 14] = [
            ("binary", binary(), 40, is_positive),
            ("sigmoid", binary().with("sigmoid", 2.5), 20, is_positive),
            ("numeric only", binary().with("categorical_feature", "8"), 40, is_positive),
            ("zero as missing", binary().with("zero_as_missing", "true"), 30, is_positive),
            ("nothing missing", binary().with("use_missing", "false"), 30, is_positive),
            ("one-hot", binary().with("max_cat_to_onehot", 1000), 30, is_positive),
            ("many thresholds", fine(), 60, is_positive),
            ("deep", binary().with("num_leaves", 500).with("min_data_in_leaf", 1), 10, is_positive),
            ("extra trees", binary().with("extra_trees", "true"), 30, is_positive),
            ("single leaf", binary().with("min_data_in_leaf", 3000), 3, is_positive),
            ("random forest", forest(), 20, is_positive),
            ("regression", params("regression"), 40, same),
            ("absolute error", params("regression_l1"), 20, same),
            ("lambdarank", params("lambdarank"), 40, grade),
        ];
        let mut splits = Vec::new();
        for (name, params, rounds, labels) in models {
            let model = train_model(&params, rounds, labels);
            assert_eq!(difference(&model), 0.0, "{name}");
            let forest = Forest::parse(&model).unwrap();
            match name {
                "many thresholds" => assert!(most_thresholds(&forest) > 255),
                "single leaf" => assert!(forest.nodes.is_empty()),
                "random forest" => assert!(forest.average),
                _ => splits.extend(forest.nodes.iter().map(|node| node.split)),
            }
        }
        let band = ZERO_BAND;
        for missing_left in [false, true] {
            for missing_band in [-1.0, band] {
                assert!(splits.contains(&Split::Numeric { missing_left, missing_band }));
            }
        }
        let wide = |split: &Split| matches!(split, Split::Categorical { words, .. } if *words > 16);
        assert!(splits.iter().any(wide), "codes above 512 are split");
    }

    /// Distinct thresholds of the feature that has most of them.
    fn most_thresholds(forest: &Forest) -> usize {
        let distinct = |feature: u32| {
            let nodes = forest.nodes.iter().filter(|node| node.feature == feature);
            nodes.map(|node| node.threshold.to_bits()).collect::<HashSet<u64>>().len()
        };
        (0..8).map(distinct).max().unwrap()
    }

    #[test]
    fn dart_with_dropped_and_scaled_trees() {
        let params = params("binary").with("boosting", "dart").with("drop_rate", 0.3);
        assert_eq!(difference(&train_model(&params, 30, is_positive)), 0.0);
    }

    #[test]
    fn linear_trees_are_refused() {
        let params = params("regression").with("linear_tree", "true");
        let model = train_model(&params, 3, |signal| signal);
        let found = Forest::parse(&model).unwrap_err().to_string();
        assert!(found.contains("`is_linear=1` is not supported"), "{found}");
    }

    #[test]
    fn importance_is_what_the_text_reports() {
        let model = train_model(&params("binary"), 20, is_positive);
        let section = model.split_once("feature_importances:\n").unwrap().1;
        let importance = Forest::parse(&model).unwrap().importance();
        let mut named = 0;
        for line in section.lines().take_while(|line| !line.is_empty()) {
            let (name, gain) = line.split_once('=').unwrap();
            let gain: f64 = gain.parse().unwrap();
            let ours = importance.iter().find(|entry| entry.feature == name).unwrap();
            // The text has six digits of each gain and the whole part of each sum.
            assert!((ours.gain - gain).abs() <= 1.0 + 1e-4 * gain, "{line} {ours:?}");
            assert!(ours.splits > 0);
            named += 1;
        }
        assert!(named >= 6, "the model uses its columns");
    }
}

#[test]
fn a_line_written_into_a_model_moves_probabilities_and_no_order() {
    let line = Platt { slope: 0.5, intercept: -1.0 };
    let text = line.write_into(SMALL).unwrap();
    let (plain, moved) = (Forest::parse(SMALL).unwrap(), Forest::parse(&text).unwrap());
    let rows = [[0.5, 1.0, 0.0], [0.6, 1.0, 0.0], [0.6, 2.0, 0.0]];
    let (before, after) = (scores(&plain, &rows), scores(&moved, &rows));
    for (before, after) in before.iter().zip(after) {
        assert_eq!(after, before - 2.0, "the intercept over the slope");
        assert!((moved.probability(after) - line.probability(*before)).abs() < 1e-15);
    }
    assert!(text.contains("\nobjective=binary sigmoid:0.5\n"));
    let averaged = SMALL.replace("objective=", "average_output\nobjective=");
    assert_eq!(line.write_into(&averaged), Err(Error::Averages));
    assert!(matches!(line.write_into("not a model"), Err(Error::NotAModel { .. })));
}

/// A model that LightGBM trained to rank, calibrated: LightGBM and the evaluator read the same numbers.
#[cfg(feature = "etl")]
#[test]
fn a_calibrated_text_is_a_model_to_lightgbm_and_to_the_evaluator() {
    use crate::ffi::lightgbm::{Dataset, Layout, Params, Predictor, Table, Target, train};
    use rand::{Rng, SeedableRng};
    const ROWS: usize = 2000;
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(8);
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..ROWS {
        let signal = random.random::<f32>();
        values.extend([signal, random.random::<f32>()]);
        labels.push(f32::from(u8::from(random.random::<f32>() < 0.6 * signal)));
    }
    let table = || Table { values: &values, rows: ROWS, columns: 2, layout: Layout::Rows };
    let params = Params::reproducible(3, 1)
        .with("objective", "lambdarank")
        .with("metric", "ndcg")
        .with("num_leaves", 15)
        .with("learning_rate", 0.2);
    let groups = [20u32; ROWS / 20];
    let target = Target { groups: Some(&groups), ..Target::labels(&labels) };
    let names = ["signal", "noise"].map(String::from);
    let data = Dataset::new(table(), target, &names, &params).unwrap();
    let model = train(&params, &data, None, 12, None, |_| {}).unwrap().model;
    let score = |forest: &Forest, row: &[f32]| {
        let mut raw = [0.0];
        forest.score(&Matrix::new(row, &[], 1), &mut raw);
        raw[0]
    };
    let forest = Forest::parse(&model).unwrap();
    let rows: Vec<&[f32]> = values.chunks_exact(2).collect();
    let raw: Vec<f64> = rows.iter().map(|row| score(&forest, row)).collect();
    let line = Platt::fit(&raw, &labels, &[1.0; ROWS]).unwrap();
    let text = line.write_into(&model).unwrap();
    let calibrated = Forest::parse(&text).unwrap();
    let mut total = 0.0;
    for (row, raw) in rows.iter().zip(&raw) {
        let p = calibrated.probability(score(&calibrated, row));
        assert!((p - line.probability(*raw)).abs() < 1e-9, "{p} of {raw}");
        total += p;
    }
    let came: f32 = labels.iter().sum();
    assert!((total / f64::from(came) - 1.0).abs() < 0.01, "{total} promised, {came} came");
    // LightGBM finds every tree by its length in bytes.
    let mut theirs = vec![0.0; ROWS];
    Predictor::new(&text).unwrap().raw(table(), &mut theirs).unwrap();
    for (row, theirs) in rows.iter().zip(theirs) {
        assert_eq!(score(&calibrated, row), theirs);
    }
}
