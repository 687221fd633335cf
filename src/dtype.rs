//! Element types, at run time ([`DType`]) and at compile time ([`Element`], [`Real`]).

use std::fmt;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float: what networks train in.
    F32,
    /// 64-bit float: for gradient checks, on the CPU only.
    F64,
    /// IEEE 16-bit float.
    F16,
    /// bfloat16.
    BF16,
    /// Bytes: pixels.
    U8,
    /// 32-bit integers: labels.
    I32,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 => 1,
        }
    }

    /// What sums, statistics, losses and parameters are kept in beside activations of this type.
    pub fn sums(self) -> DType {
        if self == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// By how much a number of this size changes at most when it is rounded to this type.
    pub fn rounding(self, size: f64) -> f64 {
        let (relative, least) = match self {
            DType::F64 => (f64::EPSILON, 0.0),
            DType::F32 => (f64::from(f32::EPSILON), 0.0),
            DType::F16 => (half::f16::EPSILON.f64(), half::f16::from_bits(1).f64()),
            DType::BF16 => (half::bf16::EPSILON.f64(), 0.0),
            DType::U8 | DType::I32 => (0.0, 1.0),
        };
        (relative * size).max(least) / 2.0
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U8 => "u8",
            DType::I32 => "i32",
        })
    }
}

/// What activations, their gradients and the weights that products take are stored in while a network is trained. Sums,
/// statistics, losses, the weights that the optimizer moves, and their gradients are f32 beside it (Micikevicius et al.,
/// "Mixed Precision Training", ICLR 2018).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Four bytes for all.
    #[default]
    F32,
    /// IEEE binary16, with dynamic loss scaling.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Precision {
    /// The type.
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::F16 => DType::F16,
            Precision::Bf16 => DType::BF16,
        }
    }

    /// Whether it is f32.
    pub fn is_f32(&self) -> bool {
        *self == Precision::F32
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dtype().fmt(f)
    }
}

/// A Rust type that a tensor can hold.
pub trait Element: bytemuck::Pod + Send + Sync + PartialEq + fmt::Debug {
    /// Its run-time name.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($t:ty = $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
elements!(f32 = F32, f64 = F64, half::f16 = F16, half::bf16 = BF16, u8 = U8, i32 = I32);

/// The floating-point types.
pub trait Float: Element {
    /// The nearest value to an `f64`; for two-byte types, to the nearest `f32`.
    fn of(x: f64) -> Self;
    /// The same number.
    fn f64(self) -> f64;
}

macro_rules! floats {
    ($($t:ty: $x:ident => $of:expr),*) => { $(
        impl Float for $t {
            #[inline]
            fn of($x: f64) -> Self {
                $of
            }
            #[inline]
            fn f64(self) -> f64 {
                self.into()
            }
        }
    )* };
}
floats!(f32: x => x as f32, f64: x => x, half::f16: x => Self::from_f32(x as f32), half::bf16: x => Self::from_f32(x as f32));

/// The floating-point types that the CPU ops compute in.
pub trait Real: Float + num_traits::Float + num_traits::NumAssign + std::iter::Sum + fmt::Display + Default {}

impl Real for f32 {}
impl Real for f64 {}

/// Runs `$body` with `$T` bound to the type of a list that a run-time [`DType`] names; any other dtype
/// is an error that names the op.
#[macro_export]
#[doc(hidden)]
macro_rules! with_type {
    ($op:expr, $dtype:expr, [$($D:ident = $t:ty),*], $expected:expr, $remedy:expr, $T:ident => $body:expr) => {
        match $dtype {
            $($crate::dtype::DType::$D => {
                type $T = $t;
                $body
            })*
            other => Err($crate::error::Error::shape($op, $expected, other, $remedy)),
        }
    };
}
pub(crate) use with_type;

/// Runs `$body` with `$T` bound to the [`Real`] type that a run-time [`DType`] names; any other dtype is
/// an error that names the op.
///
/// ```
/// use tilework::{Device, Result, Tensor, with_real};
/// fn largest(x: &Tensor) -> Result<f64> {
///     with_real!("largest", x.dtype(), T => Ok(x.host::<T>()?.iter().fold(0.0, |m: f64, &x| m.max(x.into()))))
/// }
/// assert_eq!(largest(&Tensor::from_slice(&Device::cpu(), [2], &[0.5f32, 2.0])?)?, 2.0);
/// # Ok::<(), tilework::Error>(())
/// ```
#[macro_export]
macro_rules! with_real {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        $crate::with_type!(
            $op, $dtype, [F32 = f32, F64 = f64], "elements of type f32 or f64", "convert the tensor to f32 first",
            $T => $body
        )
    };
}
pub(crate) use with_real;

/// [`with_type`] for the [`Float`] types.
macro_rules! with_float {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        $crate::dtype::with_type!(
            $op, $dtype, [F32 = f32, F64 = f64, F16 = half::f16, BF16 = half::bf16], "floating-point elements",
            "use a tensor of floats", $T => $body
        )
    };
}
pub(crate) use with_float;
