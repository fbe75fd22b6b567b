//! One container for every binary file of a bundle: named, typed, checksummed sections.
//!
//! ```text
//! 0    8  magic "SHORTLST"
//! 8    4  u32  container version (1)
//! 12   4  u32  number of sections n
//! 16   8  u64  length of the whole file
//! 24  32  blake3 of the section table
//! 56   8  reserved, zero
//! 64 ...  table: n entries of 96 bytes
//!          0 40  name, UTF-8, zero-padded
//!         40  4  u32 element size in bytes
//!         44  4  reserved, zero
//!         48  8  u64 offset from the start of the file, a multiple of 64
//!         56  8  u64 length in bytes
//!         64 32  blake3 of the bytes
//! ...     the sections, each at a multiple of 64
//! ```
//! All numbers are little-endian. A reader maps the file, checks header and table on opening and
//! the content on request ([`Sections::verify`]); a truncated, damaged or foreign file is an error
//! that says what is wrong, never a panic. A section is read as `&[T]` in place.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use bytemuck::{AnyBitPattern, NoUninit};

use crate::ffi::mmap::Mmap;

const MAGIC: &[u8; 8] = b"SHORTLST";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 96;
const NAME_BYTES: usize = 40;
const ALIGN: usize = 64;
/// More sections than any writer makes; a bound for hostile headers.
const SECTIONS_MAX: usize = 4096;

/// Why a section file was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: not a shortlist file (magic bytes {found:02x?})")]
    Magic { path: PathBuf, found: Vec<u8> },
    #[error("{path}: container version {found} is not supported (this program reads {VERSION})")]
    Version { path: PathBuf, found: u32 },
    #[error("{path}: truncated or extended: {found} bytes, the header says {expected}")]
    Length { path: PathBuf, found: u64, expected: u64 },
    #[error("{path}: damaged section table: {what}")]
    Table { path: PathBuf, what: String },
    #[error("{path}: section `{name}` is damaged (checksum differs)")]
    Checksum { path: PathBuf, name: String },
    #[error("{path}: no section `{name}`")]
    Missing { path: PathBuf, name: String },
    #[error("{path}: section `{name}` has elements of {found} bytes, expected {expected}")]
    Element { path: PathBuf, name: String, found: usize, expected: usize },
    #[error("{path}: section `{name}` holds {found} elements, expected {expected}")]
    Count { path: PathBuf, name: String, found: usize, expected: usize },
}

/// Writes sections one after the other, the table last; the file appears under its name only
/// when [`SectionsWriter::finish`] has succeeded.
pub struct SectionsWriter {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    entries: Vec<[u8; ENTRY_BYTES]>,
    capacity: usize,
    offset: u64,
}

