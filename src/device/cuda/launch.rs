//! Kernels and how they are called: families, launch geometry, arguments.
//!
//! `build.rs` reads `kernels/*.cu` and writes one function for each family into `crate::kernels`. A
//! `const T*` becomes an [`In`], a `T*` an [`Out`], so that an input cannot be passed for an output.

use super::arch::Arch;
pub(super) use super::driver::Address;
use super::tensor_map::TensorMapSpec;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use std::marker::PhantomData;

/// A file `kernels/<stem>.cu`.
#[derive(Debug)]
pub struct Source {
    /// The file's name without its ending.
    pub stem: &'static str,
    /// Its text.
    pub text: &'static str,
    /// Its families, in their order.
    pub families: &'static [&'static Family],
}

impl Source {
    /// All its kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &'static Kernel> {
        self.families.iter().flat_map(|f| f.kernels)
    }
}

/// The kernels that one `__global__` function stands for: a template with its instances, or one alone.
#[derive(Debug)]
pub struct Family {
    /// The function's name.
    pub name: &'static str,
    /// Its instances, in their order.
    pub kernels: &'static [Kernel],
}

impl Family {
    /// The instance with these arguments on a GPU of compute capability `arch` (90 for 9.0).
    ///
    /// # Errors
    /// [`Error::Device`] naming kernel, type, tile and what there is instead.
    pub fn instance(&self, dtype: Option<DType>, tile: Option<&Tile>, arch: u32) -> Result<&'static Kernel> {
        let fits = |k: &&Kernel| k.dtype == dtype && k.tile == tile && k.arch.is_none_or(|a| a.number == arch);
        self.kernels.iter().find(fits).ok_or_else(|| {
            let words = dtype.map(|d| d.to_string()).into_iter().chain(tile.map(|t| t.name.to_string()));
            self.lacks(&words.collect::<Vec<_>>().join(", "))
        })
    }

    /// The tiles that there are for a type on a GPU of compute capability `arch`.
    pub fn tiles(&self, dtype: DType, arch: u32) -> impl Iterator<Item = &'static Tile> {
        let fits = move |k: &&Kernel| k.dtype == Some(dtype) && k.arch.is_none_or(|a| a.number == arch);
        self.kernels.iter().filter(fits).filter_map(|k| k.tile)
    }

    /// The error that there is no instance with these arguments.
    pub(crate) fn lacks(&self, arguments: &str) -> Error {
        let there = self.kernels.iter().map(|k| k.arch.map_or(k.name.into(), |a| format!("{} ({a} only)", k.name)));
        Error::Device {
            device: "cuda".into(),
            problem: format!("kernel `{}` has no instance for {arguments} on this device", self.name),
            remedy: format!("there are {}; its file's `Instances:` line says so", there.collect::<Vec<_>>().join(", ")),
        }
    }
}

/// A kernel: an instance of a family.
#[derive(Debug)]
pub struct Kernel {
    /// Where it is written.
    pub source: &'static Source,
    /// Its family's name.
    pub family: &'static str,
    /// Its name with its arguments, as C++ writes it: `linear_fwd<float, Simt64>`.
    pub name: &'static str,
    /// Its place among all kernels.
    pub index: usize,
    /// The type that it stores activations in, where it is a template over one.
    pub dtype: Option<DType>,
    /// Its tile, where it is a template over one.
    pub tile: Option<&'static Tile>,
    /// The architecture whose own features it uses, if it does.
    pub arch: Option<Arch>,
    /// Threads per block, at most: its `__launch_bounds__`.
    pub threads: u32,
    /// Registers per thread that its header allows.
    pub registers: u32,
    /// It as compiled for the emulated device: plain, and with every access to memory reported to the checker.
    #[cfg(tilework_emulator)]
    pub thunks: Option<[Thunk; 2]>,
}

