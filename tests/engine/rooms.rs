//! Guards the room rule: every op has its file, in the agreed order of sections, its kernels, its
//! cases, its gradient check, its test on a device and its bench; and every file of `src/ops` is a room or a named helper.

use std::path::{Path, PathBuf};
use tilework::ops::{Draw, ROOMS};

/// Files that rooms share.
const HELPERS: [&str; 10] =
    ["README", "mod", "activation", "case", "ceiling", "gradcheck", "operands", "parity", "product", "window"];

fn ops() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops")
}

/// The file of a room: `<name>.rs`, or `<name>/mod.rs` of one that is too long for one file.
fn source(name: &str) -> String {
    let (file, folder) = (ops().join(format!("{name}.rs")), ops().join(name).join("mod.rs"));
    assert!(file.exists() != folder.exists(), "room {name} has a file or a folder, and not both");
    std::fs::read_to_string(if file.exists() { file } else { folder }).unwrap()
}

#[test]
fn every_file_is_a_room_or_a_helper() {
    for entry in std::fs::read_dir(ops()).unwrap() {
        let stem = entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_string();
        let known = HELPERS.contains(&stem.as_str()) || ROOMS.iter().any(|r| r.name == stem);
        assert!(known, "src/ops/{stem} is in no room: add it to ROOMS");
    }
    let mut names: Vec<_> = ROOMS.iter().map(|r| r.name).collect();
    assert!(names.is_sorted(), "ROOMS is in alphabetical order");
    names.dedup();
    assert_eq!(names.len(), ROOMS.len());
}

#[test]
fn every_room_has_its_sections_in_order() {
    for room in ROOMS {
        let text = source(room.name);
        let text = text.as_str();
        let sections = [
            ("the maths in the module docs", "//! "),
            ("the method on Var", "impl Var {"),
            ("the Backward struct", "impl Backward for "),
            ("the CPU side", "cpu"),
            ("the CUDA side", "cuda"),
            ("the constructor of its cases", "\nfn case("),
            ("its cases", "\npub fn cases()"),
            ("its random case", "\npub fn random_case("),
            ("its tests", "#[cfg(test)]\nmod tests"),
        ];
        let mut at = 0;
        for (what, mark) in sections {
            match text[at..].find(mark) {
                Some(found) => at += found,
                None => panic!("room {} lacks {what} (`{}`), or has it in another order", room.name, mark.trim()),
            }
        }
        let both = text.contains("on_device!");
        assert!(both || text.contains("with_real!"), "room {} must run in f32 and f64", room.name);
        assert!(both || text.contains("with_kernel_type!"), "room {} must run on a CUDA device", room.name);
        let (code, tests) = text.split_once("#[cfg(test)]\nmod tests").unwrap();
        let (code, tests) = (code.lines().count(), tests.lines().count());
        assert!(code <= 300 && tests <= 100, "room {}: {code} lines, {tests} of tests: make it a folder", room.name);
    }
}

/// A room's kernels are in one file of its name. Each has a header that begins with what it computes; the
/// first one of a file has all the agreed parts, a later one those in which it differs.
#[test]
fn every_room_has_its_kernels() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    for room in ROOMS {
        assert!(root.join(format!("{}.cu", room.name)).exists(), "room {} lacks kernels/{}.cu", room.name, room.name);
    }
    const PARTS: [&str; 7] = ["Threads", "Traffic", "Launch", "Numerics", "Limits", "Registers", "Measured"];
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "cu") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() <= 500, "{} cannot be read in one sitting", path.display());
        let (mut header, mut first): (Vec<&str>, bool) = (Vec::new(), true);
        for line in text.lines() {
            if line.starts_with("//") {
                header.push(line.trim_start_matches("// "));
                continue;
            }
            if line.starts_with("template <class T") && line.ends_with('>') {
                continue;
            }
            if line.starts_with("__global__") {
                let part =
                    |line: &str| PARTS.iter().position(|p| line.strip_prefix(p).is_some_and(|l| l.starts_with(": ")));
                let parts: Vec<usize> = header.iter().filter_map(|line| part(line)).collect();
                let order = parts.is_sorted_by(|a, b| a < b);
                assert!(order, "{}: a kernel's header has its parts in another order: {line}", path.display());
                let whole = !first || parts.starts_with(&[0, 1, 2, 3, 4, 5]);
                assert!(whole, "{}: the first kernel's header has not all of {PARTS:?}", path.display());
                let what = header.first().is_some_and(|line| part(line).is_none());
                assert!(what, "{}: a kernel's header begins with what it computes: {line}", path.display());
                first = false;
            }
            header.clear();
        }
    }
}

#[test]
fn every_room_has_cases_to_check_and_to_time() {
    for room in ROOMS {
        let cases = (room.cases)();
        assert!(
            cases.iter().filter(|c| c.smooth && !c.bench).count() >= 2,
            "room {}: two smooth small cases at least",
            room.name
        );
        assert!(cases.iter().any(|c| c.bench), "room {}: a case to time", room.name);
        let mut names: Vec<_> = cases.iter().map(|c| c.name.clone()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), cases.len(), "room {}: names of cases are bench ids, so each is used once", room.name);
        // Random cases are all smooth and not all the same.
        let random: Vec<_> = (0..20).map(|s| (room.random_case)(&mut Draw::new(s))).collect();
        assert!(random.iter().all(|c| c.smooth && !c.inputs.is_empty()), "room {}", room.name);
        let mut names: Vec<_> = random.iter().map(|c| c.name.clone()).collect();
        names.sort();
        names.dedup();
        assert!(names.len() > 10, "room {}: random cases hardly differ", room.name);
    }
}

/// The gradient check and the benches go through ROOMS, so that no room can be forgotten.
#[test]
fn checks_and_benches_cover_all_rooms() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["tests/engine/gradients.rs", "tests/device/kernels.rs", "benches/ops.rs"] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        assert!(text.contains("for room in ROOMS"), "{file} must go through ROOMS");
    }
}
