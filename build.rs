//! Reads `kernels/*.cu` and writes `kernels.rs`: for each file a module with its text, the structs
//! of its kernels' sizes, and one typed launcher a kernel. With the feature `emulator` it also
//! compiles the kernels for the host, twice: plain, and with every memory access reported to the
//! checker.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

/// The kernels, compiled for the host.
#[cfg(feature = "emulator")]
#[path = "src/device/emulator/build.rs"]
mod emulator;

/// What is wrong in a kernel file, with its place.
type Fault = String;

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            fault.lines().for_each(|line| println!("cargo::error={line}"));
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
        "Step" => "Step",
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
