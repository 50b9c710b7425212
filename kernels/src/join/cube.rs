//! Joining on CubeCL's backends: parts of one tensor that follow each other are a part of it, and images whose channels
//! lie together are joined so.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::permute;
use burn_cubecl::tensor::CubeTensor;

use super::{JoinOps, parts, reference_join};
use crate::cube::is_pixels;
use crate::optional::Optional;

impl JoinOps for CubeBackend {
    fn join(first: CubeTensor, second: CubeTensor) -> CubeTensor {
        neighbours(&first, &second).unwrap_or_else(|| reference_join::<Self>(first, second))
    }

    fn join_rows(above: Optional<Self>, x: CubeTensor, below: Optional<Self>) -> CubeTensor {
        let pixels = is_pixels(&x);
        let parts = parts::<Self>(above, x, below);
        if !pixels {
            return Self::float_cat(parts, 2);
        }
        let parts = parts.into_iter().map(|part| permute(part, &[0, 2, 3, 1])).collect();
        permute(Self::float_cat(parts, 1), &[0, 3, 1, 2])
    }
}

/// Both as one tensor, if the tokens of `second` follow those of `first` in the same memory.
fn neighbours(first: &CubeTensor, second: &CubeTensor) -> Option<CubeTensor> {
    let [before, after] = [first, second].map(|part| part.handle.offset_start.unwrap_or(0));
    let (shape, strides) = (first.meta.shape(), first.meta.strides());
    let fits = first.handle.memory.descriptor().id == second.handle.memory.descriptor().id
        && first.dtype == second.dtype
        && strides == second.meta.strides()
        && first.rank() == second.rank()
        && (0..first.rank()).all(|dim| dim == 1 || shape[dim] == second.meta.shape()[dim])
        && after == before + (shape[1] * strides[1] * first.dtype.size()) as u64;
    fits.then(|| {
        let mut joined = first.clone();
        joined.handle.offset_end = second.handle.offset_end;
        joined.meta.shape[1] += second.meta.shape[1];
        joined
    })
}
