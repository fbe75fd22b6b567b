//! LightGBM models: parsed from their text, evaluated here.
//!
//! A [`Forest`] is an immutable, fully checked copy of a model's text. [`Forest::score`] gives the
//! number that LightGBM's own raw prediction gives, bit for bit: the same decisions, and the leaf
//! values added in tree order in f64. It walks, row by row, and is the reference; requests go
//! through an [`Evaluator`], which gives the same bits much faster. Training is not this module's
//! business, and it knows nothing of what a column means: a row is numbers in the order of
//! [`Forest::feature_names`].
//!
//! ```text
//!             constants (the same for every row)     columns (column-major, rows x varying)
//! feature     0 1 2 .. c-1                           c: row 0, row 1, ..   c+1: row 0, ..
//! ```
//! Invariant: every tree is a tree. Each node and each leaf is reached from the root exactly once,
//! so a walk ends; `text` refuses everything else.

mod bytes;
mod calibrate;
mod compiled;
mod evaluator;
mod explain;
mod rewrite;
#[cfg(test)]
mod tests;
mod text;

pub use calibrate::Platt;
pub use evaluator::{Bins, CompileError, Evaluator, Scratch};
pub use rewrite::over;
pub use text::Error;

/// LightGBM's `kZeroThreshold`: values this close to zero are zero to it.
const ZERO_BAND: f32 = 1e-35;

/// The rows of one call, borrowed: `constants.len() + varying` features.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The first features, which have the same value in every row.
    pub constants: &'a [f32],
    /// The other features, column-major: `rows` values of the first varying column, then the next.
    pub columns: &'a [f32],
    /// Number of rows.
    pub rows: usize,
}

impl<'a> Matrix<'a> {
    /// Binds the parts of a matrix together. A missing value is NaN.
    ///
    /// # Panics
    /// When `columns` is not a whole number of columns of `rows` values.
    pub fn new(constants: &'a [f32], columns: &'a [f32], rows: usize) -> Self {
        let whole = columns.len().is_multiple_of(rows);
        assert!(whole, "{} column values are not whole columns of {rows} rows", columns.len());
        Self { constants, columns, rows }
    }

    /// Number of features that differ from row to row; 0 when there are no rows.
    pub fn varying(&self) -> usize {
        self.columns.len().checked_div(self.rows).unwrap_or(0)
    }
}

/// How much a feature matters to a model, as LightGBM counts it: splits without gain are left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// Column name.
    pub feature: String,
    /// Sum of the gains of its splits.
    pub gain: f64,
    /// Number of its splits.
    pub splits: u64,
}

/// What turns a raw score into a prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Link {
    /// Regression and ranking objectives: the raw score itself.
    Identity,
    /// `1 / (1 + exp(-slope * raw))`.
    Logistic { slope: f64 },
}

/// How a node decides.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Split {
    /// `value <= threshold` goes left. NaN, and a value not further from zero than `missing_band`
    /// (negative: none), is missing and goes where `missing_left` says.
    Numeric { missing_left: bool, missing_band: f32 },
    /// Codes in `bits[start..start + words]` go left; NaN, negative and unseen codes go right.
    Categorical { start: u32, words: u32 },
}

/// One decision. A child `>= 0` is a node of the same tree, a negative one is the leaf `!child`.
#[derive(Clone, Copy, Debug)]
struct Node {
    threshold: f64,
    feature: u32,
    left: i32,
    right: i32,
    split: Split,
}

/// One tree: ranges of the forest's nodes and leaves. Without nodes it is the constant leaf 0.
#[derive(Clone, Copy, Debug)]
struct Tree {
    nodes_start: usize,
    leaves_start: usize,
    leaves: usize,
}

/// A LightGBM model with one score a row.
#[derive(Clone, Debug)]
pub struct Forest {
    features: Vec<String>,
    link: Link,
    /// The prediction is the mean over the trees (random forests), not their sum.
    average: bool,
    trees: Vec<Tree>,
    nodes: Vec<Node>,
    /// Gains of the splits, parallel to `nodes`.
    gains: Vec<f32>,
    leaves: Vec<f64>,
    /// Training rows of nodes and leaves; shorter than `nodes` and `leaves` when not all trees
    /// say it.
    node_rows: Vec<f64>,
    leaf_rows: Vec<f64>,
    /// Bit sets of the categorical splits, 32 codes a word, as in the text.
    bits: Vec<u32>,
}

