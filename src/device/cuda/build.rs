//! Part of `build.rs`: reads the kernel files. What is written how: `kernels/README.md`.

use super::{Family, File, Kernel, Kind, Param, Problem, Struct, Tile};
use std::fs;
use std::path::{Path, PathBuf};

/// The kernel files and headers of a folder, and the tiles that they define.
pub(super) fn read_kernels(dir: &Path) -> Result<(Vec<File>, Vec<Tile>), Problem> {
    let failed = |e: std::io::Error| format!("{}: {e}", dir.display());
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.retain(|p| p.extension().is_some_and(|e| e == "cu" || e == "cuh"));
    paths.sort();
    let read = |path: PathBuf| fs::read_to_string(&path).map(|text| (path, text)).map_err(failed);
    let texts = paths.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let tiles: Vec<Tile> = texts.iter().flat_map(|(_, text)| tiles(&without_comments(text))).collect();
    let files = texts.into_iter().map(|(p, text)| parse(p, &text, &tiles)).collect::<Result<Vec<_>, _>>()?;
    Ok((files, tiles))
}

/// The text with comments blanked out, so that positions stay.
pub(super) fn without_comments(text: &str) -> String {
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

/// The structs of a text: position, name, and where the body begins and ends.
fn structs(code: &str) -> impl Iterator<Item = (usize, &str, usize, usize)> {
    code.match_indices("struct ").filter_map(move |(start, _)| {
        let open = start + code[start..].find('{')? + 1;
        let close = open + code[open..].find('}')?;
        let name = code[start + 7..open - 1].trim();
        let whole = start == 0 || code[..start].ends_with(['\n', ' ']);
        (whole && name.chars().all(|c| c.is_alphanumeric() || c == '_')).then_some((start, name, open, close))
    })
}

/// Structs of numbers: `struct Simt64 { enum { M = 64, ... }; };`.
fn tiles(code: &str) -> Vec<Tile> {
    let tile = |(_, name, open, close): (usize, &str, usize, usize)| {
        let numbers = code[open..close].trim_start().strip_prefix("enum {")?.split(',');
        let number =
            |n: &str| n.split_once('=').and_then(|(n, v)| Some((n.trim().to_string(), v.trim().parse().ok()?)));
        Some(Tile { name: name.into(), numbers: numbers.map(number).collect::<Option<_>>()? })
    };
    structs(code).filter_map(tile).collect()
}

/// A file of kernels, or one that they include.
pub(super) fn parse(path: PathBuf, text: &str, tiles: &[Tile]) -> Result<File, Problem> {
    let code = without_comments(text);
    let folder = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let at = |position: usize| format!("{folder}/{name}:{}", 1 + code[..position].matches('\n').count());
    let mut file = File {
        stem: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        name: name.clone(),
        path,
        structs: Vec::new(),
        families: Vec::new(),
    };
    for (start, name, open, close) in structs(&code).filter(|s| s.1.ends_with("Dims")) {
        let fields = fields(&code[open..close]).map_err(|e| format!("{}: struct {name}: {e}", at(start)))?;
        file.structs.push(Struct { name: name.into(), fields });
    }
    for head in heads(&code) {
        let head = head.map_err(|(start, what)| format!("{}: {what}", at(start)))?;
        let (start, name) = (head.start, head.name);
        let problem = |what: String| format!("{}: kernel `{name}` {what}", at(start));
        if !name.starts_with(&file.stem) {
            return Err(problem(format!("must be named after its file: `{}_…`", file.stem)));
        }
        let params = head.params.split(',').map(|p| param(p).map_err(|e| problem(format!("has {e}"))));
        let params = params.collect::<Result<_, _>>()?;
        let budget = line_above(text, start, "// Registers: at most ").map(|l| l.1);
        let budget = budget.ok_or_else(|| problem("lacks a line `// Registers: at most N.`".into()))?;
        let mut kernels = Vec::new();
        if head.template.is_empty() {
            kernels.push((Vec::new(), None));
        } else {
            let line = line_above(text, start, "// Instances: ");
            let (place, line) =
                line.ok_or_else(|| problem("is a template and lacks a line `// Instances: …`".into()))?;
            kernels = instances(&head.template, line, tiles).map_err(|e| format!("{}: {e}", at(place)))?;
        }
        let kernel = |(arguments, arch): Instance| {
            let lacks = |what: &str| problem(format!("with {arguments:?}: {what} is not a number"));
            let registers = registers(budget, &arguments).ok_or_else(|| lacks("its `// Registers: at most N.`"))?;
            let threads = threads(head.bounds, &arguments, tiles).ok_or_else(|| lacks("its __launch_bounds__"))?;
            Ok(Kernel { arguments, arch, threads, registers })
        };
        let kernels = kernels.into_iter().map(kernel).collect::<Result<_, Problem>>()?;
        let template = head.template.iter().map(|t| t.to_string()).collect();
        file.families.push(Family { name: name.to_string(), template, params, kernels });
    }
    Ok(file)
}

/// The first lines of a kernel.
pub(super) struct Head<'a> {
    start: usize,
    pub(super) name: &'a str,
    /// The names of its template parameters.
    template: Vec<&'a str>,
    /// What stands in `__launch_bounds__(...)` first.
    bounds: &'a str,
    params: &'a str,
}

