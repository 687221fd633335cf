//! One block: its state, and what its threads do to it.
//!
//! Kernel code calls back into this crate (`calls.rs`) while the scheduler is suspended in a fiber's `resume`. Both
//! reach the block through one raw pointer, never through a reference that lives across a switch.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::null_mut;

use corosensei::Yielder;

use super::checker::Checker;
use super::cluster::Cluster;
use super::hopper::Hopper;
use super::report::{Fault, FaultKind, Site};
use super::shared::{Copies, Shared};
use super::warp::{Meetings, Warp};
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
    /// Blocks of a cluster; each divides the grid.
    pub(super) cluster: [u32; 3],
    pub(super) shared: u32,
    pub(super) order: Order,
    /// Null in an unchecked launch.
    pub(super) checker: *mut Checker,
}

/// What the scheduler does next.
pub(super) enum Choice {
    /// Begin a thread.
    Fresh,
    /// Resume this fiber.
    Ready(usize),
    /// All threads have left the kernel.
    Done,
    /// Threads wait, and nothing can wake them.
    Stuck,
}

/// Why a fiber is suspended.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pause {
    /// It ran out of threads.
    Idle,
    Barrier,
    /// In this meeting.
    Meeting(u32),
    /// For something that another thread brings about.
    Wait(Waiting),
    /// Until others have had their turn.
    Poll,
    /// A fault; it never goes on.
    Stop,
}

/// What a thread waits for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Waiting {
    /// The end of a phase of the mbarrier at this address.
    Phase(u32),
    /// The named barrier of this number.
    Named(u32),
    /// The cluster's barrier.
    Cluster,
    /// The rest of its warpgroup, at `wgmma.wait_group`.
    Products,
}

/// A block that an OS thread runs now.
pub(super) struct Block {
    pub(super) context: *mut Context,
    pub(super) kernel: String,
    pub(super) thunk: Thunk,
    pub(super) args: *const *mut c_void,
    pub(super) index: [u32; 3],
    /// Linear block index.
    pub(super) number: u32,
    /// Its rank in its cluster, the cluster's linear index, and the cluster.
    pub(super) rank: u32,
    pub(super) group: u32,
    pub(super) cluster: *mut Cluster,
    pub(super) grid: [u32; 3],
    dynamic: *mut u8,
    pub(super) hopper: Hopper,
    pub(super) dim: [u32; 3],
    pub(super) threads: u32,
    pub(super) order: Order,
    pub(super) shuffled: Vec<u32>,
    /// Threads begun so far.
    pub(super) next: u32,
    pub(super) alive: u32,
    pub(super) random: u64,
    pub(super) yielder: *const Yielder<(), ()>,
    pub(super) pause: Pause,
    pub(super) site: Site,
    pub(super) warps: Vec<Warp>,
    pub(super) meetings: Meetings,
    pub(super) fiber_of: Vec<u32>,
    pub(super) ready: Vec<u32>,
    pub(super) head: usize,
    pub(super) barrier: Vec<u32>,
    /// Where the first of them stands, and which thread that is.
    pub(super) barrier_site: (Site, u32),
    pub(super) shared: Shared,
    pub(super) copies: Vec<Copies>,
    pub(super) copied: bool,
    pub(super) fault: Option<Fault>,
    pub(super) checker: *mut Checker,
    /// Address range of the running fiber's stack.
    pub(super) stack: (usize, usize),
}

thread_local! {
    static CURRENT: Cell<*mut Block> = const { Cell::new(null_mut()) };
}

/// The block that runs on this OS thread; null outside a launch.
#[inline]
pub(super) fn current() -> *mut Block {
    CURRENT.get()
}

/// Makes it the block that runs on this OS thread; null: none does.
pub(super) fn set_current(block: *mut Block) {
    CURRENT.set(block);
}

unsafe extern "C" fn nothing(_: *const *mut c_void) {}

impl Block {
    pub(super) fn new() -> Block {
        Block {
            context: tilework_emu_context(),
            kernel: String::new(),
            thunk: nothing,
            args: null_mut(),
            index: [0; 3],
            number: 0,
            rank: 0,
            group: 0,
            cluster: null_mut(),
            grid: [1; 3],
            dynamic: null_mut(),
            hopper: Hopper::default(),
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
        }
    }

