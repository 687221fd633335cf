//! Schedules against PyTorch's schedulers (`tools/schedules.py`), and what they refuse.

use super::*;
use crate::recipes::Recipe;
use crate::step::Rate;
use serde_json::Value;

fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The rates of all updates of a run.
fn rates(epochs: u32, batches: usize, at: impl Fn(Point) -> Rate) -> Vec<Rate> {
    let points = (0..epochs).flat_map(|epoch| (0..batches).map(move |batch| Point { epoch, epochs, batch, batches }));
    points.map(at).collect()
}

#[test]
fn schedules_agree_with_pytorch() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/schedules.json");
    let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for case in all.as_array().unwrap() {
        let schedule: Schedule = serde_json::from_value(case["schedule"].clone()).unwrap();
        schedule.check().unwrap();
        let (lr, momentum) = (case["lr"].as_f64().unwrap(), case["momentum"].as_f64().unwrap());
        let [epochs, batches] = ["epochs", "batches"].map(|key| case[key].as_u64().unwrap());
        let first = Rate { lr, momentum, decay: 0.25 };
        let got = rates(epochs as u32, batches as usize, |at| schedule.at(first, at));
        let close = |what: &str, got: f64, want: f64, i: usize| {
            assert!((got - want).abs() <= 1e-12 * lr, "{schedule:?}, {what} of update {i}: {got}, PyTorch {want}");
        };
        let lrs = numbers(&case["lrs"]);
        let momenta = if case["momenta"].is_null() { vec![momentum; lrs.len()] } else { numbers(&case["momenta"]) };
        assert_eq!(got.len(), lrs.len());
        for (i, rate) in got.iter().enumerate() {
            close("rate", rate.lr, lrs[i], i);
            close("momentum", rate.momentum, momenta[i], i);
            assert_eq!(rate.decay, 0.25);
        }
    }
}

#[test]
fn phases_follow_one_another() {
    let set = ["phases=[{epochs = 1}, {epochs = 4, lr = 0.4, cycle = 2}, {epochs = 1, lr = 0.05}]", "epochs=0"];
    let recipe = Recipe::load("a1-lenet", &set.map(String::from)).unwrap();
    assert_eq!(recipe.epochs, 6);
    let lrs = |base: f64| -> Vec<f64> {
        let first = Rate { lr: base, momentum: 0.9, decay: 0.0 };
        rates(6, 4, |at| Phase::at(&recipe.phases, first, 1e-3, at)).iter().map(|r| r.lr).collect()
    };
    let got = lrs(1e-3);
    let cosine = |i: usize| 0.4 * (1.0 + (std::f64::consts::PI * i as f64 / 8.0).cos()) / 2.0;
    let want = (0..4).map(|_| 1e-3).chain((0..16).map(|i| cosine(i % 8))).chain((0..4).map(|_| 0.05));
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() < 1e-15, "{got} {want}");
    }
    // A group of twice the rate has twice the rate throughout.
    assert!(lrs(2e-3).iter().zip(&got).all(|(twice, once)| (twice / once - 2.0).abs() < 1e-12));
}

#[test]
fn a_one_cycle_of_few_updates_is_finite() {
    let one_cycle: Schedule = serde_json::from_str(r#"{"kind": "one-cycle", "pct_start": 0.5}"#).unwrap();
    for (epochs, batches) in [(1, 1), (1, 2), (2, 1), (1, 3)] {
        let first = Rate { lr: 0.1, momentum: 0.9, decay: 0.0 };
        let got = rates(epochs, batches, |at| one_cycle.at(first, at));
        assert!(got.iter().all(|r| r.lr.is_finite() && r.lr <= 0.1 && r.momentum.is_finite()), "{got:?}");
    }
}

/// A group that goes through its schedule in epochs of its own, and stays at its end.
#[test]
fn a_group_has_epochs_of_its_own() {
    let first = Rate { lr: 0.8, ..Rate::default() };
    let linear = Schedule::from(Curve::Linear { end_factor: 0.25, over: None });
    let at = |epoch, batch| linear.at(first, Point { epoch, epochs: 5, batch, batches: 4 }.within(2)).lr;
    assert_eq!([at(0, 0), at(1, 0), at(1, 2)].map(|x| (x * 1e6).round()), [8e5, 5e5, 3.5e5]);
    assert_eq!([at(2, 0), at(4, 3)].map(|x| (x * 1e6).round()), [2e5; 2]);
}

#[test]
fn mistakes_in_schedules_are_named() {
    for (set, word) in [
        ("schedule={kind = \"step\", every = 0, gamma = 0.1}", "schedule.every"),
        ("schedule={kind = \"one-cycle\", pct_start = 2.0}", "schedule.pct_start"),
        ("schedule={kind = \"one-cycle\", pct_strat = 0.2}", "did you mean `pct_start`"),
        ("schedule={kind = \"onecycle\"}", "did you mean `one-cycle`"),
        ("schedule={kind = \"steps\", milestones = [3, 2]}", "rising order"),
        ("schedule={kind = \"warm-restarts\", t_0 = 0}", "schedule.t_0"),
        ("schedule={kind = \"constant\", warmup = -1}", "schedule.warmup"),
        ("schedule={kind = \"constant\", warm_up = 1}", "unknown field `warm_up`"),
        ("phases=[{epochs = 3, cycle = 2}]", "phases.0.cycle"),
        ("phases=[{epochs = 1}]", "the phases take 1"),
        ("phases=[{epochs = 2, lr = -1.0}]", "phases.0.lr"),
    ] {
        let e = Recipe::load("a1-lenet", &[set.to_string()]).unwrap_err().to_string();
        assert!(e.contains(word) && e.contains("remedy"), "{set}: {e}");
    }
    let both = ["phases=[{epochs = 2}]", "schedule.kind=cosine"].map(String::from);
    assert!(Recipe::load("a1-lenet", &both).unwrap_err().to_string().contains("[[phases]]"));
    let still = ["optimizer.momentum=0.0", "schedule.kind=one-cycle"].map(String::from);
    let e = Recipe::load("a1-lenet", &still).unwrap_err().to_string();
    assert!(e.contains("cycle_momentum"), "{e}");
}
