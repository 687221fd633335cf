//! The engine on the CPU, through its public interface, and the layout of its sources. One program, which is
//! quicker to build than one a file; `cargo test --test engine gradients::` runs a part.

mod determinism;
mod examples;
mod gradients;
mod house;
mod networks;
mod parity;
mod rooms;
mod trainer;
