//! The convolutional autoencoder between pictures and latents.
//!
//! Its decoder computes each picture by itself or, in `temporal_decoder`, the frames of a clip together.
//!
//! Source: latent diffusion (Rombach et al. 2021); diffusers' `AutoencoderKL`, `Encoder` and `Decoder`, and
//! `AutoencoderKLTemporalDecoder`.

use burn::tensor::{DType, Tensor};
use serde_json::json;
use xdit_core::attention::Qkv;
use xdit_core::config::Config;
use xdit_core::linear::Linear;
use xdit_core::pipeline::LoadOptions;
use xdit_core::rows::{Rows, Whole};
use xdit_core::weights::Weights;
use xdit_core::{Error, Result};
use xdit_kernels::{Conv2d, norm_act};

use crate::component::{Component, ModelIndex, TEMPORAL_DECODER};
use crate::convolution::{Convolution, GroupNorm, Resnet, conv};
use crate::temporal_decoder::TemporalDecoder;
use crate::tiling::Tiling;

/// The class with a decoder that computes each picture by itself.
pub const PLAIN: &str = "AutoencoderKL";
/// The class with a decoder that computes the frames of a clip together.
pub const TEMPORAL: &str = "AutoencoderKLTemporalDecoder";

/// The ε of every group norm within a picture.
pub(crate) const EPS: f64 = 1e-6;

/// The options of `vae/config.json`.
#[derive(Clone, Debug)]
pub struct AutoencoderKlConfig {
    /// The number of channels of the picture.
    pub image_channels: usize,
    /// The number of channels of the latent.
    pub latent_channels: usize,
    /// The number of channels of each level, from the picture inwards.
    pub block_out_channels: Vec<usize>,
    /// The number of residual blocks in each level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// The number of groups of every group norm.
    pub norm_num_groups: usize,
    /// Whether the middle contains an attention layer.
    pub mid_block_add_attention: bool,
    /// Whether the encoder is followed by a 1×1 convolution.
    pub use_quant_conv: bool,
    /// Whether the decoder is preceded by a 1×1 convolution.
    pub use_post_quant_conv: bool,
    /// The factor that latents are multiplied with before diffusion.
    pub scaling_factor: f32,
    /// The value subtracted from latents before they are scaled.
    pub shift_factor: f32,
    /// Whether the model overflows in f16 and must run in f32.
    pub force_upcast: bool,
    /// The side of a tile in pixels, for tiled decoding.
    pub sample_size: usize,
    /// Whether the decoder computes the frames of a clip together.
    pub temporal: bool,
}

impl AutoencoderKlConfig {
    /// Reads the options of an autoencoder of `class` from `config`.
    ///
    /// # Errors
    /// If an option is malformed, unknown, or has a value that is not supported.
    pub fn of_class(class: &str, config: Config) -> Result<Self> {
        if class == TEMPORAL { Self::read_temporal(config) } else { Self::read(config) }
    }

    /// Reads the options of a plain autoencoder from `config`.
    ///
    /// # Errors
    /// If an option is malformed, unknown, or has a value that is not supported.
    pub fn read(mut config: Config) -> Result<Self> {
        config.only("act_fn", &[json!("silu")])?;
        // Published checkpoints list these as `null`; an autoencoder that normalises its latents by channel sets
        // them.
        config.only("latents_mean", &[])?;
        config.only("latents_std", &[])?;
        let block_out_channels: Vec<usize> = config.take("block_out_channels", vec![64])?;
        let levels = block_out_channels.len();
        let common = Self::common(&mut config, block_out_channels)?;
        config.only("up_block_types", &[json!(vec!["UpDecoderBlock2D"; levels])])?;
        let this = Self {
            layers_per_block: config.take("layers_per_block", 1)?,
            norm_num_groups: config.take("norm_num_groups", 32)?,
            mid_block_add_attention: config.take("mid_block_add_attention", true)?,
            use_quant_conv: config.take("use_quant_conv", true)?,
            use_post_quant_conv: config.take("use_post_quant_conv", true)?,
            shift_factor: config.take("shift_factor", 0.0)?,
            ..common
        };
        this.finish(config)
    }

