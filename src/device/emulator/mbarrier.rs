//! mbarriers: arrivals and bytes are counted; when all of a phase have come, those who wait for it go on.
//!
//! A barrier's eight bytes in shared memory hold a mark, so that a stray write shows; its counts are kept here. Copies
//! that arrive at a barrier land when a thread waits for it, or at once (`hopper::late`), and a thread that already waits
//! gets them at once in any case.

use std::collections::HashMap;
use std::ffi::c_char;

use super::access::Access;
use super::block::{Block, Pause, Waiting, current};
use super::clocks::{Behind, Row};
use super::cluster::reach;
use super::hopper::{agent, begin, behalf, note};
use super::report::{FaultKind, FindingKind, Site};
use super::tma::Landing;

/// What a barrier's bytes hold.
const MARK: u64 = 0x6d62_6172_7269_6572;
/// Counts are below this.
const LIMIT: i64 = 1 << 20;
/// Polls in vain after which a block is stuck.
const POLLS: u32 = 200_000;

struct Barrier {
    count: u32,
    /// Arrivals that this phase lacks.
    pending: u32,
    /// Bytes announced that have not come, less those come that were not announced.
    bytes: i64,
    /// Phases that have ended, and whether a thread has waited for the last of them.
    phase: u32,
    seen: bool,
    /// Copies to arrive here that were begun.
    copies: u32,
    /// Where it was made.
    site: Site,
    /// Who made it, and whether a fence has shown it to TMA since.
    maker: u32,
    published: bool,
    /// What those who arrive know, and what those who wait learn.
    row: Row,
    done: Row,
    waiting: Vec<u32>,
    late: Vec<Landing>,
}

/// A block's barriers, by address.
#[derive(Default)]
pub(super) struct Barriers {
    all: HashMap<u32, Barrier>,
}

impl Barriers {
    /// A thread's fence shows TMA the barriers that it made.
    pub(super) fn publish(&mut self, linear: u32) {
        self.all.values_mut().filter(|b| b.maker == linear).for_each(|b| b.published = true);
    }

    /// What is wrong when all threads have left.
    pub(super) fn left_over(&self) -> Option<String> {
        let missing = |b: &Barrier| b.bytes - b.late.iter().map(|l| l.bytes as i64).sum::<i64>();
        let (address, b) = self.all.iter().find(|(_, b)| missing(b) != 0 || !b.late.is_empty())?;
        let line = b.site.resolve().map_or(String::new(), |l| format!("{l}: "));
        let what = match missing(b) {
            0 => "copies are under way".into(),
            bytes if bytes < 0 => format!("{} bytes more have come than were expected", -bytes),
            bytes => format!("{bytes} bytes have not come"),
        };
        Some(format!("{line}the mbarrier at {address:#x}: when all threads have left, {what}"))
    }

    /// Whether a barrier's phase lacks only bytes.
    pub(super) fn all_arrived(&self, address: u32) -> bool {
        self.all.get(&address).is_some_and(|b| b.pending == 0)
    }

    /// What a thread lacks that waits for a phase.
    pub(super) fn waits_for(&self, address: u32) -> String {
        let b = &self.all[&address];
        format!(
            "mbarrier at {address:#x}: its phase {} lacks {} of {} arrivals and {} bytes, and no other thread can go on",
            b.phase, b.pending, b.count, b.bytes
        )
    }
}

/// Whether the phase with this parity has ended: it is not the one under way. Who asks has waited for it then.
fn ended(b: &mut Barrier, parity: u32) -> bool {
    let ended = b.phase & 1 != parity & 1;
    b.seen |= ended;
    ended
}

/// The barrier at an address, of whatever block; the launch ends if there is none.
///
/// # Safety
/// `block` runs on this OS thread; the reference must end before the next switch, and before the next of these calls.
unsafe fn find<'a>(block: *mut Block, address: u32, site: Site) -> (*mut Block, u32, &'a mut Barrier) {
    // SAFETY: as the caller promises; eight bytes of shared memory, aligned.
    unsafe {
        let bad = move |what: &str| Block::fail(block, FaultKind::BadBarrier, format!("at {address:#x}: {what}"), site);
        if !address.is_multiple_of(8) {
            bad("not aligned to 8 bytes");
        }
        let (owner, at) = reach(block, address, 8, site);
        let local = address & 0xff_ffff;
        if (*owner).alive == 0 {
            bad("its block has left");
        }
        let Some(b) = (*owner).hopper.barriers.all.get_mut(&local) else { bad("no mbarrier was initialised here") };
        if at.cast::<u64>().read() != MARK {
            bad("its bytes were written over");
        }
        (owner, local, b)
    }
}

