//! Reads `kernels/*.cu` and writes `kernels.rs`: for each file a module with its text, the structs
//! of its kernels' sizes, and one typed launcher a kernel. With the feature `emulator` it also
//! compiles the kernels for the host, twice: plain, and with every memory access reported to the
//! checker.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

/// What is wrong in a kernel file, with its place.
type Fault = String;

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            println!("cargo::error={fault}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Fault> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rustc-check-cfg=cfg(tilework_emulator, tilework_emulator_fma)");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?);
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|e| e.to_string())?);
    let files = read_kernels(&root.join("kernels"))?;
    #[cfg(feature = "emulator")]
    let emulated = emulator::compile(&root, &out, &files)?;
    #[cfg(not(feature = "emulator"))]
    let emulated = false;
    if emulated {
        println!("cargo::rustc-cfg=tilework_emulator");
    }
    let path = out.join("kernels.rs");
    fs::write(&path, generate(&files, emulated)).map_err(|e| format!("{}: {e}", path.display()))
}

/// A kernel file or header.
struct File {
    path: PathBuf,
    name: String,
    stem: String,
    includes: Vec<String>,
    structs: Vec<Struct>,
    entries: Vec<Entry>,
}

/// The sizes of a kernel, passed by value.
struct Struct {
    name: String,
    doc: String,
    /// Rust type, name and comment of each field.
    fields: Vec<(&'static str, String, String)>,
}

/// A kernel.
struct Entry {
    name: String,
    doc: String,
    threads: u32,
    registers: u32,
    params: Vec<Param>,
}

struct Param {
    name: String,
    kind: Kind,
}

enum Kind {
    In { of: String, optional: bool },
    Out { of: String, optional: bool },
    Dims(String),
}

fn read_kernels(dir: &Path) -> Result<Vec<File>, Fault> {
    let failed = |e: std::io::Error| format!("{}: {e}", dir.display());
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.retain(|p| p.extension().is_some_and(|e| e == "cu" || e == "cuh"));
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        files.push(parse(path, &text)?);
    }
    // A header of a kernel file's own name belongs to its module.
    for i in 0..files.len() {
        let (cu, own) = (files[i].name.clone(), files[i].name.clone() + "h");
        if let Some(header) = files.iter().position(|f| cu.ends_with(".cu") && f.name == own) {
            let structs = std::mem::take(&mut files[header].structs);
            let includes = files[header].includes.clone();
            files[i].structs.extend(structs);
            files[i].includes.extend(includes);
            files[i].includes.retain(|include| *include != own);
        }
    }
    Ok(files)
}

/// The text with comments blanked out, so that positions stay.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("//").into_iter().chain(rest.find("/*")).min() {
        out += &rest[..start];
        let (end, comment) = match rest[start..].starts_with("//") {
            true => (rest[start..].find('\n'), &rest[start..]),
            false => (rest[start..].find("*/").map(|e| e + 2), &rest[start..]),
        };
        let end = end.unwrap_or(comment.len());
        out.extend(comment[..end].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }));
        rest = &rest[start + end..];
    }
    out + rest
}

