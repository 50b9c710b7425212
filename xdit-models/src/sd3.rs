//! The transformer of Stable Diffusion 3 and 3.5.
//!
//! Image and text are two streams of tokens with separate weights, joined by one attention in each block (MM-DiT). All
//! modulations are computed from the timestep and the pooled text.
//!
//! Source: Stable Diffusion 3 (Esser et al. 2024) §4; diffusers' `SD3Transformer2DModel` and
//! `JointTransformerBlock`.

use burn::tensor::{DType, Tensor};
use xdit_core::attention::{Attention, Qkv, Site};
use xdit_core::config::Config;
use xdit_core::linear::{Linear, Linears};
use xdit_core::tokens::{Positions, Tokens};
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};
use xdit_core::weights::{Table, Weights};
use xdit_core::{Error, Result};
use xdit_kernels::{Activation, activate, gated_residual, layer_norm_modulate, rms_norm, rms_norm_pair};

use crate::latent_diffusion::{Published, SAMPLE_SIZES, TransformerConfig};
use crate::layers::{FeedForward, Heads, batch, modulation_rows, packed_outputs, patch_embedding};
use crate::position::PositionCache;
use crate::timestep::{SINUSOID_WIDTH, TimestepEmbedding, sinusoids};

/// The ε of every norm.
const EPS: f64 = 1e-6;

/// The options of `transformer/config.json`.
#[derive(Clone, Debug)]
pub struct Sd3Config {
    /// The sizes that the engine needs.
    pub spec: TransformerSpec,
    /// The side, in latent pixels, of the images that the model was trained on.
    pub sample_size: usize,
    /// The number of features of a text token.
    pub joint_attention_dim: usize,
    /// The number of features of the pooled text.
    pub pooled_projection_dim: usize,
    /// The side, in tokens, of the largest image that has positions.
    pub pos_embed_max_size: usize,
    /// The blocks with a second attention, over the image only.
    pub dual_attention_layers: Vec<usize>,
    /// Whether queries and keys are normalised.
    pub qk_norm: bool,
}

/// A limit that no real model reaches.
const MAX_BLOCKS: usize = 1024;

impl TransformerConfig for Sd3Config {
    fn read(mut config: Config) -> Result<Self> {
        let mut spec = TransformerSpec {
            patch: config.take("patch_size", 2)?,
            channels: config.take("in_channels", 16)?,
            blocks: config.take("num_layers", 18)?,
            heads: config.take("num_attention_heads", 18)?,
            head_dim: config.take("attention_head_dim", 64)?,
            skips: Vec::new(),
            block_parameters: Vec::new(),
        };
        config.only("caption_projection_dim", &[spec.dim().into()])?;
        config.only("out_channels", &[spec.channels.into()])?;
        let qk_norm = config.optional::<String>("qk_norm")?;
        if let Some(norm) = qk_norm.as_deref().filter(|&norm| norm != "rms_norm") {
            return Err(Error::failure(format!("option `qk_norm` = `{norm}` is not supported"))
                .hint("supported: `rms_norm`, or none"));
        }
        let dual_attention_layers: Vec<usize> = config.take("dual_attention_layers", Vec::new())?;
        if spec.blocks <= MAX_BLOCKS {
            spec.block_parameters = (0..spec.blocks)
                .map(|block| parameters(block, spec.blocks, &dual_attention_layers))
                .collect();
        }
        let this = Self {
            sample_size: config.within("sample_size", 128, SAMPLE_SIZES)?,
            joint_attention_dim: config.take("joint_attention_dim", 4096)?,
            pooled_projection_dim: config.take("pooled_projection_dim", 2048)?,
            pos_embed_max_size: config.take("pos_embed_max_size", 96)?,
            dual_attention_layers,
            qk_norm: qk_norm.is_some(),
            spec,
        };
        if !(1..=MAX_BLOCKS).contains(&this.spec.blocks)
            || this.spec.patch == 0
            || this.pos_embed_max_size == 0
        {
            return Err(Error::failure(format!(
                "a Stable Diffusion 3 transformer cannot have `num_layers` {}, `patch_size` {} and \
                 `pos_embed_max_size` {}",
                this.spec.blocks, this.spec.patch, this.pos_embed_max_size
            )));
        }
        config.finish()?;
        Ok(this)
    }

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }
}

