//! The UNet of Stable Diffusion XL: convolutions on several levels of resolution, with transformers between them.
//!
//! For the engine it is a transformer of one block, whose tokens are the pixels of the latent. Pixels mix in attention,
//! and in convolutions and group norms, the operations of [`Rows`](xdit_core::rows::Rows).
//!
//! Source: SDXL (Podell et al. 2023) §2; diffusers' `UNet2DConditionModel`.

mod blocks;
mod config;

use burn::tensor::{DType, Tensor};
use xdit_core::Result;
use xdit_core::attention::Attention;
use xdit_core::tokens::Tokens;
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};
use xdit_core::weights::Weights;
use xdit_kernels::{Activation, Conv2d, activate, join_channels};

use crate::convolution::{Convolution, GroupNorm, conv};
use crate::latent_diffusion::Published;
use crate::layers::batch;
use crate::timestep::{TimestepEmbedding, sinusoids_of_width};
use blocks::{Pass, PixelTransformer, TimedResnet};
pub use config::{Level, MICRO_CONDITIONS, UNetConfig};

/// The conditions of one guidance branch.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The text embeddings, `[b, nt, cross_attention_dim]`.
    pub text: Tensor<3>,
    /// The pooled text, `[b, pooled_dim]`.
    pub pooled: Tensor<2>,
    /// Height and width of the original picture, top and left of the crop, and height and width of the target, which are
    /// the same for the whole batch.
    pub micro: [f32; MICRO_CONDITIONS],
}

/// [`Conditions`] prepared for one timestep.
#[derive(Clone, Debug)]
pub struct Context {
    text: Tensor<3>,
    /// The embedded timestep, pooled text and micro-conditions, projected for each residual block, `[b, c]`.
    times: Vec<Tensor<2>>,
}

/// The model.
#[derive(Clone, Debug)]
pub struct UNet {
    config: UNetConfig,
    dtype: DType,
    time_embedding: TimestepEmbedding,
    /// Embeds the pooled text and the micro-conditions.
    add_embedding: TimestepEmbedding,
    conv_in: Convolution,
    down_blocks: Vec<Stack>,
    mid_block: (TimedResnet, PixelTransformer, TimedResnet),
    up_blocks: Vec<Stack>,
    conv_norm_out: GroupNorm,
    conv_out: Convolution,
}

/// The blocks of a level, on the way in or out.
#[derive(Clone, Debug)]
struct Stack {
    blocks: Vec<(TimedResnet, Option<PixelTransformer>)>,
    /// Halves or doubles rows and columns.
    sampler: Option<Convolution>,
}

impl Published for UNet {
    const FOLDER: &'static str = "unet";

    type Config = UNetConfig;

    fn load(config: &UNetConfig, weights: &Weights) -> Result<Self> {
        let groups = (config.norm_num_groups, config.norm_eps);
        let levels = &config.levels;
        let outermost = levels[0].channels;
        let (once, width) = (weights.once(), config.time_embed_dim());
        // The channels of each image that waits for its level on the way out.
        let mut waiting = vec![outermost];
        let down_blocks = load_down(config, weights, &mut waiting)?;
        let innermost = &levels[levels.len() - 1];
        let mid = weights.at("mid_block");
        let resnet = |name| {
            TimedResnet::load(config, &mid.at("resnets").at(name), innermost.channels, innermost.channels)
        };
        let mid_block =
            (resnet(0)?, PixelTransformer::load(config, &mid.at("attentions.0"), innermost)?, resnet(1)?);
        let up_blocks = load_up(config, weights, &mut waiting)?;
        Ok(Self {
            dtype: weights.dtype(),
            time_embedding: TimestepEmbedding::load(&once.at("time_embedding"), outermost, width)?,
            add_embedding: TimestepEmbedding::load(
                &once.at("add_embedding"),
                config.projection_class_embeddings_input_dim,
                width,
            )?,
            conv_in: conv(&weights.at("conv_in"), config.spec.channels, outermost, 3)?,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out: GroupNorm::load(groups, &weights.at("conv_norm_out"), outermost)?,
            conv_out: conv(&weights.at("conv_out"), outermost, config.spec.channels, 3)?,
            config: config.clone(),
        })
    }
}

