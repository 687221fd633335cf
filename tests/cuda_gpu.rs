//! The real GPU's driver ([`Gpu`]) end to end, without a GPU: over a fake `libcuda` and `libnvrtc`
//! that are built here and loaded like the real ones.
//!
//! The loader reads its path when a process starts, so each test starts this program once more, with
//! the fakes in that path, and does its work there ([`inside`]).
#![cfg(target_os = "linux")]

mod fake_cuda;

use fake_cuda::Fakes;
use std::ffi::{CString, c_char, c_long};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tilework::device::cuda::cache::{Cache, CompiledCode};
use tilework::device::cuda::gpu::{Gpu, GpuOptions};
use tilework::device::cuda::{
    Arg, Driver, Family, Kernel, Launch, Line, MappedTensor, Source, Swizzle, TensorMap, TensorMapBox, TensorMapSpec,
    Timing,
};

static TOY: Source = Source {
    stem: "toy",
    text: "scale_fwd wide_fwd heavy_fwd fault_fwd plain_fwd map_fwd",
    families: &[&Family { name: "toy", kernels: &TOYS }],
};
static OTHER: Source =
    Source { stem: "other", text: "late_fwd", families: &[&Family { name: "other", kernels: &OTHERS }] };

const fn kernel(source: &'static Source, name: &'static str, index: usize) -> Kernel {
    Kernel {
        source,
        family: name,
        name,
        index,
        dtype: None,
        tile: None,
        arch: None,
        threads: 256,
        registers: 32,
        #[cfg(tilework_emulator)]
        thunks: None,
    }
}

static TOYS: [Kernel; 6] = [
    kernel(&TOY, "scale_fwd", 0),
    kernel(&TOY, "wide_fwd", 1),
    kernel(&TOY, "heavy_fwd", 2),
    kernel(&TOY, "fault_fwd", 3),
    kernel(&TOY, "plain_fwd", 4),
    kernel(&TOY, "map_fwd", 7),
];
static OTHERS: [Kernel; 2] = [kernel(&OTHER, "late_fwd", 5), kernel(&OTHER, "absent_fwd", 6)];
static FOREIGN: Kernel = kernel(&OTHER, "late_fwd", 8);
static SCALE: &Kernel = &TOYS[0];
static WIDE: &Kernel = &TOYS[1];
static HEAVY: &Kernel = &TOYS[2];
static FAULT: &Kernel = &TOYS[3];
static PLAIN: &Kernel = &TOYS[4];
static MAP: &Kernel = &TOYS[5];
static LATE: &Kernel = &OTHERS[0];
static ABSENT: &Kernel = &OTHERS[1];
const KERNELS: usize = 8;

/// In a process with the fakes in its loader's path: the fakes' folder. Elsewhere it starts this
/// program again, for the test of this name alone and with these variables, and gives `None`.
fn inside(test: &str, env: &[(&str, &str)]) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("TILEWORK_FAKE_CUDA") {
        return Some(folder.into());
    }
    let fakes = Fakes::build()?;
    let mut command = Command::new(std::env::current_exe().unwrap());
    fakes.hide_others(&mut command, &["cuda", "nvrtc"]);
    command.args(["--exact", test, "--nocapture"]);
    command.env("TILEWORK_FAKE_CUDA", fakes.path("")).env("FAKE_NVRTC_LOG", fakes.path("compiled"));
    command.envs(env.iter().copied());
    let out = command.output().unwrap();
    let text = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
    None
}

fn open() -> Gpu {
    open_with(GpuOptions::default())
}

fn open_with(options: GpuOptions) -> Gpu {
    Gpu::new(options, KERNELS, &[("common.cuh", "")]).unwrap()
}

/// What the fake driver has counted.
fn count(what: &str) -> i64 {
    let what = CString::new(what).unwrap();
    // SAFETY: the fake library is loaded already, and has this function with this type.
    unsafe {
        let library = libloading::Library::new("libcuda.so.1").unwrap();
        let f = library.get::<unsafe extern "C" fn(*const c_char) -> c_long>(b"fake_count").unwrap();
        f(what.as_ptr())
    }
}

fn alloc(gpu: &Gpu, bytes: usize) -> u64 {
    gpu.alloc(bytes).unwrap().unwrap()
}

fn write(gpu: &Gpu, to: u64, bytes: &[u8]) {
    // SAFETY: the tests give addresses of memory that is large enough.
    unsafe { gpu.write(to, bytes) }.unwrap();
}

