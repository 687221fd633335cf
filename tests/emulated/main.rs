//! What only the emulated device can show: its trace, and memory of any size. With
//! `TILEWORK_DEVICE=cuda`, and in a program built without that device, these tests are skipped.

#[path = "../device/mod.rs"]
mod device;

#[cfg(tilework_emulator)]
mod accesses;
#[cfg(tilework_emulator)]
mod memory;

#[cfg(not(tilework_emulator))]
#[test]
fn all_of_it() {
    device::looks_inside();
}
