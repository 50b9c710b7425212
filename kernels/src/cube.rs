//! Shared parts of the versions for CubeCL's backends: CUDA, Vulkan and WebGPU.
//!
//! Kernels read and write f32, f16 and bf16 and compute in f32, so that each result is rounded once. Their accesses to
//! memory are vectors of up to 16 bytes. Other types, and types that a device lacks, take the reference.

pub(crate) mod reduce;
pub(crate) mod rows;

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::cast;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::features::TypeUsage;
use cubecl::ir::{AddressType, ElemType, FloatKind};
use cubecl::prelude::*;

/// Units of a cube in all kernels but those of attention.
pub(crate) const UNITS: usize = 256;

/// Whether the kernels take all of `tensors`.
pub(crate) fn takes<'a>(tensors: impl IntoIterator<Item = &'a CubeTensor>) -> bool {
    tensors.into_iter().all(|tensor| {
        let is_float = matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16);
        is_float
            && tensor
                .client
                .properties()
                .type_usage(elem(tensor.dtype))
                .is_superset(TypeUsage::Buffer | TypeUsage::Conversion)
    })
}

/// The element type of a kernel's argument.
///
/// # Panics
/// If `dtype` is none of those that [`takes`] accepts.
pub(crate) fn elem(dtype: DType) -> ElemType {
    ElemType::Float(match dtype {
        DType::F32 => FloatKind::F32,
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        other => panic!("no kernel for {other:?}"),
    })
}

/// `tensor` in f32.
pub(crate) fn wide(tensor: CubeTensor) -> CubeTensor {
    if tensor.dtype == DType::F32 { tensor } else { cast(tensor, DType::F32) }
}

/// `x` as this backend has it; none if it is another's.
pub(crate) fn primitive<const D: usize>(x: &Tensor<D>) -> Option<CubeTensor> {
    x.clone().try_into_primitive::<CubeBackend>().ok()
}

/// [`primitive`] of a tensor on a device of CUDA; none of any other.
#[cfg(feature = "cuda")]
pub(crate) fn on_cuda<const D: usize>(x: &Tensor<D>) -> Option<CubeTensor> {
    primitive(x).filter(|x| matches!(x.device, cubecl::Device::Cuda(_)))
}

/// The sizes of `tensor`.
///
/// # Panics
/// If it has not `D` dimensions.
pub(crate) fn dims<const D: usize>(tensor: &CubeTensor) -> [usize; D] {
    crate::plain::dims(&tensor.shape())
}

/// Contiguous memory for a result on the device of `like`.
pub(crate) fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// All memory of `tensor` as an argument of a kernel, which indexes it by the tensor's strides.
pub(crate) fn buffer(tensor: &CubeTensor) -> BufferArg {
    let length = tensor.handle.size() as usize / tensor.dtype.size();
    // SAFETY: the length is that of the memory behind the handle.
    unsafe { BufferArg::from_raw_parts(tensor.handle.clone(), length) }
}

/// Where a kernel of one input and one output of its type and shape writes: to the input, if it is contiguous and
/// nobody else holds it, else to new memory.
pub(crate) struct InPlace {
    pub(crate) out: CubeTensor,
    is_input: bool,
}

impl InPlace {
    pub(crate) fn new(x: &CubeTensor) -> Self {
        let is_input = x.is_contiguous() && x.can_mut();
        let out = if is_input { x.clone() } else { empty(x, x.shape(), x.dtype) };
        Self { out, is_input }
    }

    /// The same for images whose channels lie together, without gaps.
    pub(crate) fn of_pixels(x: &CubeTensor) -> Self {
        let is_input = x.can_mut();
        Self { out: if is_input { x.clone() } else { empty_pixels(x, dims(x), x.dtype) }, is_input }
    }

    /// The output as an argument of a kernel whose first buffer is the input.
    pub(crate) fn buffer(&self) -> BufferArg {
        if self.is_input { BufferArg::alias(0, self.out.meta.num_elements()) } else { buffer(&self.out) }
    }
}

/// Whether the channels of each pixel of `x`, an image `[b, c, y, x]`, lie together and the pixels follow each other.
pub(crate) fn is_pixels(x: &CubeTensor) -> bool {
    let shape @ [_, c, rows, cols] = dims(x);
    let expected = [rows * cols * c, 1, cols * c, c];
    let strides = x.meta.strides();
    !x.is_contiguous() && (0..4).all(|dim| shape[dim] == 1 || strides[dim] == expected[dim])
}

/// Memory for an image `[b, c, y, x]` whose channels lie together.
pub(crate) fn empty_pixels(like: &CubeTensor, [b, c, rows, cols]: [usize; 4], dtype: DType) -> CubeTensor {
    burn_cubecl::ops::permute(empty(like, [b, rows, cols, c], dtype), &[0, 3, 1, 2])
}

/// The integers that index all of `tensors`.
pub(crate) fn addresses<'a>(tensors: impl IntoIterator<Item = &'a CubeTensor>) -> AddressType {
    tensors.into_iter().map(CubeTensor::required_address_type).max().unwrap_or_default()
}

/// The widest vectors in which `tensors` can be read if lengths and strides are multiples of all `divisors`. Memory
/// begins at multiples of far more bytes than a vector has.
pub(crate) fn width<'a>(
    tensors: impl IntoIterator<Item = &'a CubeTensor>,
    divisors: impl IntoIterator<Item = usize>,
) -> usize {
    let widest = tensors.into_iter().max_by_key(|tensor| tensor.dtype.size()).expect("a tensor");
    let divisors: Vec<_> = divisors.into_iter().collect();
    widest
        .client
        .io_optimized_vector_sizes(widest.dtype.size())
        .filter(|width| divisors.iter().all(|divisor| divisor.is_multiple_of(*width)))
        .max()
        .unwrap_or(1)
}

/// Cubes of [`UNITS`] for so many units.
pub(crate) fn cubes(client: &Client, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(UNITS as u32);
    (cubecl::calculate_cube_count_elemwise(client, units, dim), dim)
}
