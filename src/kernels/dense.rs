//! The products of the encoders, one vector at a time.
//!
//! Each function is written once, as plain loops, and compiled twice: for AVX2 where the machine
//! has it and for the baseline. No fused multiply-add is used, so both give the same bits and a
//! vector does not depend on the machine that encoded it.

/// `out = input * weights + biases` with `weights` of `input.len() x out.len()`, row by row.
///
/// Four inputs at a time, so that `out` is passed over a quarter as often; inputs that ReLU left
/// at zero cost nothing.
///
/// # Panics
/// When the sizes do not fit.
pub fn affine(weights: &[f32], biases: &[f32], input: &[f32], out: &mut [f32]) {
    assert_eq!(weights.len(), input.len() * out.len(), "weights of an affine layer");
    assert_eq!(biases.len(), out.len(), "biases of an affine layer");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { affine_avx2(weights, biases, input, out) };
    }
    affine_scalar(weights, biases, input, out);
}

/// `sum += weight * row`.
///
/// # Panics
/// When the lengths differ.
#[inline]
pub fn add_scaled(sum: &mut [f32], weight: f32, row: &[f32]) {
    assert_eq!(sum.len(), row.len(), "lengths of a scaled sum");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { add_scaled_avx2(sum, weight, row) };
    }
    add_scaled_scalar(sum, weight, row);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn affine_avx2(weights: &[f32], biases: &[f32], input: &[f32], out: &mut [f32]) {
    affine_scalar(weights, biases, input, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_scaled_avx2(sum: &mut [f32], weight: f32, row: &[f32]) {
    add_scaled_scalar(sum, weight, row);
}

#[inline(always)]
fn affine_scalar(weights: &[f32], biases: &[f32], input: &[f32], out: &mut [f32]) {
    let width = out.len();
    out.copy_from_slice(biases);
    let mut inputs = input.chunks_exact(4);
    let mut blocks = weights.chunks_exact(4 * width);
    for (x, block) in (&mut inputs).zip(&mut blocks) {
        if x == [0.0; 4] {
            continue;
        }
        let (w0, rest) = block.split_at(width);
        let (w1, rest) = rest.split_at(width);
        let (w2, w3) = rest.split_at(width);
        let rows = w0.iter().zip(w1).zip(w2.iter().zip(w3));
        for (out, ((w0, w1), (w2, w3))) in out.iter_mut().zip(rows) {
            *out += (x[0] * w0 + x[1] * w1) + (x[2] * w2 + x[3] * w3);
        }
    }
    for (&x, row) in inputs.remainder().iter().zip(blocks.remainder().chunks_exact(width)) {
        add_scaled_scalar(out, x, row);
    }
}

#[inline(always)]
fn add_scaled_scalar(sum: &mut [f32], weight: f32, row: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum += weight * value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dispatched_functions_agree_bit_for_bit_with_their_scalar_twins() {
        for (inputs, outputs) in [(1, 1), (3, 5), (4, 8), (7, 33), (190, 256), (256, 128)] {
            let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 503.0 - 1.0;
            let weights: Vec<f32> = (0..inputs * outputs).map(value).collect();
            let biases: Vec<f32> = (0..outputs).map(|i| value(i + 5)).collect();
            let input: Vec<f32> = (0..inputs).map(|i| value(3 * i).max(0.0)).collect();
            let (mut out, mut twin) = (vec![f32::NAN; outputs], vec![f32::NAN; outputs]);
            affine(&weights, &biases, &input, &mut out);
            affine_scalar(&weights, &biases, &input, &mut twin);
            assert_eq!(out, twin);
            for (o, found) in out.iter().enumerate() {
                let terms = (0..inputs).map(|i| f64::from(input[i] * weights[i * outputs + o]));
                let expected = f64::from(biases[o]) + terms.sum::<f64>();
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{inputs}x{outputs}");
            }
            add_scaled(&mut out, 0.37, &weights[..outputs]);
            add_scaled_scalar(&mut twin, 0.37, &weights[..outputs]);
            assert_eq!(out, twin);
        }
    }
}
