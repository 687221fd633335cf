//! The CUDA kernels: one module for each file of `kernels/`, made by `build.rs` from the sources.
//!
//! A kernel's function takes its arguments with their types: what the kernel declares `const T*` is
//! an [`In`], what it declares `T*` an [`Out`], its sizes a struct of the same name.

#![allow(missing_docs, dead_code, unused_imports, unreachable_pub, reason = "written by build.rs, whole")]

use crate::autograd::StepState;
use crate::device::cuda::{Arg, Cuda, Entry, In, KernelType, Launch, Out, Source, null};
use crate::error::Result;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The kernel files, each once.
pub fn sources() -> Vec<&'static Source> {
    let mut sources: Vec<&Source> = ENTRIES.iter().map(|entry| entry.source).collect();
    sources.dedup_by_key(|source| source.stem);
    sources
}
