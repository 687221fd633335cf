//! Shared memory of the running block, and asynchronous copies into it.

use std::ffi::{CStr, c_char, c_void};

use super::report::Site;

/// Static shared memory of a block, in bytes, as on every GPU.
pub(super) const STATIC_LIMIT: usize = 48 * 1024;
/// Dynamic shared memory of a block, in bytes, with the static: the most that any GPU grants.
pub(super) const DYNAMIC_LIMIT: u32 = 227 * 1024;
/// What new shared memory holds: NaN, whatever the type.
pub(super) const POISON: u8 = 0xFF;
const GUARD: usize = 64;
const GUARD_BYTE: u8 = 0xA5;
const ALIGN: usize = 128;
/// What the whole of it is aligned to: the largest swizzle's period.
const PERIOD: usize = 1024;
/// Room for all static variables: guards and alignment come on top of what the hardware counts.
const ARENA: usize = STATIC_LIMIT + STATIC_LIMIT / 16 * (GUARD + ALIGN);

#[derive(Clone, Copy)]
pub(super) struct Variable {
    key: *const c_void,
    name: *const c_char,
    pub(super) start: usize,
    pub(super) bytes: usize,
}

impl Variable {
    pub(super) fn name(&self) -> String {
        // SAFETY: a string literal of a kernel's object file.
        unsafe { CStr::from_ptr(self.name) }.to_string_lossy().into_owned()
    }
}

/// The memory is an OS thread's own and is used by one block after the other.
#[derive(Default)]
pub(super) struct Shared {
    arena: Vec<u128>,
    used: usize,
    pub(super) variables: Vec<Variable>,
    dynamic: Vec<u128>,
    pub(super) dynamic_bytes: usize,
}

fn aligned(memory: &mut Vec<u128>, bytes: usize) -> *mut u8 {
    let words = (bytes + PERIOD).div_ceil(16);
    if memory.len() < words {
        *memory = vec![0; words];
    }
    let start = memory.as_mut_ptr().cast::<u8>();
    // SAFETY: at most PERIOD - 1 bytes on, which the allocation has to spare.
    unsafe { start.add(start.align_offset(PERIOD)) }
}

impl Shared {
    /// A new block: dynamic memory is poisoned, static variables are gone. Returns the dynamic memory.
    pub(super) fn begin(&mut self, dynamic_bytes: usize) -> *mut u8 {
        self.variables.clear();
        self.used = 0;
        self.dynamic_bytes = dynamic_bytes;
        let start = aligned(&mut self.dynamic, dynamic_bytes + GUARD);
        // SAFETY: `aligned` made room for both.
        unsafe {
            start.write_bytes(POISON, dynamic_bytes);
            start.add(dynamic_bytes).write_bytes(GUARD_BYTE, GUARD);
        }
        start
    }

    /// Where the variable of this key lies, from the start of all of them, if the block has named it.
    pub(super) fn place(&mut self, key: *const c_void) -> Option<usize> {
        let start = self.arena().0;
        self.variables.iter().find(|v| v.key == key).map(|v| v.start - start)
    }

    /// Where the variables named so far end.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// The static variable of this key, poisoned when the block first names it. None: it does not fit. `at`: where it
    /// lies, or the next free place.
    pub(super) fn variable(
        &mut self,
        key: *const c_void,
        bytes: usize,
        name: *const c_char,
        at: Option<usize>,
    ) -> Option<*mut c_void> {
        if let Some(known) = self.variables.iter().find(|v| v.key == key) {
            return Some(known.start as *mut c_void);
        }
        let room = bytes.next_multiple_of(16);
        let payload: usize = self.variables.iter().map(|v| v.bytes.next_multiple_of(16)).sum();
        if payload + room > STATIC_LIMIT || payload + room + self.dynamic_bytes > DYNAMIC_LIMIT as usize {
            return None;
        }
        let place = at.unwrap_or(self.used).next_multiple_of(ALIGN);
        if place + bytes + GUARD > ARENA {
            return None;
        }
        let start = aligned(&mut self.arena, ARENA).wrapping_add(place);
        // SAFETY: inside ARENA bytes, checked above.
        unsafe {
            start.write_bytes(POISON, bytes);
            start.add(bytes).write_bytes(GUARD_BYTE, GUARD);
        }
        self.used = self.used.max(place + bytes + GUARD);
        self.variables.push(Variable { key, name, start: start as usize, bytes });
        Some(start.cast())
    }

