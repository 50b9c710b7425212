//! The HunyuanDiT transformer.
//!
//! A block consists of self-attention over the image, cross-attention to the text, and a feed-forward. The timestep and
//! the picture's other conditions act through the shift of the first norm alone. Long skip connections lead from the first
//! blocks to the last: the output of block `i` is another input of block `N − 1 − i`. Positions enter through a rotary
//! embedding of the image's tokens, in cross-attention, too. In place of masked text is a learned padding, to which the
//! image attends as to text.
//!
//! Source: HunyuanDiT (Li et al. 2024) §2.1; diffusers' `HunyuanDiT2DModel`, `HunyuanDiTBlock` and
//! `HunyuanCombinedTimestepTextSizeStyleEmbedding`. Long skip connections: U-ViT (Bao et al. 2022).

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor};
use serde_json::json;
use xdit_core::attention::{Attention, Qkv, Site, cross_attention};
use xdit_core::config::Config;
use xdit_core::linear::{Linear, Linears};
use xdit_core::tokens::Tokens;
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};
use xdit_core::weights::Weights;
use xdit_core::{Error, Result};
use xdit_kernels::{Activation, activate, layer_norm_modulate, narrow};

use crate::latent_diffusion::{Published, SAMPLE_SIZES, TransformerConfig};
use crate::layers::{FeedForward, Heads, Norm, batch, modulation_rows, packed_outputs, patch_embedding};
use crate::position::PositionCache;
use crate::rotary::{CenteredRotary, Rotary};
use crate::timestep::{SINUSOID_WIDTH, TimestepEmbedding, sinusoids};

/// The ε of all norms.
const EPS: f64 = 1e-6;
/// The heads of the attention that pools the text.
const POOL_HEADS: usize = 8;
/// The sides, in pixels, of the picture whose positions are not stretched.
const BASE_PIXELS: usize = 512;
/// The number of pixels of a side that become one latent pixel.
const LATENT_PIXELS: usize = 8;
/// Limits that no real model reaches.
const MAX_BLOCKS: usize = 1024;
const MAX_FEATURES: usize = 1 << 20;
/// The numbers in [`Conditions::sizes`].
const SIZES: usize = 6;

/// The options of `transformer/config.json`.
#[derive(Clone, Debug)]
pub struct HunyuanConfig {
    /// The sizes that the engine needs.
    pub spec: TransformerSpec,
    /// The side, in latent pixels, of a picture of the default size.
    pub sample_size: usize,
    /// The number of features of BERT's tokens, and of all text tokens inside the model.
    pub cross_attention_dim: usize,
    /// The number of features of mT5's tokens.
    pub cross_attention_dim_t5: usize,
    /// The number of features of the pooled text.
    pub pooled_projection_dim: usize,
    /// The number of BERT's tokens, padding included.
    pub text_len: usize,
    /// The number of mT5's tokens, padding included.
    pub text_len_t5: usize,
    /// The number of features inside a feed-forward.
    pub ff_dim: usize,
    /// Whether a style and sizes are conditions, as up to version 1.1.
    pub micro_conditions: bool,
}

