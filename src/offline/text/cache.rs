//! Vectors of texts that were read before, by the hash of the text: a file that only grows.
//!
//! ```text
//! 16  magic "SHORTLIST TEXTS\n"
//! 4   u32  numbers a vector
//! ... records: 16 bytes of blake3(text), then the vector as f32
//! ```
//! All numbers are little-endian. What an interrupted write left behind the last whole record is cut off.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 16] = b"SHORTLIST TEXTS\n";
const HEADER_BYTES: u64 = 20;

/// The hash of a text.
pub type Mark = [u8; 16];

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: not vectors of texts of {dim} numbers; delete it", path.display())]
    Foreign { path: PathBuf, dim: usize },
}

/// An opened file.
pub struct Cache {
    path: PathBuf,
    file: File,
    dim: usize,
    records: u64,
}

/// The hash of a text.
pub fn mark(text: &str) -> Mark {
    blake3::hash(text.as_bytes()).as_bytes()[..16].try_into().expect("32 bytes")
}

impl Cache {
    /// Opens the file, or begins it.
    ///
    /// # Errors
    /// When it is of another kind or length of vectors.
    pub fn open(path: &Path, dim: usize) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let header = [&MAGIC[..], &(dim as u32).to_le_bytes()].concat();
        if length < HEADER_BYTES {
            file.set_len(0).map_err(io)?;
            file.write_all(&header).map_err(io)?;
        } else {
            let mut found = vec![0; header.len()];
            file.read_exact(&mut found).map_err(io)?;
            if found != header {
                return Err(Error::Foreign { path: path.to_owned(), dim });
            }
        }
        let records = length.saturating_sub(HEADER_BYTES) / Self::record_bytes(dim);
        let whole = HEADER_BYTES + records * Self::record_bytes(dim);
        file.set_len(whole).map_err(io)?;
        Ok(Self { path: path.to_owned(), file, dim, records })
    }

    fn record_bytes(dim: usize) -> u64 {
        16 + 4 * dim as u64
    }

    /// Writes the vectors of the wanted texts that are there to their places in `vectors`
    /// (`places x dim`), and takes those texts out of `wanted`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn take(
        &mut self,
        wanted: &mut HashMap<Mark, usize>,
        vectors: &mut [f32],
    ) -> Result<(), Error> {
        let io = |path: &Path, source| Error::Io { path: path.to_owned(), source };
        self.file.seek(SeekFrom::Start(HEADER_BYTES)).map_err(|source| io(&self.path, source))?;
        let mut reader = BufReader::with_capacity(1 << 20, &self.file);
        let mut record = vec![0; Self::record_bytes(self.dim) as usize];
        for _ in 0..self.records {
            reader.read_exact(&mut record).map_err(|source| io(&self.path, source))?;
            let (mark, bytes) = record.split_at(16);
            if let Some(place) = wanted.remove(mark) {
                let out = &mut vectors[place * self.dim..][..self.dim];
                for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *out = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
                }
            }
        }
        Ok(())
    }

    /// Appends vectors, one a mark.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&mut self, marks: &[Mark], vectors: &[f32]) -> Result<(), Error> {
        assert_eq!(vectors.len(), marks.len() * self.dim, "a vector a mark");
        let mut bytes = Vec::with_capacity(marks.len() * Self::record_bytes(self.dim) as usize);
        for (mark, vector) in marks.iter().zip(vectors.chunks_exact(self.dim)) {
            bytes.extend(mark);
            vector.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        }
        let end = HEADER_BYTES + self.records * Self::record_bytes(self.dim);
        let written =
            self.file.seek(SeekFrom::Start(end)).and_then(|_| self.file.write_all(&bytes));
        written.map_err(|source| Error::Io { path: self.path.clone(), source })?;
        self.records += marks.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_back_and_half_a_record_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/texts");
        let mut cache = Cache::open(&path, 2).unwrap();
        cache.add(&[mark("a"), mark("b")], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        drop(cache);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"half a rec").unwrap();
        let mut cache = Cache::open(&path, 2).unwrap();
        cache.add(&[mark("c")], &[5.0, 6.0]).unwrap();
        let mut wanted = HashMap::from([(mark("c"), 0), (mark("none"), 1), (mark("b"), 2)]);
        let mut vectors = [0.0; 6];
        cache.take(&mut wanted, &mut vectors).unwrap();
        assert_eq!(vectors, [5.0, 6.0, 0.0, 0.0, 3.0, 4.0]);
        assert_eq!(wanted.into_keys().collect::<Vec<_>>(), [mark("none")]);
    }

    #[test]
    fn a_file_of_other_vectors_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("texts");
        drop(Cache::open(&path, 2).unwrap());
        assert!(matches!(Cache::open(&path, 3), Err(Error::Foreign { .. })));
        std::fs::write(&path, "something else, long enough").unwrap();
        assert!(matches!(Cache::open(&path, 2), Err(Error::Foreign { .. })));
    }
}
