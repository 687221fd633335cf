//! Work that is recorded instead of run, with lines that go on beside each other, and replayed.

use super::driver::{Address, Graph, Line, Point};
use super::{Cuda, lock};
use crate::error::Result;
use std::collections::HashMap;

impl Cuda {
    /// Records the work of `work` instead of running it. Everything that `work` allocates must be
    /// dropped in it.
    ///
    /// # Errors
    /// Whatever `work` reports; [`crate::Error::Device`] if the device cannot record it.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Captured> {
        self.driver().begin_capture()?;
        lock(&self.inner.pool).begin_capture();
        let result = work().and_then(|()| self.join());
        let blocks = lock(&self.inner.pool).end_capture();
        // Also after an error: the stream must not stay in capture.
        let graph = self.driver().end_capture();
        let captured = |graph| Captured { graph, blocks, cuda: self.clone() };
        match (result, graph) {
            (Ok(()), Ok(graph)) => Ok(captured(Some(graph))),
            (Err(e), graph) => {
                drop(captured(graph.ok()));
                Err(e)
            }
            (Ok(()), Err(e)) => {
                drop(captured(None));
                Err(e)
            }
        }
    }

    /// Whether work is being recorded.
    pub(crate) fn is_recording(&self) -> bool {
        lock(&self.inner.pool).is_capturing()
    }

    /// Does work that nothing waits for before [`Cuda::join`], so that in a recording a GPU may do it beside what follows.
    /// Work of the same `line` is done in order. Whoever asks keeps what it reads from being changed until then; memory
    /// that anyone returns meanwhile is not handed out again.
    ///
    /// # Errors
    /// Whatever `work` reports; [`crate::Error::Device`] if the device fails.
    pub(crate) fn beside<R>(&self, line: usize, work: impl FnOnce() -> Result<R>) -> Result<R> {
        if !self.is_recording() {
            return work();
        }
        lock(&self.inner.pool).hold();
        self.driver().line(Line::Beside(line))?;
        let result = work();
        self.driver().line(Line::Main)?;
        result
    }

    /// [`Driver::point`].
    pub(crate) fn point(&self) -> Result<Point> {
        self.driver().point()
    }

    /// Does work in a recording that waits for nothing behind `point`, where nothing else writes what it reads, or uses what it
    /// writes, before [`Cuda::join`]. It gets no memory, which may be in use behind the point.
    ///
    /// # Errors
    /// Whatever `work` reports; [`crate::Error::Internal`] if it asks for memory; [`crate::Error::Device`] if the device fails.
    pub(crate) fn behind<R>(&self, point: Point, work: impl FnOnce() -> Result<R>) -> Result<R> {
        self.driver().line(Line::Behind(point))?;
        lock(&self.inner.pool).close(true);
        let result = work();
        lock(&self.inner.pool).close(false);
        self.driver().line(Line::Main)?;
        result
    }

    /// Bytes of memory that were returned and are not handed out again before [`Cuda::join`].
    pub(crate) fn held(&self) -> usize {
        lock(&self.inner.pool).held()
    }

    /// What follows waits for all work that was done beside.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub(crate) fn join(&self) -> Result<()> {
        if self.is_recording() {
            self.driver().join()?;
            lock(&self.inner.pool).let_go();
        }
        Ok(())
    }

    /// Gives the device back what memory the pool keeps for later: a recording cannot.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device, or work on it, failed.
    pub(crate) fn give_back_memory(&self) -> Result<()> {
        self.sync()?;
        lock(&self.inner.pool).release(self.driver());
        Ok(())
    }
}

/// A training step, or other work, that was recorded.
pub struct Captured {
    graph: Option<Box<dyn Graph>>,
    blocks: HashMap<usize, Vec<Address>>,
    cuda: Cuda,
}

impl Captured {
    /// Runs the work.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub fn replay(&self) -> Result<()> {
        self.graph.as_ref().map_or(Ok(()), |g| g.replay())
    }

    /// How many kernels it launches.
    pub fn launches(&self) -> usize {
        self.graph.as_ref().map_or(0, |g| g.launches())
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        // Its memory goes back only when no replay is under way.
        let _ = self.cuda.sync();
        self.graph = None;
        lock(&self.cuda.inner.pool).adopt(std::mem::take(&mut self.blocks));
    }
}
