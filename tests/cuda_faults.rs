//! Machines on which the CUDA device cannot work: whatever is missing or broken, the program says
//! what and how to mend it, `--device auto` goes on with the CPU, and nothing panics.
//!
//! The libraries are fakes that are built here; the program loads them like the real ones.
#![cfg(target_os = "linux")]

mod fake_cuda;

use fake_cuda::Fakes;
use std::fs;
use std::process::Command;
use tilework::DType;
use tilework::device::cuda::Kernel;

/// A network that trains in a blink.
const TINY: &str = r#"
about = "tiny"
epochs = 1
batch_size = 100
layers = ["max_pool 8", "flatten", "fc 10"]

[data]
source = "shapes"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[optimizer]
kind = "sgd"
lr = 0.01
"#;

/// A machine that is not right.
struct Fault {
    /// The folders of fakes in the loader's path.
    folders: &'static [&'static str],
    /// What the fakes are told.
    env: &'static [(&'static str, &'static str)],
    /// What the user must be told, in `doctor` and in `--device cuda`.
    words: &'static [&'static str],
    /// The library that a machine must not have elsewhere for this fault to be one.
    without: &'static str,
}

const fn fault(
    folders: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
    words: &'static [&'static str],
    without: &'static str,
) -> Fault {
    Fault { folders, env, words, without }
}

const BOTH: &[&str] = &["cuda", "nvrtc"];

const FAULTS: &[Fault] = &[
    fault(&["nvrtc"], &[], &["libcuda", "was not found", "install NVIDIA's driver"], "libcuda"),
    fault(&["cuda-bad", "nvrtc"], &[], &["libcuda", "cannot be loaded", "install NVIDIA's driver"], "libcuda"),
    fault(&["cuda-cut", "nvrtc"], &[], &["libcuda.so.1 has no function `cuInit`", "install"], ""),
    fault(BOTH, &[("FAKE_CUDA_INIT", "34")], &["stub library", "LD_LIBRARY_PATH"], ""),
    fault(BOTH, &[("FAKE_CUDA_INIT", "100")], &["no GPU", "nvidia-smi"], ""),
    fault(BOTH, &[("FAKE_CUDA_COUNT", "0")], &["no GPU", "nvidia-smi"], ""),
    fault(
        BOTH,
        &[("FAKE_CUDA_INIT", "100"), ("CUDA_VISIBLE_DEVICES", "7")],
        &["CUDA_VISIBLE_DEVICES is `7`", "unset"],
        "",
    ),
    fault(BOTH, &[("FAKE_CUDA_INIT", "35")], &["too old", "newer driver"], ""),
    fault(BOTH, &[("FAKE_CUDA_VERSION", "11040")], &["supports CUDA 11.4", "newer driver"], ""),
    fault(BOTH, &[("FAKE_CUDA_INIT", "803")], &["different versions", "restart"], ""),
    fault(BOTH, &[("FAKE_CUDA_INIT", "999")], &["CUDA_ERROR_UNKNOWN", "nvidia-smi"], ""),
    // A number that no version of CUDA knows yet.
    fault(BOTH, &[("FAKE_CUDA_INIT", "4242")], &["CUDA error 4242"], ""),
    fault(&["cuda"], &[], &["libnvrtc", "was not found", "pip install nvidia-cuda-nvrtc"], "libnvrtc"),
    fault(&["cuda", "nvrtc-bad"], &[], &["libnvrtc", "cannot be loaded", "pip install nvidia-cuda-nvrtc"], "libnvrtc"),
    fault(&["cuda", "nvrtc-cut"], &[], &["has no function `nvrtcCompileProgram`", "pip install"], "libnvrtc"),
    fault(
        &["cuda", "nvrtc-alone"],
        &[("FAKE_NVRTC_RESULT", "7")],
        &["libnvrtc-builtins.so.12.9", "install NVRTC anew"],
        "libnvrtc",
    ),
    fault(
        BOTH,
        &[("FAKE_NVRTC_VERSION", "1302"), ("FAKE_CUDA_VERSION", "12040")],
        &["NVRTC 13.2 is newer than the driver", "pip install nvidia-cuda-nvrtc-cu12"],
        "libnvrtc",
    ),
    fault(
        BOTH,
        &[("FAKE_CUDA_ARCH", "130")],
        &["cannot compile for Fake GPU 0 (sm_130) (it knows sm_75 to sm_120)"],
        "libnvrtc",
    ),
];

/// Exit code and everything printed.
fn run(fakes: &Fakes, fault: &Fault, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tilework"));
    fakes.hide_others(&mut command, fault.folders);
    command.args(args).envs(fault.env.iter().copied()).env_remove("TILEWORK_DATA");
    // Wide enough that no word is broken off by the table's edge.
    let out = command.env("COLUMNS", "1000").output().unwrap();
    let text = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    assert!(!text.contains("panicked"), "{args:?} {:?} {:?}: {text}", fault.folders, fault.env);
    (out.status.code(), text)
}

