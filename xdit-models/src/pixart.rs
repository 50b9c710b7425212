//! The PixArt-α and PixArt-Σ transformer.
//!
//! It consists of self-attention over the image, cross-attention to the text, and one adaptive layer norm for all
//! blocks (`adaLN-single`): a modulation is computed once a step, and each block only adds its own table to it.
//!
//! Source: PixArt-α (Chen et al. 2023) §2.2; diffusers' `PixArtTransformer2DModel` and `BasicTransformerBlock`.

use burn::tensor::{DType, Tensor};
use serde_json::json;
use xdit_core::attention::{Attention, Qkv, Site, cross_attention};
use xdit_core::config::Config;
use xdit_core::linear::Linear;
use xdit_core::tokens::Tokens;
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
pub struct PixArtConfig {
    /// The sizes that the engine needs.
    pub spec: TransformerSpec,
    /// The side, in latent pixels, of the images that the model was trained on.
    pub sample_size: usize,
    /// The number of features of a text token.
    pub caption_channels: usize,
    /// The number of channels of the prediction: twice that of the latents if the model also learned a variance.
    pub out_channels: usize,
    /// Whether attention projections have a bias.
    pub attention_bias: bool,
    /// The factor by which the position grid is compressed.
    pub interpolation_scale: f32,
    /// Whether the size and aspect ratio of the picture are conditions.
    pub micro_conditions: bool,
    /// The ε of the layer norms inside the blocks.
    pub norm_eps: f64,
}

impl TransformerConfig for PixArtConfig {
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
        let head_dim = config.take("attention_head_dim", 72)?;
        let channels = config.take("in_channels", 4)?;
        let sample_size = config.take("sample_size", 128usize)?;
        let cross = config.take("cross_attention_dim", heads * head_dim)?;
        if cross != heads * head_dim || (heads * head_dim) % 4 != 0 || sample_size == 0 {
            return Err(Error::failure(format!(
                "a PixArt transformer cannot have {heads} heads of {head_dim} features, \
                 `cross_attention_dim` {cross} and `sample_size` {sample_size}"
            )));
        }
        let this = Self {
            spec: TransformerSpec {
                patch: config.take("patch_size", 2)?,
                channels,
                blocks: config.take("num_layers", 28)?,
                heads,
                head_dim,
                skips: Vec::new(),
                block_parameters: Vec::new(),
            },
            sample_size,
            caption_channels: config.require("caption_channels")?,
            out_channels: config.take("out_channels", channels)?,
            attention_bias: config.take("attention_bias", true)?,
            interpolation_scale: config.take("interpolation_scale", (sample_size / 64).max(1) as f32)?,
            micro_conditions: config.take("use_additional_conditions", sample_size == 128)?,
            norm_eps: config.take("norm_eps", 1e-6)?,
        };
        if this.spec.patch == 0 {
            return Err(Error::failure("a PixArt transformer cannot have `patch_size` 0"));
        }
        config.finish()?;
        Ok(this)
    }

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }
}

impl PixArtConfig {
    /// The number of features of a token.
    pub fn dim(&self) -> usize {
        self.spec.dim()
    }
}

/// The conditions of one guidance branch.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The text embeddings, `[b, nk, caption_channels]`.
    pub text: Tensor<3>,
    /// A bias of the scores of text tokens, `[b, 1, 1, nk]`: 0, or a large negative number for padding.
    pub bias: Option<Tensor<4>>,
    /// The height and width of the picture in pixels, for models with micro-conditions.
    pub size: Option<[usize; 2]>,
}

/// [`Conditions`] prepared for one timestep.
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

/// The transformer.
#[derive(Clone, Debug)]
pub struct PixArt {
    spec: TransformerSpec,
    dtype: DType,
    position: SinCos2d,
    position_cache: PositionCache<Tensor<3>>,
    /// Loaded with the first block.
    patch_embedding: Option<Linear>,
    timestep_embedder: TimestepEmbedding,
    /// The embedders of size and aspect ratio.
    micro: Option<[TimestepEmbedding; 2]>,
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

impl Published for PixArt {
    type Config = PixArtConfig;

