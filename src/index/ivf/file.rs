//! The index file.
//!
//! ```text
//! section         element  elements         content
//! ivf.meta        u64      6                format (1), items n, dim, lists, exact_rows_max,
//!                                           bits of the f32 recall target
//! ivf.centroids   f32      lists * dim
//! ivf.offsets     u64      lists + 1        first slot of each list; the last is n
//! ivf.ids         u32      n                item of each slot
//! ivf.vectors     f32      n * dim          in slot order
//! ivf.depths      u32      depths           see `calibrate`
//! ivf.probes      u32      targets * depths
//! ```
//! Opening maps the file and checks everything that a search relies on, so that a search of a
//! damaged file cannot leave its slices. Whether the vectors themselves are unharmed is for the
//! checksums: [`crate::sections::Sections::verify`], or the manifest of a bundle.

use std::path::Path;

use super::{Calibration, IvfIndex, calibrate};
use crate::index::{Damage, Error, Index, RECALL_TARGETS};
use crate::sections::{Sections, SectionsWriter};
use crate::types::ItemIdx;

const FORMAT: u64 = 1;

impl IvfIndex {
    /// Writes the index; the file appears under its name only when it is complete.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let meta = [
            FORMAT,
            self.len() as u64,
            self.dim as u64,
            self.lists() as u64,
            self.exact_rows_max as u64,
            self.recall_target().to_bits() as u64,
        ];
        let mut writer = SectionsWriter::create(path, 7)?;
        writer.write("ivf.meta", &meta)?;
        writer.write("ivf.centroids", &self.centroids)?;
        writer.write("ivf.offsets", &self.offsets)?;
        writer.write("ivf.ids", &self.ids)?;
        writer.write("ivf.vectors", &self.vectors)?;
        writer.write("ivf.depths", &self.calibration.depths)?;
        writer.write("ivf.probes", &self.calibration.probes)?;
        Ok(writer.finish()?)
    }

    /// Maps the index in `path`, with the recall target that it was built with.
    ///
    /// # Errors
    /// When the file is no index, or its parts do not fit together.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = Sections::open(path)?;
        let damaged = |damage| Error::Damaged { path: path.to_owned(), damage };
        let meta = file.get::<u64>("ivf.meta")?;
        let format = meta.first().copied().unwrap_or(0);
        if format != FORMAT {
            return Err(Error::Format { path: path.to_owned(), found: format, expected: FORMAT });
        }
        let meta = file.get_exact::<u64>("ivf.meta", 6)?;
        let (rows, dim, lists) = (meta[1], meta[2], meta[3]);
        let fits = rows < u32::MAX as u64 && lists <= rows && (lists == 0) == (rows == 0);
        if !fits || dim == 0 || rows.checked_mul(dim).is_none_or(|values| values > 1 << 48) {
            return Err(damaged(Damage::Shape { rows, dim, lists }));
        }
        let (n, dim, lists) = (rows as usize, dim as usize, lists as usize);
        let target = f32::from_bits(meta[5] as u32);
        let target = calibrate::target_row(target)
            .map_err(|_| damaged(Damage::RecallTarget { found: target }))?;

        let offsets = file.get_exact::<u64>("ivf.offsets", lists + 1)?;
        check_offsets(&offsets, n).map_err(damaged)?;
        let ids = file.get_exact::<ItemIdx>("ivf.ids", n)?;
        let slots = slots(&ids).map_err(damaged)?;
        let depths = file.get::<u32>("ivf.depths")?.to_vec();
        let probes = file.get_exact::<u32>(
            "ivf.probes",
            depths.len() * if n == 0 { 0 } else { RECALL_TARGETS.len() },
        )?;
        let calibration = Calibration { depths, probes: probes.to_vec() };
        check_calibration(&calibration, n, lists).map_err(damaged)?;
        Ok(Self {
            dim,
            centroids: file.get_exact("ivf.centroids", lists * dim)?,
            offsets,
            ids,
            vectors: file.get_exact("ivf.vectors", n * dim)?,
            slots,
            calibration,
            target,
            exact_rows_max: meta[4] as usize,
        })
    }
}

fn check_offsets(offsets: &[u64], rows: usize) -> Result<(), Damage> {
    let mut start = 0;
    for (list, &end) in offsets.iter().enumerate() {
        let last = list + 1 == offsets.len();
        if end < start
            || (list == 0 && end != 0)
            || end > rows as u64
            || (last && end != rows as u64)
        {
            return Err(Damage::Offsets { list: list.saturating_sub(1), end, rows });
        }
        start = end;
    }
    Ok(())
}

/// The inverse of `ids`, which must be a permutation.
fn slots(ids: &[ItemIdx]) -> Result<Vec<u32>, Damage> {
    let rows = ids.len();
    let mut slots = vec![u32::MAX; rows];
    for (slot, item) in ids.iter().enumerate() {
        match slots.get_mut(item.row()) {
            Some(free) if *free == u32::MAX => *free = slot as u32,
            _ => return Err(Damage::Items { slot, item: item.0, rows }),
        }
    }
    Ok(slots)
}

fn check_calibration(calibration: &Calibration, rows: usize, lists: usize) -> Result<(), Damage> {
    let depths = &calibration.depths;
    let rising = depths.windows(2).all(|pair| pair[0] < pair[1])
        && depths.first().is_none_or(|&depth| depth > 0)
        && depths.is_empty() == (rows == 0);
    for (target, row) in
        RECALL_TARGETS.into_iter().zip(calibration.probes.chunks(depths.len().max(1)))
    {
        let within = row.iter().all(|&probes| (1..=lists as u32).contains(&probes));
        if !rising || !within || row.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err(Damage::Calibration { target, lists });
        }
    }
    if !rising {
        return Err(Damage::Calibration { target: RECALL_TARGETS[0], lists });
    }
    Ok(())
}
