//! LightGBM's text format, read with suspicion.
//!
//! ```text
//! tree                       first line
//! version=v4                 header: key=value lines, in any order
//! ...
//! tree_sizes=421 398
//!
//! Tree=0                     one block a tree: key=value lines up to the next block
//! num_leaves=3
//! split_feature=4 1          arrays are separated by spaces
//! ...
//! end of trees               what follows (importances, parameters) is not read
//! ```
//! Invariant: a count in the text is never believed. Arrays are as long as their line, and the
//! count only has to agree, so that memory is bounded by the length of the text.
//! Source of the format: LightGBM 4, `src/boosting/gbdt_model_text.cpp` and `src/io/tree.cpp`.

use std::str::FromStr;

use super::{Forest, Link, Node, Split, Tree, ZERO_BAND};

const HEADER_FIELDS: [&str; 11] = [
    "version",
    "num_class",
    "num_tree_per_iteration",
    "label_index",
    "max_feature_idx",
    "objective",
    "average_output",
    "feature_names",
    "monotone_constraints",
    "feature_infos",
    "tree_sizes",
];
const TREE_FIELDS: [&str; 22] = [
    "num_leaves",
    "num_cat",
    "split_feature",
    "split_gain",
    "threshold",
    "decision_type",
    "left_child",
    "right_child",
    "leaf_value",
    "leaf_weight",
    "leaf_count",
    "internal_value",
    "internal_weight",
    "internal_count",
    "cat_boundaries",
    "cat_threshold",
    "is_linear",
    "shrinkage",
    // Fields of linear trees, known so that the refusal names the reason.
    "leaf_const",
    "num_features",
    "leaf_features",
    "leaf_coeff",
];
/// Objectives whose prediction is the raw score.
const IDENTITY_OBJECTIVES: [&str; 8] = [
    "regression",
    "regression_l1",
    "huber",
    "fair",
    "quantile",
    "mape",
    "lambdarank",
    "rank_xendcg",
];

/// Why a model's text was refused. Lines count from 1.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("line 1: `{found}` is not the first line of a LightGBM model (`tree`)")]
    NotAModel { found: String },
    #[error("line {line}: unknown field `{field}`")]
    UnknownField { line: usize, field: String },
    #[error("line {line}: field `{field}` stands there twice")]
    Twice { line: usize, field: String },
    #[error("line {line}: field `{field}` is missing before this line")]
    Missing { line: usize, field: &'static str },
    #[error("line {line}: `{field}`: `{value}` is not {expected}")]
    Value { line: usize, field: String, value: String, expected: &'static str },
    #[error("line {line}: `{field}` has {found} values, expected {expected}")]
    Count { line: usize, field: String, found: usize, expected: usize },
    #[error("line {line}: `{field}={value}` is not supported: {reason}")]
    Unsupported { line: usize, field: &'static str, value: String, reason: &'static str },
    #[error("line {line}: tree {tree}: `{field}` of node {node} is {value}, outside 0..{limit}")]
    OutOfRange {
        line: usize,
        tree: usize,
        field: &'static str,
        node: usize,
        value: i64,
        limit: usize,
    },
    #[error("line {line}: tree {tree}: node or leaf {child} has two parents")]
    NotATree { line: usize, tree: usize, child: i32 },
    #[error("line {line}: tree {tree}: only {found} of {expected} nodes are reached from the root")]
    Unreached { line: usize, tree: usize, found: usize, expected: usize },
    #[error("the text ends at line {line} before `end of trees`: it is truncated")]
    Truncated { line: usize },
    #[error("the model has no tree")]
    NoTrees,
    #[error("the {known} features of the schema do not have: {unknown}")]
    Columns { unknown: String, known: usize },
    #[error("the model's predictions are means of its trees, so it cannot be calibrated")]
    Averages,
    #[error("line {line}: {what} exceed what 32-bit indices can name")]
    TooLarge { line: usize, what: &'static str },
}

/// One `key=value` line.
#[derive(Clone, Copy)]
struct Field<'a> {
    line: usize,
    key: &'a str,
    value: &'a str,
}

/// The lines of one block (the header or a tree), each key once.
struct Block<'a> {
    /// First line after the block, named when a field is missing.
    end_line: usize,
    fields: Vec<Field<'a>>,
}

