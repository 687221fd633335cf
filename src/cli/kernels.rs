//! `tilework kernels`: what each CUDA kernel takes of a GPU.

use super::output::{Out, table};
use super::{KernelsArgs, note};
use crate::device::cuda::nvrtc::{Compiler, Unit};
use crate::device::cuda::resources::{Resources, occupancy};
use crate::device::cuda::{Arch, Kernel, chain};
use crate::error::{Error, Result};
use crate::kernels::{self, HEADERS, SOURCES};
use rayon::prelude::*;

/// What is compiled for on a machine without a GPU.
const DEFAULT_ARCH: Arch = Arch::new(90);

pub(super) fn run(args: &KernelsArgs, out: &mut Out) -> Result<()> {
    let kernels = chosen(args.op.as_deref())?;
    let compiler = Compiler::new(HEADERS)?;
    let nvrtc = compiler.nvrtc();
    let gpu = chain::driver().ok().and_then(|d| nvrtc.target(d.gpus.first()?.arch));
    let arch = args.arch.or(gpu).unwrap_or(DEFAULT_ARCH);
    if !nvrtc.archs.contains(&arch.number) {
        let known = nvrtc.archs.iter().map(|a| format!("sm_{a}")).collect::<Vec<_>>().join(", ");
        return Err(Error::config(
            "--arch",
            format!("NVRTC {}.{} does not compile for {arch}", nvrtc.version.0, nvrtc.version.1),
            format!("it knows {known}; `tilework doctor` shows which NVRTC this is"),
        ));
    }
    // With `sm_90a` the kernels that are for it alone, beside those that are for every GPU.
    let here = kernels.into_iter().filter(|k| k.arch.is_none_or(|a| a == arch));
    let kernels: Vec<&Kernel> = here.collect();
    let mut units: Vec<Unit> = kernels.iter().map(|k| Unit::of(k, Arch::new(arch.number))).collect();
    units.dedup();
    let compiled = units.par_iter().map(|unit| Ok((*unit, compiler.module(unit)?.0.resources())));
    let compiled = compiled.collect::<Result<Vec<(Unit, Vec<Resources>)>>>();
    compiler.cache().take_notes().iter().for_each(|text| note(&format!("note: {text}")));
    let compiled = compiled?;

    let find = |kernel: &Kernel| {
        let unit = Unit::of(kernel, Arch::new(arch.number));
        compiled.iter().find(|c| c.0 == unit)?.1.iter().find(|r| r.kernel == kernel.name)
    };
    let rows = kernels.iter().filter_map(|kernel| Some(row(kernel, find(kernel)?, arch))).collect();
    let heads = [
        "kernel",
        "registers",
        "allowed",
        "spilled",
        "stack",
        "shared",
        "threads",
        "blocks",
        "occupancy",
        "limited by",
    ];
    out.print(&format!(
        "{}\n{arch}, NVRTC {}.{}; registers, spilled bytes and stack a thread, shared bytes and threads a block, blocks a \
         multiprocessor\n",
        table(&heads, "<>>>>>>>><", rows),
        nvrtc.version.0,
        nvrtc.version.1,
    ))
}

/// The kernels of an op, or all.
fn chosen(op: Option<&str>) -> Result<Vec<&'static Kernel>> {
    let of = |k: &&Kernel| op.is_none_or(|op| [k.source.stem, k.family, k.name].contains(&op));
    let kernels: Vec<&Kernel> = kernels::all().filter(of).collect();
    if let (true, Some(op)) = (kernels.is_empty(), op) {
        let names = SOURCES.iter().map(|source| source.stem).collect::<Vec<_>>().join(", ");
        return Err(Error::config(format!("op `{op}`"), "it has no kernel", format!("these have: {names}")));
    }
    Ok(kernels)
}

fn row(kernel: &Kernel, r: &Resources, arch: Arch) -> Vec<String> {
    let shared = r.shared_bytes + kernel.tile.map_or(0, |tile| tile.shared);
    let fit = occupancy(arch.number, r.registers, shared, kernel.threads);
    let (blocks, share, limit) = match fit {
        Some(fit) => (fit.blocks.to_string(), format!("{:.0} %", 100.0 * fit.warps), fit.limit),
        None => ("?".into(), "?".into(), "unknown"),
    };
    let numbers = [r.registers, kernel.registers, r.spill_bytes, r.stack, shared, kernel.threads];
    let mut row = vec![kernel.name.to_string()];
    row.extend(numbers.map(|n| n.to_string()));
    row.extend([blocks, share, limit.to_string()]);
    row
}
