//! Stacks of the fibers.
//!
//! A slab is one mapping that holds many stacks. A guard page behind every stack would cut a slab into two mappings per
//! stack, and a kernel of 1024 threads on 64 cores would run into the system's limit of mappings; instead each stack
//! ends in a canary that the scheduler looks at when a block is done (and kernels are compiled with a limit on their
//! frames, which is what keeps the canary alive).
//!
//! Stacks lie at a distance that is no power of two: their tops, which every thread of a block touches in turn, would
//! otherwise all fall into one set of the cache.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::num::NonZeroUsize;

use corosensei::stack::StackPointer;

/// Bytes of one stack. A kernel's frame takes some hundred; `printf` a few thousand.
const STACK: usize = 64 * 1024;
/// Distance of two stacks: an odd number of cache lines more than the stack.
const STRIDE: usize = STACK + 9 * 64;
/// Stacks in one slab.
const SLAB: usize = 64;
const CANARY: u64 = 0xA5C3_5A3C_A5C3_5A3C;

/// One fiber's stack, inside a slab that its [`Stacks`] owns.
#[derive(Clone, Copy)]
pub(super) struct Stack {
    base: NonZeroUsize,
    limit: NonZeroUsize,
}

// SAFETY: base and limit bound STACK bytes of a slab, which outlives its fibers (the worker resets them first), aligned
// to 64 bytes. Instead of a guard page there is a canary, and a compile-time limit on the frames of kernels.
unsafe impl corosensei::stack::Stack for Stack {
    fn base(&self) -> StackPointer {
        self.base
    }

    fn limit(&self) -> StackPointer {
        self.limit
    }
}

impl Stack {
    /// First and one-past-last address.
    pub(super) fn range(self) -> (usize, usize) {
        (self.limit.get(), self.base.get())
    }

    /// Whether nothing has run over the end of the stack.
    pub(super) fn intact(self) -> bool {
        // SAFETY: the lowest bytes of this stack, written when the slab was made.
        unsafe { (self.limit.get() as *const u64).read() == CANARY }
    }

    fn arm(self) {
        // SAFETY: the lowest bytes of this stack, which no fiber uses.
        unsafe { (self.limit.get() as *mut u64).write(CANARY) }
    }
}

/// The slabs of one OS thread and the stacks in them that no fiber has.
#[derive(Default)]
pub(super) struct Stacks {
    slabs: Vec<*mut u8>,
    free: Vec<Stack>,
}

impl Stacks {
    /// A stack with its canary in place.
    pub(super) fn take(&mut self) -> Stack {
        if self.free.is_empty() {
            self.grow();
        }
        let stack = self.free.pop().expect("a slab was just added");
        stack.arm();
        stack
    }

    /// Takes back a stack whose fiber is gone.
    pub(super) fn give(&mut self, stack: Stack) {
        self.free.push(stack);
    }

    fn layout() -> Layout {
        Layout::from_size_align(SLAB * STRIDE, 4096).expect("a constant size")
    }

    fn grow(&mut self) {
        // SAFETY: the layout has a size. Memory of this size comes from its own mapping and is touched only when used.
        let slab = unsafe { alloc(Self::layout()) };
        if slab.is_null() {
            handle_alloc_error(Self::layout());
        }
        self.slabs.push(slab);
        self.free.extend((0..SLAB).rev().map(|i| {
            let limit = slab as usize + i * STRIDE;
            let at = |address| NonZeroUsize::new(address).expect("inside an allocation");
            Stack { base: at(limit + STACK), limit: at(limit) }
        }));
    }
}

impl Drop for Stacks {
    fn drop(&mut self) {
        for slab in self.slabs.drain(..) {
            // SAFETY: allocated in `grow` with this layout; the worker has reset every fiber in it.
            unsafe { dealloc(slab, Self::layout()) };
        }
    }
}