/// The kernels of a file, or what is wrong with one, and where.
pub(super) fn heads(code: &str) -> impl Iterator<Item = Result<Head<'_>, (usize, String)>> {
    const BOUNDS: &str = "__launch_bounds__(";
    code.match_indices("__global__").map(move |(mark, word)| {
        let form = "[template <class T[, class Tile]>] __global__ void [__launch_bounds__(N)] name(parameters) {";
        let signature = || (mark, format!("a kernel is written `{form}`"));
        let (mut start, mut template) = (mark, Vec::new());
        if let Some(list) = code[..mark].trim_end().strip_suffix('>') {
            start = list.rfind("template <").ok_or_else(signature)?;
            let names = list[start + 10..].split(',').map(|p| p.trim().strip_prefix("class ").map(str::trim));
            template = names.collect::<Option<_>>().ok_or_else(signature)?;
        }
        let mut rest = &code[mark + word.len()..];
        let mut first = "1024";
        if let Some(from) = rest.find(BOUNDS).filter(|b| rest.find('{').is_none_or(|open| *b < open)) {
            rest = &rest[from + BOUNDS.len()..];
            let to = rest.find(')').ok_or_else(signature)?;
            first = rest[..to].split(',').next().unwrap_or_default().trim();
            rest = &rest[to + 1..];
        }
        let open = rest.find('(').ok_or_else(signature)?;
        let params = &rest[open + 1..];
        let params = &params[..params.find(')').ok_or_else(signature)?];
        let name = rest[..open].split_whitespace().next_back().ok_or_else(signature)?;
        Ok(Head { start, name, template, bounds: first, params })
    })
}

/// The arguments of a template, and the architecture if there is one.
type Instance = (Vec<String>, Option<String>);

/// The instances in a line such as
/// `T = float, half; Tile = Simt64, Simt32 | sm_90a: T = half; Tile = Wgmma128`.
fn instances(template: &[&str], line: &str, tiles: &[Tile]) -> Result<Vec<Instance>, Problem> {
    let mut out: Vec<Instance> = Vec::new();
    for alternative in line.split('|') {
        let (arch, sets) = match alternative.split_once(':') {
            Some((arch, sets)) => (Some(arch.trim()), sets),
            None => (None, alternative),
        };
        let digits = |a: &str| a.strip_prefix("sm_")?.strip_suffix('a')?.parse::<u32>().ok();
        if let Some(arch) = arch.filter(|a| digits(a).is_none()) {
            return Err(format!("`{arch}:` is no architecture with features of its own, such as `sm_90a:`"));
        }
        let mut tuples = vec![Vec::new()];
        for parameter in template {
            let set = sets.split(';').filter_map(|s| s.split_once('=')).find(|s| s.0.trim() == *parameter);
            let (_, values) = set.ok_or_else(|| format!("`{}` lacks `{parameter} = …`", alternative.trim()))?;
            let values: Vec<&str> = values.split(',').map(str::trim).collect();
            let unknown = |v: &&&str| match *parameter {
                "T" => dtype(v).is_none(),
                _ => *parameter != "Tile" || !tiles.iter().any(|t| t.name == **v),
            };
            if let Some(v) = values.iter().find(unknown) {
                return Err(format!(
                    "`{parameter} = {v}`: T is float, half or bf16, Tile a struct of numbers in a header"
                ));
            }
            let with =
                |t: &Vec<String>| values.iter().map(|v| [t.as_slice(), &[v.to_string()]].concat()).collect::<Vec<_>>();
            tuples = tuples.iter().flat_map(with).collect();
        }
        // What exists for every GPU, or for this one already, is not made again.
        tuples.retain(|tuple| !out.iter().any(|o| o.0 == *tuple && (o.1.is_none() || o.1.as_deref() == arch)));
        out.extend(tuples.into_iter().map(|t| (t, arch.map(str::to_string))));
    }
    Ok(out)
}

