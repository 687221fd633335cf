//! The emulated CUDA device: runs the `.cu` files of `kernels/`, compiled by the host's C++ compiler, on the CPU.
//!
//! `README.md` beside this file explains how. In short: every CUDA thread is a fiber (`scheduler`), the blocks of a
//! launch run in parallel, and a checked launch (`checker`) finds races, accesses out of bounds, reads of
//! uninitialised shared memory and misaligned accesses.

mod access;
mod block;
mod calls;
mod checker;
mod clocks;
mod cluster;
mod driver;
mod hooks;
mod hopper;
mod map;
mod matrices;
mod mbarrier;
mod places;
mod races;
mod recording;
mod registers;
mod report;
mod scheduler;
mod shadow;
mod shared;
mod source;
mod stacks;
#[cfg(test)]
#[path = "../../../tests/kernels/planted.rs"]
mod tests;
#[cfg(test)]
#[path = "../../../tests/kernels/planted_hopper.rs"]
mod tests_hopper;
mod tma;
mod trace;
mod warp;
mod wgmma;

use std::ffi::c_void;
use std::hint::black_box;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

pub use crate::device::cuda::{Order, Thunk};
use block::Job;
use checker::Checker;
pub(crate) use driver::Emulated;
pub use driver::{EmulatorOptions, TraceOptions, Traced};
pub use report::{Action, Fault, FaultKind, Finding, FindingKind, Line, Report, TraceEvent};
use scheduler::run_cluster;
pub use trace::Follow;
use trace::Trace;

/// One launch of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The kernel's name, for reports.
    pub kernel: &'a str,
    /// It as compiled for speed.
    pub plain: Thunk,
    /// It as compiled for the checker.
    pub checked: Thunk,
    /// Whether it is for one architecture alone.
    pub specific: bool,
    /// `gridDim`, in blocks.
    pub grid: [u32; 3],
    /// `blockDim`, in threads.
    pub block: [u32; 3],
    /// Blocks of a cluster; each divides the grid.
    pub cluster: [u32; 3],
    /// Dynamic shared memory per block, in bytes.
    pub shared: u32,
    /// `args[i]` points at the i-th argument.
    pub args: &'a [*mut c_void],
}

/// Memory that a launch may use: one pointer argument of its kernel.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// The argument's name.
    pub name: &'static str,
    /// Address of its first byte.
    pub start: usize,
    /// Its size; 0 for a null pointer.
    pub bytes: usize,
    /// Whether the kernel may write it.
    pub writable: bool,
}

impl Call<'_> {
    /// The number of clusters, or blocks where each is by itself, if a GPU would take this launch.
    fn clusters(&self) -> Result<u32, Fault> {
        let invalid = |detail: String| Fault {
            kernel: self.kernel.to_string(),
            kind: FaultKind::InvalidLaunch,
            block: None,
            thread: None,
            at: None,
            detail,
        };
        let [x, y, z] = self.grid.map(u64::from);
        if x == 0 || y == 0 || z == 0 || x >= 1 << 31 || y > 65535 || z > 65535 {
            return Err(invalid(format!(
                "grid {x} x {y} x {z}; each must be at least 1, and at most 2147483647, 65535, 65535"
            )));
        }
        let [bx, by, bz] = self.block.map(u64::from);
        let threads = bx.saturating_mul(by).saturating_mul(bz);
        if threads == 0 || threads > 1024 || bz > 64 {
            return Err(invalid(format!("block {bx} x {by} x {bz}; it must have 1 to 1024 threads, at most 64 in z")));
        }
        if self.shared > shared::DYNAMIC_LIMIT {
            let most = shared::DYNAMIC_LIMIT;
            return Err(invalid(format!("{} bytes of dynamic shared memory; at most {most}", self.shared)));
        }
        let [cx, cy, cz] = self.cluster.map(u64::from);
        let size = cx.saturating_mul(cy).saturating_mul(cz);
        if size == 0 || size > 8 || x % cx != 0 || y % cy != 0 || z % cz != 0 {
            return Err(invalid(format!(
                "clusters of {cx} x {cy} x {cz} in a grid of {x} x {y} x {z}; each must divide the grid's, and 8 blocks are \
                 what every GPU with clusters takes"
            )));
        }
        u32::try_from(x * y * z)
            .ok()
            .filter(|n| *n < u32::MAX)
            .map(|n| n / size as u32)
            .ok_or_else(|| invalid(format!("grid {x} x {y} x {z} has more blocks than are emulated")))
    }

    fn job(&self, thunk: Thunk, order: Order, checker: *mut Checker) -> Job<'_> {
        let (grid, block, cluster, shared, args) =
            (self.grid, self.block, self.cluster, self.shared, self.args.as_ptr());
        Job { kernel: self.kernel, thunk, args, grid, block, cluster, shared, order, checker }
    }
}

