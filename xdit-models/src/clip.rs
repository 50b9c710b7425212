//! The text encoders of CLIP.
//!
//! Stable Diffusion 3 has two of them, and FLUX has one. For each text they produce a state for every token, and
//! the pooled output: one vector for the whole text.
//!
//! Source: Radford et al. 2021, §2.4; transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use serde_json::json;
use xdit_core::attention::cross_attention;
use xdit_core::config::Config;
use xdit_core::linear::Linear;
use xdit_core::weights::Weights;
use xdit_core::{Error, Result};
use xdit_kernels::{Activation, activate};

use crate::layers::{Heads, Norm};

/// The `eos_token_id` in configs from before transformers used that option. It was never the id of CLIP's end
/// token.
const LEGACY_EOS_TOKEN_ID: u32 = 2;

/// The options of `config.json` that affect encoding.
#[derive(Clone, Debug)]
pub struct ClipTextConfig {
    /// The size of the vocabulary.
    pub vocab_size: usize,
    /// The number of features of a token.
    pub hidden_size: usize,
    /// The number of features inside the MLP.
    pub intermediate_size: usize,
    /// The number of features of the projected pooled output, in models with a projection.
    pub projection_dim: usize,
    /// The number of layers.
    pub num_hidden_layers: usize,
    /// The number of attention heads in each layer.
    pub num_attention_heads: usize,
    /// The maximum number of tokens in a text.
    pub max_position_embeddings: usize,
    /// The activation of the MLP.
    pub activation: Activation,
    /// The ε of the norms.
    pub eps: f64,
    /// The token at the end of a text; its state is the pooled output.
    pub eos_token_id: u32,
}

impl ClipTextConfig {
    /// Reads the options from `config`; absent options have the defaults of transformers.
    ///
    /// # Errors
    /// If an option is missing, malformed, or has a value that is not supported.
    pub fn read(mut config: Config) -> Result<Self> {
        config.only("model_type", &[json!("clip_text_model")])?;
        let hidden_act: String = config.take("hidden_act", "quick_gelu".to_owned())?;
        let activation = match hidden_act.as_str() {
            "quick_gelu" => Activation::QuickGelu,
            "gelu" => Activation::Gelu,
            _ => {
                return Err(Error::failure(format!("CLIP's `hidden_act` = `{hidden_act}` is not supported"))
                    .hint("supported: `quick_gelu`, `gelu`"));
            }
        };
        let this = Self {
            vocab_size: config.require("vocab_size")?,
            hidden_size: config.require("hidden_size")?,
            intermediate_size: config.require("intermediate_size")?,
            projection_dim: config.take("projection_dim", 512)?,
            num_hidden_layers: config.require("num_hidden_layers")?,
            num_attention_heads: config.require("num_attention_heads")?,
            max_position_embeddings: config.take("max_position_embeddings", 77)?,
            activation,
            eps: config.take("layer_norm_eps", 1e-5)?,
            eos_token_id: config.take("eos_token_id", 49_407)?,
        };
        let Self { hidden_size, num_attention_heads, .. } = this;
        if num_attention_heads == 0 || hidden_size % num_attention_heads != 0 {
            return Err(Error::failure(format!(
                "CLIP's `{hidden_size}` features cannot be divided into `{num_attention_heads}` heads"
            )));
        }
        Ok(this)
    }

    /// Checks that [`ClipTextModel::forward`] can skip `clip_skip` layers.
    ///
    /// # Errors
    /// If the model has too few layers.
    pub fn check_clip_skip(&self, clip_skip: usize) -> Result<()> {
        match self.num_hidden_layers {
            layers if clip_skip < layers => Ok(()),
            layers => Err(Error::usage(format!(
                "`clip_skip` of `{clip_skip}` is too large for the {layers} layers of CLIP"
            ))
            .hint(format!("use at most {}", layers.saturating_sub(1)))),
        }
    }
}

