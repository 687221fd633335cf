//! Devices and the memory on them.
//!
//! A [`Device`] is a value, cheap to clone. A [`Buffer`] is a run of elements in a device's memory;
//! it goes back to the device's pool when it is dropped, and the pool hands it out again for the
//! next request of exactly that size. A training step asks for the same sizes every time, so from
//! the second step on nothing is allocated ([`MemoryStats::allocations`] stands still).

pub mod cpu;
pub mod cuda;
#[cfg(tilework_emulator)]
pub mod emulator;

use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::step::Step;
use cuda::{Cuda, In, Out};
use std::fmt;
use std::ops::Range;

/// Where tensors live and ops run.
#[derive(Clone)]
pub enum Device {
    /// The host's processor, ops spread over rayon's threads.
    Cpu(cpu::Cpu),
    /// A CUDA device: a GPU, or the emulated one.
    Cuda(Cuda),
}

/// Elements of a tensor on a CUDA device: kernels count them in an `int`, in steps of a grid's threads.
const MOST_ELEMENTS: usize = i32::MAX as usize - (1 << 20);

impl Device {
    /// The CPU, with a memory pool of its own.
    pub fn cpu() -> Self {
        Device::Cpu(cpu::Cpu::default())
    }

    /// The name that `--device` takes.
    pub fn name(&self) -> &'static str {
        match self {
            Device::Cpu(_) => "cpu",
            Device::Cuda(cuda) if cuda.is_emulated() => "emulated",
            Device::Cuda(_) => "cuda",
        }
    }

    /// Whether networks can be trained on it with activations of a type.
    pub fn computes_in(&self, dtype: DType) -> bool {
        match (self, dtype) {
            (Device::Cpu(_), _) => matches!(dtype, DType::F32 | DType::F64),
            // The emulated device has no number.
            (Device::Cuda(cuda), DType::BF16) => !(1..80).contains(&cuda.info().arch),
            (Device::Cuda(_), _) => matches!(dtype, DType::F32 | DType::F16),
        }
    }

    /// Counters of this device's memory pool.
    pub fn memory(&self) -> MemoryStats {
        match self {
            Device::Cpu(cpu) => cpu.stats(),
            Device::Cuda(cuda) => cuda.stats(),
        }
    }

    /// Checks that `bytes` of memory are free; true where the system does not tell.
    ///
    /// # Errors
    /// [`Error::Device`] saying how much is needed and how much there is.
    pub fn check_fits(&self, bytes: usize, what: &str) -> Result<()> {
        let free = match self {
            Device::Cpu(_) => cpu::free_memory(),
            Device::Cuda(cuda) => Some(cuda.free_memory()?),
        };
        let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
        match free {
            Some(free) if bytes > free => Err(Error::Device {
                device: self.name().into(),
                problem: format!("{what} needs {:.1} GiB of memory, and {:.1} GiB are free", gib(bytes), gib(free)),
                remedy: "use a smaller batch, or fewer channels or features".into(),
            }),
            _ => Ok(()),
        }
    }

    /// Memory for `len` elements. Its contents are unspecified: whoever asks must write every element.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn alloc(&self, dtype: DType, len: usize) -> Result<Buffer> {
        let bytes = dtype.size() * len;
        let memory = match self {
            Device::Cpu(cpu) => Memory::Host(cpu.alloc(bytes)?),
            Device::Cuda(_) if len > MOST_ELEMENTS => {
                return Err(Error::Device {
                    device: self.name().into(),
                    problem: format!("a tensor of {len} elements, and kernels count up to {MOST_ELEMENTS}"),
                    remedy: "use a smaller batch, or fewer channels or features".into(),
                });
            }
            Device::Cuda(cuda) => Memory::Cuda(cuda.alloc(bytes)?),
        };
        Ok(Buffer { dtype, len, device: self.clone(), memory })
    }

    /// Tells the device at which step it is: CUDA kernels read it from its memory.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn set_step(&self, state: &Step) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(cuda) => cuda.set_step(state),
        }
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// [`Error::Device`] if the device, or the work, failed.
    pub fn sync(&self) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(cuda) => cuda.sync(),
        }
    }
}

impl PartialEq for Device {
    /// Whether both are the same device with the same pool.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Device::Cpu(a), Device::Cpu(b)) => a == b,
            (Device::Cuda(a), Device::Cuda(b)) => a == b,
            _ => false,
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a device's memory pool has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Requests that the pool could not serve from what it held.
    pub allocations: u64,
    /// Bytes in buffers that are alive.
    pub in_use: usize,
    /// The most that `in_use` has been.
    pub peak: usize,
}

/// A run of elements of one type in a device's memory.
pub struct Buffer {
    dtype: DType,
    len: usize,
    device: Device,
    memory: Memory,
}

enum Memory {
    Host(cpu::HostMemory),
    Cuda(cuda::DeviceMemory),
}

impl Buffer {
    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device whose memory this is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The elements, in host memory.
    ///
    /// # Errors
    /// [`Error::Internal`] if `T` is not the element type, or they are in another device's memory.
    pub fn host<T: Element>(&self) -> Result<&[T]> {
        self.expect::<T>()?;
        match &self.memory {
            Memory::Host(block) => Ok(&bytemuck::cast_slice(block.lines())[..self.len]),
            Memory::Cuda(_) => Err(not_on_the_host()),
        }
    }

