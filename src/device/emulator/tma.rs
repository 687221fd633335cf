//! TMA: boxes of a tensor copied between global and shared memory, behind the back of the thread that begins a copy.
//!
//! A copy to shared memory lands at its mbarrier (`mbarrier.rs`); what it will overwrite is poison until then. A copy to
//! global memory reads shared memory at once, or as late as at its thread's wait (`hopper::late`).

use std::ffi::{c_char, c_void};
use std::ops::Range;

use super::access::{Access, Behalf};
use super::block::{Block, current};
use super::clocks::Behind;
use super::cluster::{reach, resolve};
use super::hopper::{agent, begin, behalf, late, note};
use super::map::{Map, decode};
use super::mbarrier::{expect, on_behalf, target};
use super::report::{FaultKind, FindingKind, Site};
use super::shared::POISON;

/// What a kernel asks for; `emu::Tma` in hopper.h.
#[repr(C)]
struct Request {
    map: *const [u32; 32],
    shared: u32,
    barrier: u32,
    at: [i32; 5],
    offsets: [u32; 3],
    rank: u32,
    kind: u32,
    /// Bit by bit, the blocks of the cluster that get the box; 0: only this one.
    blocks: u32,
}

const LOAD: u32 = 0;
const LOAD_IM2COL: u32 = 1;
const STORE: u32 = 2;

/// The 16 bytes of one chunk: where they are in shared and in global memory, and which of them the tensor has.
struct Chunk {
    shared: *mut u8,
    global: *mut u8,
    valid: Range<usize>,
}

/// A copy that is under way.
pub(super) struct Landing {
    chunks: Vec<Chunk>,
    pub(super) bytes: usize,
    pub(super) behalf: Option<Behalf>,
    pub(super) site: Site,
}

impl Landing {
    /// The box is in shared memory.
    ///
    /// # Safety
    /// The memory is there: a checked launch has proved it, else it is the kernel's promise.
    pub(super) unsafe fn carry_out(&self, block: *mut Block) {
        for chunk in &self.chunks {
            // SAFETY: as the caller promises; shared and global memory are apart.
            unsafe {
                if let Some(behalf) = self.behalf {
                    Access::site(chunk.shared as usize, 16, Access::LAND, self.site).behind(behalf).check(block);
                }
                chunk.shared.write_bytes(0, 16);
                let Range { start, end } = chunk.valid;
                chunk.shared.add(start).copy_from_nonoverlapping(chunk.global.add(start), end - start);
            }
        }
    }

    /// The box is in global memory.
    ///
    /// # Safety
    /// As [`Landing::carry_out`].
    unsafe fn store(&self) {
        for chunk in &self.chunks {
            let Range { start, end } = chunk.valid;
            // SAFETY: as the caller promises.
            unsafe { chunk.global.add(start).copy_from_nonoverlapping(chunk.shared.add(start), end - start) };
        }
    }
}

/// A thread's copies to global memory.
#[derive(Default)]
pub(super) struct Stores {
    /// Groups committed so far.
    groups: u32,
    open: Vec<(u32, bool, Landing)>,
}

pub(super) fn exports() -> [*const (); 2] {
    [tilework_emu_tma as *const (), tilework_emu_bulk as *const ()]
}

