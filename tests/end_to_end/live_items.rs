//! Items that change while servers run: over HTTP, on two replicas, across a restart, under readers;
//! and any sequence of changes against the catalogue that it ends in.

use std::collections::{BTreeMap, HashMap};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use proptest::prelude::*;
use serde_json::{Value, json};
use shortlist::bundle::{Attribute, Bundle, Change, Patch, Refused, Upsert};
use shortlist::features::{Candidate, History, ItemColumns, ItemRows, LateRows, RequestInput};
use shortlist::forest::Matrix;
use shortlist::index::{self, Filter};
use shortlist::store::items::ItemRecord;
use shortlist::types::ItemIdx;

use crate::support::{ITEMS_TOKEN, Server, eventually, world};

/// A registry with the world's bundle in it, and the token.
struct Shop {
    dir: tempfile::TempDir,
}

impl Shop {
    fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let models = world().bundle_dir().join("../..");
        let copy = [models, dir.path().join("models")];
        assert!(Command::new("cp").arg("-r").args(copy).status().unwrap().success());
        std::fs::write(dir.path().join("token"), ITEMS_TOKEN).unwrap();
        Self { dir }
    }

    /// A replica that retrieves every item, so that only filters and rules decide what is shown; the
    /// newest come first.
    fn replica(&self, more: &[(&str, &str)]) -> Server {
        let path = |name: &str| format!("\"{}\"", self.dir.path().join(name).display());
        let (registry, token) = (path("models"), path("token"));
        let mut settings = vec![
            ("registry.url", registry.as_str()),
            ("server.items_token_file", &token),
            ("items.poll_ms", "50"),
            ("pipeline.candidates", "4000"),
            ("rules.max_per_category", "1000"),
            ("rules.freshness_boost", "100.0"),
            ("rules.freshness_half_life_days", "0.5"),
            ("rules.blocked_labels", "[\"recalled\"]"),
        ];
        settings.extend(more);
        Server::start(world(), &settings)
    }
}

const NOW: &str = "2026-01-11T09:00:00Z";

/// What is recommended, by id.
fn shown(server: &Server, region: Option<&str>) -> HashMap<String, Value> {
    let ask = json!({"user_id": "nobody-knows-me", "num_items": 100, "region": region});
    let answer = server.recommend(ask);
    let items = answer["items"].as_array().unwrap().clone();
    items.into_iter().map(|item| (item["item_id"].as_str().unwrap().to_owned(), item)).collect()
}

fn is_shown(server: &Server, id: &str) -> bool {
    shown(server, None).contains_key(id)
}

fn patched(server: &Server, id: &str, patch: Value) -> u64 {
    let (status, body) = server.change("PATCH", &format!("/{id}"), &patch);
    assert_eq!(status, 200, "{patch} -> {body}");
    body["sequence"].as_u64().unwrap()
}

/// Two regions with items in them.
fn regions() -> [String; 2] {
    let mut names: Vec<String> = world()
        .items
        .values()
        .filter(|item| item.in_stock)
        .flat_map(|item| item.regions.clone())
        .collect();
    names.sort_unstable();
    names.dedup();
    [names[0].clone(), names[1].clone()]
}

