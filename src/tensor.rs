//! A shaped, contiguous view of a device buffer.

use crate::device::cuda::{In, Launch, Out, with_kernel_type};
use crate::device::{Buffer, Device};
use crate::dtype::{DType, Element, Float, with_float};
use crate::error::{Error, Result};
use crate::kernels::tensor::{TensorDims, tensor_fill};
use crate::shape::Shape;
use std::sync::Arc;

/// Numbers in a shape on a device. Clones share the memory; only a tensor that nobody shares can
/// be written.
#[derive(Clone, Debug)]
pub struct Tensor {
    data: Arc<Buffer>,
    offset: usize,
    shape: Shape,
}

impl Tensor {
    /// A new tensor whose contents are unspecified: whoever asks must write every element.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn empty(device: &Device, dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        Ok(Tensor { data: Arc::new(device.alloc(dtype, shape.len())?), offset: 0, shape })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeros(device: &Device, dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        let mut buffer = device.alloc(dtype, shape.len())?;
        buffer.zero()?;
        Ok(Tensor { data: Arc::new(buffer), offset: 0, shape })
    }

    /// A tensor with the given elements, in row-major order.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of elements is not the shape's; [`Error::OutOfMemory`].
    pub fn from_slice<T: Element>(device: &Device, shape: impl Into<Shape>, values: &[T]) -> Result<Self> {
        let shape = shape.into();
        if shape.len() != values.len() {
            return Err(Error::shape(
                "Tensor::from_slice",
                format!("{} elements for shape {shape}", shape.len()),
                values.len(),
                "pass as many elements as the shape holds",
            ));
        }
        let mut buffer = device.alloc(T::DTYPE, shape.len())?;
        buffer.write(0, values)?;
        Ok(Tensor { data: Arc::new(buffer), offset: 0, shape })
    }

    /// A copy on another device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Device`] if a device fails.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        match self.dtype() {
            DType::I32 => Tensor::from_slice(device, self.shape, &self.to_vec::<i32>()?),
            DType::U8 => Tensor::from_slice(device, self.shape, &self.to_vec::<u8>()?),
            dtype => with_float!("to_device", dtype, T => Tensor::from_slice(device, self.shape, &self.to_vec::<T>()?)),
        }
    }

    /// A part of a buffer as a tensor: the elements from `offset` on that `shape` holds.
    ///
    /// # Errors
    /// [`Error::Internal`] if the buffer ends before the shape does.
    pub fn view(data: Arc<Buffer>, offset: usize, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if offset + shape.len() > data.len() {
            return Err(Error::Internal(format!("a view of {shape} at {offset} in {data:?}")));
        }
        Ok(Tensor { data, offset, shape })
    }

    /// The sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        self.data.device()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.is_empty()
    }

    /// The same elements in another shape; nothing is copied.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.len() != self.len() {
            return Err(Error::shape(
                "reshape",
                format!("{} elements", self.len()),
                format!("shape {shape}"),
                "choose a shape with as many elements",
            ));
        }
        Ok(Tensor { shape, ..self.clone() })
    }

    /// The items `start..start + count` along the first dimension; nothing is copied.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not that many items.
    pub fn narrow(&self, start: usize, count: usize) -> Result<Self> {
        let dims = self.shape.dims();
        if dims.is_empty() || start + count > dims[0] {
            return Err(Error::shape(
                "narrow",
                format!("a range within the first dimension of {}", self.shape),
                format!("{start}..{}", start + count),
                "choose a smaller range",
            ));
        }
        let item = self.len() / dims[0].max(1);
        let mut new = self.shape;
        if let Some(s) = Shape::from_slice(&[&[count], &dims[1..]].concat()) {
            new = s;
        }
        Ok(Tensor { data: self.data.clone(), offset: self.offset + start * item, shape: new })
    }

    /// The elements, in host memory.
    ///
    /// # Errors
    /// [`Error::Internal`] if `T` is not the element type.
    pub fn host<T: Element>(&self) -> Result<&[T]> {
        Ok(&self.data.host()?[self.offset..self.offset + self.shape.len()])
    }

    /// The elements, in host memory, to be written.
    ///
    /// # Errors
    /// [`Error::Internal`] if `T` is not the element type or another tensor shares the memory.
    pub fn host_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        let (buffer, range) = self.buffer_mut()?;
        Ok(&mut buffer.host_mut()?[range])
    }

    /// The elements as the input of a CUDA kernel.
    ///
    /// # Errors
    /// [`Error::Internal`] if `T` is not the element type or they are not on a CUDA device.
    pub fn input<T: Element>(&self) -> Result<In<'_, T>> {
        self.data.input(self.range())
    }

    /// The elements as the output of a CUDA kernel.
    ///
    /// # Errors
    /// As [`Tensor::input`]; [`Error::Internal`] if another tensor shares the memory.
    pub fn output<T: Element>(&mut self) -> Result<Out<'_, T>> {
        let (buffer, range) = self.buffer_mut()?;
        buffer.output(range)
    }

    /// Copies another tensor's elements; both have one shape, type and device.
    ///
    /// # Errors
    /// [`Error::Shape`] if they have not; [`Error::Internal`] if another tensor shares the memory.
    pub fn copy_from(&mut self, other: &Tensor) -> Result<()> {
        self.expect_like("copy", other)?;
        let (buffer, range) = self.buffer_mut()?;
        other.copy_to(buffer, range.start)
    }

    /// Copies the elements into a buffer, from element `start` of it on.
    pub(crate) fn copy_to(&self, buffer: &mut Buffer, start: usize) -> Result<()> {
        buffer.copy_from(start, &self.data, self.offset, self.len())
    }

    /// Writes all elements.
    ///
    /// # Errors
    /// [`Error::Internal`] if `T` is not the element type or another tensor shares the memory;
    /// [`Error::Device`] if the device fails.
    pub fn write<T: Element>(&mut self, values: &[T]) -> Result<()> {
        let (buffer, range) = self.buffer_mut()?;
        buffer.write(range.start, values)
    }

    /// Sets every element to `value`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the elements are not floating point; as [`Tensor::output`].
    pub fn fill(&mut self, value: f64) -> Result<()> {
        let dtype = self.dtype();
        match self.device().clone() {
            Device::Cpu(_) => with_float!("fill", dtype, T => { self.host_mut::<T>()?.fill(T::of(value)); Ok(()) }),
            Device::Cuda(cuda) => with_kernel_type!("fill", dtype, T => {
                let n = self.len();
                let d = TensorDims { n: n as i32, value: value as f32 };
                tensor_fill::<T>(&cuda, Launch::each(n.div_ceil(4)), self.output::<T>()?, &d)
            }),
        }
    }

    fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.shape.len()
    }

    /// The buffer and this tensor's part of it, to be written.
    pub(crate) fn buffer_mut(&mut self) -> Result<(&mut Buffer, std::ops::Range<usize>)> {
        let range = self.range();
        match Arc::get_mut(&mut self.data) {
            Some(buffer) => Ok((buffer, range)),
            None => Err(Error::Internal("a shared tensor was to be written".into())),
        }
    }

    /// A copy of the elements.
    ///
    /// # Errors
    /// [`Error::Internal`] if `T` is not the element type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.data.read(self.range())
    }

    /// A copy with elements of another floating-point type, each rounded to the nearest; it goes through
    /// host memory.
    ///
    /// # Errors
    /// [`Error::Shape`] if either type is not floating point; [`Error::OutOfMemory`].
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        let values = self.to_f64()?;
        with_float!("to_dtype", dtype, T => {
            Tensor::from_slice(self.device(), self.shape, &values.into_iter().map(T::of).collect::<Vec<T>>())
        })
    }

    /// The elements as `f64`, whichever floating-point type they are.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are not floating point.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        with_float!("to_f64", self.dtype(), T => Ok(self.to_vec::<T>()?.iter().map(|x| x.f64()).collect()))
    }

    /// The only element of a tensor of one.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more elements than one, or none.
    pub fn item(&self) -> Result<f64> {
        if self.len() != 1 {
            return Err(Error::shape("item", "one element", self.shape, "reduce the tensor first"));
        }
        Ok(self.to_f64()?[0])
    }

    /// Whether every element is finite (neither infinite nor NaN).
    ///
    /// # Errors
    /// [`Error::Shape`] if the elements are not floating point.
    pub fn is_finite(&self) -> Result<bool> {
        Ok(self.to_f64()?.iter().all(|x| x.is_finite()))
    }

    /// Whether this is the only tensor on its memory, so that it may be written in place.
    pub fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.data).is_some()
    }

    /// This tensor if nobody shares its memory, else a copy: so that it may be written in place.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn into_unique(mut self) -> Result<Tensor> {
        if self.is_unique() {
            return Ok(self);
        }
        let mut copy = Tensor::empty(self.device(), self.dtype(), self.shape)?;
        copy.copy_from(&self)?;
        Ok(copy)
    }

    /// Whether it is this other tensor, and not one of equal numbers.
    pub(crate) fn is(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.data, &other.data) && (self.offset, self.shape) == (other.offset, other.shape)
    }

    /// Checks that `other` has this shape, element type and device.
    pub(crate) fn expect_like(&self, op: &'static str, other: &Tensor) -> Result<()> {
        if self.shape == other.shape && self.dtype() == other.dtype() && self.device() == other.device() {
            return Ok(());
        }
        let say = |t: &Tensor| format!("{} {} on {}", t.dtype(), t.shape, t.device().name());
        let remedy = "make both the same; devices are the same if one is a clone of the other";
        Err(Error::shape(op, format!("two tensors alike, {}", say(self)), say(other), remedy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_share_memory_and_refuse_writes() {
        let device = Device::cpu();
        let mut t = Tensor::from_slice(&device, [3, 2], &[0f32, 1., 2., 3., 4., 5.]).unwrap();
        assert!(t.is_unique());
        let last = t.narrow(1, 2).unwrap();
        assert_eq!(last.shape(), Shape::from([2, 2]));
        assert_eq!(last.host::<f32>().unwrap(), [2., 3., 4., 5.]);
        assert!(t.host_mut::<f32>().is_err());
        drop(last);
        t.host_mut::<f32>().unwrap()[0] = 9.0;
        assert_eq!(t.reshape([6]).unwrap().to_f64().unwrap()[0], 9.0);
        assert!(t.reshape([5]).is_err() && t.narrow(2, 2).is_err() && t.item().is_err());
    }
}
