//! One step: both towers forward, the sampled softmax, everything backward.

use crate::kernels::matmul::{Engine, View};

use super::super::mlp::{Mlp, normalise};
use super::super::model::{ItemInput, Towers, UserInput};
use super::super::{Config, Device, Error};
use super::Data;
use super::batch::Batch;
use super::optim::RowGradient;

/// Everything a step needs besides the towers; kept between steps.
pub(super) struct Workspace {
    pub batch: Batch,
    pub grads: Gradients,
    /// Logarithm of the factor between a cosine and a logit.
    pub log_scale: f32,
    items: Activations,
    users: Activations,
    logits: Vec<f32>,
    engine: Engine,
}

/// Gradients of the mean loss of a batch.
pub(super) struct Gradients {
    pub item: Vec<f32>,
    pub user: Vec<f32>,
    pub log_scale: f32,
    pub tables: Vec<RowGradient>,
}

/// What one batch cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loss {
    /// Mean over positives, weighted.
    pub loss: f64,
    /// Sum of the weights.
    pub weight: f64,
}

/// A tower's values on the way forward, and of the gradient on the way back.
#[derive(Default)]
struct Activations {
    /// Input of each layer, then the unit vectors: `batch x width` each.
    layers: Vec<Vec<f32>>,
    /// Length of each vector before it was normalised.
    lengths: Vec<f32>,
    /// Gradient at the current layer and at the one before.
    gradient: Vec<f32>,
    gradient_below: Vec<f32>,
}

impl Workspace {
    pub fn new(towers: &Towers, config: &Config) -> Result<Self, Error> {
        Ok(Self {
            batch: Batch::default(),
            grads: Gradients {
                item: vec![0.0; towers.item.params.len()],
                user: vec![0.0; towers.user.params.len()],
                log_scale: 0.0,
                tables: towers.tables.iter().map(RowGradient::new).collect(),
            },
            log_scale: config.scale.ln(),
            items: Activations::default(),
            users: Activations::default(),
            logits: Vec::new(),
            engine: engine(config)?,
        })
    }
}

/// Who multiplies, as configured.
fn engine(config: &Config) -> Result<Engine, Error> {
    match config.device {
        Device::Cpu => Ok(Engine::Cpu(config.threads)),
        #[cfg(feature = "cuda")]
        Device::Cuda => Ok(Engine::Cuda(Box::new(crate::kernels::matmul::cuda::Gpu::open()?))),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda => Err(Error::NoCuda),
    }
}

/// Loss of the workspace's batch; the gradients are left in the workspace, those of the tables
/// added to what stands there.
pub(super) fn loss_and_gradients(data: &Data, towers: &Towers, work: &mut Workspace) -> Loss {
    gather(data, towers, work);
    let Workspace { batch, grads, items, users, logits, engine, .. } = work;
    let (rows, width, dim) = (batch.rows.len(), batch.candidates.len(), towers.dim());
    items.forward(&towers.item, engine);
    users.forward(&towers.user, engine);
    let scale = work.log_scale.exp();
    resize(logits, rows * width);
    let mut by_user = std::mem::take(&mut users.gradient);
    let mut by_item = std::mem::take(&mut items.gradient);
    let user_vectors = View::new(users.output(), rows, dim);
    let item_vectors = View::new(items.output(), width, dim);
    engine.multiply(user_vectors, item_vectors.t(), logits, false);

    let (loss, by_scale) = softmax(batch, scale, logits);
    grads.log_scale = by_scale;

    // `logits` now holds the gradient by the cosines.
    let by_cosine = View::new(logits, rows, width);
    resize(&mut by_user, rows * dim);
    engine.multiply(by_cosine, item_vectors, &mut by_user, false);
    resize(&mut by_item, width * dim);
    engine.multiply(by_cosine.t(), user_vectors, &mut by_item, false);
    (users.gradient, items.gradient) = (by_user, by_item);
    items.backward(&towers.item, &mut grads.item, engine);
    users.backward(&towers.user, &mut grads.user, engine);
    scatter(data, towers, batch, items, users, &mut grads.tables);
    loss
}

