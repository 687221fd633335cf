//! Every kernel compiled for every architecture, to machine code, without a GPU: nothing is spilled,
//! there is no stack frame, and the registers are within what the kernel's header allows. And the
//! compiler itself, with its cache and its messages.

#[path = "device/under.rs"]
mod device;

use device::{required, skip};
use rayon::prelude::*;
use tilework::device::cuda::chain;
use tilework::device::cuda::nvrtc::{Compiler, Unit};
use tilework::device::cuda::resources::{Resources, limits, occupancy, parse};
use tilework::device::cuda::{Arch, Family, Kernel, Source};
use tilework::dtype::DType;
use tilework::kernels::{HEADERS, SOURCES, all};

const ARCHS: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];

/// Whether to compile for an architecture in every run of the tests: one for each kind of element, and those for which alone a
/// kernel is. The others, and bf16, which differs from f16 in the names of instructions, take two minutes more.
fn is_distinct(unit: &Unit) -> bool {
    let archs: &[u32] = match unit.dtype {
        Some(DType::F16) => &[80],
        Some(DType::BF16) => &[],
        _ => &[90],
    };
    archs.contains(&unit.arch.number) || (unit.arch.specific && unit.dtype == Some(DType::F16))
}

/// Static shared memory that a block may have, in bytes.
const SHARED: u32 = 48 << 10;

/// A compiler without a cache, or a line that says why there is none.
fn compiler() -> Option<Compiler> {
    if let Err(e) = chain::nvrtc() {
        assert!(!required("nvrtc"), "TILEWORK_REQUIRE has nvrtc, and {e}");
        skip("nvrtc", "no libnvrtc");
        return None;
    }
    Some(Compiler::with_cache(HEADERS, None).unwrap())
}

/// What is wrong with a unit, in lines.
fn problems(compiler: &Compiler, unit: &Unit) -> Vec<String> {
    let code = match compiler.module(unit) {
        Ok((code, cached)) => {
            assert!(code.cubin.starts_with(b"\x7fELF") && !cached);
            code
        }
        Err(e) => return vec![e.to_string()],
    };
    let found = code.resources();
    let mut problems = Vec::new();
    for kernel in unit.kernels() {
        match found.iter().find(|r| r.kernel == kernel.name) {
            Some(resources) => problems.extend(exceeded(kernel, resources, unit.arch.number)),
            None => problems.push(format!("{}: not in the compiler's log", kernel.name)),
        }
    }
    let unknown = found.iter().filter(|r| !unit.kernels().any(|k| k.name == r.kernel));
    problems.extend(unknown.map(|r| format!("{}: not in the table of kernels", r.kernel)));
    problems.extend(code.log.lines().filter(|l| l.contains("): warning")).map(ToString::to_string));
    problems
}

fn exceeded(kernel: &Kernel, r: &Resources, arch: u32) -> Vec<String> {
    let mut problems = Vec::new();
    let mut problem = |bad: bool, what: String| {
        if bad {
            problems.push(format!("{}: {what}", kernel.name));
        }
    };
    problem(r.registers == 0, "no registers in the log".into());
    problem(
        r.registers > kernel.registers,
        format!("{} registers, its header allows {}", r.registers, kernel.registers),
    );
    // Its warpgroups move registers, of as many as the launch begins with (`registers_up`).
    let moves = kernel.tile.is_some_and(|tile| tile.name.starts_with("Halo"));
    problem(moves && r.registers != kernel.registers, format!("{} registers, and its header has others", r.registers));
    problem(r.spill_bytes > 0, format!("{} bytes are spilled", r.spill_bytes));
    problem(r.stack > 0, format!("{} bytes of stack", r.stack));
    problem(r.shared_bytes > SHARED, format!("{} bytes of static shared memory", r.shared_bytes));
    // A block of as many threads as it may have fits on a multiprocessor.
    problem(
        occupancy(arch, r.registers, r.shared_bytes + kernel.tile.map_or(0, |t| t.shared), kernel.threads).is_none(),
        format!("a block of {} threads does not fit", kernel.threads),
    );
    problems
}

