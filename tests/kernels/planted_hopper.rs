//! Kernels for sm_90a with planted bugs (tests/kernels/planted_hopper.cu): each is reported, and its right twin passes.

use super::*;
use crate::device::cuda::{Swizzle, TensorMapSpec};

/// Name, plain and checked thunk of every kernel in planted_hopper.cu.
#[allow(unused_qualifications, reason = "written by build.rs")]
mod planted {
    use super::Thunk;
    include!(concat!(env!("OUT_DIR"), "/planted_hopper.rs"));
}
use planted::PLANTED_HOPPER;

const ORDERS: [Order; 5] = [Order::Forward, Order::Reverse, Order::Random(1), Order::Random(77), Order::Random(4)];

/// A kernel and how it is launched.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    threads: u32,
    cluster: u32,
    shared: u32,
}

const PRODUCT: Case = Case { name: "product", threads: 160, cluster: 1, shared: 16 << 10 };

#[repr(C)]
struct Dims {
    n: i32,
    bug: i32,
}

/// Aligned as a tensor's memory is.
#[repr(C, align(256))]
struct Memory<T, const N: usize>([T; N]);

fn x() -> Memory<u16, 8192> {
    Memory(std::array::from_fn(|i| half::f16::from_f32(((i * 7919) % 13) as f32 - 6.0).to_bits()))
}

/// Twice, or once, a b of `x`.
fn products(times: f32) -> Vec<f32> {
    let x = x().0.map(|bits| half::f16::from_bits(bits).to_f32());
    let cell = |i: usize| (0..64).map(|k| x[i / 64 * 64 + k] * x[4096 + i % 64 * 64 + k]).sum::<f32>();
    (0..4096).map(|i| times * cell(i)).collect()
}

impl Case {
    /// What the kernel makes of y, and what the checker says of it.
    fn go(self, bug: i32, order: Order, check: bool) -> (Vec<f32>, Result<Report, Fault>) {
        self.with(64, bug, order, check)
    }

    fn with(self, n: i32, bug: i32, order: Order, check: bool) -> (Vec<f32>, Result<Report, Fault>) {
        let (_, plain, checked) = *PLANTED_HOPPER.iter().find(|k| k.0 == self.name).expect("a planted kernel");
        let (memory, mut result) = (x(), Memory([0f32; 4096]));
        let (mut x, mut y, mut d) = (memory.0.as_ptr(), result.0.as_mut_ptr(), Dims { n, bug });
        let map = TensorMapSpec::tiled(2, x as u64, &[64, 128], &[64, 64], Swizzle::B128);
        let out = TensorMapSpec::tiled(4, y as u64, &[64, 64], &[64, 32], Swizzle::None);
        let (mut map, mut out) = (map::encode(&map).unwrap(), map::encode(&out).unwrap());
        let region = |name, start: usize, bytes, writable| Region { name, start, bytes, writable };
        let regions = [region("x", x as usize, 16384, false), region("y", y as usize, 16384, true)];
        let args = [(&raw mut map).cast(), (&raw mut out).cast(), (&raw mut x).cast(), (&raw mut y).cast()];
        let args = [&args[..], &[(&raw mut d).cast()]].concat();
        let (grid, block, cluster) = ([self.cluster, 1, 1], [self.threads, 1, 1], [self.cluster, 1, 1]);
        let call = Call {
            kernel: self.name,
            plain,
            checked,
            specific: true,
            grid,
            block,
            cluster,
            shared: self.shared,
            args: &args,
        };
        // SAFETY: the arguments are those that every kernel of planted_hopper.cu takes.
        let report = unsafe {
            if check { run_checked(&call, order, &regions) } else { run(&call, order).map(|()| Report::default()) }
        };
        (result.0.to_vec(), report)
    }

    /// Without a bug it is clean and right, in every order, checked or not.
    #[track_caller]
    fn is_right(self, want: &[f32]) {
        for order in ORDERS {
            for check in [false, true] {
                let (y, report) = self.go(0, order, check);
                let report = report.unwrap_or_else(|f| panic!("{order:?}: {f}"));
                assert!(report.findings.is_empty(), "{order:?}: {}", report.findings[0]);
                assert_eq!(&y[..want.len()], want, "{order:?}");
            }
        }
    }

