//! A device whose memory is too small, which only the emulated one can be made to be.

use crate::training::{recipe, train_on};
use crate::under;
use std::sync::atomic::AtomicBool;
use tilework::data::shapes;
use tilework::device::cuda::CudaOptions;
use tilework::device::emulator;
use tilework::recipes::Recipe;
use tilework::train::{Limits, RunDir, StepReport, Trainer};
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

#[test]
fn steps_that_fit_run_though_no_recording_does() {
    if !under::looks_inside() {
        return;
    }
    let layers = r#"layers=["conv 3x3, 8 channels, stride 2", "relu", "conv 3x3, 8 channels, pad 1", "relu",
        "conv 3x3, 8 channels, pad 1", "batch_norm", "relu", "max_pool 5", "flatten", "fc 10"]"#;
    let recipe = recipe("quickstart", &["batch_size=40", layers]);
    let train = |memory: usize, recorded: bool| {
        let how = emulator::EmulatorOptions { memory: Some(memory), ..emulator::EmulatorOptions::default() };
        let device = Device::emulated_with(CudaOptions::default(), how).unwrap();
        let found = train_on(120, &recipe, &device, 6, recorded);
        let Device::Cuda(cuda) = &device else { panic!("a CUDA device") };
        (found, memory - cuda.free_memory().unwrap())
    };
    let losses = |reports: &[StepReport]| reports.iter().map(|s| s.loss).collect::<Vec<_>>();
    let ((launched, launches), (_, recording)) = (train(1 << 30, false), train(1 << 30, true));
    assert!(launches < recording, "{launches} bytes launched, {recording} recorded");
    // Too little for a recording; and for one, but not for an evaluation beside it.
    for quarter in [0, 2] {
        let (found, _) = train(launches + (recording - launches) * quarter / 4, true);
        assert_eq!(losses(&found.0), losses(&launched.0), "{quarter}");
        assert!(found.1 == launched.1, "{quarter}");
    }
}