impl TransformerConfig for HunyuanConfig {
    fn read(mut config: Config) -> Result<Self> {
        config.only("activation_fn", &[json!("gelu-approximate")])?;
        config.only("norm_type", &[json!("layer_norm")])?;
        // The recipe leaves out a learned variance, as the reference does.
        config.only("learn_sigma", &[json!(true)])?;
        let heads: usize = config.take("num_attention_heads", 16)?;
        let head_dim: usize = config.take("attention_head_dim", 88)?;
        let dim = heads.saturating_mul(head_dim);
        let hidden_size: usize = config.take("hidden_size", 1152)?;
        let blocks: usize = config.take("num_layers", 28)?;
        let patch = config.require("patch_size")?;
        let t5: usize = config.take("cross_attention_dim_t5", 2048)?;
        let ratio: f64 = config.take("mlp_ratio", 4.0)?;
        let ff_dim = (dim as f64 * ratio) as usize;
        let cross_attention_dim: usize = config.take("cross_attention_dim", 1024)?;
        let features = 1..=MAX_FEATURES;
        if hidden_size != dim
            || [dim, ff_dim, cross_attention_dim, t5].iter().any(|count| !features.contains(count))
            || !head_dim.is_multiple_of(4)
            || !(1..=MAX_BLOCKS).contains(&blocks)
            || !blocks.is_multiple_of(2)
            || !t5.is_multiple_of(POOL_HEADS)
            || ![1, 2, 4, 8].contains(&patch)
        {
            return Err(Error::failure(format!(
                "a HunyuanDiT cannot have {blocks} blocks with {heads} heads of {head_dim} features, `hidden_size` \
                 {hidden_size}, `mlp_ratio` {ratio}, `cross_attention_dim` {cross_attention_dim}, \
                 `cross_attention_dim_t5` {t5} and `patch_size` {patch}"
            )));
        }
        let skips: Vec<_> = (1..blocks / 2).map(|to_end| [to_end - 1, blocks - to_end]).collect();
        // Self-attention and cross-attention, feed-forward, and the layer after a skip connection.
        let plain = 6 * dim * dim + 2 * dim * cross_attention_dim + 2 * dim * ff_dim;
        let takes = |block: usize| skips.iter().any(|[_, to]| *to == block);
        let parameters = |block| plain + if takes(block) { 2 * dim * dim } else { 0 };
        let block_parameters = (0..blocks).map(parameters).collect();
        let this = Self {
            spec: TransformerSpec {
                patch,
                channels: config.require("in_channels")?,
                blocks,
                heads,
                head_dim,
                skips,
                block_parameters,
            },
            sample_size: config.within("sample_size", 32, SAMPLE_SIZES)?,
            cross_attention_dim,
            cross_attention_dim_t5: t5,
            pooled_projection_dim: config.take("pooled_projection_dim", 1024)?,
            text_len: config.take("text_len", 77)?,
            text_len_t5: config.take("text_len_t5", 256)?,
            ff_dim,
            micro_conditions: config.take("use_style_cond_and_image_meta_size", true)?,
        };
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
    /// BERT's states without padding, `[1, n ≤ text_len, cross_attention_dim]`.
    pub bert: Tensor<3>,
    /// mT5's states with padding, `[1, text_len_t5, cross_attention_dim_t5]`.
    pub t5: Tensor<3>,
    /// The number of mT5's tokens that are not padding.
    pub t5_tokens: usize,
    /// Height and width of the original picture and of the target, and top and left of the crop, for models that
    /// [take them](HunyuanConfig::micro_conditions).
    pub sizes: Option<[usize; SIZES]>,
}

/// [`Conditions`] prepared for one timestep.
#[derive(Clone, Debug)]
pub struct Context {
    /// For each loaded block, the shift of its first norm, `[branches, dim]`.
    shifts: Vec<Tensor<2>>,
    /// Scale and shift before the output, `[branches, 2, dim]`, only with the last block.
    output: Option<Tensor<3>>,
    /// `[branches, text_len + text_len_t5, cross_attention_dim]`
    text: Tensor<3>,
}

/// The transformer.
#[derive(Clone, Debug)]
pub struct Hunyuan {
    spec: TransformerSpec,
    device: Device,
    dtype: DType,
    rotary: CenteredRotary,
    rotary_cache: PositionCache<Rotary>,
    /// Embeds the latents, loaded with the first block.
    image_embedding: Option<Linear>,
    conditioning: Conditioning,
    text: TextEmbedding,
    /// The loaded blocks, from `first_block` on.
    blocks: Vec<Block>,
    first_block: usize,
    /// Loaded with the last block.
    output: Option<Output>,
}

/// The layers that turn the last block's tokens into a prediction.
#[derive(Clone, Debug)]
struct Output {
    /// Computes scale and shift.
    modulation: Linear,
    proj: Linear,
}

impl Published for Hunyuan {
    type Config = HunyuanConfig;

