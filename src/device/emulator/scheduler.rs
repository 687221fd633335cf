//! Runs one block of threads, or the blocks of one cluster, on one OS thread.
//!
//! A CUDA thread runs on a fiber until it blocks (a barrier, a warp collective); a thread that never blocks leaves its
//! fiber to the next one, so that an elementwise kernel needs no switch at all. Fibers stay with their OS thread and are
//! used again by later blocks.

use std::cell::RefCell;
use std::ptr::null_mut;

use corosensei::{Coroutine, Yielder};

use super::block::{Block, Choice, Job, Pause, current, set_current};
use super::checker::Checker;
use super::cluster::Cluster;
use super::report::{Action, Fault, FaultKind, Site, dim};
use super::stacks::{Stack, Stacks};
use super::{Order, hopper, warp};

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

/// A block and the fibers of its threads.
struct Seat {
    fibers: Vec<Fiber>,
    /// From a `Box`; a pointer, because fibers use it while the worker is borrowed.
    block: *mut Block,
}

/// What an OS thread keeps from block to block.
struct Worker {
    /// By rank in a cluster.
    seats: Vec<Seat>,
    stacks: Stacks,
    /// From a `Box`, as above.
    cluster: *mut Cluster,
}

thread_local! {
    static WORKER: RefCell<Worker> = RefCell::new(Worker::new());
}

impl Seat {
    /// Index of a fiber that is free for new threads.
    fn fiber(&mut self, used: usize, stacks: &mut Stacks) -> usize {
        if used == self.fibers.len() {
            let stack = stacks.take();
            let routine = Coroutine::with_stack(stack, |yielder: &Yielder<(), ()>, ()| fresh_threads(yielder));
            let (yielder, pause) = (null_mut(), Pause::Idle);
            self.fibers.push(Fiber { routine, stack, yielder, pause, linear: 0, thread: [0; 3], site: Site::NONE });
        }
        used
    }

    /// Drops fibers in the middle of a kernel, and with them whatever their stacks hold.
    fn reset(&mut self, keep_idle: bool, stacks: &mut Stacks) {
        for mut fiber in std::mem::take(&mut self.fibers) {
            if keep_idle && fiber.pause == Pause::Idle && fiber.stack.intact() {
                self.fibers.push(fiber);
                continue;
            }
            // SAFETY: frames of kernels, and of our functions that they called: nothing on them needs a destructor.
            unsafe { fiber.routine.force_reset() };
            stacks.give(fiber.stack);
        }
    }
}

impl Worker {
    fn new() -> Worker {
        let cluster = Box::into_raw(Box::new(Cluster::default()));
        Worker { seats: vec![], stacks: Stacks::default(), cluster }
    }

    /// Begins the blocks of a cluster.
    ///
    /// # Safety
    /// As [`run_cluster`].
    unsafe fn begin(&mut self, job: &Job<'_>, group: u32) {
        let size = job.cluster.iter().product::<u32>() as usize;
        while self.seats.len() < size {
            self.seats.push(Seat { fibers: vec![], block: Box::into_raw(Box::new(Block::new())) });
        }
        // SAFETY: this worker's blocks and cluster, which no fiber uses now; a checked launch lends its checker to one
        // cluster at a time; the rest is as the caller promises.
        unsafe {
            let cluster = &mut *self.cluster;
            cluster.blocks.clear();
            cluster.blocks.extend(self.seats[..size].iter().map(|s| s.block));
            cluster.dims = job.cluster;
            cluster.begin(job.block.iter().product());
            for (rank, seat) in self.seats[..size].iter().enumerate() {
                (*seat.block).begin(job, group, rank as u32, self.cluster);
                if !job.checker.is_null() {
                    (*job.checker).begin_block(&mut *seat.block);
                }
            }
        }
    }

