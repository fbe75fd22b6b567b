//! Both towers as ONNX graphs (opset 17), for other runtimes: tables, pools, standardisation and network,
//! from raw inputs to a vector of length one.
//!
//! ```text
//! user tower   history int64 [n]   rows of items, oldest first; the newest `history_max` are read
//!              codes   int64 [c]   one a column; what is no trained code is absent
//!              dense   float [d]   raw; NaN is absent
//!          ->  vector  float [dim]
//! item tower   item    int64 [1], codes, dense -> vector
//! ```
//! The messages are written as protocol buffers by hand: a dozen of fields (onnx.proto, IR version 8).

use super::mlp::Mlp;
use super::model::{Standard, Towers};

const IR_VERSION: u64 = 8;
const OPSET: u64 = 17;
/// `TensorProto.DataType`.
const FLOAT: u64 = 1;
const INT64: u64 = 7;
/// `AttributeProto.AttributeType`.
const ATTRIBUTE_INT: u64 = 2;
/// Standardised numbers are held within this many deviations.
const DEVIATIONS_MAX: f32 = 10.0;

impl Towers {
    /// The user tower as a file's content; `None` when users' vectors came from elsewhere.
    pub fn user_onnx(&self) -> Option<Vec<u8>> {
        if self.users() > 0 {
            return None;
        }
        let mut graph = Graph::default();
        graph.input("history", INT64, None);
        graph.input("codes", INT64, Some(self.shape.user_codes.len()));
        graph.input("dense", FLOAT, Some(self.shape.user_dense as usize));
        let mut parts = self.pools(&mut graph);
        let codes: Vec<usize> = self.shape.user_codes.iter().map(|&codes| codes as usize).collect();
        parts.extend(self.code_rows(&mut graph, &self.layout.user, &codes));
        parts.extend(standardised(&mut graph, &self.user_standard));
        // How long the history is, between 0 and 1.
        let length = graph.node("Cast", &["read_length"], &[("to", FLOAT)]);
        let one = graph.floats(&[1.0], &[]);
        let more = graph.node("Add", &[&length, &one], &[]);
        let log = graph.node("Log", &[&more], &[]);
        let longest = graph.floats(&[(self.shape.history_max as f32).ln_1p()], &[]);
        let share = graph.node("Div", &[&log, &longest], &[]);
        parts.push(graph.row(&share));
        self.finish(graph, &parts, &self.user, "shortlist user tower")
    }

    /// The item tower as a file's content; `None` when items' vectors came from elsewhere.
    pub fn item_onnx(&self) -> Option<Vec<u8>> {
        if self.users() > 0 {
            return None;
        }
        let mut graph = Graph::default();
        graph.input("item", INT64, Some(1));
        graph.input("codes", INT64, Some(self.shape.item_codes.len()));
        graph.input("dense", FLOAT, Some(self.shape.item_dense as usize));
        let ids: Vec<i64> = self.id_row.iter().map(|&row| i64::from(row)).collect();
        let ids = graph.ints(&ids, &[ids.len()]);
        let row = graph.node("Gather", &[&ids, "item"], &[("axis", 0)]);
        let table = self.table(&mut graph, self.layout.item[0]);
        let mut parts = vec![graph.node("Gather", &[&table, &row], &[("axis", 0)])];
        let codes: Vec<usize> = self.shape.item_codes.iter().map(|&codes| codes as usize).collect();
        parts.extend(self.code_rows(&mut graph, &self.layout.item[1..], &codes));
        parts.extend(standardised(&mut graph, &self.item_standard));
        self.finish(graph, &parts, &self.item, "shortlist item tower")
    }

