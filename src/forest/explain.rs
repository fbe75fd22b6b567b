//! Why a row has its score: what each feature adds (SHAP values), for one row at a time.
//!
//! A leaf's value is owed to the features on its path. Seen from one leaf, a feature that is known
//! sends the row there or not (1 or 0), and one that is unknown sends it there with the share of
//! the training rows that went that way. A feature's contribution is its marginal effect averaged
//! over all orders in which features become known; for one leaf that is a sum over the
//! coefficients of `product of (share + known * y)` over the path's features, which takes
//! quadratic time in their number instead of an exponential one.
//! Source: Lundberg, Erion, Lee, "Consistent Individualized Feature Attribution for Tree Ensembles",
//! 2018; LightGBM's `predict_contrib` gives the same numbers, up to rounding.

use super::{Forest, Matrix, Tree};

/// A feature on the path to a leaf.
#[derive(Clone, Copy)]
struct Part {
    feature: u32,
    /// Share of the training rows that the feature's splits let through to the leaf.
    share: f64,
    /// Whether they let the row through.
    known: bool,
}

/// Buffers of one call.
#[derive(Default)]
struct Space {
    /// One entry an edge between the root and where the visit is.
    path: Vec<Part>,
    /// The path with one entry a feature.
    parts: Vec<Part>,
    product: Vec<f64>,
    quotient: Vec<f64>,
}

impl Forest {
    /// What each feature adds to the raw score of one row, and last the score that is expected
    /// before anything is known; their sum is the raw score. `None` when the model's text does not
    /// say how many training rows its nodes had.
    ///
    /// # Panics
    /// When the row has not [`Self::feature_count`] values.
    pub fn contributions(&self, row: &[f32]) -> Option<Vec<f64>> {
        assert_eq!(row.len(), self.feature_count(), "one value a feature");
        let counted =
            self.node_rows.len() == self.nodes.len() && self.leaf_rows.len() == self.leaves.len();
        if !counted {
            return None;
        }
        let mut out = vec![0.0; self.feature_count() + 1];
        let mut space = Space::default();
        for tree in &self.trees {
            self.add_contributions(tree, row, &mut space, &mut out);
        }
        Some(out)
    }

    fn add_contributions(&self, tree: &Tree, row: &[f32], space: &mut Space, out: &mut [f64]) {
        let nodes = &self.nodes[tree.nodes_start..][..tree.leaves - 1];
        let leaves = &self.leaves[tree.leaves_start..][..tree.leaves];
        let node_rows = &self.node_rows[tree.nodes_start..][..nodes.len()];
        let leaf_rows = &self.leaf_rows[tree.leaves_start..][..leaves.len()];
        let (contributions, expected) = out.split_at_mut(self.feature_count());
        if nodes.is_empty() {
            expected[0] += leaves[0];
            return;
        }
        let total: f64 = node_rows[0];
        for (value, rows) in leaves.iter().zip(leaf_rows) {
            expected[0] += rows / total * value;
        }
        let rows_of = |child: i32| match child {
            0.. => node_rows[child as usize],
            _ => leaf_rows[!child as usize],
        };
        let matrix = Matrix { constants: row, columns: &[], rows: 1 };
        // A child with the length of the path to its parent, and the edge to it.
        let mut open: Vec<(i32, usize, Option<Part>)> = vec![(0, 0, None)];
        while let Some((at, depth, edge)) = open.pop() {
            space.path.truncate(depth);
            space.path.extend(edge);
            if at < 0 {
                space.leaf(leaves[!at as usize], contributions);
                continue;
            }
            let node = &nodes[at as usize];
            let left = self.goes_left(node, matrix.constants[node.feature as usize]);
            for (child, known) in [(node.left, left), (node.right, !left)] {
                let share = rows_of(child) / node_rows[at as usize];
                let edge = Part { feature: node.feature, share, known };
                open.push((child, space.path.len(), Some(edge)));
            }
        }
    }
}

impl Space {
    /// Adds what the features of the path owe of a leaf's value.
    fn leaf(&mut self, value: f64, contributions: &mut [f64]) {
        self.parts.clear();
        for edge in &self.path {
            match self.parts.iter_mut().find(|part| part.feature == edge.feature) {
                None => self.parts.push(*edge),
                Some(part) => {
                    part.share *= edge.share;
                    part.known &= edge.known;
                }
            }
        }
        self.multiply();
        for at in 0..self.parts.len() {
            let part = self.parts[at];
            let effect = f64::from(u8::from(part.known)) - part.share;
            if effect != 0.0 {
                self.divide(part);
                contributions[part.feature as usize] += effect * self.average() * value;
            }
        }
    }

    /// `product[k]` becomes the coefficient of `y^k` in the product over the parts.
    fn multiply(&mut self) {
        self.product.clear();
        self.product.push(1.0);
        for part in &self.parts {
            self.product.push(0.0);
            for k in (0..self.product.len()).rev() {
                let shifted = if part.known && k > 0 { self.product[k - 1] } else { 0.0 };
                self.product[k] = self.product[k] * part.share + shifted;
            }
        }
    }

    /// `quotient` becomes the product without one part.
    fn divide(&mut self, part: Part) {
        let degree = self.product.len() - 1;
        self.quotient.clear();
        self.quotient.resize(degree, 0.0);
        if !part.known {
            // An effect that is not zero has a share that is not zero.
            for (quotient, product) in self.quotient.iter_mut().zip(&self.product) {
                *quotient = product / part.share;
            }
            return;
        }
        // From the top: the remainder is multiplied by a share of at most 1, so errors do not grow.
        let mut carry = 0.0;
        for k in (0..degree).rev() {
            carry = self.product[k + 1] - part.share * carry;
            self.quotient[k] = carry;
        }
    }

    /// The mean over all orders: of `n` features, `k` known ones come first in
    /// `k! (n - 1 - k)! / n!` of the orders.
    fn average(&self) -> f64 {
        let n = self.quotient.len();
        let mut weight = 1.0 / n as f64;
        let mut sum = 0.0;
        for (k, coefficient) in self.quotient.iter().enumerate() {
            sum += coefficient * weight;
            weight *= (k + 1) as f64 / (n - 1 - k).max(1) as f64;
        }
        sum
    }
}
