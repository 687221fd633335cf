//! What a kernel takes by itself, without its launch.
//!
//! A launch is recorded many times in one graph, so that the host's part of it is paid once. The
//! launches work on copies of the arguments' memory that take turns and together are larger than the
//! L2 cache, so that each finds its inputs where a long step leaves them: in the GPU's memory.

use super::driver::{Address, Driver, Graph};
use super::launch::{Arg, Kernel, Launch, MappedTensor};
use super::tensor_map::TensorMapSpec;
use crate::error::{Error, Result};
use std::time::Duration;

/// A launch that was timed.
#[derive(Clone, Debug)]
pub struct Timing {
    /// The kernel's name.
    pub kernel: &'static str,
    /// The device's time.
    pub time: Duration,
    /// Bytes of its arguments: each must be read or written once at least.
    pub bytes: usize,
    /// Floating-point operations.
    pub flops: f64,
}

/// Copies of the arguments at most: smaller arguments stay in the L2, as they do in a step.
const MOST_COPIES: usize = 256;
/// Launches in the graph at least, and its replays, of which the median counts.
const LAUNCHES: usize = 32;
const REPLAYS: usize = 5;

impl Timing {
    /// Times a launch. What its arguments hold stays as it is.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no memory for a copy of the arguments, or the device fails.
    ///
    /// # Safety
    /// As for [`Driver::launch`].
    pub unsafe fn of(driver: &dyn Driver, kernel: &'static Kernel, launch: &Launch, args: &[Arg<'_>]) -> Result<Self> {
        // The emulated device, which has no L2 cache, has no launch worth hiding, and takes its time.
        let (least, replays) = if driver.info().l2_bytes == 0 { (2, 1) } else { (LAUNCHES, REPLAYS) };
        let bytes = args.iter().map(|arg| memory(arg).1).sum();
        let copies = Copies::new(driver, args, copies(driver.info().l2_bytes, bytes)).map_err(|e| match e {
            Error::Device { device, problem, remedy } => {
                Error::Device { device, problem: format!("timing kernel `{}`: {problem}", kernel.name), remedy }
            }
            other => other,
        })?;
        let launches = least.next_multiple_of(copies.count);
        driver.begin_capture()?;
        // SAFETY: the caller's promise; a copy is as large as what it is a copy of.
        let recorded = (0..launches)
            .try_for_each(|i| unsafe { driver.launch(kernel, launch, &copies.args(args, i % copies.count)) });
        // Also after an error: the stream must not stay in capture.
        let graph = driver.end_capture();
        recorded?;
        let graph = graph?;
        graph.replay()?;
        let time = |graph: &dyn Graph| driver.time(&mut || graph.replay());
        let mut times = (0..replays).map(|_| time(graph.as_ref())).collect::<Result<Vec<_>>>()?;
        times.sort();
        let time = times[replays / 2] / launches as u32;
        Ok(Timing { kernel: kernel.name, time, bytes, flops: launch.flops })
    }
}

/// How many copies of so many bytes are together twice as large as the L2.
fn copies(l2_bytes: usize, bytes: usize) -> usize {
    (2 * l2_bytes).div_ceil(bytes.max(1)).clamp(1, MOST_COPIES)
}

/// An argument's memory: address and size; nothing of a value.
fn memory(arg: &Arg<'_>) -> (Address, usize) {
    match *arg {
        Arg::Memory { address, bytes, .. } => (address, bytes),
        Arg::Map(tensor) => (tensor.spec.address, tensor.spec.extent()),
        Arg::Value(_) => (0, 0),
    }
}

/// Copies of the memory that a launch's arguments point to, one behind the other.
struct Copies<'d> {
    driver: &'d dyn Driver,
    block: Address,
    /// Where in a copy each argument's memory begins, and the bytes of a copy.
    places: Vec<usize>,
    stride: usize,
    count: usize,
    /// In each copy, each argument that is given by its map.
    maps: Vec<Vec<Option<MappedTensor>>>,
}

impl<'d> Copies<'d> {
    /// As many copies as were asked for, or as there is memory for.
    fn new(driver: &'d dyn Driver, args: &[Arg<'_>], mut count: usize) -> Result<Self> {
        const ALIGN: usize = 256;
        let (mut places, mut stride) = (Vec::new(), 0);
        for (address, bytes) in args.iter().map(memory) {
            // Aligned as the argument is: kernels move more at once where they can.
            places.push(stride + address as usize % ALIGN);
            stride = (stride + address as usize % ALIGN + bytes).next_multiple_of(ALIGN);
        }
        let stride = stride.max(ALIGN);
        let block = loop {
            match driver.alloc(stride * count)? {
                Some(block) => break block,
                None if count > 1 => count /= 2,
                None => {
                    return Err(Error::Device {
                        device: driver.info().name.clone(),
                        problem: format!("there are no {stride} bytes of memory for a copy of its arguments"),
                        remedy: "use a smaller batch".into(),
                    });
                }
            }
        };
        let mut copies = Copies { driver, block, places, stride, count, maps: Vec::new() };
        for i in 0..count {
            let map = |(arg, place): (&Arg<'_>, &usize)| match *arg {
                Arg::Map(tensor) => {
                    let spec = TensorMapSpec { address: copies.at(i, *place), ..tensor.spec.clone() };
                    let map = driver.tensor_map(&spec)?;
                    Ok(Some(MappedTensor { spec, map }))
                }
                _ => Ok(None),
            };
            let maps = args.iter().zip(&copies.places).map(map).collect::<Result<_>>()?;
            copies.maps.push(maps);
            for (from, to) in args.iter().map(memory).zip(copies.args(args, i).iter().map(memory)) {
                if from.0 != 0 {
                    // SAFETY: the launch's memory is as large as it says, and so is its copy.
                    unsafe { driver.copy(to.0, from.0, from.1)? };
                }
            }
        }
        Ok(copies)
    }

    /// A place in the copy of this number.
    fn at(&self, number: usize, place: usize) -> Address {
        self.block + (number * self.stride + place) as Address
    }

    /// The arguments with their memory in the copy of this number.
    fn args<'a>(&'a self, args: &[Arg<'a>], number: usize) -> Vec<Arg<'a>> {
        let mut args = args.to_vec();
        for (i, arg) in args.iter_mut().enumerate() {
            match arg {
                Arg::Memory { address, .. } if *address != 0 => *address = self.at(number, self.places[i]),
                Arg::Map(tensor) => *tensor = self.maps[number][i].as_ref().unwrap_or(tensor),
                _ => {}
            }
        }
        args
    }
}

impl Drop for Copies<'_> {
    fn drop(&mut self) {
        // Launches may be under way if one of them could not be made; an error has no one to tell.
        let _ = self.driver.sync();
        // SAFETY: from `alloc` with this size, and nothing uses it any more.
        unsafe { self.driver.free(self.block, self.stride * self.count) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_leave_the_cache_behind() {
        assert_eq!(copies(50 << 20, 1 << 20), 100);
        assert_eq!(copies(50 << 20, (1 << 20) - 1), 101);
        assert_eq!(copies(50 << 20, 1 << 30), 1);
        assert_eq!(copies(50 << 20, 40), MOST_COPIES);
        assert_eq!((copies(0, 40), copies(0, 0), copies(100, 0)), (1, 1, 200));
    }
}
