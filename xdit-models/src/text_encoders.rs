//! Text encoders with their tokenizers, as pipelines use them: checked when a checkpoint is opened, loaded only while
//! they encode.

use burn::tensor::Tensor;
use xdit_core::Result;
use xdit_core::pipeline::{LoadOptions, Observer, Phase};

use crate::clip::{ClipOutput, ClipTextConfig, ClipTextModel};
use crate::component::{Component, ModelIndex};
use crate::latent_diffusion::{encode_each, must_fit};
use crate::t5::{T5Config, T5Encoder};
use crate::tokenizer::{ClipTokenizer, Encoding, T5Tokenizer};

/// The folders of a text encoder and its tokenizer.
#[derive(Clone, Copy, Debug)]
pub struct Folders {
    /// Of the encoder.
    pub encoder: &'static str,
    /// Of the tokenizer.
    pub tokenizer: &'static str,
}

impl Folders {
    /// Those of the first, the second and the third text encoder of a checkpoint.
    pub const ALL: [Self; 3] = [
        Self { encoder: "text_encoder", tokenizer: "tokenizer" },
        Self { encoder: "text_encoder_2", tokenizer: "tokenizer_2" },
        Self { encoder: "text_encoder_3", tokenizer: "tokenizer_3" },
    ];
}

/// What T5 is given behind a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Nothing. What a model that masks padding sees is the same with and without it.
    None,
    /// Padding up to the maximum length, to which the model attends.
    Seen,
}

/// T5 and its tokenizer.
pub struct T5Text {
    folders: Folders,
    tokenizer: T5Tokenizer,
    encoder: Component<T5Config>,
}

impl T5Text {
    /// Opens both.
    ///
    /// # Errors
    /// If anything in them is missing, malformed, or does not fit together.
    pub fn open(index: &ModelIndex, options: &LoadOptions, folders: Folders) -> Result<Self> {
        let encoder = Component::open(
            &index.folder(folders.encoder, &["T5EncoderModel"])?,
            "model",
            options,
            T5Config::read,
            |_| options.dtype,
            T5Encoder::load,
        )?;
        let classes = ["T5Tokenizer", "T5TokenizerFast"];
        let tokenizer = T5Tokenizer::load(&index.folder(folders.tokenizer, &classes)?)?;
        check_vocabulary(tokenizer.vocab_size(), encoder.config.vocab_size)?;
        Ok(Self { folders, tokenizer, encoder })
    }

    /// Features of a token.
    pub fn features(&self) -> usize {
        self.encoder.config.d_model
    }

    /// Embeddings `[1, n, features]` of each text, of at most `max_length` tokens.
    ///
    /// # Errors
    /// If the weights cannot be read.
    pub fn encode(
        &self,
        texts: &[&str],
        (max_length, padding): (usize, Padding),
        options: &LoadOptions,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Tensor<3>>> {
        observer.begin(Phase::Load(self.folders.encoder));
        let encoder = T5Encoder::load(&self.encoder.config, &self.encoder.weights(options))?;
        observer.end(Phase::Load(self.folders.encoder));
        Ok(encode_each(texts, observer, |text, observer| {
            let encoding = self.tokenizer.encode(text, max_length);
            warn_of_dropped(&encoding, &format!("{max_length} tokens"), observer);
            encoder.forward(&match padding {
                Padding::None => encoding.ids,
                Padding::Seen => encoding.padded(max_length, self.tokenizer.pad_id()),
            })
        }))
    }
}

/// CLIP and its tokenizer.
pub struct ClipText {
    folders: Folders,
    tokenizer: ClipTokenizer,
    encoder: Component<ClipTextConfig>,
    load: LoadClip,
}

type LoadClip = fn(&ClipTextConfig, &xdit_core::weights::Weights) -> Result<ClipTextModel>;

impl ClipText {
    /// Opens both. `projected` says whether the encoder has the projection into the space of images.
    ///
    /// # Errors
    /// If anything in them is missing, malformed, or does not fit together.
    pub fn open(
        index: &ModelIndex,
        options: &LoadOptions,
        folders: Folders,
        projected: bool,
    ) -> Result<Self> {
        let (class, load) = match projected {
            true => ("CLIPTextModelWithProjection", ClipTextModel::load_with_projection as LoadClip),
            false => ("CLIPTextModel", ClipTextModel::load as LoadClip),
        };
        let encoder = Component::open(
            &index.folder(folders.encoder, &[class])?,
            "model",
            options,
            ClipTextConfig::read,
            |_| options.dtype,
            load,
        )?;
        let classes = ["CLIPTokenizer", "CLIPTokenizerFast"];
        let tokenizer = ClipTokenizer::load(&index.folder(folders.tokenizer, &classes)?)?;
        check_vocabulary(tokenizer.vocab_size(), encoder.config.vocab_size)?;
        if tokenizer.max_length() > encoder.config.max_position_embeddings {
            let positions = encoder.config.max_position_embeddings;
            must_fit("tokenizer's and text encoder's tokens of a text", tokenizer.max_length(), positions)?;
        }
        Ok(Self { folders, tokenizer, encoder, load })
    }

    /// Options of the encoder.
    pub fn config(&self) -> &ClipTextConfig {
        &self.encoder.config
    }

    /// What the encoder makes of each text, padded as in training; `clip_skip` as in [`ClipTextModel::forward`].
    ///
    /// # Errors
    /// If the weights cannot be read.
    pub fn encode(
        &self,
        texts: &[&str],
        clip_skip: usize,
        options: &LoadOptions,
        observer: &mut dyn Observer,
    ) -> Result<Vec<ClipOutput>> {
        observer.begin(Phase::Load(self.folders.encoder));
        let encoder = (self.load)(&self.encoder.config, &self.encoder.weights(options))?;
        observer.end(Phase::Load(self.folders.encoder));
        let max_length = self.tokenizer.max_length();
        Ok(encode_each(texts, observer, |text, observer| {
            let encoding = self.tokenizer.encode(text, max_length);
            warn_of_dropped(&encoding, &format!("the {max_length} tokens that CLIP reads"), observer);
            encoder.forward(&encoding.padded(max_length, self.tokenizer.pad_id()), clip_skip)
        }))
    }
}

/// Every id must have an embedding; that there are more embeddings than ids is common.
fn check_vocabulary(ids: usize, embeddings: usize) -> Result<()> {
    if ids <= embeddings {
        return Ok(());
    }
    must_fit("tokenizer's and text encoder's vocabulary", ids, embeddings)
}

fn warn_of_dropped(encoding: &Encoding, limit: &str, observer: &mut dyn Observer) {
    if let Some(dropped) = &encoding.dropped {
        observer.warn(&format!("the prompt is longer than {limit}, this part was cut off: `{dropped}`"));
    }
}
