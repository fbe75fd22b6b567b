//! What of hnsw_rs is used: build, search, write, read; and what it needs to be held to.
//!
//! The points of the graph are row numbers, not vectors: [`ByRow`] looks the vectors up, so that
//! they are there once and inner products are those of `kernels`. A query comes as the bits of its
//! numbers with one word more, which tells it from a row number.
//!
//! Three things of the crate are worked around here. Inserting the first points in parallel leaves
//! those without links that came before there was an entry point: the first goes in alone. Its
//! loops run in rayon's global pool unless they are started inside another one, the one in `Drop`
//! too. And it panics, or ends the process, on a dump that is not as it should be: what it reads is
//! checked before, and a panic becomes an error.
//!
//! Must not know filters, live rows, or how many candidates a search needs.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use hnsw_rs::api::AnnT;
use hnsw_rs::hnsw::{Hnsw, Neighbour};
use hnsw_rs::hnswio::{HnswIo, load_description};
use hnsw_rs::prelude::Distance;

use crate::ffi::mmap::Mmap;
use crate::index::{Bitmap, Damage, Error};
use crate::kernels;
use crate::sections::{self, Column};
use crate::types::ItemIdx;

/// Most edges a node, which the crate counts in a byte.
pub(super) const EDGES_MAX: usize = 255;
/// Layers of the graph; the crate writes no other number.
const LAYERS: usize = 16;
/// Rows inserted between two reports.
const TOGETHER: usize = 8192;
/// Name of the two files of a dump, to which the crate adds `.hnsw.graph` and `.hnsw.data`.
const NAME: &str = "index";
/// Length of the head of the file of points, and of each point.
const POINTS_HEAD_BYTES: usize = 12;
const POINT_BYTES: usize = 24;

/// Failures of the crate, which come as `anyhow::Error` or as a panic.
type Source = Box<dyn std::error::Error + Send + Sync>;

/// One minus the inner product of vectors named by their rows.
struct ByRow {
    rows: Arc<Column<f32>>,
    dim: usize,
}

impl ByRow {
    #[inline]
    fn vector<'a>(&'a self, point: &'a [u32]) -> &'a [f32] {
        match point {
            [row] => &self.rows[*row as usize * self.dim..][..self.dim],
            query => bytemuck::cast_slice(&query[..self.dim]),
        }
    }
}

impl Distance<u32> for ByRow {
    /// Never below zero and never NaN, on both of which the crate panics.
    #[inline]
    fn eval(&self, a: &[u32], b: &[u32]) -> f32 {
        (1.0 - kernels::dot(self.vector(a), self.vector(b))).max(0.0)
    }
}

/// A graph over at least one row.
pub(super) struct Graph {
    /// There until dropped.
    inner: Option<Hnsw<'static, u32, ByRow>>,
}

/// Puts a query into the form in which a graph takes it.
pub(super) fn prepare(query: &[f32], out: &mut Vec<u32>) {
    out.clear();
    out.extend(query.iter().map(|x| x.to_bits()));
    out.push(0);
}

impl Graph {
    /// Inserts all rows, in the threads of `pool`; `done` hears how many are new.
    pub(super) fn build(
        rows: Arc<Column<f32>>,
        dim: usize,
        edges: usize,
        candidates: usize,
        pool: &rayon::ThreadPool,
        done: &mut dyn FnMut(u64),
    ) -> Self {
        let ids: Vec<[u32; 1]> = (0..(rows.len() / dim) as u32).map(|row| [row]).collect();
        let graph = Hnsw::new(edges, ids.len(), LAYERS, candidates, ByRow { rows, dim });
        let mut points: Vec<(&[u32], usize)> =
            ids.iter().map(|id| id.as_slice()).zip(0..).collect();
        let rest = points.split_off(1);
        pool.install(|| graph.parallel_insert_slice(&points));
        done(1);
        for some in rest.chunks(TOGETHER) {
            points.clear();
            points.extend_from_slice(some);
            pool.install(|| graph.parallel_insert_slice(&points));
            done(some.len() as u64);
        }
        Self { inner: Some(graph) }
    }

    /// The about `candidates` nearest rows, as far as the graph leads to them, in no promised
    /// order. `query` is what [`prepare`] made.
    pub(super) fn search(
        &self,
        query: &[u32],
        candidates: usize,
    ) -> impl Iterator<Item = usize> + use<> {
        let graph = self.inner.as_ref();
        let found =
            graph.map_or_else(Vec::new, |graph| graph.search(query, candidates, candidates));
        found.into_iter().map(|neighbour: Neighbour| neighbour.d_id)
    }