fn parse(path: PathBuf, text: &str) -> Result<File, Fault> {
    let code = without_comments(text);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let at = |position: usize| format!("kernels/{name}:{}", 1 + code[..position].matches('\n').count());
    let includes = code.lines().filter_map(|l| l.trim().strip_prefix("#include \"")?.strip_suffix('"'));
    let mut file = File {
        includes: includes.map(str::to_string).collect(),
        stem: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        name: name.clone(),
        path,
        structs: Vec::new(),
        entries: Vec::new(),
    };
    for (start, _) in code.match_indices("struct ") {
        let header = &code[start + 7..];
        let Some(open) = header.find('{') else { continue };
        let name = header[..open].trim();
        if !name.ends_with("Dims") || (start > 0 && !code[..start].ends_with(['\n', ' '])) {
            continue;
        }
        let close = header.find('}').ok_or_else(|| format!("{}: struct {name} does not end", at(start)))?;
        // Cut from the text with comments: they become the fields' documentation.
        let body = &text[start + 7 + open + 1..start + 7 + close];
        let fields = fields(body).map_err(|e| format!("{}: struct {name}: {e}", at(start)))?;
        file.structs.push(Struct { name: name.into(), doc: comment_before(text, start), fields });
    }
    for head in heads(&code) {
        let Head { start, name, threads, params } = head.map_err(|(start, what)| format!("{}: {what}", at(start)))?;
        let fault = |what: String| format!("{}: kernel `{name}`{what}", at(start));
        if !name.starts_with(&file.stem) {
            return Err(fault(format!(" must be named after its file: `{}_…`", file.stem)));
        }
        let params: Result<Vec<Param>, Fault> =
            params.split(',').map(|p| parse_param(p).map_err(|e| fault(format!(": {e}")))).collect();
        let doc = comment_before(text, start);
        let budget = doc.lines().find_map(|l| l.trim().strip_prefix("Registers: at most "));
        let registers = budget.and_then(|b| b.split([' ', '.', ',']).next()?.parse().ok());
        let registers = registers.ok_or_else(|| fault(": its header lacks `// Registers: at most N.`".into()))?;
        file.entries.push(Entry { name: name.to_string(), doc, threads, registers, params: params? });
    }
    Ok(file)
}

/// The first lines of a kernel.
struct Head<'a> {
    start: usize,
    name: &'a str,
    threads: u32,
    params: &'a str,
}

/// The kernels of a file, or what is wrong with one, and where.
fn heads(code: &str) -> impl Iterator<Item = Result<Head<'_>, (usize, String)>> {
    const MARK: &str = "extern \"C\" __global__";
    const BOUNDS: &str = "__launch_bounds__(";
    code.match_indices(MARK).map(move |(start, _)| {
        let signature =
            || (start, format!("a kernel is written `{MARK} void [__launch_bounds__(N)] name(parameters) {{`"));
        let mut rest = &code[start + MARK.len()..];
        let mut threads = 1024;
        if let Some(bounds) = rest.find(BOUNDS).filter(|b| rest.find('{').is_none_or(|open| *b < open)) {
            let from = bounds + BOUNDS.len();
            let to = from + rest[from..].find(')').ok_or_else(signature)?;
            let first = rest[from..to].split(',').next().unwrap_or_default().trim();
            threads = first.parse().map_err(|_| (start, format!("{BOUNDS}{first}) is not a number")))?;
            rest = &rest[to + 1..];
        }
        let open = rest.find('(').ok_or_else(signature)?;
        let params = &rest[open + 1..];
        let params = &params[..params.find(')').ok_or_else(signature)?];
        let name = rest[..open].split_whitespace().next_back().ok_or_else(signature)?;
        Ok(Head { start, name, threads, params })
    })
}

/// The comment lines right above a position.
fn comment_before(text: &str, position: usize) -> String {
    let above = text[..position].trim_end_matches(' ');
    let mut lines: Vec<&str> = above.lines().rev().take_while(|l| l.starts_with("//")).collect();
    lines.reverse();
    lines.iter().map(|l| l.trim_start_matches('/').trim()).collect::<Vec<_>>().join("\n")
}

fn fields(body: &str) -> Result<Vec<(&'static str, String, String)>, Fault> {
    let mut fields = Vec::new();
    for line in body.lines() {
        let (code, comment) = line.split_once("//").unwrap_or((line, ""));
        for declaration in code.split(';').map(str::trim).filter(|d| !d.is_empty()) {
            let (of, names) = declaration.split_once(' ').ok_or_else(|| format!("cannot read `{declaration}`"))?;
            // Four bytes each, so that the layout is the same for every compiler, without gaps.
            let of = scalar(of).filter(|of| matches!(*of, "i32" | "u32" | "f32"));
            let of = of.ok_or_else(|| format!("`{declaration}`: a field is an int, unsigned or float"))?;
            for name in names.split(',') {
                fields.push((of, name.trim().to_string(), comment.trim().to_string()));
            }
        }
    }
    Ok(fields)
}

