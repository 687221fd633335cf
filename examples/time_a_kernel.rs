//! What a kernel takes by itself, without its launch: on a GPU, or where there is none on the emulated device.
//!
//!     cargo run --release --features emulator --example time_a_kernel

use tilework::device::cuda::CudaOptions;
use tilework::{Ctx, DType, Device, Result, Tensor, Var};

fn main() -> Result<()> {
    let found = Device::cuda(CudaOptions::default()).or_else(|_| Device::emulated(CudaOptions::default()));
    let device = match found {
        Ok(device) => device,
        Err(e) => {
            println!("skipped: there is no GPU, and no emulated device: {e}");
            return Ok(());
        }
    };
    let Device::Cuda(cuda) = &device else { return Ok(()) };
    println!("on {}", cuda.info().name);
    let batch = if cuda.is_emulated() { 1 } else { 256 };
    let x = Var::constant(Tensor::zeros(&device, DType::F32, [batch, 32, 32, 64])?);
    for t in cuda.profile(|| x.relu(&mut Ctx::eval(&device)).map(drop))? {
        let seconds = t.time.as_secs_f64();
        println!("{}: {:.1} µs, {:.1} GB/s", t.kernel, 1e6 * seconds, t.bytes as f64 / seconds / 1e9);
    }
    Ok(())
}