pub(super) fn parse(text: &str) -> Result<Forest, Error> {
    let mut lines = Lines { rest: text, line: 0 };
    match lines.next() {
        Some("tree") => {}
        found => return Err(Error::NotAModel { found: shorten(found.unwrap_or("")) }),
    }
    let (header, mut stop) = lines.block(&HEADER_FIELDS)?;
    let (mut forest, trees_expected) = read_header(&header)?;
    loop {
        match stop {
            Stop::EndOfTrees => break,
            Stop::Tree { line, number } if number != forest.trees.len().to_string() => {
                return Err(value_error(
                    Field { line, key: "Tree", value: number },
                    "the next tree's number",
                ));
            }
            Stop::Tree { .. } => {
                let (block, next) = lines.block(&TREE_FIELDS)?;
                read_tree(&block, &mut forest)?;
                stop = next;
            }
        }
    }
    if let Some((line, expected)) = trees_expected {
        let found = forest.trees.len();
        if found != expected {
            return Err(Error::Count {
                line,
                field: "tree_sizes".into(),
                found: expected,
                expected: found,
            });
        }
    }
    Ok(forest)
}

/// Where a block ended.
enum Stop<'a> {
    Tree { line: usize, number: &'a str },
    EndOfTrees,
}

/// Lines without their line ends, counted.
struct Lines<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        self.line += 1;
        let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
        self.rest = rest;
        Some(line.strip_suffix('\r').unwrap_or(line))
    }

    /// Reads up to the next `Tree=` or `end of trees`, which is the only regular end.
    fn block(&mut self, known: &[&str]) -> Result<(Block<'a>, Stop<'a>), Error> {
        let mut fields: Vec<Field<'a>> = Vec::new();
        loop {
            let Some(text) = self.next() else {
                return Err(Error::Truncated { line: self.line });
            };
            let line = self.line;
            if text.is_empty() {
                continue;
            }
            let stop = match text.strip_prefix("Tree=") {
                Some(number) => Some(Stop::Tree { line, number }),
                None if text == "end of trees" => Some(Stop::EndOfTrees),
                None => None,
            };
            if let Some(stop) = stop {
                return Ok((Block { end_line: line, fields }, stop));
            }
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            if !known.contains(&key) {
                return Err(Error::UnknownField { line, field: shorten(key) });
            }
            if fields.iter().any(|field| field.key == key) {
                return Err(Error::Twice { line, field: key.to_owned() });
            }
            fields.push(Field { line, key, value });
        }
    }
}

impl<'a> Block<'a> {
    fn get(&self, key: &str) -> Option<Field<'a>> {
        self.fields.iter().copied().find(|field| field.key == key)
    }

    fn require(&self, key: &'static str) -> Result<Field<'a>, Error> {
        self.get(key).ok_or(Error::Missing { line: self.end_line, field: key })
    }

    /// A required array of `count` values.
    fn array<T: FromStr>(
        &self,
        key: &'static str,
        count: usize,
        expected: &'static str,
    ) -> Result<Vec<T>, Error> {
        self.require(key)?.array(count, expected)
    }
}

impl Field<'_> {
    fn one<T: FromStr>(self, expected: &'static str) -> Result<T, Error> {
        self.value.trim().parse().map_err(|_| value_error(self, expected))
    }

    fn array<T: FromStr>(self, count: usize, expected: &'static str) -> Result<Vec<T>, Error> {
        let mut values = Vec::new();
        for token in self.value.split_ascii_whitespace() {
            let value =
                token.parse().map_err(|_| value_error(Self { value: token, ..self }, expected))?;
            values.push(value);
        }
        if values.len() != count {
            let field = self.key.to_owned();
            return Err(Error::Count {
                line: self.line,
                field,
                found: values.len(),
                expected: count,
            });
        }
        Ok(values)
    }

    fn unsupported(self, field: &'static str, reason: &'static str) -> Error {
        Error::Unsupported { line: self.line, field, value: shorten(self.value), reason }
    }
}

