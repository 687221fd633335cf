//! How many bytes kernels move with one access, as the emulated device's trace tells it.

use crate::device;
use std::sync::{Arc, Mutex};
use tilework::device::cuda::CudaOptions;
use tilework::device::emulator::{self, Action, Event, Follow, TraceOptions, Traced};
use tilework::ops::{ROOMS, parity};
use tilework::{DType, Device};

/// What the first block of a kernel does in an op's case, named by how it begins.
fn trace(room: &str, start: &str, kernel: &str) -> Vec<Event> {
    let room = ROOMS.iter().find(|r| r.name == room).unwrap();
    let case = (room.cases)().into_iter().find(|c| c.name.starts_with(start)).unwrap();
    let traced = Arc::new(Mutex::new(Traced::default()));
    let follow = Follow { block: [0; 3], threads: 0..256 };
    let trace = TraceOptions { kernel: kernel.into(), follow, traced: traced.clone() };
    let how = emulator::EmulatorOptions { trace: Some(trace), ..emulator::EmulatorOptions::default() };
    parity::run(&case, &Device::emulated_with(CudaOptions::default(), how).unwrap(), DType::F32, 0).unwrap();
    let traced = traced.lock().unwrap();
    traced.events.clone()
}

/// Kernels that move four numbers with one access do so wherever memory and sizes allow.
#[test]
fn accesses_are_wide() {
    if !device::looks_inside() {
        return;
    }
    // A room, the start of its case's name, a kernel, and what it reads or writes by fours.
    let all: [(&str, &str, &str, &[&str]); 8] = [
        ("add", "[3, 15", "add_fwd", &["a", "b", "y"]),
        ("relu", "[3, 15", "relu_fwd", &["x", "y"]),
        ("relu", "[3, 15", "relu_bwd", &["y", "g"]),
        ("dropout", "[3, 77]", "dropout_apply", &["x", "y"]),
        ("batch_norm2d", "[3, 7, 5, 64]", "batch_norm2d_fwd_part", &["x"]),
        ("batch_norm2d", "[3, 7, 5, 64]", "batch_norm2d_fwd", &["x", "y"]),
        ("batch_norm2d", "[3, 7, 5, 64]", "batch_norm2d_bwd_part", &["x", "gy"]),
        ("batch_norm2d", "[3, 7, 5, 64]", "batch_norm2d_bwd_input", &["x", "g"]),
    ];
    for (room, start, kernel, places) in all {
        let events = trace(room, start, kernel);
        for wanted in places {
            let of_size = |words: usize| {
                let is = |e: &&Event| match &e.action {
                    Action::Read(place, Some(v)) | Action::Write(place, Some(v)) => {
                        place.starts_with(&format!("{wanted}[")) && v.split(' ').count() == words
                    }
                    _ => false,
                };
                events.iter().filter(is).count()
            };
            let (one, four) = (of_size(1), of_size(4));
            // What is left over is three elements at most, read and written.
            assert!(
                four > 0 && one <= 6,
                "{kernel} of {start}: {wanted} moves {four} times by fours, {one} times alone"
            );
        }
    }
}

/// The matrix products load and store by fours too: with `load4` and `store4` of four.cuh, which
/// the host's compiler may take apart, so that only the source line tells.
#[test]
fn products_move_by_fours() {
    if !device::looks_inside() {
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
        let events = trace(room, start, kernel);
        for wanted in places {
            let of_it = events.iter().filter(|e| match &e.action {
                Action::Read(place, _) | Action::Write(place, _) => place.starts_with(&format!("{wanted}[")),
                _ => false,
            });
            let lines: Vec<String> = of_it.filter_map(|e| e.at.as_ref().map(|at| at.file.clone())).collect();
            assert!(!lines.is_empty(), "{kernel} does not touch {wanted}");
            let alone = lines.iter().filter(|file| *file != "kernels/four.cuh").count();
            assert_eq!(alone, 0, "{kernel}: {wanted} is moved one by one, {alone} of {} times", lines.len());
        }
    }
}