fn load_down(config: &UNetConfig, weights: &Weights, waiting: &mut Vec<usize>) -> Result<Vec<Stack>> {
    let mut c = config.levels[0].channels;
    let mut stacks = Vec::new();
    for (index, level) in config.levels.iter().enumerate() {
        let weights = weights.at("down_blocks").at(index);
        let mut blocks = Vec::new();
        for index in 0..config.layers_per_block {
            let resnet = TimedResnet::load(config, &weights.at("resnets").at(index), c, level.channels)?;
            c = level.channels;
            blocks.push((resnet, transformer(config, &weights, index, level, level.down)?));
            waiting.push(c);
        }
        let halve = || -> Result<Convolution> {
            let conv = conv(&weights.at("downsamplers.0.conv"), c, c, 3)?;
            Ok(conv.with(|conv| Conv2d { stride: 2, ..conv }))
        };
        let sampler = (index + 1 < config.levels.len()).then(halve).transpose()?;
        waiting.extend(sampler.as_ref().map(|_| c));
        stacks.push(Stack { blocks, sampler });
    }
    Ok(stacks)
}

fn load_up(config: &UNetConfig, weights: &Weights, waiting: &mut Vec<usize>) -> Result<Vec<Stack>> {
    let count = config.levels.len();
    let mut c = config.levels[count - 1].channels;
    let mut stacks = Vec::new();
    for (index, level) in config.levels.iter().rev().enumerate() {
        let weights = weights.at("up_blocks").at(index);
        let mut blocks = Vec::new();
        for index in 0..config.layers_per_block + 1 {
            let joined = c + waiting.pop().expect("an image waits for each block on the way out");
            let resnet = TimedResnet::load(config, &weights.at("resnets").at(index), joined, level.channels)?;
            c = level.channels;
            blocks.push((resnet, transformer(config, &weights, index, level, level.up)?));
        }
        let double = || -> Result<Convolution> {
            let conv = conv(&weights.at("upsamplers.0.conv"), c, c, 3)?;
            Ok(conv.with(|conv| Conv2d { upsample: true, ..conv }))
        };
        stacks.push(Stack { blocks, sampler: (index + 1 < count).then(double).transpose()? });
    }
    Ok(stacks)
}

/// Transformer `index` of a level, if its transformers have layers.
fn transformer(
    config: &UNetConfig,
    weights: &Weights,
    index: usize,
    level: &Level,
    layers: usize,
) -> Result<Option<PixelTransformer>> {
    let load = || PixelTransformer::load(config, &weights.at("attentions").at(index), level);
    (layers > 0).then(load).transpose()
}

impl Stack {
    fn forward(&self, index: usize, x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        let (resnet, transformer) = &self.blocks[index];
        let x = resnet.forward(x, pass);
        match transformer {
            Some(transformer) => transformer.forward(x, pass),
            None => x,
        }
    }
}

impl UNet {
    /// All residual blocks, in the order of their use.
    fn resnets(&self) -> impl Iterator<Item = &TimedResnet> {
        let (first, _, second) = &self.mid_block;
        let down = self.down_blocks.iter().flat_map(|stack| &stack.blocks);
        let up = self.up_blocks.iter().flat_map(|stack| &stack.blocks);
        down.map(|(resnet, _)| resnet).chain([first, second]).chain(up.map(|(resnet, _)| resnet))
    }

    /// Predicts the noise of an image, or of some of its rows. `watch` sees the image after each level, by the name of
    /// its block.
    fn predict(
        &self,
        latents: Tensor<4>,
        mut pass: Pass<'_>,
        watch: &mut dyn FnMut(&str, &Tensor<4>),
    ) -> Tensor<4> {
        let pass = &mut pass;
        let mut x = pass.conv(&self.conv_in, latents);
        watch("conv_in", &x);
        let mut waiting = vec![x.clone()];
        for (level, stack) in self.down_blocks.iter().enumerate() {
            for index in 0..stack.blocks.len() {
                x = stack.forward(index, x, pass);
                waiting.push(x.clone());
            }
            if let Some(halve) = &stack.sampler {
                x = pass.conv(halve, x);
                waiting.push(x.clone());
            }
            watch(&format!("down_blocks.{level}"), &x);
        }
        let (first, transformer, second) = &self.mid_block;
        x = first.forward(x, pass);
        x = transformer.forward(x, pass);
        x = second.forward(x, pass);
        watch("mid_block", &x);
        for (level, stack) in self.up_blocks.iter().enumerate() {
            for index in 0..stack.blocks.len() {
                let skip = waiting.pop().expect("an image waits for each block on the way out");
                x = stack.forward(index, join_channels(x, skip), pass);
            }
            if let Some(double) = &stack.sampler {
                let [_, _, rows, columns] = waiting.last().expect("the next level's").dims();
                x = upsample(double, x, [rows, columns], pass);
            }
            watch(&format!("up_blocks.{level}"), &x);
        }
        let rows = pass.attention.rows();
        let norm = self.conv_norm_out.affine(&x, rows);
        rows.conv(&self.conv_out, x, Some(&norm), None)
    }