fn value_error(field: Field, expected: &'static str) -> Error {
    Error::Value {
        line: field.line,
        field: field.key.to_owned(),
        value: shorten(field.value),
        expected,
    }
}

/// A hostile line must not become a hostile log entry.
fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The forest without trees, and the line and number of trees that the header announces.
fn read_header(header: &Block) -> Result<(Forest, Option<(usize, usize)>), Error> {
    let version = header.require("version")?;
    if !matches!(version.value, "v3" | "v4") {
        return Err(version.unsupported("version", "this program reads v3 and v4"));
    }
    for key in ["num_class", "num_tree_per_iteration"] {
        let Some(field) = header.get(key) else { continue };
        if field.one::<i64>("a whole number")? != 1 {
            return Err(field.unsupported(key, "only models with one score a row"));
        }
    }
    header.require("num_class")?;
    let index = header.require("max_feature_idx")?;
    let last: u32 = index.one("a whole number from 0")?;
    let count = last as usize + 1;
    let features: Vec<String> = header.array("feature_names", count, "a name")?;
    let average = match header.get("average_output") {
        Some(field) if !field.value.is_empty() => return Err(value_error(field, "empty")),
        field => field.is_some(),
    };
    let trees = header
        .get("tree_sizes")
        .map(|field| (field.line, field.value.split_ascii_whitespace().count()));
    let link = header.get("objective").map_or(Ok(Link::Identity), read_objective)?;
    let forest = Forest {
        features,
        link,
        average,
        trees: Vec::new(),
        nodes: Vec::new(),
        gains: Vec::new(),
        leaves: Vec::new(),
        node_rows: Vec::new(),
        leaf_rows: Vec::new(),
        bits: Vec::new(),
    };
    Ok((forest, trees))
}

/// A model without the field was trained with an objective of its own: raw scores.
fn read_objective(field: Field) -> Result<Link, Error> {
    let mut words = field.value.split_ascii_whitespace();
    let name = words.next().unwrap_or("");
    let refused =
        || field.unsupported("objective", "only binary, cross_entropy, regression and ranking");
    match name {
        "binary" => {
            let slope = match words.next() {
                None => 1.0,
                Some(word) => word
                    .strip_prefix("sigmoid:")
                    .and_then(|slope| slope.parse::<f64>().ok())
                    .filter(|slope| slope.is_finite() && *slope > 0.0)
                    .ok_or_else(|| value_error(field, "`binary sigmoid:` and a positive number"))?,
            };
            if words.next().is_some() { Err(refused()) } else { Ok(Link::Logistic { slope }) }
        }
        "cross_entropy" => Ok(Link::Logistic { slope: 1.0 }),
        // `regression sqrt` squares its output.
        _ if IDENTITY_OBJECTIVES.contains(&name) && words.all(|word| word != "sqrt") => {
            Ok(Link::Identity)
        }
        _ => Err(refused()),
    }
}