/// The encoding of a text.
#[derive(Clone, Debug)]
pub struct ClipOutput {
    /// States after the last layer and the final norm, `[1, n, hidden_size]` (transformers' `last_hidden_state`).
    pub last_hidden: Tensor<3>,
    /// States before the last layer and `clip_skip` further ones, without a norm, `[1, n, hidden_size]`
    /// (transformers' `hidden_states[-(clip_skip + 2)]`).
    pub hidden: Tensor<3>,
    /// The state in [`last_hidden`](Self::last_hidden) at the end of the text, `[1, hidden_size]` (transformers'
    /// `pooler_output`). In models with a projection, its projection, `[1, projection_dim]` (transformers'
    /// `text_embeds`).
    pub pooled: Tensor<2>,
}

/// A text encoder of CLIP, with or without a projection into the image space.
#[derive(Clone, Debug)]
pub struct ClipTextModel {
    config: ClipTextConfig,
    /// `[vocab_size, hidden_size]`
    token_embedding: Tensor<2>,
    /// `[max_position_embeddings, hidden_size]`
    position_embedding: Tensor<2>,
    layers: Vec<Layer>,
    final_layer_norm: Norm,
    text_projection: Option<Linear>,
}

impl ClipTextModel {
    /// Loads a model without projection (`CLIPTextModel`) from the weights of its folder.
    ///
    /// # Errors
    /// If a tensor is missing, has the wrong shape, or is left over.
    pub fn load(config: &ClipTextConfig, weights: &Weights) -> Result<Self> {
        Self::load_parts(config, weights, false)
    }

    /// Loads a model with a projection (`CLIPTextModelWithProjection`) from the weights of its folder.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with_projection(config: &ClipTextConfig, weights: &Weights) -> Result<Self> {
        Self::load_parts(config, weights, true)
    }

    fn load_parts(config: &ClipTextConfig, weights: &Weights, projection: bool) -> Result<Self> {
        let ClipTextConfig { hidden_size, projection_dim, .. } = *config;
        // Since version 5, transformers writes the names without a prefix.
        let prefixed = weights.has("text_model.embeddings.token_embedding.weight");
        let model = if prefixed { weights.at("text_model") } else { weights.clone() };
        let embeddings = model.at("embeddings");
        // A constant buffer (0, 1, 2, …) that old versions of transformers wrote into the file.
        embeddings.ignore("position_ids");
        // A whole CLIP has the encoder of pictures, too, which transformers ignores, as it does an unused projection.
        weights.ignore_extra(&["vision_model.", "visual_projection.", "logit_scale"]);
        if !projection {
            weights.ignore_extra(&["text_projection."]);
        }
        let this = Self {
            config: config.clone(),
            token_embedding: embeddings.tensor("token_embedding.weight", [config.vocab_size, hidden_size])?,
            position_embedding: embeddings
                .tensor("position_embedding.weight", [config.max_position_embeddings, hidden_size])?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::load(config, &model.at("encoder.layers").at(index)))
                .collect::<Result<_>>()?,
            final_layer_norm: Norm::load(&model.at("final_layer_norm"), hidden_size, config.eps)?,
            text_projection: projection
                .then(|| weights.linear_without_bias("text_projection", hidden_size, projection_dim))
                .transpose()?,
        };
        weights.finish()?;
        Ok(this)
    }

    /// Encodes one text, whose `ids` include the start and end tokens.
    ///
    /// A token attends only to itself and earlier tokens. Padding therefore changes neither the states before it
    /// nor [`pooled`](ClipOutput::pooled), but it has states of its own: a model trained on those states needs
    /// `ids` padded as in training. `clip_skip` layers, in addition to the last one, are left out of
    /// [`hidden`](ClipOutput::hidden); the other outputs use all layers.
    ///
    /// # Panics
    /// If `ids` is empty, longer than `max_position_embeddings`, or contains an id that is not in the vocabulary;
    /// or if [`check_clip_skip`](ClipTextConfig::check_clip_skip) refuses `clip_skip`.
    pub fn forward(&self, ids: &[u32], clip_skip: usize) -> ClipOutput {
        let ClipTextConfig { vocab_size, num_hidden_layers, max_position_embeddings, .. } = self.config;
        let n = ids.len();
        assert!(
            (1..=max_position_embeddings).contains(&n),
            "{n} ids do not fit {max_position_embeddings} positions"
        );
        assert!(ids.iter().all(|&id| (id as usize) < vocab_size), "an id is not in the vocabulary");
        assert!(
            clip_skip < num_hidden_layers,
            "a clip_skip of {clip_skip} is too large for {num_hidden_layers} layers"
        );
        let device = self.token_embedding.device();
        let indices: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [n]), (&device, DType::I32));
        let tokens = self.token_embedding.clone().select(0, indices);
        let mut x = (tokens + self.position_embedding.clone().narrow(0, 0, n)).unsqueeze::<3>();

        let mask = causal_mask(n, &device, x.dtype());
        let kept = num_hidden_layers - 1 - clip_skip;
        let mut hidden = x.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            if index == kept {
                hidden = x.clone();
            }
            x = layer.forward(&self.config, x, mask.clone());
        }

        let last_hidden = self.final_layer_norm.forward(x);
        let end = last_hidden.clone().narrow(1, self.end_of_text(ids), 1).squeeze_dim::<2>(1);
        let pooled = match &self.text_projection {
            Some(projection) => projection.forward(end),
            None => end,
        };
        ClipOutput { last_hidden, hidden, pooled }
    }

    /// The position of the first end token. If the config is too old to specify the token, the position of the
    /// largest id, which in CLIP's vocabulary is the end token.
    fn end_of_text(&self, ids: &[u32]) -> usize {
        let token = match self.config.eos_token_id {
            LEGACY_EOS_TOKEN_ID => ids.iter().copied().max(),
            id => Some(id),
        };
        // Without an end token, transformers uses the first position.
        ids.iter().position(|&id| Some(id) == token).unwrap_or(0)
    }
}

