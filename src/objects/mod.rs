//! What outlives a process and is shared by many: objects under one address, a directory or a bucket.
//!
//! ```text
//! models, file:///srv/models   a directory
//! s3://bucket/prefix           a bucket of S3 or of what speaks like it; AWS_ACCESS_KEY_ID,
//!                              AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL of the environment
//! ```
//! Files travel whole: what is read arrives beside its name and takes it last, what is written is there
//! whole or not at all. Must not know what the objects are.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    RetryConfig, WriteMultipart,
};

/// Files above this are written in parts of this size, bytes.
const PART_BYTES: usize = 16 << 20;
/// Parts on their way at once.
const PARTS_AT_ONCE: usize = 4;
/// How long one request to a bucket is tried again. What asks for longer asks again by itself and says so.
const RETRY_WITHIN: Duration = Duration::from_secs(10);
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why objects could not be reached, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{url}`: give a directory, file:///DIRECTORY or s3://BUCKET/PREFIX")]
    Scheme { url: String },
    #[error("`{url}`: no bucket; give s3://BUCKET/PREFIX")]
    Bucket { url: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}; delete it", path.display())]
    Tags { path: PathBuf, source: serde_json::Error },
    #[error("`{url}`: {source}")]
    Open { url: String, source: object_store::Error },
    #[error(transparent)]
    Store(#[from] object_store::Error),
}

/// An object, relative to the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub key: String,
    pub length_bytes: u64,
    /// Changes with the content, where the store tells; else the time of the last write.
    pub tag: String,
    /// Of the last write, epoch milliseconds.
    pub modified_ms: i64,
}

/// An opened address.
#[derive(Clone, Debug)]
pub struct Objects {
    url: String,
    directory: Option<PathBuf>,
    store: Arc<dyn ObjectStore>,
}

/// Whether an address is a bucket's and not a directory's.
pub fn is_remote(url: &str) -> bool {
    url.starts_with("s3://")
}

impl Objects {
    /// Opens an address; a directory is created.
    ///
    /// # Errors
    /// When it is neither a directory nor a bucket's address. A bucket is not asked yet.
    pub fn open(url: &str) -> Result<Self, Error> {
        if let Some(rest) = url.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(Error::Bucket { url: url.to_owned() });
            }
            return Self::bucket(url, bucket, prefix);
        }
        let path = url.strip_prefix("file://").unwrap_or(url);
        if path.contains("://") {
            return Err(Error::Scheme { url: url.to_owned() });
        }
        let io = |source| Error::Io { path: PathBuf::from(path), source };
        std::fs::create_dir_all(path).map_err(io)?;
        let root = Path::new(path).canonicalize().map_err(io)?;
        let store = Arc::new(LocalFileSystem::new_with_prefix(&root)?);
        Ok(Self { url: url.to_owned(), directory: Some(root), store })
    }

    fn bucket(url: &str, bucket: &str, prefix: &str) -> Result<Self, Error> {
        // An endpoint that was given without TLS is meant so.
        let endpoint = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT"].map(|name| std::env::var(name).ok());
        let plain = endpoint.into_iter().flatten().any(|url| url.starts_with("http://"));
        let backoff = BackoffConfig { max_backoff: PAUSE_MAX, ..BackoffConfig::default() };
        let retry = RetryConfig { backoff, retry_timeout: RETRY_WITHIN, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
        if plain {
            builder = builder.with_allow_http(true);
        }
        let store =
            builder.build().map_err(|source| Error::Open { url: url.to_owned(), source })?;
        let prefix = Key::from(prefix.trim_matches('/'));
        let store: Arc<dyn ObjectStore> = match prefix.as_ref() {
            "" => Arc::new(store),
            _ => Arc::new(PrefixStore::new(store, prefix)),
        };
        Ok(Self { url: url.to_owned(), directory: None, store })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The directory; none of a bucket.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// For what is read and written as a whole and in memory.
    pub fn store(&self) -> &dyn ObjectStore {
        &*self.store
    }

    /// All objects below a prefix, at any depth, by key.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Object>, Error> {
        // Level by level, which needs no stream.
        let mut levels = vec![Key::from(prefix)];
        let mut found = Vec::new();
        while let Some(level) = levels.pop() {
            let listing = self.store.list_with_delimiter(Some(&level)).await?;
            levels.extend(listing.common_prefixes);
            found.extend(listing.objects.into_iter().map(|meta| Object {
                key: meta.location.to_string(),
                length_bytes: meta.size,
                tag: meta.e_tag.unwrap_or_else(|| meta.last_modified.to_rfc3339()),
                modified_ms: meta.last_modified.timestamp_millis(),
            }));
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    /// Names of the folders directly below a prefix, in order.
    pub async fn folders(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let listing = self.store.list_with_delimiter(Some(&Key::from(prefix))).await?;
        let names = listing.common_prefixes.iter().filter_map(|key| key.filename());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Reads an object into a file, part by part; the file takes its name when it is whole.
    pub async fn get_file(&self, key: &str, to: &Path) -> Result<(), Error> {
        let io = |source| Error::Io { path: to.to_owned(), source };
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        let key = Key::from(key);
        let meta = self.store.head(&key).await?;
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = to.with_file_name(name);
        let mut file = File::create(&partial).map_err(io)?;
        let mut at = 0;
        while at < meta.size {
            let end = meta.size.min(at + PART_BYTES as u64);
            let range = Some((at..end).into());
            // All parts of one version of the object.
            let if_match = meta.e_tag.clone();
            let options = GetOptions { range, if_match, ..GetOptions::default() };
            let bytes = self.store.get_opts(&key, options).await?.bytes().await?;
            file.write_all(&bytes).map_err(io)?;
            at = end;
        }
        file.sync_all().map_err(io)?;
        std::fs::rename(&partial, to).map_err(io)
    }

    /// Writes a file as an object, in place of the one of that key.
    pub async fn put_file(&self, from: &Path, key: &str) -> Result<(), Error> {
        let io = |source| Error::Io { path: from.to_owned(), source };
        let mut file = File::open(from).map_err(io)?;
        let length = file.metadata().map_err(io)?.len() as usize;
        let key = Key::from(key);
        if length <= PART_BYTES {
            let mut bytes = Vec::with_capacity(length);
            file.read_to_end(&mut bytes).map_err(io)?;
            self.store.put(&key, bytes.into()).await?;
            return Ok(());
        }
        let parts = self.store.put_multipart(&key).await?;
        let mut parts = WriteMultipart::new_with_chunk_size(parts, PART_BYTES);
        let mut buffer = vec![0; PART_BYTES];
        loop {
            let count = file.read(&mut buffer).map_err(io)?;
            if count == 0 {
                break;
            }
            parts.wait_for_capacity(PARTS_AT_ONCE).await?;
            parts.write(&buffer[..count]);
        }
        parts.finish().await?;
        Ok(())
    }

    /// Writes an object that is not there yet; false when it is, and then nothing changes.
    pub async fn create(&self, key: &str, bytes: impl Into<PutPayload>) -> Result<bool, Error> {
        let options = PutOptions::from(PutMode::Create);
        match self.store.put_opts(&Key::from(key), bytes.into(), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes an object; one that is not there is none the less gone.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        match self.store.delete(&Key::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes all files of a directory under their names, those directly in it last. Other objects stay.
    /// Returns how many there are.
    pub async fn send(&self, dir: &Path) -> Result<usize, Error> {
        let (mut dirs, mut files) = (vec![dir.to_owned()], Vec::new());
        while let Some(at) = dirs.pop() {
            let io = |source| Error::Io { path: at.clone(), source };
            for entry in std::fs::read_dir(&at).map_err(io)? {
                let path = entry.map_err(io)?.path();
                if path.is_dir() { dirs.push(path) } else { files.push(path) }
            }
        }
        files.sort_by_key(|path| (std::cmp::Reverse(path.components().count()), path.clone()));
        for path in &files {
            let key = path.strip_prefix(dir).unwrap_or(path).to_string_lossy();
            self.put_file(path, &key).await?;
        }
        Ok(files.len())
    }

    /// Brings the copies of all objects below some prefixes in `dir` up to date: what is new or another
    /// one is read, what is gone is deleted. Returns how many objects were read.
    pub async fn mirror(&self, prefixes: &[String], dir: &Path) -> Result<usize, Error> {
        let mut tags = Tags::open(dir)?;
        let mut there = BTreeMap::new();
        for prefix in prefixes {
            there.extend(self.list(prefix).await?.into_iter().map(|o| (o.key, o.tag)));
        }
        for key in tags.gone(&there) {
            let path = dir.join(&key);
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::Io { path, source });
                }
                _ => tags.known.remove(&key),
            };
        }
        let mut read = 0;
        for (key, tag) in there {
            let path = dir.join(&key);
            if tags.known.get(&key) == Some(&tag) && path.exists() {
                continue;
            }
            self.get_file(&key, &path).await?;
            tags.known.insert(key, tag);
            tags.save()?;
            read += 1;
        }
        tags.save()?;
        Ok(read)
    }
}

/// Which version of each object a copy is of: `tags.json` beside the copies.
struct Tags {
    path: PathBuf,
    known: BTreeMap<String, String>,
}

impl Tags {
    fn open(dir: &Path) -> Result<Self, Error> {
        let io = |path: &Path, source| Error::Io { path: path.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(|source| io(dir, source))?;
        let path = dir.join("tags.json");
        let known = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| Error::Tags { path: path.clone(), source })?,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(io(&path, source)),
        };
        Ok(Self { path, known })
    }

    /// Copies of objects that are not there any more.
    fn gone(&self, there: &BTreeMap<String, String>) -> Vec<String> {
        self.known.keys().filter(|key| !there.contains_key(*key)).cloned().collect()
    }

    fn save(&self) -> Result<(), Error> {
        let bytes = serde_json::to_vec_pretty(&self.known).expect("strings");
        let partial = self.path.with_extension("partial");
        std::fs::write(&partial, bytes)
            .and_then(|()| std::fs::rename(&partial, &self.path))
            .map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}
