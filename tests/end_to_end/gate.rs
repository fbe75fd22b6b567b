//! The gate refuses what must not serve: each test spoils one thing of a day that would pass, and the
//! refusal names it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use serde_json::Value;
use shortlist::bundle::{Bundle, files};
use shortlist::ffi::lightgbm::{self, Dataset, Params, Table, Target};
use shortlist::index;
use shortlist::offline::aggregates::day_dir;
use shortlist::offline::as_of::Layout;
use shortlist::offline::examples::{self, Kind, Models, Rows, Source};
use shortlist::offline::load::Loaded;
use shortlist::offline::split::Split;
use shortlist::pipeline::PastConfig;
use shortlist::sections::{Sections, SectionsWriter};
use shortlist::types::DAY_MS;

use crate::support::{World, files as files_below, world};

/// A copy of the world's finished day with a registry of its own, under a gate that its models pass.
struct Trial {
    dir: tempfile::TempDir,
    world: &'static World,
}

impl Trial {
    fn new() -> Self {
        let trial = Self { dir: tempfile::tempdir().unwrap(), world: world() };
        copy(&trial.world.work(), &trial.work());
        trial
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    /// Has a step and what follows it done anew.
    fn again_from(&self, step: &str) {
        let steps = ["ranker", "evaluate"];
        for step in &steps[steps.iter().position(|s| *s == step).unwrap()..] {
            fs::remove_file(self.work().join(step).join("done.json")).unwrap();
        }
    }

    fn with<T>(&self, more: &[(&str, &str)], run: impl Fn(&[(&str, &str)]) -> T) -> T {
        let quoted = |path: PathBuf| format!("\"{}\"", path.display());
        let (work, models) = (quoted(self.work()), quoted(self.models()));
        let own = [
            ("offline.work_dir", work.as_str()),
            ("registry.url", &models),
            // So small a world need not beat popularity in recall; its ranker does in NDCG, more or
            // less: towers differ by the order in which threads add.
            ("offline.gate.recall_at", "0"),
            ("offline.gate.ndcg_margin", "0.1"),
        ];
        run(&[&own, more].concat())
    }

    fn passes(&self, more: &[(&str, &str)], arguments: &[&str]) {
        let arguments = [&["pipeline", "run"], arguments].concat();
        self.with(more, |settings| self.world.succeeds(settings, &arguments));
    }

    /// What the gate said against the models: name and text of each failed check.
    fn refused(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let (code, output) =
            self.with(more, |settings| self.world.fails(settings, &["pipeline", "run"]));
        assert_eq!(code, 1, "{output}");
        assert!(output.contains("the gate refused the new models"), "{output}");
        let decision = json(&self.work().join("approve/decision.json"));
        let failed = decision["checks"].as_array().unwrap().iter().filter(|c| c["passed"] == false);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let failed: Vec<_> = failed.map(|c| (text(&c["name"]), text(&c["text"]))).collect();
        for (name, text) in &failed {
            println!("refused by {name}: {text}");
        }
        failed
    }

    fn bundles(&self) -> Vec<PathBuf> {
        let manifests = files_below(&self.models(), "manifest.json");
        manifests.into_iter().map(|path| path.parent().unwrap().to_owned()).collect()
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The ranker's training rows of the world.
fn training_rows(world: &World) -> (Rows, Vec<String>) {
    let config = world.config();
    let bundle = Bundle::open(&world.bundle_dir(), false, &config.index).unwrap();
    let work = world.work();
    let loaded = Loaded::open(&work.join("collect"), &config.offline.signals).unwrap();
    let split: Split = serde_json::from_value(json(&work.join("split/split.json"))).unwrap();
    let features = work.join("features");
    let latest = day_dir(&features, split.test_ms.start);
    let inputs = &config.offline.towers.inputs;
    let layout = Layout::new(&bundle.schema, inputs, &loaded, &latest).unwrap();
    let index = index::open(&work.join("index/ranker.bin"), &config.index).unwrap();
    let models = Models {
        schema: &bundle.schema,
        towers: &bundle.towers,
        tower_inputs: inputs,
        index: &*index,
        past: PastConfig {
            candidates: config.pipeline.candidates,
            sources: &config.pipeline.sources,
        },
    };
    let signals = &config.offline.signals;
    let source = Source {
        loaded: &loaded,
        layout: &layout,
        features: &features,
        impression: &signals.impression_event,
    };
    let mut rows = Rows::default();
    for day_ms in split.ranker_ms.step_by(DAY_MS as usize) {
        let as_of = source.day(day_ms).unwrap();
        let kind = Kind::Impressions;
        let groups =
            examples::groups_of_day(&source, &models, &as_of, kind, examples::Horizon::MOMENT)
                .unwrap();
        rows.append(examples::rows_of_day(&loaded, &bundle.schema, &as_of, &groups).unwrap());
    }
    (rows, bundle.schema.features().iter().map(|f| f.name.clone()).collect())
}

#[test]
fn honest_models_pass_and_their_word_is_kept() {
    let trial = Trial::new();
    trial.passes(&[], &[]);
    let [bundle] = trial.bundles().try_into().unwrap();
    let report = json(&bundle.join(files::REPORT));
    assert_eq!(report["gate"]["approved"], true);
    assert_eq!(report["gate"]["overridden"], Value::Null);
    assert_eq!(report["leaks"], serde_json::json!([]));
    // Other models: compared with those that serve, their own towers and codes.
    trial.passes(&[("offline.ranker.params.learning_rate", "0.03")], &[]);
    let report = json(&trial.work().join("evaluate/report.json"));
    let version = bundle.file_name().unwrap().to_str().unwrap();
    assert_eq!(report["baseline"]["version"], version);
    assert_eq!(report["baseline"]["silent"], Value::Null);
    // The same towers over the same tables: nothing between them.
    let towers = &report["differences"]["towers - previous/new-to-user/recall@500"];
    assert_eq!(towers["mean"], 0.0, "{towers}");
    assert!(report["ranker"]["previous/auc"]["mean"].as_f64().unwrap() > 0.6);
}

#[test]
fn a_ranker_of_shuffled_labels_is_refused() {
    let trial = Trial::new();
    let (mut rows, names) = training_rows(trial.world);
    rows.labels.shuffle(&mut rand_pcg::Pcg64Mcg::seed_from_u64(5));
    let params = Params::reproducible(1, 2).with("objective", "binary").with("num_leaves", 15);
    let table = Table {
        values: &rows.values,
        rows: rows.labels.len(),
        columns: names.len(),
        layout: lightgbm::Layout::Rows,
    };
    let data = Dataset::new(table, Target::labels(&rows.labels), &names, &params).unwrap();
    let shuffled = lightgbm::train(&params, &data, None, 30, None, |_| {}).unwrap();
    fs::write(trial.work().join("ranker").join(files::RANKER), shuffled.model).unwrap();
    trial.again_from("evaluate");
    let failed = trial.refused(&[]);
    let names: HashSet<&str> = failed.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains("chance"), "{failed:?}");
    assert!(names.contains("ranker - popularity/ndcg@10"), "{failed:?}");
    assert!(trial.bundles().is_empty(), "nothing is published");
}

#[test]
fn a_ranker_that_learnt_from_tomorrow_is_refused_and_the_feature_is_named() {
    let trial = Trial::new();
    let split: Split =
        serde_json::from_value(json(&trial.work().join("split/split.json"))).unwrap();
    let features = trial.work().join("features");
    // Every day that the ranker learns from or is judged by knows how the day ends.
    for day_ms in (split.ranker_ms.start..split.test_ms.start).step_by(DAY_MS as usize) {
        let from = day_dir(&features, day_ms + DAY_MS).join("item_stats.parquet");
        fs::copy(from, day_dir(&features, day_ms).join("item_stats.parquet")).unwrap();
    }
    trial.again_from("ranker");
    let failed = trial.refused(&[]);
    let (name, text) = &failed[0];
    assert_eq!(name, "leak: future");
    assert!(text.contains("item_positives_7d as of 2026-01-0"), "{text}");
    assert!(!text.contains("user_"), "only what reads the planted table is named: {text}");
}

#[test]
fn a_feature_that_is_the_answer_is_refused_by_name() {
    let trial = Trial::new();
    let path = trial.work().join("collect/events.parquet");
    give_the_answer_away(&path);
    trial.again_from("ranker");
    let failed = trial.refused(&[]);
    let [(name, text)] = failed.as_slice() else { panic!("{failed:?}") };
    assert_eq!(name, "leak: alone");
    assert!(text.contains("device (AUC 1.0000)"), "{text}");
    // A gate that believes everything lets it pass.
    trial.passes(
        &[("offline.gate.leak_auc_max", "1.0"), ("offline.gate.auc_min", "0.2")],
        &["--override", "to see what it would have been"],
    );
}

/// Writes into `device` of every impression whether a click came of it. A request has one device, so
/// every impression becomes a request of its own: a millisecond after the one before it.
fn give_the_answer_away(path: &Path) {
    let file = fs::File::open(path).unwrap();
    let rows = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let batches: Vec<RecordBatch> = rows.map(Result::unwrap).collect();
    let text = |batch: &RecordBatch, name: &str| -> Vec<String> {
        let column = arrow::compute::cast(&batch[name], &arrow::datatypes::DataType::Utf8).unwrap();
        let column = column.as_string::<i32>();
        (0..column.len()).map(|row| column.value(row).to_owned()).collect()
    };
    let keys = |batch: &RecordBatch| {
        let (users, items) = (text(batch, "user_id"), text(batch, "item_id"));
        let requests = text(batch, "request_id");
        users.into_iter().zip(items).zip(requests).collect::<Vec<_>>()
    };
    let mut taken = HashSet::new();
    for batch in &batches {
        let events = text(batch, "event");
        taken.extend(
            keys(batch)
                .into_iter()
                .zip(events)
                .filter_map(|(key, event)| (event != "impression").then_some(key)),
        );
    }
    let schema = batches[0].schema();
    let mut writer =
        ArrowWriter::try_new(fs::File::create(path).unwrap(), schema.clone(), None).unwrap();
    let mut asked = HashMap::new();
    for batch in &batches {
        let times = batch["ts_ms"].as_primitive::<Int64Type>().values();
        let rows = text(batch, "user_id").into_iter().zip(text(batch, "event")).zip(times);
        let apart = rows.map(|((user, event), &time)| {
            let before: &mut i64 = asked.entry((user, time)).or_default();
            *before += i64::from(event == "impression");
            time + (*before - 1).max(0)
        });
        let apart: ArrayRef = std::sync::Arc::new(Int64Array::from_iter_values(apart));
        let answers: Vec<&str> =
            keys(batch).iter().map(|key| if taken.contains(key) { "yes" } else { "no" }).collect();
        let answers: ArrayRef = std::sync::Arc::new(StringArray::from(answers));
        let columns = schema.fields().iter().map(|field| match field.name().as_str() {
            "device" => arrow::compute::cast(&answers, field.data_type()).unwrap(),
            "ts_ms" => apart.clone(),
            name => batch[name].clone(),
        });
        let batch = RecordBatch::try_new(schema.clone(), columns.collect()).unwrap();
        writer.write(&batch).unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn a_stale_baseline_and_one_that_saw_the_test_are_refused_with_what_to_do() {
    let trial = Trial::new();
    trial.passes(&[], &[]);
    let [bundle] = trial.bundles().try_into().unwrap();
    let path = bundle.join("manifest.json");
    let honest = json(&path);
    let other = ("offline.ranker.params.learning_rate", "0.03");
    let mut stale = honest.clone();
    stale["as_of_ms"] = (honest["as_of_ms"].as_i64().unwrap() - 30 * DAY_MS).into();
    fs::write(&path, stale.to_string()).unwrap();
    let failed = trial.refused(&[other]);
    let [(name, text)] = failed.as_slice() else { panic!("{failed:?}") };
    assert_eq!(name, "baseline");
    assert!(text.contains("is stale") && text.contains("at most 14"), "{text}");
    assert!(text.contains("pipeline refresh"), "{text}");
    trial.passes(&[other, ("offline.gate.baseline_days_max", "60")], &[]);

    let trial = Trial::new();
    trial.passes(&[], &[]);
    let path = trial.bundles()[0].join("manifest.json");
    let mut seen = honest;
    let until = seen["training_window_ms"][1].as_i64().unwrap();
    seen["training_window_ms"][1] = (until + DAY_MS).into();
    fs::write(&path, seen.to_string()).unwrap();
    let failed = trial.refused(&[other]);
    let [(name, text)] = failed.as_slice() else { panic!("{failed:?}") };
    assert_eq!(name, "baseline");
    assert!(text.contains("it has seen the answers"), "{text}");
    fs::write(trial.bundles()[0].join(files::RANKER), "cut off").unwrap();
    trial.again_from("evaluate");
    let failed = trial.refused(&[other]);
    assert!(failed[0].1.contains("could not be compared"), "{failed:?}");
}

#[test]
fn models_that_are_not_finite_are_refused_and_an_override_says_who_and_why() {
    let trial = Trial::new();
    let path = trial.work().join("ranker").join(files::RANKER);
    let honest = fs::read_to_string(&path).unwrap();
    let at = honest.find("leaf_value=").unwrap() + "leaf_value=".len();
    let end = at + honest[at..].find(' ').unwrap();
    fs::write(&path, format!("{}nan{}", &honest[..at], &honest[end..])).unwrap();
    trial.again_from("evaluate");
    let failed = trial.refused(&[]);
    let (name, text) = &failed[0];
    assert_eq!(name, "models");
    assert!(text.contains("ranker.txt") && text.contains("leaf_value"), "{text}");

    fs::write(&path, honest).unwrap();
    let vectors = trial.work().join("embed/test.bin");
    let column: Vec<f32> = Sections::open(&vectors).unwrap().get("vectors").unwrap().to_vec();
    let mut spoilt = column.clone();
    spoilt[17] = f32::NAN;
    let write = |values: &[f32]| {
        let mut file = SectionsWriter::create(&vectors, 1).unwrap();
        file.write("vectors", values).unwrap();
        file.finish().unwrap();
    };
    write(&spoilt);
    trial.again_from("evaluate");
    let failed = trial.refused(&[]);
    assert!(failed[0].1.contains("1 numbers of the item vectors are not finite"), "{failed:?}");

    trial.passes(&[], &["--override", "the shop opens today", "--by", "ada"]);
    let report = json(&trial.bundles()[0].join(files::REPORT));
    let word = &report["gate"]["overridden"];
    assert_eq!((&word["who"], &word["why"]), (&"ada".into(), &"the shop opens today".into()));
    let state = json(&trial.models().join("rollout/1.json"));
    assert_eq!(state["who"], "ada");
    assert!(state["reason"].as_str().unwrap().contains("the shop opens today"));
}

#[test]
fn a_ranker_that_learns_the_order_promises_probabilities_once_calibrated() {
    let trial = Trial::new();
    let lambdarank = [
        ("offline.ranker.objective", "\"lambdarank\""),
        ("offline.ranker.metric", "\"ndcg@10\""),
        ("offline.gate.ndcg_margin", "1.0"),
    ];
    let model = || fs::read_to_string(trial.work().join("ranker").join(files::RANKER)).unwrap();
    trial.passes(&lambdarank, &["--override", "a test"]);
    assert!(model().contains("\nobjective=lambdarank"));
    let report = || json(&trial.work().join("evaluate/report.json"));
    let raw = report();
    assert_eq!(raw["reliability"]["parts"], serde_json::json!([]), "scores are no probabilities");
    assert!(raw["ranker"]["ranker/logloss"].is_null());
    let more = [&lambdarank[..], &[("offline.ranker.calibration", "\"platt\"")]].concat();
    trial.passes(&more, &["--override", "a test"]);
    assert!(model().contains("\nobjective=binary sigmoid:"));
    let calibrated = report();
    let auc = |report: &Value| report["ranker"]["ranker/auc"]["mean"].as_f64().unwrap();
    assert!((auc(&calibrated) - auc(&raw)).abs() < 1e-12, "the order stays");
    let ratio = calibrated["reliability"]["ratio"]["mean"].as_f64().unwrap();
    assert!((0.5..2.0).contains(&ratio), "predicted over observed {ratio}");
    let summary = json(&trial.work().join("ranker/ranker.json"));
    assert!(summary["validation"]["ndcg@10"].as_f64().unwrap() > 0.1, "{summary}");
    let (code, text) = trial.with(&[("offline.ranker.params.objective", "\"binary\"")], |more| {
        trial.world.fails(more, &["pipeline", "ranker"])
    });
    assert!(code == 1 && text.contains("set offline.ranker.objective"), "{text}");
}

#[test]
fn a_refit_learns_from_the_validation_days_too_for_as_many_trees() {
    let trial = Trial::new();
    let trained = |refit: &str| {
        trial.passes(&[("offline.ranker.refit", refit)], &["--override", "a test"]);
        let dir = trial.work().join("ranker");
        (fs::read_to_string(dir.join(files::RANKER)).unwrap(), json(&dir.join("ranker.json")))
    };
    let ((stopped, before), (refitted, after)) = (trained("false"), trained("true"));
    let of_trees = |model: &str| model.matches("\nTree=").count() as u64;
    assert_eq!(of_trees(&stopped), before["trees"].as_u64().unwrap());
    assert_eq!(
        (of_trees(&refitted), &after["validation"]),
        (of_trees(&stopped), &before["validation"])
    );
    // The first number of the line is that of the root: the rows that the first tree has seen.
    let seen = |model: &str| -> f64 {
        let counts = model.lines().find_map(|line| line.strip_prefix("internal_count=")).unwrap();
        counts.split(' ').next().unwrap().parse().unwrap()
    };
    let number = |summary: &Value, key: &str| summary[key].as_f64().unwrap();
    let more = 1.0 + number(&before, "validation_rows") / number(&before, "rows");
    let ratio = seen(&refitted) / seen(&stopped);
    assert!((ratio / more - 1.0).abs() < 0.02, "{ratio} times the rows, expected {more}");
    assert!((after["refit"] == true) && (before["refit"] == false));
}
