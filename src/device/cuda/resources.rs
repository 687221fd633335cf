//! What a kernel takes of a multiprocessor, and how many of its blocks fit there.

/// The resources of one kernel, as ptxas reports them (`--ptxas-options=-v`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Its name, as the log has it.
    pub kernel: String,
    /// 32-bit registers per thread.
    pub registers: u32,
    /// Bytes per thread that registers are spilled to, stores and loads together.
    pub spill_bytes: u32,
    /// Bytes of static shared memory per block.
    pub shared_bytes: u32,
    /// Bytes of stack per thread.
    pub stack: u32,
}

/// Reads the resources of every kernel out of a log.
pub fn parse(log: &str) -> Vec<Resources> {
    let mut out: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_string();
            out.push(Resources { kernel, registers: 0, spill_bytes: 0, shared_bytes: 0, stack: 0 });
            continue;
        }
        // Functions that were not inlined are listed after their kernel and count with it.
        let Some(last) = out.last_mut() else { continue };
        for part in line.split(',') {
            let part = part.rsplit(':').next().unwrap_or_default().trim();
            let words: Vec<&str> = part.split_whitespace().collect();
            match words[..] {
                ["Used", n, "registers"] => last.registers = n.parse().unwrap_or(0),
                // Some versions put `ptxas . ` before it.
                [.., n, "bytes", "stack", "frame"] => last.stack = last.stack.max(n.parse().unwrap_or(0)),
                [n, "bytes", "spill", _] => last.spill_bytes += n.parse().unwrap_or(0),
                [n, "bytes", "smem"] => last.shared_bytes = n.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    out
}

/// How much of a multiprocessor the blocks of a kernel fill.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Occupancy {
    /// Blocks that are resident at once.
    pub blocks: u32,
    /// Their warps, as a share of the warps that the multiprocessor can hold (0 to 1).
    pub warps: f64,
    /// What stops one more block: `warps`, `blocks`, `registers` or `shared memory`.
    pub limit: &'static str,
}

/// The limits of a multiprocessor of one architecture.
///
/// Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Resident blocks.
    pub blocks: u32,
    /// Resident warps.
    pub warps: u32,
    /// 32-bit registers.
    pub registers: u32,
    /// Bytes of shared memory.
    pub shared: u32,
    /// Bytes of shared memory that one block may have, beyond 48 KiB on request only.
    pub shared_per_block: u32,
    /// Bytes of each block's shared memory that the system takes.
    pub reserved: u32,
}

/// The limits of an architecture (90 for `sm_90`); `None` for one that is not in the table.
pub fn limits(arch: u32) -> Option<Limits> {
    let (blocks, warps, kib) = match arch {
        75 => (16, 32, 64),
        80 => (32, 64, 164),
        86 => (16, 48, 100),
        87 => (16, 48, 164),
        89 => (24, 48, 100),
        90 | 100 | 103 => (32, 64, 228),
        110 => (24, 48, 228),
        120 | 121 => (24, 48, 100),
        _ => return None,
    };
    // From 8.0 on the system keeps 1 KiB of each block's shared memory.
    let reserved = if arch >= 80 { 1024 } else { 0 };
    let shared = kib * 1024;
    Some(Limits { blocks, warps, registers: 65536, shared, shared_per_block: shared - reserved, reserved })
}

/// How many blocks fit on one multiprocessor of `arch`, for a kernel of `registers` per thread,
/// `shared` bytes per block (static and dynamic) and `threads` per block; `None` for an architecture
/// that is not in the table, or a block that does not fit at all.
///
/// Rounding is that of NVIDIA's occupancy calculator: registers go to warps in units of 256, and to
/// each of the multiprocessor's four quarters alike; shared memory goes to blocks in units of 256
/// bytes on 7.5, of 128 after it.
pub fn occupancy(arch: u32, registers: u32, shared: u32, threads: u32) -> Option<Occupancy> {
    let l = limits(arch)?;
    if threads == 0 || threads > 1024 || registers > 255 || shared > l.shared_per_block {
        return None;
    }
    let warps = threads.div_ceil(32);
    let by_warps = l.warps / warps;
    let per_warp = (registers.max(1) * 32).next_multiple_of(256);
    let by_registers = (l.registers / per_warp) / 4 * 4 / warps;
    let unit = if arch >= 80 { 128 } else { 256 };
    let block = (shared + l.reserved).next_multiple_of(unit);
    let by_shared = l.shared.checked_div(block).unwrap_or(u32::MAX);
    let all = [(by_warps, "warps"), (l.blocks, "blocks"), (by_registers, "registers"), (by_shared, "shared memory")];
    let (blocks, limit) = all.into_iter().min_by_key(|a| a.0)?;
    (blocks > 0).then(|| Occupancy { blocks, warps: f64::from(blocks * warps) / f64::from(l.warps), limit })
}
