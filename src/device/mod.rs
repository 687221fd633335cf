//! Devices and the memory on them.
//!
//! A [`Device`] is a value, cheap to clone. A [`Buffer`] is a run of elements in a device's memory;
//! it goes back to the device's pool when it is dropped, and the pool hands it out again for the
//! next request of exactly that size. A training step asks for the same sizes every time, so from
//! the second step on nothing is allocated ([`MemoryStats::allocations`] stands still).

pub mod cpu;

use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use std::fmt;

/// Where tensors live and ops run.
#[derive(Clone)]
pub enum Device {
    /// The host's processor, ops spread over rayon's threads.
    Cpu(cpu::Cpu),
}

impl Device {
    /// The CPU, with a memory pool of its own.
    pub fn cpu() -> Self {
        Device::Cpu(cpu::Cpu::default())
    }

    /// The name that `--device` takes.
    pub fn name(&self) -> &'static str {
        match self {
            Device::Cpu(_) => "cpu",
        }
    }

    /// Counters of this device's memory pool.
    pub fn memory(&self) -> MemoryStats {
        match self {
            Device::Cpu(cpu) => cpu.stats(),
        }
    }

    /// Checks that `bytes` of memory are free; true where the system does not tell.
    ///
    /// # Errors
    /// [`Error::Device`] saying how much is needed and how much there is.
    pub fn check_fits(&self, bytes: usize, what: &str) -> Result<()> {
        let free = match self {
            Device::Cpu(_) => cpu::free_memory(),
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
    pub fn alloc(&self, dtype: DType, len: usize) -> Buffer {
        match self {
            Device::Cpu(cpu) => {
                Buffer { dtype, len, device: self.clone(), memory: Memory::Host(cpu.alloc(dtype.size() * len)) }
            }
        }
    }
}

impl PartialEq for Device {
    /// Whether both are the same device with the same pool.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Device::Cpu(a), Device::Cpu(b)) => a == b,
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
    Host(cpu::Block),
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
    /// [`Error::Internal`] if `T` is not the element type.
    pub fn host<T: Element>(&self) -> Result<&[T]> {
        self.expect::<T>()?;
        match &self.memory {
            Memory::Host(block) => Ok(&bytemuck::cast_slice(block.lines())[..self.len]),
        }
    }

    /// The elements, in host memory, to be written.
    ///
    /// # Errors
    /// [`Error::Internal`] if `T` is not the element type.
    pub fn host_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.expect::<T>()?;
        match &mut self.memory {
            Memory::Host(block) => Ok(&mut bytemuck::cast_slice_mut(block.lines_mut())[..self.len]),
        }
    }

    /// Sets every byte to zero.
    pub fn zero(&mut self) {
        match &mut self.memory {
            Memory::Host(block) => bytemuck::cast_slice_mut::<_, u8>(block.lines_mut()).fill(0),
        }
    }

    fn expect<T: Element>(&self) -> Result<()> {
        if T::DTYPE == self.dtype {
            return Ok(());
        }
        Err(Error::Internal(format!("a buffer of {} was read as {}", self.dtype, T::DTYPE)))
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} × {} on {})", self.len, self.dtype, self.device.name())
    }
}
