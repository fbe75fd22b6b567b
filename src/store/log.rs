//! The live lists of the embedded store in a file, so that a restart forgets nobody.
//!
//! ```text
//! frame: u8 list | u16 length of user | u32 length of block | user | block      (little-endian)
//! ```
//! Blocks are appended as they come, by a thread of its own; a last frame that a crash cut short is
//! dropped when the file is opened. Then, and whenever the file has doubled, it is written anew with
//! what the lists still hold. One process a file: it is locked.

use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde::Deserialize;
use tokio::sync::oneshot;

use super::live::Live;
use super::{Error, List};
use crate::monitor;

/// Section `[store.embedded]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file; empty keeps nothing over a restart.
    pub file: PathBuf,
    /// Writes that may wait; one more is given up.
    pub queue_max: usize,
    /// The file is not written anew before it has grown by this much, MiB.
    pub growth_min_mib: u64,
}

impl Config {
    /// Refuses a log that could hold nothing.
    pub fn check(&self) -> Result<(), Error> {
        super::nonzero(&[
            ("store.embedded.queue_max", self.queue_max as u64),
            ("store.embedded.growth_min_mib", self.growth_min_mib),
        ])
    }
}

enum Message {
    Frame(Vec<u8>),
    Flush(oneshot::Sender<()>),
}

/// The way to the writing thread, which ends with it.
pub struct Log(SyncSender<Message>);

impl Log {
    /// Reads what an earlier process left into `live`, and goes on from there.
    ///
    /// # Errors
    /// When the file cannot be read or written, or another process has it.
    pub fn open(config: &Config, live: Arc<Live>) -> Result<Self, Error> {
        let path = config.file.clone();
        let failed = |source| Error::File { path: path.clone(), source };
        let lock = lock(&path)?;
        let frames = std::fs::read(&path).or_else(none_yet).map_err(failed)?;
        replay(&frames, &live);
        let growth_min_bytes = config.growth_min_mib << 20;
        let mut file = LogFile::write(path.clone(), live, growth_min_bytes).map_err(failed)?;
        let (sender, queue) = sync_channel(config.queue_max);
        let run = move || {
            file.run(&queue);
            drop(lock);
        };
        std::thread::Builder::new().name("users-log".to_owned()).spawn(run).map_err(failed)?;
        Ok(Self(sender))
    }

    /// Writes a block when its turn comes; given up and counted when too many wait.
    pub fn extend_later(&self, user: &str, list: List, block: &[u8]) {
        if self.0.try_send(Message::Frame(frame(user, list, block))).is_err() {
            monitor::cache_writes_dropped(1);
        }
    }

    /// Waits until everything given before this call is with the operating system.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        let sender = self.0.clone();
        // The queue is emptied as fast as a disk writes, so a thread that waits for it is soon free.
        let sent = tokio::task::spawn_blocking(move || sender.send(Message::Flush(done)));
        if matches!(sent.await, Ok(Ok(()))) {
            let _ = flushed.await;
        }
    }
}

/// The file as its thread sees it.
struct LogFile {
    path: PathBuf,
    live: Arc<Live>,
    growth_min_bytes: u64,
    out: BufWriter<File>,
    bytes: u64,
    rewrite_above_bytes: u64,
}

impl LogFile {
    /// Writes all lists to a new file, which then takes the old one's place.
    fn write(path: PathBuf, live: Arc<Live>, growth_min_bytes: u64) -> io::Result<Self> {
        let new = path.with_extension("new");
        let mut out = BufWriter::new(File::create(&new)?);
        let mut bytes = 0;
        for (user, lists) in live.iter() {
            for list in [List::History, List::Shown] {
                let block = lists.get(list).bytes();
                if !block.is_empty() {
                    let frame = frame(&user, list, block);
                    out.write_all(&frame)?;
                    bytes += frame.len() as u64;
                }
            }
        }
        out.flush()?;
        std::fs::rename(&new, &path)?;
        let rewrite_above_bytes = bytes + bytes.max(growth_min_bytes);
        Ok(Self { path, live, growth_min_bytes, out, bytes, rewrite_above_bytes })
    }

    fn run(&mut self, queue: &Receiver<Message>) {
        while let Ok(first) = queue.recv() {
            let mut flushes = Vec::new();
            for message in std::iter::once(first).chain(queue.try_iter()) {
                match message {
                    Message::Frame(frame) => self.append(&frame),
                    Message::Flush(done) => flushes.push(done),
                }
            }
            self.done(|file| file.out.flush());
            for done in flushes {
                let _ = done.send(());
            }
        }
    }

    fn append(&mut self, frame: &[u8]) {
        self.done(|file| file.out.write_all(frame));
        self.bytes += frame.len() as u64;
        if self.bytes > self.rewrite_above_bytes {
            // What failed is not tried again before the file has grown as much again.
            self.rewrite_above_bytes = self.bytes + self.bytes.max(self.growth_min_bytes);
            self.done(|file| {
                file.out.flush()?;
                *file = Self::write(file.path.clone(), file.live.clone(), file.growth_min_bytes)?;
                Ok(())
            });
        }
    }