    /// The elements, in host memory, to be written.
    ///
    /// # Errors
    /// As [`Buffer::host`].
    pub fn host_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.expect::<T>()?;
        match &mut self.memory {
            Memory::Host(block) => Ok(&mut bytemuck::cast_slice_mut(block.lines_mut())[..self.len]),
            Memory::Cuda(_) => Err(not_on_the_host()),
        }
    }

    /// A copy of some elements, wherever they are.
    ///
    /// # Errors
    /// [`Error::Internal`] if `T` is not the element type; [`Error::Device`] if the device fails.
    pub fn read<T: Element>(&self, range: Range<usize>) -> Result<Vec<T>> {
        match (&self.memory, &self.device) {
            (Memory::Cuda(block), Device::Cuda(cuda)) => {
                self.expect::<T>()?;
                let mut out: Vec<T> = cpu::Cpu::zeros(range.len())?;
                cuda.read(block, range.start * size_of::<T>(), bytemuck::cast_slice_mut(&mut out))?;
                Ok(out)
            }
            _ => Ok(self.host::<T>()?[range].to_vec()),
        }
    }

    /// A copy in the memory of `host`, a CPU device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Internal`] if `host` is no CPU; [`Error::Device`] if the device fails.
    pub fn to_host(&self, host: &Device) -> Result<Buffer> {
        let mut copy = host.alloc(self.dtype, self.len)?;
        let Memory::Host(to) = &mut copy.memory else { return Err(not_on_the_host()) };
        match (&self.memory, &self.device) {
            (Memory::Cuda(from), Device::Cuda(cuda)) => {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(to.lines_mut());
                cuda.read(from, 0, &mut bytes[..self.len * self.dtype.size()])?;
            }
            (Memory::Host(from), _) => to.lines_mut().copy_from_slice(from.lines()),
            _ => return Err(Error::Internal(format!("{self:?} has another device's memory"))),
        }
        Ok(copy)
    }

    /// Writes elements from `start` on, wherever they are.
    ///
    /// # Errors
    /// As [`Buffer::read`].
    pub fn write<T: Element>(&mut self, start: usize, values: &[T]) -> Result<()> {
        self.expect::<T>()?;
        match (&mut self.memory, &self.device) {
            (Memory::Cuda(block), Device::Cuda(cuda)) => {
                let cuda = cuda.clone();
                cuda.write(block, start * size_of::<T>(), bytemuck::cast_slice(values))
            }
            _ => {
                self.host_mut::<T>()?[start..start + values.len()].copy_from_slice(values);
                Ok(())
            }
        }
    }

    /// Copies `len` elements of a buffer of the same device and type.
    ///
    /// # Errors
    /// [`Error::Internal`] if devices or types differ; [`Error::Device`] if the device fails.
    pub fn copy_from(&mut self, to: usize, other: &Buffer, from: usize, len: usize) -> Result<()> {
        let size = self.dtype.size();
        let alike = self.dtype == other.dtype && self.device == other.device;
        match (&mut self.memory, &other.memory, &self.device) {
            (Memory::Cuda(block), Memory::Cuda(source), Device::Cuda(cuda)) if alike => {
                let cuda = cuda.clone();
                cuda.copy(block, to * size, source, from * size, len * size)
            }
            (Memory::Host(block), Memory::Host(source), _) if alike => {
                let source: &[u8] = bytemuck::cast_slice(source.lines());
                let block: &mut [u8] = bytemuck::cast_slice_mut(block.lines_mut());
                block[to * size..][..len * size].copy_from_slice(&source[from * size..][..len * size]);
                Ok(())
            }
            _ => Err(Error::Internal(format!("{other:?} was to be copied to {self:?}"))),
        }
    }

    /// Sets every element to zero.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn zero(&mut self) -> Result<()> {
        self.zero_range(0..self.len)
    }

    /// Sets some elements to zero.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn zero_range(&mut self, range: Range<usize>) -> Result<()> {
        let size = self.dtype.size();
        match (&mut self.memory, &self.device) {
            (Memory::Cuda(block), Device::Cuda(cuda)) => {
                let cuda = cuda.clone();
                cuda.zero(block, range.start * size, range.len() * size)
            }
            (Memory::Host(block), _) => {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(block.lines_mut());
                bytes[range.start * size..range.end * size].fill(0);
                Ok(())
            }
            _ => Err(Error::Internal(format!("{self:?} has another device's memory"))),
        }
    }

    /// Some elements as the input of a CUDA kernel.
    ///
    /// # Errors
    /// [`Error::Internal`] if `T` is not the element type or they are not on a CUDA device.
    pub fn input<T: Element>(&self, range: Range<usize>) -> Result<In<'_, T>> {
        Ok(In::new(self.address::<T>(&range)?, range.len()))
    }

    /// Some elements as the output of a CUDA kernel.
    ///
    /// # Errors
    /// As [`Buffer::input`].
    pub fn output<T: Element>(&mut self, range: Range<usize>) -> Result<Out<'_, T>> {
        Ok(Out::new(self.address::<T>(&range)?, range.len()))
    }

    fn address<T: Element>(&self, range: &Range<usize>) -> Result<cuda::Address> {
        self.expect::<T>()?;
        match &self.memory {
            Memory::Cuda(block) => block.at(range.start * size_of::<T>(), range.len() * size_of::<T>()),
            Memory::Host(_) => Err(Error::Internal(format!("{self:?} was given to a CUDA kernel"))),
        }
    }

    fn expect<T: Element>(&self) -> Result<()> {
        if T::DTYPE == self.dtype {
            return Ok(());
        }
        Err(Error::Internal(format!("a buffer of {} was read as {}", self.dtype, T::DTYPE)))
    }
}

fn not_on_the_host() -> Error {
    Error::Internal("a buffer of a CUDA device was used as host memory".into())
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} × {} on {})", self.len, self.dtype, self.device.name())
    }
}
