//! One access of memory, as the checker sees it.

use super::block::Block;
use super::clocks::Row;
use super::report::Site;

/// One memory access of the running thread.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) address: usize,
    pub(super) bytes: usize,
    pub(super) kind: u32,
    /// Return address of the hook; 0 where `site` is known instead.
    pub(super) pc: usize,
    pub(super) site: Site,
    pub(super) behalf: Option<Behalf>,
}

/// For whom a thread makes an access, if not for itself.
#[derive(Clone, Copy)]
pub(super) struct Behalf {
    pub(super) agent: u32,
    pub(super) clock: u32,
    /// What is known to the threads that began the instruction; null where it is one thread.
    pub(super) knows: *const Row,
}

impl Access {
    pub(super) const READ: u32 = 0;
    pub(super) const WRITE: u32 = 1;
    pub(super) const ATOMIC: u32 = 2;
    /// An asynchronous copy to here begins: a write at any time from now to its wait.
    pub(super) const ISSUE: u32 = 3;
    /// An asynchronous copy has arrived here.
    pub(super) const LAND: u32 = 4;

    pub(super) fn site(address: usize, bytes: usize, kind: u32, site: Site) -> Access {
        Access { address, bytes, kind, pc: 0, site, behalf: None }
    }

    pub(super) fn hook(address: usize, bytes: usize, kind: u32, pc: usize) -> Access {
        Access { address, bytes, kind, pc, site: Site::NONE, behalf: None }
    }

    /// Made by an instruction of the asynchronous proxy.
    pub(super) fn behind(self, behalf: Behalf) -> Access {
        Access { behalf: Some(behalf), ..self }
    }

    /// Checks an access that is about to happen; does not return where it must not happen.
    ///
    /// # Safety
    /// `block` runs on this OS thread, under a checker; no reference into it is alive.
    #[inline]
    pub(super) unsafe fn check(self, block: *mut Block) {
        // SAFETY: as the caller promises; both references end before the switch.
        unsafe {
            if !(*(*block).checker).access(&*block, self) {
                Block::stop(block);
            }
        }
    }
}