/// How a block cuts a matrix product: a struct of `kernels/product.cuh` or `kernels/conv2d_halo.cu`.
#[derive(Debug, PartialEq)]
pub struct Tile {
    /// Its name there.
    pub name: &'static str,
    /// Rows of a block's tile.
    pub m: usize,
    /// Columns of a block's tile.
    pub n: usize,
    /// Elements along K that a step takes.
    pub k: usize,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that a multiprocessor shall hold; 0: as many as fit.
    pub blocks: u32,
    /// Nanoseconds that a step takes at least, on an H100.
    pub latency: u32,
    /// Percent of a full multiprocessor's arithmetic that does something, there.
    pub speed: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Whether operands come by tensor maps, which some sizes allow; blocks of such a tile walk over the tiles.
    pub maps: bool,
    /// Whether it is cut from the transpose of the product: `m` are columns of the product then, and `n` rows.
    pub transposed: bool,
    /// Whether the blocks of a cluster can share one: from sm_90 on.
    pub cluster: bool,
    /// Whether its kernels can store a gradient as ReLU passes it on.
    pub masks: bool,
}

/// A kernel compiled for the host; `args[i]` points to its argument `i`.
pub type Thunk = unsafe extern "C" fn(*const *mut std::ffi::c_void);

/// In which order the threads of a block, and the blocks of a grid, begin and go on.
///
/// It can be chosen on the emulated device. A kernel that is right gives the same result in every order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// By index.
    Forward,
    /// By index, last first.
    Reverse,
    /// Shuffled, and again at every barrier; the same seed gives the same order.
    Random(u64),
}

/// A type that kernels are compiled for: the `T` of their sources.
pub trait KernelType: Element {}

impl KernelType for f32 {}
impl KernelType for half::f16 {}
impl KernelType for half::bf16 {}

/// [`with_type`](crate::dtype::with_type) for the [`KernelType`]s.
macro_rules! with_kernel_type {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        $crate::dtype::with_type!(
            $op, $dtype, [F32 = f32, F16 = half::f16, BF16 = half::bf16], "elements of type f32, f16 or bf16 on this device",
            "convert the tensor to f32 first, or use the CPU", $T => $body
        )
    };
}
pub(crate) use with_kernel_type;

/// Threads of a block in kernels that treat each element alike.
pub const BLOCK: u32 = 256;
/// Multiprocessors of a large GPU, which grids are cut for: an H100's.
pub const MULTIPROCESSORS: usize = 132;

/// The two numbers with which kernels divide by `divisor`, at least 1 and below 2^31 (`divide` in
/// `kernels/common.cuh`).
///
/// Source: Granlund, Montgomery, "Division by Invariant Integers using Multiplication", 1994.
pub(crate) fn magic(divisor: usize) -> [u32; 2] {
    let divisor = divisor as u64;
    let shift = divisor.next_power_of_two().trailing_zeros();
    let magic = (1u64 << 32) * ((1u64 << shift) - divisor) / divisor + 1;
    [magic as u32, shift]
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads per block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Blocks of a cluster, which run at once and share their shared memory; from sm_90 on.
    pub cluster: [u32; 3],
    /// Floating-point operations, for reports.
    pub flops: f64,
    /// Whether the kernel strides over what its grid does not cover, so that any grid will do.
    pub strides: bool,
}

impl Launch {
    /// `blocks` blocks of `threads` threads in a row.
    pub fn new(blocks: usize, threads: u32) -> Self {
        let grid = [blocks as u32, 1, 1];
        Launch { grid, block: [threads, 1, 1], shared: 0, cluster: [1; 3], flops: 0.0, strides: false }
    }

    /// At least one thread of a block of [`BLOCK`] for each of `n` elements, up to as many blocks as
    /// keep a large GPU busy: the kernel strides over the rest.
    pub fn each(n: usize) -> Self {
        Launch { strides: true, ..Launch::new(n.div_ceil(BLOCK as usize).min(4096), BLOCK) }
    }

    /// A thread for each of `n` elements, however many blocks that takes: each is over soon, and makes room for what is to go
    /// before the rest.
    pub fn briefly(n: usize) -> Self {
        Launch { strides: true, ..Launch::new(n.div_ceil(BLOCK as usize), BLOCK) }
    }

