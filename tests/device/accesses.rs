//! How many bytes kernels move with one access, as the emulated device's trace tells it.

use crate::under;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tilework::device::cuda::CudaOptions;
use tilework::device::emulator::{self, Action, Follow, TraceEvent, TraceOptions, Traced};
use tilework::ops::{ROOMS, parity};
use tilework::{DType, Device};

/// What the first block of a kernel does in an op's case, named by how it begins.
fn trace(room: &str, start: &str, kernel: &str, dtype: DType) -> Vec<TraceEvent> {
    let room = ROOMS.iter().find(|r| r.name == room).unwrap();
    let case = (room.cases)().into_iter().find(|c| c.name.starts_with(start)).unwrap();
    let traced = Arc::new(Mutex::new(Traced::default()));
    let follow = Follow { block: [0; 3], threads: 0..256 };
    let trace = TraceOptions { kernel: kernel.into(), follow, traced: traced.clone() };
    let how = emulator::EmulatorOptions { trace: Some(trace), ..emulator::EmulatorOptions::default() };
    parity::run(&case, &Device::emulated_with(CudaOptions::default(), how).unwrap(), dtype, 0).unwrap();
    let traced = traced.lock().unwrap();
    traced.events.clone()
}

/// Kernels that move several numbers with one access do so wherever memory and sizes allow.
#[test]
fn accesses_are_wide() {
    if !under::looks_inside() {
        return;
    }
    // A room, the start of its case's name, a kernel, what it reads or writes together, and how many words that are, of f32 and
    // of two bytes: all by fours, but elements of two bytes by eights where each is treated alike, and 8 bytes where twice as
    // many would not fit the registers, or make half as many blocks of a tensor of few rows.
    type Wide<'a> = (&'a str, &'a str, &'a str, &'a [&'a str], [usize; 2]);
    let all: [Wide<'_>; 12] = [
        ("add", "[3, 15", "add_fwd", &["a", "b", "y"], [4, 4]),
        ("relu", "[3, 15", "relu_fwd", &["x", "y"], [4, 4]),
        ("relu", "[3, 15", "relu_bwd", &["y", "g"], [4, 4]),
        ("dropout", "[3, 77]", "dropout_apply", &["x", "y"], [4, 2]),
        ("max_pool2d", "[1, 9, 8, 16]", "max_pool2d_fwd", &["x", "y"], [4, 4]),
        ("max_pool2d", "[1, 9, 8, 16]", "max_pool2d_bwd", &["gy", "gx"], [4, 4]),
        ("batch_norm2d", "[1, 683, 3, 8]", "batch_norm2d_fwd_part", &["x"], [4, 4]),
        ("batch_norm2d", "[3, 7, 5, 64] Eval", "batch_norm2d_fwd", &["x", "y"], [4, 2]),
        ("batch_norm2d", "[3, 7, 5, 64] Eval", "batch_norm2d_bwd_part", &["x", "gy"], [4, 2]),
        ("batch_norm2d", "[3, 7, 5, 64] Eval", "batch_norm2d_bwd_input", &["x", "gy", "gx"], [4, 2]),
        ("batch_norm2d", "[3, 7, 5, 64] Train", "batch_norm2d_whole_fwd", &["x", "y"], [4, 2]),
        ("batch_norm2d", "[3, 7, 5, 64] Train", "batch_norm2d_whole_bwd", &["x", "gy", "gx"], [2, 2]),
    ];
    for ((room, start, kernel, places, [float, half]), dtype) in
        all.into_iter().flat_map(|a| [DType::F32, DType::F16, DType::BF16].map(|d| (a, d)))
    {
        let (words, left) = if dtype == DType::F32 { (float, 6) } else { (half, 14) };
        let events = trace(room, start, kernel, dtype);
        for wanted in places {
            let sizes = events.iter().filter_map(|e| match &e.action {
                Action::Read(place, v) | Action::Write(place, v) if place.starts_with(&format!("{wanted}[")) => {
                    // The trace has no words for two bytes.
                    Some(v.as_ref().map_or(1, |v| v.split(' ').count()))
                }
                _ => None,
            });
            let (wide, alone): (Vec<usize>, Vec<usize>) = sizes.partition(|&size| size == words);
            // What is left over is less than one access, read and written.
            let (wide, alone) = (wide.len(), alone.len());
            assert!(
                wide > 0 && alone <= left,
                "{kernel} of {start} {dtype}: {wanted} moves {wide} times by {words} words, {alone} times otherwise"
            );
        }
    }
}

/// The elements that an access moves, from the first to behind the last: of `x[4..7]` 4 and 8, of `x[4]` 4 and 5.
fn elements(action: &Action) -> Option<(usize, usize)> {
    let (Action::Read(place, _) | Action::Write(place, _)) = action else { return None };
    let within = place.split(['[', ']']).nth(1)?;
    let (first, last) = within.split_once("..").unwrap_or((within, within));
    Some((first.parse().ok()?, last.parse::<usize>().ok()? + 1))
}

/// The matrix products load and store by fours too: with `load` and `store` of four.cuh, which the host's compiler may take
/// apart. Then a thread moves the four one after the other, and the source line tells, where the program has it: a bundle's
/// has been stripped.
#[test]
fn products_move_by_fours() {
    if !under::looks_inside() {
        return;
    }
    let all: [(&str, &str, &str, &[&str]); 6] = [
        ("linear", "[5, 24]", "linear_fwd", &["x", "w", "y"]),
        ("linear", "[5, 24]", "linear_bwd_x", &["gy", "w", "gx"]),
        ("linear", "[5, 24]", "linear_bwd_w", &["gy", "x", "gw"]),
        ("conv2d", "[2, 5, 6, 4]", "conv2d_fwd", &["x", "w", "y"]),
        ("conv2d", "[2, 5, 6, 4]", "conv2d_bwd_x", &["gy", "w", "gx"]),
        ("conv2d", "[2, 5, 6, 4]", "conv2d_bwd_w", &["gy", "x", "gw"]),
    ];
    for (room, start, kernel, places) in all {
        let events = trace(room, start, kernel, DType::F32);
        for wanted in places {
            let of_it = events.iter().filter(|e| match &e.action {
                Action::Read(place, _) => place.starts_with(&format!("{wanted}[")),
                // With splits along K the sums, the last of the places, go to partial results first.
                Action::Write(place, _) => {
                    place.starts_with(&format!("{wanted}["))
                        || places.ends_with(&[wanted]) && place.starts_with("partial[")
                }
                _ => false,
            });
            let of_it: Vec<&TraceEvent> = of_it.collect();
            assert!(!of_it.is_empty(), "{kernel} does not touch {wanted}");
            let lines: Vec<_> = of_it.iter().filter_map(|e| e.at.as_ref()).collect();
            assert!(!cfg!(debug_assertions) || lines.len() == of_it.len(), "{kernel}: {wanted} without source lines");
            let alone = lines.iter().filter(|at| at.file != "kernels/four.cuh").count();
            assert_eq!(alone, 0, "{kernel}: {wanted} is moved one by one, {alone} of {} times", of_it.len());
            // Where each thread's last access ended.
            let mut ends: BTreeMap<[u32; 3], usize> = BTreeMap::new();
            for event in of_it {
                let (first, words) = elements(&event.action).unwrap();
                let end = ends.entry(event.thread).or_default();
                assert!(
                    first == *end || end.is_multiple_of(4) && first.is_multiple_of(4),
                    "{kernel}: {wanted}, {event}"
                );
                *end = first + words;
            }
            assert!(ends.values().all(|end| end.is_multiple_of(4)), "{kernel}: {wanted} ends within four");
        }
    }
}
