//! Building blocks shared by the transformers of several models.

use burn::tensor::{DType, Tensor};
use serde_json::json;
use xdit_core::Result;
use xdit_core::attention::Qkv;
use xdit_core::config::Config;
use xdit_core::linear::Linear;
use xdit_core::tokens::Tokens;
use xdit_core::transformer::{Hidden, TransformerSpec};
use xdit_core::weights::Weights;
use xdit_kernels::{Activation, layer_norm};

use crate::position::{PositionCache, SinCos2d};

/// Checks the options of diffusers' `BasicTransformerBlock` that select other blocks than those with `norm_type`, an
/// approximate GELU and plain attention.
///
/// # Errors
/// If one does.
pub fn only_basic_blocks(config: &mut Config, norm_type: &str) -> Result<()> {
    config.only("norm_type", &[json!(norm_type)])?;
    config.only("activation_fn", &[json!("gelu-approximate")])?;
    config.only("attention_type", &[json!("default")])?;
    for off in ["double_self_attention", "only_cross_attention", "norm_elementwise_affine"] {
        config.only(off, &[json!(false)])?;
    }
    config.only("num_vector_embeds", &[])?;
    config.inert(&["dropout", "norm_num_groups", "upcast_attention", "use_linear_projection"]);
    Ok(())
}

/// Splits features into heads and joins them again. The number of heads follows from the tensor.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// The number of features of a head.
    pub head_dim: usize,
}

impl Heads {
    /// # Shapes
    /// `[b, n, h · d]` to `[b, n, h, d]`.
    pub fn split(self, x: Tensor<3>) -> Tensor<4> {
        let [b, n, c] = x.dims();
        x.reshape([b, n, c / self.head_dim, self.head_dim])
    }

    /// # Shapes
    /// `[b, n, h, d]` to `[b, n, h · d]`.
    pub fn join(self, x: Tensor<4>) -> Tensor<3> {
        let [b, n, h, d] = x.dims();
        x.reshape([b, n, h * d])
    }
}

/// A layer norm with scale and shift.
#[derive(Clone, Debug)]
pub struct Norm {
    /// `[c]`
    pub weight: Tensor<1>,
    /// `[c]`
    pub bias: Tensor<1>,
    eps: f64,
}

impl Norm {
    /// Loads the norm of `c` features from `weights`.
    ///
    /// # Errors
    /// If a parameter is missing or has the wrong shape.
    pub fn load(weights: &Weights, c: usize, eps: f64) -> Result<Self> {
        Ok(Self { weight: weights.tensor("weight", [c])?, bias: weights.tensor("bias", [c])?, eps })
    }

    /// # Shapes
    /// `x` and the result: `[b, n, c]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.forward_shifted(x, self.bias.clone())
    }

    /// As [`forward`](Self::forward), with another shift `[c]`.
    pub fn forward_shifted(&self, x: Tensor<3>, shift: Tensor<1>) -> Tensor<3> {
        layer_norm(x, Some(self.weight.clone()), Some(shift), self.eps)
    }
}