fn read(gpu: &Gpu, from: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    // SAFETY: as above.
    unsafe { gpu.read(from, &mut out) }.unwrap();
    out
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn bytes(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|f| f.to_le_bytes()).collect()
}

fn memory(address: u64, bytes: usize) -> Arg<'static> {
    Arg::Memory { name: "x", address, bytes, writable: true }
}

fn launch(gpu: &Gpu, kernel: &'static Kernel, shared: u32, args: &[Arg<'_>]) -> Result<(), String> {
    let shape = Launch { shared, ..Launch::new(2, 256) };
    // SAFETY: the fake's kernels touch nothing but what `scale` gives them.
    unsafe { gpu.launch(kernel, &shape, args) }.map_err(|e| e.to_string())
}

/// y = a·x over n floats.
fn scale(gpu: &Gpu, x: u64, y: u64, n: i32, a: f32) {
    let dims = [n.to_le_bytes(), a.to_le_bytes()].concat();
    launch(gpu, SCALE, 0, &[memory(x, n as usize * 4), memory(y, n as usize * 4), Arg::Value(&dims)]).unwrap();
}

#[test]
fn memory_goes_to_the_gpu_and_back() {
    if inside("memory_goes_to_the_gpu_and_back", &[]).is_none() {
        return;
    }
    let gpu = open();
    assert_eq!((gpu.info().name.as_str(), gpu.info().arch, gpu.info().multiprocessors), ("Fake GPU 0", 90, 4));
    assert_eq!((gpu.info().memory, gpu.info().l2_bytes), (64 << 20, 1 << 20));
    // Larger than the ring, of an odd size; the host's bytes change as soon as `write` is back.
    let size = (9 << 20) + 7;
    let at = alloc(&gpu, size);
    let mut host: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
    let kept = host.clone();
    write(&gpu, at, &host);
    host.fill(0);
    drop(host);
    assert_eq!(read(&gpu, at, size), kept);
    // More small writes than the ring has slots, none waited for; the last of each place counts.
    let mut small = [0u8; 24];
    for i in 0..100u8 {
        small.fill(i);
        write(&gpu, at + u64::from(i % 10) * 24, &small);
    }
    let expected: Vec<u8> = (90..100u8).flat_map(|i| [i; 24]).collect();
    assert_eq!(read(&gpu, at, 240), expected);
    // A write of up to seven slots is queued, not waited for.
    let waits = count("waits");
    write(&gpu, at, &small);
    assert!(count("waits") == waits && count("queued") > 0);
    let to = alloc(&gpu, 240);
    // SAFETY: both are 240 bytes at least.
    unsafe {
        gpu.copy(to, at, 240).unwrap();
        gpu.zero(to + 24, 24).unwrap();
        gpu.zero(to, 0).unwrap();
        gpu.copy(to, at, 0).unwrap();
    }
    let mut expected: Vec<u8> = (90..100u8).flat_map(|i| [i; 24]).collect();
    expected[..24].fill(99);
    expected[24..48].fill(0);
    assert_eq!(read(&gpu, to, 240), expected);
    assert!(read(&gpu, to, 0).is_empty());
    // Out of memory is no error, and what is freed can be had again.
    let (free, total) = gpu.memory().unwrap();
    assert_eq!((total, total - free), (64 << 20, size + 240));
    assert_eq!(gpu.alloc(total).unwrap(), None);
    let nothing = alloc(&gpu, 0);
    // SAFETY: the three come from `alloc` and are not used any more.
    unsafe {
        gpu.free(nothing, 0);
        gpu.free(at, size);
        gpu.free(to, 240);
    }
    assert_eq!(gpu.memory().unwrap().0, total);
    assert!(gpu.alloc(total).unwrap().is_some());
    // A wrong address is an error, with the driver's name for it.
    // SAFETY: nothing is there, which the fake driver checks.
    let e = unsafe { gpu.write(16, &small) }.unwrap_err().to_string();
    assert!(e.contains("copying to the GPU: CUDA_ERROR_INVALID_VALUE") && e.contains("remedy"), "{e}");
}

