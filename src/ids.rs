//! External ids by dense row.
//!
//! A lookup hashes the id, searches the sorted hashes and compares the string. All of it is read at
//! random by every request, so it is copied into huge pages, with an index of where the hashes of
//! each prefix begin. Sections written under a prefix `p`:
//! `p.bytes` (UTF-8, concatenated), `p.ends` (u64, end of each id), `p.hashes` (u64, sorted) and
//! `p.rows` (u32, the row of each hash).

use crate::ffi::large::Large;
use crate::kernels::{prefetch, prefetch_at};
use crate::sections::{self, Column, Sections, SectionsWriter};

/// Ids that share a prefix of the hash, on average: one or two cache lines.
const IDS_A_PREFIX: usize = 8;
/// Ids that [`IdTable::find_each`] looks up side by side.
const TOGETHER: usize = 32;

/// Strings by row: a heap of bytes and the end of each.
#[derive(Clone, Debug)]
pub struct Strings {
    bytes: Column<u8>,
    ends: Column<u64>,
}

impl Strings {
    /// Collects strings into a heap.
    pub fn new<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for value in values {
            bytes.extend_from_slice(value.as_bytes());
            ends.push(bytes.len() as u64);
        }
        Self { bytes: bytes.into(), ends: ends.into() }
    }

    /// The string of a row; empty when the file's bytes are not UTF-8 there.
    pub fn get(&self, row: usize) -> &str {
        std::str::from_utf8(self.bytes_of(row)).unwrap_or_default()
    }

    #[inline]
    fn bytes_of(&self, row: usize) -> &[u8] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] as usize };
        self.bytes.get(start..self.ends[row] as usize).unwrap_or_default()
    }

    /// Asks for where a row's string lies; then [`Strings::prefetch`] asks for the string.
    #[inline]
    pub fn prefetch_place(&self, row: usize) {
        prefetch_at(&self.ends, row.saturating_sub(1));
        prefetch_at(&self.ends, row);
    }

    /// Asks for a row's string.
    #[inline]
    pub fn prefetch(&self, row: usize) {
        prefetch(self.bytes_of(row));
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All strings in row order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).map(|row| self.get(row))
    }

    /// Writes two sections, `prefix.bytes` and `prefix.ends`.
    pub fn save(&self, prefix: &str, file: &mut SectionsWriter) -> Result<(), sections::Error> {
        file.write(&format!("{prefix}.bytes"), &self.bytes)?;
        file.write(&format!("{prefix}.ends"), &self.ends)
    }

    /// Reads what [`Strings::save`] wrote.
    pub fn open(prefix: &str, file: &Sections) -> Result<Self, sections::Error> {
        Ok(Self {
            bytes: file.keep(&format!("{prefix}.bytes"))?,
            ends: file.keep(&format!("{prefix}.ends"))?,
        })
    }
}

/// External ids of one kind, both ways: row to id, id to row.
#[derive(Clone, Debug)]
pub struct IdTable {
    ids: Strings,
    hashes: Large<u64>,
    rows: Large<u32>,
    /// Bits that a hash is shifted by to get its prefix.
    shift: u32,
    /// Where the hashes of each prefix begin; one more at the end.
    starts: Large<u32>,
}