    /// The pools of the history, each `[1, pool]`, and its length as `read_length`.
    fn pools(&self, graph: &mut Graph) -> Vec<String> {
        let newest = graph.ints(&[-i64::from(self.shape.history_max)], &[1]);
        let end = graph.ints(&[i64::MAX], &[1]);
        let read = graph.node("Slice", &["history", &newest, &end], &[]);
        let mut rows = Vec::new();
        let columns = self.shape.item_codes.len();
        for (position, &table) in self.layout.history.iter().enumerate() {
            let of_item: Vec<i64> = match position {
                0 => self.id_row.iter().map(|&row| i64::from(row)).collect(),
                _ => self.item_code_row[position - 1..]
                    .iter()
                    .step_by(columns)
                    .map(|&row| i64::from(row))
                    .collect(),
            };
            let of_item = graph.ints(&of_item, &[of_item.len()]);
            let row = graph.node("Gather", &[&of_item, &read], &[("axis", 0)]);
            let table = self.table(graph, table);
            rows.push(graph.node("Gather", &[&table, &row], &[("axis", 0)]));
        }
        let rows = graph.concat(&rows);
        let shape = graph.node("Shape", &[&read], &[]);
        graph.named("Squeeze", &[&shape], "read_length");
        let (one, minus_one) = (graph.ints(&[1], &[]), graph.ints(&[-1], &[]));
        let oldest = graph.node("Sub", &["read_length", &one], &[]);
        let ages = graph.node("Range", &[&oldest, &minus_one, &minus_one], &[]);
        let ages = graph.node("Cast", &[&ages], &[("to", FLOAT)]);
        let row_shape = graph.ints(&[1, -1], &[2]);
        let least = graph.floats(&[1e-30], &[]);
        let lives = self.shape.pool_half_lives_events.iter();
        lives
            .map(|life| {
                let decay = graph.floats(&[(-1.0 / life).exp2()], &[]);
                let weights = graph.node("Pow", &[&decay, &ages], &[]);
                let total = graph.node("ReduceSum", &[&weights], &[("keepdims", 0)]);
                let total = graph.node("Max", &[&total, &least], &[]);
                let weights = graph.node("Div", &[&weights, &total], &[]);
                let weights = graph.node("Reshape", &[&weights, &row_shape], &[("allowzero", 0)]);
                graph.node("MatMul", &[&weights, &rows], &[])
            })
            .collect()
    }

    /// The rows of the input `codes`, each `[1, width]`; row 0 is "absent".
    fn code_rows(&self, graph: &mut Graph, tables: &[usize], codes: &[usize]) -> Vec<String> {
        let mut parts = Vec::new();
        for (column, (&table, &count)) in tables.iter().zip(codes).enumerate() {
            let at = graph.ints(&[column as i64], &[1]);
            let code = graph.node("Gather", &["codes", &at], &[("axis", 0)]);
            let (zero, one) = (graph.ints(&[0], &[]), graph.ints(&[1], &[]));
            let end = graph.ints(&[count as i64], &[]);
            let below = graph.node("Less", &[&code, &end], &[]);
            let above = graph.node("GreaterOrEqual", &[&code, &zero], &[]);
            let known = graph.node("And", &[&below, &above], &[]);
            let row = graph.node("Add", &[&code, &one], &[]);
            let row = graph.node("Where", &[&known, &row, &zero], &[]);
            let table = self.table(graph, table);
            parts.push(graph.node("Gather", &[&table, &row], &[("axis", 0)]));
        }
        parts
    }

    fn table(&self, graph: &mut Graph, table: usize) -> String {
        let (rows, dim) = self.layout.tables[table];
        graph.shared_floats(&format!("table_{table}"), &self.tables[table].values, &[rows, dim])
    }

    /// The network over the joined parts.
    fn finish(&self, mut graph: Graph, parts: &[String], mlp: &Mlp, name: &str) -> Option<Vec<u8>> {
        let mut at = graph.concat(parts);
        let last = mlp.sizes.len() - 2;
        for (index, layer) in mlp.layers().enumerate() {
            let weights = graph.floats(layer.weights, &[layer.inputs, layer.outputs]);
            let biases = graph.floats(layer.biases, &[layer.outputs]);
            at = graph.node("Gemm", &[&at, &weights, &biases], &[]);
            if index < last {
                at = graph.node("Relu", &[&at], &[]);
            }
        }
        let unit = graph.node("LpNormalization", &[&at], &[("axis", 1), ("p", 2)]);
        let shape = graph.ints(&[-1], &[1]);
        graph.named("Reshape", &[&unit, &shape], "vector");
        Some(graph.model(name, self.dim()))
    }
}

/// The two numbers of every dense input, `[1, 2 d]`; none without dense inputs.
fn standardised(graph: &mut Graph, standard: &Standard) -> Option<String> {
    let count = standard.mean.len();
    if count == 0 {
        return None;
    }
    let sign = graph.node("Sign", &["dense"], &[]);
    let size = graph.node("Abs", &["dense"], &[]);
    let one = graph.floats(&[1.0], &[]);
    let size = graph.node("Add", &[&size, &one], &[]);
    let log = graph.node("Log", &[&size], &[]);
    let value = graph.node("Mul", &[&sign, &log], &[]);
    let mean = graph.floats(&standard.mean, &[count]);
    let value = graph.node("Sub", &[&value, &mean], &[]);
    let inverse = graph.floats(&standard.inverse, &[count]);
    let value = graph.node("Mul", &[&value, &inverse], &[]);
    // NaN and infinities less themselves are NaN.
    let nothing = graph.node("Sub", &[&value, &value], &[]);
    let absent = graph.node("IsNaN", &[&nothing], &[]);
    let (low, high) = (graph.floats(&[-DEVIATIONS_MAX], &[]), graph.floats(&[DEVIATIONS_MAX], &[]));
    let held = graph.node("Clip", &[&value, &low, &high], &[]);
    let zero = graph.floats(&[0.0], &[]);
    let held = graph.node("Where", &[&absent, &zero, &held], &[]);
    let flag = graph.node("Cast", &[&absent], &[("to", FLOAT)]);
    let axis = graph.ints(&[1], &[1]);
    let pair = [held, flag].map(|column| graph.node("Unsqueeze", &[&column, &axis], &[]));
    let pair = graph.concat(&pair);
    Some(graph.row(&pair))
}

