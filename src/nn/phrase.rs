//! How the phrase of a layer is read and written: `NAME SIZE, PART, PART`. A size is `N` or
//! `HEIGHTxWIDTH`.

use crate::error::{Error, Result};
use crate::ops::window::Window;
use std::str::FromStr;

/// The phrase of one layer while it is being read: readers take out what they know.
pub(super) struct Phrase<'a> {
    text: &'a str,
    pub(super) name: &'a str,
    size: Option<&'a str>,
    parts: Vec<&'a str>,
}

impl<'a> Phrase<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let mut parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let first = parts.remove(0);
        let (name, size) = first.split_once(char::is_whitespace).map_or((first, ""), |(n, s)| (n, s.trim()));
        Phrase { text, name, size: Some(size).filter(|s| !s.is_empty()), parts }
    }

    pub(super) fn bad(&self, problem: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::config(format!("layer `{}`", self.text), problem, remedy)
    }

    /// Takes what follows the name.
    pub(super) fn size(&mut self, example: &str) -> Result<&'a str> {
        let size = self.size.take();
        size.ok_or_else(|| self.bad(format!("`{}` needs a size", self.name), format!("write it as `{example}`")))
    }

    /// Takes the value of the part `key VALUE`, if it is there; it is empty if it is missing.
    pub(super) fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.parts.iter().position(|p| p.split_whitespace().next() == Some(key))?;
        Some(self.parts.remove(at).split_once(char::is_whitespace).map_or("", |(_, v)| v.trim()))
    }

    /// Takes the count out of the part `COUNT units` (or `unit`), if it is there.
    pub(super) fn take_count(&mut self, unit: &str) -> Option<&'a str> {
        let count = |p: &'a str| p.strip_suffix('s').unwrap_or(p).strip_suffix(unit);
        let at = self.parts.iter().position(|p| count(p).is_some())?;
        count(self.parts.remove(at)).map(str::trim)
    }

    /// Takes exactly these words out, if they are there.
    pub(super) fn flag(&mut self, words: &str) -> bool {
        let at = self.parts.iter().position(|p| p.split_whitespace().eq(words.split_whitespace()));
        at.map(|at| self.parts.remove(at)).is_some()
    }

    pub(super) fn number<T: FromStr>(&self, text: &str, what: &str) -> Result<T> {
        text.trim().parse().map_err(|_| self.bad(format!("`{text}` is not {what}"), "write a plain number"))
    }

    /// `3` or `3x5`, each below a million.
    pub(super) fn pair(&self, text: &str, what: &str, least: usize) -> Result<[usize; 2]> {
        let (a, b) = text.split_once('x').unwrap_or((text, text));
        let size = [self.number(a, what)?, self.number(b, what)?];
        if size.iter().any(|s| !(least..1_000_000).contains(s)) {
            return Err(self.bad(format!("`{text}` is not {what}"), format!("use sizes from {least} to 999999")));
        }
        Ok(size)
    }

    /// `16` or `3 -> 16`.
    pub(super) fn arrow(&self, text: &str, what: &str) -> Result<(Option<usize>, usize)> {
        let (from, to) = match text.split_once("->") {
            Some((from, to)) => (Some(self.count(from, what)?), to),
            None => (None, text),
        };
        Ok((from, self.count(to, what)?))
    }

    /// `16`, below a million.
    fn count(&self, text: &str, what: &str) -> Result<usize> {
        let count = self.number(text, what)?;
        match (1..1_000_000).contains(&count) {
            true => Ok(count),
            false => Err(self.bad(format!("`{text}` is not {what}"), "use a number from 1 to 999999")),
        }
    }

    /// Takes a window: the size is its kernel, which is also its stride unless one is given.
    pub(super) fn window(&mut self, example: &str, stride: Option<[usize; 2]>) -> Result<Window> {
        let size = self.size(example)?;
        let kernel = self.pair(size, "a kernel size", 1)?;
        let stride = self.take("stride").map_or(Ok(stride.unwrap_or(kernel)), |t| self.pair(t, "a stride", 1))?;
        let pad = self.take("pad").map_or(Ok([0; 2]), |t| self.pair(t, "a padding", 0))?;
        Ok(Window { kernel, stride, pad })
    }

    /// Refuses what nobody took.
    pub(super) fn finish(self) -> Result<()> {
        if self.size.is_some() {
            return Err(self.bad(format!("`{}` takes no size", self.name), "leave the size out: it is inferred"));
        }
        match self.parts.first() {
            None => Ok(()),
            Some(rest) => Err(self.bad(
                format!("`{rest}` is not something a `{}` has", self.name),
                "`tilework recipes --help` lists the layers; parts are separated by commas",
            )),
        }
    }
}

/// `3x5`.
pub(super) fn by([a, b]: [usize; 2]) -> String {
    format!("{a}x{b}")
}

/// `, stride 2x1`, or nothing for the default.
pub(super) fn part(key: &str, value: [usize; 2], default: [usize; 2]) -> String {
    match value {
        v if v == default => String::new(),
        [a, b] if a == b => format!(", {key} {a}"),
        v => format!(", {key} {}", by(v)),
    }
}

/// `3 -> `, or nothing if the input is not stated.
pub(super) fn arrow(from: Option<usize>) -> String {
    from.map(|n| format!("{n} -> ")).unwrap_or_default()
}
