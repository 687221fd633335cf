//! Every kernel compiled for every architecture, to machine code, without a GPU: nothing is spilled,
//! there is no stack frame, and the registers are within what the kernel's header allows.

mod device;

use device::{required, skip};
use rayon::prelude::*;
use tilework::device::cuda::libraries;
use tilework::device::cuda::nvrtc::Compiler;
use tilework::device::cuda::resources::{Resources, limits, occupancy};
use tilework::device::cuda::{Entry, Source};
use tilework::dtype::DType;
use tilework::kernels::{ENTRIES, HEADERS, sources};

const ARCHS: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];

/// Static shared memory that a block may have, in bytes.
const SHARED: u32 = 48 << 10;

/// A compiler without a cache, or a line that says why there is none.
fn compiler() -> Option<Compiler> {
    if let Err(e) = libraries::nvrtc() {
        assert!(!required("nvrtc"), "TILEWORK_REQUIRE has nvrtc, and {e}");
        skip("nvrtc", "no libnvrtc");
        return None;
    }
    Some(Compiler::with_cache(HEADERS, None).unwrap())
}

/// What is wrong with a kernel file on an architecture, in lines.
fn faults(compiler: &Compiler, file: &'static Source, arch: u32) -> Vec<String> {
    let compiled = match compiler.module(file, DType::F32, arch) {
        Ok(compiled) => compiled,
        Err(e) => return vec![e.to_string()],
    };
    assert!(compiled.cubin.starts_with(b"\x7fELF") && !compiled.cached);
    let found = compiled.resources();
    let mut faults = Vec::new();
    let entries = || ENTRIES.iter().filter(|e| e.source.stem == file.stem);
    for entry in entries() {
        match found.iter().find(|r| r.entry == entry.name) {
            Some(resources) => faults.extend(exceeded(entry, resources, arch)),
            None => faults.push(format!("{}: not in the compiler's log", entry.name)),
        }
    }
    let unknown = found.iter().filter(|r| !entries().any(|e| e.name == r.entry));
    faults.extend(unknown.map(|r| format!("{}: not in the table of kernels", r.entry)));
    faults.extend(compiled.log.lines().filter(|l| l.contains("): warning")).map(ToString::to_string));
    faults
}

fn exceeded(entry: &Entry, r: &Resources, arch: u32) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |bad: bool, what: String| {
        if bad {
            faults.push(format!("{}: {what}", entry.name));
        }
    };
    fault(r.registers == 0, "no registers in the log".into());
    fault(r.registers > entry.registers, format!("{} registers, its header allows {}", r.registers, entry.registers));
    fault(r.spill_bytes > 0, format!("{} bytes are spilled", r.spill_bytes));
    fault(r.stack > 0, format!("{} bytes of stack", r.stack));
    fault(r.shared_bytes > SHARED, format!("{} bytes of static shared memory", r.shared_bytes));
    // A block of as many threads as it may have fits on a multiprocessor.
    fault(
        occupancy(arch, r.registers, r.shared_bytes, entry.threads).is_none(),
        format!("a block of {} threads does not fit", entry.threads),
    );
    faults
}

#[test]
fn every_kernel_keeps_its_budget_on_every_architecture() {
    let Some(compiler) = compiler() else { return };
    let known = ARCHS.iter().filter(|a| compiler.nvrtc().archs.contains(a));
    let known: Vec<u32> = known.copied().collect();
    if known.len() < ARCHS.len() {
        skip("nvrtc", &format!("NVRTC {:?} compiles only for {known:?}", compiler.nvrtc().version));
    }
    let jobs: Vec<(u32, &Source)> =
        known.iter().flat_map(|&arch| sources().into_iter().map(move |s| (arch, s))).collect();
    let faults: Vec<String> = jobs
        .into_par_iter()
        .flat_map_iter(|(arch, file)| {
            faults(&compiler, file, arch).into_iter().map(move |f| format!("kernels/{}.cu, sm_{arch}: {f}", file.stem))
        })
        .collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn the_table_of_kernels_is_whole() {
    let files = sources();
    assert!(ENTRIES.iter().enumerate().all(|(i, e)| e.index == i && files.iter().any(|f| f.stem == e.source.stem)));
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
    // Not the page about kernels, which has examples.
    let files =
        std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).filter(|p| p.extension().unwrap() != "md");
    let texts = files.map(|p| std::fs::read_to_string(p).unwrap());
    let written: usize = texts.map(|t| t.matches("extern \"C\" __global__").count()).sum();
    assert_eq!(ENTRIES.len(), written);
    assert!(ARCHS.iter().all(|&arch| limits(arch).is_some()));
}
