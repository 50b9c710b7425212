//! Converts text to token ids; each tokenizer has its own file.
//!
//! Each text encoder names the tokenizer that it was trained with. Code shared by several tokenizers (such as reading
//! `tokenizer_config.json`) is in a module of its own.

mod bert;
mod charsmap;
mod clip;
mod config;
mod sentencepiece;
mod t5;

use std::path::Path;

use xdit_core::Result;

pub use bert::BertTokenizer;
pub use clip::ClipTokenizer;
pub use t5::T5Tokenizer;

/// Converts text to ids.
pub trait Tokenizer: Sized {
    /// Loads the `tokenizer` folder of a checkpoint.
    ///
    /// # Errors
    /// If its files are missing, malformed or too large.
    fn load(dir: &Path) -> Result<Self>;

    /// The ids of `text` with its special tokens, cut to `max_length` including these.
    fn encode(&self, text: &str, max_length: usize) -> Encoding;

    /// The id used to pad texts.
    fn pad_id(&self) -> u32;

    /// The number of ids, including added tokens; the text encoder's table may have more rows.
    fn vocab_size(&self) -> usize;
}

/// The ids of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids with their special tokens, without padding, and no more than requested.
    pub ids: Vec<u32>,
    /// The end of the text that did not fit, decoded from the dropped ids; `None` if all of the text fitted.
    pub dropped: Option<String>,
}

impl Encoding {
    /// The ids, followed by copies of `pad_id` up to `length`.
    ///
    /// Used by models that were trained on unmasked padding, for which the padding is part of the text.
    pub fn padded(&self, length: usize, pad_id: u32) -> Vec<u32> {
        let padding = std::iter::repeat_n(pad_id, length.saturating_sub(self.ids.len()));
        self.ids.iter().copied().chain(padding).collect()
    }
}
