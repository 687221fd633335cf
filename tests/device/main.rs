//! What runs on a device: on the emulated one, or with `TILEWORK_DEVICE=cuda` on a GPU. One program, which is
//! quicker to build than one a file; `cargo test --test device kernels::` runs a part.

mod clusters;
mod fused;
mod goldens;
mod half;
mod kernels;
mod kernels_beyond;
mod pools;
mod precision;
mod recorded;
mod rest;
mod training;
mod under;
mod wgmma;

// What only the emulated device can show: its trace, and memory of any size. With `TILEWORK_DEVICE=cuda` these
// tests are skipped.
#[cfg(tilework_emulator)]
mod accesses;
#[cfg(tilework_emulator)]
mod memory;

#[cfg(not(tilework_emulator))]
#[test]
fn what_only_the_emulated_device_can_show() {
    under::looks_inside();
}
