//! wgmma: matrix products of a warpgroup, from shared memory, behind its back.
//!
//! A product is carried out when all 128 threads have asked for it, or as late as at their wait (`hopper::late`). Until
//! the wait the accumulators are poison. A wait is for the whole warpgroup: what one of its threads lets others overwrite
//! then, all four warps have read. (The hardware behaves so; kernels in use rely on it.)

use std::ffi::c_char;

use super::access::Access;
use super::block::{Block, Pause, Waiting, current};
use super::clocks::{Behind, Row};
use super::hopper::{agent, begin, behalf, late, note};
use super::report::{FaultKind, Site, dim};
use super::shared::POISON;
use super::tma::at;

/// Threads of a warpgroup.
const THREADS: usize = 128;

/// What a thread asks for; `emu::Product` in hopper.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    d: *mut f32,
    /// Four registers of A; null if it is in shared memory.
    registers: *const [u32; 4],
    a: u64,
    b: u64,
    n: u32,
    flags: u32,
}

/// A, B: their rows lie along M or N, not along K.
const TURN_A: u32 = 1;
const TURN_B: u32 = 2;
const BF16: u32 = 4;
const ACCUMULATE: u32 = 8;

struct Op {
    request: Request,
    group: u32,
    site: Site,
    first: u32,
    /// For each thread.
    accumulators: [usize; THREADS],
    registers: Vec<[u32; 4]>,
    asked: usize,
    done: bool,
    /// What the threads of each warp know; and what all warps do, when it is carried out.
    warps: [Row; 4],
    row: Row,
}

/// Accumulators that a product works on.
struct Lent {
    start: usize,
    group: u32,
    values: Vec<f32>,
}

#[derive(Default)]
struct Thread {
    asked: usize,
    groups: u32,
    lent: Vec<Lent>,
}

/// The products of a warpgroup.
#[derive(Default)]
pub(super) struct Warpgroup {
    /// Those that were not waited for, and how many came before them.
    ops: Vec<Op>,
    before: usize,
    threads: Vec<Thread>,
    waiting: Vec<u32>,
    pending: u32,
}

impl Warpgroup {
    pub(super) fn left_over(&self) -> Option<String> {
        let line = self.ops.first()?.site.resolve().map_or(String::new(), |l| format!("{l}: "));
        Some(format!("{line}a product was not waited for when its threads left"))
    }
}

pub(super) fn exports() -> [*const (); 2] {
    [tilework_emu_wgmma as *const (), tilework_emu_wgmma_group as *const ()]
}

