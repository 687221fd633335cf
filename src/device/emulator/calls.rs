//! What kernel code calls: the functions that `cuda.h` declares.
//!
//! They run on the fiber of the calling thread. None keeps a reference, or a value with a destructor, across a switch:
//! a fiber that waits when its launch fails is dropped as it stands.

use std::ffi::{c_char, c_void};

use super::access::Access;
use super::block::{Block, Pause, current};
use super::report::{Action, FaultKind, Site, dim};
use super::shared::{Copies, Copy, DYNAMIC_LIMIT, POISON, STATIC_LIMIT};
use super::warp::{self, Problem, SYNCWARP};

/// Addresses of all functions that only C++ calls, so that the linker keeps them.
pub(super) fn exports() -> [*const (); 7] {
    [
        tilework_emu_barrier as *const (),
        tilework_emu_collective as *const (),
        tilework_emu_shared as *const (),
        tilework_emu_copy as *const (),
        tilework_emu_commit as *const (),
        tilework_emu_wait as *const (),
        tilework_emu_access as *const (),
    ]
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_barrier(file: *const c_char, line: i32) {
    let (block, site) = (current(), Site::new(file, line));
    // SAFETY: called by a kernel, so `block` is the block that runs on this OS thread; each reference ends before the
    // switch.
    unsafe {
        if !(*block).checker.is_null() {
            (*(*block).checker).event(block, Action::Barrier, site);
        }
        if let Some((other, thread)) = (*block).at_barrier()
            && !site.same(other)
        {
            let thread = dim((*block).coordinates(thread));
            let other = other.resolve().map_or(String::new(), |l| l.to_string());
            let detail = format!("this thread waits here, thread {thread} at {other}");
            Block::fail(block, FaultKind::DivergentBarrier, detail, site);
        }
        Block::suspend(block, Pause::Barrier, site);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_collective(
    mask: u32,
    op: u32,
    value: u64,
    source: u32,
    file: *const c_char,
    line: i32,
) -> u64 {
    let (block, site) = (current(), Site::new(file, line));
    // SAFETY: as in `tilework_emu_barrier`.
    unsafe {
        let checker = (*block).checker;
        if !checker.is_null() {
            (*checker).event(block, Action::Collective(warp::name(op)), site);
        }
        let linear = (*block).linear();
        let (index, lane) = (linear >> 5, linear & 31);
        let b = &mut *block;
        match b.meetings.arrive((index, &mut b.warps[index as usize]), (lane, mask, op, value), site) {
            Ok((id, false)) => {
                Block::suspend(block, Pause::Meeting(id), site);
                (*block).meetings.leave(id, lane, source)
            }
            Ok((id, true)) => {
                let named = b.meetings.get(id).named;
                b.wake(index, named & !(1 << lane));
                if op == SYNCWARP && !checker.is_null() {
                    (*checker).warp_sync(&*block, index, named);
                }
                b.meetings.leave(id, lane, source)
            }
            Err(problem) => {
                let name = warp::name(op);
                let (kind, detail) = match problem {
                    Problem::NotNamed => (
                        FaultKind::BadMask,
                        format!("{name} with mask {mask:#010x}, which leaves out its caller, lane {lane}"),
                    ),
                    Problem::Exited(lanes) => (
                        FaultKind::BadMask,
                        format!("{name} with mask {mask:#010x}; lanes {lanes:#010x} of it have left the kernel"),
                    ),
                    Problem::Other(other, at, first) => {
                        let at = at.resolve().map_or(String::new(), |l| format!(" at {l}"));
                        let other = warp::name(other);
                        (
                            FaultKind::DivergentCollective,
                            format!(
                                "lane {lane} comes to {name}, lane {first} of the same mask {mask:#010x} to {other}{at}"
                            ),
                        )
                    }
                };
                Block::fail(block, kind, detail, site)
            }
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_shared(key: *const c_void, bytes: usize, name: *const c_char) -> *mut c_void {
    let block = current();
    // SAFETY: as in `tilework_emu_barrier`.
    unsafe {
        let at = super::cluster::place_of(block, key);
        if let Some(start) = (*block).shared.variable(key, bytes, name, at) {
            return start;
        }
        let name = std::ffi::CStr::from_ptr(name).to_string_lossy();
        let detail = format!(
            "`{name}`, {bytes} bytes, does not fit: static shared memory has {STATIC_LIMIT} bytes, and {DYNAMIC_LIMIT} with the dynamic"
        );
        drop(name);
        Block::fail(block, FaultKind::SharedMemory, detail, Site::NONE)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_copy(
    to: *mut c_void,
    from: *const c_void,
    bytes: u32,
    valid: u32,
    file: *const c_char,
    line: i32,
) {
    let (block, site) = (current(), Site::new(file, line));
    let copy = Copy::new(to, from, bytes, valid, site);
    // SAFETY: as in `tilework_emu_barrier`; the kernel gives addresses of `bytes` writable and `valid` readable bytes,
    // which a checked launch proves first.
    unsafe {
        if let Some(problem) = copy.problem(&(*block).shared) {
            Block::fail(block, FaultKind::BadCopy, problem, site);
        }
        if !(*block).checker.is_null() {
            Access::site(from as usize, copy.valid, Access::READ, site).check(block);
            Access::site(to as usize, copy.bytes, Access::ISSUE, site).check(block);
        }
        // Until the wait, the destination holds nothing that anyone may use.
        copy.to.write_bytes(POISON, copy.bytes);
        copies(block).add(copy);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_commit() {
    // SAFETY: as in `tilework_emu_barrier`.
    unsafe { copies(current()).commit() }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_wait(pending: u32) {
    let block = current();
    // SAFETY: as in `tilework_emu_copy`. The copies of a thread are not touched by the checker.
    unsafe {
        let checked = !(*block).checker.is_null();
        copies(block).wait(pending, |copy| {
            if checked {
                Access::site(copy.to as usize, copy.bytes, Access::WRITE, copy.site).check(block);
            }
            copy.to.copy_from_nonoverlapping(copy.from, copy.valid);
            copy.to.add(copy.valid).write_bytes(0, copy.bytes - copy.valid);
        });
    }
}

/// The running thread's copies.
///
/// # Safety
/// `block` runs on this OS thread; the reference must end before the next switch.
unsafe fn copies<'a>(block: *mut Block) -> &'a mut Copies {
    // SAFETY: as the caller promises.
    unsafe {
        let b = &mut *block;
        let linear = b.linear() as usize;
        if b.copies.len() <= linear {
            b.copies.resize_with(linear + 1, Copies::default);
        }
        b.copied = true;
        &mut b.copies[linear]
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_access(at: *const c_void, bytes: usize, kind: u32, file: *const c_char, line: i32) {
    let block = current();
    // SAFETY: as in `tilework_emu_barrier`; the checker has not gone away while its launch runs.
    unsafe {
        if !block.is_null() && !(*block).checker.is_null() {
            Access::site(at as usize, bytes, kind, Site::new(file, line)).check(block);
        }
    }
}
