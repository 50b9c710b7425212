//! BERT, a text encoder of HunyuanDiT.
//!
//! Source: Devlin et al. 2018; transformers' `BertModel`.

use burn::tensor::{DType, Int, Tensor, TensorData};
use serde_json::json;
use xdit_core::attention::cross_attention;
use xdit_core::config::Config;
use xdit_core::linear::Linear;
use xdit_core::weights::Weights;
use xdit_core::{Error, Result};
use xdit_kernels::{Activation, activate};

use crate::layers::{Heads, Norm};

/// The options of `config.json` that affect encoding.
#[derive(Clone, Debug)]
pub struct BertConfig {
    /// The size of the vocabulary.
    pub vocab_size: usize,
    /// The number of features of a token.
    pub hidden_size: usize,
    /// The number of features inside the feed-forward.
    pub intermediate_size: usize,
    /// The number of layers.
    pub num_hidden_layers: usize,
    /// The number of attention heads in each layer.
    pub num_attention_heads: usize,
    /// The maximum number of tokens in a text.
    pub max_position_embeddings: usize,
    /// The number of kinds of tokens, of which a single text has the first.
    pub type_vocab_size: usize,
    /// The ε of the norms.
    pub eps: f64,
}

impl BertConfig {
    /// Reads the options from `config`; absent options have the defaults of transformers.
    ///
    /// # Errors
    /// If an option is malformed, or has a value that is not supported.
    pub fn read(mut config: Config) -> Result<Self> {
        config.only("model_type", &[json!("bert")])?;
        config.only("hidden_act", &[json!("gelu")])?;
        config.only("position_embedding_type", &[json!("absolute")])?;
        config.only("is_decoder", &[json!(false)])?;
        let this = Self {
            vocab_size: config.take("vocab_size", 30_522)?,
            hidden_size: config.take("hidden_size", 768)?,
            intermediate_size: config.take("intermediate_size", 3072)?,
            num_hidden_layers: config.take("num_hidden_layers", 12)?,
            num_attention_heads: config.take("num_attention_heads", 12)?,
            max_position_embeddings: config.take("max_position_embeddings", 512)?,
            type_vocab_size: config.take("type_vocab_size", 2)?,
            eps: config.take("layer_norm_eps", 1e-12)?,
        };
        let Self { hidden_size, num_attention_heads, type_vocab_size, .. } = this;
        if num_attention_heads == 0 || hidden_size % num_attention_heads != 0 || type_vocab_size == 0 {
            return Err(Error::failure(format!(
                "BERT cannot have {num_attention_heads} heads for {hidden_size} features, and `type_vocab_size` \
                 {type_vocab_size}"
            )));
        }
        Ok(this)
    }
}

/// The encoder.
#[derive(Clone, Debug)]
pub struct BertModel {
    config: BertConfig,
    /// `[vocab_size, hidden_size]`
    words: Tensor<2>,
    /// `[max_position_embeddings, hidden_size]`
    positions: Tensor<2>,
    /// `[type_vocab_size, hidden_size]`
    types: Tensor<2>,
    norm: Norm,
    layers: Vec<Layer>,
}

impl BertModel {
    /// Loads the model from the weights of its folder. The pooler, which is not used, may be absent.
    ///
    /// # Errors
    /// If a tensor is missing or has the wrong shape.
    pub fn load(config: &BertConfig, weights: &Weights) -> Result<Self> {
        let c = config.hidden_size;
        let embeddings = weights.at("embeddings");
        // A constant buffer (0, 1, 2, …) that old versions of transformers wrote into the file.
        embeddings.ignore("position_ids");
        for unused in ["pooler.dense.weight", "pooler.dense.bias"] {
            weights.ignore(unused);
        }
        let positions =
            embeddings.tensor("position_embeddings.weight", [config.max_position_embeddings, c])?;
        Ok(Self {
            config: config.clone(),
            words: embeddings.tensor("word_embeddings.weight", [config.vocab_size, c])?,
            positions,
            types: embeddings.tensor("token_type_embeddings.weight", [config.type_vocab_size, c])?,
            norm: Norm::load(&embeddings.at("LayerNorm"), c, config.eps)?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::load(config, &weights.at("encoder.layer").at(index)))
                .collect::<Result<_>>()?,
        })
    }

    /// The states of the last layer for one text, whose `ids` include the start and end tokens, without padding: the
    /// reference masks padding, which therefore does not change these states.
    ///
    /// # Shapes
    /// Result `[1, ids, hidden_size]`.
    ///
    /// # Panics
    /// If `ids` is empty, longer than `max_position_embeddings`, or contains an id that is not in the vocabulary.
    pub fn forward(&self, ids: &[u32]) -> Tensor<3> {
        let BertConfig { vocab_size, max_position_embeddings, .. } = self.config;
        let n = ids.len();
        assert!(
            (1..=max_position_embeddings).contains(&n),
            "{n} ids do not fit {max_position_embeddings} positions"
        );
        assert!(ids.iter().all(|&id| (id as usize) < vocab_size), "an id is not in the vocabulary");
        let device = self.words.device();
        let indices: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [n]), (&device, DType::I32));
        let words = self.words.clone().select(0, indices);
        let x = words + self.types.clone().narrow(0, 0, 1) + self.positions.clone().narrow(0, 0, n);
        let x = self.norm.forward(x.unsqueeze::<3>());
        self.layers.iter().fold(x, |x, layer| layer.forward(&self.config, x))
    }
}

/// A layer, with its norms after attention and feed-forward.
#[derive(Clone, Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_out: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    out: Linear,
    norm: Norm,
}

impl Layer {
    fn load(config: &BertConfig, weights: &Weights) -> Result<Self> {
        let BertConfig { hidden_size: c, intermediate_size, eps, .. } = *config;
        let (attention, output) = (weights.at("attention.self"), weights.at("attention.output"));
        Ok(Self {
            query: attention.linear("query", c, c)?,
            key: attention.linear("key", c, c)?,
            value: attention.linear("value", c, c)?,
            attention_out: output.linear("dense", c, c)?,
            attention_norm: Norm::load(&output.at("LayerNorm"), c, eps)?,
            intermediate: weights.linear("intermediate.dense", c, intermediate_size)?,
            out: weights.linear("output.dense", intermediate_size, c)?,
            norm: Norm::load(&weights.at("output.LayerNorm"), c, eps)?,
        })
    }

    fn forward(&self, config: &BertConfig, x: Tensor<3>) -> Tensor<3> {
        let heads = Heads { head_dim: config.hidden_size / config.num_attention_heads };
        let of = |layer: &Linear| heads.split(layer.forward(x.clone()));
        let y = heads.join(cross_attention(of(&self.query), of(&self.key), of(&self.value), None));
        let x = self.attention_norm.forward(self.attention_out.forward(y) + x);
        let y = activate(Activation::Gelu, self.intermediate.forward(x.clone()));
        self.norm.forward(self.out.forward(y) + x)
    }
}
