//! Convolutions on CubeCL's backends: on an NVIDIA GPU large ones in 16 bits by cuDNN, others by the backend.

#[cfg(feature = "cuda")]
mod pixels;

use burn::backend::TensorMetadata;
use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, FloatDType, ops::ConvOptions};
use burn_cubecl::CubeBackend;

use super::{ConvOps, Geometry, compose};
use crate::group_norm::GroupNormOps;
use crate::optional::Optional;

impl ConvOps for CubeBackend {
    fn conv2d(
        geometry: Geometry,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Optional<Self>,
        scale: Optional<Self>,
        shift: Optional<Self>,
        residual: Optional<Self>,
    ) -> FloatTensor<Self> {
        #[cfg(feature = "cuda")]
        if let Some(convolution) = pixels::Convolution::new(&geometry, &x, &weight, &residual) {
            let [bias, scale, shift, residual] = [bias, scale, shift, residual].map(Optional::into_option);
            return convolution.run(x, weight, bias, scale.zip(shift), residual);
        }
        let norm_act = |x, scale, shift| <Self as GroupNormOps>::norm_act(x, scale, shift, true);
        compose::<Self>(geometry, x, weight, bias, scale, shift, residual, norm_act, product)
    }
}

/// The convolution of an image that has its padding already.
fn product(
    x: FloatTensor<CubeBackend>,
    weight: FloatTensor<CubeBackend>,
    stride: usize,
) -> FloatTensor<CubeBackend> {
    // The backend sums in the type of its input.
    let [x, weight] = [x, weight].map(|tensor| match tensor.dtype() {
        DType::F16 | DType::BF16 => CubeBackend::float_cast(tensor, FloatDType::F32),
        _ => tensor,
    });
    <CubeBackend as ModuleOps<CubeBackend>>::conv2d(
        x,
        weight,
        None,
        ConvOptions::new([stride; 2], [0, 0], [1, 1], 1),
    )
}
