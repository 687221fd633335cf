//! `tilework doctor`: what this machine offers.

use super::output::{Out, table};
use crate::data::{Source, find};
use crate::device::cuda::cache::Cache;
use crate::device::cuda::chain;
use crate::error::Result;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) fn run(out: &mut Out) -> Result<()> {
    let mut rows = Vec::new();
    let mut row = |ok: bool, what: &str, text: String| {
        rows.push(vec![if ok { "ok" } else { "missing" }.to_string(), what.to_string(), text]);
    };
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    row(true, "version", format!("tilework {} on {os} {arch}", env!("CARGO_PKG_VERSION")));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (fast, simd) = simd();
    row(true, "processor", processor().unwrap_or_else(|| "of an unknown model".into()));
    row(true, "threads", format!("{threads}, all used unless --threads says otherwise"));
    row(fast, "vector unit", simd);
    if let Some(memory) = memory() {
        row(true, "memory", memory);
    }
    let links = chain::report();
    for link in &links {
        let remedy = link.remedy.as_ref().map_or_else(String::new, |remedy| format!("; remedy: {remedy}"));
        row(link.ok, link.what, link.found.clone() + &remedy);
    }
    match kernel_cache(&Cache::default_folder()) {
        Ok(text) => row(true, "kernel cache", text),
        Err(text) => row(false, "kernel cache", text),
    }
    if cfg!(tilework_emulator) {
        row(true, "emulator", "built in: `--device emulated` runs the CUDA kernels on the processor, slowly".into());
    } else {
        let how = "install a C++ compiler, then `cargo build --release --features emulator`";
        row(
            false,
            "emulator",
            format!("not built in, and not needed for training; to run the CUDA kernels without a GPU: {how}"),
        );
    }
    let auto = if links.iter().all(|link| link.ok) { "cuda" } else { "cpu" };
    row(true, "device", format!("{auto}, unless --device says otherwise"));
    row(true, "data", format!("{}: generated, always there", Source::Shapes));
    for source in [Source::Cifar10, Source::Cifar100] {
        match find(source, None) {
            Ok(path) => row(true, "data", format!("{source}: {}", path.display())),
            Err(_) => row(
                false,
                "data",
                format!("{source}: `tilework data fetch {source}` downloads it, or give its path with --data"),
            ),
        }
    }
    match writable() {
        Ok(()) => row(true, "runs", "runs can be saved in this folder".into()),
        Err(e) => row(false, "runs", format!("this folder cannot be written ({e}): use `tilework train --out DIR`")),
    }
    out.print(table(&["", "", ""], "<<<", rows).trim_start_matches('\n'))
}

/// Whether it is one of the fast ones, and which vector instructions the matrix product uses.
fn simd() -> (bool, String) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return (true, "AVX-512".into());
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return (true, "AVX2 with FMA".into());
        }
        (false, "neither AVX-512 nor AVX2: training works, slowly; use a processor made after 2013".into())
    }
    #[cfg(target_arch = "aarch64")]
    {
        (true, "NEON".into())
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        (false, "none known for this architecture: training works, slowly".into())
    }
}

/// What follows `key:` in one of Linux's tables.
fn entry(file: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|l| l.strip_prefix(key)?.trim_start().strip_prefix(':'))?;
    Some(value.trim().to_string())
}

fn processor() -> Option<String> {
    entry("/proc/cpuinfo", "model name")
}

fn memory() -> Option<String> {
    let gib = |key: &str| -> Option<f64> {
        let kib: f64 = entry("/proc/meminfo", key)?.split_whitespace().next()?.parse().ok()?;
        Some(kib / f64::from(1 << 20))
    };
    Some(format!("{:.1} GiB, {:.1} GiB of it available", gib("MemTotal")?, gib("MemAvailable")?))
}

/// Where compiled kernels are kept and how many there are, or what is wrong with the place.
fn kernel_cache(folder: &Path) -> std::result::Result<String, String> {
    let shown = folder.display();
    // What will be made is made in the nearest folder that is there.
    let there = folder.ancestors().find(|f| f.exists()).unwrap_or(folder);
    if let Err(e) = try_write(there) {
        return Err(format!(
            "{shown} cannot be written ({}), so kernels are compiled at every start: set TILEWORK_CACHE to another folder",
            e.kind()
        ));
    }
    let files: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    let files = files.iter().filter(|f| f.extension().is_some_and(|e| e == "cubin"));
    let sizes: Vec<u64> = files.filter_map(|f| Some(fs::metadata(f).ok()?.len())).collect();
    Ok(match sizes.len() {
        0 => format!("{shown}, empty: the first run on a GPU fills it"),
        n => format!("{shown}, {n} files, {:.1} MiB", sizes.iter().sum::<u64>() as f64 / f64::from(1 << 20)),
    })
}

fn writable() -> std::io::Result<()> {
    try_write(Path::new(if Path::new("runs").is_dir() { "runs" } else { "." }))
}

fn try_write(folder: &Path) -> std::io::Result<()> {
    tempfile::Builder::new().prefix(".tilework-").tempfile_in(folder).map(drop)
}