#[test]
fn every_call_works_from_a_new_thread() {
    if inside("every_call_works_from_a_new_thread", &[]).is_none() {
        return;
    }
    fn anew<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|s| s.spawn(work).join().unwrap())
    }
    let gpu = anew(open);
    let at = anew(|| alloc(&gpu, 64));
    anew(|| write(&gpu, at, &[1; 64]));
    // SAFETY: `at` has 64 bytes.
    anew(|| unsafe { gpu.zero(at, 8) }).unwrap();
    // SAFETY: as above.
    anew(|| unsafe { gpu.copy(at + 8, at, 8) }).unwrap();
    assert_eq!(anew(|| read(&gpu, at, 64)), [vec![0; 16], vec![1; 48]].concat());
    anew(|| gpu.prepare(&[PLAIN, LATE], &mut |_| {})).unwrap();
    anew(|| launch(&gpu, PLAIN, 0, &[])).unwrap();
    anew(|| gpu.sync()).unwrap();
    anew(|| gpu.memory()).unwrap();
    anew(|| gpu.time(&mut || Ok(()))).unwrap();
    anew(|| gpu.begin_capture()).unwrap();
    anew(|| launch(&gpu, LATE, 0, &[])).unwrap();
    // A graph is not shared between threads, but can be handed over.
    let graph = anew(|| gpu.end_capture()).unwrap();
    let graph = anew(move || graph.replay().map(|()| graph)).unwrap();
    // SAFETY: from `alloc`, and not used any more.
    anew(|| unsafe { gpu.free(at, 64) });
    assert_eq!(gpu.memory().unwrap().0, 64 << 20);
    anew(move || drop(graph));
    anew(move || drop(gpu));
    assert_eq!((count("contexts"), count("live"), count("launches")), (0, 0, 2));
}

