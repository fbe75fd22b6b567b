//! The scan of a product quantiser: sums of table entries that four-bit codes choose.
//!
//! A row is `parts` codes of four bits; code `c` of part `m` stands for entry `table[16 m + c]`.
//! 32 rows form a block, laid out so that one byte shuffle looks up a part for 16 rows (the fast
//! scan of André, Kermarrec and Le Scouarnec, "Cache locality is not enough", VLDB 2015, in the
//! form that FAISS made known):
//!
//! ```text
//! a block: parts / 2 groups of 32 bytes
//! group p, byte i < 16:        part 2 p     of row i (low four bits) and of row 16 + i (high)
//! group p, byte 16 + i:        part 2 p + 1 of row i (low four bits) and of row 16 + i (high)
//! ```

#[cfg(target_arch = "x86_64")]
mod x86;

use super::{Level, level};

/// Rows of a block.
pub const BLOCK_ROWS: usize = 32;
/// Entries of the table of one part.
pub const ENTRIES: usize = 16;

/// Bytes of a block of rows of `parts` codes.
pub const fn block_bytes(parts: usize) -> usize {
    parts / 2 * BLOCK_ROWS
}

/// Writes the codes (`[parts]`, each below 16) of row `row` into its block (all zeros before).
///
/// # Panics
/// When `parts` is odd, the block has another size or the row is not below 32.
pub fn pack(codes: &[u8], row: usize, block: &mut [u8]) {
    assert_eq!(block.len(), block_bytes(codes.len()), "size of a block");
    assert!(codes.len().is_multiple_of(2) && row < BLOCK_ROWS, "row {row}");
    for (part, &code) in codes.iter().enumerate() {
        let at = part / 2 * BLOCK_ROWS + part % 2 * 16 + row % 16;
        block[at] |= (code & 15) << (row / 16 * 4);
    }
}

/// Writes `bias` plus the sum of the entries chosen by each row to `out`, at most 65,535.
///
/// `table` is `[parts * 16]`; the entries of a row must add up to at most 65,535 for any codes.
/// `codes` holds `out.len() / 32` blocks.
///
/// # Panics
/// When the lengths do not fit together.
#[inline]
pub fn sums(table: &[u8], codes: &[u8], bias: u16, out: &mut [u16]) {
    let parts = table.len() / ENTRIES;
    assert!(table.len().is_multiple_of(2 * ENTRIES), "a table of {} entries", table.len());
    assert!(out.len().is_multiple_of(BLOCK_ROWS), "{} rows are no blocks", out.len());
    assert_eq!(codes.len(), out.len() / BLOCK_ROWS * block_bytes(parts), "codes of the rows");
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` has seen AVX2 on this processor; lengths are checked above.
        Level::Avx2Fma => unsafe { x86::sums(table, codes, bias, out) },
        _ => scalar_sums(table, codes, bias, out),
    }
}

fn scalar_sums(table: &[u8], codes: &[u8], bias: u16, out: &mut [u16]) {
    let parts = table.len() / ENTRIES;
    let blocks = codes.chunks_exact(block_bytes(parts).max(1));
    for (codes, out) in blocks.zip(out.chunks_exact_mut(BLOCK_ROWS)) {
        for (row, out) in out.iter_mut().enumerate() {
            let entry = |part: usize| {
                let byte = codes[part / 2 * BLOCK_ROWS + part % 2 * 16 + row % 16];
                table[part * ENTRIES + (byte >> (row / 16 * 4) & 15) as usize] as u16
            };
            let sum = (0..parts).fold(0u16, |sum, part| sum.wrapping_add(entry(part)));
            *out = sum.saturating_add(bias);
        }
    }
    if parts == 0 {
        out.fill(bias);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sums_are_those_of_the_definition(
            (codes, table) in (0usize..20, 0usize..4).prop_flat_map(|(pairs, blocks)| (
                proptest::collection::vec(
                    proptest::collection::vec(0u8..16, pairs * 2), blocks * BLOCK_ROWS),
                proptest::collection::vec(any::<u8>(), pairs * 2 * ENTRIES),
            )),
            bias in prop_oneof![0u16..1000, 60_000u16..],
        ) {
            let parts = table.len() / ENTRIES;
            let bytes = block_bytes(parts);
            let mut packed = vec![0; codes.len() / BLOCK_ROWS * bytes];
            for (at, row) in codes.iter().enumerate().filter(|_| bytes > 0) {
                let block = &mut packed[at / BLOCK_ROWS * bytes..][..bytes];
                pack(row, at % BLOCK_ROWS, block);
            }
            let expected: Vec<u16> = codes
                .iter()
                .map(|row| {
                    let entry = |(m, &c): (usize, &u8)| table[m * ENTRIES + c as usize] as u32;
                    let sum: u32 = row.iter().enumerate().map(entry).sum();
                    (sum + bias as u32).min(65_535) as u16
                })
                .collect();
            let mut found = vec![0; codes.len()];
            sums(&table, &packed, bias, &mut found);
            prop_assert_eq!(&found, &expected);
            scalar_sums(&table, &packed, bias, &mut found);
            prop_assert_eq!(&found, &expected);
        }
    }
}
