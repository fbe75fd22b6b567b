//! The rows of a log on disk before they are in a file: what was acknowledged survives a kill.
//!
//! ```text
//! {dir}/journal/{log}/{replica}/lock
//!                              /{sequence}.journal   the rows of one batch, in order of arrival
//! record: u32 length of the payload | u64 head of its blake3 | payload, JSON     (little-endian)
//! ```
//! A segment belongs to one batch: it grows while the batch is open and never after. The files of a
//! batch carry its sequence in their names, so a segment that is found at a start is written to the
//! same files again, whether they were there already or not: each row ends in one file, once. When
//! all files of a batch stand, its segment goes. A journal that no process holds is adopted by the
//! next one that starts in the directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Durability, Error, Row};

const HEAD_BYTES: usize = 12;
/// No row is longer; a bound for damaged lengths.
const ROW_BYTES_MAX: usize = 1 << 24;

/// The segments of one log of one replica.
pub(super) struct Journal {
    /// The journals of all replicas that share the directory.
    home: PathBuf,
    replica: String,
    durability: Durability,
    open: Option<Segment>,
    /// Held as long as the journal is, its own first: another process would mix its rows in, or
    /// write the same ones.
    _locks: Vec<File>,
}

struct Segment {
    sequence: u64,
    path: PathBuf,
    file: File,
    /// Bytes that are acknowledged; what lies behind them was refused.
    length: u64,
}

/// A segment that a process left, of this replica or of one that is gone.
pub(super) struct Left<R> {
    pub replica: String,
    pub sequence: u64,
    pub rows: Vec<R>,
}

impl Journal {
    /// Opens (and creates) the journal of a replica, and reads what it holds; and what the journals
    /// hold that nobody writes: a host that comes back under another name must lose nothing. With
    /// `or_next`, a name that another process has is followed by a number.
    pub fn open<R: Row + DeserializeOwned>(
        data_dir: &Path,
        name: &str,
        or_next: bool,
        durability: Durability,
    ) -> Result<(Self, Vec<Left<R>>), Error> {
        let home = data_dir.join("journal").join(R::LOG.name());
        let mut replica = name.to_owned();
        let mut number = 1;
        let lock = loop {
            match lock(&home.join(&replica))? {
                Some(lock) => break lock,
                None if or_next => {
                    number += 1;
                    replica = format!("{name}-{number}");
                }
                None => return Err(Error::Taken { directory: home.join(replica) }),
            }
        };
        let mut left = segments(&home, &replica)?;
        let mut locks = vec![lock];
        for other in names(&home)?.into_iter().filter(|other| *other != replica) {
            let Some(lock) = lock_of(&home.join(&other)) else { continue };
            let adopted = segments(&home, &other)?;
            if !adopted.is_empty() {
                tracing::info!(replica = other, segments = adopted.len(), "adopting a journal");
                left.extend(adopted);
                locks.push(lock);
            }
        }
        Ok((Self { home, replica, durability, open: None, _locks: locks }, left))
    }

