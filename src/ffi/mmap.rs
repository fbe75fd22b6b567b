//! Bundle files in memory: mapped, or read into memory of their own.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use super::large::Large;

/// A file or a part of one, read-only and shared. Cloning is one reference count.
#[derive(Clone, Debug)]
pub enum Mmap {
    /// The pages are the file's: they may be given back, and come again when they are read.
    File(Arc<Mapped>),
    Copy(Arc<Large<u8>>),
}

/// A mapped file.
#[derive(Debug)]
pub struct Mapped {
    map: memmap2::Mmap,
    file: File,
}

impl Mmap {
    /// Maps `path`.
    ///
    /// # Errors
    /// When the file cannot be opened or mapped; an empty file is refused by the operating system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: a map is undefined behaviour when another process truncates or writes the file
        // while it is read. Bundle files are immutable by contract: they are written under a
        // temporary name, renamed, and never opened for writing again.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self::File(Arc::new(Mapped { map, file })))
    }

    /// Reads `path` into memory of its own, in huge pages where the system has them: for what is
    /// read at random, where each small page costs a walk through the page table.
    ///
    /// # Errors
    /// When the file cannot be read or the memory is not there.
    pub fn read(path: &Path) -> io::Result<Self> {
        let length = std::fs::metadata(path)?.len();
        Self::read_range(path, 0..usize::try_from(length).map_err(io::Error::other)?)
    }

    /// As [`Mmap::read`], a part of the file.
    ///
    /// # Errors
    /// When the file cannot be read, is shorter, or the memory is not there.
    pub fn read_range(path: &Path, range: Range<usize>) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut memory = Large::uncleared(range.len())?;
        file.seek(SeekFrom::Start(range.start as u64))?;
        file.read_exact(&mut memory)?;
        Ok(Self::Copy(Arc::new(memory)))
    }

    /// Asks the system to have the file in its cache soon, so that the first to touch a page does
    /// not wait for a disk. Returns at once.
    pub fn will_need(&self) {
        #[cfg(unix)]
        if let Self::File(mapped) = self
            && let Err(error) = mapped.map.advise(memmap2::Advice::WillNeed)
        {
            tracing::debug!(%error, "no reading ahead");
        }
    }

    /// Copies the bytes from `first` on without a page of the map becoming this process's: for a few bytes here and
    /// there of a large file that should not count as memory.
    ///
    /// # Panics
    /// When they lie past the end.
    pub fn copy(&self, first: usize, out: &mut [u8]) {
        let range = first..first + out.len();
        assert!(range.end <= self.len(), "{range:?} of {} bytes", self.len());
        #[cfg(unix)]
        if let Self::File(mapped) = self {
            use std::os::unix::fs::FileExt;
            match mapped.file.read_exact_at(out, first as u64) {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "the map is read instead"),
            }
        }
        out.copy_from_slice(&self[range]);
    }

    /// Gives pages of a mapped file back until they are read again.
    pub fn let_go(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Self::File(mapped) = self {
            // SAFETY: the map is shared, read-only and backed by a file that nobody writes: a page
            // that was given back is read from the file again, with the same bytes.
            let done = unsafe {
                let not_needed = memmap2::UncheckedAdvice::DontNeed;
                mapped.map.unchecked_advise_range(not_needed, range.start, range.len())
            };
            if let Err(error) = done {
                tracing::debug!(%error, "the pages stay");
            }
        }
    }
}

impl Deref for Mmap {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::File(mapped) => &mapped.map,
            Self::Copy(memory) => memory,
        }
    }
}
