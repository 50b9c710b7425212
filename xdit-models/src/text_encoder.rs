//! Text encoders of a checkpoint, each with its tokenizer: opened together, loaded only while they encode.

use burn::tensor::Tensor;
use xdit_core::pipeline::{LoadOptions, Observer, Phase};
use xdit_core::weights::Weights;
use xdit_core::{Error, Result};

use crate::clip::{ClipOutput, ClipTextConfig, ClipTextModel};
use crate::component::{Component, ModelIndex};
use crate::t5::{T5Config, T5Encoder};
use crate::tokenizer::{ClipTokenizer, Encoding, T5Tokenizer};

/// The folders of a text encoder.
#[derive(Clone, Copy, Debug)]
pub struct Folders {
    /// Of the model.
    pub encoder: &'static str,
    /// Of its tokenizer.
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

/// T5 with its tokenizer.
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
        let tokenizer =
            T5Tokenizer::load(&index.folder(folders.tokenizer, &["T5Tokenizer", "T5TokenizerFast"])?)?;
        check_vocabulary(folders, tokenizer.vocab_size(), encoder.config.vocab_size)?;
        Ok(Self { folders, tokenizer, encoder })
    }

    /// Features of a text token.
    pub fn features(&self) -> usize {
        self.encoder.config.d_model
    }

    /// States `[1, n, features]` of each text, of at most `max_length` tokens before padding.
    ///
    /// # Errors
    /// If weights cannot be read.
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
        Ok(encode_each(texts, observer, |&text, observer| {
            let encoding = self.tokenizer.encode(text, max_length);
            warn_of_cut(self.folders, &encoding, max_length, observer);
            encoder.forward(&match padding {
                Padding::None => encoding.ids,
                Padding::Seen => encoding.padded(max_length, self.tokenizer.pad_id()),
            })
        }))
    }
}

/// CLIP with its tokenizer.
pub struct ClipText {
    folders: Folders,
    tokenizer: ClipTokenizer,
    encoder: Component<ClipTextConfig>,
    load: fn(&ClipTextConfig, &Weights) -> Result<ClipTextModel>,
}

impl ClipText {
    /// Opens both; `projection` says whether the pooled output is projected (`CLIPTextModelWithProjection`).
    ///
    /// # Errors
    /// If anything in them is missing, malformed, or does not fit together.
    pub fn open(
        index: &ModelIndex,
        options: &LoadOptions,
        folders: Folders,
        projection: bool,
    ) -> Result<Self> {
        let (class, load): (_, fn(&_, &_) -> _) = match projection {
            true => ("CLIPTextModelWithProjection", ClipTextModel::load_with_projection),
            false => ("CLIPTextModel", ClipTextModel::load),
        };
        let folder = index.folder(folders.encoder, &[class])?;
        let encoder =
            Component::open(&folder, "model", options, ClipTextConfig::read, |_| options.dtype, load)?;
        let tokenizer =
            ClipTokenizer::load(&index.folder(folders.tokenizer, &["CLIPTokenizer", "CLIPTokenizerFast"])?)?;
        check_vocabulary(folders, tokenizer.vocab_size(), encoder.config.vocab_size)?;
        let (length, positions) = (tokenizer.max_length(), encoder.config.max_position_embeddings);
        if length > positions {
            return Err(Error::failure(format!(
                "`{}` makes texts of {length} tokens, `{}` has {positions} positions",
                folders.tokenizer, folders.encoder
            ))
            .hint("the components of this checkpoint come from different models"));
        }
        Ok(Self { folders, tokenizer, encoder, load })
    }

    /// The model's options.
    pub fn config(&self) -> &ClipTextConfig {
        &self.encoder.config
    }

    /// Tokens of each text, padding included.
    pub fn text_tokens(&self) -> usize {
        self.tokenizer.max_length()
    }

    /// What the model makes of each text, padded to the length that it was trained with; of each text so many layers
    /// are skipped as stands beside it.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn encode(
        &self,
        texts: &[(&str, usize)],
        options: &LoadOptions,
        observer: &mut dyn Observer,
    ) -> Result<Vec<ClipOutput>> {
        observer.begin(Phase::Load(self.folders.encoder));
        let encoder = (self.load)(&self.encoder.config, &self.encoder.weights(options))?;
        observer.end(Phase::Load(self.folders.encoder));
        let length = self.tokenizer.max_length();
        Ok(encode_each(texts, observer, |&(text, clip_skip), observer| {
            let encoding = self.tokenizer.encode(text, length);
            warn_of_cut(self.folders, &encoding, length, observer);
            encoder.forward(&encoding.padded(length, self.tokenizer.pad_id()), clip_skip)
        }))
    }
}

/// Encodes each of `texts`; equal ones only once.
fn encode_each<T: PartialEq, E: Clone>(
    texts: &[T],
    observer: &mut dyn Observer,
    mut encode: impl FnMut(&T, &mut dyn Observer) -> E,
) -> Vec<E> {
    observer.begin(Phase::Encode);
    let mut embeddings: Vec<E> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let embedding = match texts[..index].iter().position(|other| other == text) {
            Some(known) => embeddings[known].clone(),
            None => encode(text, observer),
        };
        embeddings.push(embedding);
        observer.step(index + 1, texts.len());
    }
    observer.end(Phase::Encode);
    embeddings
}

fn warn_of_cut(folders: Folders, encoding: &Encoding, max_length: usize, observer: &mut dyn Observer) {
    if let Some(dropped) = &encoding.dropped {
        observer.warn(&format!(
            "the prompt is longer than the {max_length} tokens that go to `{}`, this part was cut off: `{dropped}`",
            folders.encoder
        ));
    }
}

fn check_vocabulary(folders: Folders, ids: usize, rows: usize) -> Result<()> {
    if ids <= rows {
        return Ok(());
    }
    Err(Error::failure(format!(
        "`{}` has {ids} ids, `{}` embeddings of {rows}",
        folders.tokenizer, folders.encoder
    ))
    .hint("the components of this checkpoint come from different models"))
}
