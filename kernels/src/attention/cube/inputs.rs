//! Tensors of attention as arguments of kernels.

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::{buffer, dims};

/// Where rows of a tensor lie: in vectors for queries, keys and values, in elements for the bias.
#[derive(CubeType, CubeLaunch, Clone)]
pub(super) struct Strides {
    pub(super) of_image: usize,
    pub(super) of_row: usize,
    pub(super) of_head: usize,
}

/// The strides of `x`, `[b, n, h, d]`, in vectors of `width`.
pub(super) fn strides(x: &CubeTensor, width: usize) -> StridesLaunch {
    let of = |dim: usize| if x.meta.shape()[dim] == 1 { 0 } else { x.meta.strides()[dim] / width };
    StridesLaunch::new(of(0), of(1), of(2))
}

/// `x` with the features of each head together.
pub(super) fn heads(x: CubeTensor) -> CubeTensor {
    if x.meta.strides()[3] == 1 || x.meta.shape()[3] == 1 { x } else { into_contiguous(x) }
}

/// A bias that is repeated where its size is 1, or none.
pub(super) struct Bias {
    pub(super) tensor: Option<CubeTensor>,
    strides: [usize; 4],
}

impl Bias {
    /// # Panics
    /// If the bias cannot be repeated to `shape`, `[b, h, nq, nk]`.
    pub(super) fn new(tensor: Option<CubeTensor>, shape: [usize; 4]) -> Self {
        let mut strides = [0; 4];
        if let Some(bias) = &tensor {
            let dims = dims::<4>(bias);
            let fits = dims.iter().zip(shape).all(|(&dim, size)| dim == 1 || dim == size);
            assert!(fits, "a bias of {dims:?} for scores of {shape:?}");
            strides = std::array::from_fn(|dim| if dims[dim] == 1 { 0 } else { bias.meta.strides()[dim] });
        }
        Self { tensor, strides }
    }

    /// The type of its elements; any, if there are none.
    pub(super) fn dtype(&self) -> DType {
        self.tensor.as_ref().map_or(DType::F32, |bias| bias.dtype)
    }

    pub(super) fn buffer(&self) -> Option<BufferArg> {
        self.tensor.as_ref().map(buffer)
    }

    pub(super) fn strides(&self) -> StridesLaunch {
        let [of_image, of_head, of_query, _] = self.strides;
        StridesLaunch::new(of_image, of_query, of_head)
    }

    /// The stride of keys.
    pub(super) fn of_key(&self) -> usize {
        self.strides[3]
    }
}
