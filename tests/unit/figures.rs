//! What a run draws, and what compares and repeats runs.

use super::{Place, TINY};
use std::fs;

/// One epoch of a few steps.
fn short(p: &Place, more: &[&str]) {
    p.ok(&[&["train", "tiny.toml", "--device", "cpu", "--epochs", "1"], more].concat());
}

#[test]
fn a_run_leaves_figures_and_a_report() {
    let p = Place::with(&TINY.replace("epochs = 2", "epochs = 2\nreported = 41.5"));
    let done = p.ok(&["train", "tiny.toml", "--device", "cpu"]);
    assert!(
        done.out.contains("reported 41.5 %, this run ") && done.out.contains("runs/tiny-001/report.html"),
        "{}",
        done.out
    );
    for name in ["loss", "accuracy", "lr"] {
        let svg = p.text(&format!("runs/tiny-001/figures/{name}.svg"));
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{name}");
    }
    let html = p.text("runs/tiny-001/report.html");
    for word in ["reported 41.5 %", "Most confused", "Top losses", "data:image/png;base64,", "optimizer", "checker"] {
        assert!(html.contains(word), "{word}");
    }
    // Nothing is fetched from anywhere.
    assert!(!html.replace("http://www.w3.org/2000/svg", "").contains("http"));
    assert_eq!((html.matches("<svg").count(), html.matches("<img").count()), (5, 36));
    let done = p.ok(&["report", "runs/tiny-001", "--which", "last", "--out", "again.html"]);
    assert!(done.out.contains("again.html"), "{}", done.out);
    assert!(p.text("again.html") == html, "the same state has the same report");
}

#[test]
fn an_interrupted_run_has_a_report_too() {
    let p = Place::new();
    short(&p, &["--max-steps", "7"]);
    let run = p.path("runs/tiny-001");
    fs::remove_dir_all(run.join("last")).unwrap();
    let csv = p.text("runs/tiny-001/steps.csv");
    fs::write(run.join("steps.csv"), &csv[..csv.len() - 3]).unwrap();
    fs::remove_file(run.join("metrics.csv")).unwrap();
    let done = p.ok(&["report", "runs/tiny-001"]);
    assert!(done.out.contains("the curves alone"), "{}", done.out);
    assert!(p.text("runs/tiny-001/report.html").contains("0 of 1 epochs, 6 steps"));
    fs::write(run.join("steps.csv"), "step,epoch,lr,loss\n1,1,x,2\n").unwrap();
    p.fails(&["report", "runs/tiny-001"], &["steps.csv", "line 2", "remedy"]);
    p.fails(&["report", "runs/tiny-002"], &["no such folder"]);
}

#[test]
fn figures_that_cannot_be_drawn_do_not_end_a_run() {
    let p = Place::new();
    short(&p, &["--max-steps", "2"]);
    fs::remove_dir_all(p.path("runs/tiny-001/figures")).unwrap();
    fs::write(p.path("runs/tiny-001/figures"), "in the way").unwrap();
    let done = p.ok(&["train", "--resume", "runs/tiny-001"]);
    assert_eq!(done.err.matches("warning: no figures").count(), 1, "{}", done.err);
}

#[test]
fn runs_are_compared() {
    let p = Place::new();
    short(&p, &[]);
    short(&p, &["--seed", "1"]);
    let summary = p.text("runs/tiny-002/summary.json");
    fs::write(p.path("runs/tiny-002/summary.json"), summary.replace("checker", "<other>")).unwrap();
    let done = p.ok(&["compare", "runs/tiny-001", "runs/tiny-002/", "--out", "c.html"]);
    assert!(done.out.contains("tiny-002") && done.out.contains("1/1") && done.out.contains("c.html"), "{}", done.out);
    // The column of the only key in which they differ.
    assert!(done.out.lines().next().is_some_and(|l| l.starts_with("run ") && l.contains(" seed ")), "{}", done.out);
    let html = p.text("c.html");
    assert!(html.matches("<svg").count() == 6 && html.contains("&lt;other&gt;") && !html.contains("<other>"));
    let json: serde_json::Value = serde_json::from_str(&p.ok(&["compare", "runs/tiny-001", "--json"]).out).unwrap();
    assert_eq!(json[0]["parameters"], 718);
    let csv = p.ok(&["compare", "runs/tiny-001", "runs/tiny-002", "--csv"]).out;
    assert!(csv.lines().count() == 3 && csv.lines().all(|l| l.split(',').count() == 14), "{csv}");
    // What a run has kept of its recipe is a recipe.
    assert_eq!(p.ok(&["summary", "runs/tiny-001/config.toml"]).out, p.ok(&["summary", "tiny.toml"]).out);
    // A folder of runs stands for them; each once.
    assert_eq!(p.ok(&["compare", "runs/tiny-001", "runs"]).out.matches("tiny-00").count(), 2);
    p.fails(&["compare", "runs/tiny-001", "runs/tiny-001/last"], &["no config.toml"]);
    p.fails(&["compare", "runs/tiny-001", "--out", "no/c.html"], &["no/c.html"]);
}

