//! The text encoders of a checkpoint, each with its tokenizer. They are opened together and loaded on first use.

use std::collections::HashMap;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use xdit_core::config::Config;
use xdit_core::finite;
use xdit_core::pipeline::{Cancel, Keep, LoadOptions, Observer, Phase, Step};
use xdit_core::weights::Weights;
use xdit_core::{Error, Result};

use crate::bert::{BertConfig, BertModel};
use crate::clip::{ClipOutput, ClipTextConfig, ClipTextModel};
use crate::component::{Component, ModelIndex};
use crate::t5::{T5Config, T5Encoder};
use crate::tokenizer::{BertTokenizer, ClipTokenizer, T5Tokenizer, Tokenizer};

/// The maximum number of texts whose encodings are kept for the next request.
const MAX_KNOWN: usize = 32;
/// The number of characters of a text that a warning quotes.
const MAX_SHOWN: usize = 80;

/// The folders of a text encoder.
#[derive(Clone, Copy, Debug)]
pub struct Folders {
    /// The folder of the model.
    pub encoder: &'static str,
    /// The folder of its tokenizer.
    pub tokenizer: &'static str,
}

impl Folders {
    /// The folders of the first, second and third text encoder of a checkpoint.
    pub const ALL: [Self; 3] = [
        Self { encoder: "text_encoder", tokenizer: "tokenizer" },
        Self { encoder: "text_encoder_2", tokenizer: "tokenizer_2" },
        Self { encoder: "text_encoder_3", tokenizer: "tokenizer_3" },
    ];
}

/// The padding of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// No padding, for models that mask it: masked padding does not change the states of the text.
    None,
    /// Padding up to the maximum length, to which the model attends.
    Seen,
    /// Padding up to a number of tokens, which is masked, and whose states are used nevertheless.
    Masked {
        /// The number of tokens. A longer text stays as it is.
        tokens: usize,
    },
}

/// The context in which the texts of a request are encoded.
pub struct Desk<'a> {
    /// The device that runs the encoders.
    pub device: &'a Device,
    /// Whether encoders, and the encodings of recent texts, are kept for the next request.
    pub keep: Keep,
    /// Cancels the request.
    pub cancel: &'a Cancel,
    /// Receives progress and warnings.
    pub observer: &'a mut dyn Observer,
}

/// A kind of text encoder.
pub trait TextModel: Sized {
    /// The options of its `config.json`.
    type Config;
    /// Its tokenizer.
    type Tokenizer: Tokenizer;
    /// The encoding of a text.
    type Encoding: Clone;

    /// The supported classes of the tokenizer.
    const TOKENIZERS: &'static [&'static str];

    /// The number of rows of the embedding.
    fn vocab_size(config: &Self::Config) -> usize;

    /// Encodes a text.
    fn encode(&self, text: &Ids) -> Self::Encoding;

    /// Fails if a value is not finite; `check` checks one tensor.
    ///
    /// # Errors
    /// Those of `check`.
    fn check(encoding: &Self::Encoding, check: impl Fn(Tensor<3>) -> Result<()>) -> Result<()>;
}

/// A text as a model gets it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ids {
    /// The ids of its tokens and of the padding.
    pub ids: Vec<u32>,
    /// The number of tokens that are attended to.
    pub visible: usize,
    /// The number of the encoder's layers to skip.
    pub skip: usize,
}

/// A text encoder with its tokenizer: its weights, and the encodings of recent texts.
pub struct Text<M: TextModel> {
    folders: Folders,
    tokenizer: M::Tokenizer,
    component: Component<M::Config>,
    load: fn(&M::Config, &Weights) -> Result<M>,
    held: Option<M>,
    known: HashMap<Ids, M::Encoding>,
}

/// T5 with its tokenizer.
pub type T5Text = Text<T5Encoder>;
/// CLIP with its tokenizer.
pub type ClipText = Text<ClipTextModel>;
/// BERT with its tokenizer.
pub type BertText = Text<BertModel>;

