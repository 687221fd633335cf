//! A recorded graph of a real GPU.

use super::context::Context;
use super::driver::Graph;
use crate::error::Result;
use cudarc::driver::sys::{self, CUgraphExec};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// A recorded run of launches.
pub(super) struct CapturedGraph {
    pub(super) context: Arc<Context>,
    pub(super) exec: CUgraphExec,
    pub(super) launches: usize,
}

// SAFETY: handles of the driver belong to the process, not to a thread.
unsafe impl Send for CapturedGraph {}

impl Graph for CapturedGraph {
    fn replay(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: graph and stream are alive.
        let result = unsafe { sys::cuGraphLaunch(self.exec, self.context.stream) };
        self.context.check("replaying a graph", result)?;
        self.context.launched_graph(self.launches);
        if self.context.sync_each_launch.load(Relaxed) { self.context.sync() } else { Ok(()) }
    }

    fn launches(&self) -> usize {
        self.launches
    }
}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        if !self.exec.is_null() && self.context.enter().is_ok() {
            // SAFETY: made by cuGraphInstantiateWithFlags and destroyed once; the driver waits for a
            // replay that is under way.
            unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}