    /// The bug is found in every order, as this, at a line of the kernel.
    #[track_caller]
    fn finds(self, bug: i32, kind: FindingKind, text: &str) {
        for order in ORDERS {
            let report = self.go(bug, order, true).1.unwrap_or_else(|f| panic!("{order:?}: {f}"));
            let found = report.findings.iter().find(|f| f.kind == kind && f.to_string().contains(text));
            let found = found.unwrap_or_else(|| panic!("{bug}, {order:?}: not {kind:?} in {:#?}", report.findings));
            assert_eq!(found.at.as_ref().expect("a source line").file, "kernels/planted_hopper.cu", "{found}");
        }
    }

    /// In every order the bug is found, or stops the launch.
    #[track_caller]
    fn fails(self, bug: i32, found: &[FindingKind], stops: &[FaultKind]) {
        for order in ORDERS {
            match self.go(bug, order, true).1 {
                Ok(report) => {
                    assert!(
                        report.findings.iter().any(|f| found.contains(&f.kind)),
                        "{bug}, {order:?}: {:#?}",
                        report.findings
                    );
                }
                Err(fault) => assert!(stops.contains(&fault.kind), "{bug}, {order:?}: {fault}"),
            }
        }
    }

    /// The bug stops the launch in every order, checked or not.
    #[track_caller]
    fn faults(self, bug: i32, kind: FaultKind, text: &str) {
        for order in ORDERS {
            for check in [false, true] {
                let fault = self.go(bug, order, check).1.expect_err("a fault");
                assert!(fault.kind == kind && fault.to_string().contains(text), "{order:?}: {fault}");
                assert!(fault.to_string().contains("kernels/planted_hopper.cu:"), "{fault}");
            }
        }
    }
}

#[test]
fn a_ring_of_tiles() {
    PRODUCT.is_right(&products(2.0));
    // As the threads run, the wrong phase has ended already, or never ends; what nobody waits for comes too late or not.
    let unready = [FindingKind::UninitialisedShared, FindingKind::ReadAfterWriteRace];
    PRODUCT.fails(1, &unready, &[FaultKind::Deadlock]);
    PRODUCT.fails(7, &unready, &[FaultKind::BadBarrier]);
    // Too few bytes: the phase ends when only a has come.
    PRODUCT.fails(3, &unready, &[FaultKind::BadBarrier]);
    for order in ORDERS {
        let fault = PRODUCT.go(3, order, false).1.expect_err("a fault");
        assert!(fault.detail.contains("bytes more have come than were expected"), "{fault}");
    }
    PRODUCT.faults(4, FaultKind::Deadlock, "and 16 bytes");
    PRODUCT.faults(8, FaultKind::Deadlock, "its phase 2 lacks 1 of 1 arrivals");
    // The slot is filled again before it was read, or even before it was filled.
    PRODUCT.fails(
        9,
        &[FindingKind::WriteAfterReadRace, FindingKind::WriteWriteRace],
        &[FaultKind::BadBarrier, FaultKind::Deadlock],
    );
    PRODUCT.finds(10, FindingKind::MissingProxyFence, "initialisation of the mbarrier");
    PRODUCT.faults(11, FaultKind::BadBarrier, "1 arrivals where its phase lacks 0 of 1");
    PRODUCT.faults(12, FaultKind::BadBarrier, "no mbarrier was initialised here");
    let early = [FindingKind::WriteAfterReadRace, FindingKind::ReadAfterWriteRace, FindingKind::UninitialisedShared];
    // A thread that is late sees the phase after next, and takes it for the one that it waits for.
    PRODUCT.fails(13, &early, &[FaultKind::Deadlock]);
    // Each arrival ends a phase, of which the loading thread waits for one.
    PRODUCT.finds(19, FindingKind::MissedPhase, "has ended, and nobody waited for phase");
    PRODUCT.faults(16, FaultKind::BadCopy, "64 bytes off its alignment of 128");
}