impl<M: TextModel> Text<M> {
    /// Opens the tokenizer and checks the model, which must be of `class`.
    fn open_class(
        index: &ModelIndex,
        options: &LoadOptions,
        folders: Folders,
        class: &str,
        read: fn(Config) -> Result<M::Config>,
        load: fn(&M::Config, &Weights) -> Result<M>,
    ) -> Result<Self> {
        let folder = index.folder(folders.encoder, &[class])?;
        let component = Component::open(&folder, "model", options, read, |_| options.dtype, load)?;
        let tokenizer = M::Tokenizer::load(&index.folder(folders.tokenizer, M::TOKENIZERS)?)?;
        let (ids, rows) = (tokenizer.vocab_size(), M::vocab_size(&component.config));
        if ids > rows {
            return Err(Error::failure(format!(
                "`{}` has {ids} ids, `{}` embeddings of {rows}",
                folders.tokenizer, folders.encoder
            ))
            .hint("the components of this checkpoint come from different models"));
        }
        Ok(Self { folders, tokenizer, component, load, held: None, known: HashMap::new() })
    }

    /// The options of the model.
    pub fn config(&self) -> &M::Config {
        &self.component.config
    }

    /// The number of tokens of `text`, which is cut to `max_length`.
    pub fn tokens(&self, text: &str, max_length: usize) -> usize {
        self.tokenizer.encode(text, max_length).ids.len()
    }

    /// Encodes each of `texts`, whose tokens are cut to `max_length` and then padded; the number is that of the layers to
    /// skip. Equal texts are encoded once, and texts of the previous request not again.
    fn encode_all(
        &mut self,
        texts: &[(&str, Padding, usize)],
        max_length: usize,
        desk: &mut Desk<'_>,
    ) -> Result<Vec<M::Encoding>> {
        let texts = self.ids(texts, max_length, desk.observer);
        let before = std::mem::take(&mut self.known);
        let known = match texts.iter().all(|text| before.contains_key(text)) {
            true => before,
            false => {
                self.load(desk)?;
                let known = self.encode_new(&texts, &before, desk);
                if !desk.keep.keeps_text_encoders() {
                    self.held = None;
                    // The device keeps freed memory for this thread, and ranks are others.
                    desk.device.memory_cleanup();
                }
                known?
            }
        };
        let encodings: Vec<_> = texts.iter().map(|text| known[text].clone()).collect();
        if desk.keep.keeps_transformer() {
            self.known = known.into_iter().take(MAX_KNOWN).collect();
        }
        let what = || format!("the values of `{}`", self.folders.encoder);
        let check = |values: Tensor<3>| finite::check(&values, self.component.dtype, what);
        encodings.iter().try_for_each(|encoding| M::check(encoding, check))?;
        Ok(encodings)
    }

    fn load(&mut self, desk: &mut Desk<'_>) -> Result<()> {
        if self.held.is_none() {
            let phase = Phase::Load(self.folders.encoder);
            desk.observer.begin(phase, Instant::now());
            if let Some(extra) = &self.component.extra {
                desk.observer.warn(extra);
            }
            let weights = self.component.weights(desk.device);
            self.held = Some((self.load)(&self.component.config, &weights)?);
            desk.observer.end(phase, Instant::now());
        }
        Ok(())
    }

    /// The encodings of `texts`; those in `before` are reused.
    fn encode_new(
        &self,
        texts: &[Ids],
        before: &HashMap<Ids, M::Encoding>,
        desk: &mut Desk<'_>,
    ) -> Result<HashMap<Ids, M::Encoding>> {
        let encoder = self.held.as_ref().expect("loaded before");
        let mut known = HashMap::new();
        desk.observer.begin(Phase::Encode, Instant::now());
        for (index, text) in texts.iter().enumerate() {
            desk.cancel.check()?;
            if !known.contains_key(text) {
                let encoding = before.get(text).cloned().unwrap_or_else(|| encoder.encode(text));
                known.insert(text.clone(), encoding);
            }
            let step = Step { phase: Phase::Encode, done: index + 1, of: texts.len() };
            desk.observer.step(step, Instant::now());
        }
        desk.observer.end(Phase::Encode, Instant::now());
        Ok(known)
    }