    fn load(config: &PixArtConfig, weights: &Weights) -> Result<Self> {
        let TransformerSpec { patch, channels, blocks: count, .. } = config.spec;
        let dim = config.dim();
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
        let emb = adaln.at("emb");
        let embedder = |name, c_out| TimestepEmbedding::load(&emb.at(name), SINUSOID_WIDTH, c_out);
        let micro =
            || Ok([embedder("resolution_embedder", dim / 3)?, embedder("aspect_ratio_embedder", dim / 3)?]);
        let caption = weights.at("caption_projection").once();
        Ok(Self {
            spec: config.spec.clone(),
            dtype: weights.dtype(),
            position: SinCos2d {
                dim,
                base_size: config.sample_size / patch,
                interpolation_scale: config.interpolation_scale,
            },
            position_cache: PositionCache::default(),
            patch_embedding: (blocks.start == 0).then(patch_embedding).transpose()?,
            timestep_embedder: embedder("timestep_embedder", dim)?,
            micro: config.micro_conditions.then(micro).transpose()?,
            adaln_linear: adaln.linear("linear", dim, 6 * dim)?,
            caption_1: caption.linear("linear_1", config.caption_channels, dim)?,
            caption_2: caption.linear("linear_2", dim, dim)?,
            first_block: blocks.start,
            output: (blocks.end == count).then(output).transpose()?,
            blocks: blocks
                .map(|index| Block::load(config, &weights.at("transformer_blocks").at(index)))
                .collect::<Result<_>>()?,
        })
    }
}

impl Transformer for PixArt {
    type Conditions = Conditions;
    type Context = Context;

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn contexts(&self, conditions: &Conditions, timesteps: &[f32]) -> Vec<Context> {
        let (device, dtype) = (conditions.text.device(), self.dtype);
        let sinusoids = |values: &[f32]| sinusoids(values, &device).cast(dtype);
        let mut embedded = self.timestep_embedder.forward(sinusoids(timesteps));
        let dim = embedded.dims()[1];
        if let Some([resolution, aspect_ratio]) = &self.micro {
            let [height, width] = conditions.size.expect("a model with micro-conditions is told the size");
            let size = resolution.forward(sinusoids(&[height as f32, width as f32]));
            let ratio = aspect_ratio.forward(sinusoids(&[(height as f64 / width as f64) as f32]));
            embedded = embedded + Tensor::cat(vec![size, ratio], 0).reshape([1, dim]);
        }
        let modulation = self.adaln_linear.forward(activate(Activation::Silu, embedded.clone()));
        let text = activate(Activation::GeluTanh, self.caption_1.forward(conditions.text.clone()));
        let text = self.caption_2.forward(text);
        let at = |step| Context {
            timestep: embedded.clone().narrow(0, step, 1).reshape([1, 1, dim]),
            modulation: modulation.clone().narrow(0, step, 1).reshape([1, 6, dim]),
            text: text.clone(),
            bias: conditions.bias.clone(),
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
        let Tokens { x, positions } = hidden.image;
        let site = Site::new(index, 0);
        let x = self.blocks[index - self.first_block].forward(site, x, context, attention);
        Hidden::new(Tokens { x, positions }, None)
    }

    fn finish(&self, hidden: Hidden, context: &Context) -> Tensor<3> {
        let Output { scale_shift_table, proj } = self.output.as_ref().expect("the last block is here");
        let [shift, scale] = modulation_rows(&(scale_shift_table.clone() + context.timestep.clone()), 0);
        proj.forward(layer_norm_modulate(hidden.image.x, shift, scale, 1e-6)).cast(DType::F32)
    }
}

/// A block: modulated self-attention, cross-attention and a modulated feed-forward.
#[derive(Clone, Debug)]
struct Block {
    heads: Heads,
    eps: f64,
    /// `[1, 6, dim]`
    scale_shift_table: Tensor<3>,
    attn1: Projections,
    attn2: Projections,
    ff: FeedForward,
}

impl Block {
    fn load(config: &PixArtConfig, weights: &Weights) -> Result<Self> {
        let dim = config.dim();
        Ok(Self {
            heads: Heads { head_dim: config.spec.head_dim },
            eps: config.norm_eps,
            scale_shift_table: weights.tensor("scale_shift_table", [6, dim])?.unsqueeze(),
            attn1: Projections::load(config, &weights.at("attn1"))?,
            attn2: Projections::load(config, &weights.at("attn2"))?,
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
        let x = gated_residual(x, gate_attn, self.attn1.out.forward(heads.join(y)));

        let q = heads.split(self.attn2.q.forward(x.clone()));
        let k = heads.split(self.attn2.k.forward(context.text.clone()));
        let v = heads.split(self.attn2.v.forward(context.text.clone()));
        let y = cross_attention(q, k, v, context.bias.clone());
        let x = self.attn2.out.forward(heads.join(y)) + x;

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
    fn load(config: &PixArtConfig, weights: &Weights) -> Result<Self> {
        let dim = config.dim();
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
