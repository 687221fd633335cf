//! A device whose memory is too small, which only the emulated one can be made to be.

use crate::under;
use std::sync::atomic::AtomicBool;
use tilework::data::shapes;
use tilework::device::cuda::CudaOptions;
use tilework::device::emulator;
use tilework::recipes::Recipe;
use tilework::train::{Limits, RunDir, Trainer};
use tilework::{DType, Device, Error};

#[test]
fn out_of_memory_says_what_would_fit() {
    if !under::looks_inside() {
        return;
    }
    let memory = |mib: usize| {
        let how = emulator::EmulatorOptions { memory: Some(mib << 20), ..emulator::EmulatorOptions::default() };
        Device::emulated_with(CudaOptions::default(), how).unwrap()
    };
    let make = |device: &Device, batch: usize| {
        let recipe = Recipe::load("quickstart", &[format!("batch_size={batch}")]).unwrap();
        Trainer::new(recipe, shapes::generate(0, 600, 20), device)
    };
    // Refused before the first step where the activations alone cannot fit ...
    let e = make(&memory(16), 512).err().unwrap().to_string();
    assert!(e.contains("memory") && e.contains("smaller batch"), "{e}");
    // ... and else at the step that runs out, with the batch that fits.
    let device = memory(24);
    let mut trainer = make(&device, 20).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path(), "run").unwrap();
    let _ballast = device.alloc(DType::U8, 18 << 20).unwrap();
    let e = trainer.run(&run, Limits::default(), &AtomicBool::new(false), &mut []).unwrap_err();
    let Error::OutOfMemory { need, remedy, .. } = &e else { panic!("{e}") };
    assert!(*need > 0 && remedy.contains("batch of about"), "{e}");
}