    fn load(config: &HunyuanConfig, weights: &Weights) -> Result<Self> {
        let TransformerSpec { patch, channels, blocks: count, head_dim, .. } = config.spec;
        let dim = config.spec.dim();
        let range: Range<usize> = weights.blocks(count);
        let image_embedding = || patch_embedding(&weights.at("pos_embed.proj"), channels, patch, dim);
        let out_channels = 2 * channels;
        let output = || {
            let proj = weights.linear("proj_out", dim, patch * patch * out_channels)?;
            Ok(Output {
                modulation: weights.at("norm_out").once().linear("linear", dim, 2 * dim)?,
                proj: proj.select_outputs(packed_outputs(channels, patch, out_channels)),
            })
        };
        Ok(Self {
            spec: config.spec.clone(),
            device: weights.device().clone(),
            dtype: weights.dtype(),
            rotary: CenteredRotary { dim: head_dim, base_size: BASE_PIXELS / LATENT_PIXELS / patch },
            rotary_cache: PositionCache::default(),
            image_embedding: (range.start == 0).then(image_embedding).transpose()?,
            conditioning: Conditioning::load(config, &weights.at("time_extra_emb"))?,
            text: TextEmbedding::load(config, weights)?,
            first_block: range.start,
            output: (range.end == count).then(output).transpose()?,
            blocks: range
                .map(|index| Block::load(config, index, &weights.at("blocks").at(index)))
                .collect::<Result<_>>()?,
        })
    }
}

impl Transformer for Hunyuan {
    type Conditions = Conditions;
    type Context = Context;

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn contexts(&self, branches: &[&Conditions], timesteps: &[f32]) -> Vec<Context> {
        let (steps, count, dim) = (timesteps.len(), branches.len(), self.spec.dim());
        let of_branch = |branch: &&Conditions| self.conditioning.embed(branch, timesteps, self.dtype);
        // Branch by branch, all steps of each.
        let embedded = activate(Activation::Silu, batch(branches.iter().map(of_branch)));
        let shift =
            |block: &Block| block.shift.forward(embedded.clone()) + block.norm1.bias.clone().unsqueeze();
        let shifts: Vec<Tensor<2>> = self.blocks.iter().map(shift).collect();
        let output = self.output.as_ref().map(|output| output.modulation.forward(embedded.clone()));
        let text = batch(branches.iter().map(|branch| self.text.embed(branch)));
        let at = |all: &Tensor<2>, step| {
            let features = all.dims()[1];
            let all: Tensor<3> = all.clone().reshape([count, steps, features]);
            narrow(&all, 1, step, 1).squeeze_dim::<2>(1)
        };
        let context = |step| Context {
            shifts: shifts.iter().map(|all| at(all, step)).collect(),
            output: output.as_ref().map(|all| at(all, step).reshape([count, 2, dim])),
            text: text.clone(),
        };
        (0..steps).map(context).collect()
    }

    fn context_bytes(&self) -> usize {
        let layers = self.blocks.iter().map(|block| &block.shift);
        let layers = layers.chain(self.output.iter().map(|output| &output.modulation));
        layers.map(Linear::c_out).sum::<usize>() * self.dtype.size()
    }

    fn embed(&self, latents: Tokens, _: &Context) -> Hidden {
        let embedding = self.image_embedding.as_ref().expect("the first block is here");
        let x = embedding.forward(latents.x.clone().cast(self.dtype));
        Hidden::new(latents.with(x), None)
    }

    fn block(
        &self,
        index: usize,
        hidden: Hidden,
        context: &Context,
        attention: &mut dyn Attention,
    ) -> Hidden {
        let Hidden { image: Tokens { x, positions }, text, mut skips } = hidden;
        let rotary = self.rotary_cache.get(&positions, || self.rotary.rotary(&positions, &self.device));
        let place = index - self.first_block;
        let block = &self.blocks[place];
        let x = match &block.skip {
            Some(skip) => skip.forward(x, skips.remove(&index).expect("the output of an earlier block")),
            None => x,
        };
        let shift = context.shifts[place].clone();
        let x = block.forward(Site::new(index, 0), x, shift, &context.text, &rotary, attention);
        if let Some([_, to]) = self.spec.skips.iter().find(|[from, _]| *from == index) {
            skips.insert(*to, x.clone());
        }
        Hidden { image: Tokens { x, positions }, text, skips }
    }

