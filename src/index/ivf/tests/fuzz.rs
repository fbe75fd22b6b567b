//! Mutated files: refused, or an index that answers; never a panic or a read outside.
//!
//! A few hundred executions in the ordinary run; `SHORTLIST_FUZZ_S=600` runs for so many seconds.

use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;

use super::*;

const EXECUTIONS: u64 = 400;
/// Where the container keeps its table; see [`crate::sections`].
const TABLE: usize = 64;
const ENTRY_BYTES: usize = 96;

const WORDS: [u64; 12] = [
    0,
    1,
    2,
    31,
    33,
    1 << 16,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    u64::MAX,
    0x7fc0_0000,
    0x7f80_0000,
];

/// Some changes somewhere, after which the header vouches for the table again, mostly.
fn mutate(file: &mut Vec<u8>, random: &mut Pcg64Mcg) {
    let sections = u32::from_le_bytes(file[12..16].try_into().unwrap()) as usize;
    for _ in 0..random.random_range(1..4) {
        let at = match random.random_range(0..4) {
            // The table, a section's beginning, or anywhere.
            0 => TABLE + random.random_range(0..sections * ENTRY_BYTES),
            1 | 2 => {
                let entry = TABLE + random.random_range(0..sections) * ENTRY_BYTES;
                let offset = u64::from_le_bytes(file[entry + 48..entry + 56].try_into().unwrap());
                offset as usize % file.len() + random.random_range(0..64)
            }
            _ => random.random_range(0..file.len()),
        };
        let at = at.min(file.len() - 1);
        match random.random_range(0..5) {
            0 => file[at] ^= 1 << random.random_range(0..8),
            1 => file[at] = random.random(),
            2 | 3 => {
                let width = *[2, 4, 8].choose(random).unwrap();
                let word = WORDS.choose(random).unwrap().to_le_bytes();
                let at = at / width * width;
                let end = (at + width).min(file.len());
                file[at..end].copy_from_slice(&word[..end - at]);
            }
            _ if random.random_bool(0.2) => file.truncate(at.max(TABLE + sections * ENTRY_BYTES)),
            _ => file.extend_from_within(at..(at + 64).min(file.len())),
        }
    }
    if random.random_bool(0.9) {
        let length = (file.len() as u64).to_le_bytes();
        file[16..24].copy_from_slice(&length);
        file[12..16].copy_from_slice(&(sections as u32).to_le_bytes());
        let hash = blake3::hash(&file[TABLE..TABLE + sections * ENTRY_BYTES]);
        file[24..56].copy_from_slice(hash.as_bytes());
    }
}

/// True when the file was accepted.
fn execute(path: &Path, random: &mut Pcg64Mcg) -> bool {
    let Ok(mut index) = IvfIndex::open(path) else { return false };
    let (n, dim) = (index.len(), index.dim());
    if random.random_bool(0.1) && Sections::open(path).unwrap().verify().is_ok() {
        assert_eq!(n, 300, "a file whose checksums hold is the one that was written");
    }
    index.set_recall_target(*crate::index::RECALL_TARGETS.choose(random).unwrap()).unwrap();
    index.exact_rows_max = 0;
    index.set_live_rows_max(4);
    let set = Bitmap::new(n);
    let rate = *[0.02, 0.5, 1.0].choose(random).unwrap();
    (0..n as u32).for_each(|item| set.set(ItemIdx(item), random.random_bool(rate)));
    let allowed = index.allow(&set);
    let query = vectors(1, dim, 1, false, random.random());
    if n > 0 {
        index.upsert(ItemIdx(0), &query, &[(&allowed, true)]).unwrap();
        set.set(ItemIdx(0), true);
    }
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    for k in [1, 40, 1000] {
        index.search(&query, k, &Filter::default(), &mut scratch, &mut out);
        assert_eq!(out.len(), k.min(n));
        let filter = Filter { allowed: Some(&allowed), excluded: &[] };
        index.search(&query, k, &filter, &mut scratch, &mut out);
        assert_eq!(out.len(), k.min(set.count_ones()));
        let items: HashSet<ItemIdx> = out.iter().map(|hit| hit.item).collect();
        assert_eq!(items.len(), out.len());
        assert!(items.iter().all(|&item| set.get(item)));
    }
    true
}

#[test]
fn mutated_files_are_refused_or_searched() {
    let seconds: Option<u64> = std::env::var("SHORTLIST_FUZZ_S").ok().and_then(|s| s.parse().ok());
    let seed = if seconds.is_some() { rand::random() } else { 7 };
    let mut random = Pcg64Mcg::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let originals: Vec<Vec<u8>> =
        [(Codes::Compact, Rerank::None), (Codes::Pq, Rerank::None), (Codes::Pq, Rerank::F16)]
            .into_iter()
            .map(|(codes, rerank)| {
                let config = Config { codes, rerank, ..config() };
                let rows = vectors(300, 20, 9, true, 2);
                let path = dir.path().join("original.bin");
                IvfIndex::build(&rows, 20, &[], &config, &|_, _| ()).unwrap().save(&path).unwrap();
                std::fs::read(&path).unwrap()
            })
            .collect();
    let path = dir.path().join("mutated.bin");
    let (since, mut executions, mut accepted) = (Instant::now(), 0u64, 0u64);
    let going = |executions| match seconds {
        Some(seconds) => since.elapsed() < Duration::from_secs(seconds),
        None => executions < EXECUTIONS,
    };
    while going(executions) {
        let mut file = originals.choose(&mut random).unwrap().clone();
        mutate(&mut file, &mut random);
        std::fs::write(&path, &file).unwrap();
        accepted += execute(&path, &mut random) as u64;
        executions += 1;
    }
    eprintln!("{executions} mutated index files from seed {seed}, {accepted} accepted");
    assert!(accepted > 0, "every mutation was refused: the fuzzer reaches nothing");
}
