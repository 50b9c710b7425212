//! The Latte transformer, which generates clips.
//!
//! Its blocks come in pairs. A spatial block is a block of PixArt on each frame: attention within the frame,
//! cross-attention to the text, feed-forward. A temporal block attends within each place over the frames and has no
//! cross-attention. Block `2 i` is spatial block `i`, and block `2 i + 1` temporal block `i`. All frames attend to the
//! same text, which therefore exists once.
//!
//! Source: Latte (Ma et al. 2024) §3.2, variant 1; diffusers' `LatteTransformer3DModel` and `BasicTransformerBlock`.

use burn::tensor::{DType, Device, Tensor, TensorData};
use serde_json::json;
use xdit_core::attention::{Attention, Qkv, Site, Span, cross_attention};
use xdit_core::config::Config;
use xdit_core::linear::Linear;
use xdit_core::tokens::{Positions, Tokens};
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};
use xdit_core::weights::Weights;
use xdit_core::{Error, Result};
use xdit_kernels::{Activation, activate, gated_residual, layer_norm_modulate};

use crate::latent_diffusion::{Published, TransformerConfig};
use crate::layers::{FeedForward, Heads, modulation_rows, packed_outputs, patch_embedding};
use crate::position::{PositionCache, SinCos2d};
use crate::timestep::{SINUSOID_WIDTH, TimestepEmbedding, sinusoids};

/// The options of `transformer/config.json`.
#[derive(Clone, Debug)]
pub struct LatteConfig {
    /// The sizes that the engine needs. Its blocks are spatial and temporal in turn.
    pub spec: TransformerSpec,
    /// The side, in latent pixels, of the frames that the model was trained on.
    pub sample_size: usize,
    /// The number of frames that the model was trained on.
    pub video_length: usize,
    /// The number of features of a text token.
    pub caption_channels: usize,
    /// The number of channels of the prediction: twice that of the latents if the model also learned a variance.
    pub out_channels: usize,
    /// Whether attention projections have a bias.
    pub attention_bias: bool,
    /// The ε of the layer norms inside the blocks.
    pub norm_eps: f64,
}

impl TransformerConfig for LatteConfig {
    fn read(mut config: Config) -> Result<Self> {
        config.only("norm_type", &[json!("ada_norm_single")])?;
        config.only("activation_fn", &[json!("gelu-approximate")])?;
        config.only("attention_type", &[json!("default")])?;
        for off in ["double_self_attention", "only_cross_attention", "norm_elementwise_affine"] {
            config.only(off, &[json!(false)])?;
        }
        config.only("num_vector_embeds", &[])?;
        config.inert(&[
            "dropout",
            "norm_num_groups",
            "num_embeds_ada_norm",
            "upcast_attention",
            "use_linear_projection",
        ]);
        let heads = config.take("num_attention_heads", 16)?;
        let head_dim = config.take("attention_head_dim", 88)?;
        let channels = config.require("in_channels")?;
        let sample_size = config.take("sample_size", 64usize)?;
        let video_length = config.take("video_length", 16usize)?;
        let cross: usize = config.require("cross_attention_dim")?;
        let patch = config.require("patch_size")?;
        let dim: usize = heads * head_dim;
        if cross != dim || !dim.is_multiple_of(4) || [sample_size, video_length, patch].contains(&0) {
            return Err(Error::failure(format!(
                "a Latte transformer cannot have {heads} heads of {head_dim} features, `cross_attention_dim` {cross}, \
                 `sample_size` {sample_size}, `video_length` {video_length} and `patch_size` {patch}"
            )));
        }
        let pairs: usize = config.take("num_layers", 1)?;
        let this = Self {
            spec: TransformerSpec {
                patch,
                channels,
                blocks: 2 * pairs,
                heads,
                head_dim,
                skips: Vec::new(),
                // In squares of the number of features: 4 of each attention, and 8 of the feed-forward.
                block_parameters: [16, 12].repeat(pairs),
            },
            sample_size,
            video_length,
            caption_channels: config.require("caption_channels")?,
            out_channels: config.take("out_channels", channels)?,
            attention_bias: config.take("attention_bias", false)?,
            norm_eps: config.take("norm_eps", 1e-5)?,
        };
        config.finish()?;
        Ok(this)
    }

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }
}

impl LatteConfig {
    /// The temporal blocks.
    pub fn temporal_blocks(&self) -> Vec<usize> {
        (1..self.spec.blocks).step_by(2).collect()
    }
}

/// The text prepared for one timestep.
#[derive(Clone, Debug)]
pub struct Context {
    /// The embedded timestep, `[1, 1, dim]`.
    timestep: Tensor<3>,
    /// Shift, scale and gate of attention, then of the feed-forward, `[1, 6, dim]`. Each block adds its own table.
    modulation: Tensor<3>,
    /// `[b, nk, dim]`
    text: Tensor<3>,
}