    fn finish(&self, hidden: Hidden, context: &Context) -> Tensor<3> {
        let output = self.output.as_ref().expect("the last block is here");
        let modulation = context.output.as_ref().expect("the last block is here");
        let [scale, shift] = modulation_rows(modulation, 0);
        output.proj.forward(layer_norm_modulate(hidden.image.x, shift, scale, EPS)).cast(DType::F32)
    }
}

/// The embedding of timestep, pooled text, sizes and style. All its layers are used once.
#[derive(Clone, Debug)]
struct Conditioning {
    timestep: TimestepEmbedding,
    pooler: Pooler,
    /// `[1, dim]`, of the one style there is.
    style: Option<Tensor<2>>,
    extra: TimestepEmbedding,
}

impl Conditioning {
    fn load(config: &HunyuanConfig, weights: &Weights) -> Result<Self> {
        let (dim, weights) = (config.spec.dim(), weights.once());
        let style = || weights.tensor("style_embedder.weight", [1, dim]);
        let extra = match config.micro_conditions {
            true => SIZES * SINUSOID_WIDTH + dim,
            false => 0,
        };
        Ok(Self {
            timestep: TimestepEmbedding::load(&weights.at("timestep_embedder"), SINUSOID_WIDTH, dim)?,
            pooler: Pooler::load(config, &weights.at("pooler"))?,
            style: config.micro_conditions.then(style).transpose()?,
            extra: TimestepEmbedding::load_of(
                &weights.at("extra_embedder"),
                [config.pooled_projection_dim + extra, 4 * dim, dim],
            )?,
        })
    }

    /// # Shapes
    /// Result `[steps, dim]`.
    fn embed(&self, conditions: &Conditions, timesteps: &[f32], dtype: DType) -> Tensor<2> {
        let device = conditions.t5.device();
        let mut extra = vec![self.pooler.forward(conditions.t5.clone())];
        if let Some(style) = &self.style {
            let sizes = conditions.sizes.expect("the model takes sizes").map(|size| size as f32);
            extra.push(sinusoids(&sizes, &device).reshape([1, SIZES * SINUSOID_WIDTH]).cast(dtype));
            extra.push(style.clone());
        }
        let extra = self.extra.forward(Tensor::cat(extra, 1));
        self.timestep.forward(sinusoids(timesteps, &device).cast(dtype)) + extra
    }
}

/// Attention of the mean of all text tokens, padding included, to the mean and the tokens.
///
/// # Source
/// diffusers' `HunyuanDiTAttentionPool`.
#[derive(Clone, Debug)]
struct Pooler {
    heads: Heads,
    /// `[text_len_t5 + 1, cross_attention_dim_t5]`
    positional_embedding: Tensor<2>,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    c_proj: Linear,
}

impl Pooler {
    fn load(config: &HunyuanConfig, weights: &Weights) -> Result<Self> {
        let c = config.cross_attention_dim_t5;
        Ok(Self {
            heads: Heads { head_dim: c / POOL_HEADS },
            positional_embedding: weights.tensor("positional_embedding", [config.text_len_t5 + 1, c])?,
            q_proj: weights.linear("q_proj", c, c)?,
            k_proj: weights.linear("k_proj", c, c)?,
            v_proj: weights.linear("v_proj", c, c)?,
            c_proj: weights.linear("c_proj", c, config.pooled_projection_dim)?,
        })
    }

