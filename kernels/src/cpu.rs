//! What the CPU versions share: how they see Flex tensors, vectors, and work among threads.
//!
//! Every result is bitwise the same for any number of threads: work is cut at places that depend on the shape
//! alone, or in ways that do not change what is computed for an element.

use burn::tensor::{DType, Tensor};
use burn_flex::{Flex, FlexTensor, Layout};

#[cfg_attr(not(test), expect(dead_code, reason = "the operations that use it follow"))]
pub(crate) mod amx;
#[cfg_attr(not(test), expect(dead_code, reason = "the operations that use it follow"))]
pub(crate) mod element;
pub(crate) mod lanes;
pub(crate) mod math;
pub(crate) mod memory;
mod rows;
pub(crate) mod silu;
pub(crate) mod workers;

pub(crate) use rows::{PerImage, Rows, map_rows};

/// Whether `tensor` is f32 and lives on the CPU backend.
pub(crate) fn is_f32<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && tensor.clone().try_into_primitive::<Flex>().is_ok()
}

/// The type of `tensor` if it has 16 bits and lives on the CPU backend, where arithmetic of that width is slow: what is
/// cast to f32, computed and rounded once is faster and nearer.
pub(crate) fn half<const D: usize>(tensor: &Tensor<D>) -> Option<DType> {
    let is_half = matches!(tensor.dtype(), DType::F16 | DType::BF16);
    (is_half && tensor.clone().try_into_primitive::<Flex>().is_ok()).then(|| tensor.dtype())
}

/// The CPU tensor behind `tensor`, with whatever strides it has.
///
/// # Panics
/// If it is not [`is_f32`].
pub(crate) fn strided<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    let tensor = tensor.try_into_primitive::<Flex>().expect("checked by is_f32");
    assert_eq!(tensor.dtype(), DType::F32);
    tensor
}

/// The CPU tensor behind `tensor`, copied only if it is not contiguous.
pub(crate) fn contiguous<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    strided(tensor).to_contiguous()
}

/// A tensor of `shape` over `data`.
pub(crate) fn tensor<const D: usize>(data: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    assert_eq!(data.len(), shape.iter().product::<usize>());
    let bytes = burn::tensor::Bytes::from_elems(data);
    Tensor::from_primitive::<Flex>(FlexTensor::new(bytes, Layout::contiguous(shape.into()), DType::F32))
}

/// The elements of a tensor that [`contiguous`] made.
pub(crate) fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("made contiguous")
}
