//! The weights in two bytes, as products on tensor cores take them: a copy of the arena, in an arena of its own.
//!
//! The optimizer's kernel writes it with the weights themselves. Whoever else writes the weights makes it out of date, and
//! the next pass rounds them all anew.

use super::owned;
use crate::device::cuda::Launch;
use crate::device::{Buffer, Device};
use crate::dtype::{Precision, with_type};
use crate::error::{Error, Result};
use crate::kernels::params::{RoundDims, params_round};
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug)]
pub(super) struct Rounded {
    pub(super) precision: Precision,
    /// The copy, and whether it is up to date. Behind a lock, as a pass has the parameters by a shared reference.
    copy: Mutex<(Arc<Buffer>, bool)>,
}

impl Rounded {
    pub(super) fn new(device: &Device, precision: Precision, len: usize) -> Result<Self> {
        if !device.computes_in(precision.dtype()) {
            let (problem, remedy) = match device {
                Device::Cpu(_) => ("the CPU, which computes in f32", "use f32, or --device cuda"),
                Device::Cuda(_) => ("a GPU before sm_80, which has no products of it", "use f16 on this GPU"),
            };
            return Err(Error::config("precision", format!("{precision} on {problem}"), remedy));
        }
        Ok(Rounded { precision, copy: Mutex::new((Arc::new(device.alloc(precision.dtype(), len)?), false)) })
    }

    /// The weights have been written.
    pub(super) fn outdate(&self) {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner).1 = false;
    }

    /// The copy, to be written by an optimizer.
    pub(super) fn owned(&mut self) -> Result<&mut Buffer> {
        owned(&mut self.copy.get_mut().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// The copy of these weights.
    pub(super) fn of(&self, values: &Buffer) -> Result<Arc<Buffer>> {
        let mut lock = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
        let (copy, fresh) = &mut *lock;
        if let (false, Device::Cuda(cuda)) = (*fresh, values.device()) {
            let (n, copy) = (values.len(), owned(copy)?);
            let (x, d) = (values.input(0..n)?, RoundDims { n: n as i32 });
            let launch = Launch::each(n.div_ceil(8));
            with_type!("precision", copy.dtype(), [F16 = half::f16, BF16 = half::bf16], "f16 or bf16", "report this", T => {
                params_round::<T>(cuda, launch, x, copy.output(0..n)?, &d)
            })?;
            *fresh = true;
        }
        Ok(copy.clone())
    }
}
