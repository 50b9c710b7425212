//! The FLUX.1 transformer.
//!
//! Double blocks come first: text and image have separate weights and attend to each other. Single blocks follow: text
//! and image share weights, and attention runs in parallel with the feed-forward. Positions enter through a rotary
//! embedding.
//!
//! Source: Black Forest Labs 2024, `flux/model.py`; diffusers' `FluxTransformer2DModel`. Blocks with two streams:
//! Esser et al. 2024 §4. Attention in parallel with the feed-forward: ViT-22B (Dehghani et al. 2023) §2.

use burn::tensor::{DType, Tensor};
use serde_json::json;
use xdit_core::attention::{Attention, Qkv, Site};
use xdit_core::config::Config;
use xdit_core::linear::{Linear, Linears};
use xdit_core::tokens::{Positions, Tokens};
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};
use xdit_core::weights::Weights;
use xdit_core::{Error, Result};
use xdit_kernels::{Activation, activate, gated_residual, join, layer_norm_modulate, rms_norm};

use crate::latent_diffusion::{Published, TransformerConfig};
use crate::layers::{FeedForward, Heads, batch, modulation_rows};
use crate::position::PositionCache;
use crate::rotary::{Rotary, RotaryEmbedding};
use crate::timestep::{SINUSOID_WIDTH, TimestepEmbedding, sinusoids};

/// The ε of every norm.
const EPS: f64 = 1e-6;

/// The side, in latent pixels, of the square that becomes a token. The config does not contain it, because the
/// pipeline packs the latents.
const PATCH: usize = 2;

/// The rows of a stream's modulation: shift, scale and gate of attention, then of the feed-forward.
const STREAM_ROWS: usize = 6;

/// The options of `transformer/config.json`.
#[derive(Clone, Debug)]
pub struct FluxConfig {
    /// The sizes that the engine needs; double blocks come before single ones.
    pub spec: TransformerSpec,
    /// The number of blocks with two streams.
    pub double_blocks: usize,
    /// The number of features of a text token.
    pub joint_attention_dim: usize,
    /// The number of features of the pooled text.
    pub pooled_projection_dim: usize,
    /// Whether the guidance scale is a condition, as in models with distilled guidance.
    pub guidance_embeds: bool,
    /// The rotation of queries and keys by position.
    pub rotary: RotaryEmbedding,
}

/// A limit that no real model reaches.
const MAX_BLOCKS: usize = 1024;

impl TransformerConfig for FluxConfig {
    fn read(mut config: Config) -> Result<Self> {
        config.only("patch_size", &[json!(1)])?;
        let features: usize = config.take("in_channels", 64)?;
        config.only("out_channels", &[json!(features)])?;
        let double_blocks: usize = config.take("num_layers", 19)?;
        let single_blocks: usize = config.take("num_single_layers", 38)?;
        if double_blocks.max(single_blocks) > MAX_BLOCKS || double_blocks + single_blocks > MAX_BLOCKS {
            return Err(Error::failure(format!(
                "a FLUX transformer cannot have `num_layers` {double_blocks} and `num_single_layers` {single_blocks}"
            )));
        }
        let this = Self {
            spec: TransformerSpec {
                patch: PATCH,
                channels: features / (PATCH * PATCH),
                blocks: double_blocks + single_blocks,
                heads: config.take("num_attention_heads", 24)?,
                head_dim: config.take("attention_head_dim", 128)?,
                skips: Vec::new(),
                // Attention and feed-forward, for two streams or for one.
                block_parameters: [vec![2; double_blocks], vec![1; single_blocks]].concat(),
            },
            double_blocks,
            joint_attention_dim: config.take("joint_attention_dim", 4096)?,
            pooled_projection_dim: config.take("pooled_projection_dim", 768)?,
            guidance_embeds: config.take("guidance_embeds", false)?,
            rotary: RotaryEmbedding { dims: config.take("axes_dims_rope", [16, 56, 56])?, theta: 10_000.0 },
        };
        let dims = this.rotary.dims;
        let sum = dims.iter().try_fold(0_usize, |sum, &dim| sum.checked_add(dim));
        if sum != Some(this.spec.head_dim) || dims.iter().any(|dim| dim % 2 != 0) {
            return Err(Error::failure(format!(
                "`axes_dims_rope` {dims:?} are not even numbers with the sum `attention_head_dim` {}",
                this.spec.head_dim
            )));
        }
        if !features.is_multiple_of(PATCH * PATCH) || this.spec.blocks == 0 {
            return Err(Error::failure(format!(
                "a FLUX transformer cannot have {} blocks and `in_channels` {features}",
                this.spec.blocks
            )));
        }
        config.finish()?;
        Ok(this)
    }

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }
}

