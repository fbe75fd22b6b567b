use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Float32Type, Float64Type, Int32Type, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::world::{CLUSTERS, IN_STOCK_SHARE, LABELS, REGIONS, TOPICS};
use super::*;

fn args(out: &Path) -> Args {
    Args {
        out: out.join("world"),
        items: 3000,
        users: 200,
        queries: Some(300),
        days: 2,
        start_date: NaiveDate::from_ymd_opt(2026, 1, 1).unwrap(),
        events_per_user_day: 20.0,
        events: None,
        seed: 42,
        region_by_topic: false,
        noise: 0.2,
        no_vectors: false,
        chunk_rows: 1000,
        threads: 1,
    }
}

fn world(region_by_topic: bool) -> World {
    World::new(Setting {
        seed: 42,
        noise: 0.2,
        region_by_topic,
        start_us: 1_767_225_600_000_000,
        days: 10,
    })
}

/// All tables under `dir`, by the path of their directory and prefix, each as one batch.
fn tables(dir: &Path) -> BTreeMap<String, RecordBatch> {
    let mut files: Vec<std::path::PathBuf> = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "parquet"));
    files.sort();
    let mut batches: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
    for file in files {
        let name = file.strip_prefix(dir).unwrap().to_string_lossy();
        let table = name.rsplit_once('-').unwrap().0.to_owned();
        let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&file).unwrap());
        for batch in reader.unwrap().build().unwrap() {
            batches.entry(table.clone()).or_default().push(batch.unwrap());
        }
    }
    let joined = batches.into_iter();
    joined.map(|(name, some)| (name, concat_batches(&some[0].schema(), &some).unwrap())).collect()
}

fn made(args: Args) -> BTreeMap<String, RecordBatch> {
    let out = args.out.clone();
    run(args).unwrap();
    assert!(is_complete(&out));
    tables(&out)
}

#[test]
fn content_depends_on_the_seed_and_not_on_chunks_or_threads() {
    let [a, b, c] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let first = made(args(a.path()));
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "events/dt=2026-01-01/generated",
            "events/dt=2026-01-02/generated",
            "items/items",
            "users/users",
            "vectors/items",
            "vectors/queries",
        ]
    );
    assert_eq!(first["items/items"].num_rows(), 3000);
    assert_eq!(first["vectors/queries"].num_rows(), 300);
    let second = made(Args { chunk_rows: 171, threads: 3, ..args(b.path()) });
    assert!(first == second, "chunk size or threads changed the content");
    let other = made(Args { seed: 43, ..args(c.path()) });
    for (name, table) in &first {
        assert!(table != &other[name], "{name} does not depend on the seed");
    }
}

#[test]
fn an_item_does_not_depend_on_how_many_there_are() {
    let [a, b] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let few = made(Args { days: 0, items: 100, ..args(a.path()) });
    let many = made(Args { days: 0, ..args(b.path()) });
    assert_eq!(few["vectors/items"], many["vectors/items"].slice(0, 100));
    assert_eq!(few["items/items"], many["items/items"].slice(0, 100));
}

#[test]
fn refuses_what_it_cannot_make() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |args: Args| run(args).unwrap_err().to_string();
    assert_eq!(refused(Args { items: 0, ..args(dir.path()) }), "--items 0: 1 to 4294967294");
    assert!(refused(Args { chunk_rows: 0, ..args(dir.path()) }).starts_with("--chunk-rows 0"));
    assert!(refused(Args { noise: f64::NAN, ..args(dir.path()) }).starts_with("--noise NaN"));
    let no_days = Args { events: Some(10), days: 0, ..args(dir.path()) };
    assert!(refused(no_days).starts_with("--events needs"));
    std::fs::write(dir.path().join("held"), "x").unwrap();
    let held = Args { out: dir.path().to_owned(), ..args(dir.path()) };
    assert!(refused(held).contains("is not empty"));
}

