//! Graphs of a real GPU: what is captured next is behind which nodes, and a captured one.

use super::context::Context;
use super::driver::Graph;
use crate::error::Result;
use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUgraphNode, CUresult, CUstream, CUstreamCaptureStatus};
use std::ffi::c_uint;
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

/// A node of the graph that is being captured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Node(CUgraphNode);

// SAFETY: handles of the driver belong to the process, not to a thread.
unsafe impl Send for Node {}

// The two calls below not through cudarc: its bindings for CUDA 13 have only versions of them that drivers before 12.3 lack.

/// The nodes of the graph that is being captured that its next one will be behind.
pub(super) fn ends(context: &Context) -> Result<Vec<Node>> {
    type Info = unsafe extern "C" fn(
        CUstream,
        *mut CUstreamCaptureStatus,
        *mut u64,
        *mut CUgraph,
        *mut *const CUgraphNode,
        *mut usize,
    ) -> CUresult;
    let (mut status, mut id, mut graph) =
        (CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE, 0, std::ptr::null_mut());
    let (mut nodes, mut count) = (std::ptr::null(), 0);
    // SAFETY: the function was seen to be there, with this type in CUDA's documentation; the pointers are to live variables,
    // and the stream is alive.
    let result = unsafe {
        let info = sys::culib().get::<Info>(b"cuStreamGetCaptureInfo_v2");
        info.map(|f| f(context.stream, &mut status, &mut id, &mut graph, &mut nodes, &mut count))
            .unwrap_or(CUresult::CUDA_ERROR_NOT_FOUND)
    };
    context.check("looking at a graph that is being captured", result)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: so many nodes lie there until the stream is used again.
    Ok(unsafe { std::slice::from_raw_parts(nodes, count) }.iter().map(|&node| Node(node)).collect())
}

/// What is captured next is behind these nodes.
pub(super) fn go_on_behind(context: &Context, nodes: &[Node]) -> Result<()> {
    type Update = unsafe extern "C" fn(CUstream, *mut CUgraphNode, usize, c_uint) -> CUresult;
    let set = sys::CUstreamUpdateCaptureDependencies_flags::CU_STREAM_SET_CAPTURE_DEPENDENCIES as c_uint;
    let mut nodes: Vec<CUgraphNode> = nodes.iter().map(|node| node.0).collect();
    // SAFETY: as above; the nodes are of the graph that is being captured.
    let result = unsafe {
        let update = sys::culib().get::<Update>(b"cuStreamUpdateCaptureDependencies");
        update
            .map(|f| f(context.stream, nodes.as_mut_ptr(), nodes.len(), set))
            .unwrap_or(CUresult::CUDA_ERROR_NOT_FOUND)
    };
    context.check("ordering the lines of a graph", result)
}
