//! The index file.
//!
//! ```text
//! section         element  elements       content
//! hnsw.meta       u64      9              format (1), items n, dim, edges, build_candidates,
//!                                         exact_rows_max, bits of the f32 recall target, depths,
//!                                         strays
//! hnsw.vectors    f32      n * dim        row i is item i
//! hnsw.strays     u32      strays         items that the graph does not lead to, ascending
//! hnsw.depths     u32      depths * 4     depths, candidates by target and depth, see `calibrate`
//! hnsw.graph      u8                      if n > 0: the links, as hnsw_rs 0.3 writes them
//! hnsw.points     u8       12 + n * 24    if n > 0: the points, as hnsw_rs 0.3 writes them
//! ```
//! The crate reads its graph only from files of its own and takes them at their word. So opening
//! compares all checksums, checks that every item is a point once, writes the two sections into the
//! directory of temporary files (about 0.7 KB an item at 16 edges, gone afterwards) and has the
//! crate put the graph together link by link, in one thread. For 20,000 items that took 0.8 s on a
//! busy core and left the process 5 KB an item larger, where a build leaves 2.6 KB: the crate's
//! tables of the moment stay with the allocator. The vectors stay in the mapped file.

use std::path::Path;
use std::sync::Arc;

use super::graph::{self, Graph, LoadError};
use super::{Calibration, HnswIndex, Live, ROWS_PER_CANDIDATE};
use crate::index::ivf::{DIM_MAX, ROWS_MAX};
use crate::index::{Damage, Error, Index, RECALL_TARGETS};
use crate::sections::{Column, Sections, SectionsWriter};
use crate::types::ItemIdx;

const FORMAT: u64 = 1;

impl HnswIndex {
    /// Whether the file in `path` holds an index of this kind.
    ///
    /// # Errors
    /// When it cannot be read as a file of sections.
    pub fn is_in(path: &Path) -> Result<bool, Error> {
        Ok(Sections::open(path)?.has("hnsw.meta"))
    }

    /// For the moment of writing a directory stands beside the file.
    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        let calibration = &self.calibration;
        let meta = [
            FORMAT,
            self.rows() as u64,
            self.dim as u64,
            self.edges as u64,
            self.build_candidates as u64,
            self.exact_rows_max as u64,
            self.recall_target().to_bits() as u64,
            calibration.depths.len() as u64,
            self.strays.len() as u64,
        ];
        let mut writer = SectionsWriter::create(path, 6)?;
        writer.write("hnsw.meta", &meta)?;
        writer.write("hnsw.vectors", &self.vectors)?;
        writer.write("hnsw.strays", &self.strays)?;
        writer.write("hnsw.depths", &[&*calibration.depths, &calibration.candidates].concat())?;
        if let Some(graph) = &self.graph {
            graph.dump(path.with_extension("graph"), |graph, points| {
                writer.write("hnsw.graph", graph)?;
                Ok(writer.write("hnsw.points", points)?)
            })?;
        }
        Ok(writer.finish()?)
    }

    /// Reads the index in `path`, with the recall target that it was built with and no room for
    /// live rows ([`Index::set_live_rows_max`]). What that costs is told in the source of this
    /// module.
    ///
    /// # Errors
    /// When the file is no index, a checksum differs, its parts do not fit together, or the
    /// directory of temporary files cannot be written.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = Sections::open(path)?;
        let damaged = |damage| Error::Damaged { path: path.to_owned(), damage };
        let meta = file.get::<u64>("hnsw.meta")?;
        let format = meta.first().copied().unwrap_or(0);
        if format != FORMAT {
            return Err(Error::Format { path: path.to_owned(), found: format, expected: FORMAT });
        }
        file.verify()?;
        let meta = file.get_exact::<u64>("hnsw.meta", 9)?;
        let (rows, dim) = (meta[1], meta[2]);
        if rows > ROWS_MAX as u64 || !(1..=DIM_MAX as u64).contains(&dim) {
            return Err(damaged(Damage::Size { rows, dim }));
        }
        let (n, dim) = (rows as usize, dim as usize);
        let target = f32::from_bits(meta[6] as u32);
        let target = crate::index::target_row(target)
            .map_err(|_| damaged(Damage::RecallTarget { found: target }))?;
        let count = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let calibration = open_calibration(&file, count(meta[7]))?;
        check_calibration(&calibration, n).map_err(damaged)?;
        let strays = file.get_exact::<ItemIdx>("hnsw.strays", count(meta[8]))?.to_vec();
        check_strays(&strays, n).map_err(damaged)?;
        let vectors = Arc::new(file.get_exact::<f32>("hnsw.vectors", n * dim)?);
        check_numbers(&vectors).map_err(damaged)?;
        let graph = match n {
            0 => None,
            _ => Some(open_graph(&file, &vectors, dim).map_err(|error| match error {
                LoadError::Io(error) => Error::File(error),
                LoadError::Damage(damage) => damaged(damage),
            })?),
        };
        Ok(Self {
            dim,
            vectors,
            graph,
            strays,
            edges: count(meta[3]),
            build_candidates: count(meta[4]),
            calibration,
            target,
            exact_rows_max: count(meta[5]),
            rows_per_candidate: ROWS_PER_CANDIDATE,
            live: Live::new(n, dim, 0),
        })
    }
}

fn open_graph(file: &Sections, vectors: &Arc<Column<f32>>, dim: usize) -> Result<Graph, LoadError> {
    let links = file.get::<u8>("hnsw.graph")?;
    let points = graph::points_bytes(vectors.len() / dim);
    let points = file.get_exact::<u8>("hnsw.points", points)?;
    Graph::load(&links, &points, Arc::clone(vectors), dim)
}

fn open_calibration(file: &Sections, depths: usize) -> Result<Calibration, Error> {
    let elements = depths.saturating_mul(1 + RECALL_TARGETS.len());
    let table = file.get_exact::<u32>("hnsw.depths", elements)?;
    let (depths, candidates) = table.split_at(depths);
    Ok(Calibration { depths: depths.to_vec(), candidates: candidates.to_vec() })
}

fn check_calibration(calibration: &Calibration, n: usize) -> Result<(), Damage> {
    let depths = &calibration.depths;
    let rising = depths.windows(2).all(|pair| pair[0] < pair[1])
        && depths.first().is_none_or(|&depth| depth > 0)
        && depths.is_empty() == (n == 0);
    for (at, target) in RECALL_TARGETS.into_iter().enumerate() {
        let row = &calibration.candidates[at * depths.len()..][..depths.len()];
        let enough = row.iter().zip(depths).all(|(candidates, depth)| candidates >= depth);
        if !rising || !enough || row.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err(Damage::Candidates { target });
        }
    }
    Ok(())
}

fn check_strays(strays: &[ItemIdx], rows: usize) -> Result<(), Damage> {
    for (slot, item) in strays.iter().enumerate() {
        let rising = slot == 0 || strays[slot - 1] < *item;
        if !rising || item.row() >= rows {
            return Err(Damage::Items { slot, item: item.0, rows });
        }
    }
    Ok(())
}

fn check_numbers(numbers: &[f32]) -> Result<(), Damage> {
    match numbers.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(Damage::Number { what: "vector number", at, value: numbers[at] }),
        None => Ok(()),
    }
}