    /// Whether an address lies in the memory that blocks share, be it of a variable or not.
    pub(super) fn holds(&self, at: *const u8) -> bool {
        [&self.arena, &self.dynamic].iter().any(|m| m.as_ptr_range().contains(&at.cast::<u128>()))
    }

    /// Address range in which static variables lie.
    pub(super) fn arena(&mut self) -> (usize, usize) {
        let start = aligned(&mut self.arena, ARENA) as usize;
        (start, start + ARENA)
    }

    pub(super) fn dynamic_start(&self) -> usize {
        let start = self.dynamic.as_ptr().cast::<u8>();
        start as usize + start.align_offset(PERIOD)
    }

    /// The name of the first variable that was written past its end.
    pub(super) fn overrun(&self) -> Option<String> {
        let broken = |end: usize| {
            // SAFETY: the guard written behind each variable, inside its allocation.
            let guard = unsafe { std::slice::from_raw_parts(end as *const u8, GUARD) };
            guard.iter().any(|b| *b != GUARD_BYTE)
        };
        if let Some(v) = self.variables.iter().find(|v| broken(v.start + v.bytes)) {
            return Some(format!("`{}`, {} bytes", v.name(), v.bytes));
        }
        let bytes = self.dynamic_bytes;
        (!self.dynamic.is_empty() && broken(self.dynamic_start() + bytes))
            .then(|| format!("dynamic shared memory, {bytes} bytes"))
    }
}

/// One asynchronous copy that has not arrived.
#[derive(Clone, Copy)]
pub(super) struct Copy {
    pub(super) to: *mut u8,
    pub(super) from: *const u8,
    pub(super) bytes: usize,
    pub(super) valid: usize,
    pub(super) site: Site,
    group: u32,
}

impl Copy {
    pub(super) fn new(to: *mut c_void, from: *const c_void, bytes: u32, valid: u32, site: Site) -> Copy {
        let valid = valid.min(bytes) as usize;
        Copy { to: to.cast(), from: from.cast(), bytes: bytes as usize, valid, site, group: 0 }
    }

    /// What is wrong with it.
    pub(super) fn problem(&self, shared: &Shared) -> Option<String> {
        if !matches!(self.bytes, 4 | 8 | 16) {
            return Some(format!("{} bytes; the hardware copies 4, 8 or 16", self.bytes));
        }
        if !shared.holds(self.to) {
            return Some("the destination is not in shared memory".to_string());
        }
        let off = [("destination", self.to as usize), ("source", self.from as usize)];
        let (name, at) = off.into_iter().find(|(_, at)| at % self.bytes != 0)?;
        Some(format!("the {name} of {} bytes is {} bytes off its alignment", self.bytes, at % self.bytes))
    }
}

/// A thread's asynchronous copies.
#[derive(Default)]
pub(super) struct Copies {
    group: u32,
    open: Vec<Copy>,
}

impl Copies {
    pub(super) fn clear(&mut self) {
        self.group = 0;
        self.open.clear();
    }

    pub(super) fn add(&mut self, copy: Copy) {
        self.open.push(Copy { group: self.group, ..copy });
    }

    pub(super) fn commit(&mut self) {
        self.group += 1;
    }

    /// Hands to `arrive` all copies but those of the `pending` youngest groups, oldest first.
    pub(super) fn wait(&mut self, pending: u32, mut arrive: impl FnMut(&Copy)) {
        let group = self.group;
        self.open.retain(|copy| {
            let arrived = copy.group.saturating_add(pending) < group;
            if arrived {
                arrive(copy);
            }
            !arrived
        });
    }
}
