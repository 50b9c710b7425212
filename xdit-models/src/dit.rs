//! The class-conditional diffusion transformer DiT.
//!
//! It consists of self-attention over the image and a feed-forward; the class and the timestep act through the
//! modulation of each block's norms and gates (`adaLN-Zero`).
//!
//! Source: DiT (Peebles and Xie 2022) §3.2; diffusers' `DiTTransformer2DModel` and `BasicTransformerBlock`.

use burn::tensor::{DType, Device, Tensor};
use xdit_core::attention::{Attention, Site};
use xdit_core::config::Config;
use xdit_core::linear::Linear;
use xdit_core::tokens::Tokens;
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};
use xdit_core::weights::{Table, Weights};
use xdit_core::{Error, Result};
use xdit_kernels::{Activation, activate, gated_residual, layer_norm_modulate};

use crate::latent_diffusion::{Published, SAMPLE_SIZES, TransformerConfig};
use crate::layers::{
    FeedForward, ImageEmbedding, Projections, modulation_rows, only_basic_blocks, packed_outputs,
};
use crate::position::SinCos2d;
use crate::timestep::{SINUSOID_WIDTH, TimestepEmbedding, sinusoids_inclusive};

/// The ε of the norms before attention and before the output.
const EPS: f64 = 1e-6;

/// The options of `transformer/config.json`.
#[derive(Clone, Debug)]
pub struct DitConfig {
    /// The sizes that the engine needs.
    pub spec: TransformerSpec,
    /// The side, in latent pixels, of the images that the model was trained on.
    pub sample_size: usize,
    /// The number of classes. The embedding of no class follows theirs.
    pub classes: usize,
    /// The number of channels of the prediction: twice that of the latents if the model also learned a variance.
    pub out_channels: usize,
    /// Whether attention projections have a bias.
    pub attention_bias: bool,
    /// The ε of the norms before the feed-forwards.
    pub norm_eps: f64,
}

impl TransformerConfig for DitConfig {
    fn read(mut config: Config) -> Result<Self> {
        only_basic_blocks(&mut config, "ada_norm_zero")?;
        for absent in ["cross_attention_dim", "caption_channels"] {
            config.only(absent, &[])?;
        }
        let channels = config.take("in_channels", 4)?;
        let this = Self {
            spec: TransformerSpec {
                patch: config.take("patch_size", 2)?,
                channels,
                blocks: config.take("num_layers", 28)?,
                heads: config.take("num_attention_heads", 16)?,
                head_dim: config.take("attention_head_dim", 72)?,
                skips: Vec::new(),
                block_parameters: Vec::new(),
            },
            sample_size: config.within("sample_size", 32, SAMPLE_SIZES)?,
            classes: config.take("num_embeds_ada_norm", 1000)?,
            out_channels: config.take("out_channels", channels)?,
            attention_bias: config.take("attention_bias", true)?,
            norm_eps: config.take("norm_eps", 1e-5)?,
        };
        let Self { spec: TransformerSpec { patch, heads, head_dim, .. }, sample_size, .. } = this;
        if patch == 0 || sample_size < patch || heads == 0 || (heads * head_dim) % 4 != 0 {
            return Err(Error::failure(format!(
                "a DiT cannot have {heads} heads of {head_dim} features, `patch_size` {patch} and \
                 `sample_size` {sample_size}"
            )));
        }
        config.finish()?;
        Ok(this)
    }

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }
}

/// The condition of one guidance branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// The class; the [number of classes](DitConfig::classes) stands for no class.
    pub class: usize,
}

/// [`Conditions`] prepared for one timestep.
#[derive(Clone, Debug)]
pub struct Context {
    /// For each loaded block, shift, scale and gate of attention, then of the feed-forward, `[branches, 6, dim]`.
    blocks: Vec<Tensor<3>>,
    /// Shift and scale before the output, `[branches, 2, dim]`, only with the last block.
    output: Option<Tensor<3>>,
}

/// The transformer.
#[derive(Clone, Debug)]
pub struct Dit {
    spec: TransformerSpec,
    device: Device,
    dtype: DType,
    /// Loaded with the first block.
    image_embedding: Option<ImageEmbedding>,
    /// The loaded blocks, from `first_block` on.
    blocks: Vec<Block>,
    first_block: usize,
    /// Loaded with the last block.
    output: Option<Output>,
}

/// The layers that turn the last block's tokens into a prediction.
#[derive(Clone, Debug)]
struct Output {
    /// That of the first block.
    conditioning: Conditioning,
    /// Computes shift and scale.
    modulation: Linear,
    proj: Linear,
}

impl Published for Dit {
    type Config = DitConfig;

    fn load(config: &DitConfig, weights: &Weights) -> Result<Self> {
        let TransformerSpec { patch, channels, blocks: count, .. } = config.spec;
        let dim = config.spec.dim();
        let range = weights.blocks(count);
        let at_block = |index: usize| weights.at("transformer_blocks").at(index);
        let blocks: Vec<_> =
            range.clone().map(|index| Block::load(config, &at_block(index))).collect::<Result<_>>()?;
        let position = SinCos2d { dim, base_size: config.sample_size / patch, interpolation_scale: 1.0 };
        let image_embedding = || ImageEmbedding::load(weights, &config.spec, position);
        let output = || {
            let proj = weights.linear("proj_out_2", dim, patch * patch * config.out_channels)?;
            Ok(Output {
                conditioning: match blocks.first() {
                    Some(first) if range.start == 0 => first.conditioning.clone(),
                    _ => Conditioning::load(config, &at_block(0))?,
                },
                modulation: weights.once().linear("proj_out_1", dim, 2 * dim)?,
                proj: proj.select_outputs(packed_outputs(channels, patch, config.out_channels)),
            })
        };
        Ok(Self {
            spec: config.spec.clone(),
            device: weights.device().clone(),
            dtype: weights.dtype(),
            image_embedding: (range.start == 0).then(image_embedding).transpose()?,
            output: (range.end == count).then(output).transpose()?,
            blocks,
            first_block: range.start,
        })
    }
}