/// The order in which the blocks of a grid run, or its clusters: block `(start + i * step) % blocks` is the i-th.
#[derive(Clone, Copy)]
struct Walk {
    blocks: u64,
    start: u64,
    step: u64,
}

impl Walk {
    fn new(order: Order, blocks: u32) -> Walk {
        let blocks = u64::from(blocks);
        let (start, step) = match order {
            Order::Forward => (0, 1),
            Order::Reverse => (blocks - 1, blocks - 1),
            Order::Random(seed) => {
                let mixed = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                // A step that has no divisor in common with the number of blocks visits each of them once.
                let step = (mixed >> 33) % blocks..;
                (mixed % blocks, step.into_iter().find(|step| gcd(*step, blocks) == 1).unwrap_or(1))
            }
        };
        Walk { blocks, start, step }
    }

    fn nth(self, i: u32) -> u32 {
        ((self.start + u64::from(i) * self.step) % self.blocks) as u32
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Runs a kernel; blocks run in parallel on rayon's threads.
///
/// # Errors
/// The fault that stopped it. Other blocks may or may not have run.
///
/// # Safety
/// The thunks belong to a kernel whose arguments `args` are, of the right number and types, and the kernel stays within
/// the memory that they point at.
pub unsafe fn run(launch: &Call<'_>, order: Order) -> Result<(), Fault> {
    /// A job whose pointers may cross threads.
    struct Everywhere<'a>(Job<'a>);
    // SAFETY: the arguments are only read, and the kernel's own memory accesses are the caller's promise.
    unsafe impl Sync for Everywhere<'_> {}

    black_box((calls::exports(), hooks::exports(), hopper::exports()));
    let clusters = launch.clusters()?;
    let walk = Walk::new(order, clusters);
    let job = Everywhere(launch.job(launch.plain, order, null_mut()));
    if clusters == 1 {
        // SAFETY: as the caller promises; dimensions were checked.
        return unsafe { run_cluster(&job.0, 0) }.map(|_| ());
    }
    let (failed, first) = (AtomicBool::new(false), Mutex::new(None));
    (0..clusters).into_par_iter().for_each(|i| {
        let job = &job;
        if failed.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: as above.
        if let Err(fault) = unsafe { run_cluster(&job.0, walk.nth(i)) } {
            failed.store(true, Ordering::Relaxed);
            first.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(fault);
        }
    });
    first.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
}

/// Runs a kernel under the checker, one block after the other, on this thread.
///
/// `regions` are all pointer arguments; a finding names the one nearest to a bad address. An access out of bounds or
/// misaligned ends the launch before it happens.
///
/// # Errors
/// The fault that stopped it.
///
/// # Safety
/// As [`run`], but the kernel may stray from its memory: the checker stops it.
pub unsafe fn run_checked(launch: &Call<'_>, order: Order, regions: &[Region]) -> Result<Report, Fault> {
    // SAFETY: as the caller promises.
    unsafe { checked(launch, order, regions, None).1 }
}

/// As [`run_checked`], and records what some threads of one block do, up to a fault if there is one.
///
/// # Safety
/// As [`run_checked`].
pub unsafe fn run_traced(
    launch: &Call<'_>,
    order: Order,
    regions: &[Region],
    follow: &Follow,
) -> (Vec<TraceEvent>, Result<Report, Fault>) {
    // SAFETY: as the caller promises.
    unsafe { checked(launch, order, regions, Some(Trace::new(follow.clone()))) }
}

unsafe fn checked(
    launch: &Call<'_>,
    order: Order,
    regions: &[Region],
    trace: Option<Trace>,
) -> (Vec<TraceEvent>, Result<Report, Fault>) {
    black_box((calls::exports(), hooks::exports(), hopper::exports()));
    let clusters = match launch.clusters() {
        Ok(clusters) => clusters,
        Err(fault) => return (vec![], Err(fault)),
    };
    let mut checker = Checker::new(launch, regions, trace);
    let job = launch.job(launch.checked, order, &raw mut checker);
    let walk = Walk::new(order, clusters);
    let mut outcome = Ok(());
    for i in 0..clusters {
        // SAFETY: as the caller promises; the checker lives to the end of this function.
        match unsafe { run_cluster(&job, walk.nth(i)) } {
            Ok(true) => {}
            Ok(false) => break,
            Err(fault) => {
                outcome = Err(fault);
                break;
            }
        }
    }
    let (report, events) = checker.finish();
    (events, outcome.map(|()| report))
}