#[test]
fn an_item_comes_changes_and_goes_on_every_replica() {
    let shop = Shop::open();
    let (one, two) = (shop.replica(&[]), shop.replica(&[]));
    let [here, there] = regions();
    let category = world().items.values().find_map(|item| item.category.clone());
    let item = json!({
        "item_id": "brand-new", "title": "Brand new", "category": category, "price": 9.5,
        "created_at": NOW, "regions": [&here], "labels": ["novelty"],
        "attributes": {"brand": "nobody's", "unread": 7},
    });
    assert!(!is_shown(&one, "brand-new"));
    let (status, body) = one.change("POST", "", &item);
    assert_eq!((status, &body), (200, &json!({"accepted": 1, "sequence": 1})));
    let first = &shown(&one, Some(&here))["brand-new"];
    assert_eq!(first["title"], json!("Brand new"));
    assert_eq!((&first["price"], &first["category"]), (&json!(9.5), &json!(category)));
    assert!(!shown(&one, Some(&there)).contains_key("brand-new"), "it is not sold there");
    eventually("the other replica to show it", || is_shown(&two, "brand-new"));

    // What one replica takes acts on its next request; both may take.
    patched(&two, "brand-new", json!({"price": 2.25}));
    assert_eq!(shown(&two, None)["brand-new"]["price"], json!(2.25));
    patched(&one, "brand-new", json!({"in_stock": false}));
    assert!(!is_shown(&one, "brand-new"));
    assert_eq!(patched(&two, "brand-new", json!({"in_stock": true, "regions": [&there]})), 4);
    assert_eq!(shown(&two, Some(&there))["brand-new"]["price"], json!(2.25));
    assert!(!shown(&two, Some(&here)).contains_key("brand-new"));
    patched(&two, "brand-new", json!({"labels": ["recalled"]}));
    assert!(!is_shown(&two, "brand-new"), "a label that the bundle does not know blocks too");
    patched(&two, "brand-new", json!({"labels": []}));
    assert!(is_shown(&two, "brand-new"));

    // A click on it is part of a history, as on any other item.
    let click = json!({"user_id": "clicker", "item_id": "brand-new", "event": "click"});
    assert_eq!(two.post("/v1/events", &click).0, 202);
    let (_, past) = two.get("/v1/console/history?user_id=clicker");
    assert_eq!(past["history"][0]["title"], json!("Brand new"));

    // One that starts now replays; a deleted item is gone everywhere.
    let three = shop.replica(&[]);
    assert_eq!(shown(&three, Some(&there))["brand-new"]["price"], json!(2.25));
    let (status, body) = three.change("DELETE", "/brand-new", &Value::Null);
    assert_eq!((status, body["sequence"].as_u64()), (200, Some(7)), "{body}");
    assert!(!is_shown(&three, "brand-new"));
    eventually("the others to forget it", || {
        !is_shown(&one, "brand-new") && !is_shown(&two, "brand-new")
    });
    let (status, body) = one.change("DELETE", "/brand-new", &Value::Null);
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("unknown_item")), "{body}");
    assert!(!is_shown(&shop.replica(&[]), "brand-new"));
}

#[test]
fn an_item_of_the_bundle_goes_out_of_stock_and_comes_back_as_it_was() {
    let shop = Shop::open();
    let server = shop.replica(&[]);
    let answer = server.recommend(json!({"user_id": "nobody-knows-me"}));
    let was = &answer["items"][0];
    let id = was["item_id"].as_str().unwrap();
    patched(&server, id, json!({"in_stock": false}));
    assert!(!is_shown(&server, id));
    patched(&server, id, json!({"in_stock": true}));
    let now = &shown(&server, None)[id];
    for field in ["title", "category", "price", "thumbnail"] {
        assert_eq!(now[field], was[field], "{field}");
    }
    let (status, body) = server.change("PATCH", "/no-such-item", &json!({"in_stock": true}));
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("unknown_item")), "{body}");
}

#[test]
fn a_bundle_that_takes_over_has_all_changes() {
    let shop = Shop::open();
    let server = shop.replica(&[("registry.poll_interval_ms", "50")]);
    let item = json!({"item_id": "brand-new", "created_at": NOW});
    assert_eq!(server.change("POST", "", &item).0, 200);
    // The same bundle under another name.
    let models = shop.dir.path().join("models");
    let version = world().bundle_dir().file_name().unwrap().to_str().unwrap().to_owned();
    let next = models.join("bundles/next");
    let copy = [models.join("bundles").join(&version), next.clone()];
    assert!(Command::new("cp").arg("-r").args(copy).status().unwrap().success());
    let manifest = std::fs::read_to_string(next.join("manifest.json")).unwrap();
    std::fs::write(next.join("manifest.json"), manifest.replace(&version, "next")).unwrap();
    let rollout = json!({"bundle": "next", "percent": 100, "reason": "test"});
    std::fs::write(models.join("rollout/1000.json"), rollout.to_string()).unwrap();
    eventually("the next bundle to serve", || {
        server.get("/readyz").1["bundle_version"] == json!("next")
    });
    assert!(is_shown(&server, "brand-new"));
    assert_eq!(patched(&server, "brand-new", json!({"in_stock": false})), 2);
    assert!(!is_shown(&server, "brand-new"));
}