/// What a copy needs to know of the barrier that it arrives at: whose it is, its agent and clock.
///
/// # Safety
/// As [`find`], in a checked launch.
pub(super) unsafe fn target(block: *mut Block, address: u32, site: Site) -> (*mut Block, u32, u32) {
    // SAFETY: as the caller promises.
    unsafe {
        let (owner, local, b) = find(block, address, site);
        b.copies += 1;
        let (copies, published) = (b.copies, b.published);
        if !published {
            let what = format!("between the initialisation of the mbarrier at {local:#x} and TMA");
            note(block, FindingKind::MissingProxyFence, site, what);
        }
        (owner, local, copies)
    }
}

/// The agent of a block's barrier.
pub(super) fn agent_of(owner: *mut Block, local: u32) -> Behind {
    Behind::Barrier(owner as usize ^ (local as usize) << 40)
}

/// A copy that arrives at a block's barrier begins.
///
/// # Safety
/// As [`find`].
pub(super) unsafe fn expect(block: *mut Block, owner: *mut Block, local: u32, landing: Landing, late: bool) {
    // SAFETY: as the caller promises.
    unsafe {
        let Some(b) = (*owner).hopper.barriers.all.get_mut(&local) else { return };
        if late && b.waiting.is_empty() {
            b.late.push(landing);
        } else {
            land(block, owner, local, &landing);
        }
    }
}

/// A copy arrives.
///
/// # Safety
/// As [`find`].
unsafe fn land(block: *mut Block, owner: *mut Block, local: u32, landing: &Landing) {
    // SAFETY: as the caller promises.
    unsafe {
        landing.carry_out(block);
        let Some(b) = (*owner).hopper.barriers.all.get_mut(&local) else { return };
        b.bytes -= landing.bytes as i64;
        if let Some(by) = landing.behalf {
            b.row.see(by.agent, by.clock);
        }
        settle(block, owner, local, landing.site);
    }
}

/// All copies that are late arrive: a thread waits for them.
///
/// # Safety
/// As [`find`].
unsafe fn land_late(block: *mut Block, owner: *mut Block, local: u32) {
    // SAFETY: as the caller promises.
    unsafe {
        let Some(b) = (*owner).hopper.barriers.all.get_mut(&local) else { return };
        let phase = b.phase;
        for landing in std::mem::take(&mut b.late) {
            if let Some(b) = (*owner).hopper.barriers.all.get(&local).filter(|b| b.phase != phase) {
                let bytes = landing.bytes;
                let detail = format!(
                    "at {local:#x}: phase {} ends, and {bytes} bytes more have come than were expected",
                    b.phase - 1
                );
                Block::fail(block, FaultKind::BadBarrier, detail, landing.site);
            }
            land(block, owner, local, &landing);
        }
    }
}

/// Ends the phase if nothing is missing.
///
/// # Safety
/// As [`find`].
unsafe fn settle(block: *mut Block, owner: *mut Block, local: u32, site: Site) {
    // SAFETY: as the caller promises.
    unsafe {
        let Some(b) = (*owner).hopper.barriers.all.get_mut(&local) else { return };
        (*(*block).cluster).polls = 0;
        if b.pending > 0 || b.bytes > 0 {
            return;
        }
        if b.bytes < 0 {
            let detail = format!("at {local:#x}: {} bytes more have come than were expected", -b.bytes);
            Block::fail(block, FaultKind::BadBarrier, detail, site);
        }
        let missed = b.phase > 0 && !b.seen;
        b.phase += 1;
        b.seen = !b.waiting.is_empty();
        b.pending = b.count;
        b.done = b.row.clone();
        let phase = b.phase;
        for linear in std::mem::take(&mut b.waiting) {
            let fiber = (&(*owner).fiber_of)[linear as usize];
            (*owner).ready.push(fiber);
        }
        if missed {
            let what =
                format!("at {local:#x}: phase {} has ended, and nobody waited for phase {}", phase - 1, phase - 2);
            note(block, FindingKind::MissedPhase, site, what);
        }
    }
}

/// The running thread learns what came before the last phase's end.
///
/// # Safety
/// As [`find`].
unsafe fn acquire(block: *mut Block, address: u32, site: Site) {
    // SAFETY: as the caller promises.
    unsafe {
        let checker = (*block).checker;
        if !checker.is_null() {
            let done = find(block, address, site).2.done.clone();
            let me = agent(block);
            (*checker).clocks(&*block).acquire(me, &done);
        }
    }
}

const NEW: u32 = 0;
const END: u32 = 1;
const ARRIVE: u32 = 2;
const EXPECT: u32 = 3;
const ARRIVE_EXPECT: u32 = 4;
const TEST: u32 = 5;
const WAIT: u32 = 6;

pub(super) fn exports() -> [*const (); 1] {
    [tilework_emu_mbarrier as *const ()]
}