    /// Block `rank` of the `group`-th cluster begins.
    pub(super) fn begin(&mut self, job: &Job<'_>, group: u32, rank: u32, cluster: *mut Cluster) {
        let [cx, cy, cz] = job.cluster;
        let [x, y, _] = job.grid;
        let (across, down) = (x / cx, y / cy);
        self.index = [
            group % across * cx + rank % cx,
            group / across % down * cy + rank / cx % cy,
            group / across / down * cz + rank / cx / cy,
        ];
        let number = self.index[0] + x * (self.index[1] + y * self.index[2]);
        (self.number, self.dim, self.order) = (number, job.block, job.order);
        (self.rank, self.group, self.cluster, self.grid) = (rank, group, cluster, job.grid);
        self.hopper.clear();
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
        self.dynamic = self.shared.begin(job.shared as usize);
    }

    /// Kernel code sees this block from here on.
    pub(super) fn activate(&mut self) {
        // SAFETY: this OS thread's context, which lives as long as the thread.
        let context = unsafe { &mut *self.context };
        (context.block, context.block_dim, context.grid_dim) = (self.index, self.dim, self.grid);
        context.dynamic = self.dynamic;
        set_current(self);
    }

    pub(super) fn cluster_size(&self) -> u32 {
        // SAFETY: a block's cluster lives as long as it runs.
        let cluster = unsafe { &*self.cluster };
        cluster.blocks.len() as u32
    }

    /// The block of this rank in its cluster.
    pub(super) fn peer(&self, rank: usize) -> &Block {
        // SAFETY: all blocks of a cluster live as long as it runs; none is borrowed mutably while the checker looks.
        unsafe { &*(&(*self.cluster).blocks)[rank] }
    }

    /// Threads that have not begun come first, unless chance decides; a barrier opens when nothing else can go on.
    pub(super) fn choose(&mut self) -> Choice {
        let random = matches!(self.order, Order::Random(_));
        loop {
            let waiting = self.ready.len() - self.head;
            if self.next < self.threads && (waiting == 0 || !random || self.below(2) == 0) {
                return Choice::Fresh;
            }
            if waiting > 0 {
                let head = self.head;
                if random {
                    let pick = head + self.below(waiting);
                    self.ready.swap(head, pick);
                }
                let fiber = self.ready[head];
                self.head += 1;
                if waiting == 1 {
                    self.ready.clear();
                    self.head = 0;
                }
                return Choice::Ready(fiber as usize);
            }
            if self.alive == 0 {
                return Choice::Done;
            }
            if self.barrier.len() as u32 != self.threads {
                return Choice::Stuck;
            }
            self.ready.append(&mut self.barrier);
            if !self.checker.is_null() {
                // SAFETY: the launch's checker, which nothing else uses now.
                unsafe { (*self.checker).barrier(self) };
            }
        }
    }

    /// The fiber `at`, with this thread, stands at a barrier.
    pub(super) fn wait_at_barrier(&mut self, at: usize, linear: u32) {
        if self.barrier.is_empty() {
            self.barrier_site = (self.site, linear);
        }
        self.barrier.push(at as u32);
    }

    /// A number below `n`; xorshift.
    pub(super) fn below(&mut self, n: usize) -> usize {
        let mut x = self.random;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random = x;
        (((x >> 32) * n as u64) >> 32) as usize
    }

    #[inline]
    pub(super) fn begin_thread(&mut self) -> u32 {
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
    pub(super) fn leave_thread(&mut self, linear: u32) {
        self.warps[(linear >> 5) as usize].exited |= 1 << (linear & 31);
        self.alive -= 1;
    }

    pub(super) fn coordinates(&self, linear: u32) -> [u32; 3] {
        let [x, y, z] = self.dim;
        if y == 1 && z == 1 { [linear, 0, 0] } else { [linear % x, linear / x % y, linear / x / y] }
    }

    #[inline]
    pub(super) fn enter(&mut self, linear: u32, thread: [u32; 3]) {
        // SAFETY: this OS thread's context.
        let context = unsafe { &mut *self.context };
        (context.thread, context.linear, context.lane) = (thread, linear, linear & 31);
    }

    /// `threadIdx` of the running thread.
    #[inline]
    pub(super) fn thread(&self) -> [u32; 3] {
        // SAFETY: this OS thread's context.
        unsafe { (*self.context).thread }
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

    pub(super) fn fault(&self, kind: FaultKind, detail: String, thread: Option<u32>, site: Site) -> Fault {
        Fault {
            kernel: self.kernel.clone(),
            kind,
            block: Some(self.index),
            thread: thread.map(|t| self.coordinates(t)),
            at: site.resolve(),
            detail,
        }
    }
}
