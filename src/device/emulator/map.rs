//! Tensor maps of the emulated device: what the driver was told, in the 128 bytes.

use crate::device::cuda::{Swizzle, TensorMap, TensorMapBox, TensorMapSpec};
use crate::error::{Error, Result};

/// How a map begins.
const MARK: u32 = 0x544d_4150;
const ELEMENTS: [u32; 4] = [1, 2, 4, 8];
const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

/// What a map says, for TMA.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Map {
    pub(super) element: u32,
    pub(super) rank: usize,
    pub(super) address: usize,
    pub(super) dims: [i64; 5],
    /// In bytes; the first is an element.
    pub(super) strides: [i64; 5],
    pub(super) swizzle: Swizzle,
    pub(super) im2col: bool,
    /// Tiled: elements in each dimension. Im2col: channels and pixels.
    pub(super) sizes: [i64; 5],
    pub(super) steps: [i64; 5],
    /// Im2col's bounding box.
    pub(super) lower: [i64; 5],
    pub(super) upper: [i64; 5],
}

/// The map that a spec becomes.
///
/// # Errors
/// The driver's rule that it breaks.
pub(super) fn encode(spec: &TensorMapSpec) -> Result<TensorMap> {
    spec.check()?;
    let rank = spec.dims.len();
    let mut words = [0u32; 32];
    let log = spec.element.trailing_zeros();
    let swizzle = SWIZZLES.iter().position(|s| *s == spec.swizzle).unwrap_or(0) as u32;
    let im2col = u32::from(matches!(spec.part, TensorMapBox::Im2col { .. }));
    words[0] = MARK;
    words[1] = im2col | (rank as u32) << 8 | log << 16 | swizzle << 24;
    (words[2], words[3]) = (spec.address as u32, (spec.address >> 32) as u32);
    words[4..4 + rank].copy_from_slice(&spec.dims);
    for (i, stride) in spec.strides.iter().enumerate() {
        // Multiples of 16 below 2^40: the lower 36 bits matter.
        (words[9 + 2 * i], words[10 + 2 * i]) = (*stride as u32, (stride >> 32) as u32);
    }
    let bytes = |values: &[u32]| values.iter().enumerate().fold(0, |all, (i, v)| all | v << (6 * i));
    match &spec.part {
        TensorMapBox::Tiled { sizes, steps } => {
            words[17..17 + rank].copy_from_slice(sizes);
            words[22] = bytes(steps);
        }
        TensorMapBox::Im2col { lower, upper, channels, pixels, steps } => {
            (words[17], words[18]) = (*channels, *pixels);
            words[22] = bytes(steps) << 6 | 1;
            for (i, (lower, upper)) in lower.iter().zip(upper).enumerate() {
                words[23 + i] = (*lower as u16 as u32) | (*upper as u16 as u32) << 16;
            }
        }
    }
    let address = spec.address as usize;
    if decode(&words).is_none_or(|m| m.address != address) {
        return Err(Error::Internal("a tensor map was not encoded".into()));
    }
    Ok(TensorMap(std::array::from_fn(|i| u64::from(words[2 * i]) | u64::from(words[2 * i + 1]) << 32)))
}

/// What the words of a map say; none if they are no map.
pub(super) fn decode(words: &[u32; 32]) -> Option<Map> {
    let [mark, kind, ..] = *words;
    let rank = (kind >> 8 & 0xff) as usize;
    if mark != MARK || !(1..=5).contains(&rank) {
        return None;
    }
    let element = *ELEMENTS.get((kind >> 16 & 0xff) as usize)?;
    let wide = |at: usize| i64::from(words[at]) | i64::from(words[at + 1]) << 32;
    let numbers = |from: usize| std::array::from_fn(|i| if i < rank { i64::from(words[from + i]) } else { 1 });
    let corner = |shift: u32| {
        std::array::from_fn(|i| if (1..4).contains(&i) { i64::from((words[22 + i] >> shift) as u16 as i16) } else { 0 })
    };
    Some(Map {
        element,
        rank,
        address: wide(2) as usize,
        dims: numbers(4),
        strides: std::array::from_fn(|i| match i {
            0 => i64::from(element),
            i if i < rank => wide(7 + 2 * i),
            _ => 0,
        }),
        swizzle: *SWIZZLES.get((kind >> 24) as usize)?,
        im2col: kind & 1 == 1,
        sizes: numbers(17),
        steps: std::array::from_fn(|i| i64::from(words[22] >> (6 * i) & 63).max(1)),
        lower: corner(0),
        upper: corner(16),
    })
}

impl Map {
    /// The map among a kernel's arguments, if these bytes are one.
    pub(super) fn among(bytes: &[u64]) -> Option<Map> {
        let words: &[u32] = bytemuck::cast_slice(bytes);
        decode(words.try_into().ok()?)
    }

    /// Bytes from the tensor's first to behind its last.
    pub(super) fn extent(&self) -> usize {
        let last: i64 = (0..self.rank).map(|i| (self.dims[i] - 1) * self.strides[i]).sum();
        last as usize + self.element as usize
    }

    /// Bytes of a box's row.
    pub(super) fn row(&self) -> i64 {
        self.sizes[0] * i64::from(self.element)
    }

    /// The rows of the box whose first element is here, in the order in which they lie in shared memory: the address of
    /// each, and which of its bytes are in the tensor.
    pub(super) fn rows(&self, at: [i64; 5], offsets: [i64; 3]) -> Vec<(usize, std::ops::Range<usize>)> {
        let row = |place: [i64; 5]| {
            let element = i64::from(self.element);
            let inside = (1..self.rank).all(|i| (0..self.dims[i]).contains(&place[i]));
            let from: i64 = (0..self.rank).map(|i| place[i] * self.strides[i]).sum();
            let (first, last) =
                ((-place[0]).clamp(0, self.sizes[0]), (self.dims[0] - place[0]).clamp(0, self.sizes[0]));
            let range = if inside && first < last { first * element..last * element } else { 0..0 };
            (self.address.wrapping_add_signed(from as isize), range.start as usize..range.end as usize)
        };
        if self.im2col {
            let mut walk = at;
            let mut rows = Vec::new();
            for _ in 0..self.sizes[1] {
                let mut place = walk;
                (1..self.rank - 1).for_each(|i| place[i] += offsets[i - 1]);
                rows.push(row(place));
                // On to the next pixel of the bounding box, row by row and image by image.
                for (i, at) in walk.iter_mut().enumerate().take(self.rank).skip(1) {
                    *at += self.steps[i];
                    if i == self.rank - 1 || *at <= self.dims[i] - 1 + self.upper[i] {
                        break;
                    }
                    *at = self.lower[i];
                }
            }
            return rows;
        }
        let counts: [i64; 5] =
            std::array::from_fn(|i| if i == 0 { 1 } else { (self.sizes[i] + self.steps[i] - 1) / self.steps[i] });
        let all: i64 = counts[..self.rank].iter().product();
        let place = |mut n: i64| {
            let mut place = at;
            for i in 1..self.rank {
                place[i] += n % counts[i] * self.steps[i];
                n /= counts[i];
            }
            row(place)
        };
        (0..all).map(place).collect()
    }
}
