//! `tilework doctor`: what this machine offers.

use super::output::{Out, table};
use crate::data::{Source, find};
use crate::error::Result;
use std::fs;

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
    row(true, "device", "cpu; this version trains on the CPU alone, a CUDA device is not used".into());
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

fn writable() -> std::io::Result<()> {
    let place = if std::path::Path::new("runs").is_dir() { "runs" } else { "." };
    tempfile::Builder::new().prefix(".tilework-").tempfile_in(place).map(drop)
}