/// The conditions of one guidance branch.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The text embeddings, `[b, n, joint_attention_dim]`.
    pub text: Tensor<3>,
    /// The pooled text, `[b, pooled_projection_dim]`.
    pub pooled: Tensor<2>,
    /// The guidance scale; only models with `guidance_embeds` use it.
    pub guidance: f32,
}

/// [`Conditions`] prepared for one timestep and the loaded blocks.
#[derive(Clone, Debug)]
pub struct Context {
    /// One for each loaded block, `[b, rows, dim]`.
    modulations: Vec<Tensor<3>>,
    /// The modulation of the last norm, `[b, 2, dim]`.
    norm_out: Option<Tensor<3>>,
    /// `[b, n, dim]`, only with the first block.
    text: Option<Tensor<3>>,
    text_shape: [usize; 3],
}

/// The transformer.
#[derive(Clone, Debug)]
pub struct Flux {
    spec: TransformerSpec,
    dtype: DType,
    rotary: RotaryEmbedding,
    rotary_cache: PositionCache<Rotary>,
    /// For a text of so many tokens and the image behind it.
    joint_rotary_cache: PositionCache<(usize, Rotary)>,
    timestep_embedder: TimestepEmbedding,
    guidance_embedder: Option<TimestepEmbedding>,
    /// Embeds the pooled text.
    text_embedder: TimestepEmbedding,
    /// The loaded blocks, from `first_block` on.
    blocks: Vec<Block>,
    first_block: usize,
    /// Loaded with the first block.
    embedders: Option<Embedders>,
    /// Loaded with the last block.
    output: Option<Output>,
}

/// The layers before the first block.
#[derive(Clone, Debug)]
struct Embedders {
    x: Linear,
    context: Linear,
}

/// The layers after the last block.
#[derive(Clone, Debug)]
struct Output {
    norm_out: Linear,
    proj_out: Linear,
}

impl Published for Flux {
    type Config = FluxConfig;

    /// Embedders and modulations, a quarter of the parameters, are used only before the first step.
    fn load(config: &FluxConfig, weights: &Weights) -> Result<Self> {
        let (dim, count) = (config.spec.dim(), config.spec.blocks);
        let (share, once) = (weights.blocks(count), weights.once());
        let features = config.spec.channels * PATCH * PATCH;
        let embed = once.at("time_text_embed");
        let embedder = |name, c_in| TimestepEmbedding::load(&embed.at(name), c_in, dim);
        let guidance = config.guidance_embeds.then(|| embedder("guidance_embedder", SINUSOID_WIDTH));
        let embedders = || -> Result<_> {
            Ok(Embedders {
                x: weights.linear("x_embedder", features, dim)?,
                context: once.linear("context_embedder", config.joint_attention_dim, dim)?,
            })
        };
        let output = || -> Result<_> {
            Ok(Output {
                norm_out: once.linear("norm_out.linear", dim, 2 * dim)?,
                proj_out: weights.linear("proj_out", dim, features)?,
            })
        };
        Ok(Self {
            spec: config.spec.clone(),
            dtype: weights.dtype(),
            rotary: config.rotary,
            rotary_cache: PositionCache::default(),
            joint_rotary_cache: PositionCache::default(),
            timestep_embedder: embedder("timestep_embedder", SINUSOID_WIDTH)?,
            guidance_embedder: guidance.transpose()?,
            text_embedder: embedder("text_embedder", config.pooled_projection_dim)?,
            blocks: share.clone().map(|index| Block::load(config, weights, index)).collect::<Result<_>>()?,
            first_block: share.start,
            embedders: (share.start == 0).then(embedders).transpose()?,
            output: (share.end == count).then(output).transpose()?,
        })
    }
}

