//! Runs one block of threads on one OS thread.
//!
//! A CUDA thread runs on a fiber until it blocks (a barrier, a warp collective); a thread that never blocks leaves its
//! fiber to the next one, so that an elementwise kernel needs no switch at all. Fibers stay with their OS thread and are
//! used again by later blocks.
//!
//! Kernel code calls back into this module (`calls.rs`) while the scheduler's loop is suspended in `resume`. Both reach
//! the block's state through one raw pointer, never through a reference that lives across a switch.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ptr::null_mut;

use corosensei::{Coroutine, Yielder};

use super::checker::Checker;
use super::report::{Action, Fault, FaultKind, Site, dim};
use super::shared::{Copies, Shared};
use super::stacks::{Stack, Stacks};
use super::warp::{self, Meetings, Warp};
use super::{Order, Thunk};

/// What kernel code reads directly; `emu::Context` in cuda.h.
#[repr(C)]
pub(super) struct Context {
    pub(super) thread: [u32; 3],
    block: [u32; 3],
    block_dim: [u32; 3],
    grid_dim: [u32; 3],
    pub(super) lane: u32,
    pub(super) linear: u32,
    dynamic: *mut u8,
}

unsafe extern "C" {
    /// The context of this OS thread. Defined by every kernel's object file.
    safe fn tilework_emu_context() -> *mut Context;
}

/// What all blocks of a launch have in common.
pub(super) struct Job<'a> {
    pub(super) kernel: &'a str,
    pub(super) thunk: Thunk,
    pub(super) args: *const *mut c_void,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) shared: u32,
    pub(super) order: Order,
    /// Null in an unchecked launch.
    pub(super) checker: *mut Checker,
}

/// Why a fiber is suspended.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pause {
    /// It ran out of threads.
    Idle,
    Barrier,
    /// In this meeting.
    Meeting(u32),
    /// A fault; it never goes on.
    Stop,
}

struct Fiber {
    routine: Coroutine<(), (), (), Stack>,
    stack: Stack,
    yielder: *const Yielder<(), ()>,
    pause: Pause,
    /// Linear index and coordinates of its thread.
    linear: u32,
    thread: [u32; 3],
    /// Where its thread waits.
    site: Site,
}

/// The block that an OS thread runs now.
pub(super) struct Block {
    pub(super) context: *mut Context,
    kernel: String,
    thunk: Thunk,
    args: *const *mut c_void,
    pub(super) index: [u32; 3],
    /// Linear block index.
    pub(super) number: u32,
    dim: [u32; 3],
    threads: u32,
    order: Order,
    shuffled: Vec<u32>,
    /// Threads begun so far.
    next: u32,
    alive: u32,
    random: u64,
    yielder: *const Yielder<(), ()>,
    pause: Pause,
    pub(super) site: Site,
    pub(super) warps: Vec<Warp>,
    pub(super) meetings: Meetings,
    fiber_of: Vec<u32>,
    ready: Vec<u32>,
    head: usize,
    barrier: Vec<u32>,
    /// Where the first of them stands, and which thread that is.
    barrier_site: (Site, u32),
    pub(super) shared: Shared,
    pub(super) copies: Vec<Copies>,
    pub(super) copied: bool,
    fault: Option<Fault>,
    pub(super) checker: *mut Checker,
    /// Address range of the running fiber's stack.
    pub(super) stack: (usize, usize),
}

/// What an OS thread keeps from block to block.
struct Worker {
    fibers: Vec<Fiber>,
    stacks: Stacks,
    block: Box<Block>,
}

thread_local! {
    static CURRENT: Cell<*mut Block> = const { Cell::new(null_mut()) };
    static WORKER: RefCell<Worker> = RefCell::new(Worker::new());
}

/// The block that runs on this OS thread; null outside a launch.
#[inline]
pub(super) fn current() -> *mut Block {
    CURRENT.get()
}

