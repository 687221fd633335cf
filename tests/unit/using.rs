//! Trained networks in use: predictions, and training that starts from other weights.

use super::*;

/// Pixels of one colour, as a binary file of the simplest format that the `image` crate writes: a PNG.
fn picture(path: &Path, width: u32, height: u32) {
    image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 99])).save(path).unwrap();
}

#[test]
fn predictions_name_classes_and_pass_over_what_is_no_picture() {
    let p = Place::new();
    p.ok(&["train", "tiny.toml", "--max-steps", "3"]);
    fs::create_dir_all(p.path("photos/more")).unwrap();
    picture(&p.path("photos/a.png"), 32, 32);
    picture(&p.path("photos/more/b.png"), 700, 50);
    let text = p.ok(&["predict", "runs/tiny-001", "photos", "--top", "2"]).out;
    assert_eq!(text.lines().count(), 6, "{text}");
    assert!(text.contains("a.png") && text.contains(" %"), "{text}");
    let lines = p.ok(&["predict", "runs/tiny-001", "photos", "--top", "99", "--json", "--which", "last"]).out;
    for line in lines.lines() {
        let v: serde_json::Value = serde_json::from_str(line).unwrap();
        let list = v["predictions"].as_array().unwrap();
        let sum: f64 = list.iter().map(|p| p["probability"].as_f64().unwrap()).sum();
        assert!(list.len() == 10 && (sum - 1.0).abs() < 1e-9 && line.contains("\"circle\""), "{line}");
    }
    fs::write(p.path("photos/note.png"), "not a picture").unwrap();
    let done = p.run(&["predict", "runs/tiny-001", "photos"]);
    assert_eq!((done.code, done.out.matches(".png").count()), (Some(1), 2));
    assert!(done.err.contains("note.png: no PNG or JPEG picture") && done.err.contains("1 of 3"), "{}", done.err);
    p.fails(&["predict", "runs/tiny-002", "photos"], &["no such folder", "remedy"]);
    fs::create_dir(p.path("empty")).unwrap();
    p.fails(&["predict", "runs/tiny-001", "empty"], &["without PNG or JPEG", "remedy"]);
}

#[test]
fn training_starts_from_other_weights_with_a_head_of_its_own() {
    let p = Place::new();
    p.ok(&["train", "tiny.toml", "--max-steps", "3"]);
    let tiny = TINY.replace("\"fc 12\"", "\"features: fc 12\"").replace("\"fc 10\"", "\"fc: fc 10\"");
    fs::write(p.path("named.toml"), &tiny).unwrap();
    p.ok(&["train", "named.toml", "--max-steps", "3"]);
    let head = tiny.replace("\"fc: fc 10\"", "{ name = \"fc\", layers = [\"fc 11\", \"fc 10\"] }");
    let extra = "freeze = [\"1-3\"]\npretrained.file = \"w.safetensors\"\n";
    fs::write(p.path("tuned.toml"), format!("{extra}{head}")).unwrap();
    p.fails(&["train", "tuned.toml"], &["w.safetensors", "not there", "download.pytorch.org"]);
    fs::copy(p.path("runs/named-001/last/model.safetensors"), p.path("w.safetensors")).unwrap();
    let done = p.ok(&["train", "tuned.toml", "--max-steps", "3"]);
    for words in ["2 tensors loaded", "2 left out (fc.bias, fc.weight)", "4 started anew (fc.0.bias"] {
        assert!(done.err.contains(words), "{}", done.err);
    }
    p.ok(&["train", "--resume", "runs/tuned-001", "--max-steps", "5"]);
    p.fails(&["train", "tuned.toml", "--set", "freeze=[\"feature\"]"], &["`feature` fits no parameter", "3 features"]);
}

#[test]
fn weights_can_be_taken_over() {
    let p = Place::new();
    p.ok(&["train", "tiny.toml"]);
    p.ok(&["train", "tiny.toml", "--init", "runs/tiny-001/best/model.safetensors", "--epochs", "1"]);
    let first = |run: &str| -> f64 {
        p.text(&format!("runs/{run}/steps.csv")).lines().nth(1).unwrap().rsplit(',').next().unwrap().parse().unwrap()
    };
    assert!(first("tiny-002") < 0.95 * first("tiny-001"), "{} {}", first("tiny-001"), first("tiny-002"));
    assert!(p.text("runs/tiny-002/config.toml").contains("best/model.safetensors"));
    fs::write(p.path("wide.toml"), TINY.replace("fc 12", "fc 13")).unwrap();
    let init = ["train", "wide.toml", "--init", "runs/tiny-001/best/model.safetensors"];
    p.fails(&init, &["`2.weight` is [12, 48] and should be [13, 48]", "`4.weight`"]);
    fs::write(p.path("flat.toml"), TINY.replace("\"fc 12\", \"relu\", ", "")).unwrap();
    p.fails(
        &["train", "flat.toml", "--init", "runs/tiny-001/best/model.safetensors"],
        &["`4.bias` is not in this network"],
    );
}