impl Flux {
    /// The input of all modulations, `[steps · b, dim]`: a row for each timestep and picture of each branch.
    fn embedding(&self, branches: &[&Conditions], timesteps: &[f32]) -> Tensor<2> {
        let pooled = batch(branches.iter().map(|branch| branch.pooled.clone()));
        let device = pooled.device();
        let sinusoids = |values: &[f32]| sinusoids(values, &device).cast(self.dtype);
        // diffusers' pipeline divides by 1000 and its model multiplies again; this reproduces the rounding.
        let timesteps: Vec<_> = timesteps.iter().map(|timestep| timestep / 1000.0 * 1000.0).collect();
        let by_step = self.timestep_embedder.forward(sinusoids(&timesteps));
        let mut by_picture = self.text_embedder.forward(pooled.cast(self.dtype));
        if let Some(embedder) = &self.guidance_embedder {
            let scales =
                branches.iter().flat_map(|branch| vec![branch.guidance * 1000.0; branch.pooled.dims()[0]]);
            by_picture = by_picture + embedder.forward(sinusoids(&scales.collect::<Vec<_>>()));
        }
        let [b, dim] = by_picture.dims();
        let sum = by_step.unsqueeze_dim::<3>(1) + by_picture.unsqueeze_dim(0);
        activate(Activation::Silu, sum).reshape([timesteps.len() * b, dim])
    }

    /// The rotation `image` of the tokens at `positions`, behind that of `n_text` text tokens.
    fn joint_rotary(&self, positions: &Positions, n_text: usize, image: Rotary) -> Rotary {
        let make = || image.behind(n_text);
        let (known, joint) = self.joint_rotary_cache.get(positions, || (n_text, make()));
        if known == n_text { joint } else { make() }
    }
}

impl Transformer for Flux {
    type Conditions = Conditions;
    type Context = Context;

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn contexts(&self, branches: &[&Conditions], timesteps: &[f32]) -> Vec<Context> {
        let (dim, steps) = (self.spec.dim(), timesteps.len());
        let text = batch(branches.iter().map(|branch| branch.text.clone()));
        let [b, n, _] = text.dims();
        let embedding = self.embedding(branches, timesteps);
        // [steps, b, rows, dim]
        let modulation = |layers: &[&Linear]| {
            let rows = layers.iter().map(|layer| layer.forward(embedding.clone())).collect();
            let rows: Tensor<2> = Tensor::cat(rows, 1);
            let count = rows.dims()[1] / dim;
            rows.reshape([steps, b, count, dim])
        };
        let blocks: Vec<_> = self.blocks.iter().map(|block| modulation(&block.norms())).collect();
        let norm_out = self.output.as_ref().map(|output| modulation(&[&output.norm_out]));
        let embed = |embedders: &Embedders| embedders.context.forward(text.cast(self.dtype));
        let text = self.embedders.as_ref().map(embed);
        let context = |step| {
            let at_step = |rows: &Tensor<4>| rows.clone().narrow(0, step, 1).squeeze_dim(0);
            Context {
                modulations: blocks.iter().map(at_step).collect(),
                norm_out: norm_out.as_ref().map(at_step),
                text: text.clone(),
                text_shape: [b, n, dim],
            }
        };
        (0..steps).map(context).collect()
    }

    fn context_bytes(&self) -> usize {
        let norm_out = self.output.iter().map(|output| &output.norm_out);
        let layers = self.blocks.iter().flat_map(Block::norms).chain(norm_out);
        layers.map(Linear::c_out).sum::<usize>() * self.dtype.size()
    }

