//! Shared parts of the CPU versions: views of Flex tensors, vectors, and parallel loops.
//!
//! Every result is bitwise the same for any number of threads: work is divided at positions that depend on the shape
//! only, or in ways that do not affect the computation of an element.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{Bytes, DType, Element, FloatDType, Tensor};
use burn_flex::{Flex, FlexTensor, Layout};

pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod blocks;
pub(crate) mod element;
pub(crate) mod lanes;
pub(crate) mod math;
pub(crate) mod memory;
mod rows;
pub(crate) mod silu;
pub(crate) mod workers;

pub(crate) use rows::{PerImage, TensorRows, map_rows};

/// Converts `tensor` to f32, the type that CPU versions compute in: 16-bit numbers are widened, and f32 stays as it
/// is.
///
/// This and [`round_to`] are the only places where the CPU versions change types.
///
/// # Panics
/// If `tensor` is neither f32 nor of a 16-bit type.
pub(crate) fn wide(tensor: FlexTensor) -> FlexTensor {
    match tensor.dtype() {
        DType::F32 => tensor,
        DType::F16 | DType::BF16 => Flex::float_cast(tensor, FloatDType::F32),
        other => panic!("{other:?} beside f32 or 16-bit tensors"),
    }
}

/// Rounds the f32 result of a CPU version once to `dtype`.
pub(crate) fn round_to(tensor: FlexTensor, dtype: DType) -> FlexTensor {
    if tensor.dtype() == dtype { tensor } else { Flex::float_cast(tensor, dtype.into()) }
}

/// The sizes of `tensor`.
///
/// # Panics
/// If it does not have `D` dimensions.
pub(crate) fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    tensor.shape().as_slice().try_into().expect("as many dimensions as the operation takes")
}

/// Creates a tensor of `shape` from `data`.
pub(crate) fn tensor(data: Vec<f32>, shape: impl Into<burn::tensor::Shape>) -> FlexTensor {
    tensor_of(data, shape)
}

/// [`tensor`] with any element type.
pub(crate) fn tensor_of<T: Element + bytemuck::Pod + Send + Sync>(
    data: Vec<T>,
    shape: impl Into<burn::tensor::Shape>,
) -> FlexTensor {
    let shape = shape.into();
    assert_eq!(data.len(), shape.num_elements());
    FlexTensor::new(Bytes::from_elems(data), Layout::contiguous(shape), T::dtype())
}

/// `tensor`, copied only if it is not contiguous. Takes ownership, so that unshared memory stays exclusive.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    tensor.to_contiguous()
}

/// The elements of a contiguous f32 tensor.
pub(crate) fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("made contiguous")
}

/// The memory of `tensor`, shared with it. Returns `None` unless the tensor is on the CPU and its elements are
/// contiguous and fill the whole allocation. While the result is alive, in-place changes of the tensor are made to a
/// copy.
pub fn shared_memory<const D: usize>(tensor: &Tensor<D>) -> Option<impl AsRef<[u8]> + Send + Sync + use<D>> {
    struct Memory(FlexTensor);
    impl AsRef<[u8]> for Memory {
        fn as_ref(&self) -> &[u8] {
            self.0.bytes()
        }
    }
    let tensor = tensor.clone().try_into_primitive::<Flex>().ok()?;
    let (layout, size) = (tensor.layout(), tensor.dtype().size());
    let is_all = layout.is_contiguous() && layout.num_elements() * size == tensor.bytes().len();
    is_all.then_some(Memory(tensor))
}
