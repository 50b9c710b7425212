//! The adaptive layer norm that all blocks share (`adaLN-single`), and the blocks with it, as in PixArt and Latte.
//!
//! A modulation is computed once a step, and each block only adds its own table to it.
//!
//! Source: PixArt-α (Chen et al. 2023) §2.2; diffusers' `AdaLayerNormSingle`, and `BasicTransformerBlock` with
//! `ada_norm_single`.

use burn::tensor::{DType, Tensor};
use xdit_core::Result;
use xdit_core::attention::{Attention, Qkv, Site, cross_attention};
use xdit_core::linear::Linear;
use xdit_core::transformer::TransformerSpec;
use xdit_core::weights::Weights;
use xdit_kernels::{Activation, activate, gated_residual, layer_norm_modulate};

use crate::layers::{FeedForward, Projections, TextProjections, modulation_rows, packed_outputs};

/// The rows of a block's modulation: shift, scale and gate of attention, then of the feed-forward.
const ROWS: usize = 6;

/// The text and the modulation prepared for one timestep.
#[derive(Clone, Debug)]
pub struct Context {
    /// The embedded timestep, `[1, 1, dim]`.
    timestep: Tensor<3>,
    /// Shift, scale and gate of attention, then of the feed-forward, `[1, 6, dim]`. Each block adds its own table.
    modulation: Tensor<3>,
    /// `[b, nk, dim]`
    text: Tensor<3>,
    bias: Option<Tensor<4>>,
}

/// The layers that prepare [contexts](Context).
#[derive(Clone, Debug)]
pub struct Conditioning {
    modulation: Linear,
    caption_1: Linear,
    caption_2: Linear,
}

impl Conditioning {
    /// Loads the layers from `weights`, the root of the transformer. The layers are used once.
    ///
    /// # Errors
    /// If a layer is missing or has the wrong shape.
    pub fn load(weights: &Weights, caption_channels: usize, dim: usize) -> Result<Self> {
        let caption = weights.at("caption_projection").once();
        Ok(Self {
            modulation: weights.at("adaln_single").once().linear("linear", dim, ROWS * dim)?,
            caption_1: caption.linear("linear_1", caption_channels, dim)?,
            caption_2: caption.linear("linear_2", dim, dim)?,
        })
    }

    /// The context of each timestep. `bias` is that of the scores of the text's tokens.
    ///
    /// # Shapes
    /// `timesteps`: embedded, `[steps, dim]`; `text`: `[b, nk, caption_channels]`; `bias`: `[b, 1, 1, nk]`.
    pub fn contexts(&self, timesteps: Tensor<2>, text: Tensor<3>, bias: Option<&Tensor<4>>) -> Vec<Context> {
        let [steps, dim] = timesteps.dims();
        let modulation = self.modulation.forward(activate(Activation::Silu, timesteps.clone()));
        let text = activate(Activation::GeluTanh, self.caption_1.forward(text));
        let text = self.caption_2.forward(text);
        let at = |step| Context {
            timestep: timesteps.clone().narrow(0, step, 1).reshape([1, 1, dim]),
            modulation: modulation.clone().narrow(0, step, 1).reshape([1, ROWS, dim]),
            text: text.clone(),
            bias: bias.cloned(),
        };
        (0..steps).map(at).collect()
    }

    /// The bytes of a context that depend on its timestep: the embedded timestep, and the modulation derived from it.
    pub fn context_bytes(&self, dim: usize, dtype: DType) -> usize {
        (dim + self.modulation.c_out()) * dtype.size()
    }
}

/// The options of a block.
#[derive(Clone, Copy, Debug)]
pub struct BlockOptions {
    /// Whether attention projections have a bias.
    pub attention_bias: bool,
    /// The ε of the layer norms.
    pub norm_eps: f64,
    /// Whether the block has cross-attention to the text.
    pub cross_attention: bool,
}

/// A block: modulated attention, cross-attention if it has one, and a modulated feed-forward.
#[derive(Clone, Debug)]
pub struct Block {
    eps: f64,
    /// `[1, 6, dim]`
    scale_shift_table: Tensor<3>,
    attn1: Projections,
    attn2: Option<TextProjections>,
    ff: FeedForward,
}

impl Block {
    /// Loads the block from `weights`.
    ///
    /// # Errors
    /// If a parameter is missing or has the wrong shape.
    pub fn load(weights: &Weights, spec: &TransformerSpec, options: BlockOptions) -> Result<Self> {
        let dim = spec.dim();
        let bias = options.attention_bias;
        let attn2 = || TextProjections::load(&weights.at("attn2"), [dim; 2], spec.head_dim, bias);
        Ok(Self {
            eps: options.norm_eps,
            scale_shift_table: weights.tensor("scale_shift_table", [ROWS, dim])?.unsqueeze(),
            attn1: Projections::load(&weights.at("attn1"), spec, bias)?,
            attn2: options.cross_attention.then(attn2).transpose()?,
            ff: FeedForward::load(&weights.at("ff"), dim)?,
        })
    }

    /// # Shapes
    /// `x` and the result: `[b, n, dim]`.
    pub fn forward(
        &self,
        site: Site,
        x: Tensor<3>,
        context: &Context,
        attention: &mut dyn Attention,
    ) -> Tensor<3> {
        let [shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff] =
            modulation_rows(&(self.scale_shift_table.clone() + context.modulation.clone()), 0);

        let y = layer_norm_modulate(x.clone(), shift_attn, scale_attn, self.eps);
        let (y, _) = attention.attend(site, self.attn1.qkv(y), None);
        let mut x = gated_residual(x, gate_attn, self.attn1.out(y));

        if let Some(attn2) = &self.attn2 {
            let Qkv { q, k, v } = attn2.qkv(x.clone(), context.text.clone());
            x = attn2.out_add(x, cross_attention(q, k, v, context.bias.clone()));
        }

        let y = layer_norm_modulate(x.clone(), shift_ff, scale_ff, self.eps);
        gated_residual(x, gate_ff, self.ff.forward(y))
    }
}

/// The layers that turn the last block's tokens into a prediction.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[1, 2, dim]`
    scale_shift_table: Tensor<3>,
    proj: Linear,
}

impl Output {
    /// Loads the layers from `weights`, the root of the transformer. Of `out_channels`, those of a learned variance are
    /// left out.
    ///
    /// # Errors
    /// If a parameter is missing or has the wrong shape.
    pub fn load(weights: &Weights, spec: &TransformerSpec, out_channels: usize) -> Result<Self> {
        let (dim, patch) = (spec.dim(), spec.patch);
        let proj = weights.linear("proj_out", dim, patch * patch * out_channels)?;
        Ok(Self {
            scale_shift_table: weights.tensor("scale_shift_table", [2, dim])?.unsqueeze(),
            proj: proj.select_outputs(packed_outputs(spec.channels, patch, out_channels)),
        })
    }

    /// # Shapes
    /// `[b, n, dim]` to `[b, n, channels · patch · patch]`, in f32.
    pub fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let [shift, scale] = modulation_rows(&(self.scale_shift_table.clone() + context.timestep.clone()), 0);
        self.proj.forward(layer_norm_modulate(x, shift, scale, 1e-6)).cast(DType::F32)
    }
}
