//! Joining on CubeCL's backends: parts of one tensor that follow each other are a part of it.

use burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::{JoinOps, reference_join};

impl JoinOps for CubeBackend {
    fn join(first: CubeTensor, second: CubeTensor) -> CubeTensor {
        neighbours(&first, &second).unwrap_or_else(|| reference_join::<Self>(first, second))
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