fn read_tree(block: &Block, forest: &mut Forest) -> Result<(), Error> {
    if let Some(field) = block.get("is_linear")
        && field.one::<u8>("0 or 1")? != 0
    {
        return Err(field.unsupported("is_linear", "train with `linear_tree=false`"));
    }
    let leaves_field = block.require("num_leaves")?;
    let leaves: usize = leaves_field.one("a whole number")?;
    if leaves == 0 {
        return Err(value_error(leaves_field, "at least 1"));
    }
    let values_field = block.require("leaf_value")?;
    let values: Vec<f64> = values_field.array(leaves, "a number")?;
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        let value = value.to_string();
        return Err(value_error(Field { value: &value, ..values_field }, "finite"));
    }
    let tree = Tree { nodes_start: forest.nodes.len(), leaves_start: forest.leaves.len(), leaves };
    if leaves > 1 {
        read_nodes(block, forest, leaves)?;
        forest.node_rows.extend(read_rows(block, "internal_count", leaves - 1)?);
        forest.leaf_rows.extend(read_rows(block, "leaf_count", leaves)?);
    } else {
        // LightGBM leaves the count of a single leaf out; nothing divides by it.
        forest.leaf_rows.push(1.0);
    }
    forest.leaves.extend_from_slice(&values);
    forest.trees.push(tree);
    Ok(())
}

/// Numbers of training rows; none when the text has none.
fn read_rows(block: &Block, key: &'static str, count: usize) -> Result<Vec<f64>, Error> {
    let Some(field) = block.get(key) else { return Ok(Vec::new()) };
    let rows: Vec<u32> = field.array(count, "a whole number from 0")?;
    Ok(rows.into_iter().map(f64::from).collect())
}

fn read_nodes(block: &Block, forest: &mut Forest, leaves: usize) -> Result<(), Error> {
    let count = leaves - 1;
    let left: Vec<i32> = block.array("left_child", count, "a whole number")?;
    let right: Vec<i32> = block.array("right_child", count, "a whole number")?;
    let tree = forest.trees.len();
    check_shape(block.require("left_child")?.line, tree, &left, &right)?;

    let feature: Vec<i64> = block.array("split_feature", count, "a whole number")?;
    let threshold: Vec<f64> = block.array("threshold", count, "a number")?;
    let decision: Vec<u8> = match block.get("decision_type") {
        Some(field) => field.array(count, "a whole number from 0 to 255")?,
        None => vec![0; count],
    };
    let gains: Vec<f32> = match block.get("split_gain") {
        Some(field) => field.array(count, "a number")?,
        None => vec![0.0; count],
    };
    let bitsets = read_bitsets(block, &mut forest.bits)?;
    let features = forest.features.len();
    let feature_line = block.require("split_feature")?.line;
    let threshold_line = block.require("threshold")?.line;
    for node in 0..count {
        if !(0..features as i64).contains(&feature[node]) {
            let (field, value) = ("split_feature", feature[node]);
            let (line, limit) = (feature_line, features);
            return Err(Error::OutOfRange { line, tree, field, node, value, limit });
        }
        let at = At { line: threshold_line, tree, node };
        let (threshold, split) = read_split(block, at, decision[node], threshold[node], &bitsets)?;
        forest.nodes.push(Node {
            threshold,
            feature: feature[node] as u32,
            left: left[node],
            right: right[node],
            split,
        });
    }
    forest.gains.extend_from_slice(&gains);
    Ok(())
}

/// Follows the children from the root: everything must be met exactly once. The children's line
/// stands for both arrays.
fn check_shape(line: usize, tree: usize, left: &[i32], right: &[i32]) -> Result<(), Error> {
    let nodes = left.len();
    let mut node_seen = vec![false; nodes];
    let mut leaf_seen = vec![false; nodes + 1];
    let mut open = vec![0_usize];
    let mut met = 1;
    node_seen[0] = true;
    while let Some(node) = open.pop() {
        for (field, child) in [("left_child", left[node]), ("right_child", right[node])] {
            let (seen, index) = match child {
                0.. => (&mut node_seen, child as usize),
                _ => (&mut leaf_seen, !child as usize),
            };
            let limit = seen.len();
            let Some(seen) = seen.get_mut(index) else {
                let value = i64::from(child);
                return Err(Error::OutOfRange { line, tree, field, node, value, limit });
            };
            if std::mem::replace(seen, true) {
                return Err(Error::NotATree { line, tree, child });
            }
            if child >= 0 {
                open.push(index);
                met += 1;
            }
        }
    }
    // As many leaves as nodes plus one, none met twice: all nodes met means all leaves met.
    if met < nodes {
        return Err(Error::Unreached { line, tree, found: met, expected: nodes });
    }
    Ok(())
}