/// The running thread's warpgroup, and its place in it.
///
/// # Safety
/// `block` runs on this OS thread; the reference must end before the next switch.
unsafe fn warpgroup<'a>(block: *mut Block, site: Site) -> (u32, usize, &'a mut Warpgroup) {
    // SAFETY: as the caller promises.
    unsafe {
        begin(block);
        let linear = (*block).linear();
        if linear as usize / THREADS >= (*block).threads as usize / THREADS {
            let detail = "the thread belongs to no whole warpgroup".into();
            Block::fail(block, FaultKind::BadProduct, detail, site);
        }
        let groups = &mut (*block).hopper.groups;
        groups.resize_with((*block).threads as usize / THREADS, Warpgroup::default);
        let group = &mut groups[linear as usize / THREADS];
        group.threads.resize_with(THREADS, Thread::default);
        (linear / THREADS as u32, linear as usize % THREADS, group)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_wgmma(request: *const Request, file: *const c_char, line: i32) {
    let (block, site) = (current(), Site::new(file, line));
    // SAFETY: called by a kernel, so `block` is the block that runs on this OS thread; request, accumulators and registers
    // are its thread's own, and outlive the wait.
    unsafe {
        let (number, me, group) = warpgroup(block, site);
        let bad = move |detail: String| Block::fail(block, FaultKind::BadProduct, detail, site);
        let r = *request;
        if let Some(problem) = problem(&r) {
            bad(problem);
        }
        let thread = &mut group.threads[me];
        let (index, committed) = (thread.asked - group.before, thread.groups);
        thread.asked += 1;
        if index == group.ops.len() {
            let first = (*block).linear();
            let registers = if r.registers.is_null() { vec![] } else { vec![[0; 4]; THREADS] };
            group.ops.push(Op {
                request: r,
                group: committed,
                site,
                first,
                accumulators: [0; THREADS],
                registers,
                asked: 0,
                done: false,
                warps: Default::default(),
                row: Row::default(),
            });
        }
        let op = &mut group.ops[index];
        let same = |x: &Request, y: &Request| {
            (x.a, x.b, x.n, x.flags, x.registers.is_null()) == (y.a, y.b, y.n, y.flags, y.registers.is_null())
        };
        if !same(&op.request, &r) || op.group != committed {
            let other = dim((*block).coordinates(op.first));
            let line = op.site.resolve().map_or(String::new(), |l| format!(" at {l}"));
            bad(format!("thread {other} of the warpgroup asks for another product{line}"));
        }
        let values = r.n as usize / 2;
        op.accumulators[me] = r.d as usize;
        if let Some(registers) = op.registers.get_mut(me) {
            *registers = *r.registers;
        }
        match thread.lent.iter_mut().find(|l| l.start == r.d as usize) {
            Some(lent) if lent.values.len() == values => lent.group = committed,
            Some(_) => bad("its accumulators are those of a product of another size, which was not waited for".into()),
            None => {
                let values = std::slice::from_raw_parts(r.d, values).to_vec();
                thread.lent.push(Lent { start: r.d as usize, group: committed, values });
                r.d.cast::<u8>().write_bytes(POISON, r.n as usize * 2);
            }
        }
        let checker = (*block).checker;
        if !checker.is_null() {
            let mine = agent(block);
            (*checker).clocks(&*block).release(mine, &mut op.warps[me / 32]);
            let registers = (*checker).registers(&*block);
            let of_d = registers.lend(r.d as usize, r.n as usize * 2, false, committed);
            let of_a =
                if r.registers.is_null() { None } else { registers.lend(r.registers as usize, 16, true, committed) };
            for (kind, what) in [(of_d, "accumulators"), (of_a, "A's registers")] {
                if let Some(kind) = kind {
                    note(block, kind, site, format!("{what} of a product"));
                }
            }
        }
        op.asked += 1;
        if op.asked == THREADS && !late(&mut *block) {
            carry_out(block, number, index + 1);
        }
    }
}

fn problem(r: &Request) -> Option<String> {
    if !r.n.is_multiple_of(8) || !(8..=256).contains(&r.n) {
        return Some(format!("n = {}; it is a multiple of 8, at most 256", r.n));
    }
    if !r.registers.is_null() && r.flags & TURN_A != 0 {
        return Some("A in registers is always K-major".into());
    }
    let bases = [if r.registers.is_null() { r.a } else { 0 }, r.b].map(|d| d >> 49 & 7);
    if bases != [0, 0] {
        // The swizzle goes by bits of the address. With the row in this field, an H100 gave wrong results.
        return Some("a descriptor with a base offset; operands may start at any row, with 0 in this field".into());
    }
    None
}

/// The address of the 16 bytes that hold elements (8 i, k) to (8 i + 7, k), or (i, 8 k) to (i, 8 k + 7) if K-major.
fn chunk(descriptor: u64, turned: bool, i: u32, k: u32) -> u32 {
    let field = |shift: u32| ((descriptor >> shift & 0x3fff) as u32) << 4;
    let (start, leading, stride) = (field(0), field(16), field(32));
    let row = [16, 128, 64, 32][(descriptor >> 62) as usize];
    let at = match (turned, row) {
        (false, 16) => i / 8 * stride + k * leading + i % 8 * 16,
        (false, _) => i / 8 * stride + i % 8 * row + k * 16,
        (true, 16) => i * stride + k / 8 * leading + k % 8 * 16,
        (true, _) => i / (row / 16) * leading + k / 8 * stride + k % 8 * row + i % (row / 16) * 16,
    };
    let plain = (start + at) & 0x3ffff;
    plain ^ (plain >> 7 & (row / 16 - 1)) << 4
}

/// Reads an operand of `lines` lines along M or N: 16 values of each.
///
/// # Safety
/// As [`carry_out`].
unsafe fn operand(block: *mut Block, number: u32, op: &Op, of_a: bool, lines: u32) -> Vec<[f32; 16]> {
    let r = &op.request;
    let (descriptor, turned) = if of_a { (r.a, r.flags & TURN_A != 0) } else { (r.b, r.flags & TURN_B != 0) };
    let (across, down) = if turned { (lines / 8, 16) } else { (lines, 2) };
    let mut values = vec![[0.0; 16]; lines as usize];
    for i in 0..across {
        for k in 0..down {
            let address = chunk(descriptor, turned, i, k);
            // SAFETY: as the caller promises; sixteen bytes of shared memory, aligned.
            let halves = unsafe {
                let Some(from) = at(block, address, 16) else {
                    let detail =
                        format!("{} reaches {address:#x}, outside shared memory", if of_a { "A" } else { "B" });
                    Block::fail(block, FaultKind::BadProduct, detail, op.site)
                };
                if !(*block).checker.is_null() {
                    let what = Behind::Products((*block).rank, number);
                    let by = behalf(block, what, op.group + 1, &raw const op.row);
                    Access::site(from as usize, 16, Access::READ, op.site).behind(by).check(block);
                }
                from.cast::<[u16; 8]>().read()
            };
            for (e, bits) in halves.into_iter().enumerate() {
                let (line, k) =
                    if turned { (i as usize * 8 + e, k as usize) } else { (i as usize, k as usize * 8 + e) };
                values[line][k] = float(bits, r.flags);
            }
        }
    }
    values
}

fn float(bits: u16, flags: u32) -> f32 {
    if flags & BF16 != 0 { half::bf16::from_bits(bits).to_f32() } else { half::f16::from_bits(bits).to_f32() }
}

/// Carries out the products before the `end`-th of those that were not waited for.
///
/// # Safety
/// `block` runs on this OS thread, all threads have asked for them, and no reference into the block is alive.
unsafe fn carry_out(block: *mut Block, number: u32, end: usize) {
    for index in 0..end {
        // SAFETY: as the caller promises: the operands' reads may end the launch, but switch to no other thread of it.
        unsafe {
            let group: *mut Warpgroup = &raw mut (&mut (*block).hopper.groups)[number as usize];
            let op: *mut Op = &raw mut (&mut (*group).ops)[index];
            if std::mem::replace(&mut (*op).done, true) {
                continue;
            }
            // Warps meet neither at a product nor before it: what it reads, each of them must have seen.
            let [first, others @ ..] = &(*op).warps;
            (*op).row = first.clone();
            others.iter().for_each(|row| (*op).row.common(row));
            let r = (*op).request;
            let b = operand(block, number, &*op, false, r.n);
            let a = match (*op).registers.is_empty() {
                true => operand(block, number, &*op, true, 64),
                false => from_registers(&*op),
            };
            for (t, thread) in (*group).threads.iter_mut().enumerate() {
                let start = (&(*op).accumulators)[t];
                let Some(lent) = thread.lent.iter_mut().find(|l| l.start == start) else { continue };
                let (row, column) = (t / 32 * 16 + t % 32 / 4, t % 4 * 2);
                for (v, value) in lent.values.iter_mut().enumerate() {
                    let (i, j) = (row + v / 2 % 2 * 8, column + v / 4 * 8 + v % 2);
                    let first = if r.flags & ACCUMULATE != 0 { *value } else { 0.0 };
                    *value = a[i].iter().zip(&b[j]).fold(first, |sum, (x, y)| sum + x * y);
                }
            }
        }
    }
}

/// A of all threads: each has rows l / 4 and l / 4 + 8 of its warp's sixteen, and of these two neighbours at two places.
fn from_registers(op: &Op) -> Vec<[f32; 16]> {
    let mut values = vec![[0.0; 16]; 64];
    for (t, registers) in op.registers.iter().enumerate() {
        for (r, pair) in registers.iter().enumerate() {
            let (row, k) = (t / 32 * 16 + t % 32 / 4 + r % 2 * 8, t % 4 * 2 + r / 2 * 8);
            values[row][k] = float(*pair as u16, op.request.flags);
            values[row][k + 1] = float((pair >> 16) as u16, op.request.flags);
        }
    }
    values
}

const COMMIT: u32 = 0;

/// `wgmma.commit_group`, or a wait until at most `pending` groups are under way.
#[unsafe(no_mangle)]
unsafe extern "C" fn tilework_emu_wgmma_group(what: u32, pending: u32, file: *const c_char, line: i32) {
    let (block, site) = (current(), Site::new(file, line));
    // SAFETY: as above; each reference ends before the switch.
    unsafe {
        let (number, me, group) = warpgroup(block, site);
        if what == COMMIT {
            group.threads[me].groups += 1;
            return;
        }
        let bad = move |detail: String| Block::fail(block, FaultKind::BadProduct, detail, site);
        if group.waiting.is_empty() {
            group.pending = pending;
        } else if group.pending != pending {
            bad(format!(
                "a wait for all but {pending} groups; others of the warpgroup wait for all but {}",
                group.pending
            ));
        }
        group.waiting.push((*block).linear());
        if group.waiting.len() < THREADS {
            Block::suspend(block, Pause::Wait(Waiting::Products), site);
            return;
        }
        let (asked, groups) = (group.threads[me].asked, group.threads[me].groups);
        if let Some(t) = group.threads.iter().position(|t| (t.asked, t.groups) != (asked, groups)) {
            let other = dim((*block).coordinates(number * THREADS as u32 + t as u32));
            bad(format!("thread {other} of the warpgroup has asked for another number of products or groups"));
        }
        let done = groups.saturating_sub(pending);
        let count = group.ops.iter().take_while(|op| op.group < done).count();
        carry_out(block, number, count);
        finish(block, number, done, count);
    }
}

/// All of a warpgroup wait, and the groups before `done` are done: accumulators have their values, everybody goes on.
///
/// # Safety
/// As [`carry_out`]; the accumulators are on stacks of fibers that are suspended.
unsafe fn finish(block: *mut Block, number: u32, done: u32, count: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        let me = (*block).linear();
        let checker = (*block).checker;
        let group = &mut (&mut (*block).hopper.groups)[number as usize];
        group.ops.drain(..count);
        group.before += count;
        for thread in &mut group.threads {
            for lent in thread.lent.extract_if(.., |l| l.group < done) {
                (lent.start as *mut f32).copy_from_nonoverlapping(lent.values.as_ptr(), lent.values.len());
            }
        }
        for linear in std::mem::take(&mut group.waiting) {
            if !checker.is_null() {
                let by = behalf(block, Behind::Products((*block).rank, number), done, std::ptr::null());
                (*checker).products_done(&*block, linear, done, by.agent);
            }
            if linear != me {
                let fiber = (&(*block).fiber_of)[linear as usize];
                (*block).ready.push(fiber);
            }
        }
    }
}