#[test]
fn kernels_are_compiled_once_and_launched() {
    let Some(dir) = inside("kernels_are_compiled_once_and_launched", &[]) else { return };
    let compiled = || std::fs::read_to_string(dir.join("compiled")).unwrap_or_default().lines().count();
    let gpu = open();
    let (x, y) = (alloc(&gpu, 400), alloc(&gpu, 400));
    let input: Vec<f32> = (0..100).map(|i| i as f32).collect();
    write(&gpu, x, &bytes(&input));
    scale(&gpu, x, y, 100, 3.0);
    scale(&gpu, y, x, 50, 0.5);
    let out = floats(&read(&gpu, x, 400));
    let expected = input.iter().enumerate().map(|(i, v)| if i < 50 { v * 1.5 } else { *v });
    assert_eq!(out, expected.collect::<Vec<_>>());
    assert_eq!((count("launches"), compiled(), gpu.loading().is_zero()), (2, 1, false));
    // Another entry of the file costs nothing; from another thread too.
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| (0..50).for_each(|_| launch(&gpu, PLAIN, 0, &[]).unwrap()));
        }
    });
    gpu.sync().unwrap();
    assert_eq!((count("launches"), compiled()), (102, 1));

    // 48 KiB in all need no asking; beyond it the driver is asked, up to what the GPU has.
    for shared in [32 << 10, 40 << 10, 100 << 10, 90 << 10, 0] {
        launch(&gpu, WIDE, shared, &[]).unwrap();
    }
    let e = launch(&gpu, WIDE, 220 << 10, &[]).unwrap_err();
    assert!(e.contains("wide_fwd") && e.contains("225280") && e.contains("232448"), "{e}");
    let e = launch(&gpu, HEAVY, 64, &[]).unwrap_err();
    assert!(e.contains("launching kernel `heavy_fwd` (kernels/toy.cu)") && e.contains("[256, 1, 1]"), "{e}");
    assert!(e.contains("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"), "{e}");
    let e = launch(&gpu, ABSENT, 0, &[]).unwrap_err();
    assert!(e.contains("absent_fwd") && e.contains("CUDA_ERROR_NOT_FOUND"), "{e}");
    assert!(launch(&gpu, &FOREIGN, 0, &[]).unwrap_err().contains("not in the table"));

    // The driver makes tensor maps: of images [2, 5, 7, 64] that a window walks with a step of 2 in a row, and of a matrix.
    let (lower, upper) = (vec![-1, -2], vec![0, -3]);
    let part = TensorMapBox::Im2col { lower, upper, channels: 64, pixels: 96, steps: vec![2, 1] };
    let images = TensorMapSpec::im2col(2, 4096, [2, 5, 7, 64], part, Swizzle::B128);
    let matrix = TensorMapSpec::tiled(2, 4096, &[128, 9], &[64, 3], Swizzle::B128);
    let told = |spec: &TensorMapSpec| gpu.tensor_map(spec).map(|map| map.0.map(|word| format!("{word:x}")).join(" "));
    let (of_images, of_matrix) = (told(&images).unwrap(), told(&matrix).unwrap());
    assert_eq!(
        of_images,
        "303040602 1000 40 8000000007 38000000005 118000000002 0 100000000 20000ffff 1fffdfffe 100000000 0 6000000040 0 0 0"
    );
    assert_eq!(of_matrix, "303020601 1000 80 10000000009 0 0 0 100000040 100000003 0 0 0 0 0 0 0");
    assert!(told(&TensorMapSpec { address: 8, ..matrix }).unwrap_err().to_string().contains("multiple of 16"));

    // A tensor map goes by value, aligned; clusters are the launch's, and must divide its grid.
    let mut tensor = MappedTensor { map: TensorMap([0; 16]), spec: images };
    tensor.map.0[15] = 77;
    let cluster = |x| {
        let shape = Launch::new(4, 128).cluster(x, 1, 1).shared(100 << 10);
        // SAFETY: the fake's kernel reads the map alone.
        unsafe { gpu.launch(MAP, &shape, &[Arg::Map(&tensor)]) }.map_err(|e| e.to_string())
    };
    assert_eq!((cluster(1), count("cluster"), count("map")), (Ok(()), 0, 77));
    assert_eq!((cluster(4), count("cluster")), (Ok(()), 4));
    let e = cluster(3).unwrap_err();
    assert!(e.contains("map_fwd") && e.contains("clusters of [3, 1, 1]"), "{e}");
    gpu.sync().unwrap();

    // Time is the driver's: in the fake one millisecond for each thing on the stream.
    let time = gpu.time(&mut || (0..3).try_for_each(|_| launch(&gpu, PLAIN, 0, &[]).map_err(internal))).unwrap();
    assert_eq!(time, Duration::from_millis(4));
    assert!(gpu.time(&mut || Err(internal("stop".into()))).is_err());
    drop(gpu);
    assert_eq!((count("contexts"), count("live")), (0, 2), "all but the two buffers is given back");

    // A second start compiles nothing, prepared or not; code that the driver refuses is compiled anew, once.
    assert_eq!(compiled(), 2);
    let gpu = open();
    let mut said = Vec::new();
    gpu.prepare(&[PLAIN, LATE, SCALE], &mut |text| said.push(text.to_string())).unwrap();
    gpu.prepare(&[PLAIN], &mut |text| said.push(text.to_string())).unwrap();
    assert!(said.is_empty(), "{said:?}");
    launch(&gpu, PLAIN, 0, &[]).unwrap();
    assert_eq!(compiled(), 2);
    let cache = gpu.compiler().cache().folder().unwrap().to_path_buf();
    drop(gpu);
    for file in std::fs::read_dir(&cache).unwrap() {
        let key = file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_string();
        Cache::new(Some(cache.clone()))
            .put(&key, &CompiledCode { cubin: b"of another card".to_vec(), names: vec![], log: String::new() });
    }
    for expected in [3, 3] {
        let gpu = open();
        launch(&gpu, PLAIN, 0, &[]).unwrap();
        assert_eq!(compiled(), expected);
    }
}

fn internal(text: String) -> tilework::Error {
    tilework::Error::Internal(text)
}

