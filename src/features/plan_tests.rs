use super::*;
use crate::features::UserTableBuilder;
use crate::features::{ItemBlock, LateRows};
use crate::ids::IdTable;
use crate::types::DAY_MS;

const SCHEMA: &str = r#"
[[feature]]
name = "days_since_visit"
scope = "user"
op = "age_since"
source = "user_stats.last_day"
[[feature]]
name = "device"
scope = "context"
op = "category"
source = "context.device"
[[feature]]
name = "price"
scope = "item"
op = "log1p"
source = "items.price"
default = -1.0
[[feature]]
name = "share"
scope = "cross"
op = "lookup"
map = "user_category.share"
key = "items.category"
[[feature]]
name = "bought"
scope = "cross"
op = "history_count"
of = "item"
[[feature]]
name = "category_seconds"
scope = "cross"
op = "seconds_since_last"
of = "items.category"
[[feature]]
name = "price_ratio"
scope = "cross"
op = "ratio"
source = "items.price"
other = "user_stats.mean_price"
[[feature]]
name = "similarity"
scope = "cross"
op = "dot"
"#;

fn users() -> UserTable {
    let mut users = UserTableBuilder::new(IdTable::new(["ann"].into_iter()));
    users.column("user_stats.last_day", vec![8.0]);
    users.column("user_stats.mean_price", vec![2.0]);
    users.map("user_category.share", vec![vec![(1, 0.75), (0, 0.25)]]);
    users.build()
}

fn items() -> ItemColumns {
    let mut items = ItemColumns::new(3);
    items.insert("items.price", vec![3.0, f32::NAN, 1.0]);
    items.insert("items.category", vec![1.0, 0.0, f32::NAN]);
    items
}

fn candidate(item: u32) -> Candidate {
    Candidate {
        item: ItemIdx(item),
        similarity: item as f32 / 10.0,
        retrieval_rank: 0.0,
        retrieval_score: 0.0,
    }
}

#[test]
fn a_known_row_value_by_value() {
    let (users, items, schema) = (users(), items(), Schema::parse(SCHEMA).unwrap());
    let plan = Plan::new(&schema, &users, &items).unwrap();
    let bought = [ItemIdx(0), ItemIdx(2), ItemIdx(0)];
    let times = [9 * DAY_MS, 9 * DAY_MS, 10 * DAY_MS - 4_000];
    let request = RequestInput {
        time_ms: 10 * DAY_MS,
        user: users.find("ann"),
        context: &[2.0],
        history: History::new(&bought, &times),
    };
    let mut constants = [0.0; 2];
    plan.constants(&request, &mut constants);
    assert_eq!(constants, [2.0, 2.0]);
    let candidates = [candidate(0), candidate(1), candidate(2)];
    let mut out = vec![0.0; 6 * 3];
    plan.columns(&request, &items, &candidates, &mut plan.scratch(1), &mut out);
    let column = |at: usize| &out[at * 3..at * 3 + 3];
    assert_eq!(column(0), [4f32.ln(), -1.0, 2f32.ln()], "a default replaces the missing price");
    assert_eq!(column(1)[..2], [0.75, 0.25]);
    assert!(column(1)[2].is_nan(), "an item without a category has no share");
    assert_eq!(column(2), [2.0, 0.0, 1.0]);
    assert_eq!(column(3)[0], 4.0);
    assert!(column(3)[1].is_nan() && column(3)[2].is_nan());
    assert_eq!((column(4)[0], column(4)[2]), (1.5, 0.5));
    assert_eq!(column(5), [0.0, 0.1, 0.2]);
    // What depends on the item alone, and the rest, are the same columns.
    assert_eq!(plan.item_only(), [true, false, false, false, false, false]);
    let mut item = [0.0; 2];
    plan.item_column(0, &items, 1, &mut item);
    assert_eq!(item, [-1.0, 2f32.ln()]);
    assert_eq!(plan.request_column_count(), 5);
    let mut rest = vec![0.0; 5 * 3];
    plan.request_columns(&request, &items, &candidates, &mut plan.scratch(1), &mut rest);
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&rest), bits(&out[3..]));
}

#[test]
fn an_unknown_user_gives_missing_values_and_no_panic() {
    let (users, items, schema) = (users(), items(), Schema::parse(SCHEMA).unwrap());
    let plan = Plan::new(&schema, &users, &items).unwrap();
    let request = RequestInput {
        time_ms: 0,
        user: users.find("nobody"),
        context: &[f32::NAN],
        history: History::default(),
    };
    let mut constants = [0.0; 2];
    plan.constants(&request, &mut constants);
    assert!(constants.iter().all(|v| v.is_nan()));
    let mut out = vec![0.0; 6];
    plan.columns(&request, &items, &[candidate(0)], &mut plan.scratch(1), &mut out);
    assert!(out[1].is_nan());
    assert_eq!(out[2], 0.0, "nothing bought is a count of zero");
    plan.columns(&request, &items, &[], &mut plan.scratch(1), &mut []);
}

#[test]
fn an_absent_column_is_named_with_what_there_is() {
    let schema = Schema::parse(&SCHEMA.replace("items.price", "items.cost")).unwrap();
    let error = Plan::new(&schema, &users(), &items()).unwrap_err().to_string();
    assert!(error.contains("`items.cost`") && error.contains("items.price, items.category"));
}

#[test]
fn item_keys_are_exact_beyond_the_floats_integers() {
    let (a, b) = (ItemIdx((1 << 24) + 1), ItemIdx((1 << 24) + 2));
    assert_ne!(fill::item_key(a), fill::item_key(b));
}

/// The second item has changed, and a fourth has come.
struct Changed;

impl LateRows for Changed {
    fn values(&self, item: ItemIdx) -> Option<&[f32]> {
        match item.0 {
            1 => Some(&[7.0, 1.0]),
            3 => Some(&[1.0, 0.0]),
            _ => None,
        }
    }
}

#[test]
fn late_rows_give_what_columns_with_these_values_would() {
    let (users, built, schema) = (users(), items(), Schema::parse(SCHEMA).unwrap());
    let plan = Plan::new(&schema, &users, &built).unwrap();
    let mut rebuilt = ItemColumns::new(4);
    rebuilt.insert("items.price", vec![3.0, 7.0, 1.0, 1.0]);
    rebuilt.insert("items.category", vec![1.0, 1.0, f32::NAN, 0.0]);
    let bought = [ItemIdx(3), ItemIdx(1), ItemIdx(0)];
    let request = RequestInput {
        time_ms: 10 * DAY_MS,
        user: users.find("ann"),
        context: &[2.0],
        history: History::new(&bought, &[9 * DAY_MS; 3]),
    };
    let candidates = [3, 2, 1, 0].map(candidate);
    let block = ItemBlock::new(&built, plan.request_rows());
    let late = ItemRows::new(&built, &block, &Changed, &[0, 2]);
    let (mut found, mut wanted) = (vec![0.0; 6 * 4], vec![0.0; 6 * 4]);
    plan.columns(&request, late, &candidates, &mut plan.scratch(1), &mut found);
    plan.columns(&request, &rebuilt, &candidates, &mut plan.scratch(1), &mut wanted);
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&found), bits(&wanted));
    let (mut found, mut wanted) = (vec![0.0; 5 * 4], vec![0.0; 5 * 4]);
    plan.request_columns(&request, late, &candidates, &mut plan.scratch(1), &mut found);
    plan.request_columns(&request, &rebuilt, &candidates, &mut plan.scratch(1), &mut wanted);
    assert_eq!(bits(&found), bits(&wanted), "item by item");
}
