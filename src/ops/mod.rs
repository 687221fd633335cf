//! The ops: one room each.
//!
//! A room is a file of this folder, or a folder where that would be too long. In each, in this order: the maths;
//! the method on [`Var`](crate::Var); forward; the [`Backward`](crate::autograd::Backward) struct;
//! the CPU side, which sees slices alone; the CUDA side, which launches the kernels of
//! `kernels/<name>.cu`; the cases that tests and benches share; tests.
//!
//! [`ROOMS`] lists them. The gradient check, the thread check, the check of the kernels and the
//! benches go through that list, and `tests/engine/rooms.rs` fails when a room lacks a part. [`case`] and
//! [`window`] are what rooms share, [`parity`] compares them on two devices, [`gradcheck()`]
//! compares an op, your own too, with finite differences.
//! `src/ops/README.md` adds an op as an example. To read one, begin with [`relu`].

/// Runs the CPU's side or the CUDA side of an op, as the device of tensor `$x` says, with `$T` bound to
/// the type of its elements.
macro_rules! on_device {
    ($op:expr, $x:expr, $T:ident, cpu => $cpu:expr, $cuda:ident => $on_cuda:expr) => {
        match $x.device().clone() {
            $crate::device::Device::Cpu(_) => $crate::dtype::with_real!($op, $x.dtype(), $T => {
                $cpu;
                Ok(())
            })?,
            $crate::device::Device::Cuda($cuda) => {
                $crate::device::cuda::with_kernel_type!($op, $x.dtype(), $T => $on_cuda)?
            }
        }
    };
}

pub mod activation;
pub mod adaptive_pool2d;
pub mod add;
pub mod avg_pool2d;
pub mod batch_norm2d;
pub mod case;
pub mod ceiling;
pub mod conv2d;
pub mod cross_entropy;
pub mod dropout;
pub mod flatten;
pub mod gelu;
mod gradcheck;
pub mod linear;
pub mod log_softmax;
pub mod max_pool2d;
pub mod nll;
mod operands;
pub mod parity;
mod product;
pub mod relu;
pub mod scale;
pub mod silu;
pub mod window;

pub use case::{Case, Draw, Room};
pub use gradcheck::{Mismatch, gradcheck};
pub use product::STRIPS;

/// Every op's room.
pub const ROOMS: &[Room] = &[
    Room { name: "adaptive_pool2d", cases: adaptive_pool2d::cases, random_case: adaptive_pool2d::random_case },
    Room { name: "add", cases: add::cases, random_case: add::random_case },
    Room { name: "avg_pool2d", cases: avg_pool2d::cases, random_case: avg_pool2d::random_case },
    Room { name: "batch_norm2d", cases: batch_norm2d::cases, random_case: batch_norm2d::random_case },
    Room { name: "conv2d", cases: conv2d::cases, random_case: conv2d::random_case },
    Room { name: "cross_entropy", cases: cross_entropy::cases, random_case: cross_entropy::random_case },
    Room { name: "dropout", cases: dropout::cases, random_case: dropout::random_case },
    Room { name: "flatten", cases: flatten::cases, random_case: flatten::random_case },
    Room { name: "gelu", cases: gelu::cases, random_case: gelu::random_case },
    Room { name: "linear", cases: linear::cases, random_case: linear::random_case },
    Room { name: "log_softmax", cases: log_softmax::cases, random_case: log_softmax::random_case },
    Room { name: "max_pool2d", cases: max_pool2d::cases, random_case: max_pool2d::random_case },
    Room { name: "nll", cases: nll::cases, random_case: nll::random_case },
    Room { name: "relu", cases: relu::cases, random_case: relu::random_case },
    Room { name: "scale", cases: scale::cases, random_case: scale::random_case },
    Room { name: "silu", cases: silu::cases, random_case: silu::random_case },
];
