//! Runs one block of threads on one OS thread.
//!
//! A CUDA thread runs on a fiber until it blocks (a barrier, a warp collective); a thread that never blocks leaves its
//! fiber to the next one, so that an elementwise kernel needs no switch at all. Fibers stay with their OS thread and are
//! used again by later blocks.

use std::cell::RefCell;
use std::ptr::null_mut;

use corosensei::{Coroutine, Yielder};

use super::block::{Block, Choice, Job, Pause, current, set_current};
use super::report::{Action, Fault, FaultKind, Site, dim};
use super::stacks::{Stack, Stacks};
use super::warp;

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

/// What an OS thread keeps from block to block.
struct Worker {
    fibers: Vec<Fiber>,
    stacks: Stacks,
    /// From a `Box`; a pointer, because fibers use it while the worker is borrowed.
    block: *mut Block,
}

thread_local! {
    static WORKER: RefCell<Worker> = RefCell::new(Worker::new());
}

impl Worker {
    fn new() -> Worker {
        Worker { fibers: vec![], stacks: Stacks::default(), block: Box::into_raw(Box::new(Block::new())) }
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
        // SAFETY: made from a box in `new`; no fiber is left that could use it.
        drop(unsafe { Box::from_raw(self.block) });
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

/// Runs block `number` of a launch. `Ok(false)`: the checker stopped it.
///
/// # Safety
/// The job's thunk and arguments belong together, its pointers are valid, and its dimensions were checked.
pub(super) unsafe fn run_block(job: &Job<'_>, number: u32) -> Result<bool, Fault> {
    WORKER.with_borrow_mut(|worker| {
        let block = worker.block;
        // SAFETY: this worker's block, which no fiber uses now; a checked launch lends its checker to one block at a
        // time; the rest is as the caller promises.
        let done = unsafe {
            (*block).begin(job, number);
            if !job.checker.is_null() {
                (*job.checker).begin_block(&mut *block);
            }
            set_current(block);
            schedule(worker, block)
        };
        set_current(null_mut());
        // SAFETY: as above; all fibers are suspended.
        let block = unsafe { &*block };
        let fault = |kind, detail| Err(block.fault(kind, detail, None, Site::NONE));
        match done {
            Ok(used) if worker.fibers[..used].iter().any(|f| !f.stack.intact()) => {
                worker.reset(false); // the overflow may have run into any other stack of the slab
                fault(FaultKind::StackOverflow, OVERFLOW.to_string())
            }
            Ok(_) => match block.shared.overrun() {
                Some(name) => fault(FaultKind::SharedMemory, format!("written past the end of {name}")),
                None => Ok(true),
            },
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
    let mut used = 0;
    loop {
        // SAFETY: only this OS thread touches the block, and no fiber runs now.
        let b = unsafe { &mut *block };
        let at = match b.choose() {
            Choice::Fresh => {
                // An idle fiber goes on with fresh threads; a new one begins with them.
                let at = worker.fiber(used);
                used += 1;
                b.yielder = worker.fibers[at].yielder;
                at
            }
            Choice::Ready(at) => {
                let fiber = &worker.fibers[at];
                b.enter(fiber.linear, fiber.thread);
                b.yielder = fiber.yielder;
                at
            }
            Choice::Done => return Ok(used),
            Choice::Stuck => return Err(Some(deadlock(b, &worker.fibers[..used]))),
        };
        let fiber = &mut worker.fibers[at];
        b.stack = fiber.stack.range();
        fiber.routine.resume(());
        // SAFETY: as above: the fiber is suspended.
        let b = unsafe { &mut *block };
        (fiber.pause, fiber.yielder) = (b.pause, b.yielder);
        if b.pause == Pause::Idle {
            continue;
        }
        (fiber.linear, fiber.thread, fiber.site) = (b.linear(), b.thread(), b.site);
        match b.pause {
            Pause::Barrier => b.wait_at_barrier(at, fiber.linear),
            Pause::Meeting(_) => b.fiber_of[fiber.linear as usize] = at as u32,
            Pause::Stop | Pause::Idle => return Err(b.fault.take()),
        }
    }
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