/// Ctrl-C while the test set was evaluated leaves a run like this one.
#[test]
fn a_test_that_is_missing_is_made_on_going_on() {
    let p = Place::new();
    short(&p, &["--set", "data.validation=50"]);
    let summary = || -> serde_json::Value { serde_json::from_str(&p.text("runs/tiny-001/summary.json")).unwrap() };
    let whole = summary();
    let mut cut = whole.clone();
    cut["test"].take();
    fs::write(p.path("runs/tiny-001/summary.json"), cut.to_string()).unwrap();
    let done = p.ok(&["train", "--resume", "runs/tiny-001"]);
    assert!(done.out.contains("test accuracy  "), "{}", done.out);
    assert!(whole["test"]["accuracy"].is_f64());
    assert_eq!(summary(), whole);
    let done = p.ok(&["train", "--resume", "runs/tiny-001"]);
    assert!(done.out.contains("the run is finished"), "{}", done.out);
    // The recipe of a run, under its name.
    p.ok(&["train", "runs/tiny-001/config.toml", "--max-steps", "1"]);
    assert!(p.path("runs/tiny-002/metrics.csv").exists());
}

#[test]
fn a_sweep_runs_what_is_missing() {
    let p = Place::new();
    let sweep = |lr: &str| {
        ["sweep", "tiny.toml", "--device", "cpu", "--epochs", "1", "--set", lr, "--seeds", "0,1"].map(String::from)
    };
    let ok = |lr: &str| p.ok(&sweep(lr).each_ref().map(String::as_str));
    assert!(ok("optimizer.lr=0.01").out.contains(" ± "));
    let csv = p.text("runs/tiny-sweep/sweep.csv");
    assert!(csv.starts_with("optimizer.lr,seed,run,test_accuracy,seconds\n") && csv.lines().count() == 3, "{csv}");
    assert!(p.text("runs/tiny-sweep/sweep.svg").contains("optimizer.lr"));
    let again = ok("optimizer.lr=0.001,0.01");
    assert_eq!(again.err.matches(": finished, runs/tiny-sweep/").count(), 2, "{}", again.err);
    assert!(p.path("runs/tiny-sweep/tiny-004").exists() && !p.path("runs/tiny-sweep/tiny-005").exists());
    // Another sweep takes no row away.
    let [once, before] = [ok("optimizer.lr=0.001").out, p.text("runs/tiny-sweep/sweep.csv")];
    assert!(once.contains("with 2 runs of other sweeps") && before.lines().count() == 5, "{once}{before}");
    p.ok(&["sweep", "tiny.toml", "--device", "cpu", "--epochs", "2", "--max-steps", "200", "--seeds", "0,1"]);
    let after = p.text("runs/tiny-sweep/sweep.csv");
    let lines: Vec<&str> = after.lines().collect();
    assert_eq!(lines[0], "epochs,optimizer.lr,seed,run,test_accuracy,seconds");
    assert!(
        lines.len() == 7 && lines[1].starts_with("2,0.01,0,tiny-005,") && lines[3].starts_with("1,0.01,0,tiny-001,")
    );
    // With what was measured.
    assert!(before.lines().skip(1).all(|l| after.contains(l.split_once(",tiny-").unwrap().1)), "{before}{after}");
    // One that diverges keeps no other from its turn.
    let wild = ["sweep", "tiny.toml", "--max-steps", "9", "--out", "wild", "--set", "optimizer.lr=1e300,0.01"];
    let done = p.ok(&wild);
    assert!(done.out.contains("diverged") && done.err.contains("goes on without it"), "{}{}", done.out, done.err);
    assert!(p.ok(&["compare", "wild/tiny-sweep"]).out.contains("tiny-002"));
    let bad = |set: &str, words: &[&str]| p.fails(&["sweep", "tiny.toml", "--out", "x", "--set", set], words);
    bad("optimizer.lrr=1,2", &["did you mean `lr`?"]);
    bad("optimizer.lr=1,1", &["twice"]);
    bad("optimizer.lr=1,", &["empty"]);
    bad("optimizer.lr=1", &["one value"]);
    bad("optimizer.lr=0.1,fast", &["fast"]);
    assert!(!p.path("x").exists());
}