/// The four linear layers around an attention.
///
/// # Source
/// diffusers' `Attention` without norms.
#[derive(Clone, Debug)]
pub struct Projections {
    heads: Heads,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl Projections {
    /// Loads the layers from `weights`. Those of queries, keys and values have a bias if `bias` is set.
    ///
    /// # Errors
    /// If a layer is missing or has the wrong shape.
    pub fn load(weights: &Weights, spec: &TransformerSpec, bias: bool) -> Result<Self> {
        let dim = spec.dim();
        let projection = |name| match bias {
            true => weights.linear(name, dim, dim),
            false => weights.linear_without_bias(name, dim, dim),
        };
        Ok(Self {
            heads: Heads { head_dim: spec.head_dim },
            q: projection("to_q")?,
            k: projection("to_k")?,
            v: projection("to_v")?,
            out: weights.linear("to_out.0", dim, dim)?,
        })
    }

    /// The queries of `x`, and the keys and values of `of`.
    ///
    /// # Shapes
    /// `x`: `[b, n, dim]`, `of`: `[b, nk, dim]`.
    pub fn qkv(&self, x: Tensor<3>, of: Tensor<3>) -> Qkv {
        let heads = self.heads;
        Qkv {
            q: heads.split(self.q.forward(x)),
            k: heads.split(self.k.forward(of.clone())),
            v: heads.split(self.v.forward(of)),
        }
    }

    /// # Shapes
    /// `[b, n, h, d]` to `[b, n, dim]`.
    pub fn out(&self, y: Tensor<4>) -> Tensor<3> {
        self.out.forward(self.heads.join(y))
    }
}

/// Selects rows of a modulation, from `first` on.
///
/// # Shapes
/// `[b, rows, c]` to `R` tensors of `[b, 1, c]`.
pub fn modulation_rows<const R: usize>(modulation: &Tensor<3>, first: usize) -> [Tensor<3>; R] {
    std::array::from_fn(|row| modulation.clone().narrow(1, first + row, 1))
}

/// Two linear layers with an approximate GELU between them.
///
/// # Source
/// diffusers' `FeedForward` with `gelu-approximate`.
#[derive(Clone, Debug)]
pub struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    /// Loads the layers from `weights`, with four times as many features inside as outside.
    ///
    /// # Errors
    /// If a layer is missing or has the wrong shape.
    pub fn load(weights: &Weights, dim: usize) -> Result<Self> {
        Self::load_of(weights, dim, 4 * dim)
    }

    /// As [`load`](Self::load), with `inner` features inside.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_of(weights: &Weights, dim: usize, inner: usize) -> Result<Self> {
        let net = weights.at("net");
        Ok(Self { proj: net.linear("0.proj", dim, inner)?, out: net.linear("2", inner, dim)? })
    }

    /// # Shapes
    /// `x` and the result: `[b, n, dim]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.out.forward(self.proj.forward_activated(x, Activation::GeluTanh))
    }
}

/// The embedding of packed latents: a convolution whose kernel equals its stride, as a linear layer.
///
/// # Errors
/// If a parameter is missing from `weights` or has the wrong shape.
pub fn patch_embedding(weights: &Weights, channels: usize, patch: usize, dim: usize) -> Result<Linear> {
    let kernel = weights.tensor("weight", [dim, channels, patch, patch])?;
    let kernel = kernel.reshape([dim, channels * patch * patch]);
    Ok(Linear::new(kernel, Some(weights.tensor("bias", [dim])?)))
}

/// The embedding of packed latents together with that of their positions.
///
/// # Source
/// diffusers' `PatchEmbed`.
#[derive(Clone, Debug)]
pub struct ImageEmbedding {
    dtype: DType,
    patches: Linear,
    position: SinCos2d,
    cache: PositionCache<Tensor<3>>,
}

impl ImageEmbedding {
    /// Loads the layer from `weights`, the root of the transformer.
    ///
    /// # Errors
    /// If a parameter is missing or has the wrong shape.
    pub fn load(weights: &Weights, spec: &TransformerSpec, position: SinCos2d) -> Result<Self> {
        let patches = patch_embedding(&weights.at("pos_embed.proj"), spec.channels, spec.patch, spec.dim())?;
        Ok(Self { dtype: weights.dtype(), patches, position, cache: PositionCache::default() })
    }

    /// The input of the first block.
    ///
    /// # Shapes
    /// `latents`: `[b, n, channels · patch · patch]`, result `[b, n, dim]`.
    pub fn forward(&self, latents: Tokens) -> Hidden {
        let embed = || self.position.embed(&latents.positions, &latents.x.device()).cast(self.dtype);
        let position = self.cache.get(&latents.positions, embed);
        let x = self.patches.forward(latents.x.clone().cast(self.dtype)) + position;
        Hidden::new(latents.with(x), None)
    }
}

/// The indices of a packed latent's features among the outputs of the last layer. The layer orders a token's
/// features by row, column and channel. A learned variance, which no sampler here uses, follows the first
/// `channels` channels.
pub fn packed_outputs(channels: usize, patch: usize, out_channels: usize) -> Vec<i32> {
    let place = |channel, pixel| (pixel * out_channels + channel) as i32;
    (0..channels).flat_map(|channel| (0..patch * patch).map(move |pixel| place(channel, pixel))).collect()
}