    /// The ids of each of `texts`. Warns about texts that were cut.
    fn ids(
        &self,
        texts: &[(&str, Padding, usize)],
        max_length: usize,
        observer: &mut dyn Observer,
    ) -> Vec<Ids> {
        let mut seen: HashMap<&str, Vec<u32>> = HashMap::new();
        let mut own = |text| {
            let new = || {
                let encoding = self.tokenizer.encode(text, max_length);
                if let Some(dropped) = &encoding.dropped {
                    observer.warn(&format!(
                        "the prompt is longer than the {max_length} tokens that go to `{}`, this part was cut off: {}",
                        self.folders.encoder,
                        shortened(dropped)
                    ));
                }
                encoding.ids
            };
            seen.entry(text).or_insert_with(new).clone()
        };
        let padded = |&(text, padding, skip)| {
            let mut ids = own(text);
            let own = ids.len();
            let (all, visible) = match padding {
                Padding::None => (own, own),
                Padding::Seen => (own.max(max_length), own.max(max_length)),
                Padding::Masked { tokens } => (own.max(tokens), own),
            };
            ids.resize(all, self.tokenizer.pad_id());
            Ids { ids, visible, skip }
        };
        texts.iter().map(padded).collect()
    }
}

/// The beginning of `text` in quotes, on one line, and the number of characters left out.
fn shortened(text: &str) -> String {
    let printable = |char: char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char };
    let shown: String = text.chars().take(MAX_SHOWN).map(printable).collect();
    match text.chars().count().saturating_sub(MAX_SHOWN) {
        0 => format!("`{shown}`"),
        more => format!("`{shown}…` and {more} more characters"),
    }
}

impl TextModel for T5Encoder {
    type Config = T5Config;
    type Tokenizer = T5Tokenizer;
    type Encoding = Tensor<3>;

    const TOKENIZERS: &'static [&'static str] = &["T5Tokenizer", "T5TokenizerFast"];

    fn vocab_size(config: &T5Config) -> usize {
        config.vocab_size
    }

    fn encode(&self, text: &Ids) -> Tensor<3> {
        self.forward_masked(&text.ids, text.visible)
    }

    fn check(states: &Tensor<3>, check: impl Fn(Tensor<3>) -> Result<()>) -> Result<()> {
        check(states.clone())
    }
}

impl T5Text {
    /// Opens the tokenizer and checks the model.
    ///
    /// # Errors
    /// If anything in them is missing, malformed or inconsistent.
    pub fn open(index: &ModelIndex, options: &LoadOptions, folders: Folders) -> Result<Self> {
        Self::open_class(index, options, folders, "T5EncoderModel", T5Config::read, T5Encoder::load)
    }

    /// The number of features of a text token.
    pub fn features(&self) -> usize {
        self.config().d_model
    }

    /// The states of each text, `[1, n, features]`. Texts are cut to `max_length` tokens before padding.
    ///
    /// # Errors
    /// If weights cannot be read, values are not finite, or the request is cancelled.
    pub fn encode(
        &mut self,
        texts: &[&str],
        (max_length, padding): (usize, Padding),
        desk: &mut Desk<'_>,
    ) -> Result<Vec<Tensor<3>>> {
        let texts: Vec<_> = texts.iter().map(|text| (*text, padding)).collect();
        self.encode_each(&texts, max_length, desk)
    }

    /// As [`encode`](Self::encode), with padding of its own for each text.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_each(
        &mut self,
        texts: &[(&str, Padding)],
        max_length: usize,
        desk: &mut Desk<'_>,
    ) -> Result<Vec<Tensor<3>>> {
        let texts: Vec<_> = texts.iter().map(|&(text, padding)| (text, padding, 0)).collect();
        self.encode_all(&texts, max_length, desk)
    }
}

impl TextModel for ClipTextModel {
    type Config = ClipTextConfig;
    type Tokenizer = ClipTokenizer;
    type Encoding = ClipOutput;

