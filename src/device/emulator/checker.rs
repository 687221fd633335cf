//! The checker: what memory accesses of a kernel are wrong, though the emulated device carries them out.
//!
//! Kernels are compiled a second time with the compiler's thread sanitizer, whose calls (one before each access) arrive
//! here by way of `hooks.rs`. Blocks of a checked launch run one after the other on one OS thread.
//!
//! What is a race: `races.rs`.

use std::collections::{HashMap, HashSet};

use super::access::Access;
use super::block::{Block, Context};
use super::clocks::Clocks;
use super::places::place;
use super::races::{Who, forget_other_blocks};
use super::registers::Registers;
use super::report::{Action, Finding, FindingKind, Report, Site, dim};
use super::shadow::{ASYNC, ATOMIC, IN_FLIGHT, Mark, Span};
use super::source::Lines;
use super::trace::Trace;
use super::{Call, Region};

/// Findings kept per launch.
const MOST: usize = 8;

#[derive(Clone)]
struct Raw {
    kind: FindingKind,
    block: [u32; 3],
    thread: [u32; 3],
    pc: usize,
    site: Site,
    place: String,
    other: Option<([u32; 3], [u32; 3])>,
}

/// What is known of a block that runs.
struct Seat {
    /// Static and dynamic shared memory.
    shared: [Span; 2],
    tag: u32,
    group: u32,
    epoch: u32,
    /// Per warp: `__syncwarp`s so far in this block.
    time: Vec<u32>,
    /// Per thread and lane of its warp: accesses of that lane with a smaller stamp are seen.
    views: Vec<[u32; 32]>,
    /// The last access of its shared memory by each thread of other blocks.
    visits: HashMap<u32, (u32, Raw)>,
}

/// State of one checked launch.
pub(super) struct Checker {
    kernel: String,
    grid: [u32; 3],
    regions: Vec<Region>,
    /// Memory of all regions; regions that overlap share a span.
    spans: Vec<Span>,
    /// For each block of the running cluster.
    seats: Vec<Seat>,
    epoch: u32,
    /// The kernel is for one architecture alone: more than barriers puts its threads in order.
    specific: bool,
    /// From the first instruction on that needs them, or in clusters.
    pub(super) clocks: Option<Clocks>,
    /// By agent: the threads that began matrix products.
    registers: HashMap<u32, Registers>,
    accesses: u64,
    raw: Vec<Raw>,
    seen: HashSet<(FindingKind, usize, u32)>,
    trace: Option<Trace>,
}

