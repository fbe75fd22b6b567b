//! What `POST /v1/events` acknowledged is in Parquet exactly once, whenever the process is killed.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde_json::{Value, json};

use crate::support::{Server, eventually, files, world};

/// Kills of an ordinary run; `SHORTLIST_KILLS` asks for more.
const KILLS: u64 = 6;

#[test]
fn a_killed_server_loses_no_acknowledged_event_and_writes_none_twice() {
    let kills = std::env::var("SHORTLIST_KILLS").map_or(KILLS, |n| n.parse().expect("a number"));
    let dir = tempfile::tempdir().unwrap();
    let url = format!("\"{}\"", dir.path().display());
    // Files often, so that kills hit their writing too.
    let settings = [("events.dir", url.as_str()), ("events.file_age_max_ms", "30")];
    let mut draw = Pcg64Mcg::seed_from_u64(7);
    // Acknowledged or not, by event id.
    let mut sent: BTreeMap<String, bool> = BTreeMap::new();
    for kill in 0..kills {
        let server = Server::start(world(), &settings);
        let ends = Instant::now() + Duration::from_millis(draw.random_range(20..400));
        std::thread::scope(|scope| {
            let posts = scope.spawn(|| post_until_refused(&server, kill));
            std::thread::sleep(ends.saturating_duration_since(Instant::now()));
            server.signal("KILL");
            sent.extend(posts.join().unwrap());
        });
    }
    // The next start writes what the kills left, and so does an ordinary end.
    let mut server = Server::start(world(), &settings);
    let last = json!([event("last"), event("last")]);
    let (status, body) = server.post("/v1/events", &last);
    assert_eq!((status, &body), (202, &json!({"accepted": 2, "duplicates": 1})));
    sent.insert("last".to_owned(), true);
    eventually("the journal's rows in files", || !journal_has_rows(dir.path()));
    server.signal("TERM");
    assert!(server.ended());
    let written = written(&dir.path().join("events"));
    let acknowledged = sent.values().filter(|&&taken| taken).count();
    println!("{kills} kills, {} events sent, {acknowledged} acknowledged", sent.len());
    assert!(acknowledged > 10 * kills as usize, "the kills came too early to show anything");
    for (id, taken) in sent {
        let times = written.get(&id).copied().unwrap_or(0);
        assert!(times == 1 || (!taken && times == 0), "{id} is {times} times in the files");
    }
}

/// Posts batches until the server is gone; ids and whether they were acknowledged.
fn post_until_refused(server: &Server, kill: u64) -> Vec<(String, bool)> {
    let mut sent = Vec::new();
    for batch in 0.. {
        let ids: Vec<String> = (0..=batch % 7).map(|at| format!("{kill}-{batch}-{at}")).collect();
        let body: Value = ids.iter().map(|id| event(id)).collect();
        let reply = server.try_post("/v1/events", &body);
        let taken = matches!(reply, Some((202, _)));
        sent.extend(ids.into_iter().map(|id| (id, taken)));
        if reply.is_none() {
            break;
        }
    }
    sent
}

fn event(id: &str) -> Value {
    let item = world().items.keys().min().unwrap();
    json!({"event_id": id, "user_id": "kill-user", "item_id": item, "event": "click"})
}

fn journal_has_rows(dir: &Path) -> bool {
    let of_a_row = |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == "journal");
    files(&dir.join("journal"), "").iter().any(of_a_row)
}

/// How often each event id is in the files.
fn written(dir: &Path) -> HashMap<String, usize> {
    let mut times = HashMap::new();
    for path in
        files(dir, "").iter().filter(|path| path.extension().is_some_and(|e| e == "parquet"))
    {
        let file = File::open(path).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        for batch in reader {
            for id in batch.unwrap()["event_id"].as_string::<i32>().iter().flatten() {
                *times.entry(id.to_owned()).or_insert(0) += 1;
            }
        }
    }
    times
}