    fn reset(&mut self, keep_idle: bool) {
        self.seats.iter_mut().for_each(|s| s.reset(keep_idle, &mut self.stacks));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.reset(false);
        for seat in &self.seats {
            // SAFETY: made from a box in `begin`; no fiber is left that could use it.
            drop(unsafe { Box::from_raw(seat.block) });
        }
        // SAFETY: made from a box in `new`, likewise.
        drop(unsafe { Box::from_raw(self.cluster) });
    }
}

/// The body of every fiber: runs threads that have not begun, one after the other, in every block that it is used for.
fn fresh_threads(yielder: &Yielder<(), ()>) {
    loop {
        // SAFETY: the scheduler resumes a fiber only while the block is set, and touches it only while the fiber is
        // suspended. No reference into the block is alive while the kernel runs.
        unsafe {
            let block = current();
            (*block).yielder = yielder;
            let (thunk, args, checked) = ((*block).thunk, (*block).args, !(*block).checker.is_null());
            while (*block).next < (*block).threads {
                let thread = (*block).begin_thread();
                if checked {
                    (*(*block).checker).event(block, Action::Start, Site::NONE);
                }
                thunk(args);
                if (*block).hopper.used {
                    hopper::leave_thread(block, thread);
                }
                (*block).leave_thread(thread);
                if checked {
                    (*(*block).checker).event(block, Action::Exit, Site::NONE);
                }
                if (*block).cluster_size() > 1 {
                    let cluster = (*block).cluster;
                    (*cluster).leave((*block).rank * (*block).threads + thread);
                    if checked && (*block).alive == 0 {
                        (*(*block).checker).leave_block(&*block);
                    }
                }
            }
            (*block).pause = Pause::Idle;
        }
        yielder.suspend(());
    }
}

/// Runs the `group`-th cluster of a launch. `Ok(false)`: the checker stopped it.
///
/// # Safety
/// The job's thunk and arguments belong together, its pointers are valid, and its dimensions were checked.
pub(super) unsafe fn run_cluster(job: &Job<'_>, group: u32) -> Result<bool, Fault> {
    WORKER.with_borrow_mut(|worker| {
        // SAFETY: as the caller promises.
        let done = unsafe {
            worker.begin(job, group);
            schedule(worker, job.cluster.iter().product::<u32>() as usize)
        };
        set_current(null_mut());
        let used = match done {
            Ok(used) => used,
            Err(fault) => {
                worker.reset(true);
                return fault.map_or(Ok(false), Err);
            }
        };
        for (seat, used) in worker.seats.iter().zip(used) {
            // SAFETY: all fibers are suspended.
            let block = unsafe { &*seat.block };
            let fault = |kind, detail| Err(block.fault(kind, detail, None, Site::NONE));
            if seat.fibers[..used].iter().any(|f| !f.stack.intact()) {
                let overflow = fault(FaultKind::StackOverflow, OVERFLOW.to_string());
                worker.reset(false); // the overflow may have run into any other stack of the slab
                return overflow;
            }
            if let Some(name) = block.shared.overrun() {
                return fault(FaultKind::SharedMemory, format!("written past the end of {name}"));
            }
            // SAFETY: the checker has not gone away while its launch runs.
            let found = unsafe { job.checker.as_ref() }.is_some_and(Checker::has_found);
            if let Some((kind, problem)) = block.hopper.left_over().filter(|_| !found) {
                return fault(kind, problem);
            }
        }
        Ok(true)
    })
}

const OVERFLOW: &str = "a thread's local variables do not fit the 64 KiB of its stack";

