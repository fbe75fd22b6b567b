//! A small bundle for tests: random towers, an index over their vectors, a ranker written by hand.
//!
//! Of the 400 items, one in five is out of stock, one in ten is labelled `alcohol`, those of even rows
//! are offered in the region `north` and every third in `south`; item `i` is `i` days old and has been
//! shown `i` times.

use std::collections::BTreeMap;
use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{Bundle, FORMAT_VERSION, FileEntry, MANIFEST_FILE, Manifest, TowerInputs, files};
use crate::features::{Dictionaries, ItemColumns, Schema, UserTableBuilder};
use crate::ids::IdTable;
use crate::index;
use crate::store::items::{ItemRecord, Items};
use crate::towers::{self, ItemInput, Shape};
use crate::types::{DAY_MS, ItemIdx};

pub const ITEMS: u32 = 400;
/// 2026-01-01.
pub const AS_OF_MS: i64 = 1_767_225_600_000;
const DIM: usize = 32;
const CATEGORIES: u32 = 20;
const USERS: [&str; 4] = ["u0", "u1", "u2", "u3"];
/// The label of every tenth item from this row on.
pub const LABEL: &str = "alcohol";
const LABELLED_FROM: u32 = 3;

const FEATURES: &str = r#"
[[feature]]
name = "user_positives"
scope = "user"
op = "log1p"
source = "user_stats.positives_28d"
[[feature]]
name = "hour"
scope = "context"
op = "hour_of_day"
[[feature]]
name = "price"
scope = "item"
op = "log1p"
source = "items.price"
[[feature]]
name = "bought"
scope = "cross"
op = "history_count"
of = "item"
[[feature]]
name = "similarity"
scope = "cross"
op = "dot"
[[feature]]
name = "place"
scope = "cross"
op = "retrieval_rank"
"#;

/// similarity <= 0.1 ? (price <= 2 ? -1 : -0.5) : (bought <= 0.5 ? 0.5 : 1)
const RANKER: &str = "\
tree
version=v4
num_class=1
num_tree_per_iteration=1
label_index=0
max_feature_idx=5
objective=binary sigmoid:1
feature_names=user_positives hour price bought similarity place
feature_infos=none none none none none none
tree_sizes=400

Tree=0
num_leaves=4
num_cat=0
split_feature=4 2 3
split_gain=3 2 1
threshold=0.1 2 0.5
decision_type=10 10 10
left_child=1 -1 -3
right_child=2 -2 -4
leaf_value=-1 -0.5 0.5 1
leaf_weight=1 1 1 1
leaf_count=1 1 1 1
internal_value=0 0 0
internal_weight=0 0 0
internal_count=4 2 2
is_linear=0
shrinkage=1


end of trees
";

/// Writes the bundle to `dir` and opens it; the labels are left out without `labels`.
pub fn open(dir: &Path, labels: bool) -> Bundle {
    write(dir, labels);
    Bundle::open(dir, true, &config()).unwrap()
}

fn config() -> index::Config {
    let sections: toml::Table = include_str!("../../config/default.toml").parse().unwrap();
    let config: index::Config = sections["index"].clone().try_into().unwrap();
    // So few items would all be compared; lists are what serving reads.
    index::Config { exact_rows_max: 8, live_rows_max: 64, ..config }
}

