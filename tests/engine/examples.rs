//! The programs in `examples/` run, and end well.

use std::path::Path;
use std::process::Command;

#[test]
fn all_of_them_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(root.join("examples")).unwrap().map(|file| file.unwrap().path());
    let mut names: Vec<String> = files.map(|path| path.file_stem().unwrap().to_str().unwrap().into()).collect();
    names.sort();
    assert_eq!(names, ["own_data", "own_op", "time_a_kernel"]);
    for name in names {
        // `cargo test` has built them; alone, this test has them built.
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(root).args(["run", "--quiet", "--example", &name]);
        // What `cargo test` tells its tests: with it, dependencies would be built again whose build scripts look at it.
        let told =
            |name: &str| name == "OUT_DIR" || ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|p| name.starts_with(p));
        for (name, _) in std::env::vars().filter(|(name, _)| told(name)) {
            cargo.env_remove(name);
        }
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let out = cargo.output().unwrap();
        let [text, err] = [out.stdout, out.stderr].map(|b| String::from_utf8(b).unwrap());
        println!("{name}:\n{text}");
        assert!(out.status.success() && !text.is_empty(), "{name}: {text}{err}");
    }
}