/// A graph that is being written.
#[derive(Default)]
struct Graph {
    nodes: Message,
    constants: Message,
    inputs: Message,
    names: usize,
    shared: Vec<String>,
}

impl Graph {
    fn name(&mut self) -> String {
        self.names += 1;
        format!("t{}", self.names)
    }

    /// Adds an operation; the name of its output.
    fn node(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, u64)]) -> String {
        let name = self.name();
        self.add(op, inputs, attributes, &name);
        name
    }

    fn named(&mut self, op: &str, inputs: &[&str], output: &str) {
        self.add(op, inputs, &[], output);
    }

    fn add(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, u64)], output: &str) {
        let mut node = Message::default();
        inputs.iter().for_each(|input| node.text(1, input));
        node.text(2, output);
        node.text(4, op);
        for (name, value) in attributes {
            let mut attribute = Message::default();
            attribute.text(1, name);
            attribute.number(3, *value);
            attribute.number(20, ATTRIBUTE_INT);
            node.message(5, &attribute);
        }
        self.nodes.message(1, &node);
    }

    /// Columns side by side, along axis 1.
    fn concat(&mut self, parts: &[String]) -> String {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.node("Concat", &parts, &[("axis", 1)])
    }

    /// The same numbers as one row.
    fn row(&mut self, name: &str) -> String {
        let shape = self.ints(&[1, -1], &[2]);
        self.node("Reshape", &[name, &shape], &[])
    }

    fn floats(&mut self, values: &[f32], shape: &[usize]) -> String {
        let name = self.name();
        self.constant(&name, FLOAT, bytes(values, |x| x.to_le_bytes()), shape);
        name
    }

    /// As [`Graph::floats`], written once under this name.
    fn shared_floats(&mut self, name: &str, values: &[f32], shape: &[usize]) -> String {
        if !self.shared.iter().any(|known| known == name) {
            self.shared.push(name.to_owned());
            self.constant(name, FLOAT, bytes(values, |x| x.to_le_bytes()), shape);
        }
        name.to_owned()
    }

    fn ints(&mut self, values: &[i64], shape: &[usize]) -> String {
        let name = self.name();
        self.constant(&name, INT64, bytes(values, |x| x.to_le_bytes()), shape);
        name
    }

    fn constant(&mut self, name: &str, kind: u64, bytes: Vec<u8>, shape: &[usize]) {
        let mut tensor = Message::default();
        shape.iter().for_each(|&size| tensor.number(1, size as u64));
        tensor.number(2, kind);
        tensor.text(8, name);
        tensor.bytes(9, &bytes);
        self.constants.message(5, &tensor);
    }

    /// An input of one axis; `None` leaves its length open.
    fn input(&mut self, name: &str, kind: u64, length: Option<usize>) {
        self.inputs.message(11, &value_info(name, kind, length));
    }

    fn model(self, name: &str, dim: usize) -> Vec<u8> {
        let mut graph = Message::default();
        graph.append(&self.nodes);
        graph.text(2, name);
        graph.append(&self.constants);
        graph.append(&self.inputs);
        graph.message(12, &value_info("vector", FLOAT, Some(dim)));
        let mut opset = Message::default();
        opset.text(1, "");
        opset.number(2, OPSET);
        let mut model = Message::default();
        model.number(1, IR_VERSION);
        model.text(2, "shortlist");
        model.message(7, &graph);
        model.message(8, &opset);
        model.0
    }
}

fn value_info(name: &str, kind: u64, length: Option<usize>) -> Message {
    let mut axis = Message::default();
    match length {
        Some(length) => axis.number(1, length as u64),
        None => axis.text(2, "n"),
    }
    let (mut shape, mut tensor, mut of, mut info) =
        (Message::default(), Message::default(), Message::default(), Message::default());
    shape.message(1, &axis);
    tensor.number(1, kind);
    tensor.message(2, &shape);
    of.message(1, &tensor);
    info.text(1, name);
    info.message(2, &of);
    info
}

fn bytes<T: Copy, const N: usize>(values: &[T], of: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| of(value)).collect()
}

/// Fields of a protocol buffer, in the order in which they are added.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, field: u64, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    fn message(&mut self, field: u64, value: &Message) {
        self.bytes(field, &value.0);
    }

    fn append(&mut self, other: &Message) {
        self.0.extend_from_slice(&other.0);
    }
}