impl Forest {
    /// Reads a model as LightGBM writes it: text format v3 or v4, one tree an iteration,
    /// objectives of binary classification, regression and ranking.
    ///
    /// # Errors
    /// With the line and the field, for linear trees, several classes, other objectives, unknown
    /// fields, and anything that is not a tree. Memory stays proportional to the text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        text::parse(text)
    }

    /// Names of the columns, in the order that [`Matrix`] wants them.
    pub fn feature_names(&self) -> &[String] {
        &self.features
    }

    /// Number of columns.
    pub fn feature_count(&self) -> usize {
        self.features.len()
    }

    /// Number of trees.
    pub fn tree_count(&self) -> usize {
        self.trees.len()
    }

    /// Writes LightGBM's raw score of each row into `out`: the sum over the trees, in tree order.
    /// Allocates nothing.
    ///
    /// # Panics
    /// When `out` has not one place a row, or the matrix has not [`Self::feature_count`] features.
    pub fn score(&self, matrix: &Matrix, out: &mut [f64]) {
        assert_eq!(out.len(), matrix.rows, "one score a row");
        if matrix.rows == 0 {
            return;
        }
        let features = matrix.constants.len() + matrix.varying();
        assert_eq!(features, self.features.len(), "columns of the matrix against the model's");
        out.fill(0.0);
        // Trees outside, rows inside: a tree's nodes stay in the first-level cache for all rows.
        for tree in &self.trees {
            let leaves = &self.leaves[tree.leaves_start..][..tree.leaves];
            let nodes = &self.nodes[tree.nodes_start..][..tree.leaves - 1];
            if nodes.is_empty() {
                out.iter_mut().for_each(|score| *score += leaves[0]);
                continue;
            }
            for (row, score) in out.iter_mut().enumerate() {
                *score += leaves[self.leaf(nodes, matrix, row)];
            }
        }
    }

    /// The prediction of a raw score: a probability under a binary objective, the score itself
    /// under regression and ranking. Averages over the trees first when the model says so.
    pub fn probability(&self, raw: f64) -> f64 {
        let raw = if self.average { raw / self.trees.len().max(1) as f64 } else { raw };
        match self.link {
            Link::Identity => raw,
            Link::Logistic { slope } => 1.0 / (1.0 + (-slope * raw).exp()),
        }
    }

    /// Gain and number of splits of every feature, in column order.
    pub fn importance(&self) -> Vec<Importance> {
        let mut all: Vec<Importance> = self
            .features
            .iter()
            .map(|name| Importance { feature: name.clone(), gain: 0.0, splits: 0 })
            .collect();
        for (node, &gain) in self.nodes.iter().zip(&self.gains) {
            if gain > 0.0 {
                all[node.feature as usize].gain += f64::from(gain);
                all[node.feature as usize].splits += 1;
            }
        }
        all
    }

    /// Walks one row down one tree. Written so that only the end of the walk is a branch to guess:
    /// which way a row goes cannot be guessed, and that would cost more than the decision.
    #[inline]
    fn leaf(&self, nodes: &[Node], matrix: &Matrix, row: usize) -> usize {
        let mut at = 0_i32;
        while at >= 0 {
            let node = &nodes[at as usize];
            let feature = node.feature as usize;
            let (values, place) = match feature.checked_sub(matrix.constants.len()) {
                None => (matrix.constants, feature),
                Some(column) => (matrix.columns, column * matrix.rows + row),
            };
            at = if self.goes_left(node, values[place]) { node.left } else { node.right };
        }
        !at as usize
    }

    #[inline]
    fn goes_left(&self, node: &Node, value: f32) -> bool {
        match node.split {
            Split::Numeric { missing_left, missing_band } => {
                let missing = value.is_nan() | (value.abs() <= missing_band);
                (missing & missing_left) | (!missing & (f64::from(value) <= node.threshold))
            }
            Split::Categorical { start, words } => {
                // The cast rounds towards zero and saturates, so an infinity is an unseen code, and
                // NaN has to be sent right by hand.
                let code = value as i32;
                let word = (code >> 5) as u32;
                !value.is_nan()
                    && code >= 0
                    && word < words
                    && self.bits[(start + word) as usize] >> (code & 31) & 1 == 1
            }
        }
    }
}
