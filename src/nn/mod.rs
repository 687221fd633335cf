//! Networks: layers written as text, models with their parameters, state dicts.
//!
//! In reading order: [`spec`] (a layer as a phrase), [`model`] (phrases and an input size become
//! layers with inferred sizes), `layers` (the forward pass), [`state`] (PyTorch's names and layouts).
//! The parameters' numbers are in [`params`](crate::params).

mod layers;
pub mod model;
pub mod spec;
pub mod state;

pub use layers::{Observer, Sequential};
pub use model::Model;
pub use spec::LayerSpec;
