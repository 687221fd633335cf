//! Part of `build.rs`: compiles the kernels for the host, twice: plain, and with every memory access
//! reported to the checker.

use super::kernels::{Head, heads, without_comments};
use super::{File, Problem, declaration, thunks};
use std::collections::hash_map::DefaultHasher;
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Compiles every kernel file twice. False, with a warning, where there is no C++ compiler.
pub(super) fn compile<'a>(root: &Path, out: &Path, files: impl Iterator<Item = &'a File>) -> Result<bool, Problem> {
    let shim = root.join("src/device/emulator");
    println!("cargo::rerun-if-changed={}", shim.display());
    for variable in ["CXX", "CXXFLAGS", "NUM_JOBS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let mut build = cc::Build::new();
    // A third less to compile, where that is what takes long.
    let level = if env::var("PROFILE").is_ok_and(|p| p == "debug") { 1 } else { 2 };
    build.cpp(true).std("c++17").opt_level(level).warnings(false).debug(false).cargo_warnings(false);
    build.include(&shim).include(root.join("kernels")).define("TILEWORK_EMULATED", None);
    // A fiber's stack has no guard page: no frame may be larger than a part of it.
    let limit = "-Werror=frame-larger-than=16384";
    for flag in ["-g1", "-fno-strict-aliasing", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", limit] {
        build.flag_if_supported(flag);
    }
    // As on a GPU, a multiply-add rounds once. The program checks that its processor has it too.
    if has_fma() {
        build.flag("-mavx2").flag("-mfma");
        println!("cargo::rustc-cfg=tilework_emulator_fma");
    }
    if !["x86_64", "aarch64"].contains(&env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default().as_str()) {
        return no_compiler("this architecture is not supported");
    }
    let Ok(compiler) = build.try_get_compiler() else {
        return no_compiler("no C++ compiler was found");
    };
    if let Err(e) = compiler.to_command().arg("--version").output() {
        return no_compiler(&format!("{} does not run ({e})", compiler.path().display()));
    }
    let mut common = DefaultHasher::new();
    let checks = checks(&build, &compiler);
    format!("{:?} {checks:?}", compiler.to_command()).hash(&mut common);
    let build_of = Objects { folders: [root.join("kernels"), shim], out: out.into(), common };
    let mut jobs = Vec::new();
    for file in files.filter(|f| !f.families.is_empty()) {
        let all = file.families.iter().flat_map(|f| f.kernels.iter().map(move |k| k.name(f)));
        jobs.extend(build_of.jobs(&file.path, &all.collect::<Vec<_>>())?);
    }
    for name in ["planted", "planted_hopper"] {
        jobs.extend(planted(root, name, &build_of)?);
    }
    let objects: Vec<PathBuf> = jobs.iter().map(|j| j.object.clone()).collect();
    run_all(jobs, &compiler, &checks)?;
    remove_stale(out, &objects);
    build.objects(objects).compile("tilework_kernels");
    Ok(true)
}

/// Whether this processor, for which the program is built, has fused multiply-add on vectors.
fn has_fma() -> bool {
    let native = env::var("TARGET").is_ok_and(|target| env::var("HOST").is_ok_and(|host| host == target));
    #[cfg(target_arch = "x86_64")]
    return native && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = native;
        false
    }
}

fn no_compiler(why: &str) -> Result<bool, Problem> {
    println!("cargo::warning=the emulated device is left out: {why}; install g++ or clang++, or set CXX");
    Ok(false)
}

struct Job {
    source: PathBuf,
    object: PathBuf,
    checked: bool,
    name: String,
}

/// The kernels with planted bugs, which the emulated device's own tests run; not part of a package.
fn planted(root: &Path, file: &str, build_of: &Objects) -> Result<Vec<Job>, Problem> {
    let path = root.join(format!("tests/kernels/{file}.cu"));
    println!("cargo::rerun-if-changed={}", path.display());
    let code = without_comments(&fs::read_to_string(&path).unwrap_or_default());
    let heads: Result<Vec<Head<'_>>, _> = heads(&code).collect();
    let heads = heads.map_err(|(_, what)| format!("{}: {what}", path.display()))?;
    let names: Vec<String> = heads.iter().map(|h| h.name.to_string()).collect();
    let mut table = String::new();
    for name in &names {
        table += &declaration(name);
    }
    let _ = writeln!(table, "pub(crate) static {}: &[(&str, Thunk, Thunk)] = &[", file.to_uppercase());
    for name in &names {
        let _ = writeln!(table, "    ({name:?}, {}),", thunks(name).join(", "));
    }
    table += "];\n";
    let list = build_of.out.join(format!("{file}.rs"));
    fs::write(&list, table).map_err(|e| format!("{}: {e}", list.display()))?;
    if names.is_empty() { Ok(Vec::new()) } else { build_of.jobs(&path, &names) }
}

/// What all objects have in common.
struct Objects {
    /// Where headers lie.
    folders: [PathBuf; 2],
    out: PathBuf,
    /// The compiler and its options.
    common: DefaultHasher,
}

impl Objects {
    /// The plain and the checked build of a file.
    fn jobs(&self, path: &Path, names: &[String]) -> Result<Vec<Job>, Problem> {
        [false, true].into_iter().map(|checked| self.job(path, names, checked)).collect()
    }

