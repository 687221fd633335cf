//! Keys that are set from outside, and keys that were meant.

use crate::error::{Error, Result, nearest};
use toml::{Table, Value};

/// Applies one `key=value` to a table. The value is TOML; what is not TOML is taken as a string. A number
/// in the key is a place in a list, counted from 0: `optimizer.groups.0.lr=0.1`.
pub(super) fn assign(table: &mut Table, text: &str) -> Result<()> {
    let bad = |problem: &str| Error::config(format!("--set {text}"), problem, "write it as --set optimizer.lr=0.1");
    let (path, value) = text.split_once('=').ok_or_else(|| bad("there is no `=`"))?;
    let parsed = toml::from_str::<Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
    let value = parsed.unwrap_or_else(|| Value::String(value.to_string()));
    let keys: Vec<&str> = path.trim().split('.').collect();
    if keys.iter().any(|k| k.is_empty()) {
        return Err(bad("a part of the key is empty"));
    }
    let mut at = Place::Section(table);
    for key in &keys[..keys.len() - 1] {
        at = match at.enter(key).map_err(|problem| bad(&problem))? {
            Value::Table(t) => Place::Section(t),
            Value::Array(list) => Place::List(list),
            _ => return Err(bad(&format!("`{key}` is a single value, not a section"))),
        };
    }
    let last = keys[keys.len() - 1];
    match at {
        Place::Section(t) => put(t, last, value),
        Place::List(_) => *at.enter(last).map_err(|problem| bad(&problem))? = value,
    }
    Ok(())
}

/// What a part of a key leads into.
enum Place<'a> {
    Section(&'a mut Table),
    List(&'a mut Vec<Value>),
}

impl<'a> Place<'a> {
    /// The value that a key names; in a section it is made if it is not there.
    fn enter(self, key: &str) -> Result<&'a mut Value, String> {
        match self {
            Place::Section(t) => Ok(t.entry(key).or_insert_with(|| Value::Table(Table::new()))),
            Place::List(list) => {
                let n = list.len();
                let found = key.parse().ok().and_then(|i: usize| list.get_mut(i));
                found.ok_or_else(|| format!("`{key}` is no place in a list of {n}, counted from 0"))
            }
        }
    }
}

/// Puts a value into a section. An integer where a float stands is what people type.
fn put(section: &mut Table, key: &str, value: Value) {
    let value = match (section.get(key), value) {
        (Some(Value::Float(_)), Value::Integer(i)) => Value::Float(i as f64),
        (_, value) => value,
    };
    section.insert(key.to_string(), value);
}

/// The key or value that was meant, out of serde's message on an unknown one.
pub(super) fn meant(message: &str) -> Option<&str> {
    let (wrong, known) = message.strip_prefix("unknown ")?.split_once(", expected ")?;
    let wrong = wrong.split('`').nth(1)?;
    let mut known = known.split('`').skip(1).step_by(2);
    if wrong == "learning_rate" {
        return known.find(|key| *key == "lr");
    }
    // One of another optimizer is no slip of the pen.
    if of_another_optimizer(message).is_some() { None } else { nearest(wrong, known) }
}

/// What to do about a key that only another optimizer has, by serde's message on an unknown one.
pub(super) fn of_another_optimizer(message: &str) -> Option<String> {
    let (key, known) = message.strip_prefix("unknown field ")?.split_once(", expected ")?;
    let key = key.split('`').nth(1)?;
    // What the section `optimizer` lacks, and no other.
    let kind = optimizer_of(key).filter(|_| known.contains("`weight_decay`") && !known.contains("`match`"))?;
    Some(format!("`{key}` is a key of the optimizer {kind}, and the recipe has another: set optimizer.kind as well"))
}

/// The optimizer that has a key which not all have.
fn optimizer_of(key: &str) -> Option<&'static str> {
    match key {
        "momentum" | "nesterov" | "decoupled" => Some("sgd"),
        "betas" | "eps" => Some("adam or adamw"),
        _ => None,
    }
}

/// Serde's message in the words of TOML.
pub(super) fn plain(message: &str) -> String {
    let types = [
        ("f64", "a number"),
        ("f32", "a number"),
        ("usize", "a whole number"),
        ("u32", "a whole number"),
        ("u64", "a whole number"),
    ];
    types.iter().fold(message.to_string(), |text, (of, name)| {
        text.replace(&format!("expected {of}"), &format!("expected {name}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str, assignment: &str) -> Result<String> {
        let mut table: Table = toml::from_str(text).unwrap();
        assign(&mut table, assignment)?;
        Ok(toml::to_string(&table).unwrap())
    }

    #[test]
    fn keys_reach_sections_and_lists() {
        assert_eq!(set("a = 1.0", "a=2").unwrap(), "a = 2.0\n");
        assert_eq!(set("", "a.b.c=x").unwrap(), "[a.b]\nc = \"x\"\n");
        assert_eq!(set("l = [1, 2]", "l.1=[3]").unwrap(), "l = [1, [3]]\n");
        assert_eq!(set("[[g]]\nlr = 1.0", "g.0.lr=2").unwrap(), "[[g]]\nlr = 2.0\n");
        for (assignment, word) in [("l.2=1", "no place in a list of 2"), ("a.b=1", "single value"), ("a..b=1", "empty")]
        {
            let e = set("l = [1, 2]\na = 1", assignment).unwrap_err().to_string();
            assert!(e.contains(word), "{e}");
        }
    }

    #[test]
    fn what_was_meant() {
        assert_eq!(meant("unknown field `lrr`, expected one of `kind`, `lr`"), Some("lr"));
        assert_eq!(meant("unknown field `learning_rate`, expected one of `kind`, `lr`"), Some("lr"));
        assert_eq!(
            plain("invalid type: string \"x\", expected f64\n"),
            "invalid type: string \"x\", expected a number\n"
        );
        assert_eq!(meant("unknown variant `xyzzy`, expected one of `sgd`, `adam`"), None);
        assert_eq!(meant("invalid type: string"), None);
        let other = "unknown field `momentum`, expected one of `lr`, `betas`, `weight_decay`";
        assert!(meant(other).is_none() && of_another_optimizer(other).unwrap().contains("of the optimizer sgd"));
        assert_eq!(of_another_optimizer("unknown field `momentum`, expected one of `epochs`, `lr`"), None);
    }
}