    /// The [prediction](Transformer::forward) for whole latents. `watch` sees the image after each level, by the name of
    /// its block in the reference.
    ///
    /// # Shapes
    /// `latents` and the result: `[b, channels, y, x]`.
    pub fn watched(
        &self,
        latents: Tensor<4>,
        context: &Context,
        attention: &mut dyn Attention,
        watch: &mut dyn FnMut(&str, &Tensor<4>),
    ) -> Tensor<4> {
        let Context { text, times } = context;
        let pass = Pass { attention, text: text.clone(), times: times.iter(), attentions: 0 };
        self.predict(latents, pass, watch)
    }
}

/// Doubles rows and columns to `size`, which is one less if they were an odd number before they were halved.
fn upsample(conv: &Conv2d, x: Tensor<4>, size: [usize; 2], pass: &Pass<'_>) -> Tensor<4> {
    let [b, c, rows, columns] = x.dims();
    if size == [2 * rows, 2 * columns] {
        return pass.conv(conv, x);
    }
    // The row and column left out must be zeros for the convolution.
    let doubled = x.reshape([b, c, rows, 1, columns, 1]).repeat_dim(3, 2).repeat_dim(5, 2);
    let doubled = doubled.reshape([b, c, 2 * rows, 2 * columns]);
    let doubled = doubled.narrow(2, 0, size[0]).narrow(3, 0, size[1]);
    pass.conv(&Conv2d { upsample: false, ..conv.clone() }, doubled)
}

impl Transformer for UNet {
    type Conditions = Conditions;
    type Context = Context;

    fn spec(&self) -> &TransformerSpec {
        &self.config.spec
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn contexts(&self, branches: &[&Conditions], timesteps: &[f32]) -> Vec<Context> {
        let text = batch(branches.iter().map(|branch| branch.text.clone()));
        let pooled = batch(branches.iter().map(|branch| branch.pooled.clone()));
        let ([b, ..], steps, device) = (text.dims(), timesteps.len(), text.device());
        let width = self.config.time_embed_dim();
        let sinusoids = sinusoids_of_width(timesteps, self.config.levels[0].channels, &device);
        let time = self.time_embedding.forward(sinusoids.cast(self.dtype)).reshape([steps, 1, width]);
        let micro: Vec<f32> =
            branches.iter().flat_map(|branch| branch.micro.repeat(branch.text.dims()[0])).collect();
        let micro = sinusoids_of_width(&micro, self.config.addition_time_embed_dim, &device);
        let micro = micro.reshape([b, MICRO_CONDITIONS * self.config.addition_time_embed_dim]);
        let added = Tensor::cat(vec![pooled.cast(self.dtype), micro.cast(self.dtype)], 1);
        let added = self.add_embedding.forward(added).reshape([1, b, width]);
        let embedded = activate(Activation::Silu, (time + added).reshape([steps * b, width]));
        // Computes all steps in one matrix product.
        let of_resnet = |resnet: &TimedResnet| {
            let all = resnet.time_emb_proj.forward(embedded.clone());
            let c = all.dims()[1];
            all.reshape([steps, b, c])
        };
        let times: Vec<Tensor<3>> = self.resnets().map(of_resnet).collect();
        let text = text.cast(self.dtype);
        let context = |step| {
            let at_step = |all: &Tensor<3>| all.clone().narrow(0, step, 1).squeeze_dim::<2>(0);
            Context { text: text.clone(), times: times.iter().map(at_step).collect() }
        };
        (0..steps).map(context).collect()
    }

    fn context_bytes(&self) -> usize {
        self.resnets().map(|resnet| resnet.time_emb_proj.c_out()).sum::<usize>() * self.dtype.size()
    }

    fn embed(&self, latents: Tokens, _: &Context) -> Hidden {
        let x = latents.x.clone().cast(self.dtype);
        Hidden::new(latents.with(x), None)
    }

    fn block(&self, _: usize, hidden: Hidden, context: &Context, attention: &mut dyn Attention) -> Hidden {
        let Tokens { x, positions } = hidden.image;
        let ([b, n, c], [_, _, columns]) = (x.dims(), positions.extent());
        assert_eq!(n % columns, 0, "{n} pixels are not whole rows of {columns}");
        let image = x.swap_dims(1, 2).reshape([b, c, n / columns, columns]);
        let y = self.watched(image, context, attention, &mut |_, _| {});
        Hidden::new(Tokens { x: y.reshape([b, c, n]).swap_dims(1, 2), positions }, None)
    }

    fn finish(&self, hidden: Hidden, _: &Context) -> Tensor<3> {
        hidden.image.x.cast(DType::F32)
    }
}
