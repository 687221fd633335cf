//! `tilework kernels`: what each CUDA kernel takes of a GPU.

use super::output::{Out, table};
use super::{KernelsArgs, note};
use crate::device::cuda::nvrtc::Compiler;
use crate::device::cuda::resources::{Resources, occupancy};
use crate::device::cuda::{Entry, libraries};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::{ENTRIES, HEADERS, sources};
use rayon::prelude::*;

/// What is compiled for on a machine without a GPU.
const DEFAULT_ARCH: u32 = 90;

pub(super) fn run(args: &KernelsArgs, out: &mut Out) -> Result<()> {
    let entries = chosen(args.op.as_deref())?;
    let compiler = Compiler::new(HEADERS)?;
    let nvrtc = compiler.nvrtc();
    let gpu = libraries::driver().ok().and_then(|d| nvrtc.target(d.gpus.first()?.arch));
    let arch = args.arch.or(gpu).unwrap_or(DEFAULT_ARCH);
    if !nvrtc.archs.contains(&arch) {
        let known = nvrtc.archs.iter().map(|a| format!("sm_{a}")).collect::<Vec<_>>().join(", ");
        return Err(Error::config(
            "--arch",
            format!("NVRTC {}.{} does not compile for sm_{arch}", nvrtc.version.0, nvrtc.version.1),
            format!("it knows {known}; `tilework doctor` shows which NVRTC this is"),
        ));
    }
    let mut files = sources();
    files.retain(|file| entries.iter().any(|entry| entry.source.stem == file.stem));
    let compiled = files.par_iter().map(|file| Ok(compiler.module(file, DType::F32, arch)?.resources()));
    let compiled = compiled.collect::<Result<Vec<Vec<Resources>>>>();
    compiler.cache().take_notes().iter().for_each(|text| note(&format!("note: {text}")));
    let compiled: Vec<Resources> = compiled?.into_iter().flatten().collect();

    let find = |entry: &Entry| compiled.iter().find(|r| r.entry == entry.name);
    let rows = entries.iter().filter_map(|entry| Some(row(entry, find(entry)?, arch))).collect();
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
        "{}\nsm_{arch}, NVRTC {}.{}; registers, spilled bytes and stack a thread, shared bytes and threads a block, blocks a \
         multiprocessor\n",
        table(&heads, "<>>>>>>>><", rows),
        nvrtc.version.0,
        nvrtc.version.1,
    ))
}

/// The kernels of an op, or all.
fn chosen(op: Option<&str>) -> Result<Vec<&'static Entry>> {
    let of = |entry: &&&Entry| op.is_none_or(|op| entry.source.stem == op || entry.name == op);
    let entries: Vec<&Entry> = ENTRIES.iter().filter(of).copied().collect();
    if let (true, Some(op)) = (entries.is_empty(), op) {
        let names = sources().iter().map(|source| source.stem).collect::<Vec<_>>().join(", ");
        return Err(Error::config(format!("op `{op}`"), "it has no kernel", format!("these have: {names}")));
    }
    Ok(entries)
}

fn row(entry: &Entry, r: &Resources, arch: u32) -> Vec<String> {
    let fit = occupancy(arch, r.registers, r.shared_bytes, entry.threads);
    let (blocks, share, limit) = match fit {
        Some(fit) => (fit.blocks.to_string(), format!("{:.0} %", 100.0 * fit.warps), fit.limit),
        None => ("?".into(), "?".into(), "unknown"),
    };
    let numbers = [r.registers, entry.registers, r.spill_bytes, r.stack, r.shared_bytes, entry.threads];
    let mut row = vec![entry.name.to_string()];
    row.extend(numbers.map(|n| n.to_string()));
    row.extend([blocks, share, limit.to_string()]);
    row
}
