//! Networks: layers written as text, models with their parameters, state dicts.

mod layers;
pub mod model;
pub mod params;
pub mod spec;
pub mod state;

pub use layers::{Observer, Sequential};
pub use model::Model;
pub use spec::LayerSpec;
