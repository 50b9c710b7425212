//! The Latte transformer, which generates clips.
//!
//! Its blocks come in pairs. A spatial block is a block of PixArt on each frame: attention within the frame,
//! cross-attention to the text, feed-forward. A temporal block attends within each place over the frames and has no
//! cross-attention. Block `2 i` is spatial block `i`, and block `2 i + 1` temporal block `i`. All frames attend to the
//! same text, which therefore exists once.
//!
//! Source: Latte (Ma et al. 2024) §3.2, variant 1; diffusers' `LatteTransformer3DModel` and `BasicTransformerBlock`.

use std::ops::RangeInclusive;

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_core::attention::{Attention, Site, Span};
use xdit_core::config::Config;
use xdit_core::tokens::{Positions, Tokens};
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};
use xdit_core::weights::Weights;
use xdit_core::{Error, Result};

use crate::adaln_single::{Block, BlockOptions, Conditioning, Context, Output, Texts};
use crate::latent_diffusion::{Published, SAMPLE_SIZES, TransformerConfig};
use crate::layers::{ImageEmbedding, only_basic_blocks};
use crate::position::{PositionCache, SinCos2d};
use crate::timestep::{SINUSOID_WIDTH, TimestepEmbedding, sinusoids};

/// The heads of a layer, and the features of a head.
const FEATURES: RangeInclusive<usize> = 1..=1 << 20;
/// The frames of a clip.
const FRAMES: RangeInclusive<usize> = 1..=1 << 12;
/// The pairs of a spatial and a temporal block.
const PAIRS: RangeInclusive<usize> = 1..=512;

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
        only_basic_blocks(&mut config, "ada_norm_single")?;
        config.inert(&["num_embeds_ada_norm"]);
        let heads = config.within("num_attention_heads", 16, FEATURES)?;
        let head_dim = config.within("attention_head_dim", 88, FEATURES)?;
        let channels = config.require("in_channels")?;
        let sample_size = config.within("sample_size", 64, SAMPLE_SIZES)?;
        let video_length = config.within("video_length", 16, FRAMES)?;
        let cross: usize = config.require("cross_attention_dim")?;
        let patch = config.require("patch_size")?;
        let dim: usize = heads * head_dim;
        if cross != dim || !dim.is_multiple_of(4) || patch == 0 {
            return Err(Error::failure(format!(
                "a Latte transformer cannot have {heads} heads of {head_dim} features, `cross_attention_dim` {cross} and \
                 `patch_size` {patch}"
            )));
        }
        let pairs = config.within("num_layers", 1, PAIRS)?;
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

/// The transformer.
#[derive(Clone, Debug)]
pub struct Latte {
    spec: TransformerSpec,
    dtype: DType,
    frame_cache: PositionCache<Tensor<3>>,
    /// Loaded with the first block.
    image_embedding: Option<ImageEmbedding>,
    timestep_embedder: TimestepEmbedding,
    conditioning: Conditioning,
    /// The loaded blocks, from `first_block` on.
    blocks: Vec<Block>,
    first_block: usize,
    /// Loaded with the last block.
    output: Option<Output>,
}

impl Published for Latte {
    type Config = LatteConfig;

    fn load(config: &LatteConfig, weights: &Weights) -> Result<Self> {
        let (spec, dim) = (&config.spec, config.spec.dim());
        let blocks = weights.blocks(spec.blocks);
        let position = SinCos2d {
            dim,
            base_size: config.sample_size / spec.patch,
            interpolation_scale: (config.sample_size / 64).max(1) as f32,
        };
        let image_embedding = || ImageEmbedding::load(weights, spec, position);
        let output = || Output::load(weights, spec, config.out_channels);
        let timestep = weights.at("adaln_single").once().at("emb.timestep_embedder");
        let block = |index| {
            let temporal = is_temporal(index);
            let list = if temporal { "temporal_transformer_blocks" } else { "transformer_blocks" };
            let options = BlockOptions {
                attention_bias: config.attention_bias,
                norm_eps: config.norm_eps,
                cross_attention: !temporal,
            };
            Block::load(&weights.at(list).at(index / 2), spec, options)
        };
        Ok(Self {
            spec: spec.clone(),
            dtype: weights.dtype(),
            frame_cache: PositionCache::default(),
            image_embedding: (blocks.start == 0).then(image_embedding).transpose()?,
            timestep_embedder: TimestepEmbedding::load(&timestep, SINUSOID_WIDTH, dim)?,
            conditioning: Conditioning::load(weights, config.caption_channels, dim)?,
            first_block: blocks.start,
            output: (blocks.end == spec.blocks).then(output).transpose()?,
            blocks: blocks.map(block).collect::<Result<_>>()?,
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

    fn contexts(&self, texts: &[&Tensor<3>], timesteps: &[f32]) -> Vec<Context> {
        let sinusoids = sinusoids(timesteps, &texts[0].device()).cast(self.dtype);
        let embedded = self.timestep_embedder.forward(sinusoids);
        let texts = texts.iter().map(|&text| (text.clone(), None));
        self.conditioning.contexts(embedded, Texts::new(texts))
    }

    fn context_bytes(&self) -> usize {
        self.conditioning.context_bytes(self.spec.dim(), self.dtype)
    }

    fn embed(&self, latents: Tokens, _: &Context) -> Hidden {
        self.image_embedding.as_ref().expect("the first block is here").forward(latents)
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
        self.output.as_ref().expect("the last block is here").forward(hidden.image.x, context)
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