fn write(dir: &Path, labels: bool) {
    let columns = columns();
    Items::save(&dir.join(files::ITEMS), &records(labels), &columns).unwrap();
    let mut users = UserTableBuilder::new(IdTable::new(USERS.into_iter()));
    users.column("user_stats.positives_28d", vec![1.0, 5.0, 20.0, f32::NAN]);
    for row in 0..USERS.len() as u32 - 1 {
        let event = |at: u32| (ItemIdx((row * 71 + at * 23) % ITEMS), AS_OF_MS - DAY_MS);
        users.history(row, (0..20).map(event).collect());
    }
    users.build().save(&dir.join(files::USERS)).unwrap();
    let codes = (0..ITEMS).map(|item| (item % CATEGORIES) as u16 + 1).collect();
    let id_rows = (1..=ITEMS).collect();
    let towers = towers::random(shape(), id_rows, codes, &mut StdRng::seed_from_u64(5));
    towers.save(&dir.join(files::TOWERS)).unwrap();
    let towers = towers::Towers::open(&dir.join(files::TOWERS)).unwrap();
    let positives = columns.get("item_stats.positives_28d").unwrap();
    let mut vectors = vec![0.0; ITEMS as usize * DIM];
    let mut scratch = towers.scratch();
    for (item, vector) in (0..ITEMS).zip(vectors.chunks_exact_mut(DIM)) {
        let (codes, dense) = ([item % CATEGORIES], [positives.value(item as usize)]);
        let input = ItemInput { item: ItemIdx(item), codes: &codes, dense: &dense };
        towers.encode_item(&input, &mut scratch, vector);
    }
    let index = index::build(&vectors, DIM, &vectors, &config(), &|_, _| ()).unwrap();
    index.save(&dir.join(files::INDEX)).unwrap();
    std::fs::write(dir.join(files::RANKER), RANKER).unwrap();
    std::fs::write(dir.join(files::FEATURES), FEATURES).unwrap();
    let dictionaries = serde_json::to_vec(&Dictionaries::default()).unwrap();
    std::fs::write(dir.join(files::DICTIONARIES), dictionaries).unwrap();
    std::fs::write(dir.join(files::REPORT), "{}").unwrap();
    write_manifest(dir, towers.version());
}

fn write_manifest(dir: &Path, tower_version: &str) {
    let entry = |name: &str| (name.to_owned(), FileEntry::of(&dir.join(name)).unwrap());
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        bundle_version: "sample".into(),
        tower_version: tower_version.into(),
        schema_fingerprint: Schema::parse(FEATURES).unwrap().fingerprint().into(),
        as_of_ms: AS_OF_MS,
        training_window_ms: [0, AS_OF_MS],
        tower_inputs: TowerInputs {
            item_codes: vec!["items.category".into()],
            item_dense: vec!["item_stats.positives_28d".into()],
            user_codes: vec![],
            user_dense: vec!["user_stats.positives_28d".into()],
        },
        ranker_sources: Vec::new(),
        metrics: BTreeMap::new(),
        parents: vec![],
        files: files::ALL.into_iter().map(entry).collect(),
    };
    std::fs::write(dir.join(MANIFEST_FILE), serde_json::to_vec(&manifest).unwrap()).unwrap();
}

fn records(labels: bool) -> Vec<ItemRecord> {
    let record = |item: u32| ItemRecord {
        id: format!("i{item:03}"),
        category: Some(format!("c{:02}", item % CATEGORIES)),
        price: Some(price(item)),
        created_ms: Some(AS_OF_MS - i64::from(item) * DAY_MS),
        in_stock: !item.is_multiple_of(5),
        regions: [("north", 2), ("south", 3)]
            .into_iter()
            .filter(|&(_, every)| item.is_multiple_of(every))
            .map(|(region, _)| region.to_owned())
            .collect(),
        labels: if labels && is_labelled(item) { vec![LABEL.to_owned()] } else { vec![] },
        ..ItemRecord::default()
    };
    (0..ITEMS).map(record).collect()
}

/// Whether an item carries [`LABEL`].
pub fn is_labelled(item: u32) -> bool {
    item % 10 == LABELLED_FROM
}

fn price(item: u32) -> f32 {
    (item % 17) as f32
}

fn columns() -> ItemColumns {
    let mut columns = ItemColumns::new(ITEMS as usize);
    let mut insert = |name: &str, value: &dyn Fn(u32) -> f32| {
        columns.insert(name, (0..ITEMS).map(value).collect::<Vec<f32>>());
    };
    insert("items.price", &price);
    insert("items.category", &|item| (item % CATEGORIES) as f32);
    insert("item_stats.positives_28d", &|item| (item * 37 % ITEMS) as f32);
    insert("item_stats.users_7d", &|item| (item % 13) as f32);
    insert("item_stats.trend_7d_28d", &|item| (item * 91 % 100) as f32 / 50.0);
    insert("item_stats.impressions_28d", &|item| item as f32);
    columns
}

fn shape() -> Shape {
    Shape {
        dim: DIM as u32,
        id_dim: 8,
        code_dim_max: 8,
        hidden: vec![16],
        history_max: 20,
        pool_half_lives_events: vec![f32::INFINITY],
        separate_history_tables: false,
        items: ITEMS,
        id_rows: ITEMS + 1,
        item_codes: vec![CATEGORIES],
        user_codes: vec![],
        item_dense: 1,
        user_dense: 1,
    }
}