    /// Reads the options of an autoencoder with a temporal decoder from `config`.
    ///
    /// # Errors
    /// If an option is malformed, unknown, or has a value that is not supported.
    pub fn read_temporal(mut config: Config) -> Result<Self> {
        // With another number, the reference leaves out parts of the decoder's middle.
        config.only("layers_per_block", &[json!(2)])?;
        let block_out_channels: Vec<usize> = config.take("block_out_channels", vec![64])?;
        let this = Self {
            layers_per_block: 2,
            use_post_quant_conv: false,
            temporal: true,
            ..Self::common(&mut config, block_out_channels)?
        };
        this.finish(config)
    }

    /// The options that both classes have, and the values that the others have in the temporal one.
    fn common(config: &mut Config, block_out_channels: Vec<usize>) -> Result<Self> {
        let levels = block_out_channels.len();
        config.only("down_block_types", &[json!(vec!["DownEncoderBlock2D"; levels])])?;
        let image_channels = config.take("in_channels", 3)?;
        config.only("out_channels", &[json!(image_channels)])?;
        Ok(Self {
            image_channels,
            latent_channels: config.take("latent_channels", 4)?,
            block_out_channels,
            layers_per_block: 1,
            norm_num_groups: 32,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            scaling_factor: config.take("scaling_factor", 0.18215)?,
            shift_factor: 0.0,
            force_upcast: config.take("force_upcast", true)?,
            sample_size: config.take("sample_size", 32)?,
            temporal: false,
        })
    }

    /// Checks the values, and that no option is left.
    fn finish(self, config: Config) -> Result<Self> {
        let divides = |c: &usize| self.norm_num_groups > 0 && c.is_multiple_of(self.norm_num_groups);
        if self.block_out_channels.is_empty() || !self.block_out_channels.iter().all(divides) {
            return Err(Error::failure(format!(
                "the autoencoder's `block_out_channels` `{:?}` cannot be divided into `{}` groups",
                self.block_out_channels, self.norm_num_groups
            )));
        }
        if !self.scaling_factor.is_normal() || !self.shift_factor.is_finite() {
            return Err(Error::failure(format!(
                "an autoencoder cannot have `scaling_factor` {} and `shift_factor` {}",
                self.scaling_factor, self.shift_factor
            )));
        }
        config.finish()?;
        Ok(self)
    }

    /// The number of frames that are decoded together, if a request does not choose it. A decoder that computes each picture by
    /// itself takes one, which needs the least memory; otherwise the number is that of the reference.
    pub fn default_chunk(&self) -> usize {
        if self.temporal { 14 } else { 1 }
    }

    /// The side of a latent pixel in pixels of the picture.
    pub fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// The autoencoder.
#[derive(Clone, Debug)]
pub struct AutoencoderKl {
    config: AutoencoderKlConfig,
    encoder: Encoder,
    quant_conv: Option<Convolution>,
    post_quant_conv: Option<Convolution>,
    decoder: AnyDecoder,
}

/// The decoder, by the class of the autoencoder.
#[derive(Clone, Debug)]
enum AnyDecoder {
    Plain(Box<Decoder<Resnet>>),
    Temporal(Box<TemporalDecoder>),
}

impl AutoencoderKl {
    /// Opens the autoencoder of a checkpoint, which must be of one of `classes`: the one in `vae`, or, with the option
    /// [`temporal_decoder`](LoadOptions::temporal_decoder), the one that is in its place.
    ///
    /// # Errors
    /// If anything in it is missing, malformed or inconsistent.
    pub fn open(
        index: &ModelIndex,
        options: &LoadOptions,
        classes: &[&str],
    ) -> Result<Component<AutoencoderKlConfig>> {
        let name = if options.temporal_decoder { TEMPORAL_DECODER.0 } else { "vae" };
        Component::open(
            &index.folder(name, classes)?,
            "diffusion_pytorch_model",
            options,
            |config| AutoencoderKlConfig::of_class(&index.components[name], config),
            // bf16 has the range of f32.
            |config| match options.dtype {
                DType::F16 if config.force_upcast => DType::F32,
                dtype => dtype,
            },
            Self::load,
        )
    }

