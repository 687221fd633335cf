//! When two accesses of one place are a race: the rules, and what is remembered for them.
//!
//! Order between two accesses of one block comes from a barrier between them (`epoch`) or, within a warp, from
//! `__syncwarp` (`stamp`, and for each thread how far it has seen each lane of its warp). Shuffles and votes order
//! nothing, as CUDA has it. Where there are vector clocks (`clocks.rs`), they alone decide. Different blocks are never
//! ordered, unless they are of one cluster.

use super::access::Access;
use super::clocks::{Clocks, Row};
use super::report::FindingKind;
use super::shadow::{ASYNC, ATOMIC, Cell, IN_FLIGHT, MANY_BLOCKS, MANY_WARPS, Mark};

/// Who makes an access, and what it knows.
pub(super) struct Who<'a> {
    /// The running thread, as it is remembered.
    pub(super) me: Mark,
    pub(super) kind: u32,
    /// Shared memory, not global.
    pub(super) shared: bool,
    pub(super) lane: u32,
    /// How far it has seen each lane of its warp.
    pub(super) view: &'a [u32; 32],
    /// Its agent, if there are vector clocks.
    pub(super) thread: u32,
    /// An instruction of the asynchronous proxy does it, on the thread's behalf.
    pub(super) asynchronous: bool,
    /// What is known to those who began it, where they are several.
    pub(super) knows: Option<&'a Row>,
}

/// Shared memory is another one for each block.
pub(super) fn forget_other_blocks(cell: &mut Cell, group: u32) {
    if cell.write.group != group && cell.read.group != group {
        *cell = Cell::default();
    }
}

impl Who<'_> {
    fn has_seen(&self, clocks: &Clocks, agent: u32, clock: u32) -> bool {
        match self.knows {
            Some(row) => row.has_seen(agent, clock),
            None => clocks.ordered(self.thread, agent, clock),
        }
    }

    /// Whether `before` happened before this access.
    fn after(&self, before: Mark, clocks: Option<&Clocks>) -> bool {
        if before.group != self.me.group {
            return before.tag == 0;
        }
        if let Some(clocks) = clocks {
            // What came before there were clocks is its thread's, at clock 0.
            let agent = if before.clock > 0 { before.agent } else { u32::from(before.thread) };
            if before.clock > 0 || self.has_seen(clocks, agent, 0) {
                return self.has_seen(clocks, agent, before.clock);
            }
        }
        before.epoch != self.me.epoch
            || before.thread == self.me.thread
            || (before.thread >> 5 == self.me.thread >> 5 && before.stamp < self.view[(before.thread & 31) as usize])
    }

    /// Whether all the accesses that a mark stands for happened before this one.
    fn after_all(&self, mark: Mark, lanes: u32) -> bool {
        if mark.group != self.me.group || mark.flags & MANY_BLOCKS != 0 {
            return mark.tag == 0;
        }
        if mark.epoch != self.me.epoch {
            return true;
        }
        let others = lanes & !(1 << self.lane);
        mark.flags & MANY_WARPS == 0
            && mark.thread >> 5 == self.me.thread >> 5
            && (0..32).all(|l| others >> l & 1 == 0 || mark.stamp < self.view[l])
    }

    fn after_reads(&self, cell: &Cell, clocks: Option<&Clocks>) -> bool {
        match clocks {
            Some(clocks) if cell.set != 0 && cell.read.group == self.me.group => {
                let unseen = |(agent, clock)| !self.has_seen(clocks, agent, clock);
                cell.read.flags & MANY_BLOCKS == 0 && !clocks.set(cell.set).any(unseen)
            }
            _ => self.after_all(cell.read, cell.readers),
        }
    }

    /// What is wrong with the access, and the other side of it.
    pub(super) fn look(&self, cell: &Cell, clocks: Option<&Clocks>) -> Option<(FindingKind, Option<Mark>)> {
        let reads = matches!(self.kind, Access::READ | Access::ATOMIC);
        if self.shared && reads && (cell.write.tag == 0 || cell.write.flags & IN_FLIGHT != 0) {
            return Some((FindingKind::UninitialisedShared, Some(cell.write)));
        }
        let raced = match (cell.write.flags & ATOMIC != 0, self.kind == Access::ATOMIC) {
            (true, true) => false,
            (true, false) if cell.write.clock == 0 => !self.after_all(cell.write, cell.writers),
            _ => !self.after(cell.write, clocks),
        };
        if raced {
            let kind =
                if self.kind == Access::READ { FindingKind::ReadAfterWriteRace } else { FindingKind::WriteWriteRace };
            return Some((kind, Some(cell.write)));
        }
        if self.kind != Access::READ && !self.after_reads(cell, clocks) {
            return Some((FindingKind::WriteAfterReadRace, Some(cell.read)));
        }
        let ordinary = self.shared && cell.write.tag != 0 && cell.write.flags & ASYNC == 0;
        let clocks = clocks.filter(|_| self.asynchronous && ordinary)?;
        // What was written before there were clocks is some thread's, at clock 0.
        let agent = if cell.write.clock == 0 { u32::from(cell.write.thread) } else { cell.write.agent };
        let fenced = self.knows.unwrap_or(clocks.row(self.thread)).has_fenced(agent, cell.write.clock);
        (!fenced).then_some((FindingKind::MissingProxyFence, Some(cell.write)))
    }

    /// Remembers the access as one of `by`.
    pub(super) fn note(&self, cell: &mut Cell, by: Mark, clocks: Option<&mut Clocks>) {
        match self.kind {
            Access::READ => {
                let set = if cell.read.group == by.group { cell.set } else { 0 };
                join(&mut cell.read, &mut cell.readers, by, self.lane);
                cell.set = clocks.map_or(0, |c| c.with(set, by.agent, by.clock));
            }
            Access::ATOMIC if cell.write.flags & ATOMIC != 0 => {
                join(&mut cell.write, &mut cell.writers, by, self.lane);
                (cell.write.agent, cell.write.clock) = (by.agent, by.clock);
            }
            Access::ISSUE => {
                *cell = Cell { write: Mark { flags: by.flags | IN_FLIGHT, ..by }, ..Cell::default() };
            }
            _ => *cell = Cell { write: by, writers: 1 << self.lane, ..Cell::default() },
        }
    }
}

/// Makes a mark stand for `me` as well.
fn join(mark: &mut Mark, lanes: &mut u32, me: Mark, lane: u32) {
    let foreign = if mark.tag != 0 && mark.group != me.group { MANY_BLOCKS } else { mark.flags & MANY_BLOCKS };
    if mark.tag != me.tag || mark.epoch != me.epoch {
        (*mark, *lanes) = (me, 1 << lane);
    } else if mark.thread >> 5 == me.thread >> 5 {
        mark.stamp = me.stamp;
        *lanes |= 1 << lane;
    } else {
        mark.flags |= MANY_WARPS;
    }
    mark.flags |= foreign;
}