/// The transformer.
#[derive(Clone, Debug)]
pub struct Latte {
    spec: TransformerSpec,
    dtype: DType,
    position: SinCos2d,
    position_cache: PositionCache<Tensor<3>>,
    frame_cache: PositionCache<Tensor<3>>,
    /// Loaded with the first block.
    patch_embedding: Option<Linear>,
    timestep_embedder: TimestepEmbedding,
    adaln_linear: Linear,
    caption_1: Linear,
    caption_2: Linear,
    /// The loaded blocks, from `first_block` on.
    blocks: Vec<Block>,
    first_block: usize,
    /// Loaded with the last block.
    output: Option<Output>,
}

/// The layers that turn the last block's tokens into a prediction.
#[derive(Clone, Debug)]
struct Output {
    /// `[1, 2, dim]`
    scale_shift_table: Tensor<3>,
    proj: Linear,
}

impl Published for Latte {
    type Config = LatteConfig;

    fn load(config: &LatteConfig, weights: &Weights) -> Result<Self> {
        let TransformerSpec { patch, channels, blocks: count, .. } = config.spec;
        let dim = config.spec.dim();
        let blocks = weights.blocks(count);
        let patch_embedding = || patch_embedding(&weights.at("pos_embed.proj"), channels, patch, dim);
        let output = || {
            let proj = weights.linear("proj_out", dim, patch * patch * config.out_channels)?;
            Ok(Output {
                scale_shift_table: weights.tensor("scale_shift_table", [2, dim])?.unsqueeze(),
                proj: proj.select_outputs(packed_outputs(channels, patch, config.out_channels)),
            })
        };
        let adaln = weights.at("adaln_single").once();
        let caption = weights.at("caption_projection").once();
        Ok(Self {
            spec: config.spec.clone(),
            dtype: weights.dtype(),
            position: SinCos2d {
                dim,
                base_size: config.sample_size / patch,
                interpolation_scale: (config.sample_size / 64).max(1) as f32,
            },
            position_cache: PositionCache::default(),
            frame_cache: PositionCache::default(),
            patch_embedding: (blocks.start == 0).then(patch_embedding).transpose()?,
            timestep_embedder: TimestepEmbedding::load(
                &adaln.at("emb.timestep_embedder"),
                SINUSOID_WIDTH,
                dim,
            )?,
            adaln_linear: adaln.linear("linear", dim, 6 * dim)?,
            caption_1: caption.linear("linear_1", config.caption_channels, dim)?,
            caption_2: caption.linear("linear_2", dim, dim)?,
            first_block: blocks.start,
            output: (blocks.end == count).then(output).transpose()?,
            blocks: blocks.map(|index| Block::load(config, index, weights)).collect::<Result<_>>()?,
        })
    }
}

impl Transformer for Latte {
    /// The text embeddings, `[b, nk, caption_channels]`.
    type Conditions = Tensor<3>;
    type Context = Context;

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn contexts(&self, text: &Tensor<3>, timesteps: &[f32]) -> Vec<Context> {
        let sinusoids = sinusoids(timesteps, &text.device()).cast(self.dtype);
        let embedded = self.timestep_embedder.forward(sinusoids);
        let dim = embedded.dims()[1];
        let modulation = self.adaln_linear.forward(activate(Activation::Silu, embedded.clone()));
        let text = activate(Activation::GeluTanh, self.caption_1.forward(text.clone()));
        let text = self.caption_2.forward(text);
        let at = |step| Context {
            timestep: embedded.clone().narrow(0, step, 1).reshape([1, 1, dim]),
            modulation: modulation.clone().narrow(0, step, 1).reshape([1, 6, dim]),
            text: text.clone(),
        };
        (0..timesteps.len()).map(at).collect()
    }

    fn context_bytes(&self) -> usize {
        // The embedded timestep and the modulation derived from it.
        (self.spec.dim() + self.adaln_linear.c_out()) * self.dtype.size()
    }

    fn embed(&self, latents: Tokens, _: &Context) -> Hidden {
        let patch_embedding = self.patch_embedding.as_ref().expect("the first block is here");
        let embed = || self.position.embed(&latents.positions, &latents.x.device()).cast(self.dtype);
        let position = self.position_cache.get(&latents.positions, embed);
        let x = patch_embedding.forward(latents.x.clone().cast(self.dtype)) + position;
        Hidden::new(latents.with(x), None)
    }

    fn block(
        &self,
        index: usize,
        hidden: Hidden,
        context: &Context,
        attention: &mut dyn Attention,
    ) -> Hidden {
        let Tokens { mut x, positions } = hidden.image;
        let [frames, ..] = positions.extent();
        let span = if is_temporal(index) { Span::Place { frames } } else { Span::Frame { frames } };
        if index == 1 && frames > 1 {
            let embed = || frame_embedding(&positions, self.spec.dim(), &x.device()).cast(self.dtype);
            x = x.clone() + self.frame_cache.get(&positions, embed);
        }
        let site = Site::new(index, 0).within(span);
        let x = self.blocks[index - self.first_block].forward(site, x, context, attention);
        Hidden::new(Tokens { x, positions }, None)
    }