    /// Loads the model from the weights of a `vae/` folder.
    ///
    /// # Errors
    /// If a tensor is missing, has the wrong shape, or is left over.
    pub fn load(config: &AutoencoderKlConfig, weights: &Weights) -> Result<Self> {
        let z = config.latent_channels;
        let pointwise = |name: &str, c| conv(&weights.at(name), c, c, 1);
        let this = Self {
            encoder: Encoder::load(config, &weights.at("encoder"))?,
            quant_conv: config.use_quant_conv.then(|| pointwise("quant_conv", 2 * z)).transpose()?,
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| pointwise("post_quant_conv", z))
                .transpose()?,
            decoder: match config.temporal {
                false => AnyDecoder::Plain(Box::new(Decoder::load(config, &weights.at("decoder"))?)),
                true => {
                    AnyDecoder::Temporal(Box::new(TemporalDecoder::load(config, &weights.at("decoder"))?))
                }
            },
            config: config.clone(),
        };
        Ok(this)
    }

    /// Decodes the latents of the diffusion model to a picture, after undoing their scaling and shift.
    ///
    /// # Shapes
    /// `[b, latent_channels, y, x]` to `[b, 3, y · scale, x · scale]`, with values from about -1 to 1.
    pub fn decode_scaled(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decode(self.unscale(latents))
    }

    /// Like [`decode_scaled`](Self::decode_scaled), but tile by tile if the picture is larger than those the
    /// autoencoder was trained on.
    pub fn decode_scaled_tiled(&self, latents: Tensor<4>) -> Tensor<4> {
        let z = self.unscale(latents);
        let tiling = Tiling { tile: self.config.sample_size, scale: self.config.scale() };
        if tiling.applies(&z) { tiling.decode(z, |tile| self.decode(tile)) } else { self.decode(z) }
    }

    /// The side of a latent pixel in pixels of the picture.
    pub fn scale(&self) -> usize {
        self.config.scale()
    }

    /// Encodes a picture to the mean of its latents, with the scaling and shift of the diffusion model.
    ///
    /// # Shapes
    /// As [`encode`](Self::encode), to `[b, latent_channels, y / scale, x / scale]` in f32.
    pub fn encode_scaled(&self, image: Tensor<4>) -> Tensor<4> {
        let moments = self.encode(image.cast(self.encoder.conv_in.weight.dtype())).cast(DType::F32);
        let mean = moments.narrow(1, 0, self.config.latent_channels);
        mean.sub_scalar(self.config.shift_factor).mul_scalar(self.config.scaling_factor)
    }

    /// Undoes the scaling and shift of the diffusion model's latents.
    pub fn unscale(&self, latents: Tensor<4>) -> Tensor<4> {
        let z = latents.div_scalar(self.config.scaling_factor).add_scalar(self.config.shift_factor);
        z.cast(self.encoder.conv_in.weight.dtype())
    }

    /// Decodes latents to pictures. With a temporal decoder, a batch is consecutive frames of one clip.
    ///
    /// # Shapes
    /// As [`decode_scaled`](Self::decode_scaled).
    pub fn decode(&self, z: Tensor<4>) -> Tensor<4> {
        self.decode_rows(z, &Whole)
    }

    /// Decodes some rows of a picture from the same rows of its latent; `rows` provides access to the others.
    ///
    /// # Shapes
    /// As [`decode_scaled`](Self::decode_scaled).
    pub fn decode_rows(&self, z: Tensor<4>, rows: &dyn Rows) -> Tensor<4> {
        let z = match &self.post_quant_conv {
            Some(conv) => rows.conv(conv, z, None, None),
            None => z,
        };
        match &self.decoder {
            AnyDecoder::Plain(decoder) => decoder.forward(z, rows),
            AnyDecoder::Temporal(decoder) => decoder.forward(z, rows),
        }
    }

    /// Encodes a picture to the mean and log-variance of its latents.
    ///
    /// # Shapes
    /// `[b, 3, y, x]`, with sides that are multiples of [`scale`](AutoencoderKlConfig::scale), to
    /// `[b, 2 · latent_channels, y / scale, x / scale]`.
    pub fn encode(&self, image: Tensor<4>) -> Tensor<4> {
        self.encode_rows(image, &Whole)
    }