/// Fills both input matrices.
fn gather(data: &Data, towers: &Towers, work: &mut Workspace) {
    let Workspace { batch, items, users, .. } = work;
    let width = towers.layout.item_input;
    let x = items.input(&towers.item, batch.candidates.len());
    for ((&item, &id_row), x) in
        batch.candidates.iter().zip(&batch.id_rows).zip(x.chunks_exact_mut(width))
    {
        let input = item_input(data, batch.snapshot, item);
        towers.fill_item(id_row, input.codes, input.dense, x);
    }
    let width = towers.layout.user_input;
    let x = users.input(&towers.user, batch.rows.len());
    for (&row, x) in batch.rows.iter().zip(x.chunks_exact_mut(width)) {
        towers.fill_user(&user_input(data, row), x);
    }
}

fn item_input<'a>(data: &Data<'a>, snapshot: usize, item: u32) -> ItemInput<'a> {
    let (at, columns) = (item as usize, data.item_code_cardinalities.len());
    ItemInput {
        item: crate::types::ItemIdx(item),
        codes: &data.item_codes[at * columns..(at + 1) * columns],
        dense: &data.snapshots[snapshot][at * data.item_dense..(at + 1) * data.item_dense],
    }
}

fn user_input<'a>(data: &Data<'a>, row: u32) -> UserInput<'a> {
    let (at, columns) = (row as usize, data.user_code_cardinalities.len());
    let row = &data.rows[at];
    let user = row.user as usize;
    UserInput {
        history: &data.event_items[data.user_offsets[user] as usize..row.begin as usize],
        codes: &data.user_codes[user * columns..(user + 1) * columns],
        dense: &data.row_dense[at * data.user_dense..(at + 1) * data.user_dense],
    }
}

/// Turns cosines into the gradient of the mean loss by them.
///
/// A positive p of row r costs `ln(e^l_rp + Z_r) - l_rp`, where `Z_r` sums `e^l_rj / pi_j` over
/// the row's negatives j. Returns the loss and its derivative by the logarithm of the scale.
fn softmax(batch: &Batch, scale: f32, logits: &mut [f32]) -> (Loss, f32) {
    let width = batch.candidates.len();
    let total = batch.weight;
    let (mut loss, mut by_scale) = (0.0f64, 0.0f64);
    let mut targets = batch.targets.chunk_by(|a, b| a.row == b.row).peekable();
    let mut pulls: Vec<(u32, f32, f32)> = Vec::new();
    for (row, cosines) in logits.chunks_exact_mut(width).enumerate() {
        let Some(positives) = targets.next_if(|run| run[0].row as usize == row) else {
            cosines.fill(0.0);
            continue;
        };
        let blocked = &batch.blocked[row * width..(row + 1) * width];
        // Cosines are at most 1, so this bounds every exponent from above.
        let shift = scale - batch.log_inclusion.iter().copied().fold(0.0, f32::min);
        pulls.clear();
        for target in positives {
            let cosine = cosines[target.candidate as usize];
            pulls.push((target.candidate, target.weight, cosine));
        }
        let (negatives, weighted_cosine) =
            negative_mass(cosines, &batch.log_inclusion, blocked, scale, shift);
        // Sum over the positives of weight / (positive + negatives).
        let mut push = 0.0f64;
        for &(candidate, weight, cosine) in &pulls {
            let weight = f64::from(weight) / total;
            let logit = f64::from(scale * cosine - shift);
            let positive = logit.exp();
            let partition = positive + negatives;
            loss += weight * (partition.ln() - logit);
            push += weight / partition;
            let pull = weight * (positive / partition - 1.0);
            by_scale += pull * f64::from(cosine);
            // A positive is blocked, so its mass above was zero and its place is free.
            cosines[candidate as usize] = pull as f32;
        }
        by_scale += push * weighted_cosine;
        let push = (push * f64::from(scale)) as f32;
        for (mass, &blocked) in cosines.iter_mut().zip(blocked) {
            *mass *= if blocked { scale } else { push };
        }
    }
    (Loss { loss, weight: total }, (by_scale * f64::from(scale)) as f32)
}

