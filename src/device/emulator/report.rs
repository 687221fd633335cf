//! What the emulated device says: faults, the checker's findings, the events of a trace.

use std::ffi::{CStr, c_char};
use std::fmt;

/// A line of a kernel's source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Line {
    /// The file, from the folder of kernels on: `kernels/relu.cu`.
    pub file: String,
    /// Counted from 1.
    pub line: u32,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A source line as C++ gives it: `__builtin_FILE()` and `__builtin_LINE()`.
#[derive(Clone, Copy)]
pub(super) struct Site {
    pub(super) file: *const c_char,
    pub(super) line: u32,
}

impl Site {
    pub(super) const NONE: Site = Site { file: std::ptr::null(), line: 0 };

    pub(super) fn new(file: *const c_char, line: i32) -> Site {
        Site { file, line: line as u32 }
    }

    /// The same line: pointers to equal names may differ.
    pub(super) fn same(self, other: Site) -> bool {
        self.line == other.line && (self.file == other.file || self.resolve() == other.resolve())
    }

    pub(super) fn resolve(self) -> Option<Line> {
        if self.file.is_null() {
            return None;
        }
        // SAFETY: a string literal of a kernel's object file.
        let file = unsafe { CStr::from_ptr(self.file) }.to_string_lossy();
        Some(Line { file: short(&file), line: self.line })
    }
}

/// A path from its last folder `kernels` on, so that reports do not depend on where the crate was built.
pub(super) fn short(path: &str) -> String {
    match path.rfind("kernels/") {
        Some(at) => path[at..].to_string(),
        None => path.rsplit('/').next().unwrap_or(path).to_string(),
    }
}

/// What stopped a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// Grid, block or shared memory beyond what a GPU takes.
    InvalidLaunch,
    /// Threads of one block wait at different barriers.
    DivergentBarrier,
    /// Threads wait at a barrier that others left the kernel without reaching.
    AbandonedBarrier,
    /// Lanes of one mask came to different collectives.
    DivergentCollective,
    /// A mask names a lane that has left the kernel, or leaves out the caller.
    BadMask,
    /// No thread of the block can go on.
    Deadlock,
    /// Shared memory is too small, or was written past its end.
    SharedMemory,
    /// An asynchronous copy of a size or alignment that the hardware lacks.
    BadCopy,
    /// A thread's local variables do not fit its stack.
    StackOverflow,
    /// An mbarrier that is none, or whose counts do not fit.
    BadBarrier,
    /// A matrix product of a warpgroup that the hardware lacks, or on which its threads do not agree.
    BadProduct,
    /// A cluster's barrier used out of turn, or an address outside the cluster's shared memory.
    BadCluster,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultKind::InvalidLaunch => "invalid launch",
            FaultKind::DivergentBarrier => "divergent barrier",
            FaultKind::AbandonedBarrier => "barrier not reached by all threads",
            FaultKind::DivergentCollective => "divergent warp collective",
            FaultKind::BadMask => "wrong mask of a warp collective",
            FaultKind::Deadlock => "deadlock",
            FaultKind::SharedMemory => "shared memory",
            FaultKind::BadCopy => "wrong asynchronous copy",
            FaultKind::StackOverflow => "stack overflow",
            FaultKind::BadBarrier => "wrong use of an mbarrier",
            FaultKind::BadProduct => "wrong matrix product",
            FaultKind::BadCluster => "wrong use of a cluster",
        })
    }
}

/// An error of a kernel that stopped its launch. The device goes on being usable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kernel's name.
    pub kernel: String,
    /// What happened.
    pub kind: FaultKind,
    /// `blockIdx`; none where the launch as a whole is wrong.
    pub block: Option<[u32; 3]>,
    /// `threadIdx` of one thread concerned.
    pub thread: Option<[u32; 3]>,
    /// Where that thread was.
    pub at: Option<Line>,
    /// What exactly, with the other threads and lines concerned.
    pub detail: String,
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = &self.at {
            write!(f, "{at}: ")?;
        }
        write!(f, "{}: {}\n  in kernel `{}`", self.kind, self.detail, self.kernel)?;
        if let Some(block) = self.block {
            write!(f, ", block {}", dim(block))?;
        }
        if let Some(thread) = self.thread {
            write!(f, ", thread {}", dim(thread))?;
        }
        Ok(())
    }
}

/// `(x,y,z)`, trailing zeros left out: `(5)`.
pub(super) fn dim(at: [u32; 3]) -> String {
    match at {
        [x, 0, 0] => format!("({x})"),
        [x, y, 0] => format!("({x},{y})"),
        [x, y, z] => format!("({x},{y},{z})"),
    }
}