/// The number of parameters of a block that are in memory while it runs, in units of the square of its width.
fn parameters(block: usize, blocks: usize, dual_attention_layers: &[usize]) -> usize {
    let (attention, feed_forward) = (4, 8);
    let image = attention + feed_forward;
    // In the last block, the text only provides queries, keys and values.
    let text = if block + 1 == blocks { attention - 1 } else { image };
    image + text + if dual_attention_layers.contains(&block) { attention } else { 0 }
}

/// The conditions of one guidance branch.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The text embeddings, `[b, nt, joint_attention_dim]`.
    pub text: Tensor<3>,
    /// The pooled text, `[b, pooled_projection_dim]`.
    pub pooled: Tensor<2>,
}

/// [`Conditions`] prepared for one timestep and the loaded blocks.
#[derive(Clone, Debug)]
pub struct Context {
    /// The text tokens, `[b, nt, dim]`, only with the first block.
    text: Option<Tensor<3>>,
    text_shape: [usize; 3],
    blocks: Vec<Modulation>,
    /// Scale and shift before the output, `[b, 2, dim]`, only with the last block.
    output: Option<Tensor<3>>,
}

/// The modulation of a block's norms and gates, computed from the timestep and the pooled text.
#[derive(Clone, Debug)]
struct Modulation {
    /// Shift, scale and gate of attention, of the feed-forward, and of a second attention, `[b, 6 or 9, dim]`.
    image: Tensor<3>,
    /// Shift, scale and gate of attention and of the feed-forward, `[b, 6, dim]`. The last block does not update the
    /// text; there, only scale and shift, `[b, 2, dim]`.
    text: Tensor<3>,
}

/// The transformer.
#[derive(Clone, Debug)]
pub struct Sd3 {
    spec: TransformerSpec,
    dtype: DType,
    timestep_embedder: TimestepEmbedding,
    /// Embeds the pooled text.
    text_embedder: TimestepEmbedding,
    /// Loaded with the first block.
    input: Option<Input>,
    /// The loaded blocks, from `first_block` on.
    blocks: Vec<Block>,
    first_block: usize,
    /// Loaded with the last block.
    output: Option<Output>,
}

/// The layers that turn latents and text into tokens.
#[derive(Clone, Debug)]
struct Input {
    patch_embedding: Linear,
    position: PositionTable,
    context_embedder: Linear,
}

/// The layers that turn the last block's tokens into a prediction.
#[derive(Clone, Debug)]
struct Output {
    /// Computes scale and shift.
    norm_out: Linear,
    proj_out: Linear,
}

impl Published for Sd3 {
    type Config = Sd3Config;

    fn load(config: &Sd3Config, weights: &Weights) -> Result<Self> {
        let TransformerSpec { patch, channels, blocks: count, .. } = config.spec;
        let dim = config.spec.dim();
        let blocks = weights.blocks(count);
        let once = weights.once();
        let embedder = once.at("time_text_embed");
        let input = || {
            Ok(Input {
                patch_embedding: patch_embedding(&weights.at("pos_embed.proj"), channels, patch, dim)?,
                position: PositionTable::load(&weights.at("pos_embed"), config.pos_embed_max_size, dim)?,
                context_embedder: once.linear("context_embedder", config.joint_attention_dim, dim)?,
            })
        };
        let output = || {
            let proj_out = weights.linear("proj_out", dim, patch * patch * channels)?;
            Ok(Output {
                norm_out: once.linear("norm_out.linear", dim, 2 * dim)?,
                proj_out: proj_out.select_outputs(packed_outputs(channels, patch, channels)),
            })
        };
        Ok(Self {
            spec: config.spec.clone(),
            dtype: weights.dtype(),
            timestep_embedder: TimestepEmbedding::load(
                &embedder.at("timestep_embedder"),
                SINUSOID_WIDTH,
                dim,
            )?,
            text_embedder: TimestepEmbedding::load(
                &embedder.at("text_embedder"),
                config.pooled_projection_dim,
                dim,
            )?,
            input: (blocks.start == 0).then(input).transpose()?,
            first_block: blocks.start,
            output: (blocks.end == count).then(output).transpose()?,
            blocks: blocks
                .map(|index| Block::load(config, index, &weights.at("transformer_blocks").at(index)))
                .collect::<Result<_>>()?,
        })
    }
}