    fn finish(&self, hidden: Hidden, context: &Context) -> Tensor<3> {
        let Output { scale_shift_table, proj } = self.output.as_ref().expect("the last block is here");
        let [shift, scale] = modulation_rows(&(scale_shift_table.clone() + context.timestep.clone()), 0);
        proj.forward(layer_norm_modulate(hidden.image.x, shift, scale, 1e-6)).cast(DType::F32)
    }
}

/// Whether block `index` attends within places.
fn is_temporal(index: usize) -> bool {
    index % 2 == 1
}

/// The embedding of each token's frame: as many sines as cosines.
///
/// # Shapes
/// Result `[1, n, dim]`, f32.
///
/// # Source
/// diffusers' `get_1d_sincos_pos_embed_from_grid`.
fn frame_embedding(positions: &Positions, dim: usize, device: &Device) -> Tensor<3> {
    let [frames, ..] = positions.extent();
    let half = dim / 2;
    let of_frame = |frame: usize| -> Vec<f32> {
        let angles = || (0..half).map(|i| frame as f64 / 10000f64.powf(i as f64 / half as f64));
        angles().map(|angle| angle.sin() as f32).chain(angles().map(|angle| angle.cos() as f32)).collect()
    };
    let table: Vec<Vec<f32>> = (0..frames).map(of_frame).collect();
    let ids = positions.ids();
    let data: Vec<f32> = ids.iter().flat_map(|&[frame, _, _]| &table[frame as usize]).copied().collect();
    Tensor::from_data(TensorData::new(data, [1, ids.len(), dim]), (device, DType::F32))
}

/// A block: modulated attention, in spatial blocks cross-attention, and a modulated feed-forward.
#[derive(Clone, Debug)]
struct Block {
    heads: Heads,
    eps: f64,
    /// `[1, 6, dim]`
    scale_shift_table: Tensor<3>,
    attn1: Projections,
    /// Only in spatial blocks.
    attn2: Option<Projections>,
    ff: FeedForward,
}

impl Block {
    fn load(config: &LatteConfig, index: usize, weights: &Weights) -> Result<Self> {
        let temporal = is_temporal(index);
        let list = if temporal { "temporal_transformer_blocks" } else { "transformer_blocks" };
        let weights = weights.at(list).at(index / 2);
        let dim = config.spec.dim();
        let cross = || Projections::load(config, &weights.at("attn2"));
        Ok(Self {
            heads: Heads { head_dim: config.spec.head_dim },
            eps: config.norm_eps,
            scale_shift_table: weights.tensor("scale_shift_table", [6, dim])?.unsqueeze(),
            attn1: Projections::load(config, &weights.at("attn1"))?,
            attn2: (!temporal).then(cross).transpose()?,
            ff: FeedForward::load(&weights.at("ff"), dim)?,
        })
    }

    fn forward(
        &self,
        site: Site,
        x: Tensor<3>,
        context: &Context,
        attention: &mut dyn Attention,
    ) -> Tensor<3> {
        let heads = self.heads;
        let [shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff] =
            modulation_rows(&(self.scale_shift_table.clone() + context.modulation.clone()), 0);

        let y = layer_norm_modulate(x.clone(), shift_attn, scale_attn, self.eps);
        let qkv = Qkv {
            q: heads.split(self.attn1.q.forward(y.clone())),
            k: heads.split(self.attn1.k.forward(y.clone())),
            v: heads.split(self.attn1.v.forward(y)),
        };
        let (y, _) = attention.attend(site, qkv, None);
        let mut x = gated_residual(x, gate_attn, self.attn1.out.forward(heads.join(y)));

        if let Some(attn2) = &self.attn2 {
            let q = heads.split(attn2.q.forward(x.clone()));
            let k = heads.split(attn2.k.forward(context.text.clone()));
            let v = heads.split(attn2.v.forward(context.text.clone()));
            let y = cross_attention(q, k, v, None);
            x = attn2.out.forward(heads.join(y)) + x;
        }

        let y = layer_norm_modulate(x.clone(), shift_ff, scale_ff, self.eps);
        gated_residual(x, gate_ff, self.ff.forward(y))
    }
}

/// The four linear layers around an attention.
#[derive(Clone, Debug)]
struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl Projections {
    fn load(config: &LatteConfig, weights: &Weights) -> Result<Self> {
        let dim = config.spec.dim();
        let projection = |name| match config.attention_bias {
            true => weights.linear(name, dim, dim),
            false => weights.linear_without_bias(name, dim, dim),
        };
        Ok(Self {
            q: projection("to_q")?,
            k: projection("to_k")?,
            v: projection("to_v")?,
            out: weights.linear("to_out.0", dim, dim)?,
        })
    }
}
