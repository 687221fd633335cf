//! The program when files are pipes, rows are cut, memory is short; and the learning-rate finder.

use super::{Place, TINY};
use std::fs;

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_refused_and_not_waited_for() {
    let p = Place::new();
    let pipe = p.path("pipe.toml");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    p.fails(&["train", "pipe.toml"], &["pipe.toml", "it is a pipe"]);
    p.fails(&["train", "tiny.toml", "--init", "pipe.toml"], &["pipe.toml", "it is a pipe"]);
    p.fails(&["train", "tiny.toml", "--init", "/dev/zero"], &["/dev/zero", "a device"]);
    p.ok(&["train", "tiny.toml", "--max-steps", "2"]);
    let model = p.path("runs/tiny-001/last/model.safetensors");
    fs::remove_file(&model).unwrap();
    fs::rename(&pipe, &model).unwrap();
    p.fails(&["train", "--resume", "runs/tiny-001"], &["model.safetensors", "it is a pipe"]);
}

/// Before any work is done that would be lost.
#[test]
fn a_folder_in_place_of_a_file_is_named_and_the_reverse() {
    let p = Place::new();
    p.ok(&["train", "tiny.toml", "--max-steps", "2"]);
    fs::create_dir(p.path("folder")).unwrap();
    let run = "runs/tiny-001";
    for command in [
        &["report", run, "--out"][..],
        &["compare", run, "--out"],
        &["data", "show", "tiny.toml", "--out"],
        &["activations", run, "a.png", "--layer", "0", "--out"],
        &["export", run, "--onnx"],
        &["export", run, "--safetensors"],
        &["bench", "--device", "emulated", "--recipe", "tiny.toml", "--trace"],
    ] {
        let done =
            p.fails(&[command, &["folder"]].concat(), &["folder: it is a folder, and should be a file", "remedy"]);
        assert!(done.out.is_empty(), "{command:?}: {}", done.out);
    }
    for command in [
        &["train", "tiny.toml", "--out"][..],
        &["sweep", "tiny.toml", "--seeds", "0,1", "--out"],
        &["lr-find", "tiny.toml", "--out"],
        &["data", "fetch", "cifar10", "--to"],
    ] {
        p.fails(&[command, &["tiny.toml"]].concat(), &["tiny.toml: it is a file, and should be a folder", "remedy"]);
    }
}

#[test]
fn rows_that_were_cut_or_lost_are_noted() {
    let p = Place::new();
    p.ok(&["train", "tiny.toml", "--max-steps", "120"]);
    let steps = p.path("runs/tiny-001/steps.csv");
    let text = fs::read_to_string(&steps).unwrap();
    let resume = |stop: &str| p.ok(&["train", "--resume", "runs/tiny-001", "--max-steps", stop]).err;
    // More rows than the checkpoint knows of, the last one cut.
    fs::write(&steps, format!("{text}121,2,0.01,1.5\n122,2,0.0")).unwrap();
    let err = resume("130");
    assert!(
        err.contains("steps.csv ends in the middle of a row") && err.contains("2 rows after the checkpoint"),
        "{err}"
    );
    assert_eq!(fs::read_to_string(&steps).unwrap().lines().count(), 131);
    // Fewer.
    fs::write(&steps, &text[..text.len() / 2]).unwrap();
    let err = resume("140");
    assert!(err.contains("of the 130 rows up to the checkpoint"), "{err}");
}

#[cfg(target_os = "linux")]
#[test]
fn memory_that_runs_out_is_an_error() {
    let wide = r#"layers = ["flatten", "fc 8000", "relu", "fc 8000", "relu", "fc 10"]"#;
    let p = Place::with(&TINY.replace(r#"layers = ["max_pool 8", "flatten", "fc 12", "relu", "fc 10"]"#, wide));
    let done = p.shell("ulimit -v 1200000; exec \"$0\" train tiny.toml --threads 2");
    assert_eq!(done.code, Some(1), "{}", done.err);
    assert!(done.err.contains("out of memory") && done.err.contains("remedy"), "{}", done.err);
    assert!(!done.err.contains("panicked"), "{}", done.err);
}

#[test]
fn a_learning_rate_is_found() {
    let p = Place::new();
    let done = p.ok(&["lr-find", "tiny.toml", "--steps", "400", "--out", "found", "--set", "seed=3", "--threads", "1"]);
    for word in ["400 updates of 100 images", "valley", "steepest", "minimum / 10", "learning rate; the letters"] {
        assert!(done.out.contains(word), "{word}: {}", done.out);
    }
    // What was given is given again.
    for command in
        ["train tiny.toml --threads 1 --set seed=3 --lr 0.", "sweep tiny.toml --threads 1 --set seed=3 --set"]
    {
        assert!(done.out.contains(&format!("tilework {command}")), "{command}: {}", done.out);
    }
    let svg = p.text("found/lr-find.svg");
    assert!(svg.starts_with("<svg") && svg.contains("Learning-rate finder: tiny.toml") && svg.contains("</svg>"));
    assert!(!p.path("runs").exists());
    p.fails(&["lr-find", "tiny.toml", "--start", "1", "--end", "0.1"], &["from 1 to 0.1"]);
    let few = p.ok(&["lr-find", "tiny.toml", "--steps", "12", "--set", "batch_size=1"]).out;
    assert!(few.contains("12 updates of 1 image,") && few.contains("take more updates, --steps 48"), "{few}");
    p.fails(&["lr-find", "tiny.toml", "--out", "tiny.toml/x"], &["tiny.toml/x"]);
}