#[test]
fn a_batch_is_taken_in_whole_or_not_at_all() {
    let shop = Shop::open();
    let server = shop.replica(&[("index.live_rows_max", "3")]);
    let item = |id: &str| json!({"item_id": id, "created_at": NOW});
    let refused = |body: Value, status: u16, code: &str, part: &str| {
        let (found, answer) = server.change("POST", "", &body);
        assert_eq!((found, answer["error"]["code"].as_str()), (status, Some(code)), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
        assert!(!is_shown(&server, "a"), "a batch with a fault is not taken in part");
    };
    let with = |field: &str, value: Value| {
        let mut bad = item("b");
        bad[field] = value;
        json!([item("a"), bad])
    };
    refused(with("price", json!(-1)), 400, "out_of_range", "[1].price");
    refused(with("colour", json!("red")), 400, "unknown_field", "colour");
    refused(with("regions", json!(["Atlantis"])), 400, "out_of_range", "Atlantis");
    refused(with("attributes", json!({"brand": 7})), 400, "wrong_type", "brand");
    refused(with("attributes", json!({"price": 7})), 400, "unknown_field", "price");
    refused(json!([item("a"), item("b"), item("c"), item("d")]), 507, "full", "live_rows_max");
    let (status, body) = server.change("POST", "", &json!([item("a"), item("b"), item("c")]));
    assert_eq!((status, &body), (200, &json!({"accepted": 3, "sequence": 1})));
    assert!(["a", "b", "c"].iter().all(|id| is_shown(&server, id)));
    let (status, _) = server.change("POST", "", &item("d"));
    assert_eq!(status, 507);
    // An item that has a row keeps it.
    assert_eq!(server.change("POST", "", &item("b")).0, 200);
}

#[test]
fn readers_never_see_an_item_half_changed() {
    let shop = Shop::open();
    let server = shop.replica(&[]);
    let [here, there] = regions();
    let version = |region: &str, price: f64| json!({"item_id": "turncoat", "price": price, "created_at": NOW, "regions": [region]});
    let done = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let reader = |region: &str, price: f64| {
            let mut seen = 0;
            while !done.load(Relaxed) {
                if let Some(item) = shown(&server, Some(region)).get("turncoat") {
                    assert_eq!(item["price"], json!(price), "the price of another region");
                    seen += 1;
                }
            }
            seen
        };
        let readers = [(&here, 1.0), (&there, 2.0)]
            .map(|(region, price)| scope.spawn(move || reader(region, price)));
        for _ in 0..60 {
            assert_eq!(server.change("POST", "", &version(&here, 1.0)).0, 200);
            assert_eq!(server.change("POST", "", &version(&there, 2.0)).0, 200);
            server.change("DELETE", "/turncoat", &Value::Null);
        }
        server.change("POST", "", &version(&here, 1.0));
        eventually("it to be seen", || shown(&server, Some(&here)).contains_key("turncoat"));
        done.store(true, Relaxed);
        readers.map(|reader| reader.join().unwrap())
    });
    assert!(seen[0] > 0, "{seen:?}");
}

/// What an item should be in the end.
#[derive(Clone, Debug, PartialEq)]
struct Expected {
    record: ItemRecord,
    gone: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Upsert { item: usize, record: ItemRecord },
    Patch { item: usize, patch: Patch },
    Delete { item: usize },
}