    /// Writes the graph into `directory` for a moment and hands over the two files: the graph and
    /// the points.
    pub(super) fn dump<T>(
        &self,
        directory: PathBuf,
        take: impl FnOnce(&[u8], &[u8]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let directory = Directory::create(directory)?;
        let path = &directory.0;
        let write = || match &self.inner {
            Some(graph) => Ok(graph.file_dump(path, NAME)?),
            None => Err("the graph is gone".into()),
        };
        guarded(write).map_err(|source| Error::Graph { path: path.clone(), source })?;
        let map = |path: PathBuf| {
            Mmap::open(&path).map_err(|source| sections::Error::Io { path, source })
        };
        take(&map(graph_path(path))?, &map(points_path(path))?)
    }

    /// Reads the two files that [`Graph::dump`] handed over, over the same rows; both come through
    /// the directory of temporary files, since the crate reads only files.
    pub(super) fn load(
        graph: &[u8],
        points: &[u8],
        rows: Arc<Column<f32>>,
        dim: usize,
    ) -> Result<Self, LoadError> {
        // A graph borrows from its reader: there is one for the life of the process.
        static READER: OnceLock<(PathBuf, HnswIo)> = OnceLock::new();
        static TURN: Mutex<()> = Mutex::new(());

        let n = rows.len() / dim;
        check_head(graph, n)?;
        check_points(points, n)?;
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (path, reader) = READER.get_or_init(|| {
            let path = temporary_path();
            let reader = HnswIo::new(&path, NAME);
            (path, reader)
        });
        let directory = Directory::create(path.clone())?;
        for (path, bytes) in [(graph_path(path), graph), (points_path(path), points)] {
            fs::write(&path, bytes).map_err(|source| sections::Error::Io { path, source })?;
        }
        let distance = ByRow { rows, dim };
        let inner = guarded(|| Ok(reader.load_hnsw_with_dist::<u32, ByRow>(distance)?))
            .map_err(|source| Damage::Graph { source })?;
        drop(directory);
        Ok(Self { inner: Some(inner) })
    }
}

impl Drop for Graph {
    /// The crate takes its graph apart in a parallel loop: in one thread, not in the global pool.
    fn drop(&mut self) {
        let inner = self.inner.take();
        match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
            Ok(pool) => pool.install(|| drop(inner)),
            Err(_) => drop(inner),
        }
    }
}

/// Why a graph was not read: the file system, or what was read.
pub(super) enum LoadError {
    Io(sections::Error),
    Damage(Damage),
}

impl From<sections::Error> for LoadError {
    fn from(error: sections::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Damage> for LoadError {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

/// Bytes of the file of points of `n` rows.
pub(super) fn points_bytes(n: usize) -> usize {
    POINTS_HEAD_BYTES + n * POINT_BYTES
}

/// The head must speak of as many points as there are rows.
fn check_head(graph: &[u8], n: usize) -> Result<(), Damage> {
    let mut head = graph;
    let head =
        guarded(|| Ok(load_description(&mut head)?)).map_err(|source| Damage::Graph { source })?;
    if head.nb_point != n || head.dimension != 1 || head.format_version != 4 {
        let (points, version) = (head.nb_point, head.format_version);
        let what = format!("{points} points in a dump of version {version}, expected {n} in 4");
        return Err(Damage::Graph { source: what.into() });
    }
    Ok(())
}

/// Every row must be a point, once: the inner products are looked up by it.
fn check_points(points: &[u8], n: usize) -> Result<(), Damage> {
    let seen = Bitmap::new(n);
    let points = points[POINTS_HEAD_BYTES.min(points.len())..].chunks_exact(POINT_BYTES);
    for (slot, point) in points.enumerate() {
        // Magic number (4 bytes), item (8), length of the data (8), data (4): the item again.
        let item = u64::from_ne_bytes(std::array::from_fn(|at| point[4 + at]));
        let length = u64::from_ne_bytes(std::array::from_fn(|at| point[12 + at]));
        let row = u32::from_ne_bytes(std::array::from_fn(|at| point[20 + at]));
        let known = ItemIdx(row);
        if item != row as u64 || length != 4 || row as usize >= n || seen.get(known) {
            return Err(Damage::Items { slot, item: row, rows: n });
        }
        seen.set(known, true);
    }
    Ok(())
}

/// Turns a panic of the crate into an error.
fn guarded<T>(call: impl FnOnce() -> Result<T, Source>) -> Result<T, Source> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(text.unwrap_or("hnsw_rs gave up without a reason").into())
    })
}

/// A directory that is removed with all that is in it.
struct Directory(PathBuf);

impl Directory {
    fn create(path: PathBuf) -> Result<Self, sections::Error> {
        match fs::create_dir(&path) {
            Ok(()) => Ok(Self(path)),
            Err(source) => Err(sections::Error::Io { path, source }),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "temporary directory stays");
        }
    }
}

fn temporary_path() -> PathBuf {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
    std::env::temp_dir().join(format!("shortlist-graph-{}-{since}", std::process::id()))
}

fn graph_path(directory: &Path) -> PathBuf {
    directory.join(format!("{NAME}.hnsw.graph"))
}

fn points_path(directory: &Path) -> PathBuf {
    directory.join(format!("{NAME}.hnsw.data"))
}