impl Transformer for Dit {
    type Conditions = Conditions;
    type Context = Context;

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn contexts(&self, branches: &[&Conditions], timesteps: &[f32]) -> Vec<Context> {
        let (steps, dim) = (timesteps.len(), self.spec.dim());
        let classes: Vec<usize> = branches.iter().map(|branch| branch.class).collect();
        let sinusoids = sinusoids_inclusive(timesteps, &self.device).cast(self.dtype);
        let modulation = |conditioning: &Conditioning, layer: &Linear| {
            let rows = layer.forward(conditioning.embed(sinusoids.clone(), &classes));
            let count = rows.dims()[1] / dim;
            rows.reshape([steps, classes.len(), count, dim])
        };
        let blocks: Vec<_> =
            self.blocks.iter().map(|block| modulation(&block.conditioning, &block.modulation)).collect();
        let output = self.output.as_ref().map(|output| modulation(&output.conditioning, &output.modulation));
        let at = |all: &Tensor<4>, step| all.clone().narrow(0, step, 1).squeeze_dim::<3>(0);
        let context = |step| Context {
            blocks: blocks.iter().map(|all| at(all, step)).collect(),
            output: output.as_ref().map(|all| at(all, step)),
        };
        (0..steps).map(context).collect()
    }

    fn context_bytes(&self) -> usize {
        let layers = self.blocks.iter().map(|block| &block.modulation);
        let layers = layers.chain(self.output.iter().map(|output| &output.modulation));
        layers.map(Linear::c_out).sum::<usize>() * self.dtype.size()
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
        let (site, place) = (Site::new(index, 0), index - self.first_block);
        let x = self.blocks[place].forward(site, x, &context.blocks[place], attention);
        Hidden::new(Tokens { x, positions }, None)
    }

    fn finish(&self, hidden: Hidden, context: &Context) -> Tensor<3> {
        let output = self.output.as_ref().expect("the last block is here");
        let modulation = context.output.as_ref().expect("the last block is here");
        let [shift, scale] = modulation_rows(modulation, 0);
        output.proj.forward(layer_norm_modulate(hidden.image.x, shift, scale, EPS)).cast(DType::F32)
    }
}

/// The embedding of timestep and class. Each block has its own.
///
/// # Source
/// diffusers' `CombinedTimestepLabelEmbeddings`.
#[derive(Clone, Debug)]
struct Conditioning {
    timestep: TimestepEmbedding,
    /// A row for each class, and one for none. A picture needs one or two of them, so they stay in the file.
    classes: Table,
}

impl Conditioning {
    /// Loads the embedding of the block in `weights`.
    fn load(config: &DitConfig, weights: &Weights) -> Result<Self> {
        let (dim, emb) = (config.spec.dim(), weights.once().at("norm1.emb"));
        let classes = emb.at("class_embedder");
        Ok(Self {
            timestep: TimestepEmbedding::load(&emb.at("timestep_embedder"), SINUSOID_WIDTH, dim)?,
            classes: classes.table("embedding_table.weight", &[config.classes + 1, dim])?,
        })
    }

    /// The input of the modulation layers.
    ///
    /// # Shapes
    /// `sinusoids`: `[steps, SINUSOID_WIDTH]`, result `[steps · classes, dim]`.
    fn embed(&self, sinusoids: Tensor<2>, classes: &[usize]) -> Tensor<2> {
        let timesteps = self.timestep.forward(sinusoids);
        let [steps, dim] = timesteps.dims();
        let classes: Tensor<2> = self.classes.rows(classes.iter().copied());
        let rows = steps * classes.dims()[0];
        let sum = timesteps.unsqueeze_dim::<3>(1) + classes.unsqueeze_dim(0);
        activate(Activation::Silu, sum.reshape([rows, dim]))
    }
}

/// A block: modulated self-attention and a modulated feed-forward.
#[derive(Clone, Debug)]
struct Block {
    eps: f64,
    conditioning: Conditioning,
    /// Computes shift, scale and gate of attention, then of the feed-forward.
    modulation: Linear,
    attn1: Projections,
    ff: FeedForward,
}

impl Block {
    fn load(config: &DitConfig, weights: &Weights) -> Result<Self> {
        let dim = config.spec.dim();
        Ok(Self {
            eps: config.norm_eps,
            conditioning: Conditioning::load(config, weights)?,
            modulation: weights.once().linear("norm1.linear", dim, 6 * dim)?,
            attn1: Projections::load(&weights.at("attn1"), &config.spec, config.attention_bias)?,
            ff: FeedForward::load(&weights.at("ff"), dim)?,
        })
    }

    fn forward(
        &self,
        site: Site,
        x: Tensor<3>,
        modulation: &Tensor<3>,
        attention: &mut dyn Attention,
    ) -> Tensor<3> {
        let [shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff] = modulation_rows(modulation, 0);
        let y = layer_norm_modulate(x.clone(), shift_attn, scale_attn, EPS);
        let (y, _) = attention.attend(site, self.attn1.qkv(y), None);
        let x = gated_residual(x, gate_attn, self.attn1.out(y));
        let y = layer_norm_modulate(x.clone(), shift_ff, scale_ff, self.eps);
        gated_residual(x, gate_ff, self.ff.forward(y))
    }
}
