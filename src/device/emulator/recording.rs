//! Work that is recorded instead of run: a graph, whose nodes are done in one of the orders that it allows.

use super::Order;
use super::driver::{EmulatorOptions, execute};
use crate::device::cuda::{Address, Arg, Graph, Kernel, Launch, Line, Lines, Point};
use crate::error::Result;
use std::collections::BTreeSet;

/// Work that is being recorded.
#[derive(Default)]
pub(super) struct Recording {
    nodes: Vec<Node>,
    lines: Lines<usize>,
    /// What the next node is behind.
    ends: Vec<usize>,
}

/// A piece of recorded work.
struct Node {
    work: Work,
    /// The nodes that it is behind.
    behind: Vec<usize>,
    /// Whether it belongs to the main line.
    is_main: bool,
}

pub(super) enum Work {
    Launch { kernel: &'static Kernel, launch: Launch, args: Vec<Owned> },
    Copy { to: Address, from: Address, bytes: usize },
    Zero { at: Address, bytes: usize },
}

/// Aligned as a tensor map is.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Unit([u64; 8]);

/// An argument that outlives its caller.
#[derive(Clone)]
pub(super) enum Owned {
    Memory {
        name: &'static str,
        address: Address,
        bytes: usize,
        writable: bool,
    },
    /// In units that are aligned for any of a kernel's structs.
    Value(Vec<Unit>),
}

impl Owned {
    pub(super) fn of(arg: &Arg<'_>) -> Self {
        let bytes = match *arg {
            Arg::Memory { name, address, bytes, writable } => return Owned::Memory { name, address, bytes, writable },
            Arg::Map(tensor) => bytemuck::bytes_of(&tensor.map),
            Arg::Value(bytes) => bytes,
        };
        let mut value = vec![Unit([0; 8]); bytes.len().div_ceil(64)];
        bytemuck::cast_slice_mut::<Unit, u8>(&mut value)[..bytes.len()].copy_from_slice(bytes);
        Owned::Value(value)
    }
}

impl Recording {
    pub(super) fn push(&mut self, work: Work) {
        let behind = std::mem::replace(&mut self.ends, vec![self.nodes.len()]);
        self.nodes.push(Node { work, behind, is_main: self.lines.is_main() });
    }

    pub(super) fn turn(&mut self, line: Line) -> Result<()> {
        self.ends = self.lines.turn(line, std::mem::take(&mut self.ends))?;
        Ok(())
    }

    pub(super) fn point(&mut self) -> Point {
        self.lines.point(self.ends.clone())
    }

    pub(super) fn join(&mut self) {
        if let Some(ends) = self.lines.join(self.ends.clone()) {
            self.ends = ends;
        }
    }

    /// The recorded work, in an order. What is not of the main line is done as late as can be; as early, where threads go in
    /// reverse order; and where they go at random, so do the nodes.
    pub(super) fn finish(self, options: EmulatorOptions) -> Recorded {
        let mut random = match options.order {
            Order::Random(seed) => seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            _ => 0,
        };
        let mut rank = |index: usize, is_main: bool| {
            let first = match options.order {
                Order::Forward => u64::from(!is_main),
                Order::Reverse => u64::from(is_main),
                Order::Random(_) => {
                    // Marsaglia's xorshift.
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random
                }
            };
            (first, index)
        };
        let (mut waits, mut before) = (Vec::new(), vec![Vec::new(); self.nodes.len()]);
        let mut ready = BTreeSet::new();
        for (i, node) in self.nodes.iter().enumerate() {
            waits.push(node.behind.len());
            node.behind.iter().for_each(|&other| before[other].push(i));
            if node.behind.is_empty() {
                ready.insert(rank(i, node.is_main));
            }
        }
        let (mut nodes, mut order): (Vec<_>, _) = (self.nodes.into_iter().map(Some).collect(), Vec::new());
        while let Some((_, i)) = ready.pop_first() {
            order.extend(nodes[i].take().map(|node| node.work));
            for &next in &before[i] {
                waits[next] -= 1;
                if let Some(node) = nodes[next].as_ref().filter(|_| waits[next] == 0) {
                    ready.insert(rank(next, node.is_main));
                }
            }
        }
        Recorded { work: order, options }
    }
}

/// Recorded work, in the order in which it is done.
pub(super) struct Recorded {
    work: Vec<Work>,
    options: EmulatorOptions,
}

impl Graph for Recorded {
    fn replay(&self) -> Result<()> {
        for work in &self.work {
            match work {
                // SAFETY: the arguments were good when they were recorded, and `Captured` keeps
                // their memory from being given to anyone else.
                Work::Launch { kernel, launch, args } => unsafe { execute(&self.options, kernel, launch, args)? },
                // SAFETY: as above.
                Work::Copy { to, from, bytes } => unsafe {
                    std::ptr::copy_nonoverlapping(*from as *const u8, *to as *mut u8, *bytes);
                },
                // SAFETY: as above.
                Work::Zero { at, bytes } => unsafe { std::ptr::write_bytes(*at as *mut u8, 0, *bytes) },
            }
        }
        Ok(())
    }

    fn launches(&self) -> usize {
        self.work.iter().filter(|work| matches!(work, Work::Launch { .. })).count()
    }
}