#[test]
fn a_graph_records_and_replays() {
    if inside("a_graph_records_and_replays", &[]).is_none() {
        return;
    }
    let gpu = open();
    let [x, y, z, w] = [(); 4].map(|()| alloc(&gpu, 40));
    write(&gpu, x, &bytes(&[1.0; 10]));
    [y, z].iter().for_each(|&at| write(&gpu, at, &bytes(&[7.0; 10])));
    gpu.sync().unwrap();
    assert!(gpu.end_capture().is_err());
    gpu.begin_capture().unwrap();
    scale(&gpu, x, y, 10, 2.0);
    // SAFETY: all are 40 bytes.
    unsafe {
        // What is beside the main line comes behind it in the fake, but for what waits for both.
        gpu.line(Line::Beside(1)).unwrap();
        gpu.zero(z, 40).unwrap();
        assert!(gpu.line(Line::Beside(2)).is_err() && gpu.line(Line::Main).is_ok() && gpu.line(Line::Main).is_err());
        gpu.join().unwrap();
        let main = count("priority");
        gpu.line(Line::Behind(gpu.point().unwrap())).unwrap();
        scale(&gpu, y, w, 10, 1.0);
        gpu.line(Line::Main).unwrap();
        assert_eq!((main, count("priority")), (-5, 0));
        gpu.copy(z, y, 20).unwrap();
        gpu.copy(x, y, 40).unwrap();
        gpu.join().unwrap();
    }
    // Loading code and reserving memory are done at once, and do not spoil the graph.
    launch(&gpu, LATE, 0, &[]).unwrap();
    let (late, mut host) = (alloc(&gpu, 40), [0u8; 4]);
    // What cannot be recorded is refused before it could.
    // SAFETY: refused before anything is done.
    let refused = unsafe { [gpu.write(x, &[0; 4]), gpu.read(x, &mut host), gpu.sync(), gpu.begin_capture()] };
    assert!(refused.into_iter().all(|r| r.unwrap_err().to_string().contains("captur")));
    assert!(gpu.time(&mut || Ok(())).is_err());
    let graph = gpu.end_capture().unwrap();
    assert_eq!((graph.launches(), count("launches")), (3, 0));
    assert_eq!(floats(&read(&gpu, y, 40)), [7.0; 10]);
    (0..3).for_each(|_| graph.replay().unwrap());
    assert_eq!([x, w].map(|at| floats(&read(&gpu, at, 40))), [[8.0; 10]; 2]);
    assert_eq!(floats(&read(&gpu, z, 40)), [vec![8.0f32; 5], vec![0.0; 5]].concat());
    assert_eq!((count("launches"), count("graphs")), (9, 3));
    // A second graph counts for itself.
    gpu.begin_capture().unwrap();
    launch(&gpu, PLAIN, 0, &[]).unwrap();
    assert_eq!(gpu.end_capture().unwrap().launches(), 1);
    // Between replays the host writes what changes, without waiting.
    let waits = count("waits");
    for i in 0..5 {
        write(&gpu, x, &bytes(&[i as f32; 10]));
        graph.replay().unwrap();
    }
    assert_eq!(count("waits"), waits);
    assert_eq!(floats(&read(&gpu, x, 40)), [8.0; 10]);
    // The graph keeps alive what it needs, whichever goes first.
    for at in [x, y, z, w, late] {
        // SAFETY: from `alloc`, and not used any more.
        unsafe { gpu.free(at, 40) };
    }
    drop(gpu);
    assert_eq!(count("contexts"), 1);
    drop(graph);
    assert_eq!((count("contexts"), count("live")), (0, 0));
}

/// A kernel is timed in a graph of many launches on copies of its memory that take turns.
#[test]
fn a_kernel_is_timed_without_its_launch() {
    if inside("a_kernel_is_timed_without_its_launch", &[]).is_none() {
        return;
    }
    let gpu = open();
    let time = |kernel, args: &[Arg<'_>]| {
        let shape = Launch::new(2, 256).flops(7);
        // SAFETY: the fake's kernels touch nothing but what `scale` gives them.
        unsafe { Timing::of(&gpu, kernel, &shape, args) }
    };
    let n = 16384;
    let (x, y) = (alloc(&gpu, 4 * n), alloc(&gpu, 4 * n));
    write(&gpu, x, &bytes(&vec![1.0; n]));
    write(&gpu, y, &bytes(&vec![7.0; n]));
    let dims = [(n as i32).to_le_bytes(), 2f32.to_le_bytes()].concat();
    let (before, allocations) = (gpu.memory().unwrap(), count("allocations"));
    let timing = time(SCALE, &[memory(x, 4 * n), memory(y, 4 * n), Arg::Value(&dims)]).unwrap();
    // 16 copies of 128 KiB are twice the fake's L2; each is used twice in a graph of 32 launches, which
    // is replayed once to warm up and five times to measure. The fake takes a millisecond for each
    // launch and one for the clock.
    assert_eq!((timing.kernel, timing.bytes, timing.flops), ("scale_fwd", 8 * n, 7.0));
    assert_eq!(timing.time, Duration::from_millis(33) / 32);
    assert_eq!((count("launches"), count("graphs"), count("allocations") - allocations), (32 * 6, 6, 1));
    // What the kernel was to work on is as before, and all that was taken is given back.
    assert_eq!((floats(&read(&gpu, y, 4 * n)), gpu.memory().unwrap()), (vec![7.0; n], before));
    // No arguments, a null pointer, less memory than all copies need.
    time(PLAIN, &[]).unwrap();
    time(PLAIN, &[memory(0, 0)]).unwrap();
    let rest = alloc(&gpu, gpu.memory().unwrap().0 - 3 * 8 * n);
    assert_eq!(time(PLAIN, &[memory(x, 4 * n), memory(y, 4 * n)]).unwrap().time, Duration::from_millis(33) / 32);
    // SAFETY: from `alloc`, and not used any more.
    unsafe { gpu.free(rest, 0) };
    alloc(&gpu, gpu.memory().unwrap().0);
    let e = time(SCALE, &[memory(x, 4 * n), memory(y, 4 * n)]).unwrap_err().to_string();
    assert!(e.contains("scale_fwd") && e.contains("smaller batch"), "{e}");
    // After a launch that the driver refuses the stream is no longer being recorded.
    assert!(time(HEAVY, &[]).is_err());
    gpu.sync().unwrap();
}