    /// Like [`encode`](Self::encode), for some rows of a picture; `rows` provides access to the others.
    ///
    /// # Shapes
    /// As [`encode`](Self::encode).
    pub fn encode_rows(&self, image: Tensor<4>, rows: &dyn Rows) -> Tensor<4> {
        let moments = self.encoder.forward(image, rows);
        match &self.quant_conv {
            Some(conv) => rows.conv(conv, moments, None, None),
            None => moments,
        }
    }
}

#[derive(Clone, Debug)]
struct Encoder {
    conv_in: Convolution,
    down_blocks: Vec<(Vec<Resnet>, Option<Convolution>)>,
    mid: Mid<Resnet>,
    conv_norm_out: GroupNorm,
    conv_out: Convolution,
}

impl Encoder {
    fn load(config: &AutoencoderKlConfig, weights: &Weights) -> Result<Self> {
        let groups = config.norm_num_groups;
        let levels = &config.block_out_channels;
        let mut c = levels[0];
        let conv_in = conv(&weights.at("conv_in"), config.image_channels, c, 3)?;
        let mut down_blocks = Vec::new();
        for (level, &c_out) in levels.iter().enumerate() {
            let block = weights.at("down_blocks").at(level);
            let mut resnets = Vec::new();
            for index in 0..config.layers_per_block {
                resnets.push(Resnet::load((groups, EPS), &block.at("resnets").at(index), c, c_out)?);
                c = c_out;
            }
            let halve = |c| -> Result<Convolution> {
                let conv = conv(&block.at("downsamplers.0.conv"), c, c, 3)?;
                // Padding only below and to the right, as in the original model.
                Ok(conv.with(|conv| Conv2d { stride: 2, padding: [0, 1, 0, 1], ..conv }))
            };
            let down = (level + 1 < levels.len()).then(|| halve(c)).transpose()?;
            down_blocks.push((resnets, down));
        }
        Ok(Self {
            conv_in,
            down_blocks,
            mid: Mid::load(config, &weights.at("mid_block"), c)?,
            conv_norm_out: GroupNorm::load((groups, EPS), &weights.at("conv_norm_out"), c)?,
            conv_out: conv(&weights.at("conv_out"), c, 2 * config.latent_channels, 3)?,
        })
    }

    fn forward(&self, image: Tensor<4>, rows: &dyn Rows) -> Tensor<4> {
        let mut x = rows.conv(&self.conv_in, image, None, None);
        for (resnets, down) in &self.down_blocks {
            x = resnets.iter().fold(x, |x, resnet| resnet.forward(x, None, rows));
            if let Some(down) = down {
                x = rows.conv(down, x, None, None);
            }
        }
        let x = self.mid.forward(x, rows);
        let norm = self.conv_norm_out.affine(&x, rows);
        rows.conv(&self.conv_out, x, Some(&norm), None)
    }
}

/// A residual block of a decoder.
pub trait Block: Sized {
    /// Loads the block from `weights`; `groups` is the number of groups of its norms.
    ///
    /// # Errors
    /// If a parameter is missing or has the wrong shape.
    fn load(groups: usize, weights: &Weights, c_in: usize, c_out: usize) -> Result<Self>;

    /// # Shapes
    /// `x`: `[b, c_in, y, x]`; result `[b, c_out, y, x]`.
    fn forward(&self, x: Tensor<4>, rows: &dyn Rows) -> Tensor<4>;
}

impl Block for Resnet {
    fn load(groups: usize, weights: &Weights, c_in: usize, c_out: usize) -> Result<Self> {
        Self::load((groups, EPS), weights, c_in, c_out)
    }

    fn forward(&self, x: Tensor<4>, rows: &dyn Rows) -> Tensor<4> {
        self.forward(x, None, rows)
    }
}

/// The decoder, of residual blocks `B`.
#[derive(Clone, Debug)]
pub(crate) struct Decoder<B> {
    conv_in: Convolution,
    mid: Mid<B>,
    up_blocks: Vec<(Vec<B>, Option<Convolution>)>,
    conv_norm_out: GroupNorm,
    conv_out: Convolution,
}