/// A mask that is added to the scores and hides later tokens, `[1, 1, n, n]`.
fn causal_mask(n: usize, device: &Device, dtype: DType) -> Tensor<4> {
    let seen = |query: usize, key: usize| if key <= query { 0.0 } else { f32::NEG_INFINITY };
    let mask: Vec<f32> = (0..n).flat_map(|query| (0..n).map(move |key| seen(query, key))).collect();
    Tensor::from_data(TensorData::new(mask, [1, 1, n, n]), (device, dtype))
}

/// A pre-norm transformer layer.
#[derive(Clone, Debug)]
struct Layer {
    layer_norm1: Norm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

impl Layer {
    fn load(config: &ClipTextConfig, weights: &Weights) -> Result<Self> {
        let ClipTextConfig { hidden_size, intermediate_size, .. } = *config;
        let attention = weights.at("self_attn");
        let mlp = weights.at("mlp");
        Ok(Self {
            layer_norm1: Norm::load(&weights.at("layer_norm1"), hidden_size, config.eps)?,
            q_proj: attention.linear("q_proj", hidden_size, hidden_size)?,
            k_proj: attention.linear("k_proj", hidden_size, hidden_size)?,
            v_proj: attention.linear("v_proj", hidden_size, hidden_size)?,
            out_proj: attention.linear("out_proj", hidden_size, hidden_size)?,
            layer_norm2: Norm::load(&weights.at("layer_norm2"), hidden_size, config.eps)?,
            fc1: mlp.linear("fc1", hidden_size, intermediate_size)?,
            fc2: mlp.linear("fc2", intermediate_size, hidden_size)?,
        })
    }

    fn forward(&self, config: &ClipTextConfig, x: Tensor<3>, mask: Tensor<4>) -> Tensor<3> {
        let heads = Heads { head_dim: config.hidden_size / config.num_attention_heads };
        let y = self.layer_norm1.forward(x.clone());
        let q = heads.split(self.q_proj.forward(y.clone()));
        let k = heads.split(self.k_proj.forward(y.clone()));
        let v = heads.split(self.v_proj.forward(y));
        let y = heads.join(cross_attention(q, k, v, Some(mask)));
        let x = self.out_proj.forward(y) + x;

        let y = self.fc1.forward(self.layer_norm2.forward(x.clone()));
        self.fc2.forward(activate(config.activation, y)) + x
    }
}
