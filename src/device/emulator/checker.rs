//! The checker: what memory accesses of a kernel are wrong, though the emulated device carries them out.
//!
//! Kernels are compiled a second time with the compiler's thread sanitizer, whose calls (one before each access) arrive
//! here by way of `hooks.rs`. Blocks of a checked launch run one after the other on one OS thread.
//!
//! Order between two accesses of one block comes from a barrier between them (`epoch`) or, within a warp, from
//! `__syncwarp` (`stamp`, and for each thread how far it has seen each lane of its warp: `views`). Shuffles and votes
//! order nothing, as CUDA has it. Different blocks are never ordered.

use std::collections::HashSet;

use super::Region;
use super::block::{Block, Context};
use super::report::{Action, Finding, FindingKind, Report, Site};
use super::shadow::{ATOMIC, Cell, IN_FLIGHT, MANY_BLOCKS, MANY_WARPS, Mark, Span};
use super::source::Lines;
use super::trace::Trace;

/// Findings kept per launch.
const MOST: usize = 8;

/// One memory access of the running thread.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) address: usize,
    pub(super) bytes: usize,
    kind: u32,
    /// Return address of the hook; 0 where `site` is known instead.
    pub(super) pc: usize,
    pub(super) site: Site,
}

impl Access {
    pub(super) const READ: u32 = 0;
    pub(super) const WRITE: u32 = 1;
    pub(super) const ATOMIC: u32 = 2;
    /// An asynchronous copy to here begins: a write at any time from now to its wait.
    pub(super) const ISSUE: u32 = 3;

    pub(super) fn site(address: usize, bytes: usize, kind: u32, site: Site) -> Access {
        Access { address, bytes, kind, pc: 0, site }
    }

