//! Tensors that an operation may be called without.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, ExtensionType};
use burn::tensor::Tensor;

/// A tensor or none: `Option` in a form that operations of a [`Backend`] take. (`#[backend_extension]` does not look
/// into an `Option`.)
#[derive(Clone, Debug, ExtensionType)]
pub enum Optional<B: Backend> {
    /// There is none.
    Absent,
    /// There is one.
    Present(FloatTensor<B>),
}

impl<B: Backend> Optional<B> {
    /// The same as an `Option`.
    pub fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Absent => None,
            Self::Present(tensor) => Some(tensor),
        }
    }
}

impl<const D: usize> From<Option<Tensor<D>>> for Optional<Dispatch> {
    fn from(tensor: Option<Tensor<D>>) -> Self {
        tensor.map_or(Self::Absent, |tensor| Self::Present(tensor.into_dispatch()))
    }
}
