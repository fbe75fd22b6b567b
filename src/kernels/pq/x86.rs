//! AVX2: one shuffle looks up one part for 16 rows in each half of a register.

use std::arch::x86_64::*;

use super::{BLOCK_ROWS, ENTRIES, block_bytes};

/// # Safety
/// The processor has AVX2; `table` is `[parts * 16]` with even `parts`, `out` whole blocks and
/// `codes` as many.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn sums(table: &[u8], codes: &[u8], bias: u16, out: &mut [u16]) {
    let groups = table.len() / ENTRIES / 2;
    let bytes = block_bytes(table.len() / ENTRIES);
    let nibble = _mm256_set1_epi8(15);
    let bias = _mm_set1_epi16(bias as i16);
    for (block, out) in out.chunks_exact_mut(BLOCK_ROWS).enumerate() {
        let codes = codes[block * bytes..][..bytes].as_ptr();
        // Bytes are added as pairs in 16 bits: `whole` of rows 0, 2, .. carries 256 times the odd
        // rows' sums besides, which `odd` holds alone.
        let mut whole = [_mm256_setzero_si256(); 2];
        let mut odd = [_mm256_setzero_si256(); 2];
        for group in 0..groups {
            // SAFETY: the group's 32 bytes lie in the block and in the table.
            let (both, entries) = unsafe {
                if group % 2 == 0 {
                    _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(2 * bytes + group * 32).cast());
                }
                (
                    _mm256_loadu_si256(codes.add(group * 32).cast()),
                    _mm256_loadu_si256(table.as_ptr().add(group * 32).cast()),
                )
            };
            let low = _mm256_shuffle_epi8(entries, _mm256_and_si256(both, nibble));
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibble);
            let high = _mm256_shuffle_epi8(entries, high);
            whole[0] = _mm256_add_epi16(whole[0], low);
            odd[0] = _mm256_add_epi16(odd[0], _mm256_srli_epi16::<8>(low));
            whole[1] = _mm256_add_epi16(whole[1], high);
            odd[1] = _mm256_add_epi16(odd[1], _mm256_srli_epi16::<8>(high));
        }
        for half in 0..2 {
            let even = _mm256_sub_epi16(whole[half], _mm256_slli_epi16::<8>(odd[half]));
            let (even, odd) = (fold(even), fold(odd[half]));
            let first = _mm_adds_epu16(_mm_unpacklo_epi16(even, odd), bias);
            let second = _mm_adds_epu16(_mm_unpackhi_epi16(even, odd), bias);
            // SAFETY: `out` is 32 long; this writes 16 from 16 `half` on.
            unsafe {
                let out = out.as_mut_ptr().add(half * 16);
                _mm_storeu_si128(out.cast(), first);
                _mm_storeu_si128(out.add(8).cast(), second);
            }
        }
    }
}

/// The parts of even and of odd number together.
#[inline]
#[target_feature(enable = "avx2")]
fn fold(x: __m256i) -> __m128i {
    _mm_add_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x))
}
