//! The recipes that come with the program.

use crate::error::{Error, nearest};

/// How a recipe is written: every key with its default.
pub const KEYS: &str = include_str!("README.md");

/// Each recipe's name and text.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("quickstart", include_str!("quickstart.toml")),
    ("a1-lenet", include_str!("a1-lenet.toml")),
    ("a2-augmented", include_str!("a2-augmented.toml")),
    ("a3-deeper-head", include_str!("a3-deeper-head.toml")),
    ("a4-longer", include_str!("a4-longer.toml")),
    ("a5-lower-lr", include_str!("a5-lower-lr.toml")),
    ("a6-wide-dropout", include_str!("a6-wide-dropout.toml")),
    ("a7-wider", include_str!("a7-wider.toml")),
    ("a8-third-conv", include_str!("a8-third-conv.toml")),
    ("b1-bn-cnn", include_str!("b1-bn-cnn.toml")),
    ("c1-fully-connected", include_str!("c1-fully-connected.toml")),
    ("c2-conv", include_str!("c2-conv.toml")),
    ("c3-conv-padded", include_str!("c3-conv-padded.toml")),
    ("c4-conv-bn", include_str!("c4-conv-bn.toml")),
    ("c5-deep-conv-bn", include_str!("c5-deep-conv-bn.toml")),
    ("d1-resnet18", include_str!("d1-resnet18.toml")),
    ("d2-finetune", include_str!("d2-finetune.toml")),
    ("d3-freeze6", include_str!("d3-freeze6.toml")),
    ("d4-freeze10", include_str!("d4-freeze10.toml")),
    ("d5-tiny", include_str!("d5-tiny.toml")),
    ("e1-resnet9-onecycle", include_str!("e1-resnet9-onecycle.toml")),
    ("fast-resnet9", include_str!("fast-resnet9.toml")),
    ("airbench94", include_str!("airbench94.toml")),
];

/// The error for a name that is none of theirs.
pub fn unknown(name: &str) -> Error {
    let names: Vec<&str> = BUILT_IN.iter().map(|(n, _)| *n).collect();
    let close = nearest(name, names.iter().copied());
    let close = close.map_or_else(String::new, |n| format!("did you mean `{n}`? "));
    Error::config(
        format!("recipe `{name}`"),
        "there is no built-in recipe of that name",
        format!("{close}The recipes are {}; one of your own is the path of a file ending in .toml", names.join(", ")),
    )
}

/// About how many minutes a recipe takes on two cores of an AMD EPYC (Zen 5) without a GPU.
/// A run that was not made to its end is reckoned from its steps.
pub const MINUTES: &[(&str, f64)] = &[
    ("quickstart", 0.25),
    ("a1-lenet", 0.15),
    ("a2-augmented", 0.15),
    ("a3-deeper-head", 0.15),
    ("a4-longer", 0.8),
    ("a5-lower-lr", 3.5),
    ("a6-wide-dropout", 30.0),
    ("a7-wider", 100.0),
    ("a8-third-conv", 155.0),
    ("b1-bn-cnn", 190.0),
    ("c1-fully-connected", 0.15),
    ("c2-conv", 0.25),
    ("c3-conv-padded", 0.2),
    ("c4-conv-bn", 0.6),
    ("c5-deep-conv-bn", 0.8),
    ("d1-resnet18", 15.0),
    ("d2-finetune", 17.0),
    ("d3-freeze6", 11.0),
    ("d4-freeze10", 7.0),
    ("d5-tiny", 800.0),
    ("e1-resnet9-onecycle", 88.0),
    ("fast-resnet9", 185.0),
    ("airbench94", 52.0),
];
