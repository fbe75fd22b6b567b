//! Trees over byte columns, and the list of operations that is left of them for one request.
//!
//! A split on a constant column is decided once a request, and only what stays reachable becomes
//! operations: subtrees behind a decided split are never visited. The children of a node are
//! visited in a fixed order, the one that needs more planes first, so that the planes a tree needs
//! grow with the logarithm of its leaves, pruned or not.
//!
//! ```text
//! planes    0 .. temporaries | results of up to 8 trees | columns that vary
//! ```
//! Invariant: an operation reads only planes that earlier operations of the same tree, or the
//! filling of the columns, have written. This module does not know features.

use super::Forest;
use super::bytes::{Columns, Question};
use crate::kernels::forest::{LEAF_MAX, Op, Operand, Set, TOGETHER, Test, passes};

/// One split. A child `>= 0` is a node, a negative one the leaf `!child`.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// Visited first.
    first: i32,
    second: i32,
    test: Test,
    column: u16,
    /// Bit 0: `first` is the right child. Above it: how many further columns and sets follow.
    kind: u16,
}

impl Node {
    #[inline]
    fn first_is_right(&self) -> bool {
        self.kind & 1 == 1
    }

    #[inline]
    fn more_pages(&self) -> u16 {
        self.kind >> 1
    }
}

/// A forest whose splits read byte columns.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    roots: Vec<i32>,
    nodes: Vec<Node>,
    leaves: Vec<f64>,
    sets: Vec<Set>,
    /// The first columns are constant in a request.
    constants: u16,
    /// Planes for subtrees that wait for their sibling, and one to collect the pages of a set in.
    temporaries: u16,
    depth: usize,
}

/// What is left of a forest when the constants are known. Filled by [`Compiled::specialise`].
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub ops: Vec<Op>,
    /// Leaf values of all trees; 256 zeros at the end, so that any byte numbers a value.
    pub leaves: Vec<f64>,
    pub batches: Vec<Batch>,
    waiting: Vec<Waiting>,
}

/// Trees that run together: up to [`TOGETHER`] of one byte, or one of more than 256 leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    /// End of its operations; they start where those of the batch before end.
    pub ops_end: usize,
    pub trees: usize,
    /// First leaf value of each tree.
    pub leaves: [usize; TOGETHER],
    /// Bytes of a leaf number.
    pub bytes: u32,
}

/// A node whose first child is done, or not yet (`None`).
#[derive(Clone, Copy, Debug)]
struct Waiting {
    node: u32,
    first: Option<Operand>,
}

#[cfg(test)]
impl Program {
    pub fn capacity(&self) -> usize {
        let all = [self.leaves.capacity(), self.batches.capacity(), self.waiting.capacity()];
        self.ops.capacity() + all.iter().sum::<usize>()
    }
}

/// Padding of [`Program::leaves`].
const PADDING: usize = 256;

impl Compiled {
    /// Compiles a forest; `constants` counts the leading constant columns. `None` when a count
    /// exceeds what an operation can name.
    pub fn new(forest: &Forest, columns: &Columns, constants: usize) -> Option<Self> {
        let mut compiled = Self {
            roots: Vec::with_capacity(forest.trees.len()),
            nodes: Vec::with_capacity(forest.nodes.len()),
            leaves: forest.leaves.clone(),
            sets: Vec::new(),
            constants: u16::try_from(constants).ok()?,
            temporaries: 1,
            depth: 1,
        };
        i32::try_from(forest.nodes.len().max(forest.leaves.len())).ok()?;
        for tree in &forest.trees {
            if tree.leaves > LEAF_MAX as usize {
                return None;
            }
            let nodes = &forest.nodes[tree.nodes_start..][..tree.leaves - 1];
            let base = compiled.nodes.len() as i32;
            let child = |child: i32| match child {
                0.. => base + child,
                _ => !(!child + tree.leaves_start as i32),
            };
            compiled.roots.push(child(if nodes.is_empty() { !0 } else { 0 }));
            let shape = Shape::of(nodes);
            compiled.temporaries = compiled.temporaries.max(shape.planes + 1);
            compiled.depth = compiled.depth.max(shape.depth);
            for (node, &right_first) in nodes.iter().zip(&shape.right_first) {
                let (test, column, more) = compiled.test(columns.question(forest, node))?;
                let (left, right) = (child(node.left), child(node.right));
                let (first, second) = if right_first { (right, left) } else { (left, right) };
                let kind = more.checked_mul(2)? | u16::from(right_first);
                compiled.nodes.push(Node { first, second, test, column, kind });
            }
        }
        Some(compiled)
    }

