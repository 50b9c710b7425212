//! The text encoders of a checkpoint, each with its tokenizer. They are opened together and loaded on first use.

use std::collections::HashMap;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use xdit_core::finite;
use xdit_core::pipeline::{Cancel, Keep, LoadOptions, Observer, Phase, Step};
use xdit_core::weights::Weights;
use xdit_core::{Error, Result};

use crate::clip::{ClipOutput, ClipTextConfig, ClipTextModel};
use crate::component::{Component, ModelIndex};
use crate::t5::{T5Config, T5Encoder};
use crate::tokenizer::{ClipTokenizer, Encoding, T5Tokenizer};

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

/// The padding of T5's texts.
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

/// A text encoder: its weights, and the encodings of recent texts.
struct Encoder<C, M, E> {
    folders: Folders,
    component: Component<C>,
    load: fn(&C, &Weights) -> Result<M>,
    held: Option<M>,
    /// The encodings by ids and skipped layers.
    known: HashMap<Ids, E>,
}

/// The ids of a text, and the number of the encoder's layers to skip (CLIP) or of the tokens attended to (T5).
type Ids = (Vec<u32>, usize);

impl<C, M, E: Clone> Encoder<C, M, E> {
    fn new(folders: Folders, component: Component<C>, load: fn(&C, &Weights) -> Result<M>) -> Self {
        Self { folders, component, load, held: None, known: HashMap::new() }
    }

    /// Encodes each of `texts`. Equal texts are encoded once, and texts of the previous request not again.
    fn encode(
        &mut self,
        texts: &[Ids],
        desk: &mut Desk<'_>,
        encode: impl Fn(&M, &Ids) -> E,
    ) -> Result<Vec<E>> {
        let before = std::mem::take(&mut self.known);
        let known = match texts.iter().all(|text| before.contains_key(text)) {
            true => before,
            false => {
                self.load(desk)?;
                let known = self.encode_new(texts, &before, desk, encode);
                if !desk.keep.keeps_text_encoders() {
                    self.held = None;
                    // The device keeps freed memory for this thread, and ranks are others.
                    desk.device.memory_cleanup();
                }
                known?
            }
        };
        let encodings = texts.iter().map(|text| known[text].clone()).collect();
        if desk.keep.keeps_transformer() {
            self.known = known.into_iter().take(MAX_KNOWN).collect();
        }
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
        before: &HashMap<Ids, E>,
        desk: &mut Desk<'_>,
        encode: impl Fn(&M, &Ids) -> E,
    ) -> Result<HashMap<Ids, E>> {
        let encoder = self.held.as_ref().expect("loaded before");
        let mut known = HashMap::new();
        desk.observer.begin(Phase::Encode, Instant::now());
        for (index, text) in texts.iter().enumerate() {
            desk.cancel.check()?;
            if !known.contains_key(text) {
                let encoding = before.get(text).cloned().unwrap_or_else(|| encode(encoder, text));
                known.insert(text.clone(), encoding);
            }
            let step = Step { phase: Phase::Encode, done: index + 1, of: texts.len() };
            desk.observer.step(step, Instant::now());
        }
        desk.observer.end(Phase::Encode, Instant::now());
        Ok(known)
    }

    /// Fails if the encoder's output is not finite.
    fn check<const D: usize>(&self, values: &Tensor<D>) -> Result<()> {
        finite::check(values, self.component.dtype, || format!("the values of `{}`", self.folders.encoder))
    }
}

/// The ids of each of `texts`, of which `tokenize` returns at most `max_length`. Warns about texts that were cut.
fn ids<'a>(
    texts: &[(&'a str, usize)],
    folders: Folders,
    max_length: usize,
    observer: &mut dyn Observer,
    tokenize: impl Fn(&str) -> (Encoding, Vec<u32>),
) -> Vec<Ids> {
    let mut seen: HashMap<&'a str, Vec<u32>> = HashMap::new();
    let mut ids = |&(text, layers)| {
        if let Some(ids) = seen.get(text) {
            return (ids.clone(), layers);
        }
        let (encoding, ids) = tokenize(text);
        if let Some(dropped) = &encoding.dropped {
            observer.warn(&format!(
                "the prompt is longer than the {max_length} tokens that go to `{}`, this part was cut off: {}",
                folders.encoder,
                shortened(dropped)
            ));
        }
        seen.insert(text, ids.clone());
        (ids, layers)
    };
    texts.iter().map(&mut ids).collect()
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

/// T5 with its tokenizer.
pub struct T5Text {
    tokenizer: T5Tokenizer,
    encoder: Encoder<T5Config, T5Encoder, Tensor<3>>,
}

impl T5Text {
    /// Opens the tokenizer and checks the model.
    ///
    /// # Errors
    /// If anything in them is missing, malformed or inconsistent.
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
        Ok(Self { tokenizer, encoder: Encoder::new(folders, encoder, T5Encoder::load) })
    }

    /// The number of features of a text token.
    pub fn features(&self) -> usize {
        self.encoder.component.config.d_model
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
        let plain: Vec<_> = texts.iter().map(|(text, _)| (*text, 0)).collect();
        let plain = ids(&plain, self.encoder.folders, max_length, desk.observer, |text| {
            let encoding = self.tokenizer.encode(text, max_length);
            let ids = encoding.ids.clone();
            (encoding, ids)
        });
        // Beside the ids is the number of tokens that are attended to.
        let padded = |((mut ids, _), (_, padding)): (Ids, &(&str, Padding))| {
            let own = ids.len();
            let (all, visible) = match *padding {
                Padding::None => (own, own),
                Padding::Seen => (own.max(max_length), own.max(max_length)),
                Padding::Masked { tokens } => (own.max(tokens), own),
            };
            ids.resize(all, self.tokenizer.pad_id());
            (ids, visible)
        };
        let texts: Vec<Ids> = plain.into_iter().zip(texts).map(padded).collect();
        let states = self
            .encoder
            .encode(&texts, desk, |encoder, (ids, visible)| encoder.forward_masked(ids, *visible))?;
        states.iter().try_for_each(|states| self.encoder.check(states))?;
        Ok(states)
    }

    /// The number of tokens of `text`, which is cut to `max_length`.
    pub fn tokens(&self, text: &str, max_length: usize) -> usize {
        self.tokenizer.encode(text, max_length).ids.len()
    }
}

/// CLIP with its tokenizer.
pub struct ClipText {
    tokenizer: ClipTokenizer,
    encoder: Encoder<ClipTextConfig, ClipTextModel, ClipOutput>,
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
        Ok(Self { tokenizer, encoder: Encoder::new(folders, encoder, load) })
    }

    /// The options of the model.
    pub fn config(&self) -> &ClipTextConfig {
        &self.encoder.component.config
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
        let length = self.tokenizer.max_length();
        let texts = ids(texts, self.encoder.folders, length, desk.observer, |text| {
            let encoding = self.tokenizer.encode(text, length);
            let ids = encoding.padded(length, self.tokenizer.pad_id());
            (encoding, ids)
        });
        let encode = |encoder: &ClipTextModel, (ids, skip): &Ids| encoder.forward(ids, *skip);
        let outputs = self.encoder.encode(&texts, desk, encode)?;
        for output in &outputs {
            self.encoder.check(&output.hidden)?;
            self.encoder.check(&output.pooled)?;
        }
        Ok(outputs)
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
