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
fn a_run_knows_its_pictures_and_their_classes() {
    let p = Place::with(&TINY.replace("\"shapes\"", "\"image-folder\""));
    for folder in ["d/train/cat", "d/train/dog", "d/test/cat"] {
        fs::create_dir_all(p.path(folder)).unwrap();
        (0..4).for_each(|n| picture(&p.path(&format!("{folder}/{n}.png")), 12, 9));
    }
    let train = ["train", "tiny.toml", "--data", "d", "--epochs", "1", "--set", "layers.4=fc 2"];
    let done = p.ok(&train);
    assert!(done.err.contains("no test images of dog"), "{}", done.err);
    assert!(p.ok(&["predict", "runs/tiny-001", "d/train/cat/0.png"]).out.contains("dog"));
    fs::rename(p.path("d"), p.path("e")).unwrap();
    p.fails(&["eval", "runs/tiny-001"], &["/d, where the run had it from, is not there", "--data"]);
    p.ok(&["eval", "runs/tiny-001", "--data", "e"]);
    fs::rename(p.path("e/train/cat"), p.path("e/train/elk")).unwrap();
    fs::rename(p.path("e/test/cat"), p.path("e/test/elk")).unwrap();
    for command in [&["eval", "runs/tiny-001"][..], &["train", "--epochs", "2", "--resume", "runs/tiny-001"]] {
        p.fails(&[command, &["--data", "e"]].concat(), &["class 0 is `dog`, and `cat` in the run", "remedy"]);
    }
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

/// Width and height of a PNG that holds more than one colour.
fn drawn(path: &Path) -> (u32, u32) {
    let image = image::open(path).unwrap().into_rgb8();
    assert!(image.pixels().any(|p| p != image.get_pixel(0, 0)));
    image.dimensions()
}

#[test]
fn samples_are_drawn_as_training_sees_them() {
    let p = Place::with(&TINY.replace("\"shapes\"", "\"image-folder\"\nsize = 8"));
    for (i, folder) in ["data/train/cat", "data/train/dog", "data/test/cat"].into_iter().enumerate() {
        fs::create_dir_all(p.path(folder)).unwrap();
        (0..6).for_each(|n| picture(&p.path(&format!("{folder}/{n}.png")), 8 + n + 9 * i as u32, 8));
    }
    let show = |out: &'static str, options: &[&str]| {
        p.ok(&[&["data", "show", "tiny.toml", "--data", "data", "--out", out], options].concat()).out
    };
    let first = show("a.png", &[]);
    assert!(first.contains("the first 12 of 12 training images") && first.contains("a.png"), "{first}");
    // Six in a row, 128 pixels each.
    let (width, height) = drawn(&p.path("a.png"));
    assert!(width > 6 * 128 && height > 2 * 128, "{width}x{height}");
    let bytes = |name: &str| fs::read(p.path(name)).unwrap();
    show("batches.png", &["--set", "batch_size=5"]);
    assert!(bytes("batches.png") == bytes("a.png"), "cut into other batches, the images are the same");
    for changed in [["--seed", "1"], ["--set", "augment.flip=1"], ["--split", "test"], ["--count", "3"]] {
        show("b.png", &changed);
        assert!(bytes("b.png") != bytes("a.png"), "{changed:?}");
    }
    let val = show("val.png", &["--split", "val", "--set", "data.validation=5"]);
    assert!(val.contains("the first 5 of 5 validation images"), "{val}");
    let fails = |options: &[&str], words: &[&str]| {
        p.fails(&[&["data", "show", "tiny.toml", "--data", "data"], options].concat(), words);
    };
    fails(&["--split", "val"], &["no images are held out", "data.validation=1000"]);
    fails(&["--out", "no/such/a.png"], &["no/such/a.png", "remedy"]);
}

#[test]
fn of_two_data_sets_in_a_folder_one_is_shown_and_the_other_named() {
    let p = Place::new();
    for folder in ["cifar-10-batches-bin", "cifar-100-binary"] {
        fs::create_dir_all(p.path("both").join(folder)).unwrap();
    }
    let file = |name: &str| fs::File::create(p.path("both").join(name)).unwrap();
    for part in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        file(&format!("cifar-10-batches-bin/{part}.bin")).set_len(10_000 * 3073).unwrap();
    }
    file("cifar-100-binary/train.bin");
    let text = p.ok(&["data", "info", "both"]).out;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "data     cifar10");
    assert!(lines[1].starts_with("where ") && lines[1].ends_with("both/cifar-10-batches-bin"), "{text}");
    assert_eq!(lines[2], "also     cifar100, not read: tilework data info both/cifar-100-binary");
}

