//! The T5 v1.1 encoder.
//!
//! Source: Raffel et al. 2019; the v1.1 variant with gated GELU; transformers' `T5EncoderModel`.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use serde_json::json;
use xdit_core::config::Config;
use xdit_core::linear::Linear;
use xdit_core::weights::Weights;
use xdit_core::{Error, Result};
use xdit_kernels::{Activation, attention, gated_activate, rms_norm};

/// The options of `text_encoder/config.json` that affect encoding.
#[derive(Clone, Debug)]
pub struct T5Config {
    /// The size of the vocabulary.
    pub vocab_size: usize,
    /// The number of features of a token.
    pub d_model: usize,
    /// The number of features of a head.
    pub d_kv: usize,
    /// The number of features inside the feed-forward.
    pub d_ff: usize,
    /// The number of blocks.
    pub num_layers: usize,
    /// The number of attention heads in each block.
    pub num_heads: usize,
    /// The number of learned biases for each head.
    pub relative_buckets: usize,
    /// The distance from which on all distances share one bias.
    pub relative_max_distance: usize,
    /// The ε of the norms.
    pub eps: f64,
}

impl T5Config {
    /// Reads the options from `config`.
    ///
    /// # Errors
    /// If an option is missing, malformed, or has a value that is not supported.
    pub fn read(mut config: Config) -> Result<Self> {
        config.only("feed_forward_proj", &[json!("gated-gelu")])?;
        config.only("dense_act_fn", &[json!("gelu_new")])?;
        let d_model = config.require("d_model")?;
        let this = Self {
            vocab_size: config.require("vocab_size")?,
            d_model,
            d_kv: config.take("d_kv", 64)?,
            d_ff: config.require("d_ff")?,
            num_layers: config.require("num_layers")?,
            num_heads: config.require("num_heads")?,
            relative_buckets: config.take("relative_attention_num_buckets", 32)?,
            relative_max_distance: config.take("relative_attention_max_distance", 128)?,
            eps: config.take("layer_norm_epsilon", 1e-6)?,
        };
        if this.relative_buckets < 4 || this.relative_max_distance <= this.relative_buckets / 4 {
            return Err(Error::failure(format!(
                "T5 cannot have `{}` relative buckets up to distance `{}`",
                this.relative_buckets, this.relative_max_distance
            )));
        }
        Ok(this)
    }
}

/// The encoder.
#[derive(Clone, Debug)]
pub struct T5Encoder {
    config: T5Config,
    /// `[vocab_size, d_model]`
    embedding: Tensor<2>,
    /// `[relative_buckets, num_heads]`
    relative_bias: Tensor<2>,
    blocks: Vec<Block>,
    final_norm: Tensor<1>,
}

#[derive(Clone, Debug)]
struct Block {
    attention_norm: Tensor<1>,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    ff_norm: Tensor<1>,
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

impl T5Encoder {
    /// Loads the model from the weights of a `text_encoder/` folder.
    ///
    /// # Errors
    /// If a tensor is missing, has the wrong shape, or is left over.
    pub fn load(config: &T5Config, weights: &Weights) -> Result<Self> {
        // A checkpoint of the whole model has the decoder, too, which transformers ignores.
        weights.ignore_extra(&["decoder.", "lm_head."]);
        let encoder = weights.at("encoder");
        let shape = [config.vocab_size, config.d_model];
        // Checkpoints contain the same table under one or both of two names.
        let embedding = if weights.has("shared.weight") {
            encoder.ignore("embed_tokens.weight");
            weights.tensor("shared.weight", shape)?
        } else {
            encoder.tensor("embed_tokens.weight", shape)?
        };
        let relative = encoder.at("block.0.layer.0.SelfAttention.relative_attention_bias");
        let this = Self {
            config: config.clone(),
            embedding,
            relative_bias: relative.tensor("weight", [config.relative_buckets, config.num_heads])?,
            blocks: (0..config.num_layers)
                .map(|index| Block::load(config, &encoder.at("block").at(index).at("layer")))
                .collect::<Result<_>>()?,
            final_norm: wide(&encoder).tensor("final_layer_norm.weight", [config.d_model])?,
        };
        Ok(this)
    }

    /// The hidden states of the last layer, after the final norm, for one text.
    ///
    /// Every token attends to all others. If the reference masks its padding (PixArt), `ids` without padding give
    /// the same state for each token. If it pads without a mask (Stable Diffusion 3, FLUX), `ids` must be
    /// [padded](crate::tokenizer::Encoding::padded) as well, because the padding is part of the text.
    ///
    /// # Shapes
    /// Result `[1, ids, d_model]`.
    ///
    /// # Panics
    /// If an id is not in the vocabulary.
    pub fn forward(&self, ids: &[u32]) -> Tensor<3> {
        self.forward_masked(ids, ids.len())
    }

