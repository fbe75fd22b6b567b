//! Models that were trained elsewhere serve: item vectors, users' vectors and a ranker become a bundle.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeListArray, Float32Array, ListArray, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Float32Type};
use parquet::arrow::ArrowWriter;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde_json::json;
use shortlist::bundle::Bundle;
use shortlist::ffi::lightgbm::{self, Dataset, Params, Table, Target};
use shortlist::types::ItemIdx;

use crate::support::{Server, ids, world};

const DIM: usize = 24;

/// What a test brings along, and where it goes.
struct Shop {
    dir: tempfile::TempDir,
    items: Vec<String>,
    users: Vec<String>,
    /// Unit vectors of the items.
    vectors: Vec<f32>,
}

impl Shop {
    fn new() -> Self {
        let config = world().config();
        let bundle = Bundle::open(&world().bundle_dir(), false, &config.index).unwrap();
        let view = bundle.items.view();
        let items: Vec<String> =
            (0..bundle.items.len()).map(|row| view.id(ItemIdx(row as u32)).to_owned()).collect();
        let mut random = Pcg64Mcg::seed_from_u64(4);
        let mut vectors: Vec<f32> =
            (0..items.len() * DIM).map(|_| random.random::<f32>() - 0.5).collect();
        for vector in vectors.chunks_exact_mut(DIM) {
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            vector.iter_mut().for_each(|x| *x /= length);
        }
        let users = world().users.clone();
        Self { dir: tempfile::tempdir().unwrap(), items, users, vectors }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn vector(&self, item: usize) -> &[f32] {
        &self.vectors[item * DIM..(item + 1) * DIM]
    }

    fn registry(&self) -> String {
        format!("\"{}\"", self.path("models").display())
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let base = world().bundle_dir().display().to_string();
        let own = ["bundle", "import", "--base", base.as_str()];
        // Names of files are written without the directory.
        let place = |argument: &&str| match argument.contains('.') && !argument.contains(' ') {
            true => self.path(argument).display().to_string(),
            false => (*argument).to_owned(),
        };
        own.iter().map(|a| (*a).to_owned()).chain(more.iter().map(place)).collect()
    }

    /// The version of the bundle that these arguments make.
    fn import(&self, more: &[&str]) -> String {
        let arguments = self.arguments(more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        world().succeeds(&[("registry.url", &self.registry())], &arguments).trim().to_owned()
    }

    /// Why these arguments make none.
    fn refused(&self, more: &[&str]) -> String {
        let arguments = self.arguments(more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (code, text) = world().fails(&[("registry.url", &self.registry())], &arguments);
        assert_eq!(code, 1, "{text}");
        text
    }
}

/// A file as NumPy writes it.
fn npy(path: &Path, values: &[f32], columns: usize) {
    let shape = format!("({}, {columns})", values.len() / columns);
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    header.push_str(&" ".repeat(63 - (header.len() + 10) % 64));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    fs::write(path, bytes).unwrap();
}

/// A Parquet file of ids and vectors: lists of a fixed size, or any.
fn parquet(path: &Path, id: &str, ids: &[&str], vectors: &[&[f32]], fixed: bool) {
    let ids: ArrayRef = Arc::new(StringArray::from(ids.to_vec()));
    let lists: ArrayRef = if fixed {
        let field = Arc::new(Field::new("item", DataType::Float32, true));
        let values = Arc::new(Float32Array::from(vectors.concat()));
        Arc::new(FixedSizeListArray::new(field, vectors[0].len() as i32, values, None))
    } else {
        let rows = vectors.iter().map(|v| Some(v.iter().map(|x| Some(*x)).collect::<Vec<_>>()));
        Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(rows))
    };
    let batch = RecordBatch::try_from_iter([(id, ids), ("embedding", lists)]).unwrap();
    let mut writer =
        ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// A ranker over `names`: what is nearly as near as can be succeeds, by the column `similarity`.
fn ranker(names: &[&str]) -> String {
    let at = names.iter().position(|name| *name == "similarity");
    let mut random = Pcg64Mcg::seed_from_u64(9);
    let values: Vec<f32> =
        (0..4000 * names.len()).map(|_| random.random_range(-1.0..1.0f32)).collect();
    let label = |row: &[f32]| f32::from(u8::from(row[at.unwrap_or(0)] > 0.95));
    let labels: Vec<f32> = values.chunks_exact(names.len()).map(label).collect();
    let params = Params::reproducible(1, 1).with("objective", "binary").with("num_leaves", 4);
    let table = Table {
        values: &values,
        rows: labels.len(),
        columns: names.len(),
        layout: lightgbm::Layout::Rows,
    };
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let data = Dataset::new(table, Target::labels(&labels), &names, &params).unwrap();
    lightgbm::train(&params, &data, None, 40, None, |_| {}).unwrap().model
}

#[test]
fn vectors_and_a_ranker_made_elsewhere_serve_the_item_that_is_nearest() {
    let shop = Shop::new();
    // Rows of the base, or named in any order: the same bundle.
    npy(&shop.path("items.npy"), &shop.vectors, DIM);
    let order: Vec<usize> = (0..shop.items.len()).rev().collect();
    let named: Vec<&str> = order.iter().map(|&item| shop.items[item].as_str()).collect();
    let vectors: Vec<&[f32]> = order.iter().map(|&item| shop.vector(item)).collect();
    parquet(&shop.path("items.parquet"), "item_id", &named, &vectors, true);
    let by_row = shop.import(&["--items", "items.npy"]);
    assert_eq!(shop.import(&["--items", "items.parquet"]), by_row);

    // Each user stands where one item does, which everybody may get.
    let offered = |id: &String| {
        world()
            .items
            .get(id)
            .is_some_and(|item| item.in_stock && item.regions.is_empty() && item.labels.is_empty())
    };
    let all_regions = |id: &String| world().items.get(id).is_some_and(|item| item.in_stock);
    let free: Vec<usize> = (0..shop.items.len()).filter(|&at| offered(&shop.items[at])).collect();
    let wanted: Vec<usize> = match free.len() {
        0..6 => (0..shop.items.len()).filter(|&at| all_regions(&shop.items[at])).collect(),
        _ => free,
    };
    let pairs: Vec<(&str, usize)> = shop
        .users
        .iter()
        .take(5)
        .zip(wanted.iter().step_by(7))
        .map(|(user, &item)| (user.as_str(), item))
        .collect();
    let users: Vec<&str> = pairs.iter().map(|(user, _)| *user).collect();
    let vectors: Vec<&[f32]> = pairs.iter().map(|&(_, item)| shop.vector(item)).collect();
    parquet(&shop.path("users.parquet"), "user_id", &users, &vectors, false);
    // Some of the schema's features, not in its order.
    fs::write(shop.path("ranker.txt"), ranker(&["item_price", "similarity"])).unwrap();
    let version = shop.import(&[
        "--items",
        "items.npy",
        "--users",
        "users.parquet",
        "--ranker",
        "ranker.txt",
        "--serve",
        "trained elsewhere",
    ]);
    assert_ne!(version, by_row);
    let registry = shop.registry();
    let server = Server::start(world(), &[("registry.url", &registry)]);
    for (user, item) in pairs {
        let regions = &world().items[&shop.items[item]].regions;
        let mut ask = json!({"user_id": user, "num_items": 20});
        if let Some(region) = regions.first() {
            ask["region"] = json!(region);
        }
        let answer = server.recommend(ask);
        assert_eq!(answer["bundle_version"], version.as_str());
        let found = ids(&answer);
        assert_eq!(found.len(), 20);
        assert_eq!(found[0], shop.items[item], "the item that stands where {user} does is first");
    }
    // Who brought no vector is where the history is.
    let stranger = server.recommend(json!({"user_id": "nobody", "num_items": 20}));
    assert_eq!(ids(&stranger).len(), 20);
}

#[test]
fn what_does_not_fit_is_named_before_anything_is_written() {
    let shop = Shop::new();
    npy(&shop.path("items.npy"), &shop.vectors, DIM);
    let refused = |arguments: &[&str], expected: &[&str]| {
        let text = shop.refused(arguments);
        for part in expected {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
    };
    npy(&shop.path("few.npy"), &shop.vectors[DIM..], DIM);
    refused(&["--items", "few.npy"], &["rows, the base has", "name them with an id file"]);
    fs::write(shop.path("few.txt"), shop.items[1..].join("\n")).unwrap();
    let few = ["--items", "few.npy", "--item-ids", "few.txt"];
    refused(&few, &["1 of", "have no vector", &shop.items[0], "--allow-missing"]);
    shop.import(&[&few[..], &["--allow-missing"]].concat());
    let strange = shop.items[1..].join("\n").replacen(&shop.items[1], "no-such-item", 1);
    fs::write(shop.path("few.txt"), strange).unwrap();
    refused(&few, &["1 item ids are not in the base's table: no-such-item"]);

    let users: Vec<&str> = shop.users.iter().map(String::as_str).take(2).collect();
    let short = [&shop.vectors[..DIM - 1]; 2];
    parquet(&shop.path("users.parquet"), "user_id", &users, &short, true);
    let both = ["--items", "items.npy", "--users", "users.parquet"];
    refused(&both, &["vectors of 23 numbers", "of 24: not one space"]);
    let uneven = [&shop.vectors[..DIM], &shop.vectors[..DIM - 1]];
    parquet(&shop.path("users.parquet"), "user_id", &users, &uneven, false);
    refused(&both, &["has 23 numbers, those before it 24", users[1]]);
    parquet(&shop.path("users.parquet"), "customer", &users, &uneven, false);
    refused(&both, &["no column `user_id`; there are customer, embedding"]);
    let mut spoilt = shop.vectors.clone();
    spoilt[3 * DIM] = f32::NAN;
    npy(&shop.path("spoilt.npy"), &spoilt, DIM);
    refused(&["--items", "spoilt.npy"], &["row 3", "not finite"]);

    fs::write(shop.path("ranker.txt"), ranker(&["similarity", "clicks_30d"])).unwrap();
    let ranked = ["--items", "items.npy", "--ranker", "ranker.txt"];
    refused(&ranked, &["features of the schema do not have: clicks_30d"]);
    let tower = ["--items", "items.npy", "--user-tower", "tower.onnx"];
    refused(&tower, &["runs no ONNX graphs", "--users"]);
    let bundles = fs::read_dir(shop.path("models/bundles")).unwrap().flatten();
    let whole = bundles.filter(|entry| entry.path().join("manifest.json").exists()).count();
    assert_eq!(whole, 1, "only what was allowed");
}