/// Replaces the cosines of a row by `e^(scale cosine) / pi`, 0 where blocked; returns their sum and
/// the sum weighted with the cosines. Works in blocks that the compiler turns into SIMD.
fn negative_mass(
    cosines: &mut [f32],
    log_inclusion: &[f32],
    blocked: &[bool],
    scale: f32,
    shift: f32,
) -> (f64, f64) {
    const LANES: usize = 16;
    let (mut sum, mut weighted) = (0.0f64, 0.0f64);
    for ((cosines, log_inclusion), blocked) in
        cosines.chunks_mut(LANES).zip(log_inclusion.chunks(LANES)).zip(blocked.chunks(LANES))
    {
        let (mut part, mut weighted_part) = ([0.0f32; LANES], [0.0f32; LANES]);
        let sums = part.iter_mut().zip(&mut weighted_part);
        for (((cosine, log_inclusion), blocked), (part, weighted)) in
            cosines.iter_mut().zip(log_inclusion).zip(blocked).zip(sums)
        {
            let mass = exp(scale * *cosine - log_inclusion - shift);
            let mass = if *blocked { 0.0 } else { mass };
            *part = mass;
            *weighted = mass * *cosine;
            *cosine = mass;
        }
        sum += f64::from(part.iter().sum::<f32>());
        weighted += f64::from(weighted_part.iter().sum::<f32>());
    }
    (sum, weighted)
}

/// `e^x` for x <= 0 to a few units in the last place, without a branch or a call, so that loops
/// over it become SIMD. Below -87 the answer stays at e^-87, which no sum notices.
fn exp(x: f32) -> f32 {
    let x = x.max(-87.0) * std::f32::consts::LOG2_E;
    // Adding and taking away 1.5 * 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let whole = (x + ROUND) - ROUND;
    let part = (x - whole) * std::f32::consts::LN_2;
    // Taylor's series on |part| <= ln(2) / 2.
    let tail = part * (1.0 / 24.0 + part * (1.0 / 120.0 + part * (1.0 / 720.0)));
    let value = 1.0 + part * (1.0 + part * (0.5 + part * (1.0 / 6.0 + tail)));
    value * f32::from_bits(((whole as i32 + 127) << 23) as u32)
}

/// Carries the gradient of both inputs into the tables.
fn scatter(
    data: &Data,
    towers: &Towers,
    batch: &Batch,
    items: &Activations,
    users: &Activations,
    tables: &mut [RowGradient],
) {
    let layout = &towers.layout;
    let by_item = items.gradient.chunks_exact(layout.item_input);
    for ((&item, &id_row), gradient) in batch.candidates.iter().zip(&batch.id_rows).zip(by_item) {
        let input = item_input(data, batch.snapshot, item);
        let codes = input.codes.iter().zip(&towers.shape.item_codes);
        let rows = codes.map(|(&code, &cardinality)| Towers::code_row(code, cardinality));
        let rows = std::iter::once(id_row as usize).chain(rows);
        let mut at = 0;
        for (&table, row) in layout.item.iter().zip(rows) {
            let dim = tables[table].dim;
            tables[table].add(row, 1.0, &gradient[at..at + dim]);
            at += dim;
        }
    }
    let by_user = users.gradient.chunks_exact(layout.user_input);
    for (&row, gradient) in batch.rows.iter().zip(by_user) {
        let input = user_input(data, row);
        let history = towers.recent(input.history);
        towers.visit_pooled(history, |item, weights| {
            let mut at = 0;
            for (position, &table) in layout.history.iter().enumerate() {
                let (dim, row) = (tables[table].dim, towers.history_row(item, position));
                let pools = gradient.chunks_exact(layout.pool);
                for (pool, &weight) in pools.zip(weights) {
                    tables[table].add(row, weight, &pool[at..at + dim]);
                }
                at += dim;
            }
        });
        let mut at = towers.shape.pool_half_lives_events.len() * layout.pool;
        for ((&table, &code), &cardinality) in
            layout.user.iter().zip(input.codes).zip(&towers.shape.user_codes)
        {
            let dim = tables[table].dim;
            let row = Towers::code_row(code, cardinality);
            tables[table].add(row, 1.0, &gradient[at..at + dim]);
            at += dim;
        }
    }
}

