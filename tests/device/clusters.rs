//! Batch-norm whose rows the blocks of a cluster share, on a device that has clusters: from sm_90 on. As in `kernels.rs`, in all
//! orders and checked.

use crate::under::{Under, hold, skip};
use tilework::device::cuda::CudaOptions;
use tilework::ops::activation::{Activation, Sum};
use tilework::ops::batch_norm2d::running;
use tilework::ops::case::Fill;
use tilework::ops::parity::{self, Terms};
use tilework::ops::{Case, ROOMS};
use tilework::{DType, Device};

/// Of a sum, whose gradient it masks, or alone.
fn batch_norm(x: [usize; 4], then: Activation, of_sum: bool) -> Case {
    let case = Case::new(format!("{x:?} {then:?}, of a sum: {of_sum}"), move |v, cx| {
        let [mut mean, mut var] = running(cx.device(), v[0].value().dtype().sums(), x[3])?;
        let stats = [&mut mean, &mut var];
        match of_sum {
            true => {
                let sum = Sum { plus: &v[3], before: None, after: Some(then) };
                v[0].batch_norm2d_plus(sum, &v[1], &v[2], stats, 0.1, 1e-5, cx)
            }
            false => v[0].batch_norm2d_then(Some(then).into(), &v[1], &v[2], stats, 0.1, 1e-5, cx),
        }
    });
    let case = case.input("x", x, Fill::Uniform).param("gamma", [x[3]], Fill::NonZero);
    let case = case.param("beta", [x[3]], Fill::Uniform);
    if of_sum { case.input("plus", x, Fill::Uniform) } else { case }
}

/// Of more rows than a block has: some of each thread, and one of few.
#[test]
fn batch_norm_of_rows_that_are_shared() {
    let Some(under) = Under::of(CudaOptions::default(), 90) else { return };
    let Device::Cuda(cuda) = under.first() else { panic!("a CUDA device") };
    if cuda.info().arch < 90 {
        return skip("sm_90", "this GPU has no clusters");
    }
    let room = ROOMS.iter().find(|room| room.name == "batch_norm2d").unwrap();
    // By eight blocks each; and by four, as there are many channels.
    let by_eight =
        [batch_norm([3, 41, 43, 5], Activation::Silu, false), batch_norm([1, 50, 50, 8], Activation::Relu, true)];
    let by_four = batch_norm([1, 41, 50, 136], Activation::Relu, true);
    for (case, few) in by_eight.into_iter().map(|case| (case, false)).chain([(by_four, true)]) {
        let kernels = cuda.profile(|| parity::run(&case, under.first(), DType::BF16, 6).map(drop)).unwrap();
        let ran = ["whole_fwd", "whole_bwd", "fwd_part"]
            .map(|name| kernels.iter().any(|timing| timing.kernel.starts_with(&format!("batch_norm2d_{name}"))));
        assert_eq!(ran, [true, true, false], "{}", case.name);
        let terms = Terms::of(room, &case, 6).unwrap();
        for dtype in [DType::F16, DType::BF16] {
            let devices = if dtype == DType::F16 && !few { &under.devices[..] } else { &under.devices[..1] };
            hold(&case.name, &case, dtype, 6, &terms.expected(dtype).unwrap(), devices);
        }
    }
}