unsafe extern "C" fn nothing(_: *const *mut c_void) {}

impl Worker {
    fn new() -> Worker {
        let block = Block {
            context: tilework_emu_context(),
            kernel: String::new(),
            thunk: nothing,
            args: null_mut(),
            index: [0; 3],
            number: 0,
            dim: [1; 3],
            threads: 0,
            order: Order::Forward,
            shuffled: vec![],
            next: 0,
            alive: 0,
            random: 1,
            yielder: null_mut(),
            pause: Pause::Idle,
            site: Site::NONE,
            warps: vec![],
            meetings: Meetings::default(),
            fiber_of: vec![],
            ready: vec![],
            head: 0,
            barrier: vec![],
            barrier_site: (Site::NONE, 0),
            shared: Shared::default(),
            copies: vec![],
            copied: false,
            fault: None,
            checker: null_mut(),
            stack: (0, 0),
        };
        Worker { fibers: vec![], stacks: Stacks::default(), block: Box::new(block) }
    }

    /// Index of a fiber that is free for new threads.
    fn fiber(&mut self, used: usize) -> usize {
        if used == self.fibers.len() {
            let stack = self.stacks.take();
            let routine = Coroutine::with_stack(stack, |yielder: &Yielder<(), ()>, ()| fresh_threads(yielder));
            let (yielder, pause) = (null_mut(), Pause::Idle);
            self.fibers.push(Fiber { routine, stack, yielder, pause, linear: 0, thread: [0; 3], site: Site::NONE });
        }
        used
    }