    /// The C++ file of a kernel file, and the object it becomes: named by all that goes into it, so
    /// that what is there already need not be made again.
    fn job(&self, path: &Path, names: &[String], checked: bool) -> Result<Job, Problem> {
        let mut hash = self.common.clone();
        let kind = if checked { "checked" } else { "plain" };
        let mut seen = Vec::new();
        self.texts(path, &mut seen, &mut hash)?;
        let mut text = String::from("#include \"cuda.h\"\n");
        // What is declared there is Rust's, and must not be in a namespace without a name.
        if seen.iter().any(|p| p.ends_with("hopper.cuh")) {
            text += "#include \"hopper.h\"\n";
        }
        // The two builds of a kernel must not meet in the linker: a namespace without a name.
        let _ = writeln!(text, "namespace {{\n#include {path:?}\n}}");
        for name in names {
            let thunk = &thunks(name)[usize::from(checked)];
            let _ = writeln!(
                text,
                "extern \"C\" EMU_NATIVE void {thunk}(void* const* args) {{ emu::call({name}, args); }}"
            );
        }
        text.hash(&mut hash);
        self.texts(&self.folders[1].join("cuda.h"), &mut seen, &mut hash)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let stem = format!("{name}_{kind}_{:016x}", hash.finish());
        let job = Job {
            source: self.out.join(format!("{stem}.cpp")),
            object: self.out.join(format!("{stem}.o")),
            checked,
            name: name.into_owned(),
        };
        fs::write(&job.source, text).map_err(|e| format!("{}: {e}", job.source.display()))?;
        Ok(job)
    }

    /// Hashes a file and the headers that it includes, each once.
    fn texts(&self, path: &Path, seen: &mut Vec<PathBuf>, hash: &mut DefaultHasher) -> Result<(), Problem> {
        if seen.iter().any(|p| p == path) {
            return Ok(());
        }
        seen.push(path.into());
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        text.hash(hash);
        let names = text.lines().filter_map(|l| l.trim().strip_prefix("#include \"")?.strip_suffix('"'));
        names
            .flat_map(|name| self.folders.iter().map(move |f| f.join(name)))
            .filter(|p| p.exists())
            .try_for_each(|header| self.texts(&header, seen, hash))
    }
}

/// The options of a checked build. The accesses call our own hooks; the sanitizer's library is not linked.
/// At a higher level the compiler merges accesses, and what the checker sees is not what was written.
/// Arrays at the end of a struct are no longer than they say: strict bounds, which clang has from version 16 on.
fn checks(build: &cc::Build, compiler: &cc::Tool) -> Vec<&'static str> {
    let strict = "-fstrict-flex-arrays=3";
    let strict = (!compiler.is_like_clang() || build.is_flag_supported(strict).is_ok_and(|is| is)).then_some(strict);
    if strict.is_some() {
        println!("cargo::rustc-cfg=tilework_emulator_strict");
    }
    if !compiler.is_like_clang() {
        return vec!["-O1", "-fsanitize=thread,alignment,bounds-strict", "--param=tsan-instrument-func-entry-exit=0"];
    }
    let others = ["-O1", "-fsanitize=thread,alignment,bounds", "-mllvm", "-tsan-instrument-func-entry-exit=0"];
    others.into_iter().chain(strict).collect()
}

/// Runs the jobs whose objects are missing, as many at a time as cargo allows.
fn run_all(jobs: Vec<Job>, compiler: &cc::Tool, checks: &[&str]) -> Result<(), Problem> {
    let lanes = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).max(1);
    let todo: Vec<Job> = jobs.into_iter().filter(|j| !j.object.exists()).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || -> Result<(), Problem> {
        while let Some(job) = todo.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            run(job, compiler, checks)?;
        }
        Ok(())
    };
    std::thread::scope(|s| {
        let threads: Vec<_> = (0..lanes).map(|_| s.spawn(work)).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err("a compiler's thread failed".into())))
    })
}

fn run(job: &Job, compiler: &cc::Tool, checks: &[&str]) -> Result<(), Problem> {
    // Renamed when complete: an interrupted build leaves no half object under the final name.
    let partial = job.object.with_extension("partial");
    let mut command: Command = compiler.to_command();
    if job.checked {
        command.args(checks);
    }
    command.arg("-c").arg(&job.source).arg("-o").arg(&partial);
    let output = command.output().map_err(|e| format!("kernels/{}.cu: {e}", job.name))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        return Err(format!("kernels/{}.cu: the C++ compiler says:\n{log}", job.name));
    }
    fs::rename(&partial, &job.object).map_err(|e| format!("{}: {e}", job.object.display()))
}

/// Removes objects of earlier versions.
fn remove_stale(out: &Path, keep: &[PathBuf]) {
    let Ok(entries) = fs::read_dir(out) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        let kept = keep.iter().any(|k| k.file_stem() == path.file_stem());
        if !kept && path.extension().is_some_and(|e| e == "o" || e == "cpp" || e == "partial") {
            // What cannot be removed does no harm.
            let _ = fs::remove_file(path);
        }
    }
}