    fn text_shape(&self, context: &Context) -> Option<[usize; 3]> {
        Some(context.text_shape)
    }

    fn embed(&self, latents: Tokens, context: &Context) -> Hidden {
        let embedders = self.embedders.as_ref().expect("the first block is here");
        let x = embedders.x.forward(latents.x.clone().cast(self.dtype));
        Hidden::new(latents.with(x), context.text.clone())
    }

    fn block(
        &self,
        index: usize,
        hidden: Hidden,
        context: &Context,
        attention: &mut dyn Attention,
    ) -> Hidden {
        let local = index - self.first_block;
        let Tokens { x, positions } = &hidden.image;
        let rotary = self.rotary_cache.get(positions, || self.rotary.rotary(positions, &x.device()));
        // In single blocks, the text is in front of the image.
        let n_text = hidden.text.as_ref().map_or(0, |text| text.dims()[1]);
        let rotary = match &self.blocks[index - self.first_block] {
            Block::Single(_) if n_text > 0 => self.joint_rotary(positions, n_text, rotary),
            _ => rotary,
        };
        let given = Given {
            site: Site::new(index, 0),
            modulation: &context.modulations[local],
            rotary: &rotary,
            is_last: index + 1 == self.spec.blocks,
        };
        match &self.blocks[local] {
            Block::Double(block) => block.forward(hidden, &given, attention),
            Block::Single(block) => block.forward(hidden, &given, attention),
        }
    }

    fn finish(&self, hidden: Hidden, context: &Context) -> Tensor<3> {
        let output = self.output.as_ref().expect("the last block is here");
        let [scale, shift] = modulation_rows(context.norm_out.as_ref().expect("the last block is here"), 0);
        output.proj_out.forward(layer_norm_modulate(hidden.image.x, shift, scale, EPS)).cast(DType::F32)
    }
}

/// A block of either kind.
#[derive(Clone, Debug)]
enum Block {
    Double(Box<DoubleBlock>),
    Single(Box<SingleBlock>),
}

/// The inputs of a block besides the tokens.
struct Given<'a> {
    site: Site,
    /// `[b, rows, dim]`
    modulation: &'a Tensor<3>,
    /// For the image tokens, in single blocks behind those of the text. All text tokens are at position 0, where the
    /// rotation is the identity.
    rotary: &'a Rotary,
    /// The last block does not update the text.
    is_last: bool,
}

impl Block {
    fn load(config: &FluxConfig, weights: &Weights, index: usize) -> Result<Self> {
        Ok(match index.checked_sub(config.double_blocks) {
            None => {
                let weights = weights.at("transformer_blocks").at(index);
                Self::Double(Box::new(DoubleBlock::load(config, &weights)?))
            }
            Some(index) => {
                let weights = weights.at("single_transformer_blocks").at(index);
                Self::Single(Box::new(SingleBlock::load(config, &weights)?))
            }
        })
    }

    /// The layers that produce the rows of the block's modulation.
    fn norms(&self) -> Vec<&Linear> {
        match self {
            Self::Double(block) => vec![&block.image.norm, &block.text.norm],
            Self::Single(block) => vec![&block.norm],
        }
    }
}

/// A block with two streams, joined by attention.
#[derive(Clone, Debug)]
struct DoubleBlock {
    image: Stream,
    text: Stream,
}

impl DoubleBlock {
    fn load(config: &FluxConfig, weights: &Weights) -> Result<Self> {
        let image = ["norm1", "to_q", "to_k", "to_v", "norm_q", "norm_k", "to_out.0", "ff"];
        let text = [
            "norm1_context",
            "add_q_proj",
            "add_k_proj",
            "add_v_proj",
            "norm_added_q",
            "norm_added_k",
            "to_add_out",
            "ff_context",
        ];
        Ok(Self { image: Stream::load(config, weights, image)?, text: Stream::load(config, weights, text)? })
    }

