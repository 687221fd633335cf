//! Kernels with planted bugs (tests/kernels/planted.cu): each is reported, and its correct twin passes.

use super::*;

/// Name, plain and checked thunk of every kernel in planted.cu.
#[allow(unused_qualifications, reason = "written by build.rs")]
mod planted {
    use super::Thunk;
    include!(concat!(env!("OUT_DIR"), "/planted.rs"));
}
use planted::PLANTED;

/// Arguments as a kernel of planted.cu takes them.
struct Case {
    x: Vec<f32>,
    y: Vec<f32>,
    grid: u32,
    block: u32,
    shared: u32,
    n: i32,
    bug: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Dims {
    n: i32,
    bug: i32,
}

impl Case {
    fn new(bug: bool) -> Case {
        let x = (0..64).map(|i| i as f32 + 0.5).collect();
        Case { x, y: vec![0.0; 64], grid: 1, block: 64, shared: 0, n: 64, bug: i32::from(bug) }
    }

    fn blocks(bug: bool, grid: u32) -> Case {
        let n = grid as usize * 64;
        Case { x: vec![1.0; n], y: vec![0.0; n], grid, n: n as i32, ..Case::new(bug) }
    }

    fn launch<R>(&mut self, name: &str, run: impl FnOnce(&Call<'_>, &[Region]) -> R) -> R {
        let (_, plain, checked) = *PLANTED.iter().find(|k| k.0 == name).expect("a planted kernel");
        let (mut x, mut y, mut d) = (self.x.as_ptr(), self.y.as_mut_ptr(), Dims { n: self.n, bug: self.bug });
        let region = |name, start: usize, n: usize, writable| Region { name, start, bytes: n * 4, writable };
        let regions = [region("x", x as usize, self.x.len(), false), region("y", y as usize, self.y.len(), true)];
        let args = [(&raw mut x).cast(), (&raw mut y).cast(), (&raw mut d).cast()];
        let (grid, block) = ([self.grid, 1, 1], [self.block, 1, 1]);
        let (cluster, shared, specific) = ([1; 3], self.shared, false);
        run(&Call { kernel: name, plain, checked, specific, grid, block, cluster, shared, args: &args }, &regions)
    }

    fn run(&mut self, name: &str, order: Order) -> Result<(), Fault> {
        // SAFETY: the arguments are those that every kernel of planted.cu takes.
        self.launch(name, |l, _| unsafe { run(l, order) })
    }

    fn check(&mut self, name: &str, order: Order) -> Result<Report, Fault> {
        // SAFETY: as in `run`.
        self.launch(name, |l, r| unsafe { run_checked(l, order, r) })
    }
}

const ORDERS: [Order; 4] = [Order::Forward, Order::Reverse, Order::Random(1), Order::Random(77)];

/// The bug is found, at this line of planted.cu, in every order; the twin without it is clean and gives one result.
#[track_caller]
fn finds(name: &str, make: impl Fn(bool) -> Case, kind: FindingKind, text: &str) {
    let mut results = Vec::new();
    for order in ORDERS {
        let report = make(true).check(name, order).unwrap_or_else(|f| panic!("{order:?}: {f}"));
        let found = report.findings.iter().find(|f| f.kind == kind);
        let found = found.unwrap_or_else(|| panic!("{order:?}: not {kind:?} in {:#?}", report.findings));
        assert!(found.to_string().contains(text), "{found}");
        let at = found.at.as_ref().expect("a source line");
        assert_eq!(at.file, "kernels/planted.cu");
        let source = include_str!("planted.cu");
        let above = source.lines().take(at.line as usize).collect::<Vec<_>>().join("\n");
        let last = above.rfind("__global__").expect("a kernel above");
        assert!(above[last..].contains(&format!(" {name}(")), "{name} is not at {at}");

        let report = make(false).check(name, order).unwrap_or_else(|f| panic!("{order:?}: {f}"));
        assert!(report.findings.is_empty(), "{order:?}: {}", report.findings[0]);
        assert!(report.accesses > 0);
        let mut case = make(false);
        case.run(name, order).unwrap_or_else(|f| panic!("{order:?}: {f}"));
        results.push(case.y);
    }
    assert!(results.iter().all(|r| *r == results[0]), "{name}: the order changes the result");
}

/// The bug is found in every order, if not always as the same kind; the twin is clean.
#[track_caller]
fn races(name: &str) {
    for order in ORDERS {
        let report = Case::new(true).check(name, order).expect("no fault");
        assert!(!report.findings.is_empty(), "{order:?}");
        let report = Case::new(false).check(name, order).expect("no fault");
        assert!(report.findings.is_empty(), "{order:?}: {}", report.findings[0]);
    }
}

/// The bug stops the launch, checked or not, in every order; afterwards the twin runs.
#[track_caller]
fn faults(name: &str, kind: FaultKind, text: &str) {
    for order in ORDERS {
        for checked in [false, true] {
            let go = |bug: bool| {
                let mut case = Case::new(bug);
                if checked {
                    case.check(name, order).map(|r| r.findings.len())
                } else {
                    case.run(name, order).map(|()| 0)
                }
            };
            let fault = go(true).expect_err("a fault");
            assert_eq!(fault.kind, kind, "{order:?}: {fault}");
            assert!(fault.to_string().contains(text), "{order:?}: {fault}");
            assert!(fault.to_string().starts_with("kernels/planted.cu:"), "{fault}");
            assert_eq!(go(false).expect("no fault"), 0);
        }
    }
}

#[test]
fn a_missing_barrier_is_a_race() {
    races("missing_barrier");
    let report = Case::new(true).check("missing_barrier", Order::Forward).expect("no fault");
    let kinds: Vec<_> = report.findings.iter().map(|f| f.kind).collect();
    assert!(kinds.contains(&FindingKind::UninitialisedShared), "{kinds:?}");
    assert!(kinds.contains(&FindingKind::ReadAfterWriteRace), "{kinds:?}");
}

#[test]
fn a_missing_wait_leaves_shared_memory_empty() {
    finds("missing_wait", Case::new, FindingKind::UninitialisedShared, "an asynchronous copy is under way");
    let mut case = Case::new(true);
    case.run("missing_wait", Order::Forward).expect("no fault");
    assert!(case.y.iter().all(|y| y.is_nan()));
}

#[test]
fn copies_go_to_shared_memory() {
    faults("copy_elsewhere", FaultKind::BadCopy, "not in shared memory");
    faults("crooked_copy", FaultKind::BadCopy, "8 bytes off its alignment");
}

#[test]
fn a_copy_that_begins_too_early_is_a_race() {
    finds("early_copy", Case::new, FindingKind::WriteAfterReadRace, "tile[");
}

#[test]
fn bounds() {
    finds("bound_read", Case::new, FindingKind::OutOfBoundsRead, "4 bytes past the end of `x`, at x[64]");
    finds(
        "bound_write",
        |bug| Case { grid: 2, ..Case::new(bug) },
        FindingKind::OutOfBoundsWrite,
        "4 bytes past the end of `y`, at y[64]",
    );
    finds("input_write", Case::new, FindingKind::ReadOnlyWrite, "4 bytes at x[");
}

#[test]
fn shared_memory_overruns() {
    finds("shared_overrun", Case::new, FindingKind::OutOfBoundsWrite, "past the end of `tile`");
    let dynamic = |bug| Case { shared: 256, ..Case::new(bug) };
    finds("dynamic_overrun", dynamic, FindingKind::OutOfBoundsWrite, "past the end of `dyn`");
    for (name, case) in [("shared_overrun", Case::new(true)), ("dynamic_overrun", dynamic(true))] {
        let mut case = case;
        let fault = case.run(name, Order::Forward).expect_err("the guard was written");
        assert_eq!(fault.kind, FaultKind::SharedMemory, "{fault}");
        assert!(fault.to_string().contains("256 bytes"), "{fault}");
    }
}

#[test]
fn a_plain_increment_is_a_race() {
    finds("plain_increment", Case::new, FindingKind::ReadAfterWriteRace, "count[0]");
}

#[test]
fn uninitialised_shared_memory() {
    finds("uninitialised", Case::new, FindingKind::UninitialisedShared, "tile[7]");
}

#[test]
fn misaligned_vectors() {
    finds("misaligned", Case::new, FindingKind::Misaligned, "16 bytes at x[");
    let mut case = Case::new(true);
    case.run("misaligned", Order::Forward).expect("the plain build lets it pass");
    assert_eq!(case.y[0], 1.5 + 2.5 + 3.5 + 4.5);
}

#[test]
fn an_index_outside_an_array() {
    finds("outside_array", Case::new, FindingKind::OutsideArray, "index 4");
    #[cfg(tilework_emulator_strict)]
    finds("outside_struct", Case::new, FindingKind::OutsideArray, "index 4");
}

#[test]
fn blocks_race() {
    finds("blocks_race", |bug| Case::blocks(bug, 4), FindingKind::WriteWriteRace, "4 bytes at y[0]");
    finds("blocks_read", |bug| Case::blocks(bug, 2), FindingKind::WriteAfterReadRace, "y[");
}

#[test]
fn shuffles_do_not_order_memory() {
    races("missing_syncwarp");
    races("wrong_syncwarp");
}

#[test]
fn barriers_and_collectives_must_be_reached() {
    faults("conditional_barrier", FaultKind::AbandonedBarrier, "40 of 64 threads wait here");
    faults("two_barriers", FaultKind::DivergentBarrier, "kernels/planted.cu:");
    faults("divergent_shuffle", FaultKind::Deadlock, "waits for lanes 0xffff0000; lane 16");
    faults("two_collectives", FaultKind::DivergentCollective, "__shfl_xor_sync");
    for order in ORDERS {
        let fault = Case::new(true).run("exited_lane", order).expect_err("a lane is gone");
        assert!(matches!(fault.kind, FaultKind::BadMask | FaultKind::Deadlock), "{fault}");
        assert!(fault.to_string().contains("left the kernel"), "{fault}");
        Case::new(false).run("exited_lane", order).expect("no fault");
    }
}

/// `masks` as the lanes of a real warp compute it.
fn masks(threads: usize) -> Vec<i32> {
    let mut v: Vec<i32> = (0..threads as i32).collect();
    for round in 0..4 {
        let before = v.clone();
        for (t, v) in v.iter_mut().enumerate() {
            let lane = t % 32;
            let low = if round % 2 == 1 { lane % 2 == 0 } else { lane < 16 };
            let other = before[t ^ if round % 2 == 1 { 2 } else { 1 }];
            *v = v.wrapping_add(other.wrapping_mul(if low { 1 } else { 3 }));
        }
    }
    let any = |t: usize| i32::from(t < 32);
    v.iter().enumerate().map(|(t, v)| v.wrapping_add(0xaa + any(t) + 1)).collect()
}

fn bits(values: &[f32]) -> Vec<i32> {
    values.iter().map(|v| v.to_bits() as i32).collect()
}

fn of_bits(values: impl IntoIterator<Item = i32>) -> Vec<f32> {
    values.into_iter().map(|v| f32::from_bits(v as u32)).collect()
}

#[test]
fn accesses_through_functions() {
    finds("inlined_read", Case::new, FindingKind::OutOfBoundsRead, "past the end of `x`");
    finds("long_memset", Case::new, FindingKind::OutOfBoundsWrite, "260 bytes at y[0..64], across the end of `y`");
    races("half_atomic");
    finds("null_read", Case::new, FindingKind::OutOfBoundsRead, "null pointer");
}

#[test]
fn what_is_right_is_clean() {
    let mut results = Vec::new();
    for order in ORDERS {
        let mut case = Case::new(false);
        let report = case.check("innocent", order).expect("no fault");
        assert!(report.findings.is_empty(), "{order:?}: {}", report.findings[0]);
        let mut plain = Case::new(false);
        plain.run("innocent", order).expect("no fault");
        assert_eq!(case.y, plain.y);
        results.push(case.y);
    }
    assert!(results.iter().all(|r| *r == results[0]));
}

#[test]
fn copies_fill_with_zeros_and_arrive_by_group() {
    let cut = |bug| Case { n: 50, block: 16, ..Case::new(bug) };
    for order in ORDERS {
        let (mut first, mut second) = (cut(false), cut(true));
        let report = first.check("cut_copy", order).expect("no fault");
        assert!(report.findings.is_empty(), "{}", report.findings[0]);
        let want: Vec<f32> = first.x.iter().enumerate().map(|(i, x)| if i < 50 { *x } else { 0.0 }).collect();
        assert_eq!(first.y, want);
        second.run("cut_copy", order).expect("no fault");
        assert!(second.y.iter().all(|y| y.is_nan()), "the second group was not waited for");
    }
}

#[test]
fn atomics_add_up() {
    for order in ORDERS {
        for checked in [false, true] {
            let mut case = Case { grid: 3, ..Case::new(false) };
            case.y[6] = f32::from_bits(0);
            if checked {
                let report = case.check("atomics", order).expect("no fault");
                assert!(report.findings.is_empty(), "{}", report.findings[0]);
            } else {
                case.run("atomics", order).expect("no fault");
            }
            let y = bits(&case.y);
            assert_eq!(y[..5], [3 * 2016, 63, -63, 192, 7], "{order:?}");
            assert_eq!(y[5] + y[6], 3 * 2080, "what was put in comes out");
            assert_eq!((case.y[7], y[8], y[9]), (96.0, -1, -384));
        }
    }
}

#[test]
fn masks_change_and_overlap() {
    for threads in [32, 96, 1024] {
        for order in ORDERS.into_iter().chain((0..20).map(Order::Random)) {
            let data = vec![0.0; threads];
            let mut case = Case { x: data.clone(), y: data, block: threads as u32, ..Case::new(false) };
            case.run("masks", order).expect("no fault");
            assert_eq!(bits(&case.y), masks(threads), "{threads} {order:?}");
        }
    }
}

#[test]
fn blocks_of_any_size() {
    for (threads, grid) in [(1, 1), (7, 3), (32, 2), (33, 5), (100, 40), (1000, 3), (1024, 2)] {
        for order in ORDERS {
            let n = threads * grid;
            let x = of_bits((0..n as i32).map(|i| i * 7 % 101));
            let want: Vec<i32> = bits(&x).chunks(threads).map(|c| c.iter().sum()).collect();
            let (grid, block) = (grid as u32, threads as u32);
            let make = || Case { x: x.clone(), y: vec![0.0; want.len()], grid, block, ..Case::new(false) };
            let mut case = make();
            case.run("block_sum", order).expect("no fault");
            assert_eq!(bits(&case.y), want, "{threads} {order:?}");
            let mut case = make();
            let report = case.check("block_sum", order).expect("no fault");
            assert!(report.findings.is_empty(), "{threads} {order:?}: {}", report.findings[0]);
            assert_eq!(bits(&case.y), want);
        }
    }
}

#[test]
fn launches_that_no_gpu_takes() {
    for (grid, block, shared) in [(0, 64, 0), (1, 0, 0), (1, 1025, 0), (1, 64, 1 << 20)] {
        let fault = Case { grid, block, shared, ..Case::new(false) }.run("bound_read", Order::Forward);
        assert_eq!(fault.expect_err("refused").kind, FaultKind::InvalidLaunch);
    }
}

#[test]
fn a_seed_gives_one_order() {
    let tickets = |order| {
        let mut case = Case::new(false);
        case.run("tickets", order).expect("no fault");
        bits(&case.y)
    };
    assert_eq!(tickets(Order::Forward), (0..64).collect::<Vec<_>>());
    assert_eq!(tickets(Order::Reverse), (0..64).rev().collect::<Vec<_>>());
    assert_eq!(tickets(Order::Random(5)), tickets(Order::Random(5)));
    assert_ne!(tickets(Order::Random(5)), tickets(Order::Random(6)));
}

#[test]
fn every_order_visits_every_block_once() {
    for n in [1, 2, 3, 64, 97, 1000] {
        for order in ORDERS.into_iter().chain((0..50).map(Order::Random)) {
            let mut seen: Vec<u32> = (0..n).map(|i| Walk::new(order, n).nth(i)).collect();
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..n), "{n} {order:?}");
        }
    }
}