/// The variant of `DType` for an argument of `T`.
pub(super) fn dtype(argument: &str) -> Option<&'static str> {
    Some(match argument {
        "float" => "F32",
        "half" => "F16",
        "bf16" => "BF16",
        _ => return None,
    })
}

/// The last line above a position that begins with `mark`: where it is, and what it says.
fn line_above<'a>(text: &'a str, position: usize, mark: &str) -> Option<(usize, &'a str)> {
    let at = text[..position].rfind(&format!("\n{mark}"))? + 1;
    text[at + mark.len()..].lines().next().map(|line| (at, line.trim()))
}

/// `128 (Simt128), 112.`: the number that is for these arguments.
fn registers(line: &str, arguments: &[String]) -> Option<u32> {
    let mut numbers =
        line.trim_end_matches('.').split(',').map(|part| part.trim().split_once(" (").unwrap_or((part, "")));
    let fits = |only: &str| only.is_empty() || arguments.iter().any(|a| a == only.trim_end_matches(')'));
    numbers.find(|(_, only)| fits(only))?.0.trim().parse().ok()
}

/// The threads of a block: a number, or one of the tile.
fn threads(bounds: &str, arguments: &[String], tiles: &[Tile]) -> Option<u32> {
    let Some(name) = bounds.strip_prefix("Tile::") else { return bounds.parse().ok() };
    tiles.iter().find(|t| arguments.contains(&t.name))?.number(name)
}

/// Rust type and name of each field.
fn fields(body: &str) -> Result<Vec<(String, String)>, Problem> {
    let mut fields = Vec::new();
    for declaration in body.split(';').map(str::trim).filter(|d| !d.is_empty()) {
        let (of, names) = declaration.split_once(' ').ok_or_else(|| format!("cannot read `{declaration}`"))?;
        // Four bytes each, so that the layout is the same for every compiler, without gaps.
        let of = scalar(of).filter(|of| matches!(*of, "i32" | "u32" | "f32"));
        let of = of.ok_or_else(|| format!("`{declaration}`: a field is an int, unsigned or float"))?;
        for name in names.split(',').map(str::trim) {
            fields.push(match name.split_once('[') {
                Some((name, length)) => (format!("[{of}; {length}"), name.to_string()),
                None => (of.to_string(), name.to_string()),
            });
        }
    }
    Ok(fields)
}

fn param(text: &str) -> Result<Param, Problem> {
    let spaced = text.replace("__restrict__", " ").replace('*', " * ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (name, words) = words.split_last().ok_or("a parameter that is empty")?;
    let has = |word| words.contains(&word);
    let of: Vec<&str> = words.iter().copied().filter(|w| !["const", "*", "OPTIONAL"].contains(w)).collect();
    let of = of.join(" ");
    let optional = has("OPTIONAL");
    let kind = match (has("*"), has("const")) {
        (false, true) if of == "__grid_constant__ CUtensorMap" => Kind::TensorMap,
        (false, _) if of.ends_with("Dims") => Kind::Dims(of),
        (false, _) => return Err(format!("`{}`: sizes are passed in one struct …Dims", text.trim())),
        (true, constant) => {
            let of = scalar(&of).ok_or_else(|| format!("`{}` of unknown type `{of}`", text.trim()))?.to_string();
            Kind::Memory { of, writable: !constant, optional }
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
        // Four floats: params/scaling.rs.
        "Scaling" => "f32",
        _ => return None,
    })
}