#[test]
fn every_kernel_keeps_its_budget_on_each_kind_of_architecture() {
    every_kernel_keeps_its_budget(is_distinct);
}

#[test]
#[ignore = "two minutes, for what differs little from the above"]
fn every_kernel_keeps_its_budget_on_the_other_architectures() {
    every_kernel_keeps_its_budget(|unit| !is_distinct(unit));
}

fn every_kernel_keeps_its_budget(wanted: fn(&Unit) -> bool) {
    let Some(compiler) = compiler() else { return };
    let known: Vec<u32> = ARCHS.into_iter().filter(|a| compiler.nvrtc().archs.contains(a)).collect();
    if known.len() < ARCHS.len() {
        skip("nvrtc", &format!("NVRTC {:?} compiles only for {known:?}", compiler.nvrtc().version));
    }
    let mut units: Vec<Unit> = Vec::new();
    for arch in known {
        // A kernel with features of one architecture is for that one; the others are for all.
        for kernel in all().filter(|k| k.arch.is_none_or(|a| a.number == arch)) {
            let unit = Unit::of(kernel, Arch::new(arch));
            if wanted(&unit) && !units.contains(&unit) {
                units.push(unit);
            }
        }
    }
    let problems = units.into_par_iter().flat_map_iter(|unit| {
        let place = format!("kernels/{}.cu, {:?}, {}", unit.source.stem, unit.dtype, unit.arch);
        problems(&compiler, &unit).into_iter().map(move |p| format!("{place}: {p}"))
    });
    let problems: Vec<String> = problems.collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

const TEXT: &str = "#include \"common.cuh\"\ntemplate <class T>\n__global__ void __launch_bounds__(256) relu_fwd(const T* x, T* y, int n) {\n\
    __shared__ float pad[64];\nint i = blockIdx.x * 256 + threadIdx.x; pad[threadIdx.x % 64] = 1.f; __syncthreads();\n\
    if (i < n) y[i] = mine(x[i]) * pad[0];\n}\n__global__ void plain(int* x) { *x = 1; }\n";
static MINE: &[(&str, &str)] =
    &[("common.cuh", "template <class T> __device__ T mine(T x) { return x > 0.f ? x : 0.f; }\n")];
static RELU: Source = Source { stem: "relu", text: TEXT, families: &[&FWD, &PLAIN] };
static FWD: Family = Family { name: "relu_fwd", kernels: &[kernel(&RELU, "relu_fwd<float>", Some(DType::F32), None)] };
static PLAIN: Family = Family { name: "plain", kernels: &[kernel(&RELU, "plain", None, None)] };

const fn kernel(source: &'static Source, name: &'static str, dtype: Option<DType>, arch: Option<Arch>) -> Kernel {
    Kernel {
        source,
        family: name,
        name,
        index: 0,
        dtype,
        tile: None,
        arch,
        threads: 128,
        registers: 32,
        #[cfg(tilework_emulator)]
        thunks: None,
    }
}

fn relu(arch: u32) -> Unit {
    Unit::of(&PLAIN.kernels[0], Arch::new(arch))
}

#[test]
fn a_kernel_compiles_for_every_architecture_and_is_cached() {
    if compiler().is_none() {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let compiler = Compiler::with_cache(MINE, Some(tmp.path().to_path_buf())).unwrap();
    ARCHS.into_par_iter().for_each(|arch| {
        assert!(!compiler.is_cached(&relu(arch)));
        let (made, cached) = compiler.module(&relu(arch)).unwrap();
        assert!(compiler.is_cached(&relu(arch)));
        assert!(!cached && made.cubin.starts_with(b"\x7fELF"), "sm_{arch}");
        let mut all = made.resources();
        all.sort_by(|a, b| b.kernel.cmp(&a.kernel));
        let [Resources { kernel, registers, spill_bytes, shared_bytes, stack }, plain] = &all[..] else {
            panic!("{}", made.log)
        };
        // Names are the source's; in the code they are mangled.
        assert_eq!((kernel.as_str(), *spill_bytes, *stack), ("relu_fwd<float>", 0, 0));
        assert_eq!((plain.kernel.as_str(), made.names[0].1.as_str()), ("plain", "_Z8relu_fwdIfEvPKT_PS0_i"));
        assert!((4..=32).contains(registers), "{registers}");
        // From sm_90 on ptxas counts the 1 KiB that the system reserves, in some versions.
        assert!(*shared_bytes >= 256, "{shared_bytes}");
        assert_eq!(compiler.module(&relu(arch)).unwrap(), (made, true));
    });
    // Another text of a header is another entry.
    static OTHER: &[(&str, &str)] = &[("common.cuh", "template <class T> __device__ T mine(T x) { return x; }\n")];
    let other = Compiler::with_cache(OTHER, Some(tmp.path().to_path_buf())).unwrap();
    assert!(!other.module(&relu(80)).unwrap().1);
    compiler.rebuild(&relu(80)).unwrap();
}

#[test]
fn mistakes_are_named_with_file_and_line() {
    if compiler().is_none() {
        return;
    }
    let compiler = Compiler::with_cache(MINE, None).unwrap();
    let error = |text: &'static str| {
        let source = Box::leak(Box::new(Source { stem: "bad", text, families: &[] }));
        compiler.module(&Unit { source, dtype: None, arch: Arch::new(80) }).unwrap_err().to_string()
    };
    let e = error("#include \"common.cuh\"\n\n__global__ void k() { foo(); }\n");
    assert!(e.contains("kernels/bad.cu, line 3: NVRTC_ERROR_COMPILATION") && e.contains("\"foo\" is undefined"), "{e}");
    let e = error("#include \"missing.cuh\"\n");
    assert!(e.contains("kernels/bad.cu, line 1") && e.contains("missing.cuh"), "{e}");
    // Only ptxas sees this one.
    let e = error("__global__ void k() { asm volatile(\"mma.bogus.f32 %%r0;\"); }\n");
    assert!(e.contains("kernels/bad.cu") && e.contains("ptxas"), "{e}");
    let e = compiler.module(&relu(5)).unwrap_err().to_string();
    assert!(e.contains("invalid value") || e.contains("INVALID_OPTION"), "{e}");
}

static HOPPER: Source =
    Source { stem: "hopper", text: include_str!("kernels/hopper.cu"), families: &[&HOPPER_COPY, &HOPPER_HALF] };
static HOPPER_COPY: Family = Family {
    name: "hopper_copy",
    kernels: &[kernel(&HOPPER, "hopper_copy<float>", Some(DType::F32), Some(Arch::specific(90)))],
};
/// The file's other templates.
static HOPPER_HALF: Family = Family { name: "hopper", kernels: &HOPPER_KERNELS };
static HOPPER_KERNELS: [Kernel; 14] = [
    hopper("hopper_rows<half>", DType::F16),
    hopper("hopper_rows<bf16>", DType::BF16),
    hopper("hopper_gemm<half>", DType::F16),
    hopper("hopper_gemm<bf16>", DType::BF16),
    hopper("hopper_turned<half>", DType::F16),
    hopper("hopper_turned<bf16>", DType::BF16),
    hopper("hopper_multicast<half>", DType::F16),
    hopper("hopper_multicast<bf16>", DType::BF16),
    hopper("hopper_split<half>", DType::F16),
    hopper("hopper_split<bf16>", DType::BF16),
    hopper("hopper_conv<half>", DType::F16),
    hopper("hopper_conv<bf16>", DType::BF16),
    hopper("hopper_words<half>", DType::F16),
    hopper("hopper_words<bf16>", DType::BF16),
];

const fn hopper(name: &'static str, dtype: DType) -> Kernel {
    Kernel { threads: 160, registers: 128, ..kernel(&HOPPER, name, Some(dtype), Some(Arch::specific(90))) }
}

/// Tensor maps, clusters and wgmma, which sm_90 without the `a` has not.
#[test]
fn kernels_for_one_architecture_are_compiled_for_it() {
    let Some(compiler) = compiler() else { return };
    let unit = Unit::of(&HOPPER_COPY.kernels[0], Arch::new(90));
    assert_eq!(unit.arch.to_string(), "sm_90a");
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        assert_eq!(problems(&compiler, &Unit { dtype: Some(dtype), ..unit }), [""; 0]);
    }
    let other = Unit { arch: Arch::new(90), dtype: None, ..unit };
    assert_eq!(other.kernels().count(), 0);
    let code = compiler.module(&unit).unwrap().0;
    assert!(code.names[0].1.starts_with("_Z11hopper_copyIf"), "{:?}", code.names);
}

