//! Graphs of a real GPU: how lines of work lie beside each other while one is recorded, and a recorded one.

use super::context::Context;
use super::driver::{Graph, Line, Point};
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUgraphNode, CUresult, CUstream, CUstreamCaptureStatus};
use std::collections::BTreeMap;
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

/// What is behind a capture's one stream: the ends of its lines.
#[derive(Default)]
pub(super) struct Lines {
    /// Of the main line, while one beside it is recorded.
    main: Vec<Node>,
    beside: BTreeMap<usize, Vec<Node>>,
    /// Of those behind a point.
    behind: Vec<Node>,
    /// What lies before each point.
    points: Vec<Vec<Node>>,
    current: Option<Line>,
}

#[derive(Clone, Copy)]
struct Node(CUgraphNode);

// SAFETY: handles of the driver belong to the process, not to a thread.
unsafe impl Send for Node {}

impl Lines {
    /// Goes on with another line than the main one, or with the main one again.
    pub(super) fn turn(&mut self, context: &Context, line: Line) -> Result<()> {
        match (self.current, line) {
            (None, Line::Beside(number)) => {
                self.main = ends(context)?;
                let behind: Vec<Node> =
                    self.main.iter().chain(self.beside.get(&number).into_iter().flatten()).copied().collect();
                self.current = Some(line);
                go_on_behind(context, &behind)
            }
            (None, Line::Behind(Point(number))) => {
                self.main = ends(context)?;
                self.current = Some(line);
                go_on_behind(context, self.points.get(number).map_or(&[], Vec::as_slice))
            }
            (Some(left), Line::Main) => {
                let ends = ends(context)?;
                match left {
                    Line::Beside(number) => drop(self.beside.insert(number, ends)),
                    _ => self.behind.extend(ends),
                }
                self.current = None;
                go_on_behind(context, &self.main)
            }
            _ => Err(Error::Internal("a line of a capture was begun within another, or ended outside of one".into())),
        }
    }

    /// Whether what is recorded now is for the main line.
    pub(super) fn is_main(&self) -> bool {
        self.current.is_none()
    }

    /// Where the recording is.
    pub(super) fn point(&mut self, context: &Context) -> Result<Point> {
        let mut all = ends(context)?;
        all.extend(self.beside.values().flatten());
        self.points.push(all);
        Ok(Point(self.points.len() - 1))
    }

    /// Goes on behind all lines.
    pub(super) fn join(&mut self, context: &Context) -> Result<()> {
        let (beside, behind) = (std::mem::take(&mut self.beside), std::mem::take(&mut self.behind));
        if beside.is_empty() && behind.is_empty() {
            return Ok(());
        }
        let mut all = ends(context)?;
        all.extend(beside.values().flatten().chain(&behind));
        go_on_behind(context, &all)
    }
}

// The two calls below not through cudarc: its bindings for CUDA 13 have only versions of them that drivers before 12.3 lack.

/// The nodes of the graph that is being captured that its next one will be behind.
fn ends(context: &Context) -> Result<Vec<Node>> {
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
fn go_on_behind(context: &Context, nodes: &[Node]) -> Result<()> {
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
