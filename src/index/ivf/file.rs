//! The index file.
//!
//! ```text
//! section         element  elements            content
//! ivf.meta        u64      7                   format (2), items n, dim, lists, exact_rows_max,
//!                                              bits of the f32 recall target, depths
//! ivf.centroids   f32      lists * dim         of length one
//! ivf.offsets     u32      lists + 1           first slot of each list; the last is n
//! ivf.ids         u32      n                   item of each slot
//! ivf.slots       u32      n                   slot of each item
//! ivf.steps       u16      n                   upper half of the f32 step of each residual
//! ivf.residuals   i8       n * bytes           vector minus centroid in steps; `bytes` is dim up to
//!                                              a multiple of 32
//! ivf.probes      u32      depths * 4 + 3      depths, lists by target and depth, rows scored again
//! ivf.margins     f32      depths * 3          by target and depth, see `calibrate`
//! ivf.codewords   f32      bytes / 2 * 32      optional: codewords of two numbers, 16 a part
//! ivf.codes       u8       blocks * bytes * 8  optional: blocks of 32 rows, see `kernels::pq`
//! ivf.halves      u16      n * dim             optional: the vectors as half-precision numbers
//! ```
//! Opening reads the file into huge pages and checks everything that a search relies on, so that a search of a
//! damaged file cannot leave its slices. Whether the vectors themselves are unharmed is for the
//! checksums: [`crate::sections::Sections::verify`], or the manifest of a bundle.

use std::path::Path;

use super::{Calibration, Coarse, DIM_MAX, IvfIndex, Live, Pq, ROWS_MAX, pq};
use crate::index::{Damage, Error, Index, RECALL_TARGETS};
use crate::kernels::{int8, pq as scan};
use crate::sections::{Column, Sections, SectionsWriter};
use crate::types::ItemIdx;

const FORMAT: u64 = 2;
const TARGETS: usize = RECALL_TARGETS.len();

impl IvfIndex {
    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        let calibration = &self.calibration;
        let meta = [
            FORMAT,
            self.len() as u64,
            self.dim as u64,
            self.lists() as u64,
            self.exact_rows_max as u64,
            self.recall_target().to_bits() as u64,
            calibration.depths.len() as u64,
        ];
        let mut writer = SectionsWriter::create(path, 12)?;
        writer.write("ivf.meta", &meta)?;
        writer.write("ivf.centroids", &self.centroids)?;
        writer.write("ivf.offsets", &self.offsets)?;
        writer.write("ivf.ids", &self.ids)?;
        writer.write("ivf.slots", &self.slots)?;
        writer.write("ivf.steps", &self.steps)?;
        writer.write("ivf.residuals", &self.residuals)?;
        let table = [&*calibration.depths, &*calibration.probes, &calibration.again].concat();
        writer.write("ivf.probes", &table)?;
        writer.write("ivf.margins", &calibration.margins)?;
        if let Some(pq) = &self.pq {
            writer.write("ivf.codewords", &pq.codewords)?;
            writer.write("ivf.codes", &pq.codes)?;
        }
        if let Some(halves) = &self.halves {
            writer.write("ivf.halves", halves)?;
        }
        Ok(writer.finish()?)
    }

    /// Reads the index in `path`, with the recall target that it was built with and no room for
    /// live rows ([`Index::set_live_rows_max`]).
    ///
    /// # Errors
    /// When the file is no index, or its parts do not fit together.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = Sections::read(path)?;
        let damaged = |damage| Error::Damaged { path: path.to_owned(), damage };
        let meta = file.get::<u64>("ivf.meta")?;
        let format = meta.first().copied().unwrap_or(0);
        if format != FORMAT {
            return Err(Error::Format { path: path.to_owned(), found: format, expected: FORMAT });
        }
        let meta = file.get_exact::<u64>("ivf.meta", 7)?;
        let (rows, dim, lists) = (meta[1], meta[2], meta[3]);
        let fits = rows <= ROWS_MAX as u64 && lists <= rows && (lists == 0) == (rows == 0);
        if !fits || !(1..=DIM_MAX as u64).contains(&dim) {
            return Err(damaged(Damage::Shape { rows, dim, lists }));
        }
        let (n, dim, lists) = (rows as usize, dim as usize, lists as usize);
        let bytes = int8::row_bytes(dim);
        let target = f32::from_bits(meta[5] as u32);
        let target = crate::index::target_row(target)
            .map_err(|_| damaged(Damage::RecallTarget { found: target }))?;

        let centroids = file.get_exact::<f32>("ivf.centroids", lists * dim)?;
        check_numbers("centroid number", &centroids).map_err(damaged)?;
        let offsets = file.get_exact::<u32>("ivf.offsets", lists + 1)?;
        check_offsets(&offsets, n).map_err(damaged)?;
        let ids = file.get_exact::<ItemIdx>("ivf.ids", n)?;
        let slots = file.get_exact::<u32>("ivf.slots", n)?;
        check_items(&ids, &slots).map_err(damaged)?;
        let calibration = open_calibration(&file, meta[6], n)?;
        check_calibration(&calibration, n, lists).map_err(damaged)?;
        let pq = match file.has("ivf.codes") {
            true => Some(open_pq(&file, dim, &offsets, damaged)?),
            false => None,
        };
        let halves = match file.has("ivf.halves") {
            true => Some(file.get_exact("ivf.halves", n * dim)?),
            false => None,
        };
        let steps = file.get_exact::<u16>("ivf.steps", n)?;
        check_steps(&steps).map_err(damaged)?;
        let residuals = file.get_exact::<i8>("ivf.residuals", n * bytes)?;
        Ok(Self {
            dim,
            coarse: Coarse::new(&centroids, dim),
            centroids,
            offsets,
            ids,
            slots,
            steps,
            residuals,
            pq,
            halves,
            calibration,
            target,
            exact_rows_max: usize::try_from(meta[4]).unwrap_or(usize::MAX),
            live: Live::new(n, dim, 0),
        })
    }
}