    /// A disk that fails costs what a restart would remember, and no request.
    fn done(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) {
        if let Err(error) = write(self) {
            monitor::cache_writes_dropped(1);
            tracing::warn!(%error, path = %self.path.display(), "users are not kept in the file");
        }
    }
}

/// Takes the file for this process, until the guard is dropped. The lock lies beside it, because
/// the file itself is replaced.
fn lock(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let file = File::create(path.with_extension("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::FileTaken { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn none_yet(error: io::Error) -> io::Result<Vec<u8>> {
    if error.kind() == io::ErrorKind::NotFound { Ok(Vec::new()) } else { Err(error) }
}

fn frame(user: &str, list: List, block: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD_BYTES + user.len() + block.len());
    frame.push(list as u8);
    frame.extend_from_slice(&(user.len() as u16).to_le_bytes());
    frame.extend_from_slice(&(block.len() as u32).to_le_bytes());
    frame.extend_from_slice(user.as_bytes());
    frame.extend_from_slice(block);
    frame
}

const HEAD_BYTES: usize = 7;

/// Extends the lists by every whole frame.
fn replay(mut frames: &[u8], live: &Live) {
    while let Some((user, list, block, rest)) = first(frames) {
        live.extend(user, list, block);
        frames = rest;
    }
    if !frames.is_empty() {
        tracing::warn!(bytes = frames.len(), "the end of the users' file is damaged: dropped");
    }
}

fn first(frames: &[u8]) -> Option<(&str, List, &[u8], &[u8])> {
    let (head, rest) = frames.split_first_chunk::<HEAD_BYTES>()?;
    let [list, u0, u1, b0, b1, b2, b3] = *head;
    let list = [List::History, List::Shown].into_iter().find(|known| *known as u8 == list)?;
    let (user, rest) = rest.split_at_checked(u16::from_le_bytes([u0, u1]).into())?;
    let (block, rest) = rest.split_at_checked(u32::from_le_bytes([b0, b1, b2, b3]) as usize)?;
    Some((std::str::from_utf8(user).ok()?, list, block, rest))
}

#[cfg(test)]
mod tests {
    use super::super::list::push;
    use super::*;

    fn config(dir: &Path) -> Config {
        Config { file: dir.join("users.log"), queue_max: 1000, growth_min_mib: 1 }
    }

    fn live() -> Arc<Live> {
        Arc::new(Live::new(&super::super::users::tests::config().live))
    }

    fn entry(item: &str, time_ms: i64) -> Vec<u8> {
        let mut block = Vec::new();
        push(&mut block, item, time_ms);
        block
    }

    fn times(live: &Live, user: &str) -> Vec<i64> {
        live.get(user).history.newest_first().map(|entry| entry.1).collect()
    }

    #[tokio::test]
    async fn the_next_process_knows_what_this_one_knew() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(&config(dir.path()), live()).unwrap();
        log.extend_later("u", List::History, &entry("a", 1));
        log.extend_later("u", List::Shown, &entry("b", 2));
        log.extend_later("u", List::History, &entry("c", 3));
        log.flush().await;
        let taken = Log::open(&config(dir.path()), live()).map(|_| ()).unwrap_err().to_string();
        assert!(taken.contains("another process"), "{taken}");
        drop(log);
        // A crash in the middle of a frame.
        let path = dir.path().join("users.log");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(&frame("v", List::History, &entry("d", 4))[..9]);
        std::fs::write(&path, bytes).unwrap();
        let next = live();
        let log = open_when_free(dir.path(), &next).await;
        assert_eq!((times(&next, "u"), times(&next, "v")), (vec![3, 1], vec![]));
        assert_eq!(next.get("u").shown.newest_first().collect::<Vec<_>>(), [("b", 2)]);
        log.extend_later("v", List::History, &entry("e", 5));
        log.flush().await;
        drop(log);
        let last = live();
        open_when_free(dir.path(), &last).await;
        assert_eq!((times(&last, "u"), times(&last, "v")), (vec![3, 1], vec![5]));
    }

    #[tokio::test]
    async fn the_file_stays_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let live = live();
        let log = Log::open(&config(dir.path()), live.clone()).unwrap();
        let block = entry(&"x".repeat(200), 1);
        for _ in 0..20 {
            for _ in 0..1000 {
                live.extend("u", List::History, &block);
                log.extend_later("u", List::History, &block);
            }
            log.flush().await;
        }
        let bytes = std::fs::metadata(dir.path().join("users.log")).unwrap().len();
        assert!(bytes <= 2 << 20, "{bytes} bytes of 4 MiB written");
    }

    /// Opens the file once the thread of its former owner has ended.
    async fn open_when_free(dir: &Path, live: &Arc<Live>) -> Log {
        loop {
            match Log::open(&config(dir), live.clone()) {
                Ok(log) => return log,
                Err(Error::FileTaken { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    }
}