#[test]
fn several_os_threads_at_once() {
    std::thread::scope(|scope| {
        for i in 0..6u64 {
            scope.spawn(move || {
                for round in 0..30 {
                    let order = Order::Random(i * 100 + round);
                    match i % 3 {
                        0 => {
                            let report = Case::new(true).check("uninitialised", order).expect("no fault");
                            assert_eq!(report.findings.len(), 1);
                        }
                        1 => {
                            Case::new(true).run("divergent_shuffle", order).expect_err("a fault");
                            let report = Case::new(false).check("early_copy", order).expect("no fault");
                            assert!(report.findings.is_empty(), "{}", report.findings[0]);
                        }
                        _ => {
                            let mut case = Case::blocks(false, 20);
                            case.run("blocks_read", order).expect("no fault");
                            assert!(case.y.iter().all(|y| *y == 1.0));
                        }
                    }
                }
            });
        }
    });
}

#[test]
fn a_trace_tells_what_a_block_does() {
    let follow = Follow { block: [0; 3], threads: 5..6 };
    let mut case = Case::new(false);
    // SAFETY: as in `Case::run`.
    let (events, report) = case.launch("missing_barrier", |l, r| unsafe { run_traced(l, Order::Forward, r, &follow) });
    assert!(report.expect("no fault").findings.is_empty());
    let lines: Vec<String> = events.iter().map(ToString::to_string).collect();
    let text = lines.join("\n");
    let steps =
        ["starts", "reads   x[5] = 5.5", "writes  tile[5] = 5.5", "waits at the barrier", "reads   tile[58] = 58.5"];
    for (line, step) in lines.iter().zip(steps) {
        assert!(line.starts_with("thread (5)") && line.contains(step), "{text}");
    }
    assert!(text.contains("writes  y[5] = 58.5") && lines.last().is_some_and(|l| l.contains("exits")), "{text}");
    assert!(lines[3].contains("kernels/planted.cu:"), "{text}");
}
