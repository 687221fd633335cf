//! Rungs 3 and 5 of the ladder of truth: every kernel, in every case of its op, against the CPU.
//!
//! On the emulated device each case runs with its threads in three orders, whose bits must be equal,
//! the last time under the checker. With `TILEWORK_DEVICE=cuda` the same cases run on the GPU.

use crate::under::{Under, hold};
use tilework::DType;
use tilework::ops::parity::Terms;
use tilework::ops::{Draw, ROOMS, Room};

/// Cases drawn at random for each op, beside the chosen ones.
const RANDOM_CASES: u64 = 6;

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// The largest difference in all cases of an op, in roundings, for each type.
fn check(room: &Room, under: &Under) -> [f64; 3] {
    let mut worst = [0f64; 3];
    let chosen = (room.cases)().into_iter().filter(|c| !c.bench);
    let random = (0..RANDOM_CASES).map(|seed| (room.random_case)(&mut Draw::new(100 + seed)));
    for (seed, case) in chosen.chain(random).enumerate() {
        let terms = Terms::of(room, &case, seed as u64).unwrap();
        for (dtype, worst) in TYPES.into_iter().zip(&mut worst).filter(|(d, _)| *d == DType::F32 || case.half) {
            let (what, want) = (format!("{} {}", room.name, case.name), terms.expected(dtype).unwrap());
            *worst = worst.max(hold(&what, &case, dtype, seed as u64, &want, &under.devices));
        }
    }
    worst
}

/// Every other op, in two tests that run side by side.
fn check_all(first: usize) {
    let Some(under) = Under::new() else { return };
    for room in ROOMS.iter().skip(first).step_by(2) {
        let [f32, f16, bf16] = check(room, &under);
        // How far a run came that is cut.
        println!("checked {}: at most {f32:.1} roundings in f32, {f16:.1} in f16, {bf16:.1} in bf16", room.name);
    }
}

#[test]
fn every_kernel_against_the_cpu() {
    check_all(0);
}

#[test]
fn every_other_kernel_against_the_cpu() {
    check_all(1);
}