impl Checker {
    pub(super) fn new(launch: &Call<'_>, regions: &[Region], trace: Option<Trace>) -> Checker {
        let mut sorted: Vec<_> = regions.iter().filter(|r| r.bytes > 0).map(|r| (r.start, r.start + r.bytes)).collect();
        sorted.sort_unstable();
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for (start, end) in sorted {
            match merged.last_mut() {
                // Spans that share a cell of four bytes are one.
                Some(last) if start & !3 < last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        Checker {
            kernel: launch.kernel.to_string(),
            grid: launch.grid,
            specific: launch.specific,
            regions: regions.to_vec(),
            spans: merged.into_iter().map(|(start, end)| Span::new(start, end)).collect(),
            seats: vec![],
            epoch: 0,
            clocks: None,
            registers: HashMap::new(),
            accesses: 0,
            raw: vec![],
            seen: HashSet::new(),
            trace,
        }
    }

    pub(super) fn begin_block(&mut self, block: &mut Block) {
        let rank = block.rank as usize;
        if self.seats.len() <= rank {
            let (arena, dynamic) = (block.shared.arena(), block.shared.dynamic_start());
            let shared = [Span::new(arena.0, arena.1), Span::new(dynamic, dynamic + block.shared.dynamic_bytes)];
            let (time, views, visits) = (vec![], vec![], HashMap::new());
            self.seats.push(Seat { shared, tag: 0, group: 0, epoch: 0, time, views, visits });
        }
        if rank == 0 {
            let blocks = block.cluster_size();
            self.clocks = (blocks > 1 || self.specific).then(|| Clocks::new(blocks, block.threads));
            self.registers.clear();
        }
        self.epoch += 1;
        let seat = &mut self.seats[rank];
        (seat.tag, seat.group, seat.epoch) = (block.number + 1, block.group + 1, self.epoch);
        seat.time.clear();
        seat.time.resize(block.threads.div_ceil(32) as usize, 1);
        seat.views.clear();
        seat.views.resize(block.threads as usize, [0; 32]);
        seat.visits.clear();
    }

    /// The vector clocks, which begin here if there are none yet.
    pub(super) fn clocks(&mut self, block: &Block) -> &mut Clocks {
        self.clocks.get_or_insert_with(|| Clocks::new(block.cluster_size(), block.threads))
    }

    pub(super) fn barrier(&mut self, block: &Block) {
        self.epoch += 1;
        self.seats[block.rank as usize].epoch = self.epoch;
        if let Some(clocks) = &mut self.clocks {
            clocks.meet(block.rank, 0..block.threads);
        }
    }

    /// These lanes of a warp have met: each now sees what the others have seen and done.
    pub(super) fn warp_sync(&mut self, block: &Block, warp: u32, lanes: u32) {
        let first = warp as usize * 32;
        let members = || (0..32).filter(|l| lanes >> l & 1 == 1);
        if let Some(clocks) = &mut self.clocks {
            clocks.meet(block.rank, members().map(|l| warp * 32 + l as u32));
        }
        let Seat { time, views, .. } = &mut self.seats[block.rank as usize];
        time[warp as usize] += 1;
        let now = time[warp as usize];
        let mut joined = [0; 32];
        for lane in members() {
            for (joined, seen) in joined.iter_mut().zip(views[first + lane]) {
                *joined = seen.max(*joined);
            }
        }
        for lane in members() {
            joined[lane] = now;
        }
        for lane in members() {
            views[first + lane] = joined;
        }
    }

    /// A block's last thread leaves: whatever others did in its shared memory must have come before.
    pub(super) fn leave_block(&mut self, block: &Block) {
        let (Some(clocks), visits) = (&self.clocks, &mut self.seats[block.rank as usize].visits) else { return };
        let known = clocks.of_block(block.rank);
        let late = visits.drain().filter(|(agent, (clock, _))| !known.has_seen(*agent, *clock));
        let late: Vec<Raw> = late.map(|(_, (_, raw))| raw).collect();
        for raw in late {
            if self.seen.insert((raw.kind, raw.pc, raw.site.line)) {
                self.raw.push(raw);
            }
        }
    }

    /// The running thread's local arrays that products use.
    pub(super) fn registers(&mut self, block: &Block) -> &mut Registers {
        let agent = self.clocks(block).thread(block.rank, block.linear());
        self.registers.entry(agent).or_default()
    }

    /// A thread has waited for a warpgroup's groups of products before `done`.
    pub(super) fn products_done(&mut self, block: &Block, linear: u32, done: u32, agent: u32) {
        let clocks = self.clocks(block);
        let thread = clocks.thread(block.rank, linear);
        clocks.see(thread, agent, done);
        if let Some(registers) = self.registers.get_mut(&thread) {
            registers.give_back(done);
        }
    }

    /// A step that is no memory access, for the trace.
    #[inline]
    pub(super) fn event(&mut self, block: *mut Block, action: Action, site: Site) {
        if let Some(trace) = &mut self.trace {
            // SAFETY: the block that runs on this OS thread; the reference ends with the call.
            trace.step(unsafe { &*block }, action, 0, site);
        }
    }

    /// False: the access must not happen, the launch ends.
    #[inline]
    pub(super) fn access(&mut self, block: &Block, a: Access) -> bool {
        let own = |(start, end): (usize, usize)| a.address >= start && a.address < end;
        let context = block.context as usize;
        if own(block.stack) {
            if let (false, Some(clocks)) = (self.registers.is_empty(), &self.clocks) {
                let agent = clocks.thread(block.rank, block.linear());
                let registers = self.registers.get_mut(&agent);
                if let Some(kind) = registers.and_then(|r| r.access(a.address, a.bytes, a.kind == Access::READ)) {
                    self.note(kind, block, a.pc, a.site, "a local array".into());
                }
            }
            return true;
        }
        if own((context, context + size_of::<Context>())) || a.bytes == 0 {
            return true;
        }
        self.accesses += 1;
        let owner = self.owner(block, a);
        if owner.is_none() && !self.in_bounds(block, a) {
            return false;
        }
        if let Some(trace) = &mut self.trace {
            let place = if trace.wants(block) { place(&self.regions, block, a, false) } else { String::new() };
            trace.access(block, a, a.kind, place);
        }
        self.races(block, a, owner);
        if let Some(owner) = owner.filter(|o| *o != block.rank as usize) {
            self.visit(block, a, owner);
        }
        true
    }

    /// The rank of the block whose shared memory this is, if it is a variable or dynamic.
    fn owner(&self, block: &Block, a: Access) -> Option<usize> {
        let holds = |rank: usize, of: &Block| {
            let [arena, dynamic] = &self.seats[rank].shared;
            let inside = |v: &super::shared::Variable| a.address >= v.start && a.address + a.bytes <= v.start + v.bytes;
            dynamic.holds(a.address, a.bytes)
                || arena.holds(a.address, a.bytes) && of.shared.variables.iter().any(inside)
        };
        let rank = block.rank as usize;
        if holds(rank, block) {
            return Some(rank);
        }
        (0..self.seats.len().min(block.cluster_size() as usize)).find(|r| *r != rank && holds(*r, block.peer(*r)))
    }

    /// An access of another block's shared memory, which must be there until then.
    fn visit(&mut self, block: &Block, a: Access, owner: usize) {
        let raw = Raw {
            kind: FindingKind::DepartedBlock,
            block: block.index,
            thread: block.coordinates(block.linear()),
            pc: a.pc,
            site: a.site,
            place: format!("{} bytes in the shared memory of block {}", a.bytes, dim(block.peer(owner).index)),
            other: None,
        };
        if block.peer(owner).alive == 0 {
            if self.seen.insert((raw.kind, raw.pc, raw.site.line)) {
                self.raw.push(raw);
            }
            return;
        }
        let clocks = self.clocks(block);
        let (agent, clock) = match a.behalf {
            Some(behalf) => (behalf.agent, behalf.clock),
            None => {
                let agent = clocks.thread(block.rank, block.linear());
                (agent, clocks.now(agent))
            }
        };
        self.seats[owner].visits.insert(agent, (clock, raw));
    }

    fn in_bounds(&mut self, block: &Block, a: Access) -> bool {
        let holds = |r: &&Region| a.address >= r.start && a.address + a.bytes <= r.start + r.bytes;
        let mut found = self.regions.iter().filter(holds).peekable();
        if found.peek().is_none() {
            let read = a.kind == Access::READ;
            let kind = if read { FindingKind::OutOfBoundsRead } else { FindingKind::OutOfBoundsWrite };
            self.find(kind, block, a, None);
            return false;
        }
        if a.kind != Access::READ && !found.any(|r| r.writable) {
            self.find(FindingKind::ReadOnlyWrite, block, a, None);
        }
        true
    }

    fn races(&mut self, block: &Block, a: Access, owner: Option<usize>) {
        let linear = block.linear();
        let seat = &self.seats[block.rank as usize];
        let thread = self.clocks.as_ref().map_or(0, |c| c.thread(block.rank, linear));
        let me = Mark {
            tag: seat.tag,
            group: seat.group,
            epoch: seat.epoch,
            stamp: seat.time[(linear >> 5) as usize],
            thread: linear as u16,
            flags: if a.kind == Access::ATOMIC { ATOMIC } else { 0 },
            agent: thread,
            clock: self.clocks.as_ref().map_or(0, |c| c.now(thread)),
        };
        // SAFETY: what `Behalf` points at outlives the check of its access.
        let knows = a.behalf.and_then(|b| unsafe { b.knows.as_ref() });
        let (by, asynchronous) = match a.behalf {
            Some(b) => (Mark { agent: b.agent, clock: b.clock, flags: ASYNC, ..me }, true),
            None => (me, false),
        };
        let view = seat.views[linear as usize];
        let (view, lane, shared) = (&view, linear & 31, owner.is_some());
        let who = Who { me, kind: a.kind, shared, lane, view, thread, asynchronous, knows };
        let spans = owner.map_or(&mut self.spans[..], |owner| &mut self.seats[owner].shared[..]);
        let Some(span) = spans.iter_mut().find(|s| s.holds(a.address, a.bytes)) else { return };
        let mut found = None;
        let clocks = &mut self.clocks;
        span.visit(a.address, a.bytes, |cell| {
            if shared {
                forget_other_blocks(cell, me.group);
            }
            found = if a.kind == Access::LAND { None } else { who.look(cell, clocks.as_ref()) };
            who.note(cell, by, clocks.as_mut());
            found.is_some()
        });
        if let Some((kind, other)) = found {
            self.find(kind, block, a, other);
        }
    }

    /// A finding of the running thread that is about no place in memory.
    pub(super) fn note(&mut self, kind: FindingKind, block: &Block, pc: usize, site: Site, place: String) {
        if self.seen.insert((kind, pc, site.line)) && self.raw.len() < 8 * MOST {
            let thread = block.coordinates(block.linear());
            self.raw.push(Raw { kind, block: block.index, thread, pc, site, place, other: None });
        }
    }

    fn find(&mut self, kind: FindingKind, block: &Block, a: Access, other: Option<Mark>) {
        if !self.seen.insert((kind, a.pc, a.site.line)) || self.raw.len() >= 8 * MOST {
            return;
        }
        let [x, y, _] = self.grid;
        let in_flight = other.is_some_and(|m| m.flags & IN_FLIGHT != 0);
        let other = other.filter(|m| m.tag != 0).map(|m| {
            let n = m.tag - 1;
            ([n % x, n / x % y, n / x / y], block.coordinates(m.thread.into()))
        });
        let thread = block.coordinates(block.linear());
        let mut place = place(&self.regions, block, a, true);
        if in_flight {
            place.push_str(", to which an asynchronous copy is under way");
        }
        self.raw.push(Raw { kind, block: block.index, thread, pc: a.pc, site: a.site, place, other });
    }

    pub(super) fn has_found(&self) -> bool {
        !self.raw.is_empty()
    }

    /// A pointer that is no multiple of its type's size, at a line that the compiler gives.
    pub(super) fn misaligned(&mut self, block: &Block, address: usize, align: usize, site: Site) {
        let a = Access::site(address, align, Access::READ, site);
        self.find(FindingKind::Misaligned, block, a, None);
    }

    /// An index that an array does not have, at a line that the compiler gives.
    pub(super) fn outside_array(&mut self, block: &Block, index: usize, site: Site) {
        self.note(FindingKind::OutsideArray, block, 0, site, format!("index {}", index as isize));
    }

    /// Ends the launch: findings with their source lines, and the trace.
    pub(super) fn finish(self) -> (Report, Vec<super::TraceEvent>) {
        let mut lines = Lines::default();
        let mut findings: Vec<Finding> = Vec::new();
        for raw in self.raw {
            let at = lines.of(raw.pc, raw.site);
            if findings.len() < MOST && !findings.iter().any(|f| f.kind == raw.kind && f.at == at) {
                findings.push(Finding {
                    kernel: self.kernel.clone(),
                    kind: raw.kind,
                    block: raw.block,
                    thread: raw.thread,
                    at,
                    place: raw.place,
                    other: raw.other,
                });
            }
        }
        let events = self.trace.map_or(vec![], |t| t.finish(&mut lines));
        (Report { findings, accesses: self.accesses }, events)
    }
}
