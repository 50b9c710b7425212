//! The linear layer, the seam where features are summed.

use std::fmt;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};
use xdit_kernels::{Activation, activate};

use crate::link::Link;

/// `x Wᵀ + b`, the only operation that sums features.
#[derive(Clone, Debug)]
pub struct Linear {
    source: Source,
    /// The ranks that each hold some input features, and so a part of the sum.
    summed_over: Option<Arc<dyn Link>>,
}

/// Weight and bias of a layer with a weight of `D` dimensions: two for a linear layer, four for a convolution. Ranks of a
/// process may share them.
#[derive(Debug)]
pub struct Parameters<const D: usize = 2> {
    /// `[c_out, c_in]`, for a convolution `[c_out, c_in, ky, kx]`
    pub weight: Tensor<D>,
    /// `[c_out]`
    pub bias: Option<Tensor<1>>,
}

#[derive(Clone)]
enum Source {
    Held(Arc<Parameters>),
    /// Read at each use, and freed afterwards.
    Reread {
        read: Arc<dyn Fn() -> Arc<Parameters> + Send + Sync>,
        c_out: usize,
    },
}

impl Linear {
    /// A layer from its weight `[c_out, c_in]` and bias `[c_out]`.
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self::held(Arc::new(Parameters { weight, bias }))
    }

    /// A layer of `parameters`, which may be shared.
    pub fn held(parameters: Arc<Parameters>) -> Self {
        Self { source: Source::Held(parameters), summed_over: None }
    }

    /// A layer with `c_out` output features that takes no memory: `read` is called at each use.
    pub fn reread(c_out: usize, read: impl Fn() -> Arc<Parameters> + Send + Sync + 'static) -> Self {
        Self { source: Source::Reread { read: Arc::new(read), c_out }, summed_over: None }
    }

    /// The number of output features.
    pub fn c_out(&self) -> usize {
        match &self.source {
            Source::Held(parameters) => parameters.weight.dims()[0],
            Source::Reread { c_out, .. } => *c_out,
        }
    }

    fn parameters(&self) -> Arc<Parameters> {
        match &self.source {
            Source::Held(parameters) => parameters.clone(),
            Source::Reread { read, .. } => read(),
        }
    }

    /// The same layer, with its input features divided among the ranks of `link`.
    #[must_use]
    pub fn summed_over(self, link: Arc<dyn Link>) -> Self {
        Self { summed_over: Some(link), ..self }
    }

    /// Applies the layer.
    ///
    /// # Shapes
    /// `x`: `[…, c_in]`, result `[…, c_out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let parameters = self.parameters();
        let (weight, bias) = (parameters.weight.clone(), parameters.bias.clone());
        let Some(link) = &self.summed_over else {
            return xdit_kernels::linear(x, weight, bias);
        };
        let sum = link.sum_of(xdit_kernels::linear(x, weight, None));
        match bias {
            Some(bias) => sum + bias.unsqueeze(),
            None => sum,
        }
    }

    /// Applies the layer, and `activation` to its result.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward).
    pub fn forward_activated<const D: usize>(&self, x: Tensor<D>, activation: Activation) -> Tensor<D> {
        if self.summed_over.is_some() {
            return activate(activation, self.forward(x));
        }
        let parameters = self.parameters();
        xdit_kernels::linear_activate(x, parameters.weight.clone(), parameters.bias.clone(), activation)
    }

    /// Applies the layer to the features of `x` and, behind them, those of `y`.
    ///
    /// # Shapes
    /// `x`: `[…, c_x]`, `y`: `[…, c_y]`, result `[…, c_out]`.
    pub fn forward_of_two<const D: usize>(&self, x: Tensor<D>, y: Tensor<D>) -> Tensor<D> {
        if self.summed_over.is_some() {
            return self.forward(Tensor::cat(vec![x, y], D - 1));
        }
        let parameters = self.parameters();
        xdit_kernels::linear_of_two(x, y, parameters.weight.clone(), parameters.bias.clone())
    }

    /// The layer whose output features are those of `self` at `indices`, in that order.
    ///
    /// With this, a model brings the last layer's features into the order of packed latents once, at loading.
    pub fn select_outputs(self, indices: Vec<i32>) -> Self {
        let parameters = self.parameters();
        let count = indices.len();
        let indices = TensorData::new(indices, [count]);
        let indices = Tensor::from_data(indices, (&parameters.weight.device(), DType::I32));
        let weight = parameters.weight.clone().select(0, indices.clone());
        let bias = parameters.bias.clone().map(|bias| bias.select(0, indices));
        Self { source: Source::Held(Arc::new(Parameters { weight, bias })), ..self }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(parameters) => write!(f, "{:?}", parameters.weight.dims()),
            Self::Reread { c_out, .. } => write!(f, "{c_out} outputs, read at each use"),
        }
    }
}
