//! The devices that kernels are tested on.

#![allow(dead_code, reason = "each test file uses its part")]

use tilework::device::cuda::CudaOptions;
#[cfg(tilework_emulator)]
use tilework::device::emulator::{self, Order};
use tilework::ops::Case;
use tilework::ops::parity::{self, Expected};
use tilework::{DType, Device};

/// The emulated device with the checker.
pub(crate) const CHECKED: &str = "threads shuffled, checked";

/// Devices under test, by name.
pub(crate) struct Under {
    pub(crate) devices: Vec<(&'static str, Device)>,
    options: CudaOptions,
    /// Of emulated devices.
    arch: u32,
}

/// Whether `TILEWORK_REQUIRE` says that something must not be skipped.
pub(crate) fn required(what: &str) -> bool {
    std::env::var("TILEWORK_REQUIRE").is_ok_and(|v| v.split(',').any(|w| w == what))
}

/// Says that a test cannot run here.
pub(crate) fn skip(what: &str, why: &str) {
    assert!(!required(what), "TILEWORK_REQUIRE has {what}, and {why}");
    println!("skipped: {why}");
}

/// Whether tests that look into the emulated device run; a line says why not.
pub(crate) fn looks_inside() -> bool {
    if cfg!(not(tilework_emulator)) {
        skip("emulator", NO_EMULATOR);
        return false;
    }
    if on_gpu() {
        skip("emulator", "this test looks into the emulated device, and TILEWORK_DEVICE is cuda");
        return false;
    }
    true
}

/// Whether the tests are to run on a GPU.
pub(crate) fn on_gpu() -> bool {
    std::env::var("TILEWORK_DEVICE").is_ok_and(|d| d == "cuda")
}

const NO_EMULATOR: &str = "this build has no emulated device: there was no C++ compiler";

impl Under {
    /// The devices of this run, emulated ones with three orders of threads, the last under the checker; `None`, and a line that
    /// says why, if there is none.
    pub(crate) fn new() -> Option<Self> {
        Under::with(CudaOptions::default())
    }

    /// The same with options.
    pub(crate) fn with(options: CudaOptions) -> Option<Self> {
        Under::of(options, 0)
    }

    /// The same with the kernels of one architecture, 90 for `sm_90a`; a GPU has those that it has.
    pub(crate) fn of(options: CudaOptions, arch: u32) -> Option<Self> {
        if on_gpu() {
            let device = Device::cuda(options).expect("TILEWORK_DEVICE=cuda needs a GPU");
            return Some(Under { devices: vec![("cuda", device)], options, arch });
        }
        #[cfg(tilework_emulator)]
        {
            let device = |order, checked| {
                let how = emulator::EmulatorOptions { order, checked, arch, ..Default::default() };
                Device::emulated_with(options, how).unwrap()
            };
            Some(Under {
                devices: vec![
                    ("threads forward", device(Order::Forward, false)),
                    ("threads in reverse", device(Order::Reverse, false)),
                    (CHECKED, device(Order::Random(8), true)),
                ],
                options,
                arch,
            })
        }
        #[cfg(not(tilework_emulator))]
        {
            skip("emulator", NO_EMULATOR);
            None
        }
    }

    /// The same of a device of sm_90a, which alone has some kernels.
    pub(crate) fn hopper(options: CudaOptions) -> Option<Self> {
        let under = Under::of(options, 90)?;
        if matches!(under.first(), Device::Cuda(cuda) if cuda.info().arch != 90) {
            skip("sm_90a", "this GPU has no wgmma");
            return None;
        }
        Some(under)
    }

    /// Where devices are emulated, others on which recorded work goes in any order that its graph allows, as threads do; a GPU
    /// itself does so.
    pub(crate) fn shuffled(&self) -> Vec<Device> {
        #[cfg(tilework_emulator)]
        if !on_gpu() {
            let how =
                |seed| emulator::EmulatorOptions { order: Order::Random(seed), arch: self.arch, ..Default::default() };
            return (1..=2).map(|i| Device::emulated_with(self.options, how(i)).unwrap()).collect();
        }
        vec![self.first().clone()]
    }

    /// The first of them.
    pub(crate) fn first(&self) -> &Device {
        &self.devices[0].1
    }
}

/// Holds a case on each of these devices against what is wanted, and its bits against those on the first; the largest difference,
/// in roundings. `what` names the case.
pub(crate) fn hold(
    what: &str,
    case: &Case,
    dtype: DType,
    seed: u64,
    want: &Expected,
    devices: &[(&str, Device)],
) -> f64 {
    let (mut worst, mut first) = (0f64, None);
    for (name, device) in devices {
        let what = format!("{what} {dtype} ({name})");
        let got = parity::run(case, device, dtype, seed).unwrap_or_else(|e| panic!("{what}: {e}"));
        let d = want.compare(&got).unwrap();
        assert!(d.error <= 1.0, "{what}: {d:?}");
        worst = worst.max(d.roundings);
        let bits: Vec<u64> = got.iter().flat_map(|(_, v)| v.to_f64().unwrap()).map(f64::to_bits).collect();
        assert!(
            *first.get_or_insert_with(|| bits.clone()) == bits,
            "{what}: other bits than in another order of threads"
        );
    }
    worst
}