fn parse_param(text: &str) -> Result<Param, Fault> {
    let spaced = text.replace("__restrict__", " ").replace('*', " * ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (name, words) = words.split_last().ok_or("a parameter is empty")?;
    let has = |word| words.contains(&word);
    let of: Vec<&str> = words.iter().copied().filter(|w| !["const", "*", "OPTIONAL"].contains(w)).collect();
    let of = of.join(" ");
    let optional = has("OPTIONAL");
    let kind = match (has("*"), has("const")) {
        (false, _) if of.ends_with("Dims") => Kind::Dims(of),
        (false, _) => return Err(format!("`{}`: sizes are passed in one struct …Dims", text.trim())),
        (true, constant) => {
            let of = scalar(&of).ok_or_else(|| format!("`{}`: unknown type `{of}`", text.trim()))?.to_string();
            if constant { Kind::In { of, optional } } else { Kind::Out { of, optional } }
        }
    };
    Ok(Param { name: (*name).to_string(), kind })
}

fn scalar(c: &str) -> Option<&'static str> {
    Some(match c {
        "T" => "T",
        "float" => "f32",
        "int" => "i32",
        "unsigned" => "u32",
        "unsigned char" => "u8",
        "StepState" => "StepState",
        _ => return None,
    })
}

fn generate(files: &[File], emulated: bool) -> String {
    let mut out = String::new();
    let headers = files.iter().filter(|f| f.name.ends_with(".cuh"));
    let _ = writeln!(out, "/// The headers' names and texts.\npub static HEADERS: &[(&str, &str)] = &[");
    for h in headers {
        let _ = writeln!(out, "    ({:?}, include_str!({:?})),", h.name, h.path);
    }
    let _ = writeln!(out, "];");
    let mut entries = Vec::new();
    for f in files.iter().filter(|f| !f.structs.is_empty() || !f.entries.is_empty()) {
        let _ = writeln!(out, "\n/// Kernels of `{}`.\npub mod {} {{\n    use super::*;", f.name, f.stem);
        for include in &f.includes {
            let stem = include.trim_end_matches(".cuh");
            if files.iter().any(|f| f.stem == stem && !f.structs.is_empty()) {
                let _ = writeln!(out, "    pub use super::{stem}::*;");
            }
        }
        for s in &f.structs {
            generate_struct(&mut out, s);
        }
        if !f.entries.is_empty() {
            let _ = writeln!(
                out,
                "    pub(super) static SOURCE: Source = Source {{ stem: {:?}, text: include_str!({:?}) }};",
                f.stem, f.path
            );
        }
        for e in &f.entries {
            generate_launcher(&mut out, e, entries.len(), emulated);
            entries.push(format!("{}::{}", f.stem, e.name.to_uppercase()));
        }
        out += "}\n";
    }
    let _ = writeln!(out, "\n/// Every kernel.\npub static ENTRIES: &[&Entry] = &[");
    for e in &entries {
        let _ = writeln!(out, "    &{e},");
    }
    out + "];\n"
}

fn doc(out: &mut String, indent: &str, text: &str, default: &str) {
    for line in if text.is_empty() { default } else { text }.lines() {
        // Square brackets and angles are not links or tags here.
        let line = line.replace('[', "\\[").replace(']', "\\]").replace('<', "\\<");
        let _ = writeln!(out, "{indent}/// {line}  ");
    }
}

fn generate_struct(out: &mut String, s: &Struct) {
    doc(out, "    ", &s.doc, "Sizes of a kernel.");
    let _ = writeln!(
        out,
        "    #[repr(C)]\n    #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]\n    \
         pub struct {} {{",
        s.name
    );
    for (of, name, comment) in &s.fields {
        doc(out, "        ", comment, name);
        let _ = writeln!(out, "        pub {name}: {of},");
    }
    out.push_str("    }\n");
}

/// The declaration of a kernel compiled for the host, plain and checked.
fn declaration(name: &str) -> String {
    let one = |kind: &str| format!("    fn tilework_{kind}_{name}(args: *const *mut std::ffi::c_void);\n");
    format!("unsafe extern \"C\" {{\n{}{}}}\n", one("plain"), one("checked"))
}

