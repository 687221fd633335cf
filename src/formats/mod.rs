//! What other programs read and write.

pub(crate) mod file;
pub(crate) mod onnx;
pub(crate) mod pickle;
pub(crate) mod protobuf;
pub(crate) mod tensorboard;
pub(crate) mod torch;
mod zip;
