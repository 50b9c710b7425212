//! The adaptive layer norm that all blocks share (`adaLN-single`), and the blocks with it, as in PixArt and Latte.
//!
//! A modulation is computed once a step, and each block only adds its own table to it.
//!
//! Source: PixArt-α (Chen et al. 2023) §2.2; diffusers' `AdaLayerNormSingle`, and `BasicTransformerBlock` with
//! `ada_norm_single`.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use xdit_core::Result;
use xdit_core::attention::{Attention, Qkv, Site, cross_attention};
use xdit_core::linear::Linear;
use xdit_core::split;
use xdit_core::transformer::TransformerSpec;
use xdit_core::weights::Weights;
use xdit_kernels::{Activation, activate, gated_residual, join_grid, layer_norm_modulate, narrow};

use crate::layers::{FeedForward, Projections, TextProjections, batch, modulation_rows, packed_outputs};

/// The rows of a block's modulation: shift, scale and gate of attention, then of the feed-forward.
const ROWS: usize = 6;

/// The texts and the modulation prepared for one timestep.
#[derive(Clone, Debug)]
pub struct Context {
    /// The embedded timestep, `[1, 1, dim]`.
    timestep: Tensor<3>,
    /// Shift, scale and gate of attention, then of the feed-forward, `[1, 6, dim]`. Each block adds its own table.
    modulation: Tensor<3>,
    texts: Texts,
}

/// The text that each picture of a batch attends to.
#[derive(Clone, Debug)]
pub struct Texts {
    /// `[b, nk, c]`, or one text after another, `[1, Σ nk, c]`.
    tokens: Tensor<3>,
    /// If the texts follow one another, the tokens of each picture's.
    runs: Vec<Range<usize>>,
    /// The bias of the scores, `[b, 1, 1, nk]`, for all pictures or for each run.
    biases: Vec<Option<Tensor<4>>>,
}

impl Texts {
    /// The texts of the pictures of one or several branches, each with the bias of its scores.
    ///
    /// # Shapes
    /// Texts: `[b, nk, c]`; biases: `[b, 1, 1, nk]`.
    ///
    /// # Panics
    /// If there are several branches, one has several pictures, and texts differ in length or have a bias.
    pub fn new(branches: impl IntoIterator<Item = (Tensor<3>, Option<Tensor<4>>)>) -> Self {
        let (texts, biases): (Vec<_>, Vec<_>) = branches.into_iter().unzip();
        let lengths: Vec<usize> = texts.iter().map(|text| text.dims()[1]).collect();
        let alike = lengths.iter().all(|&length| length == lengths[0]) && biases.iter().all(Option::is_none);
        if texts.len() == 1 || alike {
            return Self { tokens: batch(texts), runs: Vec::new(), biases: biases[..1].to_vec() };
        }
        assert!(texts.iter().all(|text| text.dims()[0] == 1), "each branch has one picture");
        Self { tokens: Tensor::cat(texts, 1), runs: split::consecutive(&lengths), biases }
    }

    /// Attention of each picture's tokens to its text. `k` and `v` are those of all [tokens](Self::tokens).
    ///
    /// # Shapes
    /// `q` and the result: `[b, n, h, d]`.
    fn attend(&self, Qkv { q, k, v }: Qkv) -> Tensor<4> {
        if self.runs.is_empty() {
            return cross_attention(q, k, v, self.biases[0].clone());
        }
        let of_picture = |(picture, (run, bias)): (usize, (&Range<usize>, &Option<Tensor<4>>))| {
            let [k, v] = [&k, &v].map(|x| narrow(x, 1, run.start, run.len()));
            vec![cross_attention(narrow(&q, 0, picture, 1), k, v, bias.clone())]
        };
        let shape = q.dims();
        // One picture after another is the same as one picture's tokens after another's.
        join_grid(self.runs.iter().zip(&self.biases).enumerate().map(of_picture).collect()).reshape(shape)
    }
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

    /// The context of each timestep.
    ///
    /// # Shapes
    /// `timesteps`: embedded, `[steps, dim]`; `texts`: with `caption_channels` features.
    pub fn contexts(&self, timesteps: Tensor<2>, texts: Texts) -> Vec<Context> {
        let [steps, dim] = timesteps.dims();
        let modulation = self.modulation.forward(activate(Activation::Silu, timesteps.clone()));
        let tokens = activate(Activation::GeluTanh, self.caption_1.forward(texts.tokens));
        let texts = Texts { tokens: self.caption_2.forward(tokens), ..texts };
        let at = |step| Context {
            timestep: timesteps.clone().narrow(0, step, 1).reshape([1, 1, dim]),
            modulation: modulation.clone().narrow(0, step, 1).reshape([1, ROWS, dim]),
            texts: texts.clone(),
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
            let qkv = attn2.qkv(x.clone(), context.texts.tokens.clone());
            x = attn2.out_add(x, context.texts.attend(qkv));
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