impl Transformer for Sd3 {
    type Conditions = Conditions;
    type Context = Context;

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn contexts(&self, branches: &[&Conditions], timesteps: &[f32]) -> Vec<Context> {
        let text = batch(branches.iter().map(|branch| branch.text.clone()));
        let pooled = batch(branches.iter().map(|branch| branch.pooled.clone()));
        let [b, text_tokens, _] = text.dims();
        let (steps, dim) = (timesteps.len(), self.spec.dim());
        let sinusoids = sinusoids(timesteps, &text.device()).cast(self.dtype);
        let timestep = self.timestep_embedder.forward(sinusoids).reshape([steps, 1, dim]);
        let pooled = self.text_embedder.forward(pooled.cast(self.dtype));
        let embedded = (timestep + pooled.reshape([1, b, dim])).reshape([steps * b, dim]);
        let embedded = activate(Activation::Silu, embedded);
        // Computes all steps in one matrix product.
        let modulation = |layer: &Linear| {
            let rows = layer.forward(embedded.clone());
            let count = rows.dims()[1] / dim;
            rows.reshape([steps, b, count, dim])
        };
        let blocks: Vec<_> = self
            .blocks
            .iter()
            .map(|block| [modulation(&block.norm1), modulation(&block.norm1_context)])
            .collect();
        let output = self.output.as_ref().map(|output| modulation(&output.norm_out));
        let text = text.cast(self.dtype);
        let text = self.input.as_ref().map(|input| input.context_embedder.forward(text));
        let context = |step| {
            let at_step = |all: &Tensor<4>| all.clone().narrow(0, step, 1).squeeze_dim::<3>(0);
            let of_block =
                |[image, text]: &[Tensor<4>; 2]| Modulation { image: at_step(image), text: at_step(text) };
            Context {
                text: text.clone(),
                text_shape: [b, text_tokens, dim],
                blocks: blocks.iter().map(of_block).collect(),
                output: output.as_ref().map(at_step),
            }
        };
        (0..steps).map(context).collect()
    }

    fn context_bytes(&self) -> usize {
        let of_blocks = self.blocks.iter().flat_map(|block| [&block.norm1, &block.norm1_context]);
        let layers = of_blocks.chain(self.output.iter().map(|output| &output.norm_out));
        layers.map(Linear::c_out).sum::<usize>() * self.dtype.size()
    }

    fn text_shape(&self, context: &Context) -> Option<[usize; 3]> {
        Some(context.text_shape)
    }

    fn embed(&self, latents: Tokens, context: &Context) -> Hidden {
        let input = self.input.as_ref().expect("the first block is here");
        let x = input.patch_embedding.forward(latents.x.clone().cast(self.dtype));
        let x = x + input.position.embed(&latents.positions);
        Hidden::new(latents.with(x), context.text.clone())
    }

    fn block(
        &self,
        index: usize,
        hidden: Hidden,
        context: &Context,
        attention: &mut dyn Attention,
    ) -> Hidden {
        let Tokens { x, positions } = hidden.image;
        let place = index - self.first_block;
        let (x, text) = self.blocks[place].forward(index, x, hidden.text, &context.blocks[place], attention);
        Hidden::new(Tokens { x, positions }, text)
    }

    fn finish(&self, hidden: Hidden, context: &Context) -> Tensor<3> {
        let output = self.output.as_ref().expect("the last block is here");
        let modulation = context.output.as_ref().expect("the last block is here");
        let [scale, shift] = modulation_rows(modulation, 0);
        output.proj_out.forward(layer_norm_modulate(hidden.image.x, shift, scale, EPS)).cast(DType::F32)
    }
}

/// A square of position embeddings, of which an image uses the middle. In 3.5 medium it has more parameters than two
/// blocks, so it stays on disk, and only the positions of a picture are kept.
#[derive(Clone, Debug)]
struct PositionTable {
    table: Table,
    side: usize,
    cache: PositionCache<Tensor<3>>,
}