impl SectionsWriter {
    /// Opens `path` for at most `capacity` sections.
    pub fn create(path: &Path, capacity: usize) -> Result<Self, Error> {
        assert!(capacity <= SECTIONS_MAX, "at most {SECTIONS_MAX} sections a file");
        let partial = path.with_extension("partial");
        let io = |source| Error::Io { path: path.to_owned(), source };
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&partial).map_err(io)?);
        let offset = align_up(HEADER_BYTES + capacity * ENTRY_BYTES);
        file.write_all(&vec![0; offset]).map_err(io)?;
        Ok(Self {
            path: path.to_owned(),
            partial,
            file,
            entries: Vec::new(),
            capacity,
            offset: offset as u64,
        })
    }

    /// Appends one section.
    pub fn write<T: NoUninit>(&mut self, name: &str, values: &[T]) -> Result<(), Error> {
        self.write_chunks(name, std::iter::once(values))
    }

    /// Appends one section whose elements come in chunks, so that it never stands in memory whole.
    pub fn write_chunks<T: NoUninit>(
        &mut self,
        name: &str,
        chunks: impl Iterator<Item = impl AsRef<[T]>>,
    ) -> Result<(), Error> {
        assert!(
            self.entries.len() < self.capacity,
            "section capacity of {} is used up",
            self.capacity
        );
        assert!(name.len() <= NAME_BYTES, "section name `{name}` is over {NAME_BYTES} bytes");
        let mut hash = blake3::Hasher::new();
        let mut length = 0u64;
        for chunk in chunks {
            let bytes: &[u8] = bytemuck::cast_slice(chunk.as_ref());
            hash.update(bytes);
            length += bytes.len() as u64;
            self.put(bytes)?;
        }
        let mut entry = [0u8; ENTRY_BYTES];
        entry[..name.len()].copy_from_slice(name.as_bytes());
        entry[40..44].copy_from_slice(&(size_of::<T>() as u32).to_le_bytes());
        entry[48..56].copy_from_slice(&self.offset.to_le_bytes());
        entry[56..64].copy_from_slice(&length.to_le_bytes());
        entry[64..96].copy_from_slice(hash.finalize().as_bytes());
        self.entries.push(entry);
        let padding = align_up(length as usize) - length as usize;
        self.put(&[0; ALIGN][..padding])?;
        self.offset += align_up(length as usize) as u64;
        Ok(())
    }

    /// Writes header and table, syncs, and gives the file its name.
    pub fn finish(self) -> Result<(), Error> {
        use std::io::Seek;
        let path = self.path;
        let io = |source| Error::Io { path: path.clone(), source };
        let mut file = self.file.into_inner().map_err(|e| io(e.into_error()))?;
        let table = self.entries.concat();
        let mut header = [0u8; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(self.entries.len() as u32).to_le_bytes());
        header[16..24].copy_from_slice(&self.offset.to_le_bytes());
        header[24..56].copy_from_slice(blake3::hash(&table).as_bytes());
        file.seek(io::SeekFrom::Start(0)).map_err(io)?;
        file.write_all(&header).map_err(io)?;
        file.write_all(&table).map_err(io)?;
        file.sync_all().map_err(io)?;
        std::fs::rename(&self.partial, &path).map_err(io)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

/// An opened section file.
#[derive(Clone, Debug)]
pub struct Sections {
    path: PathBuf,
    map: Mmap,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    element_bytes: usize,
    range: Range<usize>,
    hash: [u8; 32],
}

impl Sections {
    /// Maps `path` and checks header and table.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::new(path, Mmap::open(path))
    }

    /// As [`Sections::open`], but reads the whole file into memory ([`Mmap::read`]).
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::new(path, Mmap::read(path))
    }

    fn new(path: &Path, map: io::Result<Mmap>) -> Result<Self, Error> {
        let map = map.map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let entries = parse(path, &map)?;
        Ok(Self { path: path.to_owned(), map, entries })
    }

    /// Asks for the file to be read ahead: for one whose first touch should not wait for a disk.
    pub fn will_need(&self) {
        self.map.will_need();
    }

    /// Compares every section with its checksum: reads the whole file.
    pub fn verify(&self) -> Result<(), Error> {
        for entry in &self.entries {
            if blake3::hash(&self.map[entry.range.clone()]).as_bytes() != &entry.hash {
                return Err(Error::Checksum { path: self.path.clone(), name: entry.name.clone() });
            }
        }
        Ok(())
    }

    /// Names and lengths in bytes, in file order.
    pub fn list(&self) -> impl Iterator<Item = (&str, usize)> {
        self.entries.iter().map(|e| (e.name.as_str(), e.range.len()))
    }

    /// Whether a section of that name is there.
    pub fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|e| e.name == name)
    }

    /// The section `name` as elements of `T`, in place.
    pub fn get<T: AnyBitPattern + NoUninit>(&self, name: &str) -> Result<Column<T>, Error> {
        let entry = self
            .entries
            .iter()
            .find(|e| e.name == name)
            .ok_or_else(|| Error::Missing { path: self.path.clone(), name: name.to_owned() })?;
        if entry.element_bytes != size_of::<T>() || entry.range.len() % size_of::<T>() != 0 {
            return Err(Error::Element {
                path: self.path.clone(),
                name: name.to_owned(),
                found: entry.element_bytes,
                expected: size_of::<T>(),
            });
        }
        Ok(Column::Mapped {
            map: self.map.clone(),
            range: entry.range.clone(),
            element: PhantomData,
        })
    }

    /// As [`Sections::get`], refused unless it holds exactly `count` elements.
    pub fn get_exact<T: AnyBitPattern + NoUninit>(
        &self,
        name: &str,
        count: usize,
    ) -> Result<Column<T>, Error> {
        let column = self.get::<T>(name)?;
        if column.len() != count {
            return Err(Error::Count {
                path: self.path.clone(),
                name: name.to_owned(),
                found: column.len(),
                expected: count,
            });
        }
        Ok(column)
    }

    /// As [`Sections::get`], in memory of its own: for what a request reads. Where the system is
    /// short of memory it takes pages of mapped files back, and whoever reads one waits for a disk.
    pub fn keep<T: AnyBitPattern + NoUninit>(&self, name: &str) -> Result<Column<T>, Error> {
        let Column::Mapped { range, .. } = self.get::<T>(name)? else {
            unreachable!("a section lies in its file")
        };
        if range.is_empty() {
            return Ok(Column::Owned(Vec::new()));
        }
        let bytes = range.len();
        let copy = Mmap::read_range(&self.path, range)
            .map_err(|source| Error::Io { path: self.path.clone(), source })?;
        Ok(Column::Mapped { map: copy, range: 0..bytes, element: PhantomData })
    }

    /// As [`Sections::keep`], refused unless it holds exactly `count` elements.
    pub fn keep_exact<T: AnyBitPattern + NoUninit>(
        &self,
        name: &str,
        count: usize,
    ) -> Result<Column<T>, Error> {
        self.get_exact::<T>(name, count)?;
        self.keep(name)
    }

    /// The file this was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A slice that is either owned or lies in a map; reads as `&[T]`.
