//! The blocks of a UNet: residual blocks of convolutions, and transformers over the pixels.

use burn::tensor::Tensor;
use xdit_core::Result;
use xdit_core::attention::{Attention, Qkv, Site, cross_attention};
use xdit_core::linear::Linear;
use xdit_core::rows::Rows;
use xdit_core::weights::Weights;
use xdit_kernels::{Activation, Conv2d, gated_activate, layer_norm, norm_act};

use super::config::{Level, UNetConfig};
use crate::convolution::{GroupNorm, Resnet};
use crate::layers::{Projections, TextProjections};

/// The ε of the norms in transformers: of the group norm before the first layer, and of the layer norms.
const GROUP_NORM_EPS: f64 = 1e-6;
const LAYER_NORM_EPS: f64 = 1e-5;

/// A pass of an image through the model: what the blocks share.
pub(super) struct Pass<'a> {
    /// Mixes pixels.
    pub attention: &'a mut dyn Attention,
    /// The text, `[b, nt, cross_attention_dim]`.
    pub text: Tensor<3>,
    /// The embedded timestep for each residual block to come, `[b, c]`.
    pub times: std::slice::Iter<'a, Tensor<2>>,
    /// The number of attentions among pixels so far.
    pub attentions: usize,
}

impl Pass<'_> {
    fn rows(&self) -> &dyn Rows {
        self.attention.rows()
    }

    /// A convolution that neither follows a norm nor adds to anything.
    pub fn conv(&self, conv: &Conv2d, x: Tensor<4>) -> Tensor<4> {
        self.rows().conv(conv, x, None, None)
    }

    fn attend(&mut self, qkv: Qkv) -> Tensor<4> {
        let site = Site::new(0, self.attentions);
        self.attentions += 1;
        self.attention.attend(site, qkv, None).0
    }
}

/// A residual block, with the layer for its timesteps.
#[derive(Clone, Debug)]
pub(super) struct TimedResnet {
    resnet: Resnet,
    /// Projects the embedded timestep.
    pub time_emb_proj: Linear,
}

impl TimedResnet {
    pub fn load(config: &UNetConfig, weights: &Weights, c_in: usize, c_out: usize) -> Result<Self> {
        Ok(Self {
            resnet: Resnet::load((config.norm_num_groups, config.norm_eps), weights, c_in, c_out)?,
            time_emb_proj: weights.once().linear("time_emb_proj", config.time_embed_dim(), c_out)?,
        })
    }

    /// # Shapes
    /// `[b, c_in, y, x]` to `[b, c_out, y, x]`.
    pub fn forward(&self, x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        let time = pass.times.next().expect("a timestep for each residual block").clone();
        self.resnet.forward(x, Some(time), pass.rows())
    }
}

/// A transformer over the pixels of an image, around which there is a residual connection.
///
/// # Source
/// diffusers' `Transformer2DModel`.
#[derive(Clone, Debug)]
pub(super) struct PixelTransformer {
    norm: GroupNorm,
    proj_in: Linear,
    layers: Vec<Layer>,
    proj_out: Linear,
}

impl PixelTransformer {
    pub fn load(config: &UNetConfig, weights: &Weights, level: &Level) -> Result<Self> {
        let c = level.channels;
        let projection = |name| match config.use_linear_projection {
            true => weights.linear(name, c, c),
            false => {
                let weights = weights.at(name);
                let kernel = weights.tensor("weight", [c, c, 1, 1])?.reshape([c, c]);
                Ok(Linear::new(kernel, Some(weights.tensor("bias", [c])?)))
            }
        };
        let layer = |index| Layer::load(config, &weights.at("transformer_blocks").at(index), level);
        Ok(Self {
            norm: GroupNorm::load((config.norm_num_groups, GROUP_NORM_EPS), &weights.at("norm"), c)?,
            proj_in: projection("proj_in")?,
            layers: (0..level.layers).map(layer).collect::<Result<_>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    /// # Shapes
    /// `[b, c, y, x]`, also the result.
    pub fn forward(&self, image: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        let [b, c, rows, columns] = image.dims();
        let normed = norm_act(image.clone(), &self.norm.affine(&image, pass.rows()), false);
        // Nothing is copied if the channels of each pixel lie together.
        let x = self.proj_in.forward(normed.permute([0, 2, 3, 1]).reshape([b, rows * columns, c]));
        let x = self.layers.iter().fold(x, |x, layer| layer.forward(x, pass));
        image + self.proj_out.forward(x).reshape([b, rows, columns, c]).permute([0, 3, 1, 2])
    }
}

/// A pre-norm transformer layer: attention among pixels, attention to the text, and a gated feed-forward.
///
/// # Source
/// diffusers' `BasicTransformerBlock`.
#[derive(Clone, Debug)]
struct Layer {
    norm1: LayerNorm,
    attn1: Projections,
    norm2: LayerNorm,
    attn2: TextProjections,
    norm3: LayerNorm,
    /// Computes the values and the gates.
    ff_in: Linear,
    ff_out: Linear,
}

impl Layer {
    fn load(config: &UNetConfig, weights: &Weights, level: &Level) -> Result<Self> {
        let c = level.channels;
        let norm = |name| LayerNorm::load(&weights.at(name), c);
        let (net, text) = (weights.at("ff.net"), config.cross_attention_dim);
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Projections::load_of(&weights.at("attn1"), c, level.head_dim(), false)?,
            norm2: norm("norm2")?,
            attn2: TextProjections::load(&weights.at("attn2"), [c, text], level.head_dim(), false)?,
            norm3: norm("norm3")?,
            ff_in: net.linear("0.proj", c, 8 * c)?,
            ff_out: net.linear("2", 4 * c, c)?,
        })
    }

    /// # Shapes
    /// `[b, n, c]`, also the result.
    fn forward(&self, x: Tensor<3>, pass: &mut Pass<'_>) -> Tensor<3> {
        let y = self.norm1.forward(x.clone());
        let y = pass.attend(self.attn1.qkv(y));
        let x = self.attn1.out_add(x, y);
        let Qkv { q, k, v } = self.attn2.qkv(self.norm2.forward(x.clone()), pass.text.clone());
        let x = self.attn2.out_add(x, cross_attention(q, k, v, None));
        let y = self.ff_in.forward(self.norm3.forward(x.clone()));
        let width = y.dims()[2] / 2;
        let (values, gates) = (y.clone().narrow(2, 0, width), y.narrow(2, width, width));
        self.ff_out.forward_add(x, gated_activate(Activation::Gelu, gates, values))
    }
}

#[derive(Clone, Debug)]
struct LayerNorm {
    weight: Tensor<1>,
    bias: Tensor<1>,
}

impl LayerNorm {
    fn load(weights: &Weights, c: usize) -> Result<Self> {
        Ok(Self { weight: weights.tensor("weight", [c])?, bias: weights.tensor("bias", [c])? })
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        layer_norm(x, Some(self.weight.clone()), Some(self.bias.clone()), LAYER_NORM_EPS)
    }
}