impl Activations {
    /// The input matrix for `count` samples.
    fn input(&mut self, mlp: &Mlp, count: usize) -> &mut [f32] {
        self.layers.resize_with(mlp.sizes.len(), Vec::new);
        for (layer, &width) in self.layers.iter_mut().zip(&mlp.sizes) {
            resize(layer, count * width);
        }
        self.lengths.resize(count, 0.0);
        &mut self.layers[0]
    }

    /// The unit vectors.
    fn output(&self) -> &[f32] {
        &self.layers[self.layers.len() - 1]
    }

    fn forward(&mut self, mlp: &Mlp, engine: &mut Engine) {
        let count = self.lengths.len();
        let last = mlp.sizes.len() - 2;
        for (index, layer) in mlp.layers().enumerate() {
            let (below, above) = self.layers.split_at_mut(index + 1);
            let out = &mut above[0];
            for row in out.chunks_exact_mut(layer.outputs) {
                row.copy_from_slice(layer.biases);
            }
            let x = View::new(&below[index], count, layer.inputs);
            let w = View::new(layer.weights, layer.inputs, layer.outputs);
            engine.multiply(x, w, out, true);
            if index < last {
                out.iter_mut().for_each(|value| *value = value.max(0.0));
            } else {
                let vectors = out.chunks_exact_mut(layer.outputs);
                for (vector, length) in vectors.zip(&mut self.lengths) {
                    *length = normalise(vector);
                }
            }
        }
    }

    /// From the gradient by the unit vectors to those of the parameters and, left in
    /// `gradient`, of the input.
    fn backward(&mut self, mlp: &Mlp, params: &mut [f32], engine: &mut Engine) {
        let count = self.lengths.len();
        let width = mlp.sizes[mlp.sizes.len() - 1];
        let vectors = self.layers[mlp.sizes.len() - 1].chunks_exact(width);
        let gradients = self.gradient.chunks_exact_mut(width);
        for ((vector, gradient), length) in vectors.zip(gradients).zip(&self.lengths) {
            let along: f32 = vector.iter().zip(&*gradient).map(|(v, g)| v * g).sum();
            for (g, v) in gradient.iter_mut().zip(vector) {
                *g = (*g - along * v) / length.max(1e-6);
            }
        }
        let layers: Vec<_> = mlp.layers().collect();
        let mut end = params.len();
        for (index, layer) in layers.iter().enumerate().rev() {
            let (inputs, outputs) = (layer.inputs, layer.outputs);
            let start = end - (inputs * outputs + outputs);
            let (by_weight, by_bias) = params[start..end].split_at_mut(inputs * outputs);
            end = start;
            let x = View::new(&self.layers[index], count, inputs);
            let gradient = View::new(&self.gradient, count, outputs);
            engine.multiply(x.t(), gradient, by_weight, false);
            by_bias.fill(0.0);
            for row in self.gradient.chunks_exact(outputs) {
                by_bias.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
            }
            resize(&mut self.gradient_below, count * inputs);
            let w = View::new(layer.weights, inputs, outputs);
            engine.multiply(gradient, w.t(), &mut self.gradient_below, false);
            if index > 0 {
                let values = self.layers[index].iter();
                for (g, &value) in self.gradient_below.iter_mut().zip(values) {
                    *g = if value > 0.0 { *g } else { 0.0 };
                }
            }
            std::mem::swap(&mut self.gradient, &mut self.gradient_below);
        }
    }
}

fn resize(values: &mut Vec<f32>, len: usize) {
    values.resize(len, 0.0);
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_exponential_is_exact_to_float_precision() {
        for step in 0..870_000 {
            let x = -(step as f32) * 1e-4;
            let (found, expected) = (super::exp(x), f64::from(x).exp() as f32);
            assert!((found - expected).abs() <= 4e-6 * expected, "e^{x}: {found}, {expected}");
        }
        assert!(super::exp(-1e9) < 1e-37);
    }
}