/// What the checker can find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FindingKind {
    /// Two threads write one place with nothing that orders them.
    WriteWriteRace,
    /// A thread reads what another wrote, with nothing that orders them.
    ReadAfterWriteRace,
    /// A thread overwrites what another read, with nothing that orders them.
    WriteAfterReadRace,
    /// A read outside every argument and shared variable. Stops the launch.
    OutOfBoundsRead,
    /// A write outside every argument and shared variable. Stops the launch.
    OutOfBoundsWrite,
    /// A write to an argument that is an input.
    ReadOnlyWrite,
    /// A read of shared memory that its block has not written.
    UninitialisedShared,
    /// An address that is no multiple of what its type needs. Stops the launch.
    Misaligned,
    /// An index outside an array whose size the compiler knows. Stops the launch.
    OutsideArray,
    /// TMA or a matrix product meets what an ordinary instruction wrote, with no `fence.proxy.async` between them.
    MissingProxyFence,
    /// Registers written after the last `wgmma.fence` go into a matrix product.
    UnfencedRegisters,
    /// Registers of a matrix product are used before it was waited for.
    RegistersInUse,
    /// A thread left before its bulk stores had read shared memory.
    AbandonedStore,
    /// An access of a block's shared memory that may come after that block has left.
    DepartedBlock,
    /// A phase of an mbarrier ends, and no thread has waited for the one before: who waits by parity may take one for another.
    MissedPhase,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FindingKind::WriteWriteRace => "race: write after write",
            FindingKind::ReadAfterWriteRace => "race: read after write",
            FindingKind::WriteAfterReadRace => "race: write after read",
            FindingKind::OutOfBoundsRead => "read out of bounds",
            FindingKind::OutOfBoundsWrite => "write out of bounds",
            FindingKind::ReadOnlyWrite => "write to an input",
            FindingKind::UninitialisedShared => "read of uninitialised shared memory",
            FindingKind::Misaligned => "misaligned access",
            FindingKind::OutsideArray => "index outside an array",
            FindingKind::MissingProxyFence => "missing fence.proxy.async",
            FindingKind::UnfencedRegisters => "missing wgmma.fence",
            FindingKind::RegistersInUse => "registers used before wgmma.wait_group",
            FindingKind::AbandonedStore => "bulk store not waited for",
            FindingKind::DepartedBlock => "shared memory of a block that may have left",
            FindingKind::MissedPhase => "phase of an mbarrier that nobody waited for",
        })
    }
}

/// One thing the checker found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The kernel's name.
    pub kernel: String,
    /// What it is.
    pub kind: FindingKind,
    /// `blockIdx` of the access.
    pub block: [u32; 3],
    /// `threadIdx` of the access.
    pub thread: [u32; 3],
    /// Its source line; none where the program has no debug information.
    pub at: Option<Line>,
    /// `4 bytes at x[17]`, `4 bytes past the end of x`.
    pub place: String,
    /// `blockIdx` and `threadIdx` of the other side of a race.
    pub other: Option<([u32; 3], [u32; 3])>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = &self.at {
            write!(f, "{at}: ")?;
        }
        let (kernel, block, thread) = (&self.kernel, dim(self.block), dim(self.thread));
        write!(f, "{}: {}\n  in kernel `{kernel}`, block {block}, thread {thread}", self.kind, self.place)?;
        if let Some((block, thread)) = self.other {
            write!(f, "; the other: block {}, thread {}", dim(block), dim(thread))?;
        }
        Ok(())
    }
}

/// What a checked launch showed.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// At most eight, one per kind and source line; empty for a clean kernel.
    pub findings: Vec<Finding>,
    /// Memory accesses that were checked.
    pub accesses: u64,
}

/// What a thread did.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// It began the kernel.
    Start,
    /// It read memory: the place (`x[17]`) and the value, where it is a number.
    Read(String, Option<String>),
    /// It wrote memory.
    Write(String, Option<String>),
    /// It is about to change memory atomically.
    Atomic(String, Option<String>),
    /// It began an asynchronous copy to this place.
    Copy(String),
    /// It came to a barrier.
    Barrier,
    /// It came to a warp collective of this name.
    Collective(&'static str),
    /// It left the kernel.
    Exit,
}

/// One step of one thread, in a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceEvent {
    /// `threadIdx`.
    pub thread: [u32; 3],
    /// What it did.
    pub action: Action,
    /// Where, where that is known.
    pub at: Option<Line>,
}

impl fmt::Display for TraceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {:<9} ", dim(self.thread))?;
        let value = |v: &Option<String>| v.as_ref().map_or(String::new(), |v| format!(" = {v}"));
        let what = match &self.action {
            Action::Start => "starts".to_string(),
            Action::Read(place, v) => format!("reads   {place}{}", value(v)),
            Action::Write(place, v) => format!("writes  {place}{}", value(v)),
            Action::Atomic(place, v) => format!("updates {place}, was{}", value(v)),
            Action::Copy(place) => format!("copies to {place}, not yet there"),
            Action::Barrier => "waits at the barrier".to_string(),
            Action::Collective(name) => format!("comes to {name}"),
            Action::Exit => "exits".to_string(),
        };
        match &self.at {
            Some(at) => write!(f, "{what:<44} {at}"),
            None => f.write_str(&what),
        }
    }
}
