//! Rungs 3 and 5 of the ladder of truth: every kernel, in every case of its op, against the CPU.
//!
//! On the emulated device each case runs with its threads in three orders, whose bits must be equal,
//! and once under the checker. With `TILEWORK_DEVICE=cuda` the same cases run on the GPU.

mod device;

use device::Under;
use tilework::DType;
use tilework::ops::parity::{self, Expected, Results};
use tilework::ops::{Draw, ROOMS, Room};

/// Cases drawn at random for each op, beside the chosen ones.
const RANDOM_CASES: u64 = 6;

fn bits(values: &Results) -> Vec<u64> {
    values.iter().flat_map(|(_, v)| v.iter().map(|x| x.to_bits())).collect()
}

/// The largest difference.
fn check(room: &Room, under: &Under) -> f64 {
    let mut worst = 0f64;
    let chosen = (room.cases)().into_iter().filter(|c| !c.bench);
    let random = (0..RANDOM_CASES).map(|seed| (room.random_case)(&mut Draw::new(100 + seed)));
    for (seed, case) in chosen.chain(random).enumerate() {
        let want = Expected::of(&case, seed as u64).unwrap();
        let mut first: Option<Vec<u64>> = None;
        for (name, device) in &under.devices {
            let got = parity::run(&case, device, DType::F32, seed as u64)
                .unwrap_or_else(|e| panic!("{} {} ({name}): {e}", room.name, case.name));
            let d = want.compare(&got);
            worst = worst.max(d.error);
            assert!(
                d.error <= parity::tolerance(room.name),
                "{} {} ({name}): {}[{}] is {}, the CPU has {}: a difference of {:.1} roundings",
                room.name,
                case.name,
                d.what,
                d.at,
                d.got,
                d.want,
                d.error
            );
            let bits = bits(&got);
            let same = first.get_or_insert_with(|| bits.clone());
            assert!(*same == bits, "{} {}: other bits with {name}", room.name, case.name);
        }
    }
    worst
}

#[test]
fn every_kernel_against_the_cpu() {
    let Some(under) = Under::new() else { return };
    for room in ROOMS {
        let worst = check(room, &under);
        // How far a run came that is cut: under compute-sanitizer it may take long.
        println!("checked {}: at most {worst:.1} roundings", room.name);
    }
}
