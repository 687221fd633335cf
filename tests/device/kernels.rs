//! Rungs 3 and 5 of the ladder of truth: every kernel, in every case of its op, against the CPU.
//!
//! On the emulated device each case runs with its threads in three orders, whose bits must be equal,
//! and once under the checker. With `TILEWORK_DEVICE=cuda` the same cases run on the GPU.

use crate::under::Under;
use tilework::DType;
use tilework::ops::parity::{self, Expected, Results};
use tilework::ops::{Case, Draw, ROOMS, Room};

/// Cases drawn at random for each op, beside the chosen ones.
const RANDOM_CASES: u64 = 6;

fn bits(values: &Results) -> Vec<u64> {
    values.iter().flat_map(|(_, v)| v.to_f64().unwrap()).map(f64::to_bits).collect()
}

/// The largest difference in all cases of an op, in roundings.
fn check(room: &Room, dtype: DType, under: &Under) -> f64 {
    let mut worst = 0f64;
    let chosen = (room.cases)().into_iter().filter(|c| !c.bench);
    let random = (0..RANDOM_CASES).map(|seed| (room.random_case)(&mut Draw::new(100 + seed)));
    let holds = |c: &Case| dtype == DType::F32 || c.half;
    for (seed, case) in chosen.chain(random).enumerate().filter(|(_, c)| holds(c)) {
        let want = Expected::of(room, &case, dtype, seed as u64).unwrap();
        let mut first: Option<Vec<u64>> = None;
        for (name, device) in &under.devices {
            let what = format!("{} {} {dtype} ({name})", room.name, case.name);
            let got = parity::run(&case, device, dtype, seed as u64).unwrap_or_else(|e| panic!("{what}: {e}"));
            let d = want.compare(&got).unwrap();
            assert!(d.error <= 1.0, "{what}: {d:?}");
            worst = worst.max(d.roundings);
            let bits = bits(&got);
            let same = first.get_or_insert_with(|| bits.clone());
            assert!(*same == bits, "{what}: other bits than another order of threads");
        }
    }
    worst
}

/// How far a run came that is cut: under compute-sanitizer it may take long.
fn check_all(dtype: DType) {
    let Some(under) = Under::new() else { return };
    for room in ROOMS {
        println!("checked {} {dtype}: at most {:.1} roundings", room.name, check(room, dtype, &under));
    }
}

#[test]
fn every_kernel_against_the_cpu() {
    check_all(DType::F32);
}

#[test]
fn every_kernel_of_two_bytes_against_the_cpu() {
    for dtype in [DType::F16, DType::BF16] {
        check_all(dtype);
    }
}
