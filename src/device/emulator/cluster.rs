//! Blocks of a cluster: they run at once, meet at a barrier of their own and reach each other's shared memory.
//!
//! Every block of a launch belongs to a cluster, if only of itself. The fibers of all its blocks run on one OS thread.
//!
//! Addresses of shared memory have 32 bits, as on the GPU: dynamic memory ends at 256 KiB, static variables begin at 1 KiB,
//! and both keep their place within 1024 bytes, as swizzles go by bits of the address. The highest byte is 0 for the
//! block's own memory, else the rank of a block of the cluster, plus one.

use std::ffi::{c_char, c_void};

use super::access::Access;
use super::block::{Block, Pause, Waiting, current};
use super::clocks::Row;
use super::report::{FaultKind, Site};

/// Where addresses of static variables begin.
const STATIC: u32 = 1024;
/// Where addresses of dynamic memory end.
const END: u32 = 256 * 1024;

/// A cluster that runs, and its barrier.
#[derive(Default)]
pub(super) struct Cluster {
    /// By rank.
    pub(super) blocks: Vec<*mut Block>,
    pub(super) dims: [u32; 3],
    /// For each thread: whether it has arrived since the barrier last opened.
    arrived: Vec<bool>,
    /// For each thread: how often the barrier had opened when it arrived; none if it has waited since.
    ticket: Vec<Option<u64>>,
    /// Threads that have neither arrived nor left.
    missing: u32,
    opened: u64,
    waiting: Vec<u32>,
    /// What those who arrive know, and what those who leave learn.
    row: Row,
    done: Row,
    /// Polls since something happened.
    pub(super) polls: u32,
}

impl Cluster {
    pub(super) fn begin(&mut self, threads: u32) {
        let all = self.blocks.len() as u32 * threads;
        self.arrived.clear();
        self.arrived.resize(all as usize, false);
        self.ticket.clear();
        self.ticket.resize(all as usize, None);
        (self.missing, self.opened, self.polls) = (all, 0, 0);
        self.waiting.clear();
        (self.row, self.done) = (Row::default(), Row::default());
    }

    /// One thread fewer is missing: perhaps the last one.
    ///
    /// # Safety
    /// No reference into a block of the cluster is alive.
    unsafe fn one_less(&mut self) {
        self.missing -= 1;
        if self.missing > 0 || !self.arrived.contains(&true) {
            return;
        }
        self.opened += 1;
        self.polls = 0;
        self.done.join(&self.row);
        self.arrived.fill(false);
        // SAFETY: the blocks live as long as the cluster; each reference ends with its statement.
        unsafe {
            self.missing = self.blocks.iter().map(|b| (**b).alive).sum();
            let threads = (*self.blocks[0]).threads;
            for agent in self.waiting.drain(..) {
                let block = &mut *self.blocks[(agent / threads) as usize];
                block.ready.push(block.fiber_of[(agent % threads) as usize]);
            }
        }
    }

    /// A thread leaves the kernel; it counts as arrived.
    ///
    /// # Safety
    /// As [`Cluster::one_less`].
    pub(super) unsafe fn leave(&mut self, agent: u32) {
        if !std::mem::replace(&mut self.arrived[agent as usize], false) {
            // SAFETY: the caller's promise.
            unsafe { self.one_less() };
        }
    }
}

/// The address that the running block knows a byte of its shared memory by; none if it is not shared.
pub(super) fn address_of(block: &mut Block, at: usize) -> Option<u32> {
    let dynamic = block.shared.dynamic_start();
    let bytes = block.shared.dynamic_bytes;
    if (dynamic..=dynamic + bytes).contains(&at) && bytes > 0 {
        return Some(first(bytes) + (at - dynamic) as u32);
    }
    let arena = block.shared.arena();
    let address = (arena.0..arena.1).contains(&at).then(|| STATIC + (at - arena.0) as u32)?;
    (address < first(bytes)).then_some(address)
}

/// The address of dynamic memory of so many bytes.
fn first(bytes: usize) -> u32 {
    (END - bytes as u32) & !1023
}

/// The block that an address belongs to, and the byte in it; none if there is no such memory.
///
/// # Safety
/// `block` runs on this OS thread; no reference into a block of its cluster is alive.
pub(super) unsafe fn resolve(block: *mut Block, address: u32, bytes: usize) -> Option<(*mut Block, *mut u8)> {
    // SAFETY: as the caller promises; the references end here.
    unsafe {
        let cluster = &*(*block).cluster;
        let owner = match address >> 24 {
            0 => block,
            rank => *cluster.blocks.get(rank as usize - 1)?,
        };
        // A block that has not named its variables yet will have them at the same places.
        let used = cluster.blocks.iter().map(|b| (**b).shared.used()).max();
        let (local, shared) = (address & 0xff_ffff, &mut (*owner).shared);
        let dynamic = first(shared.dynamic_bytes);
        let (start, offset, room) = if local >= dynamic {
            (shared.dynamic_start(), (local - dynamic) as usize, shared.dynamic_bytes)
        } else {
            let arena = shared.arena();
            (arena.0, local.checked_sub(STATIC)? as usize, used?)
        };
        (offset + bytes <= room).then_some((owner, (start + offset) as *mut u8))
    }
}

