//! Rows in parts: what several modules read of the same row, side by side in whole cache lines.
//!
//! ```text
//! row r     | part 0 | part 1 | part 2 | zeros |        every part at a multiple of 4
//!           '- at r * stride, a whole number of cache lines, or a part of one line
//! ```
//! In a table of gigabytes most of the time of a read goes to finding the page, so a candidate whose features, bytes
//! and facts lie in one row costs one search for it and not three. This module does not know what a part holds.

use std::sync::Arc;

use crate::ffi::large::Large;
use crate::kernels::prefetch;

const LINE: usize = 64;
const ALIGN: usize = 4;

/// Rows that are being filled, in `N` parts.
pub struct Packing<const N: usize> {
    bytes: Large<u8>,
    rows: usize,
    stride: usize,
    /// Offset and width of each part.
    parts: [(usize, usize); N],
}

/// One part of all rows, to be filled.
pub struct PartMut<'a> {
    bytes: &'a mut [u8],
    rows: usize,
    stride: usize,
    part: (usize, usize),
}

/// One part of all rows; copies share the rows.
#[derive(Clone, Debug, Default)]
pub struct Part {
    bytes: Arc<Large<u8>>,
    rows: usize,
    stride: usize,
    part: (usize, usize),
}

impl<const N: usize> Packing<N> {
    /// Zeros in `rows` rows, whose parts have these bytes.
    pub fn new(rows: usize, widths: [usize; N]) -> Self {
        let mut end = 0;
        let parts = widths.map(|width| {
            let offset = end;
            end = (offset + width).next_multiple_of(ALIGN);
            (offset, width)
        });
        let stride = match end {
            0..LINE => end.next_power_of_two(),
            _ => end.next_multiple_of(LINE),
        };
        Self { bytes: Large::zeros(rows * stride), rows, stride, parts }
    }

    /// A part, to be filled.
    pub fn part(&mut self, at: usize) -> PartMut<'_> {
        let Self { rows, stride, parts, .. } = *self;
        PartMut { bytes: &mut self.bytes, rows, stride, part: parts[at] }
    }

    /// The parts, filled.
    pub fn finish(self) -> [Part; N] {
        let Self { rows, stride, parts, bytes } = self;
        let bytes = Arc::new(bytes);
        parts.map(|part| Part { bytes: bytes.clone(), rows, stride, part })
    }
}

impl PartMut<'_> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The part of a row.
    #[inline]
    pub fn row(&mut self, row: usize) -> &mut [u8] {
        let (offset, width) = self.part;
        &mut self.bytes[row * self.stride + offset..][..width]
    }
}

impl Part {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of a row's part.
    pub fn width(&self) -> usize {
        self.part.1
    }

    /// The part of a row; nothing past the end.
    #[inline]
    pub fn row(&self, row: usize) -> &[u8] {
        let (offset, width) = self.part;
        self.bytes
            .get(row * self.stride + offset..)
            .and_then(|rest| rest.get(..width))
            .unwrap_or_default()
    }

    /// Asks for a row with all its parts.
    #[inline]
    pub fn prefetch(&self, row: usize) {
        let row = self.bytes.get(row * self.stride..).and_then(|rest| rest.get(..self.stride));
        prefetch(row.unwrap_or_default());
    }

    /// All rows with all parts, the bytes from one to the next, and where in a row the part begins.
    pub fn table(&self) -> (&[u8], usize, usize) {
        (&self.bytes, self.stride, self.part.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_side_by_side_and_do_not_touch() {
        let mut packing = Packing::new(3, [5, 0, 24, 40]);
        for (part, byte) in [(0, 1), (2, 2), (3, 3)] {
            (0..3).for_each(|row| packing.part(part).row(row).fill(byte + 10 * row as u8));
        }
        let [five, none, two, four] = packing.finish();
        for row in 0..3 {
            let of = |byte: u8, count| vec![byte + 10 * row as u8; count];
            assert_eq!((five.row(row), two.row(row)), (&of(1, 5)[..], &of(2, 24)[..]));
            assert_eq!((none.row(row), four.row(row)), (&[][..], &of(3, 40)[..]));
            assert_eq!(two.row(row).as_ptr() as usize % ALIGN, 0);
            five.prefetch(row);
        }
        assert_eq!((five.row(3), two.rows(), two.width()), (&[][..], 3, 24));
        assert_eq!(five.table().1, 128, "whole cache lines");
        let [small] = Packing::new(2, [20]).finish();
        assert_eq!(small.table().1, 32, "no row lies in two cache lines");
        small.prefetch(7);
        let [nothing] = Packing::new(2, [0]).finish();
        assert_eq!((nothing.row(0), nothing.row(9)), (&[][..], &[][..]));
    }
}