#[test]
fn a_fault_is_reported_with_the_last_launch() {
    if inside("a_fault_is_reported_with_the_last_launch", &[]).is_none() {
        return;
    }
    let gpu = open();
    launch(&gpu, FAULT, 0, &[]).unwrap();
    launch(&gpu, PLAIN, 0, &[]).unwrap();
    let e = gpu.sync().unwrap_err().to_string();
    assert!(e.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && e.contains("last one launched was kernel `plain_fwd`"), "{e}");
    assert!(e.contains("--sync-launches"), "{e}");
    // Every later call says what happened first.
    let later = [
        gpu.alloc(8).map(drop).unwrap_err().to_string(),
        launch(&gpu, PLAIN, 0, &[]).unwrap_err(),
        gpu.begin_capture().unwrap_err().to_string(),
        gpu.memory().map(drop).unwrap_err().to_string(),
    ];
    for e in later {
        assert!(
            e.contains("failed earlier") && e.contains("ILLEGAL_ADDRESS") && e.contains("start the program"),
            "{e}"
        );
    }
}

#[test]
fn a_kernel_that_fails_is_named() {
    if inside("a_kernel_that_fails_is_named", &[]).is_none() {
        return;
    }
    let gpu = open_with(GpuOptions { sync_each_launch: true, ..GpuOptions::default() });
    launch(&gpu, PLAIN, 0, &[]).unwrap();
    assert_eq!(count("queued"), 0);
    let e = launch(&gpu, FAULT, 0, &[]).unwrap_err();
    assert!(e.contains("kernel `fault_fwd` (kernels/toy.cu) failed: CUDA_ERROR_ILLEGAL_ADDRESS"), "{e}");
}

#[test]
fn a_fault_in_a_graph_is_reported() {
    if inside("a_fault_in_a_graph_is_reported", &[]).is_none() {
        return;
    }
    let gpu = open();
    gpu.begin_capture().unwrap();
    launch(&gpu, FAULT, 0, &[]).unwrap();
    let graph = gpu.end_capture().unwrap();
    graph.replay().unwrap();
    let e = gpu.sync().unwrap_err().to_string();
    assert!(e.contains("a graph of 1 launches") && e.contains("--no-graph"), "{e}");
    assert!(graph.replay().is_err());
}

#[test]
fn a_gpu_is_chosen_by_number() {
    if inside("a_gpu_is_chosen_by_number", &[("FAKE_CUDA_COUNT", "2"), ("FAKE_CUDA_ARCH", "121")]).is_none() {
        return;
    }
    let gpu = open_with(GpuOptions { ordinal: 1, ..GpuOptions::default() });
    // NVRTC does not know 121 and compiles for 120, whose code the GPU runs.
    assert_eq!((gpu.info().name.as_str(), gpu.info().arch), ("Fake GPU 1", 121));
    launch(&gpu, PLAIN, 0, &[]).unwrap();
    let e =
        Gpu::new(GpuOptions { ordinal: 2, ..GpuOptions::default() }, KERNELS, &[]).map(drop).unwrap_err().to_string();
    assert!(e.contains("there is no GPU 2") && e.contains("1: Fake GPU 1") && e.contains("0 to 1"), "{e}");
}
