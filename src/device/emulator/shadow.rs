//! What the checker remembers of memory: who wrote and who read each place last.

/// A past access. All zero: none.
#[derive(Clone, Copy, Default)]
pub(super) struct Mark {
    /// Linear block index plus one.
    pub(super) tag: u32,
    /// The launch's count of blocks and barriers begun.
    pub(super) epoch: u32,
    /// The warp's count of `__syncwarp` at that time.
    pub(super) stamp: u32,
    /// Linear thread index.
    pub(super) thread: u16,
    pub(super) flags: u16,
    /// What can be in order: the cluster, counted from 1; where there are none, the block.
    pub(super) group: u32,
    /// Where the block has vector clocks, who did it, and its clock, from 1 on; else 0.
    pub(super) agent: u32,
    pub(super) clock: u32,
}

/// Set in a write mark: it was atomic.
pub(super) const ATOMIC: u16 = 1;
/// Set in the mark of reads or atomics: they come from several warps since the block's last barrier.
pub(super) const MANY_WARPS: u16 = 2;
/// Set in the mark of reads or atomics: they come from several blocks.
pub(super) const MANY_BLOCKS: u16 = 4;
/// Set in a write mark: an asynchronous copy was begun and not waited for.
pub(super) const IN_FLIGHT: u16 = 8;
/// Set in a write mark: not an ordinary instruction wrote, but TMA.
pub(super) const ASYNC: u16 = 16;

/// The last write and the reads since then.
#[derive(Clone, Copy, Default)]
pub(super) struct Cell {
    pub(super) write: Mark,
    pub(super) read: Mark,
    /// Lanes of the marked warp that have read since the last barrier, or written atomically.
    pub(super) readers: u32,
    pub(super) writers: u32,
    /// Where the block has vector clocks, the set of all who have read since the last write.
    pub(super) set: u32,
}

/// Bytes of memory per page.
const PAGE: usize = 1024;

/// Cells for four bytes each, or, once a smaller access has come by, for every byte.
struct Page {
    cells: Vec<Cell>,
    width: usize,
}

/// The shadow of one stretch of memory; pages come to be when they are touched.
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
    base: usize,
    pages: Vec<Option<Page>>,
}

impl Span {
    pub(super) fn new(start: usize, end: usize) -> Span {
        let base = start & !3;
        let pages = (0..(end - base).div_ceil(PAGE)).map(|_| None).collect();
        Span { start, end, base, pages }
    }

    #[inline]
    pub(super) fn holds(&self, address: usize, bytes: usize) -> bool {
        address >= self.start && address + bytes <= self.end
    }

    /// The cells of `bytes` bytes from `address` on, one call each until one returns true.
    #[inline]
    pub(super) fn visit(&mut self, address: usize, bytes: usize, mut visit: impl FnMut(&mut Cell) -> bool) {
        let (mut at, end) = (address - self.base, address - self.base + bytes);
        while at < end {
            let page = self.pages[at / PAGE].get_or_insert_with(Page::new);
            let stop = end.min((at / PAGE + 1) * PAGE);
            if page.width == 4 && (at | stop) & 3 != 0 {
                page.refine();
            }
            let width = page.width;
            let cells = &mut page.cells[at % PAGE / width..(at % PAGE + stop - at) / width];
            if cells.iter_mut().any(&mut visit) {
                return;
            }
            at = stop;
        }
    }
}

impl Page {
    fn new() -> Page {
        Page { cells: vec![Cell::default(); PAGE / 4], width: 4 }
    }

    fn refine(&mut self) {
        self.cells = self.cells.iter().flat_map(|cell| [*cell; 4]).collect();
        self.width = 1;
    }
}
