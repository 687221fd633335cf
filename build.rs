//! Reads `kernels/*.cu` and writes `kernels.rs`: for each file a module with its text, the structs
//! of its kernels' sizes, and one typed launcher a family of kernels. With the feature `emulator` it
//! also compiles the kernels for the host, twice: plain, and with every memory access reported to the
//! checker. What is written where in a kernel file: `kernels/README.md`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs};

/// The kernel files.
#[path = "src/device/cuda/build.rs"]
mod kernels;

/// The kernels, compiled for the host.
#[cfg(feature = "emulator")]
#[path = "src/device/emulator/build.rs"]
mod emulator;

/// What is wrong in a kernel file, with its place.
type Problem = String;

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            problem.lines().for_each(|line| println!("cargo::error={line}"));
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Problem> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rustc-check-cfg=cfg(tilework_emulator, tilework_emulator_fma, tilework_emulator_strict)");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?);
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|e| e.to_string())?);
    let (files, tiles) = kernels::read_kernels(&root.join("kernels"))?;
    // A kernel of the tests has its launcher too; it is not part of a package.
    let hopper = root.join("tests/kernels/hopper.cu");
    println!("cargo::rerun-if-changed={}", hopper.display());
    let text = fs::read_to_string(&hopper).unwrap_or_default();
    let hopper = kernels::parse(hopper, &text, &tiles)?;
    #[cfg(feature = "emulator")]
    let emulated = emulator::compile(&root, &out, files.iter().chain([&hopper]))?;
    #[cfg(not(feature = "emulator"))]
    let emulated = false;
    if emulated {
        println!("cargo::rustc-cfg=tilework_emulator");
    }
    let write = |name: &str, files: &[File]| {
        let path = out.join(name);
        fs::write(&path, generate(files, &tiles, emulated)?).map_err(|e| format!("{}: {e}", path.display()))
    };
    write("hopper.rs", &[hopper])?;
    write("kernels.rs", &files)
}

/// A kernel file or header.
struct File {
    path: PathBuf,
    name: String,
    stem: String,
    structs: Vec<Struct>,
    families: Vec<Family>,
}

/// The sizes of a kernel, passed by value.
struct Struct {
    name: String,
    /// Rust type and name of each field.
    fields: Vec<(String, String)>,
}

/// A kernel with its template parameters open.
struct Family {
    name: String,
    /// The names of its template parameters.
    template: Vec<String>,
    params: Vec<Param>,
    kernels: Vec<Kernel>,
}

/// A family with its template parameters bound.
struct Kernel {
    /// The argument of each template parameter.
    arguments: Vec<String>,
    /// The one architecture that it is for, if there is one: `sm_90a`.
    arch: Option<String>,
    threads: u32,
    registers: u32,
}

/// The tile of a product: a struct in a header with `enum { M = 128, ... }`.
struct Tile {
    name: String,
    numbers: Vec<(String, u32)>,
}

struct Param {
    name: String,
    kind: Kind,
}

enum Kind {
    Memory { of: String, writable: bool, optional: bool },
    Dims(String),
    TensorMap,
}

impl Kernel {
    /// As C++ writes it: `linear_fwd<float, Simt128>`.
    fn name(&self, family: &Family) -> String {
        let arguments = self.arguments.join(", ");
        if arguments.is_empty() { family.name.clone() } else { format!("{}<{arguments}>", family.name) }
    }
}

impl Tile {
    fn number(&self, name: &str) -> Option<u32> {
        self.numbers.iter().find(|n| n.0 == name).map(|n| n.1)
    }
}

fn generate(files: &[File], tiles: &[Tile], emulated: bool) -> Result<String, Problem> {
    let mut out = String::new();
    let headers = files.iter().filter(|f| f.name.ends_with(".cuh"));
    let _ = writeln!(out, "/// The headers' names and texts.\npub static HEADERS: &[(&str, &str)] = &[");
    for h in headers {
        let _ = writeln!(out, "    ({:?}, include_str!({:?})),", h.name, h.path);
    }
    let _ = writeln!(out, "];");
    for tile in tiles {
        generate_tile(&mut out, tile)?;
    }
    let mut index = 0;
    for f in files.iter().filter(|f| !f.families.is_empty()) {
        let _ = writeln!(out, "\n/// Kernels of `{}`.\npub mod {} {{\n    use super::*;", f.name, f.stem);
        // Those of a header of the file's own name too; and sizes that are another's.
        files.iter().filter(|h| h.stem == f.stem).flat_map(|h| &h.structs).for_each(|s| generate_struct(&mut out, s));
        let params = f.families.iter().flat_map(|family| &family.params);
        let sizes: BTreeSet<&String> =
            params.filter_map(|p| if let Kind::Dims(of) = &p.kind { Some(of) } else { None }).collect();
        for of in sizes {
            for h in files.iter().filter(|h| h.stem != f.stem && h.structs.iter().any(|s| s.name == *of)) {
                let _ = writeln!(out, "    pub use super::{}::{of};", h.stem);
            }
        }
        let families: String = f.families.iter().map(|f| format!("&{}, ", f.name.to_uppercase())).collect();
        let _ = writeln!(
            out,
            "    pub(super) static SOURCE: Source = Source {{ stem: {:?}, text: include_str!({:?}), families: &[{families}] }};",
            f.stem, f.path
        );
        for family in &f.families {
            generate_family(&mut out, family, &mut index, emulated);
            generate_launcher(&mut out, family);
        }
        out += "}\n";
    }
    let _ = writeln!(out, "\n/// Every file of kernels.\npub static SOURCES: &[&Source] = &[");
    for f in files.iter().filter(|f| !f.families.is_empty()) {
        let _ = writeln!(out, "    &{}::SOURCE,", f.stem);
    }
    Ok(out + "];\n")
}