#[derive(Clone, Debug)]
pub enum Column<T> {
    Owned(Vec<T>),
    Mapped { map: Mmap, range: Range<usize>, element: PhantomData<T> },
}

impl<T: AnyBitPattern + NoUninit> Deref for Column<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        match self {
            Column::Owned(values) => values,
            Column::Mapped { map, range, .. } => bytemuck::cast_slice(&map[range.clone()]),
        }
    }
}

impl<T> Column<T> {
    /// Gives the pages of the mapped file that it lies in back until they are read again.
    pub fn let_go(&self) {
        if let Column::Mapped { map, range, .. } = self {
            map.let_go(range.clone());
        }
    }
}

impl<T: AnyBitPattern + NoUninit> Column<T> {
    /// Copies the elements from `first` on; of a mapped file as [`Mmap::copy`] does.
    ///
    /// # Panics
    /// When they lie past the end.
    pub fn copy(&self, first: usize, out: &mut [T]) {
        match self {
            Column::Owned(values) => out.copy_from_slice(&values[first..first + out.len()]),
            Column::Mapped { map, range, .. } => {
                assert!(first + out.len() <= self.len(), "past the end of {}", self.len());
                map.copy(range.start + first * size_of::<T>(), bytemuck::cast_slice_mut(out));
            }
        }
    }
}

impl<T> From<Vec<T>> for Column<T> {
    fn from(values: Vec<T>) -> Self {
        Column::Owned(values)
    }
}

fn align_up(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN)
}

