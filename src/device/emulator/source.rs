//! From a return address in a kernel to its source line.

use std::collections::HashMap;
use std::ffi::c_void;

use super::report::{Line, Site, short};

/// Lines looked up so far.
#[derive(Default)]
pub(super) struct Lines {
    known: HashMap<usize, Option<Line>>,
}

impl Lines {
    /// The line of a site, or else of the instruction before `pc`.
    pub(super) fn of(&mut self, pc: usize, site: Site) -> Option<Line> {
        if pc == 0 {
            return site.resolve();
        }
        self.known.entry(pc).or_insert_with(|| look_up(pc)).clone()
    }
}

/// The innermost function inlined there that is not of the shim.
fn look_up(pc: usize) -> Option<Line> {
    let mut line = None;
    backtrace::resolve((pc - 1) as *mut c_void, |symbol| {
        if let (None, Some(file), Some(number)) = (&line, symbol.filename(), symbol.lineno()) {
            let file = file.to_string_lossy();
            if !file.ends_with("cuda.h") {
                line = Some(Line { file: short(&file), line: number });
            }
        }
    });
    line
}