fn generate_launcher(out: &mut String, e: &Entry, index: usize, emulated: bool) {
    let Entry { name, threads, registers, .. } = e;
    let mut thunks = String::new();
    if emulated {
        out.push_str(&declaration(name));
        thunks = format!(", plain: tilework_plain_{name}, checked: tilework_checked_{name}");
    }
    let _ = writeln!(
        out,
        "    pub(super) static {}: Entry = Entry {{ source: &SOURCE, name: {name:?}, index: {index}, threads: {threads}, registers: {registers}{thunks} }};",
        name.to_uppercase()
    );
    let (mut signature, mut args) = (String::new(), String::new());
    for Param { name, kind } in &e.params {
        let (of, arg) = match kind {
            Kind::In { of, optional: false } => (format!("In<'_, {of}>"), format!("{name}.arg({name:?})")),
            Kind::Out { of, optional: false } => (format!("Out<'_, {of}>"), format!("{name}.arg({name:?})")),
            Kind::In { of, .. } => {
                (format!("Option<In<'_, {of}>>"), format!("{name}.map_or(null({name:?}), |p| p.arg({name:?}))"))
            }
            Kind::Out { of, .. } => {
                (format!("Option<Out<'_, {of}>>"), format!("{name}.map_or(null({name:?}), |p| p.arg({name:?}))"))
            }
            Kind::Dims(of) => (format!("&{of}"), format!("Arg::Value(bytemuck::bytes_of({name}))")),
        };
        let _ = write!(signature, ", {name}: {of}");
        let _ = write!(args, "{arg}, ");
    }
    doc(out, "    ", &e.doc, name);
    let _ = writeln!(
        out,
        "    #[allow(clippy::too_many_arguments)]\n    \
         pub(crate) fn {name}<T: KernelType>(cuda: &Cuda, launch: Launch{signature}) -> Result<()> {{\n        \
         // SAFETY: the types are those of the kernel's signature. That the sizes are true of the memory is the\n        \
         // calling op's duty, and the checker's to verify.\n        \
         unsafe {{ cuda.launch(&{}, T::DTYPE, launch, &[{args}]) }}\n    }}",
        name.to_uppercase()
    );
}

/// The kernels, compiled for the host.
#[cfg(feature = "emulator")]
mod emulator {
    use super::*;
    use std::collections::hash_map::DefaultHasher;
    use std::hash::{Hash, Hasher};
    use std::process::Command;