fn parse(path: &Path, map: &[u8]) -> Result<Vec<Entry>, Error> {
    let table_error = |what: &str| Error::Table { path: path.to_owned(), what: what.to_owned() };
    if map.len() < HEADER_BYTES || &map[..8] != MAGIC {
        return Err(Error::Magic {
            path: path.to_owned(),
            found: map[..map.len().min(8)].to_vec(),
        });
    }
    let u32_at = |at: usize| u32::from_le_bytes(map[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(map[at..at + 8].try_into().expect("eight bytes"));
    if u32_at(8) != VERSION {
        return Err(Error::Version { path: path.to_owned(), found: u32_at(8) });
    }
    let (count, expected) = (u32_at(12) as usize, u64_at(16));
    if map.len() as u64 != expected {
        return Err(Error::Length { path: path.to_owned(), found: map.len() as u64, expected });
    }
    if count > SECTIONS_MAX || HEADER_BYTES + count * ENTRY_BYTES > map.len() {
        return Err(table_error(&format!("{count} sections do not fit in the file")));
    }
    let table = &map[HEADER_BYTES..HEADER_BYTES + count * ENTRY_BYTES];
    if blake3::hash(table).as_bytes() != &map[24..56] {
        return Err(table_error("checksum differs"));
    }
    (0..count)
        .map(|i| {
            let at = HEADER_BYTES + i * ENTRY_BYTES;
            let name = &map[at..at + NAME_BYTES];
            let end = name.iter().position(|&b| b == 0).unwrap_or(NAME_BYTES);
            let name = std::str::from_utf8(&name[..end])
                .map_err(|_| table_error("a section name is not UTF-8"))?;
            let (offset, length) = (u64_at(at + 48), u64_at(at + 56));
            let end = offset.checked_add(length).filter(|&end| end <= map.len() as u64);
            let (true, Some(end)) = (offset % ALIGN as u64 == 0, end) else {
                return Err(table_error(&format!("section `{name}` lies outside the file")));
            };
            let element_bytes = u32_at(at + 40) as usize;
            if element_bytes == 0 {
                return Err(table_error(&format!("section `{name}` has elements of 0 bytes")));
            }
            Ok(Entry {
                name: name.to_owned(),
                element_bytes,
                range: offset as usize..end as usize,
                hash: map[at + 64..at + 96].try_into().expect("32 bytes"),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(dir: &Path) -> PathBuf {
        let path = dir.join("sample.bin");
        let mut writer = SectionsWriter::create(&path, 3).unwrap();
        writer.write("ids", &[1u32, 2, 3]).unwrap();
        writer.write::<u8>("empty", &[]).unwrap();
        writer.write_chunks("x", [&[1.5f32][..], &[2.5, 3.5]].into_iter()).unwrap();
        writer.finish().unwrap();
        path
    }

    #[test]
    fn reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = Sections::open(&sample(dir.path())).unwrap();
        file.verify().unwrap();
        assert_eq!(&*file.get::<u32>("ids").unwrap(), &[1, 2, 3]);
        assert_eq!(&*file.get::<f32>("x").unwrap(), &[1.5, 2.5, 3.5]);
        assert!(file.get::<u8>("empty").unwrap().is_empty());
        assert!(matches!(file.get::<u64>("ids"), Err(Error::Element { .. })));
        assert!(matches!(file.get_exact::<u32>("ids", 4), Err(Error::Count { .. })));
        assert!(matches!(file.get::<u32>("absent"), Err(Error::Missing { .. })));
        let mapped = file.get::<f32>("x").unwrap();
        mapped.let_go();
        let kept = file.keep_exact::<f32>("x", 3).unwrap();
        kept.let_go();
        assert_eq!((&*mapped, &*kept), (&[1.5, 2.5, 3.5][..], &[1.5, 2.5, 3.5][..]));
        assert!(file.keep::<u8>("empty").unwrap().is_empty());
        assert!(matches!(file.keep_exact::<f32>("x", 4), Err(Error::Count { .. })));
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = sample(dir.path());
        let good = std::fs::read(&path).unwrap();
        let broken = dir.path().join("broken.bin");
        for length in (1..good.len()).step_by(7) {
            std::fs::write(&broken, &good[..length]).unwrap();
            assert!(Sections::open(&broken).is_err(), "cut to {length} bytes");
        }
        let used: Vec<usize> = {
            let file = Sections::open(&path).unwrap();
            let sections = file.entries.iter().flat_map(|e| e.range.clone());
            (0..56).chain(64..64 + 3 * ENTRY_BYTES).chain(sections).collect()
        };
        for at in used {
            let mut bytes = good.clone();
            bytes[at] ^= 0x40;
            std::fs::write(&broken, &bytes).unwrap();
            let refused = Sections::open(&broken).and_then(|file| file.verify());
            assert!(refused.is_err(), "byte {at} flipped");
        }
    }
}
