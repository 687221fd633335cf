//! Sizes of a tensor: at most four dimensions, row-major, always contiguous.

use std::fmt;

/// The dimensions of a tensor, outermost first. Activations are `[n, h, w, c]`.
///
/// ```
/// use tilework::Shape;
/// let s = Shape::from([4, 32, 32, 3]);
/// assert_eq!(s.len(), 12_288);
/// assert_eq!(s.to_string(), "[4, 32, 32, 3]");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; 4],
    rank: u8,
}

impl Shape {
    /// The shape of a single number.
    pub const SCALAR: Shape = Shape { dims: [1; 4], rank: 0 };

    /// A shape from a slice of at most four dimensions; `None` for more.
    pub fn from_slice(dims: &[usize]) -> Option<Self> {
        let mut all = [1; 4];
        all.get_mut(..dims.len())?.copy_from_slice(dims);
        Some(Shape { dims: all, rank: dims.len() as u8 })
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }

    /// How many dimensions there are.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The four dimensions of an activation or a convolution's weights; `None` for another rank.
    pub fn rank4(&self) -> Option<[usize; 4]> {
        (self.rank == 4).then_some(self.dims)
    }

    /// The two dimensions of a matrix; `None` for another rank.
    pub fn rank2(&self) -> Option<[usize; 2]> {
        (self.rank == 2).then_some([self.dims[0], self.dims[1]])
    }

    /// The size of the last dimension: channels or features. 1 for a scalar.
    pub fn last(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        const { assert!(N <= 4, "a shape has at most four dimensions") };
        let mut all = [1; 4];
        all[..N].copy_from_slice(&dims);
        Shape { dims: all, rank: N as u8 }
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.dims(), f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.dims(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_compare_by_rank_and_dims() {
        assert_ne!(Shape::from([3]), Shape::from([3, 1]));
        assert_eq!(Shape::from_slice(&[2, 3]), Some(Shape::from([2, 3])));
        assert_eq!(Shape::from_slice(&[1; 5]), None);
        assert_eq!(Shape::SCALAR.len(), 1);
        assert!(Shape::from([0, 3]).is_empty());
        assert_eq!(Shape::from([5, 7]).last(), 7);
    }
}