impl PositionTable {
    fn load(weights: &Weights, side: usize, dim: usize) -> Result<Self> {
        let table = weights.table("pos_embed", &[1, side * side, dim])?;
        Ok(Self { table, side, cache: PositionCache::default() })
    }

    /// # Shapes
    /// Result `[1, n, dim]`.
    fn embed(&self, positions: &Positions) -> Tensor<3> {
        let [_, rows, columns] = positions.extent();
        let [top, left] = [rows, columns].map(|extent| (self.side - extent) / 2);
        let place = |&[_, row, column]: &[u32; 3]| (top + row as usize) * self.side + left + column as usize;
        self.cache.get(positions, || self.table.rows(positions.ids().iter().map(place)).unsqueeze())
    }
}

/// A block: modulated joint attention of image and text, in some blocks a second attention over the image only, and a
/// modulated feed-forward for each stream.
#[derive(Clone, Debug)]
struct Block {
    /// Computes the modulation of the image.
    norm1: Linear,
    /// Computes the modulation of the text.
    norm1_context: Linear,
    attn: Projections,
    /// The projections of the text in the joint attention.
    attn_context: Projections,
    attn2: Option<Projections>,
    ff: FeedForward,
    /// Absent in the last block, which does not update the text.
    ff_context: Option<FeedForward>,
}

impl Block {
    fn load(config: &Sd3Config, index: usize, weights: &Weights) -> Result<Self> {
        let dim = config.spec.dim();
        let (is_dual, is_last) =
            (config.dual_attention_layers.contains(&index), index + 1 == config.spec.blocks);
        let modulation = |name, rows| weights.once().linear(format!("{name}.linear"), dim, rows * dim);
        let image = |attn| Projections::load(config, &weights.at(attn), IMAGE_PROJECTIONS, Some("to_out.0"));
        let text_out = (!is_last).then_some("to_add_out");
        Ok(Self {
            norm1: modulation("norm1", if is_dual { 9 } else { 6 })?,
            norm1_context: modulation("norm1_context", if is_last { 2 } else { 6 })?,
            attn: image("attn")?,
            attn_context: Projections::load(config, &weights.at("attn"), TEXT_PROJECTIONS, text_out)?,
            attn2: is_dual.then(|| image("attn2")).transpose()?,
            ff: FeedForward::load(&weights.at("ff"), dim)?,
            ff_context: (!is_last).then(|| FeedForward::load(&weights.at("ff_context"), dim)).transpose()?,
        })
    }

    /// # Shapes
    /// `image`: `[b, n, dim]`, `text`: `[b, nt, dim]`; the results have the same shapes.
    fn forward(
        &self,
        index: usize,
        image: Tensor<3>,
        text: Option<Tensor<3>>,
        modulation: &Modulation,
        attention: &mut dyn Attention,
    ) -> (Tensor<3>, Option<Tensor<3>>) {
        let [shift, scale, gate] = modulation_rows(&modulation.image, 0);
        let y = layer_norm_modulate(image.clone(), shift, scale, EPS);
        let (image_qkv, text_qkv) = match &text {
            Some(text) => {
                let [shift, scale] = self.text_attention_modulation(modulation);
                let text = layer_norm_modulate(text.clone(), shift, scale, EPS);
                let [text, image] = Projections::pair(&self.attn_context, &self.attn, [text, y]);
                (image, Some(text))
            }
            None => (self.attn.qkv(y), None),
        };
        let (y, text_y) = attention.attend(Site::new(index, 0), image_qkv, text_qkv);
        // Both attentions have the same input.
        let second = self.attn2.as_ref().map(|attn2| {
            let [shift, scale, gate] = modulation_rows(&modulation.image, 6);
            let y = layer_norm_modulate(image.clone(), shift, scale, EPS);
            let (y, _) = attention.attend(Site::new(index, 1), attn2.qkv(y), None);
            (gate, attn2.out(y))
        });
        let mut x = gated_residual(image, gate, self.attn.out(y));
        if let Some((gate, y)) = second {
            x = gated_residual(x, gate, y);
        }
        let x = modulated_feed_forward(&self.ff, x, &modulation.image);

        let text = text.zip(text_y).zip(self.ff_context.as_ref()).map(|((text, y), ff)| {
            let [gate] = modulation_rows(&modulation.text, 2);
            let text = gated_residual(text, gate, self.attn_context.out(y));
            modulated_feed_forward(ff, text, &modulation.text)
        });
        (x, text)
    }

