//! Linear layers on CubeCL's backends: on an NVIDIA GPU by cuBLASLt, elsewhere and without it by the backend's product.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn_cubecl::CubeBackend;

use super::{LinearOps, reference_linear};
use crate::optional::Optional;

impl LinearOps for CubeBackend {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: Optional<Self>) -> FloatTensor<Self> {
        #[cfg(feature = "cuda")]
        if x.shape().num_elements() * weight.shape().num_elements() > 0 {
            let absent = match &bias {
                Optional::Absent => None,
                Optional::Present(bias) => Some(bias),
            };
            if let Some(y) = crate::vendor::cublaslt::linear(&x, &weight, absent) {
                return y;
            }
        }
        reference_linear::<Self>(x, weight, bias)
    }
}