#[test]
fn layers_are_drawn_and_wrong_ones_named() {
    let p = Place::new();
    let flips = ["augment.vertical_flip=1", "augment.test=true"];
    p.ok(&["train", "tiny.toml", "--max-steps", "3", "--set", flips[0], "--set", flips[1]]);
    picture(&p.path("a.png"), 50, 40);
    let list = p.ok(&["activations", "runs/tiny-001", "a.png"]).out;
    assert!(list.contains("max_pool 8x8") && list.contains("[4, 4, 3]"), "{list}");
    let done = p.ok(&["activations", "runs/tiny-001", "a.png", "--layer", "0", "--layer", "2", "4"]);
    assert!(done.out.contains("activations.png"), "{}", done.out);
    let all = drawn(&p.path("activations.png"));
    p.ok(&["activations", "runs/tiny-001", "a.png", "--layer", "0", "--shared", "--out", "shared.png"]);
    assert!(drawn(&p.path("shared.png")).1 < all.1);
    p.fails(&["activations", "runs/tiny-001", "a.png", "--layer", "44"], &["no layer `44`", "all layers are listed"]);
    // Where test images are changed for certain, so is a picture.
    let predict = || p.ok(&["predict", "runs/tiny-001", "a.png", "--json"]).out;
    let flipped = predict();
    let config = p.text("runs/tiny-001/config.toml");
    fs::write(p.path("runs/tiny-001/config.toml"), config.replace("test = true", "test = false")).unwrap();
    assert!(predict() != flipped);
    fs::write(p.path("a.png"), "not a picture").unwrap();
    p.fails(&["activations", "runs/tiny-001", "a.png", "--layer", "0"], &["no PNG or JPEG picture"]);
}

#[test]
fn networks_and_curves_go_to_other_programs() {
    let p = Place::new();
    p.ok(&["train", "tiny.toml", "--max-steps", "3", "--tensorboard"]);
    p.ok(&["train", "--resume", "runs/tiny-001", "--max-steps", "5"]);
    let files = fs::read_dir(p.path("runs/tiny-001")).unwrap().map(|e| e.unwrap().file_name());
    assert_eq!(files.filter(|n| n.to_string_lossy().starts_with("events.out.tfevents.")).count(), 2);

    let done = p.ok(&["export", "runs/tiny-001", "--onnx", "net.onnx", "--safetensors", "net.safetensors"]);
    assert!(done.out.contains("images [N, 3, 32, 32], pixels 0 to 1; logits [N, 10]"), "{}", done.out);
    assert!(!done.out.contains("tta"), "{}", done.out);
    assert!(p.bytes("net.safetensors") == p.bytes("runs/tiny-001/last/model.safetensors"));
    let contains = |file: &str, word: &str| p.bytes(file).windows(word.len()).any(|w| w == word.as_bytes());
    for word in ["normalise/Div", "0/MaxPool", "2.weight", "[\"circle\"", "[optimizer]", "0 to 1"] {
        assert!(contains("net.onnx", word), "{word}");
    }
    p.ok(&["export", "runs/tiny-001", "--onnx", "bare.onnx", "--normalised", "--which", "last"]);
    assert!(!contains("bare.onnx", "normalise/Div"));
    let done = p.run(&["export", "runs/tiny-001"]);
    assert!(done.code == Some(2) && done.err.contains("--onnx <FILE>|--safetensors <FILE>"), "{}", done.err);
    p.fails(&["export", "runs/tiny-001", "--onnx", "no/net.onnx"], &["no/net.onnx", "remedy"]);
    let config = p.text("runs/tiny-001/config.toml");
    fs::write(p.path("runs/tiny-001/config.toml"), config.replace("tta = \"one\"", "tta = \"mirror\"")).unwrap();
    assert!(p.ok(&["export", "runs/tiny-001", "--onnx", "net.onnx"]).out.contains("the views of `tta`"));
    p.fails(&["export", "runs/tiny-001", "--onnx", "net.onnx", "--which", "best"], &["best", "remedy"]);
}