/// Start and length of each bit set of the tree; the words are appended to `bits`.
fn read_bitsets(block: &Block, bits: &mut Vec<u32>) -> Result<Vec<(u32, u32)>, Error> {
    let sets = match block.get("num_cat") {
        Some(field) => field.one::<usize>("a whole number")?,
        None => 0,
    };
    if sets == 0 {
        return Ok(Vec::new());
    }
    let field = block.require("cat_boundaries")?;
    let expected = sets.checked_add(1).ok_or_else(|| value_error(field, "a possible count"))?;
    let bounds: Vec<u32> = field.array(expected, "a whole number")?;
    if bounds[0] != 0 || bounds.windows(2).any(|pair| pair[0] > pair[1]) {
        return Err(value_error(field, "a rising sequence from 0"));
    }
    let words: Vec<u32> = block.array("cat_threshold", bounds[sets] as usize, "a 32-bit word")?;
    let start = u32::try_from(bits.len())
        .ok()
        .filter(|start| start.checked_add(bounds[sets]).is_some())
        .ok_or(Error::TooLarge { line: field.line, what: "categorical bit sets" })?;
    bits.extend_from_slice(&words);
    Ok(bounds.windows(2).map(|pair| (start + pair[0], pair[1] - pair[0])).collect())
}

/// Where a node stands in the text, for messages.
#[derive(Clone, Copy)]
struct At {
    line: usize,
    tree: usize,
    node: usize,
}

/// Decodes `decision_type`: bit 0 categorical, bit 1 missing goes left, bits 2-3 what is missing.
fn read_split(
    block: &Block,
    at: At,
    decision: u8,
    threshold: f64,
    bitsets: &[(u32, u32)],
) -> Result<(f64, Split), Error> {
    const CATEGORICAL: u8 = 1;
    const DEFAULT_LEFT: u8 = 2;
    let missing = decision >> 2;
    if missing > 2 {
        let field = block.require("decision_type")?;
        let value = decision.to_string();
        return Err(value_error(Field { value: &value, ..field }, "a known kind of decision"));
    }
    if decision & CATEGORICAL != 0 {
        let index = threshold as usize;
        let set = bitsets.get(index).filter(|_| threshold == index as f64);
        let Some(&(start, words)) = set else {
            let (line, tree, node) = (at.line, at.tree, at.node);
            let (field, value, limit) = ("threshold", threshold as i64, bitsets.len());
            return Err(Error::OutOfRange { line, tree, field, node, value, limit });
        };
        // A missing category goes right whatever the default says.
        return Ok((threshold, Split::Categorical { start, words }));
    }
    if threshold.is_nan() {
        let field = block.require("threshold")?;
        return Err(value_error(Field { value: "nan", ..field }, "a threshold"));
    }
    let threshold = outside_zero_band(threshold);
    let default_left = decision & DEFAULT_LEFT != 0;
    let (missing_left, missing_band) = match missing {
        // Nothing is missing: LightGBM reads NaN as zero.
        0 => (0.0 <= threshold, -1.0),
        // Zero is missing, and NaN is read as zero.
        1 => (default_left, ZERO_BAND),
        _ => (default_left, -1.0),
    };
    Ok((threshold, Split::Numeric { missing_left, missing_band }))
}

/// LightGBM reads a row's values within the zero band as exact zeros. Moving thresholds out of the
/// band gives the same decisions without touching the values.
fn outside_zero_band(threshold: f64) -> f64 {
    let band = f64::from(ZERO_BAND);
    if (0.0..band).contains(&threshold) {
        band
    } else if (-band..0.0).contains(&threshold) {
        (-band).next_down()
    } else {
        threshold
    }
}
