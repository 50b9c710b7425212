//! Tensors of any backend, with the operators and methods that references are written with.

use std::ops::{Add, Div, Mul, Sub};

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Slice, TensorMetadata};
use burn::tensor::{DType, FloatDType, Shape, ops::PadMode};

/// A tensor of floats; each of its methods is an operation that every [`Backend`] has.
#[derive(Clone)]
pub(crate) struct Plain<B: Backend>(FloatTensor<B>);

impl<B: Backend> Plain<B> {
    /// Wraps `tensor` in its own type.
    pub(crate) fn new(tensor: FloatTensor<B>) -> Self {
        Self(tensor)
    }

    /// Converts `tensor` to a type suitable for sums: 16-bit numbers become f32, other types stay.
    pub(crate) fn wide(tensor: FloatTensor<B>) -> Self {
        match tensor.dtype() {
            DType::F16 | DType::BF16 => Self(B::float_cast(tensor, FloatDType::F32)),
            _ => Self(tensor),
        }
    }

    /// The tensor, rounded to `dtype` if its type is wider.
    pub(crate) fn round_to(self, dtype: DType) -> FloatTensor<B> {
        if self.0.dtype() == dtype { self.0 } else { B::float_cast(self.0, dtype.into()) }
    }

    /// The tensor in its current type.
    pub(crate) fn into_inner(self) -> FloatTensor<B> {
        self.0
    }

    /// A tensor filled with `value`, on the device and with the type of `self`.
    pub(crate) fn full_like(&self, shape: impl Into<Shape>, value: f64) -> Self {
        let dtype = FloatDType::from(self.0.dtype());
        Self(B::float_full(shape.into(), value.into(), &self.0.device(), dtype))
    }

    pub(crate) fn shape(&self) -> Shape {
        self.0.shape()
    }

    /// # Panics
    /// If the tensor does not have `D` dimensions.
    pub(crate) fn dims<const D: usize>(&self) -> [usize; D] {
        dims(&self.shape())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.shape().num_elements() == 0
    }

    pub(crate) fn reshape(self, shape: impl Into<Shape>) -> Self {
        Self(B::float_reshape(self.0, shape.into()))
    }

    /// Adds dimensions of size 1 before the only one, up to `rank`.
    pub(crate) fn unsqueeze(self, rank: usize) -> Self {
        let [len] = self.dims();
        let mut shape = vec![1; rank];
        shape[rank - 1] = len;
        self.reshape(shape)
    }

    pub(crate) fn swap_dims(self, a: usize, b: usize) -> Self {
        Self(B::float_swap_dims(self.0, a, b))
    }

    /// Swaps the last two dimensions.
    pub(crate) fn transpose(self) -> Self {
        Self(B::float_transpose(self.0))
    }

    pub(crate) fn narrow(self, dim: usize, start: usize, len: usize) -> Self {
        let of = |(at, &size): (usize, &usize)| if at == dim { start..start + len } else { 0..size };
        let slices: Vec<Slice> = self.shape().iter().enumerate().map(of).map(Slice::from).collect();
        Self(B::float_slice(self.0, &slices))
    }

    pub(crate) fn cat(parts: Vec<Self>, dim: usize) -> Self {
        Self(B::float_cat(parts.into_iter().map(|part| part.0).collect(), dim))
    }

    pub(crate) fn repeat(self, dim: usize, times: usize) -> Self {
        Self(B::float_repeat_dim(self.0, dim, times))
    }

    /// Pads each dimension with zeros; `padding` has the numbers before and after it.
    pub(crate) fn pad(self, padding: &[(usize, usize)]) -> Self {
        Self(B::float_pad(self.0, padding, PadMode::Constant(0.0)))
    }

    pub(crate) fn matmul(self, other: Self) -> Self {
        Self(B::float_matmul(self.0, other.0))
    }

    pub(crate) fn sum_dim(self, dim: usize) -> Self {
        Self(B::float_sum_dim(self.0, dim))
    }

    pub(crate) fn mean_dim(self, dim: usize) -> Self {
        Self(B::float_mean_dim(self.0, dim))
    }

    pub(crate) fn max_dim(self, dim: usize) -> Self {
        Self(B::float_max_dim(self.0, dim))
    }

    pub(crate) fn clamp_min(self, min: f64) -> Self {
        Self(B::float_clamp_min(self.0, min.into()))
    }

    pub(crate) fn exp(self) -> Self {
        Self(B::float_exp(self.0))
    }

    pub(crate) fn log(self) -> Self {
        Self(B::float_log(self.0))
    }

    pub(crate) fn sqrt(self) -> Self {
        Self(B::float_sqrt(self.0))
    }

    pub(crate) fn square(self) -> Self {
        self.clone() * self
    }

    pub(crate) fn tanh(self) -> Self {
        Self(B::float_tanh(self.0))
    }

    pub(crate) fn sigmoid(self) -> Self {
        Self(B::sigmoid(self.0))
    }

    pub(crate) fn gelu(self) -> Self {
        Self(B::gelu(self.0))
    }
}

/// The sizes in `shape`.
///
/// # Panics
/// If their number is not `D`.
pub(crate) fn dims<const D: usize>(shape: &Shape) -> [usize; D] {
    shape.as_slice().try_into().unwrap_or_else(|_| panic!("{D} dimensions, not {shape:?}"))
}

/// Implements an operator between two tensors, with broadcasting, and between a tensor and a number.
macro_rules! operator {
    ($trait:ident, $method:ident, $tensors:ident, $scalar:ident) => {
        impl<B: Backend> $trait for Plain<B> {
            type Output = Self;
            fn $method(self, other: Self) -> Self {
                Self(B::$tensors(self.0, other.0))
            }
        }

        impl<B: Backend> $trait<f64> for Plain<B> {
            type Output = Self;
            fn $method(self, other: f64) -> Self {
                Self(B::$scalar(self.0, other.into()))
            }
        }
    };
}

operator!(Add, add, float_add, float_add_scalar);
operator!(Sub, sub, float_sub, float_sub_scalar);
operator!(Mul, mul, float_mul, float_mul_scalar);
operator!(Div, div, float_div, float_div_scalar);
