//! Answers the peer bench (`index.py`) over standard input and output, one JSON object a line, so
//! that searches here and there take turns in one run.
//!
//! ```text
//! {"open": PATH}                                             -> {"bytes": N, "open_s": S}
//! {"target": .95, "k": 500, "from": 0, "to": 100, "filter": NAME, "items": true}
//!                                                            -> {"us": [..], "items": [[..], ..]}
//! {"exact": true, "k": 500, "from": 0, "to": 100, "filter": NAME} -> {"items": [[..], ..]}
//! {"dump": PATH, "filter": NAME}                             -> {"passing": N}; a bit an item
//! ```
//! A filter is `all`, `1/N` (items drawn at random) or `group` (items of the group of the nearest
//! item, by a file of one byte an item).

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use memmap2::Mmap;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde::Deserialize;
use shortlist::index::{
    Allowed, Bitmap, Config, Filter, Index, Scratch, audit::exact_search, open,
};
use shortlist::types::ItemIdx;

#[derive(Deserialize)]
struct Ask {
    open: Option<PathBuf>,
    dump: Option<PathBuf>,
    #[serde(default)]
    exact: bool,
    #[serde(default)]
    items: bool,
    #[serde(default)]
    target: f32,
    #[serde(default)]
    k: usize,
    #[serde(default)]
    from: usize,
    #[serde(default)]
    to: usize,
    #[serde(default)]
    filter: String,
}

struct Worker {
    vectors: Mmap,
    queries: Mmap,
    dim: usize,
    groups: Vec<u8>,
    config: Config,
    index: Option<Box<dyn Index>>,
    sets: Vec<(String, Bitmap, Option<Allowed>)>,
    scratch: Scratch,
}

/// Maps an .npy file of 32-bit floats, which NumPy's header says where to find.
fn map(path: &str) -> Mmap {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    // SAFETY: the bench's files are written before it starts and not touched while it runs.
    unsafe { Mmap::map(&file).expect("a file that can be mapped") }
}

fn numbers(npy: &[u8]) -> &[u8] {
    &npy[10 + u16::from_le_bytes([npy[8], npy[9]]) as usize..]
}

impl Worker {
    fn rows(&self) -> &[f32] {
        bytemuck::cast_slice(numbers(&self.vectors))
    }

    fn query(&self, at: usize) -> Vec<f32> {
        bytemuck::cast_slice::<u8, f32>(numbers(&self.queries))[at * self.dim..][..self.dim]
            .to_vec()
    }

    /// Number of the set of a filter for a query; `None` for all items.
    fn set(&mut self, filter: &str, query: &[f32]) -> Option<usize> {
        let n = self.rows().len() / self.dim;
        let name = match filter {
            "all" => return None,
            "group" => {
                let nearest = exact_search(self.rows(), query, 1, |_| true)[0].item;
                format!("group {}", self.groups[nearest.row()])
            }
            other => other.to_owned(),
        };
        if let Some(at) = self.sets.iter().position(|(known, ..)| *known == name) {
            return Some(at);
        }
        let set = Bitmap::new(n);
        let mut rng = Pcg64Mcg::seed_from_u64(7);
        let group: Option<u8> =
            name.strip_prefix("group ").map(|group| group.parse().expect("a group"));
        let one_in: f64 = filter.strip_prefix("1/").map_or(1.0, |n| n.parse().expect("1/N"));
        for item in 0..n {
            let passes = match group {
                Some(group) => self.groups[item] == group,
                None => rng.random_bool(1.0 / one_in),
            };
            set.set(ItemIdx(item as u32), passes);
        }
        let allowed = self.index.as_ref().map(|index| index.allow(&set));
        self.sets.push((name, set, allowed));
        Some(self.sets.len() - 1)
    }

    fn open(&mut self, path: &Path) -> serde_json::Value {
        let since = Instant::now();
        let index = open(path, &self.config).unwrap_or_else(|error| panic!("{error}"));
        let open_s = since.elapsed().as_secs_f64();
        let bytes: usize = index.layout().parts.iter().map(|(_, bytes)| bytes).sum();
        for (_, set, allowed) in &mut self.sets {
            *allowed = Some(index.allow(set));
        }
        self.index = Some(index);
        serde_json::json!({ "bytes": bytes, "open_s": open_s })
    }

    /// Writes a set that does not depend on the query, lowest bit first.
    fn dump(&mut self, path: &Path, filter: &str) -> serde_json::Value {
        let at = self.set(filter, &[]).expect("a filter that is the same for every query");
        let n = self.rows().len() / self.dim;
        let mut bytes = vec![0u8; n.div_ceil(8)];
        let passing = (0..n).filter(|&item| self.sets[at].1.get(ItemIdx(item as u32)));
        passing.for_each(|item| bytes[item / 8] |= 1 << (item % 8));
        std::fs::write(path, &bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::json!({ "passing": bytes.iter().map(|byte| byte.count_ones()).sum::<u32>() })
    }

    fn exact(&mut self, ask: &Ask) -> serde_json::Value {
        let items = (ask.from..ask.to).map(|at| {
            let query = self.query(at);
            let set = self.set(&ask.filter, &query).map(|at| &self.sets[at].1);
            let passes = |item| set.is_none_or(|set| set.get(item));
            exact_search(self.rows(), &query, ask.k, passes).iter().map(|hit| hit.item.0).collect()
        });
        let items: Vec<Vec<u32>> = items.collect();
        serde_json::json!({ "items": items })
    }

    fn search(&mut self, ask: &Ask) -> serde_json::Value {
        let sets: Vec<Option<usize>> = (ask.from..ask.to)
            .map(|at| {
                let query = self.query(at);
                self.set(&ask.filter, &query)
            })
            .collect();
        let mut index = self.index.take().expect("an index has been opened");
        index.set_recall_target(ask.target).expect("a calibrated target");
        let (mut us, mut items, mut found) = (Vec::new(), Vec::new(), Vec::new());
        for (at, set) in (ask.from..ask.to).zip(sets) {
            let query = self.query(at);
            let allowed = set.and_then(|at| self.sets[at].2.as_ref());
            let filter = Filter { allowed, excluded: &[] };
            let since = Instant::now();
            index.search(&query, ask.k, &filter, &mut self.scratch, &mut found);
            us.push(since.elapsed().as_secs_f64() * 1e6);
            if ask.items {
                items.push(found.iter().map(|hit| hit.item.0).collect::<Vec<u32>>());
            }
        }
        self.index = Some(index);
        serde_json::json!({ "us": us, "items": items })
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [vectors, queries, dim, groups] = args.as_slice() else {
        println!("run by bench/peers/index.py: VECTORS.npy QUERIES.npy DIM GROUPS");
        return;
    };
    let config = shortlist::config::Config::load(None).expect("the defaults are a configuration");
    let mut worker = Worker {
        vectors: map(vectors),
        queries: map(queries),
        dim: dim.parse().expect("DIM"),
        groups: std::fs::read(groups).unwrap_or_default(),
        config: Config { live_rows_max: 0, ..config.index },
        index: None,
        sets: Vec::new(),
        scratch: Scratch::default(),
    };
    for line in std::io::stdin().lock().lines() {
        let ask: Ask = serde_json::from_str(&line.expect("a line")).expect("a question");
        let answer = match (&ask.open, &ask.dump) {
            (Some(path), _) => worker.open(path),
            (_, Some(path)) => worker.dump(path, &ask.filter),
            _ if ask.exact => worker.exact(&ask),
            _ => worker.search(&ask),
        };
        println!("{answer}");
        std::io::stdout().flush().expect("an open pipe");
    }
}