fn open_calibration(file: &Sections, depths: u64, n: usize) -> Result<Calibration, Error> {
    let table = file.get::<u32>("ivf.probes")?;
    let depths = usize::try_from(depths).unwrap_or(usize::MAX).min(table.len());
    file.get_exact::<u32>("ivf.probes", depths * (1 + TARGETS) + TARGETS)?;
    debug_assert!(n > 0 || depths == 0 || !table.is_empty());
    let (depths, rest) = table.split_at(depths);
    let (probes, again) = rest.split_at(depths.len() * TARGETS);
    let margins = file.get_exact::<f32>("ivf.margins", depths.len() * TARGETS)?;
    Ok(Calibration {
        margins: margins.to_vec(),
        depths: depths.to_vec(),
        probes: probes.to_vec(),
        again: std::array::from_fn(|target| again[target]),
    })
}

fn open_pq(
    file: &Sections,
    dim: usize,
    offsets: &[u32],
    damaged: impl Fn(Damage) -> Error,
) -> Result<Pq, Error> {
    let parts = pq::parts(dim);
    let codewords: Column<f32> =
        file.get_exact("ivf.codewords", parts * scan::ENTRIES * pq::PART)?;
    check_numbers("codeword number", &codewords).map_err(damaged)?;
    let blocks = pq::blocks(offsets);
    let count = blocks[blocks.len() - 1] as usize;
    let codes = file.get_exact("ivf.codes", count * scan::block_bytes(parts))?;
    Ok(Pq { codewords, codes, blocks })
}

fn check_numbers(what: &'static str, numbers: &[f32]) -> Result<(), Damage> {
    match numbers.iter().position(|x| !(-4.0..=4.0).contains(x)) {
        Some(at) => Err(Damage::Number { what, at, value: numbers[at] }),
        None => Ok(()),
    }
}

/// The difference of two vectors of length one is at most 2, in 127 steps; a score beyond all
/// numbers would look like that of a row that does not pass.
fn check_steps(steps: &[u16]) -> Result<(), Damage> {
    let wide = |bits: u16| f32::from_bits((bits as u32) << 16);
    match steps.iter().position(|&bits| !(0.0..=0.02).contains(&wide(bits))) {
        Some(at) => Err(Damage::Number { what: "step", at, value: wide(steps[at]) }),
        None => Ok(()),
    }
}

fn check_offsets(offsets: &[u32], rows: usize) -> Result<(), Damage> {
    let mut start = 0;
    for (at, &end) in offsets.iter().enumerate() {
        let last = at + 1 == offsets.len();
        if end < start
            || (at == 0 && end != 0)
            || end as usize > rows
            || (last && end as usize != rows)
        {
            let at = at.saturating_sub(1);
            return Err(Damage::Offsets { what: "list", at, end: end as u64, most: rows });
        }
        start = end;
    }
    Ok(())
}

/// The two must be inverse permutations.
fn check_items(ids: &[ItemIdx], slots: &[u32]) -> Result<(), Damage> {
    for (slot, item) in ids.iter().enumerate() {
        if slots.get(item.row()).is_none_or(|&back| back as usize != slot) {
            return Err(Damage::Items { slot, item: item.0, rows: ids.len() });
        }
    }
    Ok(())
}

fn check_calibration(calibration: &Calibration, rows: usize, lists: usize) -> Result<(), Damage> {
    let depths = &calibration.depths;
    let rising = depths.windows(2).all(|pair| pair[0] < pair[1])
        && depths.first().is_none_or(|&depth| depth > 0)
        && depths.is_empty() == (rows == 0);
    for (at, target) in RECALL_TARGETS.into_iter().enumerate() {
        let row = &calibration.probes[at * depths.len()..][..depths.len()];
        let within = row.iter().all(|&probes| (1..=lists as u32).contains(&probes));
        let margins = &calibration.margins[at * depths.len()..][..depths.len()];
        let within = within && margins.iter().all(|margin| margin.is_finite());
        let again = rows == 0 || (1..=1 << 10).contains(&calibration.again[at]);
        if !rising || !within || !again || row.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err(Damage::Calibration { target, lists });
        }
    }
    Ok(())
}