    /// Compiles every kernel file twice. False, with a warning, where there is no C++ compiler.
    pub(super) fn compile(root: &Path, out: &Path, files: &[File]) -> Result<bool, Fault> {
        let shim = root.join("src/device/emulator");
        println!("cargo::rerun-if-changed={}", shim.display());
        for variable in ["CXX", "CXXFLAGS", "NUM_JOBS"] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(2).warnings(false).debug(false).cargo_warnings(false);
        build
            .include(&shim)
            .include(root.join("kernels"))
            .define("TILEWORK_EMULATED", None)
            .define("TILEWORK_T", "float");
        // A fiber's stack has no guard page: no frame may be larger than a part of it.
        let limit = "-Werror=frame-larger-than=16384";
        for flag in ["-g1", "-fno-strict-aliasing", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", limit]
        {
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
        format!("{:?}", compiler.to_command()).hash(&mut common);
        let mut texts: Vec<PathBuf> =
            files.iter().filter(|f| f.name.ends_with(".cuh")).map(|f| f.path.clone()).collect();
        texts.push(shim.join("cuda.h"));
        for path in texts {
            fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?.hash(&mut common);
        }
        let mut jobs = Vec::new();
        for file in files.iter().filter(|f| !f.entries.is_empty()) {
            let names: Vec<&str> = file.entries.iter().map(|e| e.name.as_str()).collect();
            for checked in [false, true] {
                jobs.push(job(&file.path, &names, checked, common.clone(), out)?);
            }
        }
        jobs.extend(planted(root, out, &common)?);
        let objects: Vec<PathBuf> = jobs.iter().map(|j| j.object.clone()).collect();
        run_all(jobs, &compiler)?;
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

    fn no_compiler(why: &str) -> Result<bool, Fault> {
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
    fn planted(root: &Path, out: &Path, common: &DefaultHasher) -> Result<Vec<Job>, Fault> {
        let path = root.join("tests/kernels/planted.cu");
        println!("cargo::rerun-if-changed={}", path.display());
        let code = without_comments(&fs::read_to_string(&path).unwrap_or_default());
        let heads: Result<Vec<Head<'_>>, _> = heads(&code).collect();
        let heads = heads.map_err(|(_, what)| format!("{}: {what}", path.display()))?;
        let names: Vec<&str> = heads.iter().map(|h| h.name).collect();
        let mut table = String::new();
        for name in &names {
            table += &declaration(name);
        }
        table += "pub(crate) static PLANTED: &[(&str, Thunk, Thunk)] = &[\n";
        for name in &names {
            let _ = writeln!(table, "    ({name:?}, tilework_plain_{name}, tilework_checked_{name}),");
        }
        table += "];\n";
        let list = out.join("planted.rs");
        fs::write(&list, table).map_err(|e| format!("{}: {e}", list.display()))?;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        [false, true].into_iter().map(|checked| job(&path, &names, checked, common.clone(), out)).collect()
    }

    /// The C++ file of a kernel file, and the object it becomes: named by all that goes into it, so
    /// that what is there already need not be made again.
    fn job(path: &Path, names: &[&str], checked: bool, mut hash: DefaultHasher, out: &Path) -> Result<Job, Fault> {
        let kind = if checked { "checked" } else { "plain" };
        let mut text = String::from("#include \"cuda.h\"\n");
        // The two builds of a kernel must not meet in the linker: the kernel itself gets another name,
        // its helpers a namespace without one.
        for name in names {
            let _ = writeln!(text, "#define {name} {name}_{kind}");
        }
        let _ = writeln!(text, "namespace {{\n#include {path:?}\n}}");
        for name in names {
            let thunk = format!("void tilework_{kind}_{name}(void* const* args) {{ emu::call({name}, args); }}");
            let _ = writeln!(text, "extern \"C\" EMU_NATIVE {thunk}");
        }
        text.hash(&mut hash);
        fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?.hash(&mut hash);
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let stem = format!("{name}_{kind}_{:016x}", hash.finish());
        let job = Job {
            source: out.join(format!("{stem}.cpp")),
            object: out.join(format!("{stem}.o")),
            checked,
            name: name.into_owned(),
        };
        fs::write(&job.source, text).map_err(|e| format!("{}: {e}", job.source.display()))?;
        Ok(job)
    }

    /// Runs the jobs whose objects are missing, as many at a time as cargo allows.
    fn run_all(jobs: Vec<Job>, compiler: &cc::Tool) -> Result<(), Fault> {
        let lanes = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).max(1);
        let todo: Vec<Job> = jobs.into_iter().filter(|j| !j.object.exists()).collect();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || -> Result<(), Fault> {
            while let Some(job) = todo.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                run(job, compiler)?;
            }
            Ok(())
        };
        std::thread::scope(|s| {
            let threads: Vec<_> = (0..lanes).map(|_| s.spawn(work)).collect();
            threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err("a compiler's thread failed".into())))
        })
    }

    fn run(job: &Job, compiler: &cc::Tool) -> Result<(), Fault> {
        // Renamed when complete: an interrupted build leaves no half object under the final name.
        let partial = job.object.with_extension("partial");
        let mut command: Command = compiler.to_command();
        if job.checked {
            // The accesses call our own hooks; the sanitizer's library is not linked. At a higher level
            // the compiler merges accesses, and what the checker sees is not what was written.
            command.args(["-O1", "-fsanitize=thread,alignment"]);
            if compiler.is_like_clang() {
                command.args(["-mllvm", "-tsan-instrument-func-entry-exit=0"]);
            } else {
                command.arg("--param=tsan-instrument-func-entry-exit=0");
            }
        }
        command.arg("-c").arg(&job.source).arg("-o").arg(&partial);
        let output = command.output().map_err(|e| format!("kernels/{}.cu: {e}", job.name))?;
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr);
            return Err(format!("kernels/{}.cu: the C++ compiler says:\n{log}", job.name).replace('\n', " | "));
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
}
