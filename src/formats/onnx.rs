//! Writes ONNX models (<https://onnx.ai/onnx/repo-docs/IR.html>). The numbers of the fields are those of `onnx.proto3`.

use super::protobuf::Message;

/// The version of the file format, and that of the operators: what ONNX 1.12 (2022) and later read.
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;
/// `TensorProto.DataType.FLOAT`.
const FLOAT: i64 = 1;
/// Bytes of a message at most, in Protocol Buffers' own libraries.
const MOST: usize = (1 << 31) - 1;

/// A parameter of an operator.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A number.
    Float(f32),
    /// An integer.
    Int(i64),
    /// Integers, such as a kernel's height and width.
    Ints(Vec<i64>),
}

#[derive(Debug)]
struct Node {
    op: String,
    inputs: Vec<String>,
    output: String,
    attributes: Vec<(String, Attribute)>,
}

#[derive(Debug)]
struct Tensor {
    name: String,
    dims: Vec<usize>,
    /// Little-endian.
    bytes: Vec<u8>,
}

/// A value that goes in or comes out: its name, and its sizes after the batch dimension, which is free.
#[derive(Debug)]
pub(crate) struct Port<'a> {
    pub(crate) name: &'a str,
    pub(crate) dims: &'a [usize],
}

/// Nodes, each after those whose outputs it takes, and the constants that they take.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
    tensors: Vec<Tensor>,
}

impl Graph {
    /// Adds a node with one output, which has the node's name; returns it. `name` gets a number if it is taken.
    pub(crate) fn node(&mut self, name: &str, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        let mut output = name.to_string();
        for n in 2.. {
            if self.nodes.iter().all(|node| node.output != output) {
                break;
            }
            output = format!("{name}_{n}");
        }
        let inputs = inputs.iter().map(ToString::to_string).collect();
        let attributes = attributes.iter().map(|(k, a)| (k.to_string(), a.clone())).collect();
        self.nodes.push(Node { op: op.into(), inputs, output: output.clone(), attributes });
        output
    }

    /// Adds a constant of f32, row-major; returns its name.
    pub(crate) fn tensor(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        if self.tensors.iter().all(|t| t.name != name) {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            self.tensors.push(Tensor { name: name.into(), dims: dims.to_vec(), bytes });
        }
        name.into()
    }

    /// The file: a model from `input` to the value `last`, which is called `output.name` in it. `about` are pairs of key
    /// and value.
    ///
    /// # Errors
    /// The problem in words, if the file would be too large.
    pub(crate) fn model(
        mut self,
        name: &str,
        input: &Port<'_>,
        last: &str,
        output: &Port<'_>,
        about: &[(&str, String)],
    ) -> Result<Vec<u8>, String> {
        let size: usize = self.tensors.iter().map(|t| t.bytes.len()).sum();
        if size > MOST - (1 << 20) {
            return Err(format!("{} MiB of weights are more than an ONNX file can hold, 2 GiB", size >> 20));
        }
        for node in &mut self.nodes {
            for value in node.inputs.iter_mut().chain([&mut node.output]) {
                if value == last {
                    *value = output.name.into();
                }
            }
        }
        let graph = Message::new()
            .messages(1, self.nodes.iter().map(Node::message))
            .bytes(2, name)
            .messages(5, self.tensors.iter().map(Tensor::message))
            .message(11, input.message())
            .message(12, output.message());
        let pair = |(key, value): &(&str, String)| Message::new().bytes(1, key).bytes(2, value);
        Ok(Message::new()
            .int(1, IR_VERSION)
            .bytes(2, "tilework")
            .bytes(3, env!("CARGO_PKG_VERSION"))
            .message(7, graph)
            .message(8, Message::new().bytes(1, "").int(2, OPSET))
            .messages(14, about.iter().map(pair))
            .finish())
    }
}

impl Node {
    fn message(&self) -> Message {
        let m = self.inputs.iter().fold(Message::new(), |m, input| m.bytes(1, input));
        let m = m.bytes(2, &self.output).bytes(3, &self.output).bytes(4, &self.op);
        m.messages(5, self.attributes.iter().map(|(name, a)| a.message(name)))
    }
}

impl Attribute {
    /// Its name, its value, and which type the value has.
    fn message(&self, name: &str) -> Message {
        let m = Message::new().bytes(1, name);
        match self {
            Attribute::Float(x) => m.float(2, *x).int(20, 1),
            Attribute::Int(i) => m.int(3, *i).int(20, 2),
            Attribute::Ints(list) => list.iter().fold(m, |m, i| m.int(8, *i)).int(20, 7),
        }
    }
}

impl Tensor {
    fn message(&self) -> Message {
        let m = self.dims.iter().fold(Message::new(), |m, d| m.int(1, *d as i64));
        m.int(2, FLOAT).bytes(8, &self.name).bytes(9, &self.bytes)
    }
}

impl Port<'_> {
    fn message(&self) -> Message {
        let sizes = self.dims.iter().map(|d| Message::new().int(1, *d as i64));
        let shape = Message::new().message(1, Message::new().bytes(2, "N")).messages(1, sizes);
        let tensor = Message::new().int(1, FLOAT).message(2, shape);
        Message::new().bytes(1, self.name).message(2, Message::new().message(1, tensor))
    }
}
