//! External ids by dense row, readable in place from a mapped file.
//!
//! A lookup hashes the id, searches the sorted hashes and compares the string, so a table of ten
//! million ids opens without building anything. Sections written under a prefix `p`:
//! `p.bytes` (UTF-8, concatenated), `p.ends` (u64, end of each id), `p.hashes` (u64, sorted) and
//! `p.rows` (u32, the row of each hash).

use crate::sections::{self, Column, Sections, SectionsWriter};

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
        let start = if row == 0 { 0 } else { self.ends[row - 1] as usize };
        let bytes = self.bytes.get(start..self.ends[row] as usize).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
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
            bytes: file.get(&format!("{prefix}.bytes"))?,
            ends: file.get(&format!("{prefix}.ends"))?,
        })
    }
}

/// External ids of one kind, both ways: row to id, id to row.
#[derive(Clone, Debug)]
pub struct IdTable {
    ids: Strings,
    hashes: Column<u64>,
    rows: Column<u32>,
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
        Self { ids, hashes: hashes.into(), rows: rows.into() }
    }

    /// The row of an id.
    pub fn find(&self, id: &str) -> Option<u32> {
        let wanted = hash(id);
        let start = self.first_at_least(wanted);
        self.hashes[start..]
            .iter()
            .zip(&self.rows[start..])
            .take_while(|&(&h, _)| h == wanted)
            .map(|(_, &row)| row)
            .find(|&row| self.id(row) == id)
    }

    /// The first place whose hash is not below `wanted`. Hashes are uniform, so it is found near
    /// its share of the table (interpolation search; Knuth, TAOCP 6.2.1): a few accesses to memory
    /// instead of one for each halving of ten million.
    fn first_at_least(&self, wanted: u64) -> usize {
        let n = self.hashes.len();
        let guess = ((u128::from(wanted) * n as u128) >> 64) as usize;
        let mut reach = n.isqrt().max(8);
        loop {
            let (low, high) = (guess.saturating_sub(reach), (guess + reach).min(n));
            let above = low == 0 || self.hashes[low - 1] < wanted;
            let below = high == n || self.hashes[high] >= wanted;
            if above && below {
                return low + self.hashes[low..high].partition_point(|&hash| hash < wanted);
            }
            reach *= 4;
        }
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
        let hashes = file.get_exact(&format!("{prefix}.hashes"), ids.len())?;
        let rows = file.get_exact(&format!("{prefix}.rows"), ids.len())?;
        Ok(Self { ids, hashes, rows })
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
    }

    #[test]
    fn a_hash_is_found_wherever_it_lies() {
        for hashes in [vec![], vec![0, 0, 1, 2, 3], vec![u64::MAX; 9], (0..500).collect()] {
            let rows: Vec<u32> = (0..hashes.len() as u32).collect();
            let ids = Strings::new(std::iter::empty());
            let table = IdTable { ids, hashes: hashes.clone().into(), rows: rows.into() };
            for wanted in [0, 1, 2, 77, 499, 500, 1 << 40, u64::MAX] {
                let expected = hashes.partition_point(|&hash| hash < wanted);
                assert_eq!(table.first_at_least(wanted), expected, "{wanted} in {hashes:?}");
            }
        }
    }

    #[test]
    fn the_empty_string_and_unicode_are_ids_like_any_other() {
        let table = IdTable::new(["", "größe", "日本"].into_iter());
        assert_eq!((table.find(""), table.find("日本")), (Some(0), Some(2)));
        assert_eq!(IdTable::new(std::iter::empty()).find("a"), None);
    }
}
