//! Networks: parameters, layers, and models built from a spec.

pub mod params;
