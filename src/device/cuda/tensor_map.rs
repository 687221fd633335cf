//! What a tensor map says, the driver's rules for it (`cuTensorMapEncodeTiled`, `cuTensorMapEncodeIm2col`), and its map.

use super::driver::Address;
use super::launch::TensorMap;
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::c_void;

/// How the 16-byte chunks of a box's rows are stirred in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    None,
    /// Within rows of 32 bytes.
    B32,
    /// Within rows of 64 bytes.
    B64,
    /// Within rows of 128 bytes.
    B128,
}

impl Swizzle {
    /// The bytes of a row; 0 without a swizzle.
    pub fn row(self) -> u32 {
        match self {
            Swizzle::None => 0,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
}

/// What is copied at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorMapBox {
    /// So many elements in each dimension, every `steps`-th of them; the first dimension's step is 1.
    Tiled {
        /// At most 256 in a dimension.
        sizes: Vec<u32>,
        /// 1 to 8.
        steps: Vec<u32>,
    },
    /// A column of pixels, with some channels of each. Pixels are walked row by row within a bounding box that begins
    /// at `lower` and ends `upper` behind the last pixel (before it, if negative); the first dimension is channels, the
    /// last one images.
    Im2col {
        /// Of the bounding box, for each dimension between channels and images: width first.
        lower: Vec<i32>,
        /// Likewise.
        upper: Vec<i32>,
        /// Channels of each pixel, at most 256.
        channels: u32,
        /// Pixels, at most 1024.
        pixels: u32,
        /// From pixel to pixel, for each dimension as above: 1 to 8.
        steps: Vec<u32>,
    },
}

/// A tensor in global memory, and how boxes of it are copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMapSpec {
    /// Bytes of an element: 1, 2, 4 or 8.
    pub element: u32,
    /// Where the tensor begins.
    pub address: Address,
    /// Elements in each dimension, the one whose elements lie side by side first.
    pub dims: Vec<u32>,
    /// Bytes from element to element, for each dimension but the first.
    pub strides: Vec<u64>,
    /// What is copied at once.
    pub part: TensorMapBox,
    /// Where it lies in shared memory.
    pub swizzle: Swizzle,
}

impl TensorMapSpec {
    /// A tensor without gaps, and boxes of neighbours.
    pub fn tiled(element: u32, address: Address, dims: &[u32], sizes: &[u32], swizzle: Swizzle) -> Self {
        let part = TensorMapBox::Tiled { sizes: sizes.to_vec(), steps: vec![1; dims.len()] };
        TensorMapSpec { element, address, dims: dims.to_vec(), strides: dense(element, dims), part, swizzle }
    }

    /// Images `[n, h, w, c]` without gaps, and columns of pixels.
    pub fn im2col(
        element: u32,
        address: Address,
        [n, h, w, c]: [u32; 4],
        column: TensorMapBox,
        swizzle: Swizzle,
    ) -> Self {
        let dims = [c, w, h, n];
        TensorMapSpec { element, address, dims: dims.to_vec(), strides: dense(element, &dims), part: column, swizzle }
    }

    /// Bytes of a box.
    pub fn bytes(&self) -> u32 {
        self.element
            * match &self.part {
                TensorMapBox::Tiled { sizes, steps } => {
                    sizes.iter().zip(steps).map(|(n, step)| n.div_ceil(*step)).product()
                }
                TensorMapBox::Im2col { channels, pixels, .. } => channels * pixels,
            }
    }

    /// Bytes of a tensor without gaps.
    pub(super) fn extent(&self) -> usize {
        self.dims.iter().map(|d| *d as usize).product::<usize>() * self.element as usize
    }