#[test]
fn the_table_of_kernels_is_whole() {
    assert!(all().enumerate().all(|(i, k)| k.index == i && SOURCES.iter().any(|s| s.stem == k.source.stem)));
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
    // Not the page about kernels, which has examples.
    let files =
        std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).filter(|p| p.extension().unwrap() != "md");
    let texts = files.map(|p| std::fs::read_to_string(p).unwrap());
    let written: usize = texts.map(|t| t.matches("\n__global__ void").count()).sum();
    assert_eq!(SOURCES.iter().map(|s| s.families.len()).sum::<usize>(), written);
    assert!(ARCHS.iter().all(|&arch| limits(arch).is_some() && occupancy(arch, 64, 16 * 1024, 256).is_some()));
}

#[test]
fn a_log_of_ptxas_is_read() {
    let log = "kernels/a.cu(3): warning #177-D: variable \"q\" was declared but never referenced\n\
        ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'a_fwd' for 'sm_80'\n\
        ptxas info    : Function properties for a_fwd\n\
        \x20   16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
        ptxas info    : Used 34 registers, used 1 barriers, 16 bytes cumulative stack size, 4224 bytes smem, 376 bytes cmem[0]\n\
        ptxas info    : Compile time = 3.2 ms\n\
        ptxas info    : Compiling entry function 'a_bwd' for 'sm_80'\n\
        ptxas info    : Function properties for a_bwd\n\
        ptxas         .     8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 10 registers, 372 bytes cmem[0]\n";
    let expected = |kernel: &str, registers, spill_bytes, shared_bytes, stack| Resources {
        kernel: kernel.into(),
        registers,
        spill_bytes,
        shared_bytes,
        stack,
    };
    assert_eq!(parse(log), [expected("a_fwd", 34, 20, 4224, 16), expected("a_bwd", 10, 0, 0, 8)]);
    assert!(parse("").is_empty());
}

