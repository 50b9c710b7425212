//! Linear layers on CubeCL's backends: on an NVIDIA GPU by cuBLASLt, elsewhere and without it by the backend's product.

#[cfg(feature = "cuda")]
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
#[cfg(feature = "cuda")]
use burn::tensor::Tensor;
use burn_cubecl::CubeBackend;

use super::{LinearOps, joined, reference_linear};
use crate::activation::{Activation, ActivationOps};
#[cfg(feature = "cuda")]
use crate::cube::{dims, empty, on_cuda, primitive};
use crate::optional::Optional;
#[cfg(feature = "cuda")]
use crate::vendor::cublaslt::{self, Epilogue, Summand};

impl LinearOps for CubeBackend {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: Optional<Self>) -> FloatTensor<Self> {
        #[cfg(feature = "cuda")]
        if has_elements(&x, &weight) {
            let epilogue = Epilogue { bias: present(&bias), ..Epilogue::default() };
            if let Some(y) = cublaslt::linear(&x, &weight, epilogue) {
                return y;
            }
        }
        reference_linear::<Self>(x, weight, bias)
    }

    /// In 16 bits, GELU with the tanh approximation is a part of the product.
    fn linear_activate(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Optional<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        #[cfg(feature = "cuda")]
        if activation == Activation::GeluTanh && x.dtype().size() == 2 && has_elements(&x, &weight) {
            let epilogue = Epilogue { bias: present(&bias), gelu: true, ..Epilogue::default() };
            if let Some(y) = cublaslt::linear(&x, &weight, epilogue) {
                return y;
            }
        }
        <Self as ActivationOps>::activate(activation, <Self as LinearOps>::linear(x, weight, bias))
    }

    fn linear_add(
        base: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Optional<Self>,
    ) -> FloatTensor<Self> {
        #[cfg(feature = "cuda")]
        if has_elements(&x, &weight) && base.dtype == x.dtype {
            let epilogue = Epilogue {
                bias: present(&bias),
                sum: Some(Summand { tensor: &base, consumed: false }),
                ..Epilogue::default()
            };
            if let Some(y) = cublaslt::linear(&x, &weight, epilogue) {
                return y;
            }
        }
        Self::float_add(base, <Self as LinearOps>::linear(x, weight, bias))
    }

    /// The second product is added to the first, so that nothing is copied.
    fn linear_of_two(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Optional<Self>,
    ) -> FloatTensor<Self> {
        #[cfg(feature = "cuda")]
        if has_elements(&x, &weight) && has_elements(&y, &weight) {
            let [c_x, c_y] = [&x, &y].map(|part| part.shape()[part.rank() - 1]);
            let c_out = weight.shape()[0];
            let columns = |from, to| burn_cubecl::kernel::slice(weight.clone(), &[0..c_out, from..to]);
            let epilogue = Epilogue { bias: present(&bias), ..Epilogue::default() };
            if let Some(sum) = cublaslt::linear(&x, &columns(0, c_x), epilogue) {
                let epilogue =
                    Epilogue { sum: Some(Summand { tensor: &sum, consumed: true }), ..Epilogue::default() };
                if let Some(sum) = cublaslt::linear(&y, &columns(c_x, c_x + c_y), epilogue) {
                    return sum;
                }
            }
        }
        <Self as LinearOps>::linear(joined::<Self>(x, y), weight, bias)
    }
}

/// See [`linear_pair`](super::linear_pair); none if the tensors are on no device of CUDA, or cuBLASLt does not take them.
#[cfg(feature = "cuda")]
pub(super) fn linear_pair(
    streams: [&Tensor<3>; 2],
    weights: &[Tensor<2>; 2],
    biases: &[Option<Tensor<1>>; 2],
) -> Option<[Tensor<3>; 2]> {
    let [first, second] = streams.map(on_cuda);
    let (given, matrices) = (streams, weights);
    let streams = [first?, second?];
    let [first, second] = weights.each_ref().map(primitive);
    let weights = [first?, second?];
    let outputs = weights[0].shape()[0];
    if weights[1].shape()[0] != outputs || streams[0].dtype != streams[1].dtype {
        return None;
    }
    let [b, of_first, _] = dims(&streams[0]);
    let [of_b, of_second, _] = dims(&streams[1]);
    assert_eq!(b, of_b, "both streams have as many images");
    let whole = empty(&streams[0], [b, of_first + of_second, outputs], streams[0].dtype);
    let whole = Tensor::<3>::from_primitive::<CubeBackend>(whole);
    let places = [(0, of_first), (of_first, of_second)];
    for (index, (first, len)) in places.into_iter().enumerate() {
        let (x, weight) = (&streams[index], &weights[index]);
        if !has_elements(x, weight) {
            return None;
        }
        let bias = match &biases[index] {
            Some(bias) => Some(primitive(bias)?),
            None => None,
        };
        let place = primitive(&crate::join::view(&whole, 1, first, len)?)?;
        let _call = super::multiply("linear", given[index], &matrices[index]);
        let epilogue = Epilogue { bias: bias.as_ref(), place: Some(&place), ..Epilogue::default() };
        cublaslt::linear(x, weight, epilogue)?;
    }
    let parts = places.map(|(first, len)| crate::join::view(&whole, 1, first, len));
    let [first, second] = parts;
    Some([first?, second?])
}

#[cfg(feature = "cuda")]
fn has_elements(x: &FloatTensor<CubeBackend>, weight: &FloatTensor<CubeBackend>) -> bool {
    x.shape().num_elements() * weight.shape().num_elements() > 0
}

#[cfg(feature = "cuda")]
fn present(optional: &Optional<CubeBackend>) -> Option<&FloatTensor<CubeBackend>> {
    match optional {
        Optional::Absent => None,
        Optional::Present(tensor) => Some(tensor),
    }
}