    const TOKENIZERS: &'static [&'static str] = &["CLIPTokenizer", "CLIPTokenizerFast"];

    fn vocab_size(config: &ClipTextConfig) -> usize {
        config.vocab_size
    }

    fn encode(&self, text: &Ids) -> ClipOutput {
        self.forward(&text.ids, text.skip)
    }

    fn check(output: &ClipOutput, check: impl Fn(Tensor<3>) -> Result<()>) -> Result<()> {
        check(output.hidden.clone())?;
        check(output.pooled.clone().unsqueeze())
    }
}

impl ClipText {
    /// Opens the tokenizer and checks the model. With `projection`, the pooled output is projected
    /// (`CLIPTextModelWithProjection`).
    ///
    /// # Errors
    /// If anything in them is missing, malformed or inconsistent.
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
        let this = Self::open_class(index, options, folders, class, ClipTextConfig::read, load)?;
        check_positions(folders, this.text_tokens(), this.config().max_position_embeddings)?;
        Ok(this)
    }

    /// The number of tokens of each text, padding included.
    pub fn text_tokens(&self) -> usize {
        self.tokenizer.max_length()
    }

    /// Encodes each text, padded to the length that the model was trained with. The number beside a text is the number
    /// of layers to skip for it.
    ///
    /// # Errors
    /// If weights cannot be read, values are not finite, or the request is cancelled.
    pub fn encode(&mut self, texts: &[(&str, usize)], desk: &mut Desk<'_>) -> Result<Vec<ClipOutput>> {
        let texts: Vec<_> = texts.iter().map(|&(text, skip)| (text, Padding::Seen, skip)).collect();
        self.encode_all(&texts, self.text_tokens(), desk)
    }
}

impl TextModel for BertModel {
    type Config = BertConfig;
    type Tokenizer = BertTokenizer;
    type Encoding = Tensor<3>;

    const TOKENIZERS: &'static [&'static str] = &["BertTokenizer", "BertTokenizerFast"];

    fn vocab_size(config: &BertConfig) -> usize {
        config.vocab_size
    }

    fn encode(&self, text: &Ids) -> Tensor<3> {
        self.forward(&text.ids)
    }

    fn check(states: &Tensor<3>, check: impl Fn(Tensor<3>) -> Result<()>) -> Result<()> {
        check(states.clone())
    }
}

impl BertText {
    /// Opens the tokenizer and checks the model, which gets texts of at most `max_length` tokens.
    ///
    /// # Errors
    /// If anything in them is missing, malformed or inconsistent.
    pub fn open(
        index: &ModelIndex,
        options: &LoadOptions,
        folders: Folders,
        max_length: usize,
    ) -> Result<Self> {
        let this = Self::open_class(index, options, folders, "BertModel", BertConfig::read, BertModel::load)?;
        check_positions(folders, max_length, this.config().max_position_embeddings)?;
        Ok(this)
    }

    /// The states of each text, `[1, n, hidden_size]`, without padding. Texts are cut to `max_length` tokens.
    ///
    /// # Errors
    /// If weights cannot be read, values are not finite, or the request is cancelled.
    pub fn encode(
        &mut self,
        texts: &[&str],
        max_length: usize,
        desk: &mut Desk<'_>,
    ) -> Result<Vec<Tensor<3>>> {
        let texts: Vec<_> = texts.iter().map(|&text| (text, Padding::None, 0)).collect();
        self.encode_all(&texts, max_length, desk)
    }
}

/// Checks that a model has positions for all tokens of a text.
fn check_positions(folders: Folders, length: usize, positions: usize) -> Result<()> {
    if length <= positions {
        return Ok(());
    }
    Err(Error::failure(format!(
        "`{}` makes texts of {length} tokens, `{}` has {positions} positions",
        folders.tokenizer, folders.encoder
    ))
    .hint("the components of this checkpoint come from different models"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_shortened() {
        let most = "é".repeat(MAX_SHOWN);
        assert_eq!(shortened("a\u{7}b"), "`a\u{fffd}b`");
        assert_eq!(shortened(&most), format!("`{most}`"));
        assert_eq!(shortened(&"é".repeat(2_000_000)), format!("`{most}…` and 1999920 more characters"));
    }
}
