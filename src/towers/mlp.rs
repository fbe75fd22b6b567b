//! A stack of affine layers with ReLU between them.

use crate::kernels::dense::affine;
use crate::sections::Column;

/// Sizes and weights: layer `i` maps `sizes[i]` numbers to `sizes[i + 1]`.
///
/// The parameters stand in one column: per layer the weights, `inputs x outputs` row by row, then
/// the biases.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    pub sizes: Vec<usize>,
    pub params: Column<f32>,
}

/// One layer, borrowed.
pub(super) struct Layer<'a> {
    pub inputs: usize,
    pub outputs: usize,
    pub weights: &'a [f32],
    pub biases: &'a [f32],
}

impl Mlp {
    /// How many parameters a network of these sizes has.
    pub fn param_count(sizes: &[usize]) -> usize {
        sizes.windows(2).map(|pair| pair[0] * pair[1] + pair[1]).sum()
    }

    /// The layers, first to last.
    pub fn layers(&self) -> impl Iterator<Item = Layer<'_>> {
        let mut rest: &[f32] = &self.params;
        self.sizes.windows(2).map(move |pair| {
            let (inputs, outputs) = (pair[0], pair[1]);
            let (weights, tail) = rest.split_at(inputs * outputs);
            let (biases, tail) = tail.split_at(outputs);
            rest = tail;
            Layer { inputs, outputs, weights, biases }
        })
    }

    /// Applies the network to `input`; the answer is in `out`. `a` and `b` hold the widest layer.
    pub fn forward(&self, input: &[f32], a: &mut Vec<f32>, b: &mut Vec<f32>, out: &mut [f32]) {
        let last = self.sizes.len() - 2;
        a[..input.len()].copy_from_slice(input);
        for (index, layer) in self.layers().enumerate() {
            if index == last {
                affine(layer.weights, layer.biases, &a[..layer.inputs], out);
            } else {
                let hidden = &mut b[..layer.outputs];
                affine(layer.weights, layer.biases, &a[..layer.inputs], hidden);
                for value in hidden {
                    *value = value.max(0.0);
                }
                std::mem::swap(a, b);
            }
        }
    }
}

/// Scales `vector` to length one and returns its former length. A vector without direction
/// becomes the first axis, so that the answer is always usable.
pub(super) fn normalise(vector: &mut [f32]) -> f32 {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 1e-12 && length.is_finite() {
        vector.iter_mut().for_each(|x| *x /= length);
    } else {
        vector.fill(0.0);
        vector[0] = 1.0;
    }
    length
}