    fn forward(&self, hidden: Hidden, given: &Given, attention: &mut dyn Attention) -> Hidden {
        let Hidden { image: Tokens { x, positions }, text, .. } = hidden;
        let image_rows = modulation_rows(given.modulation, 0);
        let text_rows = modulation_rows(given.modulation, STREAM_ROWS);
        let normed_image = modulated(&x, &image_rows);
        let (image_qkv, text_qkv) = match &text {
            Some(text) => {
                let streams = [modulated(text, &text_rows), normed_image];
                let [text, image] = Projections::pair(&self.text, &self.image, streams, given.rotary);
                (image, Some(text))
            }
            None => (self.image.projections.forward(normed_image, Some(given.rotary)), None),
        };
        let (y, text_y) = attention.attend(given.site, image_qkv, text_qkv);
        let x = self.image.forward(x, y, image_rows);
        let text = text.zip(text_y).filter(|_| !given.is_last);
        let text = text.map(|(x, y)| finite(self.text.forward(x, y, text_rows)));
        Hidden::new(Tokens { x, positions }, text)
    }
}

/// The input of a stream's attention.
fn modulated(x: &Tensor<3>, [shift, scale, ..]: &[Tensor<3>; STREAM_ROWS]) -> Tensor<3> {
    layer_norm_modulate(x.clone(), shift.clone(), scale.clone(), EPS)
}

/// The layers of a double block for one stream of tokens.
#[derive(Clone, Debug)]
struct Stream {
    norm: Linear,
    projections: Projections,
    out: Linear,
    ff: FeedForward,
}

impl Stream {
    /// Loads the layers, whose names differ between text and image.
    fn load(
        config: &FluxConfig,
        weights: &Weights,
        [norm, q, k, v, norm_q, norm_k, out, ff]: [&str; 8],
    ) -> Result<Self> {
        let dim = config.spec.dim();
        let attn = weights.at("attn");
        Ok(Self {
            norm: weights.once().at(norm).linear("linear", dim, STREAM_ROWS * dim)?,
            projections: Projections::load(config, &attn, [q, k, v, norm_q, norm_k])?,
            out: attn.linear(out, dim, dim)?,
            ff: FeedForward::load(&weights.at(ff), dim)?,
        })
    }

    /// Everything after the attention, whose result is `y`.
    fn forward(
        &self,
        x: Tensor<3>,
        y: Tensor<4>,
        [_, _, gate_attn, shift, scale, gate]: [Tensor<3>; STREAM_ROWS],
    ) -> Tensor<3> {
        let x = gated_residual(x, gate_attn, self.out.forward(self.projections.heads.join(y)));
        let y = self.ff.forward(layer_norm_modulate(x.clone(), shift, scale, EPS));
        gated_residual(x, gate, y)
    }
}

/// Attention in parallel with the feed-forward, with the same weights for text and image.
#[derive(Clone, Debug)]
struct SingleBlock {
    norm: Linear,
    projections: Projections,
    proj_mlp: Linear,
    proj_out: Linear,
}

impl SingleBlock {
    fn load(config: &FluxConfig, weights: &Weights) -> Result<Self> {
        let dim = config.spec.dim();
        let names = ["to_q", "to_k", "to_v", "norm_q", "norm_k"];
        Ok(Self {
            norm: weights.once().linear("norm.linear", dim, 3 * dim)?,
            projections: Projections::load(config, &weights.at("attn"), names)?,
            proj_mlp: weights.linear("proj_mlp", dim, 4 * dim)?,
            proj_out: weights.linear("proj_out", 5 * dim, dim)?,
        })
    }