/// The chunks of a box at an address of shared memory, which is `start` in this program.
fn chunks(map: &Map, rows: &[(usize, Range<usize>)], address: u32, start: *mut u8) -> Vec<Chunk> {
    let row = map.row() as usize;
    let mask = (map.swizzle.row() / 16).saturating_sub(1);
    let mut chunks = Vec::with_capacity(rows.len() * row / 16);
    for (i, (global, valid)) in rows.iter().enumerate() {
        for c in (0..row).step_by(16) {
            let plain = address + (i * row + c) as u32;
            let stirred = plain ^ (plain >> 7 & mask) << 4;
            chunks.push(Chunk {
                shared: start.wrapping_offset(stirred as isize - address as isize),
                global: global.wrapping_add(c) as *mut u8,
                valid: valid.start.clamp(c, c + 16) - c..valid.end.clamp(c, c + 16) - c,
            });
        }
    }
    chunks
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_tma(request: *const Request, file: *const c_char, line: i32) {
    let (block, site) = (current(), Site::new(file, line));
    // SAFETY: called by a kernel, so `block` is the block that runs on this OS thread, and the request is on its stack.
    unsafe {
        begin(block);
        let r = &*request;
        let bad = move |detail: String| Block::fail(block, FaultKind::BadCopy, detail, site);
        if !(r.map as usize).is_multiple_of(64) {
            bad("the tensor map is not aligned to 64 bytes".into());
        }
        let Some(map) = decode(&*r.map) else { bad("not a tensor map of this device".into()) };
        let at = r.at.map(i64::from);
        if let Some(problem) = problem(&map, r, at) {
            bad(problem);
        }
        let rows = map.rows(at, r.offsets.map(i64::from));
        let bytes = rows.len() * map.row() as usize;
        if r.kind == STORE {
            let (_, start) = reach(block, r.shared, bytes, site);
            store(block, Landing { chunks: chunks(&map, &rows, r.shared, start), bytes, behalf: None, site });
            return;
        }
        let everywhere = if r.blocks == 0 { 1 << (*block).rank } else { r.blocks };
        if everywhere >> (*block).cluster_size() != 0 {
            bad(format!("a box for blocks {everywhere:#x} of a cluster of {}", (*block).cluster_size()));
        }
        for rank in (0..16).filter(|rank| everywhere >> rank & 1 == 1) {
            let there = |address: u32| if rank == (*block).rank { address } else { (rank + 1) << 24 | address };
            let (owner, start) = reach(block, there(r.shared), bytes, site);
            let (of, local, clock) = target(block, there(r.barrier), site);
            if of != owner {
                bad("the box and its mbarrier are in different blocks".into());
            }
            let mut landing =
                Landing { chunks: chunks(&map, &rows, r.shared & 0xff_ffff, start), bytes, behalf: None, site };
            if !(*block).checker.is_null() {
                let behalf = on_behalf(block, owner, local, clock);
                landing.behalf = Some(behalf);
                for c in &landing.chunks {
                    let global = c.global as usize + c.valid.start;
                    Access::site(global, c.valid.len(), Access::READ, site).behind(behalf).check(block);
                    Access::site(c.shared as usize, 16, Access::ISSUE, site).behind(behalf).check(block);
                }
            }
            for c in &landing.chunks {
                if !(*owner).shared.holds(c.shared) || !(*owner).shared.holds(c.shared.wrapping_add(15)) {
                    bad("the swizzled box does not lie in shared memory".into());
                }
                c.shared.write_bytes(POISON, 16);
            }
            let late = late(&mut *block);
            expect(block, owner, local, landing, late);
        }
    }
}

/// What is wrong with a request.
fn problem(map: &Map, r: &Request, at: [i64; 5]) -> Option<String> {
    if map.rank != r.rank as usize {
        return Some(format!("{} coordinates for a tensor of {} dimensions", r.rank, map.rank));
    }
    if map.im2col != (r.kind == LOAD_IM2COL) || ![LOAD, LOAD_IM2COL, STORE].contains(&r.kind) {
        let kinds = ["tiles", "im2col"];
        return Some(format!(
            "an instruction for {}, a map for {}",
            kinds[usize::from(!map.im2col)],
            kinds[usize::from(map.im2col)]
        ));
    }
    if !r.shared.is_multiple_of(128) {
        return Some(format!(
            "the box at {:#x} in shared memory is {} bytes off its alignment of 128",
            r.shared,
            r.shared % 128
        ));
    }
    let outside = (1..map.rank - 1).find(|i| at[*i] < map.lower[*i] || at[*i] > map.dims[*i] - 1 + map.upper[*i]);
    if let (true, Some(i)) = (map.im2col, outside) {
        let (lower, upper) = (map.lower[i], map.dims[i] - 1 + map.upper[i]);
        return Some(format!("coordinate {i} is {}; the bounding box has {lower} to {upper}", at[i]));
    }
    let most = [0xffff, 0xff, 0x1f][map.rank.clamp(3, 5) - 3];
    if r.offsets.iter().any(|o| *o > most) {
        return Some(format!("offsets {:?}; {most} is the most", r.offsets));
    }
    None
}

/// The running thread's stores.
///
/// # Safety
/// `block` runs on this OS thread; the reference must end before the next switch.
unsafe fn stores<'a>(block: *mut Block, linear: u32) -> &'a mut Stores {
    // SAFETY: as the caller promises.
    unsafe {
        let all = &mut (*block).hopper.stores;
        if all.len() <= linear as usize {
            all.resize_with(linear as usize + 1, Stores::default);
        }
        &mut all[linear as usize]
    }
}

/// # Safety
/// As [`Landing::carry_out`], on the running fiber.
unsafe fn store(block: *mut Block, mut landing: Landing) {
    // SAFETY: as the caller promises.
    unsafe {
        let linear = (*block).linear();
        let group = stores(block, linear).groups;
        if !(*block).checker.is_null() {
            let what = Behind::Stores((*block).rank, linear);
            let by = behalf(block, what, group + 1, std::ptr::null());
            landing.behalf = Some(by);
            for c in landing.chunks.iter().filter(|c| !c.valid.is_empty()) {
                Access::site(c.shared as usize, 16, Access::READ, landing.site).behind(by).check(block);
                let global = c.global as usize + c.valid.start;
                Access::site(global, c.valid.len(), Access::WRITE, landing.site).behind(by).check(block);
            }
        }
        let late = late(&mut *block);
        if !late {
            landing.store();
        }
        stores(block, linear).open.push((group, late, landing));
    }
}

/// A thread leaves: its stores must have been waited for.
///
/// # Safety
/// As [`stores`].
pub(super) unsafe fn leave_thread(block: *mut Block, linear: u32) {
    // SAFETY: as the caller promises; the memory is there as long as the block runs.
    unsafe {
        let all = &(*block).hopper.stores;
        if all.len() <= linear as usize {
            return;
        }
        for (_, late, landing) in std::mem::take(&mut stores(block, linear).open) {
            let what = "a thread leaves, and shared memory may be gone before it is read".to_string();
            note(block, FindingKind::AbandonedStore, landing.site, what);
            if late {
                landing.store();
            }
        }
    }
}

const COMMIT: u32 = 0;

/// `cp.async.bulk.commit_group`, or a wait until at most `pending` groups are under way.
#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_bulk(what: u32, pending: u32) {
    let block = current();
    // SAFETY: as above.
    unsafe {
        begin(block);
        let linear = (*block).linear();
        let all = stores(block, linear);
        if what == COMMIT {
            all.groups += 1;
            return;
        }
        let groups = all.groups;
        let done = |group: u32| group.saturating_add(pending) < groups;
        for (_, late, landing) in all.open.extract_if(.., |(group, ..)| done(*group)) {
            if late {
                landing.store();
            }
        }
        if !(*block).checker.is_null() && groups > pending {
            let by = behalf(block, Behind::Stores((*block).rank, linear), groups - pending, std::ptr::null());
            let me = agent(block);
            (*(*block).checker).clocks(&*block).see(me, by.agent, by.clock);
        }
    }
}

/// Where a matrix product reads: bytes of shared memory, if they are there.
///
/// # Safety
/// As [`resolve`].
pub(super) unsafe fn at(block: *mut Block, address: u32, bytes: usize) -> Option<*const c_void> {
    // SAFETY: as the caller promises.
    unsafe { resolve(block, address, bytes).map(|(_, at)| at.cast_const().cast()) }
}
