//! Building blocks shared by the transformers of several models.

use burn::tensor::{DType, Tensor};
use serde_json::json;
use xdit_core::Result;
use xdit_core::attention::Qkv;
use xdit_core::config::Config;
use xdit_core::linear::{Linear, Linears};
use xdit_core::tokens::Tokens;
use xdit_core::transformer::{Hidden, TransformerSpec};
use xdit_core::weights::Weights;
use xdit_kernels::{Activation, layer_norm, layer_norm_modulate, merge_heads, narrow};

use crate::position::{PositionCache, SinCos2d};
use crate::rotary::Rotary;

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
        merge_heads(x)
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
        layer_norm(x, Some(self.weight.clone()), Some(self.bias.clone()), self.eps)
    }

    /// The norm of each head, turned by `rotary`.
    ///
    /// # Shapes
    /// `x` and the result: `[b, n, h, c]`.
    pub fn forward_turned(&self, x: Tensor<4>, rotary: &Rotary) -> Tensor<4> {
        rotary.turn_layer_normed(x, self.weight.clone(), self.bias.clone(), self.eps)
    }

    /// As [`forward`](Self::forward), with other shifts: one for all pictures, `[1, c]`, or one for each, `[b, c]`.
    pub fn forward_shifted(&self, x: Tensor<3>, shifts: Tensor<2>) -> Tensor<3> {
        if shifts.dims()[0] == 1 {
            return layer_norm(x, Some(self.weight.clone()), Some(shifts.squeeze_dim(0)), self.eps);
        }
        // A modulation adds 1 to its scales.
        let scale = self.weight.clone().cast(DType::F32) - 1.0;
        layer_norm_modulate(x, shifts.unsqueeze_dim(1), scale.unsqueeze(), self.eps)
    }
}

/// The linear layers around an attention of tokens to each other.
///
/// # Source
/// diffusers' `Attention` without norms.
#[derive(Clone, Debug)]
pub struct Projections {
    heads: Heads,
    qkv: Linears<3>,
    out: Linear,
}

impl Projections {
    /// Loads the layers from `weights`. Those of queries, keys and values have a bias if `bias` is set.
    ///
    /// # Errors
    /// If a layer is missing or has the wrong shape.
    pub fn load(weights: &Weights, spec: &TransformerSpec, bias: bool) -> Result<Self> {
        Self::load_of(weights, spec.dim(), spec.head_dim, bias)
    }

    /// As [`load`](Self::load), for tokens of `dim` features.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_of(weights: &Weights, dim: usize, head_dim: usize, bias: bool) -> Result<Self> {
        Ok(Self {
            heads: Heads { head_dim },
            qkv: weights.linears(["to_q", "to_k", "to_v"], dim, dim, bias)?,
            out: weights.linear("to_out.0", dim, dim)?,
        })
    }

    /// # Shapes
    /// `x`: `[b, n, dim]`.
    pub fn qkv(&self, x: Tensor<3>) -> Qkv {
        let [q, k, v] = self.qkv.forward(x, self.heads.head_dim);
        Qkv { q, k, v }
    }

    /// # Shapes
    /// `[b, n, h, d]` to `[b, n, dim]`.
    pub fn out(&self, y: Tensor<4>) -> Tensor<3> {
        self.out.forward(self.heads.join(y))
    }

    /// As [`out`](Self::out), added to `base`.
    pub fn out_add(&self, base: Tensor<3>, y: Tensor<4>) -> Tensor<3> {
        self.out.forward_add(base, self.heads.join(y))
    }
}

/// The linear layers around an attention of tokens to a text.
///
/// # Source
/// As [`Projections`].
#[derive(Clone, Debug)]
pub struct TextProjections {
    heads: Heads,
    q: Linear,
    kv: Linears<2>,
    out: Linear,
}

impl TextProjections {
    /// Loads the layers from `weights`, for tokens of `dim` features and a text of `text_dim` features. Those of queries,
    /// keys and values have a bias if `bias` is set.
    ///
    /// # Errors
    /// If a layer is missing or has the wrong shape.
    pub fn load(weights: &Weights, [dim, text_dim]: [usize; 2], head_dim: usize, bias: bool) -> Result<Self> {
        Ok(Self {
            heads: Heads { head_dim },
            q: match bias {
                true => weights.linear("to_q", dim, dim)?,
                false => weights.linear_without_bias("to_q", dim, dim)?,
            },
            kv: weights.linears(["to_k", "to_v"], text_dim, dim, bias)?,
            out: weights.linear("to_out.0", dim, dim)?,
        })
    }

    /// The queries of `x`, and the keys and values of `text`.
    ///
    /// # Shapes
    /// `x`: `[b, n, dim]`, `text`: `[b, nk, text_dim]`.
    pub fn qkv(&self, x: Tensor<3>, text: Tensor<3>) -> Qkv {
        let [k, v] = self.kv.forward(text, self.heads.head_dim);
        Qkv { q: self.heads.split(self.q.forward(x)), k, v }
    }

    /// `base` plus the output for the result of attention.
    ///
    /// # Shapes
    /// `base`: `[b, n, dim]`, `y`: `[b, n, h, d]`.
    pub fn out_add(&self, base: Tensor<3>, y: Tensor<4>) -> Tensor<3> {
        self.out.forward_add(base, self.heads.join(y))
    }
}

/// The values of several branches as one batch, those of the first branch first.
///
/// # Shapes
/// `[b, …]` each, and `[branches · b, …]`.
///
/// # Panics
/// If they differ in any other dimension.
pub fn batch<const D: usize>(branches: impl IntoIterator<Item = Tensor<D>>) -> Tensor<D> {
    let mut branches: Vec<_> = branches.into_iter().collect();
    let shapes: Vec<_> = branches.iter().map(Tensor::dims).collect();
    assert!(shapes.iter().all(|shape| shape[1..] == shapes[0][1..]), "branches of {shapes:?} are no batch");
    if branches.len() == 1 { branches.remove(0) } else { Tensor::cat(branches, 0) }
}

/// Selects rows of a modulation, from `first` on.
///
/// # Shapes
/// `[b, rows, c]` to `R` tensors of `[b, 1, c]`.
pub fn modulation_rows<const R: usize>(modulation: &Tensor<3>, first: usize) -> [Tensor<3>; R] {
    std::array::from_fn(|row| narrow(modulation, 1, first + row, 1))
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

    /// As [`forward`](Self::forward), added to `base`.
    pub fn forward_add(&self, base: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        self.out.forward_add(base, self.proj.forward_activated(x, Activation::GeluTanh))
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
