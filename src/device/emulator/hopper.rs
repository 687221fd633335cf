//! What a block keeps for the instructions of sm_90: mbarriers, copies and products under way, named barriers.

use std::ffi::c_char;

use super::access::Behalf;
use super::block::{Block, Pause, Waiting, current};
use super::clocks::{Behind, Row};
use super::mbarrier::{self, Barriers};
use super::report::{FaultKind, FindingKind, Site, dim};
use super::tma::{self, Stores};
use super::wgmma::{self, Warpgroup};
use super::{Order, cluster};

#[derive(Default)]
pub(super) struct Hopper {
    /// Whether any of it was used.
    pub(super) used: bool,
    pub(super) barriers: Barriers,
    /// By thread.
    pub(super) stores: Vec<Stores>,
    /// By warpgroup.
    pub(super) groups: Vec<Warpgroup>,
    named: Vec<Named>,
}

/// A barrier of some of a block's warps.
#[derive(Default)]
struct Named {
    expected: u32,
    arrived: Vec<u32>,
    waiting: Vec<u32>,
    row: Row,
}

impl Hopper {
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.used) {
            *self = Hopper::default();
        }
    }

    /// What is wrong when all threads have left.
    pub(super) fn left_over(&self) -> Option<(FaultKind, String)> {
        let product = self.groups.iter().find_map(Warpgroup::left_over).map(|what| (FaultKind::BadProduct, what));
        product.or_else(|| self.barriers.left_over().map(|what| (FaultKind::BadBarrier, what)))
    }
}

/// Marks the block as one that uses these instructions, and begins its clocks.
///
/// # Safety
/// `block` runs on this OS thread; no reference into it or its checker is alive.
pub(super) unsafe fn begin(block: *mut Block) {
    // SAFETY: as the caller promises.
    unsafe {
        (*block).hopper.used = true;
        if !(*block).checker.is_null() {
            (*(*block).checker).clocks(&*block);
        }
    }
}

/// The running thread's agent, in a checked launch with clocks.
///
/// # Safety
/// As [`begin`].
pub(super) unsafe fn agent(block: *mut Block) -> u32 {
    // SAFETY: as the caller promises.
    unsafe { (*block).rank * (*block).threads + (*block).linear() }
}

/// Who accesses memory for what works behind threads' backs.
///
/// # Safety
/// As [`begin`], in a checked launch.
pub(super) unsafe fn behalf(block: *mut Block, what: Behind, clock: u32, knows: *const Row) -> Behalf {
    // SAFETY: as the caller promises.
    let agent = unsafe { (*(*block).checker).clocks(&*block).behind(what) };
    Behalf { agent, clock, knows }
}

/// A finding of the running thread about no place in memory.
///
/// # Safety
/// As [`begin`].
pub(super) unsafe fn note(block: *mut Block, kind: FindingKind, site: Site, what: String) {
    // SAFETY: as the caller promises.
    unsafe {
        if !(*block).checker.is_null() {
            (*(*block).checker).note(kind, &*block, 0, site, what);
        }
    }
}

/// Whether something asynchronous happens as late as it may, at its wait, or else as early, at once.
pub(super) fn late(block: &mut Block) -> bool {
    match block.order {
        Order::Forward => true,
        Order::Reverse => false,
        Order::Random(_) => block.below(2) == 0,
    }
}

/// A thread returns from the kernel.
///
/// # Safety
/// As [`begin`].
pub(super) unsafe fn leave_thread(block: *mut Block, linear: u32) {
    // SAFETY: as the caller promises.
    unsafe { tma::leave_thread(block, linear) }
}

/// Whether only bytes are missing from what a thread waits for.
pub(super) fn all_arrived(block: &Block, what: Waiting) -> bool {
    matches!(what, Waiting::Phase(address) if block.hopper.barriers.all_arrived(address))
}

/// What a thread of a stuck block waits for.
pub(super) fn waits_for(block: &Block, what: Waiting) -> String {
    match what {
        Waiting::Phase(address) => block.hopper.barriers.waits_for(address),
        Waiting::Named(id) => {
            let named = &block.hopper.named[id as usize];
            format!("named barrier {id}: {} of {} threads have come", named.arrived.len(), named.expected)
        }
        Waiting::Cluster => "the cluster's barrier, to which not all threads of all its blocks come".into(),
        Waiting::Products => "wgmma.wait_group, to which not all 128 threads of the warpgroup come".into(),
    }
}

pub(super) fn exports() -> Vec<*const ()> {
    let own = [tilework_emu_named as *const (), tilework_emu_fence as *const ()];
    [&own[..], &cluster::exports(), &mbarrier::exports(), &tma::exports(), &wgmma::exports()].concat()
}

/// `bar.sync` and `bar.arrive`: barrier `id` of `threads` threads.
#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_named(id: u32, threads: u32, waits: bool, file: *const c_char, line: i32) {
    let (block, site) = (current(), Site::new(file, line));
    // SAFETY: called by a kernel, so `block` is the block that runs on this OS thread; each reference ends before the
    // switch.
    unsafe {
        begin(block);
        let bad = move |detail: String| Block::fail(block, FaultKind::DivergentBarrier, detail, site);
        if id >= 16 || threads == 0 || !threads.is_multiple_of(32) || threads > (*block).threads.next_multiple_of(32) {
            bad(format!("named barrier {id} of {threads} threads; there are 16, each for whole warps of the block"));
        }
        let linear = (*block).linear();
        (*block).hopper.named.resize_with(16, Named::default);
        let named = &mut (&mut (*block).hopper.named)[id as usize];
        if named.arrived.is_empty() {
            named.expected = threads;
        }
        if named.expected != threads {
            bad(format!("named barrier {id} of {threads} threads; others came to it as one of {}", named.expected));
        }
        if named.arrived.contains(&linear) {
            bad(format!("thread {} comes to named barrier {id} twice", dim((*block).coordinates(linear))));
        }
        named.arrived.push(linear);
        let checker = (*block).checker;
        if !checker.is_null() {
            (*checker).clocks(&*block).release(agent(block), &mut named.row);
        }
        if named.arrived.len() as u32 == threads {
            named.arrived.clear();
            let (waiting, row) = (std::mem::take(&mut named.waiting), std::mem::take(&mut named.row));
            for other in waiting.iter().copied().chain(waits.then_some(linear)) {
                if !checker.is_null() {
                    let rank = (*block).rank;
                    let clocks = (*checker).clocks(&*block);
                    let thread = clocks.thread(rank, other);
                    clocks.acquire(thread, &row);
                }
                if other != linear {
                    let fiber = (&(*block).fiber_of)[other as usize];
                    (*block).ready.push(fiber);
                }
            }
        } else if waits {
            named.waiting.push(linear);
            Block::suspend(block, Pause::Wait(Waiting::Named(id)), site);
        }
    }
}

/// `fence.proxy.async`.
const PROXY: u32 = 0;
/// `fence.mbarrier_init`.
const INIT: u32 = 1;
/// `wgmma.fence`.
const REGISTERS: u32 = 2;

#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_fence(kind: u32) {
    let block = current();
    // SAFETY: as above.
    unsafe {
        begin(block);
        let linear = (*block).linear();
        if kind != REGISTERS {
            (*block).hopper.barriers.publish(linear);
        }
        let checker = (*block).checker;
        if checker.is_null() {
            return;
        }
        match kind {
            PROXY => (*checker).clocks(&*block).fence(agent(block)),
            INIT => {}
            _ => {
                let top = (*block).stack.1;
                (*checker).registers(&*block).fence(top);
            }
        }
    }
}
