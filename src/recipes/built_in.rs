//! The recipes that come with the program.

use crate::error::{Error, nearest};

/// Each recipe's name and text.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("quickstart", include_str!("quickstart.toml")),
    ("a1-lenet", include_str!("a1-lenet.toml")),
    ("a4-longer", include_str!("a4-longer.toml")),
    ("b1-bn-cnn", include_str!("b1-bn-cnn.toml")),
];

/// The error for a name that is none of theirs.
pub(super) fn unknown(name: &str) -> Error {
    let names: Vec<&str> = BUILT_IN.iter().map(|(n, _)| *n).collect();
    let close = nearest(name, names.iter().copied());
    let close = close.map_or_else(String::new, |n| format!("did you mean `{n}`? "));
    Error::config(
        format!("recipe `{name}`"),
        "there is no built-in recipe of that name",
        format!("{close}The recipes are {}; one of your own is the path of a file ending in .toml", names.join(", ")),
    )
}
