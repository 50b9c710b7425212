//! The linear layer.

use burn::tensor::Tensor;
use xdit_comm::{Comm, Reduce};

use crate::parallel::{Place, buffer, wait};

/// `x Wᵀ + b`: the only place where features sum.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    /// Ranks that each hold some input features and a part of the sum.
    summed_over: Option<Comm>,
}

impl Linear {
    /// A layer from its weight `[c_out, c_in]` and bias `[c_out]`.
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self { weight, bias, summed_over: None }
    }

    /// The same layer where the ranks of `comm` hold its input features between them.
    #[must_use]
    pub fn summed_over(self, comm: Comm) -> Self {
        Self { summed_over: Some(comm), ..self }
    }

    /// # Shapes
    /// `x`: `[…, c_in]`, result `[…, c_out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let Some(comm) = &self.summed_over else {
            return xdit_kernels::linear(x, self.weight.clone(), self.bias.clone());
        };
        let part = xdit_kernels::linear(x, self.weight.clone(), None);
        let (place, shape) = (Place::of(&part), part.dims());
        let sum = place.tensor(&wait(comm.all_reduce(buffer(part), Reduce::Sum)), shape);
        match &self.bias {
            Some(bias) => sum + bias.clone().unsqueeze(),
            None => sum,
        }
    }

    /// The layer whose output features are those of `self` at `indices`, in that order.
    ///
    /// Lets a model put the last layer's features into the order of packed latents, once, at loading.
    pub fn select_outputs(self, indices: Vec<i32>) -> Self {
        let device = self.weight.device();
        let count = indices.len();
        let indices = Tensor::from_data(
            burn::tensor::TensorData::new(indices, [count]),
            (&device, burn::tensor::DType::I32),
        );
        Self {
            weight: self.weight.select(0, indices.clone()),
            bias: self.bias.map(|bias| bias.select(0, indices)),
            ..self
        }
    }
}