    /// Test, first column and number of further columns of a question.
    fn test(&mut self, question: Question) -> Option<(Test, u16, u16)> {
        match question {
            Question::Below { column, bound, shift } => {
                Some((Test::below(bound, shift), u16::try_from(column).ok()?, 0))
            }
            Question::InSets { column, sets } => {
                let first = u32::try_from(self.sets.len()).ok().filter(|&at| at < 1 << 31)?;
                self.sets.extend_from_slice(&sets);
                let more = u16::try_from(sets.len() - 1).ok()?;
                Some((Test::in_set(first), u16::try_from(column).ok()?, more))
            }
        }
    }

    /// Room for the program of any request.
    pub fn program(&self) -> Program {
        let pages: usize = self.nodes.iter().map(|node| 1 + usize::from(node.more_pages())).sum();
        Program {
            // A node of several pages takes one operation more; a tree without nodes takes one.
            ops: Vec::with_capacity(pages + self.nodes.len() + self.roots.len()),
            leaves: Vec::with_capacity(self.leaves.len() + PADDING),
            batches: Vec::with_capacity(self.roots.len()),
            waiting: Vec::with_capacity(self.depth + 1),
        }
    }

    /// The sets of categories that tests name.
    pub fn sets(&self) -> &[Set] {
        &self.sets
    }

    /// The plane of the first result.
    pub fn results(&self) -> usize {
        usize::from(self.temporaries)
    }

    /// The plane of the first column that is not constant.
    pub fn first_column(&self) -> usize {
        self.results() + TOGETHER
    }

    /// Writes the operations that remain under the bytes of the constant columns.
    pub fn specialise(&self, constants: &[u8], program: &mut Program) {
        assert_eq!(constants.len(), usize::from(self.constants), "one byte a constant column");
        program.ops.clear();
        program.leaves.clear();
        program.batches.clear();
        let mut open = Batch { ops_end: 0, trees: 0, leaves: [0; TOGETHER], bytes: 1 };
        for &root in &self.roots {
            let start = program.leaves.len();
            let result = self.emit(root, start, constants, program);
            if !result.is_plane() {
                let (test, target) = (Test::below(0, 0), 0);
                program.ops.push(Op { left: result, right: result, test, column: 0, target });
            }
            let last = program.ops.len() - 1;
            let leaves = program.leaves.len() - start;
            if leaves > 256 {
                if open.trees > 0 {
                    program.batches.push(open);
                }
                let bytes = (leaves - 1).ilog2() / 8 + 1;
                program.ops[last].target = self.temporaries;
                let mut alone = Batch { ops_end: last + 1, trees: 1, bytes, ..open };
                alone.leaves[0] = start;
                program.batches.push(alone);
                (open.trees, open.ops_end) = (0, last + 1);
                continue;
            }
            program.ops[last].target = self.temporaries + open.trees as u16;
            open.leaves[open.trees] = start;
            open.trees += 1;
            open.ops_end = last + 1;
            if open.trees == TOGETHER {
                program.batches.push(open);
                open.trees = 0;
            }
        }
        if open.trees > 0 {
            program.batches.push(open);
        }
        program.leaves.extend_from_slice(&[0.0; PADDING]);
    }