    /// Drops fibers in the middle of a kernel, and with them whatever their stacks hold.
    fn reset(&mut self, keep_idle: bool) {
        for mut fiber in std::mem::take(&mut self.fibers) {
            if keep_idle && fiber.pause == Pause::Idle && fiber.stack.intact() {
                self.fibers.push(fiber);
                continue;
            }
            // SAFETY: frames of kernels, and of our functions that they called: nothing on them needs a destructor.
            unsafe { fiber.routine.force_reset() };
            self.stacks.give(fiber.stack);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.reset(false);
    }
}

/// The body of every fiber: runs threads that have not begun, one after the other, in every block that it is used for.
fn fresh_threads(yielder: &Yielder<(), ()>) {
    loop {
        // SAFETY: the scheduler resumes a fiber only while the block is set, and touches it only while the fiber is
        // suspended. No reference into the block is alive while the kernel runs.
        unsafe {
            let block = CURRENT.get();
            (*block).yielder = yielder;
            let (thunk, args, checked) = ((*block).thunk, (*block).args, !(*block).checker.is_null());
            while (*block).next < (*block).threads {
                let thread = (*block).begin_thread();
                if checked {
                    (*(*block).checker).event(block, Action::Start, Site::NONE);
                }
                thunk(args);
                (*block).leave_thread(thread);
                if checked {
                    (*(*block).checker).event(block, Action::Exit, Site::NONE);
                }
            }
            (*block).pause = Pause::Idle;
        }
        yielder.suspend(());
    }
}

impl Block {
    fn begin(&mut self, job: &Job<'_>, number: u32) {
        let [x, y, _] = job.grid;
        self.index = [number % x, number / x % y, number / x / y];
        (self.number, self.dim, self.order) = (number, job.block, job.order);
        (self.thunk, self.args, self.checker) = (job.thunk, job.args, job.checker);
        self.kernel.clear();
        self.kernel.push_str(job.kernel);
        self.threads = job.block.iter().product();
        (self.next, self.alive) = (0, self.threads);
        let warps = self.threads.div_ceil(32) as usize;
        if self.warps.len() < warps {
            self.warps.resize_with(warps, Warp::default);
        }
        for (i, warp) in self.warps[..warps].iter_mut().enumerate() {
            let lanes = self.threads - i as u32 * 32;
            warp.exist = if lanes >= 32 { !0 } else { (1 << lanes) - 1 };
            warp.exited = 0;
            warp.open.clear();
        }
        self.meetings.clear();
        if self.fiber_of.len() < self.threads as usize {
            self.fiber_of.resize(self.threads as usize, 0);
        }
        self.ready.clear();
        self.head = 0;
        self.barrier.clear();
        if std::mem::take(&mut self.copied) {
            self.copies.iter_mut().for_each(Copies::clear);
        }
        self.fault = None;
        if let Order::Random(seed) = job.order {
            let mixed = seed.wrapping_add(u64::from(number) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            self.random = (mixed ^ mixed >> 27) | 1;
            self.shuffled.clear();
            self.shuffled.extend(0..self.threads);
            for i in (1..self.threads as usize).rev() {
                let j = self.below(i + 1);
                self.shuffled.swap(i, j);
            }
        }
        let dynamic = self.shared.begin(job.shared as usize);
        // SAFETY: this OS thread's context, which lives as long as the thread.
        let context = unsafe { &mut *self.context };
        (context.block, context.block_dim, context.grid_dim) = (self.index, job.block, job.grid);
        context.dynamic = dynamic;
    }

    /// A number below `n`; xorshift.
    fn below(&mut self, n: usize) -> usize {
        let mut x = self.random;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random = x;
        ((x >> 32) * n as u64 >> 32) as usize
    }

    #[inline]
    fn begin_thread(&mut self) -> u32 {
        let linear = match self.order {
            Order::Forward => self.next,
            Order::Reverse => self.threads - 1 - self.next,
            Order::Random(_) => self.shuffled[self.next as usize],
        };
        self.next += 1;
        let thread = self.coordinates(linear);
        self.enter(linear, thread);
        linear
    }

    #[inline]
    fn leave_thread(&mut self, linear: u32) {
        self.warps[(linear >> 5) as usize].exited |= 1 << (linear & 31);
        self.alive -= 1;
    }

    pub(super) fn coordinates(&self, linear: u32) -> [u32; 3] {
        let [x, y, z] = self.dim;
        if y == 1 && z == 1 { [linear, 0, 0] } else { [linear % x, linear / x % y, linear / x / y] }
    }

    #[inline]
    fn enter(&mut self, linear: u32, thread: [u32; 3]) {
        // SAFETY: this OS thread's context.
        let context = unsafe { &mut *self.context };
        (context.thread, context.linear, context.lane) = (thread, linear, linear & 31);
    }

    /// Linear index of the running thread.
    #[inline]
    pub(super) fn linear(&self) -> u32 {
        // SAFETY: this OS thread's context.
        unsafe { (*self.context).linear }
    }

    /// The barrier at which others stand already, with one of them.
    #[inline]
    pub(super) fn at_barrier(&self) -> Option<(Site, u32)> {
        (!self.barrier.is_empty()).then_some(self.barrier_site)
    }

    /// Makes the fibers of these lanes ready.
    pub(super) fn wake(&mut self, warp: u32, lanes: u32) {
        let mut lanes = lanes;
        while lanes != 0 {
            let lane = if self.order == Order::Reverse { 31 - lanes.leading_zeros() } else { lanes.trailing_zeros() };
            lanes &= !(1 << lane);
            self.ready.push(self.fiber_of[(warp * 32 + lane) as usize]);
        }
    }

    /// Suspends the running thread.
    ///
    /// # Safety
    /// To be called on the fiber of this block that runs now; no reference into the block may be alive.
    #[inline]
    pub(super) unsafe fn suspend(block: *mut Block, pause: Pause, site: Site) {
        // SAFETY: the yielder lives on the running fiber's stack.
        unsafe {
            (*block).pause = pause;
            (*block).site = site;
            (*(*block).yielder).suspend(());
        }
    }

    /// Ends the launch with a fault of the running thread, which never goes on.
    ///
    /// # Safety
    /// As [`Block::suspend`].
    pub(super) unsafe fn fail(block: *mut Block, kind: FaultKind, detail: String, site: Site) -> ! {
        // SAFETY: as the caller promises; the string has moved into the block.
        unsafe {
            let linear = (*block).linear();
            (*block).fault = Some((*block).fault(kind, detail, Some(linear), site));
            Block::stop(block)
        }
    }

    /// Ends the launch where the checker has found what must not be carried out.
    ///
    /// # Safety
    /// As [`Block::suspend`].
    pub(super) unsafe fn stop(block: *mut Block) -> ! {
        // SAFETY: as the caller promises.
        unsafe { Block::suspend(block, Pause::Stop, Site::NONE) };
        std::process::abort() // the scheduler drops a stopped fiber and never resumes it
    }

    fn fault(&self, kind: FaultKind, detail: String, thread: Option<u32>, site: Site) -> Fault {
        Fault {
            kernel: self.kernel.clone(),
            kind,
            block: Some(self.index),
            thread: thread.map(|t| self.coordinates(t)),
            at: site.resolve(),
            detail,
        }
    }

    /// What the threads wait for, when none can go on.
    fn deadlock(&self, fibers: &[Fiber]) -> Fault {
        let left = self.threads - self.alive;
        if self.barrier.len() as u32 == self.alive {
            let first = &fibers[self.barrier[0] as usize];
            let gone = (0..self.threads).find(|t| self.warps[(t >> 5) as usize].exited >> (t & 31) & 1 == 1);
            let gone = gone.map_or(String::new(), |t| format!(" (thread {} is one)", dim(self.coordinates(t))));
            let detail = format!(
                "{} of {} threads wait here for {left} that have left the kernel{gone}",
                self.alive, self.threads
            );
            return self.fault(FaultKind::AbandonedBarrier, detail, Some(first.linear), first.site);
        }
        let warps = &self.warps[..self.threads.div_ceil(32) as usize];
        let Some(id) = warps.iter().find_map(|w| w.open.first()) else {
            let detail = format!("{} threads wait, {left} have left the kernel", self.alive);
            return self.fault(FaultKind::Deadlock, detail, None, Site::NONE);
        };
        let meeting = self.meetings.get(*id);
        let missing = meeting.named & !meeting.arrived;
        let lane = missing.trailing_zeros();
        let absent = meeting.warp * 32 + lane;
        let whereabouts = if warps[meeting.warp as usize].exited >> lane & 1 == 1 {
            "has left the kernel".to_string()
        } else {
            let fiber = fibers.iter().find(|f| f.linear == absent && f.pause != Pause::Idle);
            let line = fiber.and_then(|f| f.site.resolve()).map_or(String::new(), |l| format!(" at {l}"));
            match fiber.map(|f| f.pause) {
                Some(Pause::Barrier) => format!("waits at the barrier{line}"),
                Some(Pause::Meeting(other)) => {
                    let other = self.meetings.get(other);
                    format!("waits in {}{line}, mask {:#010x}", warp::name(other.op), other.mask)
                }
                _ => "cannot run".to_string(),
            }
        };
        let first = meeting.warp * 32 + meeting.arrived.trailing_zeros();
        let detail = format!(
            "{} with mask {:#010x} waits for lanes {missing:#010x}; lane {lane}, thread {}, {whereabouts}",
            warp::name(meeting.op),
            meeting.mask,
            dim(self.coordinates(absent))
        );
        self.fault(FaultKind::Deadlock, detail, Some(first), meeting.site)
    }
}

/// Runs block `number` of a launch. `Ok(false)`: the checker stopped it.
///
/// # Safety
/// The job's thunk and arguments belong together, its pointers are valid, and its dimensions were checked.
pub(super) unsafe fn run_block(job: &Job<'_>, number: u32) -> Result<bool, Fault> {
    WORKER.with_borrow_mut(|worker| {
        worker.block.begin(job, number);
        let block: *mut Block = &mut *worker.block;
        if !job.checker.is_null() {
            // SAFETY: a checked launch lends its checker to one block at a time.
            unsafe { (*job.checker).begin_block(&mut *block, (*block).threads) };
        }
        CURRENT.set(block);
        // SAFETY: as the caller promises; `block` is this worker's.
        let done = unsafe { schedule(worker, block) };
        CURRENT.set(null_mut());
        let block = &worker.block;
        match done {
            Ok(used) => {
                if let Some(name) = block.shared.overrun() {
                    let detail = format!("written past the end of {name}");
                    return Err(block.fault(FaultKind::SharedMemory, detail, None, Site::NONE));
                }
                if worker.fibers[..used].iter().any(|f| !f.stack.intact()) {
                    let fault = block.fault(FaultKind::StackOverflow, OVERFLOW.to_string(), None, Site::NONE);
                    worker.reset(true);
                    return Err(fault);
                }
                Ok(true)
            }
            Err(fault) => {
                worker.reset(true);
                fault.map_or(Ok(false), Err)
            }
        }
    })
}

const OVERFLOW: &str = "a thread's local variables do not fit the 64 KiB of its stack";

/// Runs the block to its end; returns how many fibers it took. `Err(None)`: the checker stopped it.
///
/// # Safety
/// `block` is `worker.block`, begun.
unsafe fn schedule(worker: &mut Worker, block: *mut Block) -> Result<usize, Option<Fault>> {
    // SAFETY: only this OS thread touches the block, and a fiber only while this function is suspended in `resume`.
    unsafe {
        let random = matches!((*block).order, Order::Random(_));
        let mut used = 0;
        loop {
            let fresh = (*block).next < (*block).threads;
            let waiting = (&(*block).ready).len() - (*block).head;
            let at = if fresh && (waiting == 0 || !random || (*block).below(2) == 0) {
                let at = worker.fiber(used);
                used += 1;
                // An idle fiber goes on with fresh threads.
                (*block).yielder = worker.fibers[at].yielder;
                at
            } else if waiting > 0 {
                let head = (*block).head;
                if random {
                    let pick = head + (*block).below(waiting);
                    (&mut (*block).ready).swap(head, pick);
                }
                (*block).head += 1;
                let at = (&(*block).ready)[head] as usize;
                if (*block).head == (&(*block).ready).len() {
                    (*block).ready.clear();
                    (*block).head = 0;
                }
                let fiber = &worker.fibers[at];
                (*block).enter(fiber.linear, fiber.thread);
                (*block).yielder = fiber.yielder;
                at
            } else if (*block).alive == 0 {
                return Ok(used);
            } else if (&(*block).barrier).len() as u32 == (*block).threads {
                let b = &mut *block;
                b.ready.append(&mut b.barrier);
                if !b.checker.is_null() {
                    (*b.checker).barrier();
                }
                continue;
            } else {
                return Err(Some((*block).deadlock(&worker.fibers[..used])));
            };
            let fiber = &mut worker.fibers[at];
            (*block).stack = fiber.stack.range();
            fiber.routine.resume(());
            let b = &mut *block;
            fiber.pause = b.pause;
            fiber.yielder = b.yielder;
            match b.pause {
                Pause::Idle => {}
                Pause::Barrier => {
                    (fiber.linear, fiber.thread, fiber.site) = (b.linear(), (*b.context).thread, b.site);
                    if b.barrier.is_empty() {
                        b.barrier_site = (fiber.site, fiber.linear);
                    }
                    b.barrier.push(at as u32);
                }
                Pause::Meeting(_) => {
                    (fiber.linear, fiber.thread, fiber.site) = (b.linear(), (*b.context).thread, b.site);
                    b.fiber_of[fiber.linear as usize] = at as u32;
                }
                Pause::Stop => return Err(b.fault.take()),
            }
        }
    }
}