    /// The name that files carry.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Appends rows to the segment of the open batch. They are safe only after [`Journal::sync`].
    pub fn append<R: Row + Serialize>(&mut self, sequence: u64, rows: &[R]) -> Result<(), Error> {
        let mut bytes = Vec::new();
        for row in rows {
            let payload = serde_json::to_vec(row).expect("plain fields");
            let hash = blake3::hash(&payload);
            bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&hash.as_bytes()[..HEAD_BYTES - 4]);
            bytes.extend_from_slice(&payload);
        }
        let segment = self.segment(sequence)?;
        let written = segment.file.write_all(&bytes);
        written.map_err(|source| Error::Io { path: segment.path.clone(), source })
    }

    /// Makes durable what was appended.
    pub fn sync(&mut self) -> Result<(), Error> {
        let Some(segment) = &mut self.open else { return Ok(()) };
        let io = |source| Error::Io { path: segment.path.clone(), source };
        if self.durability == Durability::Disk {
            segment.file.sync_data().map_err(io)?;
        }
        segment.length = segment.file.stream_position().map_err(io)?;
        Ok(())
    }

    /// Takes back what was appended and not made durable, so that it cannot come back after a kill.
    pub fn take_back(&mut self) {
        let Some(segment) = &mut self.open else { return };
        let cut = segment.file.set_len(segment.length);
        if cut.and_then(|()| segment.file.seek(SeekFrom::Start(segment.length))).is_err() {
            // The rows may come twice then, under their ids; nothing is lost.
            tracing::error!(path = %segment.path.display(), "refused rows stay in the journal");
        }
    }

    /// Ends the open segment: the next row begins another.
    pub fn seal(&mut self) {
        self.open = None;
    }

    /// Drops the segment of a batch whose files stand.
    pub fn drop_segment(&self, replica: &str, sequence: u64) {
        let path = path(&self.home, replica, sequence);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                // It is written again at the next start, to the same files.
                tracing::warn!(path = %path.display(), %error, "a finished segment stays");
            }
            _ => {}
        }
    }

    fn segment(&mut self, sequence: u64) -> Result<&mut Segment, Error> {
        let open = match self.open.take().filter(|segment| segment.sequence == sequence) {
            Some(segment) => segment,
            None => {
                let path = path(&self.home, &self.replica, sequence);
                let io = |source| Error::Io { path: path.clone(), source };
                let file =
                    OpenOptions::new().create_new(true).write(true).open(&path).map_err(io)?;
                if self.durability == Durability::Disk {
                    sync_directory(&self.home.join(&self.replica))?;
                }
                Segment { sequence, path, file, length: 0 }
            }
        };
        Ok(self.open.insert(open))
    }
}

fn path(home: &Path, replica: &str, sequence: u64) -> PathBuf {
    home.join(replica).join(format!("{sequence:020}.journal"))
}

/// Takes the lock of a journal, which is made if need be; `None` when another process has it.
fn lock(directory: &Path) -> Result<Option<File>, Error> {
    let io = |source| Error::Io { path: directory.to_owned(), source };
    fs::create_dir_all(directory).map_err(io)?;
    let file = File::create(directory.join("lock")).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// As [`lock`], where it does not matter why not.
fn lock_of(directory: &Path) -> Option<File> {
    lock(directory).unwrap_or_else(|error| {
        tracing::warn!(%error, "a journal is not looked at");
        None
    })
}

/// The names in a directory.
fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let io = |source| Error::Io { path: directory.to_owned(), source };
    let entries = fs::read_dir(directory).map_err(io)?;
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
    names.collect::<io::Result<_>>().map_err(io)
}

/// The segments of a replica, oldest first.
fn segments<R: DeserializeOwned>(home: &Path, replica: &str) -> Result<Vec<Left<R>>, Error> {
    let mut left = Vec::new();
    for name in names(&home.join(replica))? {
        let number = name.strip_suffix(".journal").and_then(|number| number.parse().ok());
        let Some(sequence) = number else { continue };
        let path = path(home, replica, sequence);
        let bytes = fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let (rows, sound) = rows(&bytes);
        if sound < bytes.len() {
            // The end of the last write before a kill: nobody was told that it was taken.
            let lost = bytes.len() - sound;
            tracing::warn!(path = %path.display(), bytes = lost, "an unfinished end is left out");
        }
        left.push(Left { replica: replica.to_owned(), sequence, rows });
    }
    left.sort_unstable_by_key(|left| left.sequence);
    Ok(left)
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), Error> {
    let io = |source| Error::Io { path: directory.to_owned(), source };
    File::open(directory).map_err(io)?.sync_all().map_err(io)
}

/// The rows up to the first record that is not whole, and the bytes that they take.
fn rows<R: DeserializeOwned>(bytes: &[u8]) -> (Vec<R>, usize) {
    let (mut rows, mut at) = (Vec::new(), 0);
    while let Some((row, end)) = record(bytes, at) {
        rows.push(row);
        at = end;
    }
    (rows, at)
}

fn record<R: DeserializeOwned>(bytes: &[u8], at: usize) -> Option<(R, usize)> {
    let head = bytes.get(at..at + HEAD_BYTES)?;
    let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    if length > ROW_BYTES_MAX {
        return None;
    }
    let end = at + HEAD_BYTES + length;
    let payload = bytes.get(at + HEAD_BYTES..end)?;
    if blake3::hash(payload).as_bytes()[..HEAD_BYTES - 4] != head[4..] {
        return None;
    }
    Some((serde_json::from_slice(payload).ok()?, end))
}
