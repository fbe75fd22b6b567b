//! The forest evaluator beside LightGBM's C API, over generated models: one request, one thread.
//!
//! `cargo bench --bench forest` is the criterion bench. With `--record FILE [--peers COMMAND]` it
//! measures ours and the peers in turn and writes the table of `bench/record/forest.csv`; COMMAND
//! speaks the protocol of `bench/peers/forest.py`. Models are trained once and kept in
//! `target/bench-forest` beside the build.

#[path = "forest/cost.rs"]
mod cost;
#[path = "forest/models.rs"]
mod models;
#[path = "forest/record.rs"]
mod record;

use std::hint::black_box;

use criterion::Criterion;
use models::{Model, SPECS};
use shortlist::ffi::lightgbm::{Layout, Predictor, Table};
use shortlist::forest::{Bins, Evaluator, Forest, Scratch};
use shortlist::types::ItemIdx;

/// Everything that scores one request of a model.
pub struct Subject {
    pub model: Model,
    capi: Predictor,
    /// Constants decided beforehand, item columns binned beforehand.
    cached: Ready,
    /// Constants decided beforehand, all other columns binned in the request.
    pruned: Ready,
    /// Nothing is constant.
    whole: Ready,
}

struct Ready {
    evaluator: Evaluator,
    scratch: Scratch,
    bins: Bins,
    items: Vec<ItemIdx>,
    constants: Vec<f32>,
    columns: Vec<f32>,
    out: Vec<f64>,
}

impl Ready {
    /// Everything that varies arrives with the request.
    fn plain(model: &Model, forest: &Forest, constants: usize) -> Self {
        Self::new(model, forest, constants, 0)
    }

    /// `cached` features after `constants` ones come from bins; the candidates are spread over
    /// as many items as keep their bytes out of the cache.
    fn new(model: &Model, forest: &Forest, constants: usize, cached: usize) -> Self {
        let rows = model.rows;
        let varying = models::FEATURES - constants;
        let is_cached: Vec<bool> = (0..varying).map(|at| at < cached).collect();
        let evaluator =
            Evaluator::new(forest, constants, &is_cached).expect("a model of this size");
        let mut scratch = evaluator.scratch();
        const SPREAD: usize = 1021;
        let items = if cached == 0 { 0 } else { rows * SPREAD };
        let bins = evaluator.bin_items(items, |feature, first, out| {
            for (row, value) in out.iter_mut().enumerate() {
                *value = model.value((first + row) / SPREAD, constants + feature);
            }
        });
        let items = (0..rows).map(|row| ItemIdx((row * SPREAD) as u32)).collect();
        let fixed: Vec<f32> = (0..constants).map(|feature| model.value(0, feature)).collect();
        let columns = (constants + cached..models::FEATURES)
            .flat_map(|feature| (0..rows).map(move |row| model.value(row, feature)))
            .collect();
        evaluator.specialise(&fixed, &mut scratch);
        let out = vec![0.0; rows];
        Self { evaluator, scratch, bins, items, constants: fixed, columns, out }
    }

    fn specialise(&mut self) {
        self.evaluator.specialise(black_box(&self.constants), &mut self.scratch);
    }

    fn score(&mut self) {
        let Self { evaluator, scratch, bins, items, columns, out, .. } = self;
        evaluator.score(bins, items, black_box(columns), scratch, out);
    }
}

impl Subject {
    pub fn new(model: Model) -> Self {
        let forest = Forest::parse(&model.text).expect("LightGBM's own text");
        let capi = Predictor::new(&model.text).expect("LightGBM's own text");
        let constants = models::CONSTANTS;
        let cached = Ready::new(&model, &forest, constants, models::ITEM_FEATURES);
        let pruned = Ready::plain(&model, &forest, constants);
        let whole = Ready::plain(&model, &forest, 0);
        Self { model, capi, cached, pruned, whole }
    }

    /// Ours, by the name in the record.
    pub const OURS: [&str; 5] = ["cached", "pruned", "score", "specialise", "whole"];

    /// One request.
    pub fn ours(&mut self, name: &str) {
        match name {
            "cached" => {
                self.cached.specialise();
                self.cached.score();
            }
            "pruned" => {
                self.pruned.specialise();
                self.pruned.score();
            }
            // What is left on the critical path when constants are decided during retrieval.
            "score" => self.cached.score(),
            "specialise" => self.cached.specialise(),
            _ => self.whole.score(),
        }
    }

    /// The scores of the last request of the kind.
    pub fn scores(&self, name: &str) -> &[f64] {
        match name {
            "pruned" => &self.pruned.out,
            "whole" => &self.whole.out,
            _ => &self.cached.out,
        }
    }

    /// One request by LightGBM.
    pub fn capi(&self, out: &mut [f64]) {
        let table = Table {
            values: &self.model.values,
            rows: self.model.rows,
            columns: models::FEATURES,
            layout: Layout::Rows,
        };
        self.capi.raw(black_box(table), out).expect("a table of the model's width");
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut record, mut peers, mut filter) = (None, None, String::new());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--record" => record = args.next(),
            "--peers" => peers = args.next(),
            option if option.starts_with('-') => {}
            _ => filter = arg,
        }
    }
    if let Some(path) = record {
        record::run(&path, peers.as_deref());
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    // A filter like `300x63-num/pruned` spares the training of the other models.
    let wanted = filter.split('/').next().unwrap_or("");
    for spec in SPECS.iter().filter(|spec| spec.name().contains(wanted)) {
        let mut subject = Subject::new(models::load(spec));
        let mut group = criterion.benchmark_group(spec.name());
        for name in Subject::OURS {
            group.bench_function(name, |b| b.iter(|| subject.ours(name)));
        }
        let mut out = vec![0.0; subject.model.rows];
        group.sample_size(10);
        group.bench_function("lightgbm:capi", |b| b.iter(|| subject.capi(&mut out)));
        group.finish();
    }
    criterion.final_summary();
}