fn generate_tile(out: &mut String, tile: &Tile) -> Result<(), Problem> {
    let upper = tile.name.to_uppercase();
    let _ = write!(out, "\n/// `{0}`.\npub static {upper}: Tile = Tile {{ name: {0:?}", tile.name);
    for name in ["M", "N", "K", "THREADS", "BLOCKS", "LATENCY", "SPEED"] {
        let number = tile.number(name).ok_or_else(|| format!("struct {} lacks `{name} = …`", tile.name))?;
        let _ = write!(out, ", {}: {number}", name.to_lowercase());
    }
    // Most tiles have static shared memory alone, and most are for operands at addresses.
    let (shared, maps) = (tile.number("SHARED").unwrap_or(0), tile.number("MAPS").is_some());
    let [transposed, cluster] = ["TRANSPOSED", "CLUSTER"].map(|name| tile.number(name) == Some(1));
    let masks = tile.number("UNMASKED").is_none();
    let _ = write!(out, ", shared: {shared}, maps: {maps}, transposed: {transposed}");
    let _ = writeln!(out, ", cluster: {cluster}, masks: {masks} }};");
    Ok(())
}

fn generate_struct(out: &mut String, s: &Struct) {
    let _ = writeln!(
        out,
        "    #[repr(C)]\n    #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]\n    \
         pub struct {} {{",
        s.name
    );
    for (of, name) in &s.fields {
        let _ = writeln!(out, "        pub {name}: {of},");
    }
    out.push_str("    }\n");
}

/// The symbols of a kernel compiled for the host, plain and checked.
fn thunks(name: &str) -> [String; 2] {
    let name: String = name.chars().filter(|c| *c != ' ' && *c != '>').collect();
    let name = name.replace(['<', ','], "_");
    ["plain", "checked"].map(|kind| format!("tilework_{kind}_{name}"))
}

/// Their declaration.
fn declaration(name: &str) -> String {
    let [plain, checked] = thunks(name).map(|thunk| format!("fn {thunk}(args: *const *mut std::ffi::c_void);"));
    format!("unsafe extern \"C\" {{ {plain} {checked} }}\n")
}

fn generate_family(out: &mut String, family: &Family, index: &mut usize, emulated: bool) {
    let mut kernels = String::new();
    for kernel in &family.kernels {
        let Kernel { arguments, arch, threads, registers } = kernel;
        let name = kernel.name(family);
        let dtype =
            arguments.iter().find_map(|a| kernels::dtype(a)).map_or("None".into(), |d| format!("Some(DType::{d})"));
        let tile = arguments.iter().find(|a| kernels::dtype(a).is_none());
        let tile = tile.map_or("None".into(), |t| format!("Some(&{})", t.to_uppercase()));
        let number = |arch: &String| arch.trim_matches(|c: char| !c.is_ascii_digit()).to_string();
        let arch_of = arch.as_ref().map_or("None".into(), |a| format!("Some(Arch::specific({}))", number(a)));
        let _ = write!(
            kernels,
            "Kernel {{ source: &SOURCE, family: {:?}, name: {name:?}, index: {index}, dtype: {dtype}, tile: {tile}, \
             arch: {arch_of}, threads: {threads}, registers: {registers}",
            family.name
        );
        if emulated {
            out.push_str(&declaration(&name));
            let _ = write!(kernels, ", thunks: Some([{}])", thunks(&name).join(", "));
        }
        kernels += " }, ";
        *index += 1;
    }
    let (upper, name) = (family.name.to_uppercase(), &family.name);
    let _ =
        writeln!(out, "    pub(crate) static {upper}: Family = Family {{ name: {name:?}, kernels: &[{kernels}] }};");
}

fn generate_launcher(out: &mut String, family: &Family) {
    let (mut signature, mut args) = (String::new(), String::new());
    for Param { name, kind } in &family.params {
        let (of, arg) = match kind {
            Kind::Memory { of, writable, optional } => {
                let of = format!("{}<'_, {of}>", if *writable { "Out" } else { "In" });
                match optional {
                    false => (of, format!("{name}.arg({name:?})")),
                    true => (format!("Option<{of}>"), format!("{name}.map_or(null({name:?}), |p| p.arg({name:?}))")),
                }
            }
            Kind::Dims(of) => (format!("&{of}"), format!("Arg::Value(bytemuck::bytes_of({name}))")),
            Kind::TensorMap => ("&MappedTensor".into(), format!("Arg::Map({name})")),
        };
        let _ = write!(signature, ", {name}: {of}");
        let _ = write!(args, "{arg}, ");
    }
    let has = |parameter: &str| family.template.iter().any(|t| t == parameter);
    let (generic, dtype) = if has("T") { ("<T: KernelType>", "Some(T::DTYPE)") } else { ("", "None") };
    let (parameter, tile) = if has("Tile") { (", tile: &Tile", "Some(tile)") } else { ("", "None") };
    let _ = writeln!(
        out,
        "    #[allow(clippy::too_many_arguments)]\n    \
         pub(crate) fn {}{generic}(cuda: &Cuda{parameter}, launch: Launch{signature}) -> Result<()> {{\n        \
         // SAFETY: the types are those of the kernel's signature. That the sizes are true of the memory is the\n        \
         // calling op's duty, and the checker's to verify.\n        \
         unsafe {{ cuda.launch(&{}, {dtype}, {tile}, launch, &[{args}]) }}\n    }}",
        family.name,
        family.name.to_uppercase()
    );
}