#[test]
fn stored_vectors_have_length_one_and_the_law_of_their_cluster() {
    let world = world(false);
    let (mut latent, mut other) = ([0.0; DIM], [0.0; DIM]);
    let (mut a, mut b) = ([0.0; DIM], [0.0; DIM]);
    let mut within = Vec::new();
    for row in 0..2000 {
        world.item_latent(row, &mut latent);
        world.rotate(&latent, &mut a);
        assert!((crate::kernels::dot(&a, &a) - 1.0).abs() < 1e-5);
        world.user_latent(row, &mut other);
        world.rotate(&other, &mut b);
        assert!((crate::kernels::dot(&b, &b) - 1.0).abs() < 1e-5);
        // The rotation keeps inner products: behaviour may work in latent coordinates.
        let (turned, straight) =
            (crate::kernels::dot(&a, &b), crate::kernels::dot(&latent, &other));
        assert!((turned - straight).abs() < 1e-4, "{turned} and {straight}");
        if world.item_cluster(row) == 0 {
            within.push(latent);
        }
    }
    // Two items of one cluster are alike, about 1 / (1 + spread^2 + noise^2).
    let pairs = within.windows(2).map(|pair| crate::kernels::dot(&pair[0], &pair[1]));
    let mean = pairs.sum::<f32>() / (within.len() - 1) as f32;
    assert!((0.5..0.95).contains(&mean), "{mean} over {} items", within.len());
}

#[test]
fn clusters_have_the_shares_of_the_power_law() {
    let world = world(false);
    let n = 200_000;
    let mut counts = vec![0u32; CLUSTERS];
    (0..n).for_each(|row| counts[world.item_cluster(row) as usize] += 1);
    let weight = |cluster: usize| (cluster as f64 + 5.0).powf(-0.8);
    let total: f64 = (0..CLUSTERS).map(weight).sum();
    for cluster in [0, 1, 10] {
        let expected = n as f64 * weight(cluster) / total;
        let found = f64::from(counts[cluster]);
        assert!((found - expected).abs() < 5.0 * expected.sqrt(), "{cluster}: {found}, {expected}");
    }
    let tail: u32 = counts[CLUSTERS / 2..].iter().sum();
    let expected = n as f64 * (CLUSTERS / 2..CLUSTERS).map(weight).sum::<f64>() / total;
    assert!((f64::from(tail) - expected).abs() < 5.0 * expected.sqrt(), "{tail}, {expected}");
}

#[test]
fn filters_pass_their_shares() {
    let n = 20_000u64;
    let near = |found: u64, of: f64, share: f64, what: &str| {
        let sd = (of * share * (1.0 - share)).sqrt();
        assert!((found as f64 - of * share).abs() < 5.0 * sd, "{what}: {found} of {of}, {share}");
    };
    for by_topic in [false, true] {
        let world = world(by_topic);
        let items: Vec<_> = (0..n).map(|row| world.item(row)).collect();
        near(
            items.iter().filter(|item| item.in_stock).count() as u64,
            n as f64,
            IN_STOCK_SHARE,
            "stock",
        );
        assert!(items.iter().all(|item| item.regions > 0 && item.regions < 1 << REGIONS.len()));
        for (bit, (label, share)) in LABELS.iter().enumerate() {
            let found = items.iter().filter(|item| item.labels >> bit & 1 == 1).count();
            near(found as u64, n as f64, *share, label);
        }
        let at_home = items.iter().filter(|item| item.regions >> (item.topic % 4) & 1 == 1).count();
        // Without the option every region has .5, and a quarter of the 1/16 that have none.
        let share = if by_topic { 0.95 + 0.05 * 0.85f64.powi(3) / 4.0 } else { 0.5 + 1.0 / 64.0 };
        near(at_home as u64, n as f64, share, "home region");
        let recent = items.iter().filter(|item| item.created_us >= world.setting.start_us).count();
        near(recent as u64, n as f64, 0.1, "created within the days");
    }
}

