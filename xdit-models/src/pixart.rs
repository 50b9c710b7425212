//! The PixArt-α and PixArt-Σ transformer.
//!
//! It consists of self-attention over the image, cross-attention to the text, and one adaptive layer norm for all
//! blocks (`adaln_single`).
//!
//! Source: PixArt-α (Chen et al. 2023) §2.2; diffusers' `PixArtTransformer2DModel` and `BasicTransformerBlock`.

use burn::tensor::{DType, Tensor};
use xdit_core::attention::{Attention, Site};
use xdit_core::config::Config;
use xdit_core::tokens::Tokens;
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};
use xdit_core::weights::Weights;
use xdit_core::{Error, Result};

use crate::adaln_single::{Block, BlockOptions, Conditioning, Context, Output, Texts};
use crate::latent_diffusion::{Published, SAMPLE_SIZES, TransformerConfig};
use crate::layers::{ImageEmbedding, only_basic_blocks};
use crate::position::SinCos2d;
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
        only_basic_blocks(&mut config, "ada_norm_single")?;
        config.inert(&["num_embeds_ada_norm"]);
        let heads = config.take("num_attention_heads", 16)?;
        let head_dim = config.take("attention_head_dim", 72)?;
        let channels = config.take("in_channels", 4)?;
        let sample_size = config.within("sample_size", 128, SAMPLE_SIZES)?;
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

/// The transformer.
#[derive(Clone, Debug)]
pub struct PixArt {
    spec: TransformerSpec,
    dtype: DType,
    /// Loaded with the first block.
    image_embedding: Option<ImageEmbedding>,
    timestep_embedder: TimestepEmbedding,
    /// The embedders of size and aspect ratio.
    micro: Option<[TimestepEmbedding; 2]>,
    conditioning: Conditioning,
    /// The loaded blocks, from `first_block` on.
    blocks: Vec<Block>,
    first_block: usize,
    /// Loaded with the last block.
    output: Option<Output>,
}

impl Published for PixArt {
    type Config = PixArtConfig;

    fn load(config: &PixArtConfig, weights: &Weights) -> Result<Self> {
        let (spec, dim) = (&config.spec, config.dim());
        let blocks = weights.blocks(spec.blocks);
        let position = SinCos2d {
            dim,
            base_size: config.sample_size / spec.patch,
            interpolation_scale: config.interpolation_scale,
        };
        let image_embedding = || ImageEmbedding::load(weights, spec, position);
        let output = || Output::load(weights, spec, config.out_channels);
        let emb = weights.at("adaln_single").once().at("emb");
        let embedder = |name, c_out| TimestepEmbedding::load(&emb.at(name), SINUSOID_WIDTH, c_out);
        let micro =
            || Ok([embedder("resolution_embedder", dim / 3)?, embedder("aspect_ratio_embedder", dim / 3)?]);
        let options = BlockOptions {
            attention_bias: config.attention_bias,
            norm_eps: config.norm_eps,
            cross_attention: true,
        };
        let block = |index: usize| Block::load(&weights.at("transformer_blocks").at(index), spec, options);
        Ok(Self {
            spec: spec.clone(),
            dtype: weights.dtype(),
            image_embedding: (blocks.start == 0).then(image_embedding).transpose()?,
            timestep_embedder: embedder("timestep_embedder", dim)?,
            micro: config.micro_conditions.then(micro).transpose()?,
            conditioning: Conditioning::load(weights, config.caption_channels, dim)?,
            first_block: blocks.start,
            output: (blocks.end == spec.blocks).then(output).transpose()?,
            blocks: blocks.map(block).collect::<Result<_>>()?,
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

    fn contexts(&self, branches: &[&Conditions], timesteps: &[f32]) -> Vec<Context> {
        let size = branches[0].size;
        assert!(branches.iter().all(|branch| branch.size == size), "all branches are of one picture");
        let (device, dtype) = (branches[0].text.device(), self.dtype);
        let sinusoids = |values: &[f32]| sinusoids(values, &device).cast(dtype);
        let mut embedded = self.timestep_embedder.forward(sinusoids(timesteps));
        let dim = embedded.dims()[1];
        if let Some([resolution, aspect_ratio]) = &self.micro {
            let [height, width] = size.expect("a model with micro-conditions is told the size");
            let size = resolution.forward(sinusoids(&[height as f32, width as f32]));
            let ratio = aspect_ratio.forward(sinusoids(&[(height as f64 / width as f64) as f32]));
            embedded = embedded + Tensor::cat(vec![size, ratio], 0).reshape([1, dim]);
        }
        let texts = branches.iter().map(|branch| (branch.text.clone(), branch.bias.clone()));
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
        let Tokens { x, positions } = hidden.image;
        let site = Site::new(index, 0);
        let x = self.blocks[index - self.first_block].forward(site, x, context, attention);
        Hidden::new(Tokens { x, positions }, None)
    }

    fn finish(&self, hidden: Hidden, context: &Context) -> Tensor<3> {
        self.output.as_ref().expect("the last block is here").forward(hidden.image.x, context)
    }
}