    /// Blocks of `width` by `height` threads; the grid is yet to be given.
    pub fn tile(width: u32, height: u32) -> Self {
        Launch { block: [width, height, 1], ..Launch::new(0, 0) }
    }

    /// With another grid.
    pub fn grid(self, x: usize, y: usize, z: usize) -> Self {
        Launch { grid: [x as u32, y as u32, z as u32], ..self }
    }

    /// With dynamic shared memory.
    pub fn shared(self, bytes: usize) -> Self {
        Launch { shared: bytes as u32, ..self }
    }

    /// In clusters of so many blocks; each divides the grid.
    pub fn cluster(self, x: u32, y: u32, z: u32) -> Self {
        Launch { cluster: [x, y, z], ..self }
    }

    /// With the number of floating-point operations.
    pub fn flops(self, flops: usize) -> Self {
        Launch { flops: flops as f64, ..self }
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// A pointer to this much memory.
    Memory {
        /// The parameter's name.
        name: &'static str,
        /// Where the memory begins; 0 for a null pointer.
        address: Address,
        /// Its size.
        bytes: usize,
        /// Whether the kernel may write it.
        writable: bool,
    },
    /// Memory, by its map.
    Map(&'a MappedTensor),
    /// A value, as its bytes.
    Value(&'a [u8]),
}

/// Memory that a kernel reads.
#[derive(Clone, Copy, Debug)]
pub struct In<'a, T> {
    address: Address,
    len: usize,
    borrow: PhantomData<&'a [T]>,
}

impl<T: bytemuck::Pod> In<'_, T> {
    /// `len` elements from `address` on.
    pub(crate) fn new(address: Address, len: usize) -> Self {
        In { address, len, borrow: PhantomData }
    }

    /// Where it begins, for a tensor map.
    pub fn address(&self) -> Address {
        self.address
    }

    pub(crate) fn arg(&self, name: &'static str) -> Arg<'static> {
        Arg::Memory { name, address: self.address, bytes: self.len * size_of::<T>(), writable: false }
    }
}

/// Memory that a kernel writes, and may read.
#[derive(Debug)]
pub struct Out<'a, T> {
    address: Address,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

impl<T: bytemuck::Pod> Out<'_, T> {
    /// `len` elements from `address` on.
    pub(crate) fn new(address: Address, len: usize) -> Self {
        Out { address, len, borrow: PhantomData }
    }

    /// Where it begins, for a tensor map.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The same memory, for another launch.
    pub(crate) fn again(&mut self) -> Out<'_, T> {
        Out::new(self.address, self.len)
    }

    pub(crate) fn arg(&self, name: &'static str) -> Arg<'static> {
        Arg::Memory { name, address: self.address, bytes: self.len * size_of::<T>(), writable: true }
    }
}

/// A tensor map (`CUtensorMap`): what the tensor memory accelerator of sm_90 knows of a tensor that it
/// copies tiles of. The bytes are the driver's.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

/// A tensor that a kernel gets by its map.
#[derive(Clone, Debug)]
pub struct MappedTensor {
    /// What the map says.
    pub spec: TensorMapSpec,
    /// The map.
    pub map: TensorMap,
}

/// A null pointer where the kernel allows one.
pub(crate) const fn null(name: &'static str) -> Arg<'static> {
    Arg::Memory { name, address: 0, bytes: 0, writable: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_by_multiplication_is_exact() {
        let divide = |n: u64, [magic, shift]: [u32; 2]| (((n * u64::from(magic)) >> 32) + n) >> shift;
        let divisors = (1..200).chain([1023, 1024, 1025, 65_535, 1_000_003, (1 << 30) + 1, (1 << 31) - 1]);
        for d in divisors {
            let m = magic(d as usize);
            let near = |k: u64| [k.saturating_sub(1), k, k + 1];
            let numbers = (0..50).flat_map(|i| near(i * d)).chain(near((1 << 31) / d * d)).chain([(1 << 31) - 1]);
            for n in numbers.filter(|&n| n < 1 << 31) {
                assert_eq!(divide(n, m), n / d, "{n} / {d}");
            }
        }
    }
}