#[test]
fn events_keep_their_contract_and_can_be_learnt_from() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Args { users: 1500, events: Some(60_000), no_vectors: true, ..args(dir.path()) };
    let tables = made(settings);
    let items = &tables["items/items"];
    let created = column_us(items, "created_at");
    let prices = items["price"].as_primitive::<Float64Type>();
    let mut shown_at = [0u32; behaviour::SLATE];
    let mut clicked_at = [0u32; behaviour::SLATE];
    let (mut good, mut bad) = ((0u32, 0u32), (0u32, 0u32));
    for day in 0..2i64 {
        let events = &tables[&format!("events/dt=2026-01-0{}/generated", day + 1)];
        let (kinds, ids) =
            (events["event"].as_string::<i32>(), events["item_id"].as_string::<i32>());
        let positions = events["position"].as_primitive::<Int32Type>();
        let values = events["value"].as_primitive::<Float64Type>();
        let propensity = events["propensity"].as_primitive::<Float64Type>();
        let ratings = items["rating"].as_primitive::<Float32Type>();
        let times = column_us(events, "timestamp");
        let midnight = 1_767_225_600_000_000 + day * 86_400_000_000;
        let unique: std::collections::HashSet<&str> =
            events["event_id"].as_string::<i32>().iter().map(Option::unwrap).collect();
        assert_eq!(unique.len(), events.num_rows(), "event ids repeat");
        for (row, &time) in times.iter().enumerate() {
            let item: usize = ids.value(row)[1..].parse::<usize>().unwrap() - 1;
            assert!((midnight..midnight + 86_400_000_000).contains(&time), "wrong day");
            assert!(created[item] <= time, "shown before it was created");
            assert!(propensity.value(row) > 0.0 && propensity.value(row) <= 1.0);
            let position = positions.value(row) as usize;
            let side = if ratings.value(item) > 3.5 { &mut good } else { &mut bad };
            match kinds.value(row) {
                "impression" => {
                    shown_at[position] += 1;
                    side.0 += 1;
                }
                "click" => {
                    clicked_at[position] += 1;
                    side.1 += 1;
                }
                "purchase" => assert_eq!(values.value(row), prices.value(item)),
                other => panic!("event `{other}`"),
            }
        }
    }
    let (shown, clicked): (u32, u32) = (shown_at.iter().sum(), clicked_at.iter().sum());
    assert!((54_000..66_000).contains(&shown), "{shown} impressions for --events 60000");
    let rate = f64::from(clicked) / f64::from(shown);
    assert!((0.03..0.3).contains(&rate), "click rate {rate}");
    let ratio = |(shown, clicked): (u32, u32)| f64::from(clicked) / f64::from(shown);
    assert!(ratio(good) > 1.2 * ratio(bad), "quality is not felt: {good:?} {bad:?}");
    let bias = f64::from(clicked_at[9])
        / f64::from(shown_at[9])
        / (f64::from(clicked_at[0]) / f64::from(shown_at[0]));
    let expected = behaviour::examined(9);
    assert!((bias / expected - 1.0).abs() < 0.35, "position bias {bias}, expected {expected}");
}

fn column_us(batch: &RecordBatch, name: &str) -> Vec<i64> {
    let column = batch[name].as_primitive::<TimestampMicrosecondType>();
    assert_eq!(column.timezone(), Some("UTC"));
    column.values().to_vec()
}

#[test]
fn likeness_of_user_and_item_decides_clicks() {
    let world = world(false);
    let clusters: Vec<u16> = (0..5000).map(|row| world.item_cluster(row)).collect();
    let catalogue = Catalogue::new(&world, &clusters);
    let traffic = Traffic { impressions_per_user_day: 40.0 };
    let (mut user, mut item) = ([0.0; DIM], [0.0; DIM]);
    let mut likeness = [(0.0f64, 0u32); 2];
    for row in 0..1000 {
        world.user_latent(row, &mut user);
        for event in catalogue.user_day(&traffic, 0, row).events {
            world.item_latent(event.item.into(), &mut item);
            let side = &mut likeness[usize::from(event.kind == behaviour::Kind::Click)];
            side.0 += f64::from(crate::kernels::dot(&user, &item));
            side.1 += 1;
        }
    }
    let [shown, clicked] = likeness.map(|(sum, count)| sum / f64::from(count));
    assert!(clicked > shown + 0.1, "mean likeness {shown} shown, {clicked} clicked");
}

#[test]
fn every_topic_has_a_category_of_its_own() {
    let names: std::collections::BTreeSet<String> =
        (0..TOPICS as u16).map(tables::category).collect();
    assert_eq!(names.len(), TOPICS);
}