    /// As [`forward`](Self::forward), but only the first `visible` tokens are attended to. The others, which are padding,
    /// have states, too.
    ///
    /// # Panics
    /// If no token is visible, or an id is not in the vocabulary.
    pub fn forward_masked(&self, ids: &[u32], visible: usize) -> Tensor<3> {
        let device = self.embedding.device();
        let n = ids.len();
        assert!(
            ids.iter().all(|&id| (id as usize) < self.config.vocab_size),
            "an id is not in the vocabulary"
        );
        let indices: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [n]), (&device, DType::I32));
        let dtype = self.embedding.dtype();
        let x = self.embedding.clone().select(0, indices).unsqueeze::<3>();
        let mut x = x.cast(self.final_norm.dtype());
        let mut bias = self.position_bias(n, &device);
        assert!((1..=n).contains(&visible), "{visible} of {n} tokens are visible");
        if visible < n {
            let mask =
                (0..n).map(|key| if key < visible { 0.0 } else { f32::NEG_INFINITY }).collect::<Vec<_>>();
            let mask = Tensor::<4>::from_data(TensorData::new(mask, [1, 1, 1, n]), (&device, DType::F32));
            bias = bias + mask.cast(dtype);
        }
        for block in &self.blocks {
            x = block.forward(&self.config, x, bias.clone(), dtype);
        }
        rms_norm(x, Some(self.final_norm.clone()), self.config.eps).cast(dtype)
    }

    /// The learned bias of each head for each distance, `[1, h, n, n]`. All blocks share the bias of the first.
    fn position_bias(&self, n: usize, device: &Device) -> Tensor<4> {
        let T5Config { relative_buckets, relative_max_distance, num_heads, .. } = self.config;
        let buckets: Vec<i32> = (0..n as i32)
            .flat_map(|query| (0..n as i32).map(move |key| key - query))
            .map(|distance| bucket(distance, relative_buckets, relative_max_distance))
            .collect();
        let buckets = Tensor::<1, Int>::from_data(TensorData::new(buckets, [n * n]), (device, DType::I32));
        self.relative_bias.clone().select(0, buckets).reshape([1, n, n, num_heads]).permute([0, 3, 1, 2])
    }
}

/// The bucket of a distance. Each direction has half of the buckets; half of those stand for single distances, and
/// the rest grow logarithmically.
fn bucket(distance: i32, buckets: usize, max_distance: usize) -> i32 {
    let half = (buckets / 2) as i32;
    let exact = half / 2;
    let side = if distance > 0 { half } else { 0 };
    let distance = distance.abs();
    if distance < exact {
        return side + distance;
    }
    // Computed in f32 like the reference, because exact powers fall on bucket borders.
    let log = (distance as f32 / exact as f32).ln() / (max_distance as f64 / exact as f64).ln() as f32;
    side + (exact + (log * (half - exact) as f32) as i32).min(half - 1)
}

/// Weights in f32 if f16 is requested. The states that blocks add to exceed the range of f16, so the states, the
/// norms and the layer that makes the states large stay in f32, as in transformers (`_keep_in_fp32_modules`).
fn wide(weights: &Weights) -> Weights {
    if weights.dtype() == DType::F16 { weights.with_dtype(DType::F32) } else { weights.clone() }
}

impl Block {
    fn load(config: &T5Config, weights: &Weights) -> Result<Self> {
        let T5Config { d_model, d_ff, .. } = *config;
        let inner = config.num_heads * config.d_kv;
        let attention = weights.at("0.SelfAttention");
        let ff = weights.at("1.DenseReluDense");
        let wide_weights = wide(weights);
        Ok(Self {
            attention_norm: wide_weights.tensor("0.layer_norm.weight", [d_model])?,
            q: attention.linear_without_bias("q", d_model, inner)?,
            k: attention.linear_without_bias("k", d_model, inner)?,
            v: attention.linear_without_bias("v", d_model, inner)?,
            o: attention.linear_without_bias("o", inner, d_model)?,
            ff_norm: wide_weights.tensor("1.layer_norm.weight", [d_model])?,
            wi_0: ff.linear_without_bias("wi_0", d_model, d_ff)?,
            wi_1: ff.linear_without_bias("wi_1", d_model, d_ff)?,
            wo: wide(&ff).linear_without_bias("wo", d_ff, d_model)?,
        })
    }

    /// Computes everything in `dtype` except `x`, the norms and the last layer.
    fn forward(&self, config: &T5Config, x: Tensor<3>, bias: Tensor<4>, dtype: DType) -> Tensor<3> {
        let [b, n, _] = x.dims();
        let wide = x.dtype();
        let y = rms_norm(x.clone(), Some(self.attention_norm.clone()), config.eps).cast(dtype);
        let heads = |x: Tensor<3>| x.reshape([b, n, config.num_heads, config.d_kv]);
        let (q, k, v) = (self.q.forward(y.clone()), self.k.forward(y.clone()), self.v.forward(y));
        // T5 does not scale its scores; its initialisation accounts for that.
        let y = attention(heads(q), heads(k), heads(v), Some(bias), 1.0);
        let x = self.o.forward(y.reshape([b, n, config.num_heads * config.d_kv])).cast(wide) + x;

        let y = rms_norm(x.clone(), Some(self.ff_norm.clone()), config.eps).cast(dtype);
        let y = gated_activate(Activation::GeluTanh, self.wi_0.forward(y.clone()), self.wi_1.forward(y));
        self.wo.forward(y.cast(wide)) + x
    }
}
