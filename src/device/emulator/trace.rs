//! A record of what some threads of one block did, in order: for a student who wants to see a kernel run.

use std::ops::Range;

use super::access::Access;
use super::block::Block;
use super::report::{Action, Site, TraceEvent};
use super::source::Lines;

/// Whom to follow.
#[derive(Debug, Clone)]
pub struct Follow {
    /// `blockIdx`.
    pub block: [u32; 3],
    /// Linear indices of its threads.
    pub threads: Range<u32>,
}

struct Note {
    thread: [u32; 3],
    action: Action,
    pc: usize,
    site: Site,
}

pub(super) struct Trace {
    follow: Follow,
    steps: Vec<Note>,
    /// A write that is being carried out: its step, address and size.
    pending: Option<(usize, usize, usize)>,
}

impl Trace {
    pub(super) fn new(follow: Follow) -> Trace {
        Trace { follow, steps: vec![], pending: None }
    }

    /// Whether the running thread is one of those followed.
    pub(super) fn wants(&self, block: &Block) -> bool {
        block.index == self.follow.block && self.follow.threads.contains(&block.linear())
    }

    pub(super) fn step(&mut self, block: &Block, action: Action, pc: usize, site: Site) {
        self.settle();
        if self.wants(block) {
            self.steps.push(Note { thread: block.coordinates(block.linear()), action, pc, site });
        }
    }

    /// An access that is about to happen.
    pub(super) fn access(&mut self, block: &Block, a: Access, kind: u32, place: String) {
        self.settle();
        if !self.wants(block) {
            return;
        }
        let action = match kind {
            Access::READ => Action::Read(place, value(a.address, a.bytes)),
            Access::ATOMIC => Action::Atomic(place, value(a.address, a.bytes)),
            Access::ISSUE => Action::Copy(place),
            _ => {
                self.pending = Some((self.steps.len(), a.address, a.bytes));
                Action::Write(place, None)
            }
        };
        self.step(block, action, a.pc, a.site);
    }

    /// What the last write wrote: by the next step, memory has it.
    fn settle(&mut self) {
        if let Some((step, address, bytes)) = self.pending
            && let Some(Note { action: Action::Write(_, text), .. }) = self.steps.get_mut(step)
        {
            *text = value(address, bytes);
            self.pending = None;
        }
    }

    pub(super) fn finish(mut self, lines: &mut Lines) -> Vec<TraceEvent> {
        self.settle();
        let event = |s: Note| TraceEvent { thread: s.thread, action: s.action, at: lines.of(s.pc, s.site) };
        self.steps.into_iter().map(event).collect()
    }
}

/// The number at an address: small integers as such, other four bytes as a float.
fn value(address: usize, bytes: usize) -> Option<String> {
    // SAFETY: the checker found the address inside an argument or shared memory, with this many bytes.
    unsafe {
        match bytes {
            1 => Some((address as *const u8).read().to_string()),
            4 => {
                let bits = (address as *const u32).read_unaligned();
                let whole = bits as i32;
                if bits == !0 {
                    return Some("empty (or -1)".to_string()); // new shared memory holds this
                }
                Some(if whole.unsigned_abs() < 1 << 20 { whole.to_string() } else { f32::from_bits(bits).to_string() })
            }
            8 | 16 => {
                let words = (0..bytes / 4).map(|i| value(address + i * 4, 4).unwrap_or_default());
                Some(words.collect::<Vec<_>>().join(" "))
            }
            _ => None,
        }
    }
}