/// Runs the first `size` blocks to their ends; returns how many fibers each took. `Err(None)`: the checker stopped it.
///
/// # Safety
/// They are begun.
unsafe fn schedule(worker: &mut Worker, size: usize) -> Result<[usize; 16], Option<Fault>> {
    let mut used = [0; 16];
    let (mut rank, mut idle, mut stuck) = (0, 0, None);
    loop {
        let seat = &mut worker.seats[rank];
        let block = seat.block;
        // SAFETY: only this OS thread touches the block, and no fiber runs now.
        let b = unsafe { &mut *block };
        let at = match b.choose() {
            Choice::Fresh => {
                // An idle fiber goes on with fresh threads; a new one begins with them.
                let at = seat.fiber(used[rank], &mut worker.stacks);
                used[rank] += 1;
                b.yielder = seat.fibers[at].yielder;
                at
            }
            Choice::Ready(at) => {
                let fiber = &seat.fibers[at];
                b.enter(fiber.linear, fiber.thread);
                b.yielder = fiber.yielder;
                at
            }
            choice => {
                if matches!(choice, Choice::Stuck) {
                    stuck.get_or_insert(rank);
                }
                idle += 1;
                if idle < size {
                    rank = (rank + 1) % size;
                    continue;
                }
                return match stuck {
                    Some(rank) => {
                        Err(Some(deadlock(unblocked(worker, rank), &worker.seats[rank].fibers[..used[rank]])))
                    }
                    None => Ok(used),
                };
            }
        };
        (idle, stuck) = (0, None);
        let fiber = &mut seat.fibers[at];
        b.stack = fiber.stack.range();
        b.activate();
        fiber.routine.resume(());
        // SAFETY: as above: the fiber is suspended.
        let b = unsafe { &mut *block };
        (fiber.pause, fiber.yielder) = (b.pause, b.yielder);
        if b.pause != Pause::Idle {
            (fiber.linear, fiber.thread, fiber.site) = (b.linear(), b.thread(), b.site);
        }
        match b.pause {
            Pause::Idle => {}
            Pause::Barrier => b.wait_at_barrier(at, fiber.linear),
            Pause::Meeting(_) | Pause::Wait(_) => b.fiber_of[fiber.linear as usize] = at as u32,
            Pause::Poll => b.ready.push(at as u32),
            Pause::Stop => return Err(b.fault.take()),
        }
        // The blocks of a cluster take turns.
        rank = if b.order == Order::Reverse { (rank + size - 1) % size } else { (rank + 1) % size };
    }
}

/// The block of this rank, when no fiber runs.
fn unblocked(worker: &Worker, rank: usize) -> &Block {
    // SAFETY: this worker's block, which no fiber uses now.
    unsafe { &*worker.seats[rank].block }
}

/// What the threads wait for, when none can go on.
fn deadlock(block: &Block, fibers: &[Fiber]) -> Fault {
    let left = block.threads - block.alive;
    if block.barrier.len() as u32 == block.alive {
        let first = &fibers[block.barrier[0] as usize];
        let gone = (0..block.threads).find(|t| block.warps[(t >> 5) as usize].exited >> (t & 31) & 1 == 1);
        let gone = gone.map_or(String::new(), |t| format!(" (thread {} is one)", dim(block.coordinates(t))));
        let detail = format!(
            "{} of {} threads wait here for {left} that have left the kernel{gone}",
            block.alive, block.threads
        );
        return block.fault(FaultKind::AbandonedBarrier, detail, Some(first.linear), first.site);
    }
    let waiting = fibers.iter().filter_map(|f| if let Pause::Wait(what) = f.pause { Some((f, what)) } else { None });
    // Of several, first the one for which all threads have done their part.
    let waiting = waiting.min_by_key(|(f, what)| (!hopper::all_arrived(block, *what), f.linear));
    if let Some((fiber, what)) = waiting {
        return block.fault(FaultKind::Deadlock, hopper::waits_for(block, what), Some(fiber.linear), fiber.site);
    }
    let warps = &block.warps[..block.threads.div_ceil(32) as usize];
    let Some(id) = warps.iter().find_map(|w| w.open.first()) else {
        let detail = format!("{} threads wait, {left} have left the kernel", block.alive);
        return block.fault(FaultKind::Deadlock, detail, None, Site::NONE);
    };
    let meeting = block.meetings.get(*id);
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
                let other = block.meetings.get(other);
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
        dim(block.coordinates(absent))
    );
    block.fault(FaultKind::Deadlock, detail, Some(first), meeting.site)
}