    /// # Shapes
    /// `text`: `[1, text_len_t5, cross_attention_dim_t5]`, result `[1, pooled_projection_dim]`.
    fn forward(&self, text: Tensor<3>) -> Tensor<2> {
        let x = Tensor::cat(vec![text.clone().mean_dim(1), text], 1);
        let x = x + self.positional_embedding.clone().unsqueeze();
        let q = self.heads.split(self.q_proj.forward(x.clone().narrow(1, 0, 1)));
        let k = self.heads.split(self.k_proj.forward(x.clone()));
        let v = self.heads.split(self.v_proj.forward(x));
        self.c_proj.forward(self.heads.join(cross_attention(q, k, v, None))).squeeze_dim(1)
    }
}

/// The layers that join both texts.
#[derive(Clone, Debug)]
struct TextEmbedding {
    text_len: usize,
    /// Projects mT5's states to the features of BERT's.
    embedder: TimestepEmbedding,
    /// `[text_len + text_len_t5, cross_attention_dim]`
    padding: Tensor<2>,
}

impl TextEmbedding {
    fn load(config: &HunyuanConfig, weights: &Weights) -> Result<Self> {
        let (t5, c) = (config.cross_attention_dim_t5, config.cross_attention_dim);
        let len = config.text_len + config.text_len_t5;
        Ok(Self {
            text_len: config.text_len,
            embedder: TimestepEmbedding::load_of(&weights.once().at("text_embedder"), [t5, 4 * t5, c])?,
            padding: weights.tensor("text_embedding_padding", [len, c])?,
        })
    }

    /// BERT's tokens and its padding, followed by mT5's tokens and its padding. Each place has padding of its own.
    fn embed(&self, conditions: &Conditions) -> Tensor<3> {
        let len = self.padding.dims()[0];
        let Conditions { bert, t5, t5_tokens, .. } = conditions;
        let t5 = self.embedder.forward(t5.clone().narrow(1, 0, *t5_tokens).squeeze_dim::<2>(0));
        let padding = |places: Range<usize>| self.padding.clone().slice([places]);
        let bert = bert.clone().squeeze_dim::<2>(0);
        let (end, end_t5) = (bert.dims()[0], self.text_len + t5_tokens);
        let mut parts = vec![bert];
        if end < self.text_len {
            parts.push(padding(end..self.text_len));
        }
        parts.push(t5);
        if end_t5 < len {
            parts.push(padding(end_t5..len));
        }
        Tensor::cat(parts, 0).unsqueeze()
    }
}

/// A block.
#[derive(Clone, Debug)]
struct Block {
    skip: Option<Skip>,
    norm1: Norm,
    /// Computes what is added to the shift of `norm1`.
    shift: Linear,
    attn1: NormedProjections<OfItself>,
    norm2: Norm,
    attn2: NormedProjections<OfText>,
    norm3: Norm,
    ff: FeedForward,
}

impl Block {
    fn load(config: &HunyuanConfig, index: usize, weights: &Weights) -> Result<Self> {
        let (spec, dim) = (&config.spec, config.spec.dim());
        let norm = |name| Norm::load(&weights.at(name), dim, EPS);
        let takes_skip = spec.skips.iter().any(|[_, to]| *to == index);
        Ok(Self {
            skip: takes_skip.then(|| Skip::load(weights, dim)).transpose()?,
            norm1: norm("norm1.norm")?,
            shift: weights.at("norm1").once().linear("linear", dim, dim)?,
            attn1: NormedProjections::load(&weights.at("attn1"), spec, |weights| {
                Ok(OfItself(weights.linears(["to_q", "to_k", "to_v"], dim, dim, true)?))
            })?,
            norm2: norm("norm2")?,
            attn2: NormedProjections::load(&weights.at("attn2"), spec, |weights| {
                let kv = weights.linears(["to_k", "to_v"], config.cross_attention_dim, dim, true)?;
                Ok(OfText { q: weights.linear("to_q", dim, dim)?, kv })
            })?,
            norm3: norm("norm3")?,
            ff: FeedForward::load_of(&weights.at("ff"), dim, config.ff_dim)?,
        })
    }