#[test]
fn every_fault_is_named_with_its_remedy_and_auto_takes_the_cpu() {
    let Some(fakes) = Fakes::build() else { return };
    let (_, doctor) = run(&fakes, &fault(&[], &[], &[], ""), &["doctor"]);
    fs::write(fakes.path("home/tiny.toml"), TINY).unwrap();
    for (i, fault) in FAULTS.iter().enumerate() {
        let missing = ["libcuda, NVIDIA's driver, was not", "libnvrtc, NVIDIA's run-time compiler, was not"];
        if !fault.without.is_empty() && !missing.iter().any(|m| m.starts_with(fault.without) && doctor.contains(m)) {
            println!("skipped: {:?} {:?}: this machine has a {} of its own", fault.folders, fault.env, fault.without);
            continue;
        }
        let told = |text: &str| fault.words.iter().all(|w| text.contains(w));
        let at = format!("{:?} {:?}", fault.folders, fault.env);
        let (code, text) = run(&fakes, fault, &["doctor"]);
        assert!(code == Some(0) && told(&text), "{at}: {text}");
        let (code, text) = run(&fakes, fault, &["check", "add", "--device", "cuda"]);
        assert!(code == Some(1) && told(&text) && text.contains("remedy: "), "{at}: {text}");
        assert!(text.contains("`--device cpu`") && text.contains("`--device emulated`"), "{at}: {text}");
        let (code, text) = run(&fakes, fault, &["check", "add", "--device", "auto"]);
        assert!(code == Some(1) && text.contains("nothing to compare the CPU with"), "{at}: {text}");
        // All the way takes longer, and is the same behind the choice of the device.
        if i % 6 > 0 {
            continue;
        }
        let train = |device| run(&fakes, fault, &["train", "tiny.toml", "--device", device, "--max-steps", "1"]);
        let (code, text) = train("cuda");
        assert!(code == Some(1) && told(&text) && text.contains("remedy: "), "{at}: {text}");
        let (code, text) = train("auto");
        let reasons = text.lines().filter(|line| line.contains("cpu (auto: ") && line.contains(fault.words[0]));
        assert!(code == Some(0) && reasons.count() == 1 && text.contains("test accuracy"), "{at}: {text}");
    }
}

#[test]
fn a_machine_that_is_right_is_shown_whole() {
    let Some(fakes) = Fakes::build() else { return };
    let right = fault(BOTH, &[], &[], "");
    let (code, text) = run(&fakes, &right, &["doctor"]);
    assert_eq!(code, Some(0));
    for word in ["supports CUDA 12.9", "Fake GPU 0 (sm_90)", "12.9", "libnvrtc.so.12", "libcuda.so.1"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

/// The fake GPU computes nothing, so what `check` finds is no matter here.
#[test]
fn kernels_are_compiled_when_a_gpu_is_opened_and_kept() {
    let Some(fakes) = Fakes::build() else { return };
    let log = fakes.path("compiled");
    let check = |env: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tilework"));
        fakes.hide_others(&mut command, BOTH);
        command.args(["check", "add", "--device", "cuda"]).env("FAKE_NVRTC_LOG", &log).envs(env.iter().copied());
        let text = String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned();
        assert!(!text.contains("panicked") && text.contains("Fake GPU 0 (sm_90"), "{text}");
        let compiled = fs::read_to_string(&log).unwrap_or_default().lines().count();
        let _ = fs::remove_file(&log);
        (text, compiled)
    };
    let count = |text: &str, what: &str| text.lines().filter(|line| line.contains(what)).count();
    let compiling = "compiling kernels for sm_90 (first time on this machine)";
    // Those with kernels for f32, or for no type.
    let used = |k: &Kernel| k.dtype.is_none_or(|dtype| dtype == DType::F32);
    let sources = tilework::kernels::SOURCES.iter();
    let files = sources.filter(|s| s.families.iter().any(|f| f.kernels.iter().any(used))).count();
    let (text, compiled) = check(&[]);
    assert_eq!((count(&text, compiling), count(&text, "note: "), compiled), (1, 0, files), "{text}");
    let (text, compiled) = check(&[]);
    assert_eq!((count(&text, "compiling"), count(&text, "note: "), compiled), (0, 0, 0), "{text}");
    let (_, doctor) = run(&fakes, &fault(BOTH, &[], &[], ""), &["doctor"]);
    assert!(doctor.contains(&format!("tilework/kernels, {files} files")), "{doctor}");
    // A broken entry is compiled anew, and said.
    let entry = fs::read_dir(fakes.path("home/cache/tilework/kernels")).unwrap().next().unwrap().unwrap().path();
    fs::write(&entry, "broken").unwrap();
    let (text, compiled) = check(&[]);
    assert_eq!((count(&text, "note: "), count(&text, "was damaged"), compiled), (1, 1, 1), "{text}");
    let (text, compiled) = check(&[]);
    assert_eq!((count(&text, "note: "), compiled), (0, 0), "{text}");
    // A folder that cannot be written, not even by root.
    fs::write(fakes.path("file"), "").unwrap();
    let folder = fakes.path("file/kernels");
    for _ in 0..2 {
        let (text, compiled) = check(&[("TILEWORK_CACHE", folder.to_str().unwrap())]);
        assert_eq!((count(&text, "note: "), count(&text, "cannot write"), compiled), (1, 1, files), "{text}");
    }
}