impl<B: Block> Decoder<B> {
    pub(crate) fn load(config: &AutoencoderKlConfig, weights: &Weights) -> Result<Self> {
        let groups = config.norm_num_groups;
        let levels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let mut c = levels[0];
        let conv_in = conv(&weights.at("conv_in"), config.latent_channels, c, 3)?;
        let mid = Mid::load(config, &weights.at("mid_block"), c)?;
        let mut up_blocks = Vec::new();
        for (level, &c_out) in levels.iter().enumerate() {
            let block = weights.at("up_blocks").at(level);
            let mut resnets = Vec::new();
            for index in 0..config.layers_per_block + 1 {
                resnets.push(B::load(groups, &block.at("resnets").at(index), c, c_out)?);
                c = c_out;
            }
            let double = |c| -> Result<Convolution> {
                let conv = conv(&block.at("upsamplers.0.conv"), c, c, 3)?;
                Ok(conv.with(|conv| Conv2d { upsample: true, ..conv }))
            };
            let up = (level + 1 < levels.len()).then(|| double(c)).transpose()?;
            up_blocks.push((resnets, up));
        }
        Ok(Self {
            conv_in,
            mid,
            up_blocks,
            conv_norm_out: GroupNorm::load((groups, EPS), &weights.at("conv_norm_out"), c)?,
            conv_out: conv(&weights.at("conv_out"), c, config.image_channels, 3)?,
        })
    }

    pub(crate) fn forward(&self, z: Tensor<4>, rows: &dyn Rows) -> Tensor<4> {
        let mut x = self.mid.forward(rows.conv(&self.conv_in, z, None, None), rows);
        for (resnets, up) in &self.up_blocks {
            x = resnets.iter().fold(x, |x, resnet| resnet.forward(x, rows));
            if let Some(up) = up {
                x = rows.conv(up, x, None, None);
            }
        }
        let norm = self.conv_norm_out.affine(&x, rows);
        rows.conv(&self.conv_out, x, Some(&norm), None)
    }
}

/// The middle of the encoder and the decoder: two residual blocks with an attention layer between them.
#[derive(Clone, Debug)]
struct Mid<B> {
    first: B,
    attention: Option<PixelAttention>,
    second: B,
}

impl<B: Block> Mid<B> {
    fn load(config: &AutoencoderKlConfig, weights: &Weights, c: usize) -> Result<Self> {
        let groups = config.norm_num_groups;
        let attention = || PixelAttention::load(groups, &weights.at("attentions.0"), c);
        Ok(Self {
            first: B::load(groups, &weights.at("resnets.0"), c, c)?,
            attention: config.mid_block_add_attention.then(attention).transpose()?,
            second: B::load(groups, &weights.at("resnets.1"), c, c)?,
        })
    }

    fn forward(&self, x: Tensor<4>, rows: &dyn Rows) -> Tensor<4> {
        let mut x = self.first.forward(x, rows);
        if let Some(attention) = &self.attention {
            x = attention.forward(x, rows);
        }
        self.second.forward(x, rows)
    }
}

/// Attention of every pixel to every other, with one head.
#[derive(Clone, Debug)]
struct PixelAttention {
    group_norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl PixelAttention {
    fn load(groups: usize, weights: &Weights, c: usize) -> Result<Self> {
        // Checkpoints from before diffusers 0.15 use the old names.
        let linear = |name: &str, old: &str| {
            weights.linear(if weights.at(old).has("weight") { old } else { name }, c, c)
        };
        Ok(Self {
            group_norm: GroupNorm::load((groups, EPS), &weights.at("group_norm"), c)?,
            q: linear("to_q", "query")?,
            k: linear("to_k", "key")?,
            v: linear("to_v", "value")?,
            out: linear("to_out.0", "proj_attn")?,
        })
    }

    fn forward(&self, x: Tensor<4>, rows: &dyn Rows) -> Tensor<4> {
        let [b, c, height, width] = x.dims();
        let normed = norm_act(x.clone(), &self.group_norm.affine(&x, rows), false);
        let tokens = normed.reshape([b, c, height * width]).swap_dims(1, 2);
        let head = |x: Tensor<3>| x.unsqueeze_dim::<4>(2);
        let (q, k, v) =
            (self.q.forward(tokens.clone()), self.k.forward(tokens.clone()), self.v.forward(tokens));
        let y = rows.attend(Qkv { q: head(q), k: head(k), v: head(v) });
        let y = self.out.forward(y.squeeze_dim::<3>(2));
        x + y.swap_dims(1, 2).reshape([b, c, height, width])
    }
}