    fn forward(
        &self,
        site: Site,
        x: Tensor<3>,
        shift: Tensor<2>,
        text: &Tensor<3>,
        rotary: &Rotary,
        attention: &mut dyn Attention,
    ) -> Tensor<3> {
        let y = self.norm1.forward_shifted(x.clone(), shift);
        let (y, _) = attention.attend(site, self.attn1.qkv(y, rotary), None);
        let x = self.attn1.out_add(x, y);

        let Qkv { q, k, v } = self.attn2.qkv(self.norm2.forward(x.clone()), text.clone(), rotary);
        let x = self.attn2.out_add(x, cross_attention(q, k, v, None));

        let y = self.norm3.forward(x.clone());
        self.ff.forward_add(x, y)
    }
}

/// The end of a long skip connection.
#[derive(Clone, Debug)]
struct Skip {
    norm: Norm,
    linear: Linear,
}

impl Skip {
    fn load(weights: &Weights, dim: usize) -> Result<Self> {
        Ok(Self {
            norm: Norm::load(&weights.at("skip_norm"), 2 * dim, EPS)?,
            linear: weights.linear("skip_linear", 2 * dim, dim)?,
        })
    }

    /// # Shapes
    /// All `[b, n, dim]`.
    fn forward(&self, x: Tensor<3>, earlier: Tensor<3>) -> Tensor<3> {
        self.linear.forward(self.norm.forward(Tensor::cat(vec![x, earlier], 2)))
    }
}

/// The linear layers around an attention, with norms of each head's queries and keys. `I` has the layers before it.
///
/// # Source
/// diffusers' `Attention` with `qk_norm="layer_norm"`.
#[derive(Clone, Debug)]
struct NormedProjections<I> {
    heads: Heads,
    input: I,
    norm_q: Norm,
    norm_k: Norm,
    out: Linear,
}

/// The layers before an attention of tokens to each other.
#[derive(Clone, Debug)]
struct OfItself(Linears<3>);

/// The layers before an attention of tokens to a text.
#[derive(Clone, Debug)]
struct OfText {
    q: Linear,
    kv: Linears<2>,
}

impl<I> NormedProjections<I> {
    fn load(
        weights: &Weights,
        spec: &TransformerSpec,
        input: impl Fn(&Weights) -> Result<I>,
    ) -> Result<Self> {
        let (dim, head_dim) = (spec.dim(), spec.head_dim);
        let norm = |name| Norm::load(&weights.at(name), head_dim, EPS);
        Ok(Self {
            heads: Heads { head_dim },
            input: input(weights)?,
            norm_q: norm("norm_q")?,
            norm_k: norm("norm_k")?,
            out: weights.linear("to_out.0", dim, dim)?,
        })
    }

    /// # Shapes
    /// `base` and the result: `[b, n, dim]`; `y`: `[b, n, h, d]`.
    fn out_add(&self, base: Tensor<3>, y: Tensor<4>) -> Tensor<3> {
        self.out.forward_add(base, self.heads.join(y))
    }
}

impl NormedProjections<OfItself> {
    /// Queries and keys are turned.
    ///
    /// # Shapes
    /// `x`: `[b, n, dim]`.
    fn qkv(&self, x: Tensor<3>, rotary: &Rotary) -> Qkv {
        let [q, k, v] = self.input.0.forward(x, self.heads.head_dim);
        Qkv { q: self.norm_q.forward_turned(q, rotary), k: self.norm_k.forward_turned(k, rotary), v }
    }
}

impl NormedProjections<OfText> {
    /// The queries of `x`, which are turned, and the keys and values of `text`.
    ///
    /// # Shapes
    /// `x`: `[b, n, dim]`; `text`: `[b, nk, cross_attention_dim]`.
    fn qkv(&self, x: Tensor<3>, text: Tensor<3>, rotary: &Rotary) -> Qkv {
        let q = self.heads.split(self.input.q.forward(x));
        let [k, v] = self.input.kv.forward(text, self.heads.head_dim);
        let [b, n, h, d] = k.dims();
        let k = self.norm_k.forward(k.reshape([b, n * h, d])).reshape([b, n, h, d]);
        Qkv { q: self.norm_q.forward_turned(q, rotary), k, v }
    }
}
