//! The lines of a recording: how work lies beside other work.

use super::driver::{Line, Point};
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// The lines of a recording, by their ends: the nodes that the next of each will be behind.
pub(in crate::device) struct Lines<N> {
    /// Of the main line, while another is recorded.
    main: Vec<N>,
    /// Of those beside it, by their numbers.
    beside: BTreeMap<usize, Vec<N>>,
    /// Of those behind a point.
    behind: Vec<N>,
    /// What lies before each point.
    points: Vec<Vec<N>>,
    current: Line,
}

impl<N> Default for Lines<N> {
    fn default() -> Self {
        let (main, beside, behind, points) = Default::default();
        Lines { main, beside, behind, points, current: Line::Main }
    }
}

impl<N: Copy + Ord> Lines<N> {
    /// Goes on with another line than the main one, or with the main one again. `ends` are those of the line at hand; given
    /// back are the nodes that the next one is behind.
    ///
    /// # Errors
    /// [`Error::Internal`] for a line within another, or behind a point that there is not.
    pub(in crate::device) fn turn(&mut self, line: Line, ends: Vec<N>) -> Result<Vec<N>> {
        let wrong = |what: &str| Err(Error::Internal(format!("recording: {what}")));
        let behind = match (self.current, line) {
            (Line::Main, Line::Beside(number)) => {
                self.main.clone_from(&ends);
                let before = self.beside.get(&number).into_iter().flatten();
                ends.iter().chain(before).copied().collect()
            }
            (Line::Main, Line::Behind(Point(number))) => {
                let Some(before) = self.points.get(number) else { return wrong("work behind no point of it") };
                self.main = ends;
                before.clone()
            }
            (Line::Beside(number), Line::Main) => {
                self.beside.insert(number, ends);
                std::mem::take(&mut self.main)
            }
            (Line::Behind(_), Line::Main) => {
                self.behind.extend(ends);
                std::mem::take(&mut self.main)
            }
            _ => return wrong("a line was begun within another, or ended outside of one"),
        };
        self.current = line;
        Ok(once(behind))
    }

    /// Whether what is recorded now is for the main line.
    pub(in crate::device) fn is_main(&self) -> bool {
        self.current == Line::Main
    }

    /// A point behind all that its lines have so far, but for those behind a point.
    pub(in crate::device) fn point(&mut self, ends: Vec<N>) -> Point {
        self.points.push(once(self.all(ends)));
        Point(self.points.len() - 1)
    }

    /// What the next node is behind where all lines meet; `None` if there is one line alone.
    pub(in crate::device) fn join(&mut self, ends: Vec<N>) -> Option<Vec<N>> {
        if self.beside.is_empty() && self.behind.is_empty() {
            return None;
        }
        let mut all = self.all(ends);
        all.append(&mut self.behind);
        self.beside.clear();
        Some(once(all))
    }

    fn all(&self, mut ends: Vec<N>) -> Vec<N> {
        ends.extend(self.beside.values().flatten());
        ends
    }
}

/// A node is named once among those that another is behind.
fn once<N: Ord>(mut nodes: Vec<N>) -> Vec<N> {
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_begin_and_meet() {
        let mut lines = Lines::default();
        assert_eq!(lines.join(vec![0]), None);
        assert_eq!(lines.turn(Line::Beside(3), vec![0]).unwrap(), [0]);
        assert!(!lines.is_main());
        assert!(lines.turn(Line::Beside(4), vec![1]).is_err());
        // Back to the main line; the next node there is 2, and a line on which nothing is recorded names no node twice.
        assert_eq!(lines.turn(Line::Main, vec![1]).unwrap(), [0]);
        assert_eq!(lines.turn(Line::Beside(3), vec![2]).unwrap(), [1, 2]);
        assert_eq!(lines.turn(Line::Main, vec![1, 2]).unwrap(), [2]);
        // A point lies behind what is beside.
        let point = lines.point(vec![2]);
        assert_eq!(lines.turn(Line::Behind(point), vec![4]).unwrap(), [1, 2]);
        assert_eq!(lines.turn(Line::Main, vec![5]).unwrap(), [4]);
        assert_eq!(lines.join(vec![4]), Some(vec![1, 2, 4, 5]));
        assert_eq!(lines.join(vec![6]), None);
        assert!(lines.turn(Line::Behind(Point(1)), vec![6]).is_err() && lines.turn(Line::Main, vec![6]).is_err());
    }
}
