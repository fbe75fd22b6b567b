//! The towers as ONNX graphs give the vectors that this program gives: by onnxruntime, where
//! `SHORTLIST_TEST_ONNX` names its Python (`make test-onnx`).

use std::path::Path;
use std::process::{Command, Stdio};

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde_json::{Value, json};
use shortlist::bundle::Bundle;
use shortlist::towers::{ItemInput, MISSING, UserInput};
use shortlist::types::ItemIdx;

use crate::support::world;

/// One graph's vectors for these inputs.
fn run(python: &str, model: &Path, runs: &[Value]) -> Vec<Vec<f32>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/onnx/run.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let job = json!({"model": model, "runs": runs});
    serde_json::to_writer(child.stdin.take().unwrap(), &job).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn close(ours: &[f32], theirs: &[f32], input: &Value) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() < 2e-5, "{input}: {ours:?}, {theirs:?}");
    }
}

#[test]
fn exported_towers_give_the_same_vectors() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().display().to_string();
    world().succeeds(&[], &["bundle", "export", "--out", &out]);
    let config = world().config();
    let bundle = Bundle::open(&world().bundle_dir(), false, &config.index).unwrap();
    let ids = std::fs::read_to_string(dir.path().join("item_ids.txt")).unwrap();
    assert_eq!(ids.lines().count(), bundle.items.len());
    let inputs = std::fs::read(dir.path().join("inputs.json")).unwrap();
    let inputs: Value = serde_json::from_slice(&inputs).unwrap();
    let Ok(python) = std::env::var("SHORTLIST_TEST_ONNX") else {
        eprintln!("skipped: no onnxruntime; `make test-onnx` installs it and runs this");
        return;
    };
    let towers = &bundle.towers;
    let shape = towers.shape();
    assert_eq!(inputs["user"]["codes"].as_array().unwrap().len(), shape.user_codes.len());
    let mut random = Pcg64Mcg::seed_from_u64(5);
    let codes = |random: &mut Pcg64Mcg, counts: &[u32]| -> Vec<u32> {
        let code = |count: &u32| match random.random_range(0..4) {
            0 => MISSING,
            1 => count + 3,
            _ => random.random_range(0..*count),
        };
        counts.iter().map(code).collect()
    };
    let dense = |random: &mut Pcg64Mcg, count: u32| -> Vec<f32> {
        let value = |_| match random.random_range(0..4) {
            0 => f32::NAN,
            1 => random.random_range(-3.0f32..3.0),
            _ => random.random_range(-9.0f32..9.0).exp(),
        };
        (0..count).map(value).collect()
    };
    let plain = |values: &[f32]| -> Vec<Option<f32>> {
        values.iter().map(|x| (!x.is_nan()).then_some(*x)).collect()
    };
    let whole = |codes: &[u32]| -> Vec<i64> {
        codes.iter().map(|&code| if code == MISSING { -1 } else { i64::from(code) }).collect()
    };
    let mut scratch = towers.scratch();
    let (mut ours, mut runs) = (Vec::new(), Vec::new());
    for length in [0, 1, 2, 7, shape.history_max, shape.history_max + 20] {
        let history: Vec<ItemIdx> =
            (0..length).map(|_| ItemIdx(random.random_range(0..shape.items))).collect();
        let (codes, dense) =
            (codes(&mut random, &shape.user_codes), dense(&mut random, shape.user_dense));
        let mut vector = vec![0.0; towers.dim()];
        let input = UserInput { history: &history, codes: &codes, dense: &dense };
        towers.encode_user(&input, &mut scratch, &mut vector);
        ours.push(vector);
        let history: Vec<u32> = history.iter().map(|item| item.0).collect();
        runs.push(json!({"history": history, "codes": whole(&codes), "dense": plain(&dense)}));
    }
    let theirs = run(&python, &dir.path().join("user_tower.onnx"), &runs);
    for ((ours, theirs), input) in ours.iter().zip(&theirs).zip(&runs) {
        close(ours, theirs, input);
    }
    let (mut ours, mut runs) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let item = ItemIdx(random.random_range(0..shape.items));
        let (codes, dense) =
            (codes(&mut random, &shape.item_codes), dense(&mut random, shape.item_dense));
        let mut vector = vec![0.0; towers.dim()];
        let input = ItemInput { item, codes: &codes, dense: &dense };
        towers.encode_item(&input, &mut scratch, &mut vector);
        ours.push(vector);
        runs.push(json!({"item": [item.0], "codes": whole(&codes), "dense": plain(&dense)}));
    }
    let theirs = run(&python, &dir.path().join("item_tower.onnx"), &runs);
    for ((ours, theirs), input) in ours.iter().zip(&theirs).zip(&runs) {
        close(ours, theirs, input);
    }
}
