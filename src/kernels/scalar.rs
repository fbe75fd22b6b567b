//! The portable twins, and the definition of the order of summation.

/// Lanes of one accumulator: the width of an AVX2 register.
pub(super) const LANES: usize = 8;
/// Independent accumulators, so that the latency of one fused multiply-add hides behind the others.
pub(super) const ACCUMULATORS: usize = 4;

/// Inner product. Blocks of 32 go to four accumulators of eight lanes, further blocks of 8 to the
/// first one, the rest to a sum of its own.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [[0.0f32; LANES]; ACCUMULATORS];
    let step = LANES * ACCUMULATORS;
    let (blocks_a, rest_a) = a.split_at(a.len() / step * step);
    let (blocks_b, rest_b) = b.split_at(blocks_a.len());
    for (x, y) in blocks_a.chunks_exact(step).zip(blocks_b.chunks_exact(step)) {
        for (j, acc) in acc.iter_mut().enumerate() {
            add_block(acc, &x[j * LANES..][..LANES], &y[j * LANES..][..LANES]);
        }
    }
    let (eights_a, tail_a) = rest_a.split_at(rest_a.len() / LANES * LANES);
    let (eights_b, tail_b) = rest_b.split_at(eights_a.len());
    for (x, y) in eights_a.chunks_exact(LANES).zip(eights_b.chunks_exact(LANES)) {
        add_block(&mut acc[0], x, y);
    }
    reduce(&acc) + tail(tail_a, tail_b)
}

/// [`dot`] with every row.
pub(super) fn dots(query: &[f32], rows: &[f32], out: &mut [f32]) {
    for (row, out) in out.iter_mut().enumerate() {
        *out = dot(query, &rows[row * query.len()..][..query.len()]);
    }
}

/// The sum of fewer than eight products, in order.
#[inline(always)]
pub(super) fn tail(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (&x, &y)| x.mul_add(y, sum))
}

#[inline(always)]
fn add_block(acc: &mut [f32; LANES], x: &[f32], y: &[f32]) {
    for lane in 0..LANES {
        acc[lane] = x[lane].mul_add(y[lane], acc[lane]);
    }
}

/// Accumulators pairwise, then the halves of eight lanes, of four, of two.
fn reduce(acc: &[[f32; LANES]; ACCUMULATORS]) -> f32 {
    let eight: [f32; LANES] =
        std::array::from_fn(|l| (acc[0][l] + acc[1][l]) + (acc[2][l] + acc[3][l]));
    let four: [f32; 4] = std::array::from_fn(|l| eight[l] + eight[l + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}
