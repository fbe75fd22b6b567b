//! The two optimisers: AdamW for the networks, row-wise Adagrad for the tables.

use crate::kernels::dense::add_scaled;

use super::super::model::Table;

/// AdamW (Loshchilov and Hutter, ICLR 2019) over one flat parameter vector.
pub(super) struct AdamW {
    first: Vec<f32>,
    second: Vec<f32>,
    steps: i32,
    weight_decay: f32,
}

impl AdamW {
    pub fn new(len: usize, weight_decay: f32) -> Self {
        Self { first: vec![0.0; len], second: vec![0.0; len], steps: 0, weight_decay }
    }

    pub fn step(&mut self, params: &mut [f32], gradient: &[f32], rate: f32) {
        const BETA_1: f32 = 0.9;
        const BETA_2: f32 = 0.999;
        const EPSILON: f32 = 1e-8;
        self.steps += 1;
        let correct_1 = 1.0 / (1.0 - BETA_1.powi(self.steps));
        let correct_2 = 1.0 / (1.0 - BETA_2.powi(self.steps));
        let keep = 1.0 - rate * self.weight_decay;
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((param, &g), (first, second)) in params.iter_mut().zip(gradient).zip(moments) {
            *first = BETA_1 * *first + (1.0 - BETA_1) * g;
            *second = BETA_2 * *second + (1.0 - BETA_2) * g * g;
            let step = *first * correct_1 / ((*second * correct_2).sqrt() + EPSILON);
            *param = keep * *param - rate * step;
        }
    }
}

/// Gradient of a table of which a batch touches few rows.
pub(super) struct RowGradient {
    pub dim: usize,
    pub values: Vec<f32>,
    pub touched: Vec<u32>,
    marked: Vec<bool>,
}

impl RowGradient {
    pub fn new(table: &Table) -> Self {
        let rows = table.values.len() / table.dim;
        Self {
            dim: table.dim,
            values: vec![0.0; table.values.len()],
            touched: Vec::new(),
            marked: vec![false; rows],
        }
    }

    /// Adds `weight * gradient` to a row.
    pub fn add(&mut self, row: usize, weight: f32, gradient: &[f32]) {
        if !self.marked[row] {
            self.marked[row] = true;
            self.touched.push(row as u32);
        }
        let sums = &mut self.values[row * self.dim..(row + 1) * self.dim];
        add_scaled(sums, weight, gradient);
    }

    /// Forgets the batch; costs only what it touched.
    pub fn clear(&mut self) {
        for row in self.touched.drain(..) {
            let row = row as usize;
            self.marked[row] = false;
            self.values[row * self.dim..(row + 1) * self.dim].fill(0.0);
        }
    }
}

/// Adagrad with one accumulator a row: the mean square of the row's gradient.
pub(super) struct RowAdagrad {
    squares: Vec<f32>,
}

impl RowAdagrad {
    pub fn new(table: &Table) -> Self {
        Self { squares: vec![0.0; table.values.len() / table.dim] }
    }

    /// Moves the touched rows and clears the gradient.
    pub fn step(&mut self, values: &mut [f32], gradient: &mut RowGradient, rate: f32) {
        const EPSILON: f32 = 1e-10;
        let dim = gradient.dim;
        for &row in &gradient.touched {
            let row = row as usize;
            let g = &gradient.values[row * dim..(row + 1) * dim];
            let square = g.iter().map(|x| x * x).sum::<f32>() / dim as f32;
            self.squares[row] += square;
            let step = rate / (self.squares[row] + EPSILON).sqrt();
            for (value, g) in values[row * dim..(row + 1) * dim].iter_mut().zip(g) {
                *value -= step * g;
            }
        }
        gradient.clear();
    }
}
