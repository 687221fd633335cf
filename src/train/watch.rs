//! The time that work takes, without what compiling and loading its kernels takes.

use crate::device::Device;
use std::time::{Duration, Instant};

/// A stopwatch of work on a device.
pub(super) struct Watch {
    device: Device,
    start: Instant,
    loaded: Duration,
}

/// What a [`Watch`] has measured.
#[derive(Clone, Copy)]
pub(super) struct Took {
    /// The work's own time.
    pub(super) work: Duration,
    /// For which it waited for its kernels.
    pub(super) loading: Duration,
}

impl Watch {
    pub(super) fn start(device: &Device) -> Self {
        Watch { device: device.clone(), start: Instant::now(), loaded: loading(device) }
    }

    /// The time since the start.
    pub(super) fn read(&self) -> Took {
        let loading = loading(&self.device) - self.loaded;
        Took { work: self.start.elapsed().saturating_sub(loading), loading }
    }
}

/// How long launches have waited for their kernels.
fn loading(device: &Device) -> Duration {
    match device {
        Device::Cpu(_) => Duration::ZERO,
        Device::Cuda(cuda) => cuda.loading(),
    }
}