    fn forward(&self, hidden: Hidden, given: &Given, attention: &mut dyn Attention) -> Hidden {
        let Hidden { image: Tokens { x, positions }, text, .. } = hidden;
        // Text and image pass through the layers as one sequence, with the text in front.
        let (n_text, n_image) = (text.as_ref().map_or(0, |text| text.dims()[1]), x.dims()[1]);
        let x = match text {
            Some(text) => join(text, x),
            None => x,
        };
        let parts = |x: Tensor<4>| {
            let text = (n_text > 0).then(|| x.clone().narrow(1, 0, n_text));
            (x.narrow(1, n_text, n_image), text)
        };
        let [shift, scale, gate] = modulation_rows(given.modulation, 0);
        let normed = layer_norm_modulate(x.clone(), shift, scale, EPS);
        let qkv = self.projections.forward(normed.clone(), Some(given.rotary));
        let [(q, text_q), (k, text_k), (v, text_v)] = [qkv.q, qkv.k, qkv.v].map(parts);
        let text_qkv = text_q.zip(text_k).zip(text_v).map(|((q, k), v)| Qkv { q, k, v });
        let (y, text_y) = attention.attend(given.site, Qkv { q, k, v }, text_qkv);
        // The last block does not update the text, which therefore ends with the attention.
        let (x, normed, y, n_text) = match text_y {
            Some(text_y) if !given.is_last => (x, normed, join(text_y, y), n_text),
            _ => (x.narrow(1, n_text, n_image), normed.narrow(1, n_text, n_image), y, 0),
        };
        let mlp = self.proj_mlp.forward_activated(normed, Activation::GeluTanh);
        let y = self.proj_out.forward_of_two(self.projections.heads.join(y), mlp);
        let x = finite(gated_residual(x, gate, y));
        let text = (n_text > 0).then(|| x.clone().narrow(1, 0, n_text));
        Hidden::new(Tokens { x: x.narrow(1, n_text, n_image), positions }, text)
    }
}

/// The linear layers before an attention, and the norms of its queries and keys.
#[derive(Clone, Debug)]
struct Projections {
    heads: Heads,
    qkv: Linears<3>,
    /// `[head_dim]`, the same for all heads.
    norm_q: Tensor<1>,
    norm_k: Tensor<1>,
}

impl Projections {
    fn load(config: &FluxConfig, weights: &Weights, [q, k, v, norm_q, norm_k]: [&str; 5]) -> Result<Self> {
        let (dim, head_dim) = (config.spec.dim(), config.spec.head_dim);
        Ok(Self {
            heads: Heads { head_dim },
            qkv: weights.linears([q, k, v], dim, dim, true)?,
            norm_q: weights.at(norm_q).tensor("weight", [head_dim])?,
            norm_k: weights.at(norm_k).tensor("weight", [head_dim])?,
        })
    }

    /// The results for the tokens of a text and of an image, of which the image's queries and keys are rotated.
    fn pair(text: &Stream, image: &Stream, streams: [Tensor<3>; 2], rotary: &Rotary) -> [Qkv; 2] {
        let (text, image) = (&text.projections, &image.projections);
        let [q, k, v] = Linears::forward_pair(&text.qkv, &image.qkv, streams, text.heads.head_dim);
        let q = rotary.turn_second_rms_normed(q, [text.norm_q.clone(), image.norm_q.clone()], EPS);
        let k = rotary.turn_second_rms_normed(k, [text.norm_k.clone(), image.norm_k.clone()], EPS);
        let ([text_q, q], [text_k, k], [text_v, v]) = (q, k, v);
        [Qkv { q: text_q, k: text_k, v: text_v }, Qkv { q, k, v }]
    }

    /// Rotates queries and keys by `rotary`, if given.
    fn forward(&self, x: Tensor<3>, rotary: Option<&Rotary>) -> Qkv {
        let [q, k, v] = self.qkv.forward(x, self.heads.head_dim);
        let turned = |x: Tensor<4>, norm: &Tensor<1>| match rotary {
            Some(rotary) => rotary.turn_rms_normed(x, norm.clone(), EPS),
            None => rms_norm(x, Some(norm.clone()), EPS),
        };
        Qkv { q: turned(q, &self.norm_q), k: turned(k, &self.norm_k), v }
    }
}

/// Replaces numbers beyond the range of half precision by the largest finite one. Some channels of FLUX grow that
/// large.
fn finite(x: Tensor<3>) -> Tensor<3> {
    if x.dtype() == DType::F16 { x.clamp(-65_504.0, 65_504.0) } else { x }
}