#[test]
fn products_of_a_warpgroup() {
    PRODUCT.finds(5, FindingKind::RegistersInUse, "");
    let fault = PRODUCT.go(5, Order::Forward, false).1.expect_err("a fault");
    assert!(fault.kind == FaultKind::BadProduct && fault.detail.contains("not waited for"), "{fault}");
    PRODUCT.finds(6, FindingKind::UnfencedRegisters, "accumulators");
    PRODUCT.finds(14, FindingKind::RegistersInUse, "");
    PRODUCT.faults(15, FaultKind::BadProduct, "asks for another product");
    PRODUCT.finds(17, FindingKind::UnfencedRegisters, "accumulators");
    PRODUCT.faults(18, FaultKind::BadProduct, "base offset");
    for order in ORDERS {
        // A row too far is in shared memory, and only the numbers show it.
        assert_ne!(PRODUCT.go(2, order, false).0, products(2.0));
        let early = PRODUCT.go(14, order, false).0[0];
        assert!(early.is_nan(), "{early}");
    }
    let tiles = Case { name: "stored_tiles", threads: 128, cluster: 1, shared: 16 << 10 };
    tiles.is_right(&products(1.0));
    tiles.finds(1, FindingKind::MissingProxyFence, "dyn[");
    for order in ORDERS {
        assert!(!tiles.go(2, order, true).1.expect("no fault").findings.is_empty());
    }
    let registers = Case { name: "registers", threads: 128, cluster: 1, shared: 8 << 10 };
    registers.is_right(&products(1.0));
    registers.finds(1, FindingKind::RegistersInUse, "");
}

/// As measured on an H100, with 0 in the descriptor's base offset.
#[test]
fn operands_from_any_row_on() {
    let case = Case { name: "any_row", threads: 128, cluster: 1, shared: 24 << 10 };
    let x = x().0.map(|bits| half::f16::from_bits(bits).to_f32());
    for from in [0, 1, 3, 7, 8, 13, 60] {
        for (kind, first) in [(0, from), (1, from), (2, from + 1)] {
            let (y, report) = case.with(from as i32, kind, Order::Random(9), true);
            let report = report.unwrap_or_else(|f| panic!("{f}"));
            assert!(report.findings.is_empty(), "{}", report.findings[0]);
            assert_eq!(y, x[first * 64..][..4096], "row {from}, kind {kind}");
        }
    }
}

#[test]
fn bulk_stores() {
    let stores = Case { name: "stores", threads: 128, cluster: 1, shared: 8 << 10 };
    stores.is_right(&(1..=4096).map(|i| i as f32).collect::<Vec<_>>());
    stores.finds(1, FindingKind::MissingProxyFence, "dyn[");
    stores.finds(2, FindingKind::WriteAfterReadRace, "dyn[");
    stores.finds(3, FindingKind::AbandonedStore, "");
}

#[test]
fn blocks_of_a_cluster() {
    let neighbours = Case { name: "neighbours", threads: 64, cluster: 2, shared: 0 };
    let turned: Vec<f32> = (0..128).map(|i| ((1 - i / 64) * 64 + 63 - i % 64) as f32).collect();
    neighbours.is_right(&turned);
    for order in ORDERS {
        let report = neighbours.go(1, order, true).1.expect("no fault");
        // Static memory is there when its block first names it, which may be later.
        let unready = [FindingKind::UninitialisedShared, FindingKind::OutOfBoundsRead];
        let kinds = [&unready[..], &[FindingKind::ReadAfterWriteRace]].concat();
        assert!(report.findings.iter().any(|f| kinds.contains(&f.kind)), "{order:?}: {:?}", report.findings);
    }
    neighbours.finds(2, FindingKind::DepartedBlock, "4 bytes in the shared memory of block");
    neighbours.faults(3, FaultKind::BadCluster, "a second arrival");
    neighbours.faults(4, FaultKind::BadCluster, "no address of the cluster's shared memory");
    let arrival = Case { name: "remote_arrival", ..neighbours };
    arrival.is_right(&turned);
    for order in ORDERS {
        assert!(!arrival.go(1, order, true).1.expect("no fault").findings.is_empty(), "{order:?}");
    }
    let multicast = Case { name: "multicast", shared: 16 << 10, ..neighbours };
    let x = x().0.map(|bits| half::f16::from_bits(bits).to_f32());
    let column = |i: usize| x[i * 64 + 3];
    multicast.is_right(&(0..128).map(column).collect::<Vec<_>>());
    multicast.fails(1, &[FindingKind::ReadAfterWriteRace, FindingKind::DepartedBlock], &[FaultKind::BadBarrier]);
    for order in ORDERS {
        let fault = multicast.go(1, order, false).1.expect_err("a fault");
        assert!(fault.detail.contains("8192 bytes more have come than were expected"), "{fault}");
    }
}