/// `argument` is a count, a number of bytes or a parity. What is returned: whether the phase has ended.
#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_mbarrier(
    what: u32,
    address: u32,
    argument: u32,
    file: *const c_char,
    line: i32,
) -> bool {
    let (block, site) = (current(), Site::new(file, line));
    // SAFETY: called by a kernel, so `block` is the block that runs on this OS thread; each reference ends before the
    // switch.
    unsafe {
        begin(block);
        let bad =
            move |what: String| Block::fail(block, FaultKind::BadBarrier, format!("at {address:#x}: {what}"), site);
        if what == NEW {
            make(block, address, argument, site);
            return true;
        }
        if !(*block).checker.is_null() {
            // Whoever uses it must know that it was initialised, and its block must be there.
            let at = reach(block, address, 8, site).1;
            Access::site(at as usize, 8, Access::READ, site).check(block);
        }
        let (owner, local, b) = find(block, address, site);
        match what {
            END => {
                (*owner).hopper.barriers.all.remove(&local);
            }
            ARRIVE | EXPECT | ARRIVE_EXPECT => {
                if what != ARRIVE {
                    b.bytes += i64::from(argument);
                    if b.bytes >= LIMIT {
                        bad(format!("{} bytes are expected; 2^20 - 1 are the most", b.bytes));
                    }
                }
                if what != EXPECT {
                    let arrivals = if what == ARRIVE { argument } else { 1 };
                    if arrivals > b.pending {
                        let (count, pending) = (b.count, b.pending);
                        bad(format!("{arrivals} arrivals where its phase lacks {pending} of {count}"));
                    }
                    b.pending -= arrivals;
                    let checker = (*block).checker;
                    if !checker.is_null() {
                        let me = agent(block);
                        (*checker).clocks(&*block).release(me, &mut b.row);
                    }
                }
                settle(block, owner, local, site);
            }
            TEST | WAIT => {
                if owner != block {
                    bad("only a block's own threads can wait for its mbarriers".into());
                }
                land_late(block, owner, local);
                return if what == WAIT {
                    wait(block, address, argument, site)
                } else {
                    test(block, address, argument, site)
                };
            }
            _ => bad(format!("operation {what}")),
        }
        true
    }
}

/// # Safety
/// As [`find`], on the running fiber.
unsafe fn wait(block: *mut Block, address: u32, parity: u32, site: Site) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        let linear = (*block).linear();
        let (_, _, b) = find(block, address, site);
        if !ended(b, parity) {
            b.waiting.push(linear);
            Block::suspend(block, Pause::Wait(Waiting::Phase(address)), site);
        }
        acquire(block, address, site);
        true
    }
}

/// # Safety
/// As [`find`], on the running fiber.
unsafe fn test(block: *mut Block, address: u32, parity: u32, site: Site) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        if !ended(find(block, address, site).2, parity) {
            let cluster = (*block).cluster;
            (*cluster).polls += 1;
            if (*cluster).polls > POLLS {
                let detail = format!("a thread polls in vain: {}", (*block).hopper.barriers.waits_for(address));
                Block::fail(block, FaultKind::Deadlock, detail, site);
            }
            // A loop around this would never let others run.
            Block::suspend(block, Pause::Poll, site);
            if !ended(find(block, address, site).2, parity) {
                return false;
            }
        }
        acquire(block, address, site);
        true
    }
}

/// # Safety
/// As [`find`], on the running fiber.
unsafe fn make(block: *mut Block, address: u32, count: u32, site: Site) {
    // SAFETY: as the caller promises; eight bytes of the block's own shared memory.
    unsafe {
        let bad = move |what: &str| Block::fail(block, FaultKind::BadBarrier, format!("at {address:#x}: {what}"), site);
        if !address.is_multiple_of(8) {
            bad("not aligned to 8 bytes");
        }
        if count == 0 || i64::from(count) >= LIMIT {
            bad("a count is at least 1, and below 2^20");
        }
        let (owner, at) = reach(block, address, 8, site);
        if owner != block {
            bad("a block initialises its own mbarriers only");
        }
        if !(*block).checker.is_null() {
            Access::site(at as usize, 8, Access::WRITE, site).check(block);
        }
        at.cast::<u64>().write(MARK);
        let (row, done) = (Row::default(), Row::default());
        let (maker, waiting, late) = ((*block).linear(), vec![], vec![]);
        let copies = (*block).hopper.barriers.all.get(&address).map_or(0, |old| old.copies);
        let (pending, bytes, phase, seen, published) = (count, 0, 0, false, false);
        let barrier =
            Barrier { count, pending, bytes, phase, seen, copies, site, maker, published, row, done, waiting, late };
        (*block).hopper.barriers.all.insert(address, barrier);
    }
}

/// Who writes on behalf of a barrier.
///
/// # Safety
/// As [`find`], in a checked launch.
pub(super) unsafe fn on_behalf(block: *mut Block, owner: *mut Block, local: u32, clock: u32) -> super::access::Behalf {
    // SAFETY: as the caller promises.
    unsafe { behalf(block, agent_of(owner, local), clock, std::ptr::null()) }
}
