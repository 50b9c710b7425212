//! Converts text to token ids; each tokenizer has its own file.
//!
//! A tokenizer is a plain struct with `load(dir)` and `encode(text, max_length)`. There is no trait, because each
//! pipeline names the tokenizer that its text encoder was trained with. Code shared by several tokenizers (such as
//! reading `tokenizer_config.json`) is in a module of its own.

mod charsmap;
mod clip;
mod config;
mod sentencepiece;
mod t5;

pub use clip::ClipTokenizer;
pub use t5::T5Tokenizer;

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
