//! The linear layer, the seam where features are summed, and layers that share an input.

use std::fmt;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};
use xdit_kernels::{Activation, activate, linear_pair, split_heads};

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

    /// Applies the layer, and adds the result to `base`.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward); `base` has the shape of the result.
    pub fn forward_add<const D: usize>(&self, base: Tensor<D>, x: Tensor<D>) -> Tensor<D> {
        if self.summed_over.is_some() {
            return base + self.forward(x);
        }
        let parameters = self.parameters();
        xdit_kernels::linear_add(base, x, parameters.weight.clone(), parameters.bias.clone())
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

/// `N` layers of attention heads with the same input, such as those of queries, keys and values. Their products are one
/// product where [that is faster](crate::weights::Weights::linears).
#[derive(Clone, Debug)]
pub struct Linears<const N: usize>(Products<N>);

#[derive(Clone, Debug)]
enum Products<const N: usize> {
    Apart([Linear; N]),
    /// One layer, with the output features of all layers one behind the other.
    Joined {
        layer: Linear,
        features: [usize; N],
    },
}

impl<const N: usize> Linears<N> {
    /// `layers`, each with a product of its own.
    pub fn apart(layers: [Linear; N]) -> Self {
        Self(Products::Apart(layers))
    }

    /// The layers whose output features lie one behind the other in `layer`.
    ///
    /// # Panics
    /// If `layer` has another number of outputs.
    pub fn joined(layer: Linear, features: [usize; N]) -> Self {
        assert_eq!(layer.c_out(), features.iter().sum::<usize>(), "the outputs of all layers");
        Self(Products::Joined { layer, features })
    }

    /// Applies each layer, and splits its result into heads of `head_dim` features.
    ///
    /// # Shapes
    /// `x`: `[b, n, c_in]`, results `[b, n, h, head_dim]`.
    pub fn forward(&self, x: Tensor<3>, head_dim: usize) -> [Tensor<4>; N] {
        match &self.0 {
            Products::Apart(layers) => {
                layers.each_ref().map(|layer| heads(layer.forward(x.clone()), head_dim))
            }
            Products::Joined { layer, features } => heads_of_each(layer.forward(x), *features, head_dim),
        }
    }

    /// [`forward`](Self::forward) of a text through `of_text` and of an image through `of_image`. The results of each pair
    /// of layers [lie together](xdit_kernels::linear_pair) where that costs nothing.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward), for `text` and `image`; for each layer, the text's heads and the image's.
    pub fn forward_pair(
        of_text: &Self,
        of_image: &Self,
        [text, image]: [Tensor<3>; 2],
        head_dim: usize,
    ) -> [[Tensor<4>; 2]; N] {
        let (text, image) = match (&of_text.0, &of_image.0) {
            (
                Products::Joined { layer: of_text, features },
                Products::Joined { layer: of_image, features: others },
            ) if features == others => {
                let [of_text, of_image] = [of_text, of_image].map(Linear::parameters);
                let weights = [&of_text, &of_image].map(|layer| layer.weight.clone());
                let biases = [&of_text, &of_image].map(|layer| layer.bias.clone());
                let [text, image] = linear_pair([text, image], weights, biases);
                (heads_of_each(text, *features, head_dim), heads_of_each(image, *features, head_dim))
            }
            _ => (of_text.forward(text, head_dim), of_image.forward(image, head_dim)),
        };
        let mut image = image.into_iter();
        text.map(|text| [text, image.next().expect("as many layers in both streams")])
    }
}

/// # Shapes
/// `[b, n, h · head_dim]` to `[b, n, h, head_dim]`.
fn heads(y: Tensor<3>, head_dim: usize) -> Tensor<4> {
    let [b, n, c] = y.dims();
    y.reshape([b, n, c / head_dim, head_dim])
}

/// The heads of each layer in `y`, the result of layers with so many `features`, one behind the other.
fn heads_of_each<const N: usize>(y: Tensor<3>, features: [usize; N], head_dim: usize) -> [Tensor<4>; N] {
    split_heads(heads(y, head_dim), features.map(|features| features / head_dim))
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(parameters) => write!(f, "{:?}", parameters.weight.dims()),
            Self::Reread { c_out, .. } => write!(f, "{c_out} outputs, read at each use"),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::noise::Generator;

    /// Where they are one product, the layers have the results that they have apart.
    #[test]
    fn a_joined_product_has_the_heads_of_each_layer() {
        let random = |seed, shape: [usize; 2]| {
            let values = Generator::from_seed(seed).randn(shape[0] * shape[1]);
            Tensor::<1>::from_data(values.as_slice(), (&Device::flex(), DType::F32)).reshape(shape)
        };
        let (c_in, head_dim, features) = (24, 4, [8, 16, 12]);
        let weights = [0, 1, 2].map(|at| random(at as u64, [features[at], c_in]));
        let biases = [0, 1, 2].map(|at| random(at as u64 + 10, [features[at], 1]).reshape([features[at]]));
        let layer = |at: usize| Linear::new(weights[at].clone(), Some(biases[at].clone()));
        let apart = Linears::apart([0, 1, 2].map(layer));
        let joined = Linear::new(Tensor::cat(weights.to_vec(), 0), Some(Tensor::cat(biases.to_vec(), 0)));
        let joined = Linears::joined(joined, features);
        let x = random(20, [2 * 5, c_in]).reshape([2, 5, c_in]);
        let parts = apart.forward(x.clone(), head_dim).into_iter().zip(joined.forward(x, head_dim));
        for (at, (one, other)) in parts.enumerate() {
            assert_eq!(other.dims(), [2, 5, features[at] / head_dim, head_dim]);
            let far = (one - other).abs().max().into_scalar::<f32>();
            assert!(far < 1e-5, "layer {at} is {far} off");
        }
    }
}