/// Worked by hand from the table, and as NVIDIA's occupancy calculator has them.
#[test]
fn occupancy_follows_each_limit() {
    let check = |arch, registers, shared, threads, blocks, warps: f64, limit| {
        let o = occupancy(arch, registers, shared, threads).unwrap();
        assert_eq!((o.blocks, o.limit), (blocks, limit), "sm_{arch}");
        assert!((o.warps - warps).abs() < 1e-9, "sm_{arch}: {o:?}");
    };
    check(80, 32, 0, 256, 8, 1.0, "warps");
    check(75, 32, 0, 256, 4, 1.0, "warps");
    check(86, 32, 0, 256, 6, 1.0, "warps");
    check(80, 32, 0, 32, 32, 0.5, "blocks");
    check(75, 16, 0, 32, 16, 0.5, "blocks");
    // 128 registers × 32 = 4096 a warp: 16 warps, so two blocks of 8.
    check(80, 128, 0, 256, 2, 0.25, "registers");
    // 33 registers round up to 40: 1280 a warp, 51 warps, 48 after the quarters.
    check(80, 33, 0, 256, 6, 0.75, "registers");
    // 33 KiB + 1 KiB: four of them in 164 KiB.
    check(80, 32, 33 * 1024, 256, 4, 0.5, "shared memory");
    check(75, 32, 33 * 1024, 256, 1, 0.25, "shared memory");
    check(90, 168, 227 * 1024, 384, 1, 0.1875, "registers");
    assert_eq!(occupancy(80, 32, 164 * 1024, 256), None);
    assert_eq!(occupancy(80, 255, 0, 1024), None);
    assert_eq!(occupancy(80, 32, 0, 0), None);
    assert_eq!(occupancy(20, 32, 0, 256), None);
}