#[test]
fn barriers_of_some_warps_and_polls() {
    let pairs = Case { name: "pairs", threads: 128, cluster: 1, shared: 0 };
    pairs.is_right(&(0..128).map(|i| (i ^ 32) as f32).collect::<Vec<_>>());
    for order in ORDERS {
        assert!(!pairs.go(1, order, true).1.expect("no fault").findings.is_empty(), "{order:?}");
    }
    pairs.faults(2, FaultKind::DivergentBarrier, "named barrier 1 of");
    let gather = Case { name: "gather", threads: 64, cluster: 1, shared: 0 };
    let x = x().0.map(|bits| half::f16::from_bits(bits).to_f32());
    gather.is_right(&(0..64).map(|i| x[511 - i]).collect::<Vec<_>>());
    gather.finds(1, FindingKind::UninitialisedShared, "an asynchronous copy is under way");
    let overwritten = Case { name: "overwritten", ..gather };
    overwritten.is_right(&[1.0; 64]);
    overwritten.faults(1, FaultKind::BadBarrier, "written over");
    overwritten.faults(2, FaultKind::Deadlock, "polls in vain");
}

/// Boxes of up to five dimensions, with steps, against loops; rules that are broken.
#[test]
fn boxes_of_every_rank() {
    for rank in 1..=5usize {
        let dims: Vec<u32> = (0..rank as u32).map(|i| if i == 0 { 24 } else { 3 + i }).collect();
        let sizes: Vec<u32> = (0..rank as u32).map(|i| if i == 0 { 8 } else { 2 + i }).collect();
        let steps: Vec<u32> = (0..rank as u32).map(|i| if i == 0 { 1 } else { 1 + i % 2 }).collect();
        let mut spec = TensorMapSpec::tiled(4, 1 << 20, &dims, &sizes, Swizzle::B32);
        spec.part = crate::device::cuda::TensorMapBox::Tiled { sizes: sizes.clone(), steps: steps.clone() };
        let words: [u32; 32] = bytemuck::cast(map::encode(&spec).unwrap().0);
        let map = map::decode(&words).unwrap();
        let at: [i64; 5] = [20, -1, 2, 0, 1];
        let rows = map.rows(at, [0; 3]);
        let counts: Vec<u32> = (1..rank).map(|i| sizes[i].div_ceil(steps[i])).collect();
        assert_eq!(rows.len() as u32, counts.iter().product::<u32>());
        assert_eq!(spec.bytes() as usize, rows.len() * 32);
        for (n, (address, valid)) in rows.into_iter().enumerate() {
            let (mut rest, mut place, mut inside) = (n as i64, at[0], true);
            let mut stride = 24;
            for i in 1..rank {
                let x = at[i] + rest % i64::from(counts[i - 1]) * i64::from(steps[i]);
                rest /= i64::from(counts[i - 1]);
                inside &= (0..i64::from(dims[i])).contains(&x);
                (place, stride) = (place + x * stride, stride * i64::from(dims[i]));
            }
            assert_eq!(address as i64, (1 << 20) + place * 4);
            assert_eq!(valid, if inside { 0..16 } else { 0..0 }, "rank {rank}, row {n}");
        }
    }
    let bad = |change: fn(&mut TensorMapSpec)| {
        let mut spec = TensorMapSpec::tiled(2, 256, &[64, 8], &[64, 8], Swizzle::B128);
        map::encode(&spec).expect("right as it is");
        change(&mut spec);
        map::encode(&spec).expect_err("a rule is broken").to_string()
    };
    assert!(bad(|s| s.address = 8).contains("multiple of 16"));
    assert!(bad(|s| s.strides[0] = 24).contains("strides are multiples of 16"));
    assert!(bad(|s| s.swizzle = Swizzle::B64).contains("as many bytes as the swizzle's"));
    assert!(bad(|s| s.element = 3).contains("an element has"));
    assert!(map::decode(&[0; 32]).is_none());
}