/// Of twelve items, the first eight are the bundle's.
fn step() -> impl Strategy<Value = Step> {
    let lists = |names: [&'static str; 3]| {
        proptest::sample::subsequence(names.to_vec(), 0..=3)
            .prop_map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    // Regions by number, because their names are the world's.
    let regions = || lists(["0", "1", "2"]);
    let labels = move || lists(["novelty", "recalled", "fragile"]);
    let record = (any::<bool>(), 0..100u16, regions(), labels(), 0..4usize);
    let record = record.prop_map(|(in_stock, price, regions, labels, category)| ItemRecord {
        price: Some(f32::from(price)),
        category: Some(category.to_string()),
        in_stock,
        regions,
        labels,
        ..ItemRecord::default()
    });
    let option = proptest::option::of::<BoxedStrategy<Vec<String>>>;
    let patch = (
        proptest::option::of(any::<bool>()),
        proptest::option::of(0..100u16),
        option(labels().boxed()),
        option(regions().boxed()),
    );
    let patch = patch.prop_map(|(in_stock, price, labels, regions)| Patch {
        price: price.map(f32::from),
        in_stock,
        labels,
        regions,
        ..Patch::default()
    });
    prop_oneof![
        (0..12usize, record).prop_map(|(item, record)| Step::Upsert { item, record }),
        (0..12usize, patch).prop_map(|(item, patch)| Step::Patch { item, patch }),
        (0..12usize).prop_map(|item| Step::Delete { item }),
    ]
}

/// The names of one bundle in place of a step's numbers.
struct Names {
    ids: Vec<String>,
    regions: Vec<String>,
    categories: Vec<String>,
}

impl Names {
    fn of(bundle: &Bundle) -> Self {
        let built = (0..8).map(|row| bundle.items.view().id(ItemIdx(row * 7)).to_owned());
        let mut categories = bundle.items.categories()[..3].to_vec();
        categories.push("a category of tomorrow".to_owned());
        Self {
            ids: built.chain((0..4).map(|n| format!("new-{n}"))).collect(),
            regions: bundle.items.regions()[..3].to_vec(),
            categories,
        }
    }

    fn regions(&self, numbers: &[String]) -> Vec<String> {
        numbers.iter().map(|n| self.regions[n.parse::<usize>().unwrap()].clone()).collect()
    }

    fn change(&self, step: &Step) -> Change {
        match step {
            Step::Upsert { item, record } => {
                let category = record.category.as_ref().unwrap().parse::<usize>().unwrap();
                let record = ItemRecord {
                    id: self.ids[*item].clone(),
                    regions: self.regions(&record.regions),
                    category: Some(self.categories[category].clone()),
                    ..record.clone()
                };
                let attributes = [("brand".to_owned(), Attribute::Text("nobody's".into()))];
                Change::Upsert(Upsert { record, attributes: attributes.into() })
            }
            Step::Patch { item, patch } => Change::Patch(Patch {
                id: self.ids[*item].clone(),
                regions: patch.regions.as_ref().map(|numbers| self.regions(numbers)),
                ..patch.clone()
            }),
            Step::Delete { item } => Change::Delete { id: self.ids[*item].clone() },
        }
    }
}

/// The change on the catalogue; whether it must be refused.
fn follow(catalogue: &mut BTreeMap<String, Expected>, change: &Change) -> bool {
    match change {
        Change::Upsert(upsert) => {
            let now = Expected { record: upsert.record.clone(), gone: false };
            catalogue.insert(upsert.record.id.clone(), now);
        }
        Change::Patch(patch) => match catalogue.get_mut(&patch.id).filter(|item| !item.gone) {
            None => return true,
            Some(Expected { record, .. }) => {
                record.in_stock = patch.in_stock.unwrap_or(record.in_stock);
                record.price = patch.price.or(record.price);
                record.labels = patch.labels.clone().unwrap_or(record.labels.clone());
                record.regions = patch.regions.clone().unwrap_or(record.regions.clone());
            }
        },
        Change::Delete { id } => match catalogue.get_mut(id).filter(|item| !item.gone) {
            None => return true,
            Some(item) => item.gone = true,
        },
    }
    false
}

/// What the bundle was built with.
fn built(bundle: &Bundle, names: &Names) -> BTreeMap<String, Expected> {
    let view = bundle.items.view();
    let expected = |id: &String| {
        let item = bundle.items.find(id).unwrap();
        let in_stock = view.is_offered(item, None);
        let of_world = &world().items[id];
        assert_eq!(in_stock, of_world.in_stock);
        let record = ItemRecord {
            id: id.clone(),
            category: view.category(item).map(str::to_owned),
            price: view.price(item),
            in_stock,
            regions: of_world.regions.clone(),
            labels: of_world.labels.clone(),
            ..ItemRecord::default()
        };
        (id.clone(), Expected { record, gone: false })
    };
    names.ids[..8].iter().map(expected).collect()
}

/// Filters, columns of an answer and search say of every item what the catalogue says.
fn check_catalogue(bundle: &Bundle, names: &Names, catalogue: &BTreeMap<String, Expected>) {
    let view = bundle.items.view();
    let regions = std::iter::once(None).chain((0..names.regions.len()).map(Some));
    let (mut scratch, mut hits) = (index::Scratch::default(), Vec::new());
    let query = [vec![1.0], vec![0.0; bundle.towers.dim() - 1]].concat();
    for region in regions {
        let filter = Filter { allowed: Some(bundle.allowed(region)), excluded: &[] };
        bundle.index.search_exact(&query, 10_000, &filter, &mut scratch, &mut hits);
        let found = |item| hits.iter().any(|hit| hit.item == item);
        assert!(hits.iter().all(|hit| view.is_offered(hit.item, region)));
        for (id, Expected { record, gone }) in catalogue {
            let item = bundle.items.find(id).unwrap();
            let sold = region.is_none_or(|at| record.regions.contains(&names.regions[at]));
            let offered = !gone && record.in_stock && sold;
            assert_eq!((view.is_offered(item, region), found(item)), (offered, offered), "{id}");
        }
    }
    let blocked = ["novelty", "recalled", "fragile"].map(str::to_owned);
    for (id, Expected { record, .. }) in catalogue {
        let item = bundle.items.find(id).unwrap();
        assert_eq!(view.id(item), id);
        assert_eq!(
            (view.price(item), view.category(item)),
            (record.price, record.category.as_deref())
        );
        for label in &blocked {
            let carries = view.labels(item) & view.label_bits([label]) != 0;
            assert_eq!(carries, record.labels.contains(label), "{label} of {id}");
        }
    }
}

/// The ranker over late rows gives what the walk gives over columns that were built with them.
fn check_scores(bundle: &Bundle, names: &Names) {
    let (view, built) = (bundle.items.view(), bundle.items.columns());
    let rows = bundle.items.len() + 4;
    let mut rebuilt = ItemColumns::new(rows);
    for (at, name) in built.names().iter().enumerate() {
        let value = |row: usize| match view.values(ItemIdx(row as u32)) {
            Some(values) => values[at],
            None => built.column(at).value(row),
        };
        rebuilt.insert(name, (0..rows).map(value).collect::<Vec<_>>());
    }
    let items = names.ids.iter().filter_map(|id| bundle.items.find(id));
    let candidates: Vec<Candidate> = items
        .chain((100..140).map(ItemIdx))
        .map(|item| Candidate { item, similarity: 0.5, retrieval_rank: 1.0, retrieval_score: 0.5 })
        .collect();
    let history: Vec<ItemIdx> = candidates.iter().step_by(3).map(|c| c.item).collect();
    let context = vec![0.0; bundle.schema.context_names().len()];
    let times_ms = vec![bundle.manifest.as_of_ms; history.len()];
    let request = RequestInput {
        time_ms: bundle.manifest.as_of_ms + 3_600_000,
        user: bundle.users.find(&world().users[0]),
        context: &context,
        history: History::new(&history, &times_ms),
    };
    let plan = &bundle.plan;
    let mut constants = vec![0.0; plan.constant_count()];
    plan.constants(&request, &mut constants);
    let mut all = vec![0.0; plan.column_count() * candidates.len()];
    let mut gathered = plan.scratch(candidates.len());
    plan.columns(&request, &rebuilt, &candidates, &mut gathered, &mut all);
    let matrix = Matrix { constants: &constants, columns: &all, rows: candidates.len() };
    let mut wanted = vec![0.0; candidates.len()];
    bundle.ranker.score(&matrix, &mut wanted);

    let is_late = |(_, c): &(usize, &Candidate)| view.content(c.item).is_some();
    let late: Vec<u32> =
        candidates.iter().enumerate().filter(is_late).map(|(at, _)| at as u32).collect();
    let mut columns = vec![0.0; plan.request_column_count() * candidates.len()];
    let rows = ItemRows::new(built, &bundle.rows, &view, &late);
    plan.request_columns(&request, rows, &candidates, &mut gathered, &mut columns);
    let mut scratch = bundle.ranking.scratch(candidates.len());
    bundle.ranking.specialise(&constants, &mut scratch);
    let bins = late.iter().map(|&at| at as usize);
    let bins = bins.map(|at| (at, &view.content(candidates[at].item).unwrap().bins[..]));
    let mut scores = vec![0.0; candidates.len()];
    let items = candidates.iter().map(|c| c.item);
    assert!(bundle.ranking.score(items, bins, &columns, &mut scratch, &mut scores));
    let bits = |scores: &[f64]| scores.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&scores), bits(&wanted));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_changes_ends_in_the_catalogue_that_it_describes(
        steps in proptest::collection::vec(step(), 1..40),
        batch in 1..4usize,
    ) {
        let config = world().config();
        let bundle = Bundle::open(&world().bundle_dir(), false, &config.index).unwrap();
        let names = Names::of(&bundle);
        let mut catalogue = built(&bundle, &names);
        check_catalogue(&bundle, &names, &catalogue);
        let changes: Vec<Change> = steps.iter().map(|step| names.change(step)).collect();
        for (n, changes) in changes.chunks(batch).enumerate() {
            let mut next = catalogue.clone();
            let refused = changes.iter().any(|change| follow(&mut next, change));
            match bundle.prepare(changes, 1000) {
                Ok(prepared) => {
                    prop_assert!(!refused, "{changes:?}");
                    bundle.commit(n as u64 + 1, prepared);
                    catalogue = next;
                }
                Err(error) => prop_assert!(refused && matches!(error, Refused::Unknown { .. }), "{error}"),
            }
        }
        check_catalogue(&bundle, &names, &catalogue);
        check_scores(&bundle, &names);
    }
}