/// Where a static variable lies that a block names for the first time: in all blocks of a cluster at the same place.
///
/// # Safety
/// As [`resolve`].
pub(super) unsafe fn place_of(block: *mut Block, key: *const c_void) -> Option<usize> {
    // SAFETY: as the caller promises; each reference ends with its statement.
    unsafe {
        let blocks = &(*(*block).cluster).blocks;
        if blocks.len() == 1 {
            return None;
        }
        let free = blocks.iter().map(|b| (**b).shared.used()).max();
        blocks.iter().find_map(|b| (**b).shared.place(key)).or(free)
    }
}

/// [`resolve`], or the end of the launch.
///
/// # Safety
/// As [`resolve`], on the running fiber.
pub(super) unsafe fn reach(block: *mut Block, address: u32, bytes: usize, site: Site) -> (*mut Block, *mut u8) {
    // SAFETY: as the caller promises.
    unsafe {
        match resolve(block, address, bytes) {
            Some(found) => found,
            None => {
                let detail =
                    format!("{bytes} bytes at {address:#x}, which is no address of the cluster's shared memory");
                Block::fail(block, FaultKind::BadCluster, detail, site)
            }
        }
    }
}

pub(super) fn exports() -> [*const (); 3] {
    [tilework_emu_smem_address as *const (), tilework_emu_remote as *const (), tilework_emu_cluster as *const ()]
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_smem_address(at: *const c_void, file: *const c_char, line: i32) -> u32 {
    let block = current();
    // SAFETY: called by a kernel, so `block` is the block that runs on this OS thread.
    unsafe {
        match address_of(&mut *block, at as usize) {
            Some(address) => address,
            None => {
                let detail = "the address of something that does not lie in the first 256 KiB of shared memory".into();
                Block::fail(block, FaultKind::SharedMemory, detail, Site::new(file, line))
            }
        }
    }
}

/// Where an address of the cluster's shared memory is, for an access of this kind.
#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_remote(
    address: u32,
    bytes: u32,
    kind: u32,
    file: *const c_char,
    line: i32,
) -> *mut c_void {
    let (block, site) = (current(), Site::new(file, line));
    // SAFETY: as above; the checker has not gone away while its launch runs.
    unsafe {
        let (_, at) = reach(block, address, bytes as usize, site);
        if !address.is_multiple_of(bytes) {
            let detail = format!("{bytes} bytes at {address:#x}, which is {} bytes off its alignment", address % bytes);
            Block::fail(block, FaultKind::BadCluster, detail, site);
        }
        if !(*block).checker.is_null() {
            Access::site(at as usize, bytes as usize, kind, site).check(block);
        }
        at.cast()
    }
}

const RANK: u32 = 0;
const SIZE: u32 = 1;
const ARRIVE: u32 = 2;
const WAIT: u32 = 3;
/// From here on: block index within the cluster, clusters' dimensions, cluster index, clusters of the grid; x, y, z each.
const INDEX: u32 = 4;

#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_cluster(what: u32, file: *const c_char, line: i32) -> u32 {
    let (block, site) = (current(), Site::new(file, line));
    // SAFETY: as above; each reference ends before the switch.
    unsafe {
        let cluster = (*block).cluster;
        let agent = (*block).rank * (*block).threads + (*block).linear();
        match what {
            RANK => (*block).rank,
            SIZE => (*block).cluster_size(),
            ARRIVE => {
                let c = &mut *cluster;
                if c.ticket[agent as usize].is_some() {
                    let detail = "a second arrival at the cluster's barrier, with no wait after the first";
                    Block::fail(block, FaultKind::BadCluster, detail.into(), site);
                }
                c.ticket[agent as usize] = Some(c.opened);
                c.arrived[agent as usize] = true;
                if !(*block).checker.is_null() {
                    (*(*block).checker).clocks(&*block).release(agent, &mut c.row);
                }
                c.one_less();
                0
            }
            WAIT => {
                let Some(ticket) = (&mut (*cluster).ticket)[agent as usize].take() else {
                    let detail = "a wait at the cluster's barrier with no arrival before it";
                    Block::fail(block, FaultKind::BadCluster, detail.into(), site)
                };
                if (*cluster).opened == ticket {
                    (*cluster).waiting.push(agent);
                    Block::suspend(block, Pause::Wait(Waiting::Cluster), site);
                }
                if !(*block).checker.is_null() {
                    (*(*block).checker).clocks(&*block).acquire(agent, &(*cluster).done);
                }
                0
            }
            _ => {
                let (dims, index) = ((*cluster).dims, (*block).index);
                let grid = (*block).grid;
                let at = ((what - INDEX) % 3) as usize;
                match (what - INDEX) / 3 {
                    0 => index[at] % dims[at],
                    1 => dims[at],
                    2 => index[at] / dims[at],
                    _ => grid[at] / dims[at],
                }
            }
        }
    }
}
