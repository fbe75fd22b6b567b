//! Bundle files in memory: mapped, or read into huge pages; and large vectors in huge pages.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

/// A file or a part of one, read-only and shared. Cloning is one reference count.
#[derive(Clone, Debug)]
pub struct Mmap {
    map: Arc<memmap2::Mmap>,
    /// Whether the pages are the file's: they may be given back, and come again when they are read.
    of_file: bool,
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
        Ok(Self { map: Arc::new(map), of_file: true })
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
        let mut memory = huge_pages(range.len())?;
        file.seek(SeekFrom::Start(range.start as u64))?;
        file.read_exact(&mut memory)?;
        Ok(Self { map: Arc::new(memory.make_read_only()?), of_file: false })
    }

    /// Asks the system to have the file in its cache soon, so that the first to touch a page does
    /// not wait for a disk. Returns at once.
    pub fn will_need(&self) {
        #[cfg(unix)]
        if let Err(error) = self.map.advise(memmap2::Advice::WillNeed) {
            tracing::debug!(%error, "no reading ahead");
        }
    }

    /// Gives pages of a mapped file back until they are read again.
    pub fn let_go(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if self.of_file {
            // SAFETY: the map is shared, read-only and backed by a file that nobody writes: a page
            // that was given back is read from the file again, with the same bytes.
            let done = unsafe {
                let not_needed = memmap2::UncheckedAdvice::DontNeed;
                self.map.unchecked_advise_range(not_needed, range.start, range.len())
            };
            if let Err(error) = done {
                tracing::debug!(%error, "the pages stay");
            }
        }
    }
}

/// Zeros of our own, in huge pages where the system has them.
fn huge_pages(length: usize) -> io::Result<memmap2::MmapMut> {
    let memory = memmap2::MmapOptions::new().len(length).map_anon()?;
    #[cfg(target_os = "linux")]
    if let Err(error) = memory.advise(memmap2::Advice::HugePage) {
        tracing::debug!(%error, "no huge pages");
    }
    Ok(memory)
}

/// `len` zeros in huge pages where the system has them; see [`Mmap::read`].
pub fn zeros<T: bytemuck::Zeroable + Clone>(len: usize) -> Vec<T> {
    let mut values = vec![T::zeroed(); len];
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let range = values.as_mut_ptr_range();
        let (start, end) =
            ((range.start as usize).next_multiple_of(PAGE), range.end as usize / PAGE * PAGE);
        if start < end {
            // SAFETY: the pages lie wholly within the vector, which outlives the call; the advice
            // changes how they are backed, never what they hold.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    values
}

impl Deref for Mmap {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}
