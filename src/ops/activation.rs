//! The activations by name, for what computes one together with something else.

use super::window::Window;
use crate::autograd::{Ctx, Var};
use crate::device::Device;
use crate::error::Result;

/// An activation: a function of each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// [`Var::relu`].
    Relu,
    /// [`Var::silu`].
    Silu,
    /// [`Var::gelu`].
    Gelu,
}

/// What is computed together with something before it: an activation, and then a max-pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Then {
    /// The activation, if there is one.
    pub activation: Option<Activation>,
    /// The window of the max-pool, if one follows.
    pub pool: Option<Window>,
}

/// What is added to a result, and the activation of the sum or, before it, of the result alone.
#[derive(Clone, Copy, Debug)]
pub struct Sum<'a> {
    /// The other summand.
    pub plus: &'a Var,
    /// The activation of the result, before the sum.
    pub before: Option<Activation>,
    /// The activation of the sum.
    pub after: Option<Activation>,
}

impl Sum<'_> {
    /// With a result `y`, as ops of their own.
    ///
    /// # Errors
    /// As the ops.
    pub fn of(self, y: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        let y = self.before.map_or_else(|| Ok(y.clone()), |a| a.of(y, cx))?;
        self.plus.add_then(self.after, &y, cx)
    }

    /// Whether a batch-norm on a device can be computed with it: not with an activation on either side, nor with one of the sum
    /// that is not [stored](Activation::is_stored).
    pub(crate) fn is_joined(before: Option<Activation>, after: Option<Activation>) -> bool {
        matches!((before, after), (_, None) | (None, Some(Activation::Relu)))
    }
}

impl Then {
    /// The window that halves both sides, each pixel in one at most.
    pub const POOL: Window = Window { kernel: [2; 2], stride: [2; 2], pad: [0; 2] };
    /// That of a ResNet's beginning, with pixels in up to four.
    pub const OVERLAPPING: Window = Window { kernel: [3; 2], stride: [2; 2], pad: [1; 2] };

    /// The same without the max-pool.
    pub fn unpooled(self) -> Self {
        Then { pool: None, ..self }
    }

    /// Of a whole tensor, as ops of their own.
    ///
    /// # Errors
    /// As the ops.
    pub fn of(self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        let y = self.activation.map_or_else(|| Ok(x.clone()), |a| a.of(x, cx))?;
        self.pool.map_or_else(|| Ok(y.clone()), |window| y.max_pool2d(window, cx))
    }
}

impl From<Option<Activation>> for Then {
    fn from(activation: Option<Activation>) -> Self {
        Then { activation, pool: None }
    }
}

impl Activation {
    /// Of every element, as an op of its own.
    ///
    /// # Errors
    /// As the op.
    pub fn of(self, x: &Var, cx: &mut Ctx<'_>) -> Result<Var> {
        match self {
            Activation::Relu => x.relu(cx),
            Activation::Silu => x.silu(cx),
            Activation::Gelu => x.gelu(cx),
        }
    }

    /// Whether products and sums on a device apply it as they store their result: ReLU, for whose gradient the result is
    /// enough.
    pub(super) fn is_stored(this: Option<Self>, device: &Device) -> bool {
        this == Some(Activation::Relu) && matches!(device, Device::Cuda(_))
    }

    /// What kernels know it by: `with_activation` in `kernels/activation.cuh`; 0 is none.
    pub(super) fn number(this: Option<Self>) -> i32 {
        this.map_or(0, |a| a as i32 + 1)
    }

    /// `y`, and the activation of it unless it [is stored](Activation::is_stored) so.
    ///
    /// # Errors
    /// As the op.
    pub(super) fn unless_stored(then: Option<Self>, y: Var, cx: &mut Ctx<'_>) -> Result<Var> {
        match then {
            Some(then) if !Activation::is_stored(Some(then), y.value().device()) => then.of(&y, cx),
            _ => Ok(y),
        }
    }

    /// What the name of a case ends with.
    pub(super) fn in_a_name(then: Option<Self>) -> String {
        then.map_or(String::new(), |a| format!(" {a:?}"))
    }
}
