//! Tilework
pub mod autograd;
pub mod cli;
pub mod data;
pub mod device;
pub mod dtype;
pub mod error;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod recipes;
pub mod rng;
pub mod shape;
pub mod tensor;
pub mod train;

pub use autograd::{Ctx, Var};
pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Result};
pub use shape::Shape;
pub use tensor::Tensor;
