//! Standard output whose reader may go away, and tables.

use crate::error::{Error, Result};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Standard output. When its reader goes away, whatever follows is dropped without a word: what
/// the program does beside printing goes on.
#[derive(Debug)]
pub(super) struct Out {
    closed: bool,
}

impl Out {
    pub(super) fn new() -> Self {
        Out { closed: false }
    }

    /// Prints a text that ends in a newline.
    ///
    /// # Errors
    /// [`Error::Io`] if the output goes to a file and the disk is full.
    pub(super) fn print(&mut self, text: &str) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            other => other.map_err(Error::io("write to", Path::new("standard output"))),
        }
    }
}

/// Columns under their heads, `<` flush left, `>` flush right.
pub(super) fn table(heads: &[&str], align: &str, rows: Vec<Vec<String>>) -> String {
    let heads = heads.iter().map(ToString::to_string).collect();
    let rows: Vec<Vec<String>> = std::iter::once(heads).chain(rows).collect();
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let columns: Vec<(bool, usize)> = align.chars().enumerate().map(|(i, a)| (a == '>', width(i))).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&columns);
        let cells = cells.map(|(c, &(right, w))| if right { format!("{c:>w$}") } else { format!("{c:<w$}") });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["bcd".into(), "1,000".into()]];
        assert_eq!(table(&["x", "n"], "<>", rows), "x        n\na        1\nbcd  1,000\n");
    }
}
