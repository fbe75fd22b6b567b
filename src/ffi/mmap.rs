//! Read-only memory maps of bundle files.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

/// A whole file, mapped read-only and shared. Cloning is one reference count.
#[derive(Clone, Debug)]
pub struct Mmap(Arc<memmap2::Mmap>);

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
        Ok(Self(Arc::new(map)))
    }
}

impl Deref for Mmap {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
