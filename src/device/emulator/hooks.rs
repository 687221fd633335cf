//! The calls that compilers put before memory accesses for their thread sanitizer, and into misaligned ones for the
//! undefined-behaviour sanitizer. The sanitizers' own libraries are not linked.
//!
//! The hooks are naked functions, because a hook's return address is what names the source line of the access.

use std::arch::naked_asm;
use std::ffi::{c_char, c_void};

use super::access::Access;
use super::block::{Block, current};
use super::report::Site;

unsafe extern "C" fn access(address: usize, bytes: usize, kind: u32, pc: usize) {
    let block = current();
    // SAFETY: called by a kernel: `block` is the one that runs on this OS thread, and its checker outlives the launch.
    unsafe {
        if !block.is_null() && !(*block).checker.is_null() {
            Access::hook(address, bytes, kind, pc).check(block);
        }
    }
}

macro_rules! hook {
    ($name:ident, $bytes:expr, $kind:expr) => {
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            #[cfg(target_arch = "x86_64")]
            naked_asm!("mov esi, {n}", "mov edx, {k}", "mov rcx, [rsp]", "jmp {f}", n = const $bytes, k = const $kind, f = sym access);
            #[cfg(target_arch = "aarch64")]
            naked_asm!("mov w1, {n}", "mov w2, {k}", "mov x3, x30", "b {f}", n = const $bytes, k = const $kind, f = sym access)
        }
    };
}
macro_rules! range_hook {
    ($name:ident, $kind:expr) => {
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            #[cfg(target_arch = "x86_64")]
            naked_asm!("mov edx, {k}", "mov rcx, [rsp]", "jmp {f}", k = const $kind, f = sym access);
            #[cfg(target_arch = "aarch64")]
            naked_asm!("mov w2, {k}", "mov x3, x30", "b {f}", k = const $kind, f = sym access)
        }
    };
}

hook!(__tsan_read1, 1, Access::READ);
hook!(__tsan_read2, 2, Access::READ);
hook!(__tsan_read4, 4, Access::READ);
hook!(__tsan_read8, 8, Access::READ);
hook!(__tsan_read16, 16, Access::READ);
hook!(__tsan_write1, 1, Access::WRITE);
hook!(__tsan_write2, 2, Access::WRITE);
hook!(__tsan_write4, 4, Access::WRITE);
hook!(__tsan_write8, 8, Access::WRITE);
hook!(__tsan_write16, 16, Access::WRITE);
hook!(__tsan_unaligned_read2, 2, Access::READ);
hook!(__tsan_unaligned_read4, 4, Access::READ);
hook!(__tsan_unaligned_read8, 8, Access::READ);
hook!(__tsan_unaligned_read16, 16, Access::READ);
hook!(__tsan_unaligned_write2, 2, Access::WRITE);
hook!(__tsan_unaligned_write4, 4, Access::WRITE);
hook!(__tsan_unaligned_write8, 8, Access::WRITE);
hook!(__tsan_unaligned_write16, 16, Access::WRITE);
range_hook!(__tsan_read_range, Access::READ);
range_hook!(__tsan_write_range, Access::WRITE);

#[unsafe(no_mangle)]
extern "C" fn __tsan_init() {}
#[unsafe(no_mangle)]
extern "C" fn __tsan_func_entry(_: *const c_void) {}
#[unsafe(no_mangle)]
extern "C" fn __tsan_func_exit() {}

/// What the compiler knows of a misaligned access.
#[repr(C)]
struct Mismatch {
    file: *const c_char,
    line: u32,
    column: u32,
    of: *const c_void,
    log_alignment: u8,
    kind: u8,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __ubsan_handle_type_mismatch_v1(data: *const Mismatch, address: usize) {
    let block = current();
    // SAFETY: as in `access`; the compiler passes its static description. The references end before the switch.
    unsafe {
        if !block.is_null() && !(*block).checker.is_null() {
            let site = Site { file: (*data).file, line: (*data).line };
            (*(*block).checker).misaligned(&*block, address, 1 << (*data).log_alignment, site);
            Block::stop(block);
        }
    }
}

/// What the compiler knows of an array: where it is indexed, and two types.
#[repr(C)]
struct Indexed {
    file: *const c_char,
    line: u32,
    column: u32,
    of: *const c_void,
    by: *const c_void,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __ubsan_handle_out_of_bounds(data: *const Indexed, index: usize) {
    let block = current();
    // SAFETY: as in `access`; the compiler passes its static description. The references end before the switch.
    unsafe {
        if !block.is_null() && !(*block).checker.is_null() {
            let site = Site { file: (*data).file, line: (*data).line };
            (*(*block).checker).outside_array(&*block, index, site);
            Block::stop(block);
        }
    }
}

/// Addresses of all functions that only C++ calls, so that the linker keeps them.
pub(super) fn exports() -> [*const (); 25] {
    [
        __tsan_read1 as *const (),
        __tsan_read2 as *const (),
        __tsan_read4 as *const (),
        __tsan_read8 as *const (),
        __tsan_read16 as *const (),
        __tsan_write1 as *const (),
        __tsan_write2 as *const (),
        __tsan_write4 as *const (),
        __tsan_write8 as *const (),
        __tsan_write16 as *const (),
        __tsan_unaligned_read2 as *const (),
        __tsan_unaligned_read4 as *const (),
        __tsan_unaligned_read8 as *const (),
        __tsan_unaligned_read16 as *const (),
        __tsan_unaligned_write2 as *const (),
        __tsan_unaligned_write4 as *const (),
        __tsan_unaligned_write8 as *const (),
        __tsan_unaligned_write16 as *const (),
        __tsan_read_range as *const (),
        __tsan_write_range as *const (),
        __tsan_init as *const (),
        __tsan_func_entry as *const (),
        __tsan_func_exit as *const (),
        __ubsan_handle_type_mismatch_v1 as *const (),
        __ubsan_handle_out_of_bounds as *const (),
    ]
}
