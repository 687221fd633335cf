//! The program as its users meet it: what it prints, what it leaves, and how it takes abuse.

#[path = "unit/hardship.rs"]
mod hardship;
#[path = "unit/using.rs"]
mod using;

use assert_cmd::Command;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;
#[path = "unit/figures.rs"]
mod figures;

/// A network that trains in a blink; 100 steps an epoch.
const TINY: &str = r#"
about = "tiny"
epochs = 2
batch_size = 100
layers = ["max_pool 8", "flatten", "fc 12", "relu", "fc 10"]

[data]
source = "shapes"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[optimizer]
kind = "adam"
lr = 0.01
"#;

/// A folder to work in, with the recipe `tiny.toml`.
struct Place(tempfile::TempDir);

/// What a command printed and how it ended.
struct Done {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Self {
        Place::with(TINY)
    }

    fn with(recipe: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tiny.toml"), recipe).unwrap();
        Place(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn std_command(&self, args: &[&str]) -> std::process::Command {
        let mut c = std::process::Command::new(env!("CARGO_BIN_EXE_tilework"));
        c.args(args).current_dir(self.0.path());
        c.env_remove("TILEWORK_DATA").env("XDG_CACHE_HOME", self.path("cache")).env("HOME", self.0.path());
        c.stdin(Stdio::null());
        c
    }

    /// Runs a command to its end, whatever that is.
    fn run(&self, args: &[&str]) -> Done {
        let o = Command::from_std(self.std_command(args)).timeout(Duration::from_secs(300)).output().unwrap();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        let done = Done { code: o.status.code(), out: text(o.stdout), err: text(o.stderr) };
        assert!(!done.err.contains("panicked"), "{args:?}: {}", done.err);
        done
    }

    fn ok(&self, args: &[&str]) -> Done {
        let done = self.run(args);
        assert_eq!(done.code, Some(0), "{args:?}: {}{}", done.out, done.err);
        done
    }

    /// Runs a command that must fail with code 1, a message that begins with `error: ` and has
    /// these words, and nothing on standard output.
    fn fails(&self, args: &[&str], words: &[&str]) -> Done {
        let done = self.run(args);
        assert_eq!(done.code, Some(1), "{args:?}: {}{}", done.out, done.err);
        assert!(done.err.lines().any(|l| l.starts_with("error: ")), "{args:?}: {}", done.err);
        for word in words {
            assert!(done.err.contains(word), "{args:?}: `{word}` is not in: {}", done.err);
        }
        done
    }

    fn shell(&self, script: &str) -> Done {
        let mut c = std::process::Command::new("sh");
        c.args(["-c", script, env!("CARGO_BIN_EXE_tilework")]).current_dir(self.0.path());
        let o = Command::from_std(c).timeout(Duration::from_secs(300)).output().unwrap();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        Done { code: o.status.code(), out: text(o.stdout), err: text(o.stderr) }
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let path = self.path(name);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8(self.bytes(name)).unwrap()
    }

    /// `metrics.csv` without the columns that measure time.
    fn metrics(&self, run: &str) -> Vec<String> {
        let text = self.text(&format!("{run}/metrics.csv"));
        assert!(text.lines().next().unwrap().ends_with(",seconds,images_per_second"));
        text.lines().map(|l| l.rsplitn(3, ',').last().unwrap().to_string()).collect()
    }

    /// Two runs came to the same end by the same way, to the last bit.
    fn assert_equal(&self, a: &str, b: &str) {
        for file in ["last/model.safetensors", "last/optimizer.safetensors", "steps.csv"] {
            assert!(self.bytes(&format!("{a}/{file}")) == self.bytes(&format!("{b}/{file}")), "{file} differs");
        }
        assert_eq!(self.metrics(a), self.metrics(b));
    }
}

#[test]
fn a_run_leaves_everything_and_can_be_evaluated() {
    let p = Place::new();
    let done = p.ok(&["train", "tiny.toml", "--device", "cpu"]);
    for word in ["test accuracy", "checker", "everything is in runs/tiny-001", "tilework eval runs/tiny-001"] {
        assert!(done.out.contains(word), "`{word}` is not in: {}", done.out);
    }
    assert_eq!(done.err.lines().filter(|l| l.starts_with("epoch ")).count(), 2, "{}", done.err);
    assert!(!done.err.contains('\x1b') && !done.err.contains('\r'));
    for file in [
        "config.toml",
        "metrics.csv",
        "steps.csv",
        "best/model.safetensors",
        "last/optimizer.safetensors",
        "last/manifest.json",
    ] {
        assert!(p.path("runs/tiny-001").join(file).is_file(), "{file}");
    }
    assert_eq!(p.text("runs/tiny-001/steps.csv").lines().count(), 201);
    let metrics = p.metrics("runs/tiny-001");
    assert_eq!(metrics.len(), 3);

    // The best checkpoint's numbers are those of its epoch, and --json is one object with them.
    let json: serde_json::Value =
        serde_json::from_str(&p.ok(&["eval", "runs/tiny-001", "--json", "--which", "last"]).out).unwrap();
    let last: Vec<&str> = metrics[2].split(',').collect();
    assert_eq!(json["loss"].as_f64().unwrap(), last[3].parse::<f64>().unwrap());
    assert_eq!(json["accuracy"].as_f64().unwrap(), last[4].parse::<f64>().unwrap());
    assert_eq!(json["count"], 2000);
    let mean = json["per_class"].as_object().unwrap().values().map(|v| v.as_f64().unwrap()).sum::<f64>() / 10.0;
    assert!((mean - json["accuracy"].as_f64().unwrap()).abs() < 1e-12);
    let text = p.ok(&["eval", "runs/tiny-001", "--json"]).out;
    assert_eq!(text.lines().count(), 1);
    let at = |key: &str| text.find(&format!("\"{key}\"")).unwrap();
    assert!(
        at("accuracy") < at("loss")
            && at("count") < at("circle")
            && at("circle") < at("square")
            && at("stripes") < at("checker")
    );
    let best = metrics[1..].iter().map(|l| l.split(',').nth(4).unwrap().parse::<f64>().unwrap()).fold(0.0, f64::max);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["accuracy"].as_f64(), Some(best));
    assert!(p.ok(&["eval", "runs/tiny-001"]).out.contains("checkpoint best"));

    // A finished run says so; a second run gets a folder of its own and does the same.
    let done = p.ok(&["train", "--resume", "runs/tiny-001"]);
    assert!(done.out.contains("finished"), "{}", done.out);
    p.ok(&["train", "tiny.toml", "--threads", "1"]);
    p.assert_equal("runs/tiny-001", "runs/tiny-002");
}

#[test]
fn options_end_up_in_the_config() {
    let p = Place::new();
    p.ok(&[
        "train",
        "tiny.toml",
        "--epochs",
        "1",
        "--max-steps",
        "3",
        "--batch-size",
        "50",
        "--lr",
        "0.5",
        "--seed",
        "7",
        "--no-shuffle",
        "--set",
        "optimizer.eps=1e-6",
        "--out",
        "elsewhere/runs",
        "--log-every",
        "1",
    ]);
    let config: toml::Table = toml::from_str(&p.text("elsewhere/runs/tiny-001/config.toml")).unwrap();
    let recipe = &config["recipe"];
    assert_eq!(recipe["epochs"].as_integer(), Some(1));
    assert_eq!(recipe["batch_size"].as_integer(), Some(50));
    assert_eq!(recipe["seed"].as_integer(), Some(7));
    assert_eq!(recipe["shuffle"].as_bool(), Some(false));
    assert_eq!(recipe["optimizer"]["lr"].as_float(), Some(0.5));
    assert_eq!(recipe["optimizer"]["eps"].as_float(), Some(1e-6));
    assert_eq!(recipe["optimizer"]["betas"][1].as_float(), Some(0.999));
    assert_eq!(config["run"]["device"].as_str(), Some("cpu"));
    assert!(!p.path("runs").exists());
}

#[test]
fn mistakes_are_told_and_leave_nothing() {
    let p = Place::new();
    let mut words = TINY.replace("batch_size", "batchsize");
    fs::write(p.path("typo.toml"), &words).unwrap();
    words = TINY.replace("\"flatten\", ", "");
    fs::write(p.path("image.toml"), &words).unwrap();
    fs::write(p.path("cifar.toml"), TINY.replace("\"shapes\"", "\"cifar10\"")).unwrap();
    fs::write(p.path("five.toml"), TINY.replace("fc 10\"", "fc 5\"")).unwrap();
    p.fails(&["train", "quickstrat"], &["quickstrat", "quickstart", "remedy"]);
    p.fails(&["train", "none.toml"], &["none.toml", "remedy"]);
    p.fails(&["train", "typo.toml"], &["typo.toml", "batchsize", "line 4"]);
    p.fails(&["train", "typo.toml", "--epochs", "3"], &["batchsize", "line 4"]);
    p.fails(&["train", "tiny.toml", "--set", "optimizer.lrr=1"], &["lrr", "remedy"]);
    p.fails(&["train", "tiny.toml", "--set", "loss=nll"], &["log_softmax"]);
    p.fails(&["train", "image.toml"], &["fc 12", "put `flatten` before it"]);
    p.fails(&["train", "five.toml"], &["10 classes", "fc 10"]);
    p.fails(&["train", "tiny.toml", "--data", "."], &["shapes", "remedy"]);
    p.fails(&["train", "cifar.toml"], &["cifar10 is not on this machine", "tilework data fetch cifar10"]);
    p.fails(&["train", "cifar.toml", "--data", "no/such"], &["no/such", "remedy"]);
    p.fails(&["train", "cifar.toml", "--data", "tiny.toml"], &["tiny.toml", "neither CIFAR-10"]);
    p.fails(&["train", "tiny.toml", "--init", "none.safetensors"], &["none.safetensors"]);
    p.fails(&["train", "tiny.toml", "--init", "tiny.toml"], &["not a whole safetensors file"]);
    p.fails(&["train", "--resume", "runs/tiny-001"], &["runs/tiny-001", "no such folder"]);
    p.fails(&["eval", "runs/tiny-001"], &["runs/tiny-001", "no such folder"]);
    p.fails(&["eval", "."], &["config.toml"]);
    p.fails(&["summary", "nothing"], &["nothing"]);
    p.fails(&["recipes", "nothing"], &["nothing", "quickstart"]);
    p.fails(&["data", "info", "no/such"], &["no/such"]);
    p.fails(&["train", "tiny.toml", "--out", "tiny.toml"], &["tiny.toml"]);
    assert!(!p.path("runs").exists());
    // Usage errors are clap's, with code 2.
    for (args, word) in [
        (&["train", "--threads", "0"][..], "--threads"),
        (&["train", "--lr", "nan"], "--lr"),
        (&["train", "--epochs", "0"], "--epochs"),
        (&["train", "--set", "epochs"], "KEY=VALUE"),
        (&["train", "--device", "gpu"], "auto, cpu"),
        (&["train", "--bogus"], "--bogus"),
        (&["train", "--resume", "runs/x-001", "--lr", "1"], "cannot be used with"),
        (&["tarin"], "train"),
        (&["data", "fetch", "mnist"], "cifar10"),
    ] {
        let done = p.run(args);
        assert_eq!(done.code, Some(2), "{args:?}");
        assert!(done.err.starts_with("error: ") && done.err.contains(word), "{args:?}: {}", done.err);
    }
}

#[test]
fn a_run_in_pieces_equals_a_run_at_once() {
    let p = Place::new();
    p.ok(&["train", "tiny.toml"]);
    p.ok(&["train", "tiny.toml", "--max-steps", "50"]);
    p.ok(&["train", "--resume", "runs/tiny-002", "--max-steps", "130", "--threads", "1"]);
    let done = p.ok(&["train", "--resume", "runs/tiny-002", "--max-steps", "130"]);
    assert!(done.out.contains("finished"), "{}", done.out);
    let done = p.ok(&["train", "--resume", "runs/tiny-002"]);
    assert!(done.out.contains("goes on after step 130"), "{}", done.out);
    p.assert_equal("runs/tiny-001", "runs/tiny-002");
    // More epochs go on where the run ended, and the config says so.
    p.ok(&["train", "--resume", "runs/tiny-002", "--epochs", "3"]);
    assert_eq!(p.metrics("runs/tiny-002").len(), 4);
    assert!(p.text("runs/tiny-002/config.toml").contains("epochs = 3"));
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run() {
    let p = Place::new();
    let done =
        p.fails(&["train", "tiny.toml", "--lr", "1e30"], &["at step", "epoch 1", "fc 1", "no checkpoint yet", "--lr"]);
    assert!(done.err.contains("NaN") || done.err.contains("inf"), "{}", done.err);
    p.ok(&["train", "tiny.toml", "--max-steps", "100"]);
    let config = p.text("runs/tiny-002/config.toml");
    fs::write(p.path("runs/tiny-002/config.toml"), config.replace("lr = 0.01", "lr = 1e30")).unwrap();
    p.fails(
        &["train", "--resume", "runs/tiny-002"],
        &["epoch 2", "the last good checkpoint is runs/tiny-002/last, after step 100 and 1 whole epochs"],
    );
    p.ok(&["eval", "runs/tiny-002", "--which", "last"]);
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let p = Place::new();
    p.ok(&["train", "tiny.toml", "--max-steps", "100"]);
    let file = "runs/tiny-001/last/optimizer.safetensors";
    let whole = p.bytes(file);
    fs::write(p.path(file), &whole[..whole.len() / 2]).unwrap();
    let (expected, got) = (format!("expected {} bytes", whole.len()), format!("got {}", whole.len() / 2));
    p.fails(&["train", "--resume", "runs/tiny-001"], &[file, &expected, &got, "remedy"]);
    p.fails(&["eval", "runs/tiny-001", "--which", "last"], &[file, &expected]);
    // The best one is whole; without it, the last one's damage is told, not hidden.
    p.ok(&["eval", "runs/tiny-001"]);
    fs::remove_dir_all(p.path("runs/tiny-001/best")).unwrap();
    p.fails(&["eval", "runs/tiny-001"], &[file]);
    fs::write(p.path(file), &whole).unwrap();
    p.ok(&["eval", "runs/tiny-001"]);
    p.ok(&["train", "--resume", "runs/tiny-001", "--max-steps", "101"]);
}

#[test]
fn the_small_commands_print_what_they_should() {
    let p = Place::new();
    let done = p.ok(&["recipes"]);
    assert!(done.out.contains("quickstart") && done.out.contains("a1-lenet"));
    assert!(p.ok(&["recipes", "--keys"]).out.contains("| `label_smoothing` |"));
    let layers = p.ok(&["recipes", "--help"]).out;
    assert!(tilework::nn::LAYERS.iter().all(|k| layers.contains(k.form)), "{layers}");
    let done = p.ok(&["recipes", "a1-lenet"]);
    fs::write(p.path("mine.toml"), done.out).unwrap();
    let mine = p.ok(&["summary", "mine.toml"]).out;
    assert_eq!(mine, p.ok(&["summary", "a1-lenet"]).out);
    assert!(mine.contains("62,006") && mine.contains("conv 5x5, 6 channels"), "{mine}");
    fs::write(
        p.path("block.toml"),
        TINY.replace("\"max_pool 8\"", "{ residual = [\"conv 3x3, 3 channels, pad 1\", \"relu\"] }, \"max_pool 8\""),
    )
    .unwrap();
    let block = p.ok(&["summary", "block.toml", "--batch-size", "7", "--set", "epochs=1"]).out;
    let keys: Vec<&str> =
        block.lines().filter_map(|l| l.split_whitespace().next()).filter(|k| k.starts_with('0')).collect();
    assert_eq!(keys, ["0", "0.0", "0.1"], "{block}");
    let fused = p.ok(&["summary", "block.toml", "--fused", "--batch-size", "7"]).out;
    let into: Vec<&str> =
        fused.lines().filter(|l| l.contains("  relu  ")).filter_map(|l| l.split_whitespace().last()).collect();
    assert!(into.contains(&"0.0") && !block.contains("fused into"), "{fused}");
    // What the convolution hands to the ReLU is not stored then.
    assert!(block.contains("activations      0.25 MiB") && fused.contains("activations      0.17 MiB"), "{fused}");
    let pooled = p.ok(&["summary", "e1-resnet9-onecycle", "--fused"]).out;
    let into = |layer: &str, end: &str| {
        let line = pooled.lines().find(|l| l.trim_start().starts_with(layer)).unwrap();
        assert!(line.ends_with(end), "{pooled}");
    };
    into("conv2.3", "8.00  conv2.1");
    into("conv2.2", "0.00  conv2.1");
    // A sum is stored, what its batch-norm adds to it is not.
    into("res1 ", "0.00  res1.1.1");
    into("res1.1.2", "8.00  res1.1.1");
    let done = p.ok(&["doctor"]);
    for word in ["threads", "tilework data fetch cifar10", "runs", "cpu"] {
        assert!(done.out.contains(word), "{}", done.out);
    }
    assert!(p.ok(&["data", "info"]).out.contains("shapes"));
    assert!(p.ok(&["data", "info", "shapes"]).out.contains("crescent"));
    p.fails(&["data", "info", "cifar10"], &["data fetch cifar10"]);
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(p.ok(&["completions", shell]).out.contains("resume"), "{shell}");
    }
    assert!(p.ok(&["--version"]).out.starts_with("tilework "));
    for command in ["train", "eval", "summary", "recipes", "data", "doctor", "check", "bench", "kernels", "completions"]
    {
        assert!(p.ok(&["--help"]).out.contains(command));
        p.ok(&[command, "--help"]);
    }
}

/// A reader that goes away is no error, and never stops a training run.
#[cfg(unix)]
#[test]
fn closed_pipes_are_taken_quietly() {
    let p = Place::new();
    for command in
        ["recipes", "recipes quickstart", "summary quickstart", "completions bash", "doctor", "data info shapes"]
    {
        let done = p.shell(&format!("\"$0\" {command} | true"));
        assert_eq!((done.code, done.err.as_str()), (Some(0), ""), "{command}");
    }
    let mut child = p
        .std_command(&["train", "tiny.toml", "--log-every", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(p.path("runs/tiny-001/last/manifest.json").exists());
    assert_eq!(p.metrics("runs/tiny-001").len(), 3);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_standard_output_is_an_error() {
    let done = Place::new().shell("\"$0\" recipes > /dev/full");
    assert_eq!(done.code, Some(1));
    assert!(done.err.starts_with("error: cannot write to standard output"), "{}", done.err);
}

/// Waits for the first line on standard error: then the run is under way.
#[cfg(unix)]
fn under_way(child: &mut Child) -> BufReader<std::process::ChildStderr> {
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    err.read_line(&mut line).unwrap();
    assert!(line.starts_with("step "), "{line}");
    err
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_saves_and_goes_on() {
    let p = Place::new();
    p.ok(&["train", "tiny.toml", "--epochs", "60", "--max-steps", "400"]);
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let args = ["train", "tiny.toml", "--epochs", "60", "--log-every", "10"];
        let mut child = p.std_command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let err = under_way(&mut child);
        assert!(std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let rest: Vec<String> = err.lines().map(|l| l.unwrap()).collect();
        assert!(rest.iter().any(|l| l.starts_with("stopping")), "{rest:?}");
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(code));
        let out = String::from_utf8(out.stdout).unwrap();
        let run = out.lines().last().unwrap().rsplit(' ').next().unwrap();
        assert!(out.contains(&format!("tilework train --resume {run}")), "{out}");
        let steps = p.text(&format!("{run}/steps.csv")).lines().count() - 1;
        assert!((10..400).contains(&steps), "{steps}");
        p.ok(&["train", "--resume", run, "--max-steps", "400"]);
        p.assert_equal("runs/tiny-001", run);
    }
}

#[cfg(unix)]
#[test]
fn two_processes_do_not_train_in_one_folder() {
    let p = Place::new();
    let args = ["train", "tiny.toml", "--epochs", "1000", "--log-every", "1"];
    let mut child = p.std_command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let err = under_way(&mut child);
    p.fails(&["train", "--resume", "runs/tiny-001"], &["another process"]);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(err);
    p.ok(&["train", "--resume", "runs/tiny-001", "--epochs", "1000", "--max-steps", "5"]);
}

/// Killed at any moment, in a step, an evaluation or a save, a run goes on as if nothing had been.
#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    // Ten steps an epoch, so that a good part of the time is spent saving.
    let recipe = TINY
        .replace("batch_size = 100", "batch_size = 1000")
        .replace("epochs = 2", "epochs = 10")
        .replace("fc 12", "fc 600");
    let p = Place::with(&recipe);
    p.ok(&["train", "tiny.toml"]);
    let start = |args: &[&str]| p.std_command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut child = start(&["train", "tiny.toml"]);
    let run: &Path = &p.path("runs/tiny-002");
    let wait_for = |path: PathBuf| {
        for _ in 0..10_000 {
            if path.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("{} did not appear", path.display());
    };
    // While a thread is writing a checkpoint, and training goes on.
    for name in ["best.new", "last.new", "last.new/model.safetensors"] {
        wait_for(run.join(name));
        child.kill().unwrap();
        child.wait().unwrap();
        child = start(&["train", "--resume", "runs/tiny-002"]);
    }
    let mut killed = 0;
    for delay in [0u64, 30, 220, 157, 330, 260, 289] {
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        child = start(&["train", "--resume", "runs/tiny-002"]);
    }
    assert!(child.wait().unwrap().success());
    assert!(killed >= 3, "only {killed} kills came before the end");
    p.assert_equal("runs/tiny-001", "runs/tiny-002");
    assert_eq!(p.bytes("runs/tiny-001/best/model.safetensors"), p.bytes("runs/tiny-002/best/model.safetensors"));
    let mut left: Vec<_> = fs::read_dir(run).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left.join(" "), "best config.toml figures last metrics.csv report.html steps.csv summary.json");
}

/// A file lies where a checkpoint is to be written: the run ends with an error, and goes on when it is gone.
#[test]
fn a_run_that_cannot_save_fails_and_goes_on_later() {
    let p = Place::with(&TINY.replace("epochs = 2", "epochs = 4"));
    p.ok(&["train", "tiny.toml"]);
    p.ok(&["train", "tiny.toml", "--max-steps", "150"]);
    fs::write(p.path("runs/tiny-002/last.new"), "").unwrap();
    p.fails(&["train", "--resume", "runs/tiny-002"], &["last.new", "go on from the last checkpoint with"]);
    fs::remove_file(p.path("runs/tiny-002/last.new")).unwrap();
    p.ok(&["train", "--resume", "runs/tiny-002"]);
    p.assert_equal("runs/tiny-001", "runs/tiny-002");
}
