//! The linear layer.

use std::fmt;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};
use xdit_comm::{Comm, Reduce};

use crate::link::{Place, buffer, wait};

/// `x Wᵀ + b`: the only place where features sum.
#[derive(Clone, Debug)]
pub struct Linear {
    parameters: Parameters,
    /// Ranks that each hold some input features and a part of the sum.
    summed_over: Option<Comm>,
}

#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "nearly all layers are of the larger kind")]
enum Parameters {
    Held {
        /// `[c_out, c_in]`
        weight: Tensor<2>,
        /// `[c_out]`
        bias: Option<Tensor<1>>,
    },
    /// Read at each use and let go of after it.
    Deferred(Arc<dyn Fn() -> Linear + Send + Sync>),
}

impl Linear {
    /// A layer from its weight `[c_out, c_in]` and bias `[c_out]`.
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self { parameters: Parameters::Held { weight, bias }, summed_over: None }
    }

    /// A layer that takes no memory: `read` is called at each use.
    pub fn deferred(read: impl Fn() -> Self + Send + Sync + 'static) -> Self {
        Self { parameters: Parameters::Deferred(Arc::new(read)), summed_over: None }
    }

    /// The same layer where the ranks of `comm` hold its input features between them.
    #[must_use]
    pub fn summed_over(self, comm: Comm) -> Self {
        Self { summed_over: Some(comm), ..self }
    }

    /// # Shapes
    /// `x`: `[…, c_in]`, result `[…, c_out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (weight, bias) = match &self.parameters {
            Parameters::Held { weight, bias } => (weight.clone(), bias.clone()),
            Parameters::Deferred(read) => return read().forward(x),
        };
        let Some(comm) = &self.summed_over else {
            return xdit_kernels::linear(x, weight, bias);
        };
        let part = xdit_kernels::linear(x, weight, None);
        let (place, shape) = (Place::of(&part), part.dims());
        let sum = place.tensor(&wait(comm.all_reduce(buffer(part), Reduce::Sum)), shape);
        match bias {
            Some(bias) => sum + bias.unsqueeze(),
            None => sum,
        }
    }

    /// The layer whose output features are those of `self` at `indices`, in that order.
    ///
    /// Lets a model put the last layer's features into the order of packed latents, once, at loading.
    pub fn select_outputs(self, indices: Vec<i32>) -> Self {
        let (weight, bias) = match self.parameters {
            Parameters::Held { weight, bias } => (weight, bias),
            Parameters::Deferred(read) => {
                return Self::deferred(move || read().select_outputs(indices.clone()));
            }
        };
        let count = indices.len();
        let indices = TensorData::new(indices, [count]);
        let indices = Tensor::from_data(indices, (&weight.device(), DType::I32));
        let parameters = Parameters::Held {
            weight: weight.select(0, indices.clone()),
            bias: bias.map(|bias| bias.select(0, indices)),
        };
        Self { parameters, ..self }
    }
}

impl fmt::Debug for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { weight, .. } => write!(f, "{:?}", weight.dims()),
            Self::Deferred(_) => f.write_str("deferred"),
        }
    }
}
