//! Registers that matrix products work on behind a thread's back: local arrays that must not be touched meanwhile.
//!
//! The hooks report accesses of a thread's own stack as well. Here it is remembered what a thread wrote there since its
//! last `wgmma.fence`, and which of its arrays belong to a product that was not waited for.

use super::report::FindingKind;

/// Bytes of a stack that are watched, from its top down.
const WATCHED: usize = 64 * 1024;

struct Lent {
    start: usize,
    end: usize,
    /// The product only reads them: so may the thread.
    operand: bool,
    /// The group of products that has them.
    group: u32,
}

/// What is known about a thread's local arrays.
#[derive(Default)]
pub(super) struct Registers {
    /// A bit for every four bytes of the stack, from its top down: written since the last fence.
    dirty: Vec<u64>,
    top: usize,
    lent: Vec<Lent>,
}

impl Registers {
    /// `wgmma.fence`: what was written so far is in order before the products to come.
    pub(super) fn fence(&mut self, top: usize) {
        self.top = top;
        self.dirty.clear();
        self.dirty.resize(WATCHED / 4 / 64, 0);
    }

    /// An access of the thread's own stack.
    pub(super) fn access(&mut self, address: usize, bytes: usize, reads: bool) -> Option<FindingKind> {
        let overlaps = |l: &&Lent| address < l.end && address + bytes > l.start && !(reads && l.operand);
        let found = self.lent.iter().find(overlaps).map(|_| FindingKind::RegistersInUse);
        if !reads && !self.dirty.is_empty() {
            for word in (address / 4..(address + bytes).div_ceil(4)).filter_map(|w| (self.top / 4).checked_sub(w)) {
                if let Some(bits) = self.dirty.get_mut(word / 64) {
                    *bits |= 1 << (word % 64);
                }
            }
        }
        found
    }

    /// Gives an array to a product; what is wrong with that.
    pub(super) fn lend(&mut self, start: usize, bytes: usize, operand: bool, group: u32) -> Option<FindingKind> {
        let end = start + bytes;
        if let Some(lent) = self.lent.iter_mut().find(|l| l.start == start && l.end == end && l.operand == operand) {
            lent.group = group;
            return None;
        }
        let touched = |w: usize| {
            (self.top / 4)
                .checked_sub(w)
                .is_some_and(|w| self.dirty.get(w / 64).is_some_and(|b| b >> (w % 64) & 1 == 1))
        };
        let unfenced = self.dirty.is_empty() || (start / 4..end.div_ceil(4)).any(touched);
        let overlaps = |l: &Lent| start < l.end && end > l.start && !(operand && l.operand);
        let used = self.lent.iter().any(overlaps);
        self.lent.push(Lent { start, end, operand, group });
        if unfenced { Some(FindingKind::UnfencedRegisters) } else { used.then_some(FindingKind::RegistersInUse) }
    }

    /// The groups before this one are done.
    pub(super) fn give_back(&mut self, done: u32) {
        self.lent.retain(|l| l.group >= done);
    }
}
