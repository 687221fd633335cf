//! Patterns for the keys of parameters.

/// Whether a key fits a pattern, in which each `*` stands for any characters, none included, dots too.
///
/// ```
/// use tilework::params::matches;
/// assert!(matches("*.bias", "layer1.0.bn1.bias") && matches("fc.*", "fc.weight") && matches("0.bias", "0.bias"));
/// assert!(!matches("*.bias", "0.weight") && !matches("fc", "fc.weight"));
/// ```
pub fn matches(pattern: &str, key: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == key,
        Some((before, rest)) => match key.strip_prefix(before) {
            None => false,
            Some(key) => key.char_indices().map(|(i, _)| i).chain([key.len()]).any(|i| matches(rest, &key[i..])),
        },
    }
}