impl IdTable {
    /// Indexes ids in row order. Ids are unique by the caller's contract; of two equal ones the
    /// lower row is found.
    pub fn new<'a>(ids: impl Iterator<Item = &'a str>) -> Self {
        let ids = Strings::new(ids);
        assert!(ids.len() < u32::MAX as usize, "at most 2^32 - 1 rows");
        let mut pairs: Vec<(u64, u32)> =
            ids.iter().enumerate().map(|(row, id)| (hash(id), row as u32)).collect();
        pairs.sort_unstable();
        let (hashes, rows): (Vec<u64>, Vec<u32>) = pairs.into_iter().unzip();
        Self::over(ids, hashes.into(), rows.into())
    }

    /// Indexes the prefixes of sorted hashes.
    fn over(ids: Strings, hashes: Large<u64>, rows: Large<u32>) -> Self {
        let bits = (hashes.len() / IDS_A_PREFIX).max(2).ilog2();
        let shift = u64::BITS - bits;
        let mut starts = Large::<u32>::zeros((1 << bits) + 1);
        hashes.iter().for_each(|hash| starts[(hash >> shift) as usize + 1] += 1);
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        Self { ids, hashes, rows, shift, starts }
    }

    /// The row of an id.
    pub fn find(&self, id: &str) -> Option<u32> {
        let wanted = hash(id);
        self.rows_of(wanted, self.range(wanted)).find(|&row| self.is_of(row, id))
    }

    /// What [`IdTable::find`] says of each id, in their order. The reads for one id follow from one another
    /// and each waits for memory, so the ids go through the table side by side: each step asks for what the next one
    /// reads.
    pub fn find_each<'a, T>(
        &self,
        ids: impl IntoIterator<Item = (&'a str, T)>,
        mut found: impl FnMut(&'a str, T, Option<u32>),
    ) {
        let mut ids = ids.into_iter();
        let mut together = Vec::with_capacity(TOGETHER);
        loop {
            together.extend(ids.by_ref().take(TOGETHER).map(|(id, with)| (id, with, hash(id))));
            if together.is_empty() {
                return;
            }
            for &(_, _, hash) in &together {
                prefetch_at(&self.starts, (hash >> self.shift) as usize);
            }
            for &(_, _, hash) in &together {
                let range = self.range(hash);
                prefetch(&self.hashes[range.clone()]);
                prefetch(&self.rows[range]);
            }
            for prefetch in [Strings::prefetch_place, Strings::prefetch] {
                for &(_, _, hash) in &together {
                    let rows = self.rows_of(hash, self.range(hash));
                    rows.for_each(|row| prefetch(&self.ids, row as usize));
                }
            }
            for (id, with, hash) in together.drain(..) {
                let row = self.rows_of(hash, self.range(hash)).find(|&row| self.is_of(row, id));
                found(id, with, row);
            }
        }
    }

    /// Where hashes of the prefix of this one are.
    #[inline]
    fn range(&self, hash: u64) -> std::ops::Range<usize> {
        let prefix = (hash >> self.shift) as usize;
        self.starts[prefix] as usize..self.starts[prefix + 1] as usize
    }

    /// The rows whose id has this hash, of those in a range: one, nearly always.
    #[inline]
    fn rows_of(&self, wanted: u64, range: std::ops::Range<usize>) -> impl Iterator<Item = u32> {
        let equal = self.hashes[range.clone()].iter().zip(&self.rows[range]);
        equal.filter(move |&(&hash, _)| hash == wanted).map(|(_, &row)| row)
    }

    #[inline]
    fn is_of(&self, row: u32, id: &str) -> bool {
        self.ids.bytes_of(row as usize) == id.as_bytes()
    }

    /// The strings by row.
    pub fn strings(&self) -> &Strings {
        &self.ids
    }

    /// The id of a row.
    pub fn id(&self, row: u32) -> &str {
        self.ids.get(row as usize)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// All ids in row order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.ids.iter()
    }

    /// Writes four sections under `prefix`.
    pub fn save(&self, prefix: &str, file: &mut SectionsWriter) -> Result<(), sections::Error> {
        self.ids.save(prefix, file)?;
        file.write(&format!("{prefix}.hashes"), &self.hashes)?;
        file.write(&format!("{prefix}.rows"), &self.rows)
    }

    /// Reads what [`IdTable::save`] wrote.
    pub fn open(prefix: &str, file: &Sections) -> Result<Self, sections::Error> {
        let ids = Strings::open(prefix, file)?;
        let hashes: Column<u64> = file.get_exact(&format!("{prefix}.hashes"), ids.len())?;
        let rows: Column<u32> = file.get_exact(&format!("{prefix}.rows"), ids.len())?;
        let (mut near_hashes, mut near_rows) = (Large::zeros(ids.len()), Large::zeros(ids.len()));
        near_hashes.copy_from_slice(&hashes);
        near_rows.copy_from_slice(&rows);
        Ok(Self::over(ids, near_hashes, near_rows))
    }
}

/// The stable 64-bit hash of an id: the first bytes of its blake3.
pub fn hash(id: &str) -> u64 {
    let bytes = blake3::hash(id.as_bytes());
    u64::from_le_bytes(bytes.as_bytes()[..8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_id_after_a_round_trip_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids.bin");
        let ids: Vec<String> = (0..500).map(|i| format!("item-{}", i * 7)).collect();
        let mut file = SectionsWriter::create(&path, 4).unwrap();
        IdTable::new(ids.iter().map(String::as_str)).save("item", &mut file).unwrap();
        file.finish().unwrap();
        let table = IdTable::open("item", &Sections::open(&path).unwrap()).unwrap();
        for (row, id) in ids.iter().enumerate() {
            assert_eq!(table.find(id), Some(row as u32));
            assert_eq!(table.id(row as u32), id);
        }
        assert_eq!(table.find("item-1"), None);
        assert_eq!(table.find(""), None);
        // More than one round of them, known and unknown.
        let asked: Vec<String> = (0..3000).rev().step_by(5).map(|i| format!("item-{i}")).collect();
        let mut rows = Vec::new();
        let ids = asked.iter().map(|id| (id.as_str(), id));
        table.find_each(ids, |id, with, row| rows.push((id == with, row)));
        let one_by_one: Vec<_> = asked.iter().map(|id| (true, table.find(id))).collect();
        assert_eq!(rows, one_by_one);
    }

    #[test]
    fn equal_hashes_and_the_ends_of_their_range_are_told_apart_by_the_id() {
        let names = ["a", "b", "c", "d"];
        let (of_b, of_d) = (hash("b"), hash("d"));
        for mut pairs in
            [vec![(of_b, 0), (of_b, 1), (of_d, 3)], vec![(0, 2), (of_b, 1), (u64::MAX, 3)]]
        {
            pairs.sort_unstable();
            let (hashes, rows): (Vec<u64>, Vec<u32>) = pairs.into_iter().unzip();
            let ids = Strings::new(names.into_iter());
            let table = IdTable::over(ids, hashes.into(), rows.into());
            assert_eq!(table.find("b"), Some(1));
            assert_eq!(table.find("a"), None, "its hash is not there");
            let mut found = Vec::new();
            table.find_each([("b", 1), ("a", 2)], |id, with, row| found.push((id, with, row)));
            assert_eq!(found, [("b", 1, Some(1)), ("a", 2, None)]);
        }
    }

    #[test]
    fn the_empty_string_and_unicode_are_ids_like_any_other() {
        let table = IdTable::new(["", "größe", "日本"].into_iter());
        assert_eq!((table.find(""), table.find("日本")), (Some(0), Some(2)));
        assert_eq!(IdTable::new(std::iter::empty()).find("a"), None);
    }
}