    /// # Errors
    /// [`Error::Internal`] naming the rule that is broken.
    pub fn check(&self) -> Result<()> {
        let rank = self.dims.len();
        let rule = |kept: bool, what: &str| match kept {
            true => Ok(()),
            false => Err(Error::Internal(format!("tensor map: {what}; it is {self:?}"))),
        };
        rule((1..=5).contains(&rank), "a tensor has 1 to 5 dimensions")?;
        rule(matches!(self.element, 1 | 2 | 4 | 8), "an element has 1, 2, 4 or 8 bytes")?;
        rule(self.address != 0 && self.address.is_multiple_of(16), "the address is a multiple of 16")?;
        rule(self.dims.iter().all(|d| *d > 0), "no dimension is empty")?;
        rule(self.strides.len() == rank - 1, "there is a stride for each dimension but the first")?;
        rule(self.strides.iter().all(|s| s % 16 == 0 && *s < 1 << 40), "strides are multiples of 16 below 2^40")?;
        let inner = match &self.part {
            TensorMapBox::Tiled { sizes, steps } => {
                rule(sizes.len() == rank && steps.len() == rank, "a box has as many dimensions as its tensor")?;
                rule(sizes.iter().all(|s| (1..=256).contains(s)), "a box has 1 to 256 elements in each dimension")?;
                rule(
                    steps.iter().all(|s| (1..=8).contains(s)) && steps[0] == 1,
                    "steps are 1 to 8, the first one is 1",
                )?;
                sizes[0] * self.element
            }
            TensorMapBox::Im2col { lower, upper, channels, pixels, steps } => {
                rule((3..=5).contains(&rank), "im2col is for 3 to 5 dimensions")?;
                let all = [lower.len(), upper.len(), steps.len()];
                rule(all == [rank - 2; 3], "corners and steps are for the dimensions between channels and images")?;
                let most = [1 << 15, 1 << 7, 1 << 4][rank - 3];
                let fits = |c: &i32| (-most..most).contains(c);
                rule(lower.iter().chain(upper).all(fits), "a corner fits 16, 8 or 5 bits for 1, 2 or 3 dimensions")?;
                rule((1..=256).contains(channels), "a pixel has 1 to 256 channels")?;
                rule((1..=1024).contains(pixels), "a column has 1 to 1024 pixels")?;
                rule(steps.iter().all(|s| (1..=8).contains(s)), "steps are 1 to 8")?;
                channels * self.element
            }
        };
        rule(inner % 16 == 0, "a box's row has a multiple of 16 bytes")?;
        // The hardware takes shorter ones and pads them in a way that nobody here has measured.
        let row = self.swizzle.row();
        rule(row == 0 || inner == row, "a box's row has as many bytes as the swizzle's")
    }
}

/// The driver's map for a spec that has been [checked](TensorMapSpec::check).
pub(super) fn encode(spec: &TensorMapSpec) -> (CUresult, TensorMap) {
    // What is copied are bytes. The type matters for sums and for places outside that are NaN, and there are neither.
    let element = match spec.element {
        1 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        2 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        4 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
    };
    let swizzle = match spec.swizzle {
        Swizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::B32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let interleave = sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
    let promotion = sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    let fill = sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
    let (rank, address) = (spec.dims.len() as u32, spec.address as *mut c_void);
    let dims: Vec<u64> = spec.dims.iter().map(|d| u64::from(*d)).collect();
    let (dims, strides) = (dims.as_ptr(), spec.strides.as_ptr());
    // The driver's own type: it may be aligned to more than ours, which is what kernels are given.
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let to = &raw mut map;
    let result = match &spec.part {
        TensorMapBox::Tiled { sizes, steps } => {
            let (sizes, steps) = (sizes.as_ptr(), steps.as_ptr());
            // SAFETY: every list has as many numbers as the rank asks for, as `check` has seen, and lives until the call is
            // over. The tensor itself is not touched.
            unsafe {
                sys::cuTensorMapEncodeTiled(
                    to, element, rank, address, dims, strides, sizes, steps, interleave, swizzle, promotion, fill,
                )
            }
        }
        TensorMapBox::Im2col { lower, upper, channels, pixels, steps } => {
            // The driver wants them for channels and images too.
            let steps: Vec<u32> = [1].iter().chain(steps).chain(&[1]).copied().collect();
            let (lower, upper, steps) = (lower.as_ptr(), upper.as_ptr(), steps.as_ptr());
            // SAFETY: as above.
            unsafe {
                sys::cuTensorMapEncodeIm2col(
                    to, element, rank, address, dims, strides, lower, upper, *channels, *pixels, steps, interleave,
                    swizzle, promotion, fill,
                )
            }
        }
    };
    (result, TensorMap(map.opaque))
}

fn dense(element: u32, dims: &[u32]) -> Vec<u64> {
    let step = |bytes: &mut u64, d: &u32| {
        *bytes *= u64::from(*d);
        Some(*bytes)
    };
    dims[..dims.len() - 1].iter().scan(u64::from(element), step).collect()
}