    pub(super) fn hook(address: usize, bytes: usize, kind: u32, pc: usize) -> Access {
        Access { address, bytes, kind, pc, site: Site::NONE }
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

struct Raw {
    kind: FindingKind,
    block: [u32; 3],
    thread: [u32; 3],
    pc: usize,
    site: Site,
    place: String,
    other: Option<([u32; 3], [u32; 3])>,
}

/// State of one checked launch.
pub(super) struct Checker {
    kernel: String,
    grid: [u32; 3],
    regions: Vec<Region>,
    /// Memory of all regions; regions that overlap share a span.
    spans: Vec<Span>,
    /// Static and dynamic shared memory of this OS thread.
    shared: Vec<Span>,
    tag: u32,
    epoch: u32,
    /// Per warp: `__syncwarp`s so far in this block.
    time: Vec<u32>,
    /// Per thread and lane of its warp: accesses of that lane with a smaller stamp are seen.
    views: Vec<[u32; 32]>,
    accesses: u64,
    raw: Vec<Raw>,
    seen: HashSet<(FindingKind, usize, u32)>,
    trace: Option<Trace>,
}

impl Checker {
    pub(super) fn new(kernel: &str, grid: [u32; 3], regions: &[Region], trace: Option<Trace>) -> Checker {
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
            kernel: kernel.to_string(),
            grid,
            regions: regions.to_vec(),
            spans: merged.into_iter().map(|(start, end)| Span::new(start, end)).collect(),
            shared: vec![],
            tag: 0,
            epoch: 0,
            time: vec![],
            views: vec![],
            accesses: 0,
            raw: vec![],
            seen: HashSet::new(),
            trace,
        }
    }

    pub(super) fn begin_block(&mut self, block: &mut Block) {
        if self.shared.is_empty() {
            let arena = block.shared.arena();
            let dynamic = block.shared.dynamic_start();
            self.shared.push(Span::new(arena.0, arena.1));
            self.shared.push(Span::new(dynamic, dynamic + block.shared.dynamic_bytes));
        }
        self.tag = block.number + 1;
        self.epoch += 1;
        self.time.clear();
        self.time.resize(block.threads.div_ceil(32) as usize, 1);
        self.views.clear();
        self.views.resize(block.threads as usize, [0; 32]);
    }

    pub(super) fn barrier(&mut self) {
        self.epoch += 1;
    }

    /// These lanes of a warp have met: each now sees what the others have seen and done.
    pub(super) fn warp_sync(&mut self, warp: u32, lanes: u32) {
        let first = warp as usize * 32;
        self.time[warp as usize] += 1;
        let now = self.time[warp as usize];
        let members = || (0..32).filter(|l| lanes >> l & 1 == 1);
        let mut joined = [0; 32];
        for lane in members() {
            for (joined, seen) in joined.iter_mut().zip(self.views[first + lane]) {
                *joined = seen.max(*joined);
            }
        }
        for lane in members() {
            joined[lane] = now;
        }
        for lane in members() {
            self.views[first + lane] = joined;
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
    fn access(&mut self, block: &Block, a: Access) -> bool {
        let own = |(start, end): (usize, usize)| a.address >= start && a.address < end;
        let context = block.context as usize;
        if own(block.stack) || own((context, context + size_of::<Context>())) || a.bytes == 0 {
            return true;
        }
        self.accesses += 1;
        let shared = self.shared_variable(block, a);
        if !shared && !self.in_bounds(block, a) {
            return false;
        }
        if let Some(trace) = &mut self.trace {
            let place = if trace.wants(block) { place(&self.regions, block, a, false) } else { String::new() };
            trace.access(block, a, a.kind, place);
        }
        self.races(block, a, shared);
        true
    }

    fn shared_variable(&self, block: &Block, a: Access) -> bool {
        let (arena, dynamic) = (&self.shared[0], &self.shared[1]);
        if dynamic.holds(a.address, a.bytes) {
            return true;
        }
        let holds = |v: &super::shared::Variable| a.address >= v.start && a.address + a.bytes <= v.start + v.bytes;
        arena.holds(a.address, a.bytes) && block.shared.variables.iter().any(holds)
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

    fn races(&mut self, block: &Block, a: Access, shared: bool) {
        let linear = block.linear();
        let (warp, lane) = (linear >> 5, linear & 31);
        let me = Mark {
            tag: self.tag,
            epoch: self.epoch,
            stamp: self.time[warp as usize],
            thread: linear as u16,
            flags: if a.kind == Access::ATOMIC { ATOMIC } else { 0 },
        };
        let view = &self.views[linear as usize];
        let spans = if shared { &mut self.shared } else { &mut self.spans };
        let Some(span) = spans.iter_mut().find(|s| s.holds(a.address, a.bytes)) else { return };
        let mut found = None;
        span.visit(a.address, a.bytes, |cell| {
            if shared {
                forget_other_blocks(cell, me.tag);
            }
            found = look(cell, me, a.kind, shared, view, lane);
            note(cell, me, a.kind, lane);
            found.is_some()
        });
        if let Some((kind, other)) = found {
            self.find(kind, block, a, other);
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

    /// A pointer that is no multiple of its type's size, at a line that the compiler gives.
    pub(super) fn misaligned(&mut self, block: &Block, address: usize, align: usize, site: Site) {
        let a = Access::site(address, align, Access::READ, site);
        self.find(FindingKind::Misaligned, block, a, None);
    }

    /// An index that an array does not have, at a line that the compiler gives.
    pub(super) fn outside_array(&mut self, block: &Block, index: usize, site: Site) {
        if self.seen.insert((FindingKind::OutsideArray, 0, site.line)) && self.raw.len() < 8 * MOST {
            let thread = block.coordinates(block.linear());
            let place = format!("index {}", index as isize);
            let kind = FindingKind::OutsideArray;
            self.raw.push(Raw { kind, block: block.index, thread, pc: 0, site, place, other: None });
        }
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

/// Shared memory is another one for each block.
fn forget_other_blocks(cell: &mut Cell, tag: u32) {
    if cell.write.tag != tag && cell.read.tag != tag {
        *cell = Cell::default();
    }
}

/// Whether `before` happened before the running thread's `me`.
fn ordered(before: Mark, me: Mark, view: &[u32; 32]) -> bool {
    if before.tag != me.tag {
        return before.tag == 0;
    }
    before.epoch != me.epoch
        || before.thread == me.thread
        || (before.thread >> 5 == me.thread >> 5 && before.stamp < view[(before.thread & 31) as usize])
}

fn look(
    cell: &Cell,
    me: Mark,
    kind: u32,
    shared: bool,
    view: &[u32; 32],
    lane: u32,
) -> Option<(FindingKind, Option<Mark>)> {
    let empty = cell.write.tag == 0 || cell.write.flags & IN_FLIGHT != 0;
    if shared && empty && matches!(kind, Access::READ | Access::ATOMIC) {
        return Some((FindingKind::UninitialisedShared, Some(cell.write)));
    }
    let raced = match (cell.write.flags & ATOMIC != 0, kind == Access::ATOMIC) {
        (true, true) => false,
        (true, false) => !all_ordered(cell.write, cell.writers, me, view, lane),
        _ => !ordered(cell.write, me, view),
    };
    if raced {
        let kind = if kind == Access::READ { FindingKind::ReadAfterWriteRace } else { FindingKind::WriteWriteRace };
        return Some((kind, Some(cell.write)));
    }
    let raced = kind != Access::READ && !all_ordered(cell.read, cell.readers, me, view, lane);
    raced.then_some((FindingKind::WriteAfterReadRace, Some(cell.read)))
}

/// Whether all the accesses that a mark stands for happened before `me`.
fn all_ordered(mark: Mark, lanes: u32, me: Mark, view: &[u32; 32], lane: u32) -> bool {
    if mark.tag != me.tag || mark.flags & MANY_BLOCKS != 0 {
        return mark.tag == 0;
    }
    if mark.epoch != me.epoch {
        return true;
    }
    let others = lanes & !(1 << lane);
    mark.flags & MANY_WARPS == 0
        && mark.thread >> 5 == me.thread >> 5
        && (0..32).all(|l| others >> l & 1 == 0 || mark.stamp < view[l])
}

/// Makes a mark stand for `me` as well.
fn join(mark: &mut Mark, lanes: &mut u32, me: Mark, lane: u32) {
    let foreign = if mark.tag != 0 && mark.tag != me.tag { MANY_BLOCKS } else { mark.flags & MANY_BLOCKS };
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

fn note(cell: &mut Cell, me: Mark, kind: u32, lane: u32) {
    match kind {
        Access::READ => join(&mut cell.read, &mut cell.readers, me, lane),
        Access::ATOMIC if cell.write.flags & ATOMIC != 0 => join(&mut cell.write, &mut cell.writers, me, lane),
        Access::ISSUE => *cell = Cell { write: Mark { flags: IN_FLIGHT, ..me }, ..Cell::default() },
        _ => *cell = Cell { write: me, writers: 1 << lane, ..Cell::default() },
    }
}

/// `4 bytes at x[17]`, or only `x[17]`.
fn place(regions: &[Region], block: &Block, a: Access, long: bool) -> String {
    let shared = block.shared.variables.iter().map(|v| (v.name(), v.start, v.bytes));
    let dynamic = ("dyn".to_string(), block.shared.dynamic_start(), block.shared.dynamic_bytes);
    let arguments = regions.iter().map(|r| (r.name.to_string(), r.start, r.bytes));
    let all: Vec<_> = arguments.chain(shared).chain([dynamic]).filter(|(_, _, bytes)| *bytes > 0).collect();
    let element = |name: &str, offset: usize| match a.bytes {
        1..=4 => format!("{name}[{}]", offset / a.bytes),
        n => format!("{name}[{}..{}]", offset / 4, (offset + n) / 4 - 1),
    };
    let bytes = a.bytes;
    if let Some((name, start, _)) = all.iter().find(|(_, s, n)| a.address >= *s && a.address + bytes <= s + n) {
        let element = element(name, a.address - start);
        return if long { format!("{bytes} bytes at {element}") } else { element };
    }
    if a.address < 4096 {
        return format!("{bytes} bytes through a null pointer");
    }
    let distance = |s: usize, n: usize| if a.address < s { s - a.address } else { a.address.saturating_sub(s + n) };
    match all.iter().min_by_key(|(_, s, n)| distance(*s, *n)) {
        Some((name, s, n)) if distance(*s, *n) < 1 << 20 => {
            if a.address < *s {
                return format!("{bytes} bytes, {} before the start of `{name}`", s - a.address);
            }
            let element = element(name, a.address - s);
            match a.address.checked_sub(s + n) {
                None => format!("{bytes} bytes at {element}, across the end of `{name}`"),
                Some(0) => format!("{bytes} bytes past the end of `{name}`, at {element}"),
                Some(gap) => format!("{bytes} bytes, {gap} past the end of `{name}`, at {element}"),
            }
        }
        _ => format!("{bytes} bytes at {:#x}, far from every argument", a.address),
    }
}