    /// Appends one tree's operations, children before parents; leaves are numbered as they are
    /// met.
    fn emit(&self, root: i32, leaves: usize, constants: &[u8], program: &mut Program) -> Operand {
        let mut at = root;
        let mut planes = 0_u16;
        program.waiting.clear();
        loop {
            let mut done = loop {
                if at < 0 {
                    let number = program.leaves.len() - leaves;
                    program.leaves.push(self.leaves[!at as usize]);
                    break Operand::leaf(number as u32);
                }
                let node = &self.nodes[at as usize];
                if node.column >= self.constants {
                    program.waiting.push(Waiting { node: at as u32, first: None });
                    at = node.first;
                } else {
                    let first = self.goes_left(node, constants) != node.first_is_right();
                    at = if first { node.first } else { node.second };
                }
            };
            loop {
                let Some(waiting) = program.waiting.last_mut() else { return done };
                let node = &self.nodes[waiting.node as usize];
                let Some(first) = waiting.first else {
                    waiting.first = Some(done);
                    at = node.second;
                    break;
                };
                program.waiting.pop();
                // The planes of the children are the last ones taken; the result replaces them.
                let target = planes - u16::from(first.is_plane()) - u16::from(done.is_plane());
                let (left, right) =
                    if node.first_is_right() { (done, first) } else { (first, done) };
                self.push(node, [left, right], target, planes, &mut program.ops);
                planes = target + 1;
                done = Operand::plane(target);
            }
        }
    }

    /// The decision of a node on a constant column.
    #[inline]
    fn goes_left(&self, node: &Node, constants: &[u8]) -> bool {
        let column = usize::from(node.column);
        if node.more_pages() == 0 {
            return passes(node.test, &self.sets, constants[column]);
        }
        (0..=node.more_pages()).any(|page| {
            passes(node.test.next(page), &self.sets, constants[column + usize::from(page)])
        })
    }

    /// The operations of a node. A set of several pages is collected first: 0 in the rows that are
    /// in one of them.
    #[inline]
    fn push(&self, node: &Node, sides: [Operand; 2], target: u16, free: u16, ops: &mut Vec<Op>) {
        const IN: Operand = Operand::leaf(0);
        /// A 1 in every byte of the number.
        const OUT: Operand = Operand::leaf(0x01_01_01);
        let [left, right] = sides;
        let column = |page: u16| self.first_column() as u16 + node.column - self.constants + page;
        if node.more_pages() == 0 {
            ops.push(Op { left, right, test: node.test, column: column(0), target });
            return;
        }
        for page in 0..=node.more_pages() {
            let right = if page == 0 { OUT } else { Operand::plane(free) };
            let (test, column) = (node.test.next(page), column(page));
            ops.push(Op { left: IN, right, test, column, target: free });
        }
        ops.push(Op { left, right, test: Test::below(1, 0), column: free, target });
    }
}

/// The order of visits in a tree, and what it costs.
struct Shape {
    right_first: Vec<bool>,
    planes: u16,
    depth: usize,
}

impl Shape {
    fn of(nodes: &[super::Node]) -> Self {
        let mut shape = Self { right_first: vec![false; nodes.len()], planes: 1, depth: 1 };
        // Parents before children; the planes that each node needs come from the end.
        let mut order = Vec::with_capacity(nodes.len());
        let mut open = if nodes.is_empty() { Vec::new() } else { vec![(0_usize, 1_usize)] };
        while let Some((at, depth)) = open.pop() {
            order.push(at);
            shape.depth = shape.depth.max(depth);
            let children = [nodes[at].left, nodes[at].right];
            open.extend(children.iter().filter(|&&c| c >= 0).map(|&c| (c as usize, depth + 1)));
        }
        let mut needs = vec![0_u16; nodes.len()];
        for &at in order.iter().rev() {
            let need = |child: i32| if child >= 0 { needs[child as usize] } else { 0 };
            let (left, right) = (need(nodes[at].left), need(nodes[at].right));
            shape.right_first[at] = right > left;
            let (more, less) = (left.max(right), left.min(right));
            needs[at] = more.max(less + u16::from(more > 0)).max(1);
            shape.planes = shape.planes.max(needs[at]);
        }
        shape
    }
}
