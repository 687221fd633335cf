//! Networks: layers written as text, models with their parameters, state dicts.
//!
//! In reading order: [`layers`] (one room a layer), [`spec`] (a network as text), [`networks`] (those with a
//! name), `builder` (sizes are inferred), [`model`] (a network with its parameters), [`state`] (PyTorch's names and
//! layouts), [`onnx`] (the same for other programs), `pretrained` (weights to start from, and what stays as it is),
//! `whiten` (a first layer from the images).
//! The parameters' numbers are in [`params`](crate::params).

mod builder;
pub mod layers;
pub mod model;
pub mod networks;
pub mod onnx;
mod phrase;
mod pretrained;
pub mod spec;
pub mod state;
mod whiten;

pub use builder::{Builder, LayerInfo};
pub use layers::{LAYERS, Layer, layer};
pub use model::Model;
pub use pretrained::{Loaded, Pretrained};
pub use spec::LayerSpec;
pub use whiten::WHITEN_IMAGES;