    /// The shift and scale of the text before attention.
    fn text_attention_modulation(&self, modulation: &Modulation) -> [Tensor<3>; 2] {
        match self.ff_context {
            Some(_) => modulation_rows(&modulation.text, 0),
            None => {
                let [scale, shift] = modulation_rows(&modulation.text, 0);
                [shift, scale]
            }
        }
    }
}

/// A stream's feed-forward with its residual connection.
fn modulated_feed_forward(ff: &FeedForward, x: Tensor<3>, modulation: &Tensor<3>) -> Tensor<3> {
    let [shift, scale, gate] = modulation_rows(modulation, 3);
    let y = ff.forward(layer_norm_modulate(x.clone(), shift, scale, EPS));
    gated_residual(x, gate, y)
}

/// The projections of the image's stream, and the norms of its queries and keys.
const IMAGE_PROJECTIONS: [&str; 5] = ["to_q", "to_k", "to_v", "norm_q", "norm_k"];

/// The projections of the text's stream, and the norms of its queries and keys.
const TEXT_PROJECTIONS: [&str; 5] =
    ["add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"];

/// The linear layers around the attention of one stream, and the norms of its queries and keys.
#[derive(Clone, Debug)]
struct Projections {
    heads: Heads,
    qkv: Linears<3>,
    /// Two weights of `[head_dim]`, for queries and keys.
    qk_norm: Option<[Tensor<1>; 2]>,
    /// Absent if the result is not used.
    out: Option<Linear>,
}

impl Projections {
    fn load(
        config: &Sd3Config,
        weights: &Weights,
        [q, k, v, norm_q, norm_k]: [&str; 5],
        out: Option<&str>,
    ) -> Result<Self> {
        let (dim, head_dim) = (config.spec.dim(), config.spec.head_dim);
        let norm = |name| weights.at(name).tensor("weight", [head_dim]);
        Ok(Self {
            heads: Heads { head_dim },
            qkv: weights.linears([q, k, v], dim, dim, true)?,
            qk_norm: config.qk_norm.then(|| Ok([norm(norm_q)?, norm(norm_k)?])).transpose()?,
            out: out.map(|out| weights.linear(out, dim, dim)).transpose()?,
        })
    }

    /// # Shapes
    /// `x`: `[b, n, dim]`.
    fn qkv(&self, x: Tensor<3>) -> Qkv {
        let [q, k, v] = self.qkv.forward(x, self.heads.head_dim);
        let Some([norm_q, norm_k]) = &self.qk_norm else { return Qkv { q, k, v } };
        let norm = |x, weight: &Tensor<1>| rms_norm(x, Some(weight.clone()), EPS);
        Qkv { q: norm(q, norm_q), k: norm(k, norm_k), v }
    }

    /// [`qkv`](Self::qkv) of a text and of an image.
    fn pair(text: &Self, image: &Self, streams: [Tensor<3>; 2]) -> [Qkv; 2] {
        let [q, k, v] = Linears::forward_pair(&text.qkv, &image.qkv, streams, text.heads.head_dim);
        let (q, k) = match (&text.qk_norm, &image.qk_norm) {
            (Some([text_q, text_k]), Some([image_q, image_k])) => (
                rms_norm_pair(q, [text_q.clone(), image_q.clone()], EPS, None),
                rms_norm_pair(k, [text_k.clone(), image_k.clone()], EPS, None),
            ),
            _ => (q, k),
        };
        let ([text_q, q], [text_k, k], [text_v, v]) = (q, k, v);
        [Qkv { q: text_q, k: text_k, v: text_v }, Qkv { q, k, v }]
    }

    /// # Shapes
    /// `[b, n, h, d]` to `[b, n, dim]`.
    fn out(&self, y: Tensor<4>) -> Tensor<3> {
        let out = self.out.as_ref().expect("the result is asked for where there is a use for it");
        out.forward(self.heads.join(y))
    }
}
