//! Text to token ids, one tokenizer a file.
//!
//! A tokenizer here is a plain struct with `load(dir)` and `encode(text, max_length)`; there is no trait, because a
//! pipeline recipe knows by name which tokenizer its text encoder was trained with. Files that more than one of them
//! reads (`tokenizer_config.json`) have their own module.

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
    /// Token ids with the special tokens around them, not padded, at most as many as were asked for.
    pub ids: Vec<u32>,
    /// The end of the text that did not fit, decoded from the ids that were cut; `None` if everything fitted.
    pub dropped: Option<String>,
}

impl Encoding {
    /// The ids and, behind them, as many of `pad_id` as make `length` of them.
    ///
    /// For models that were trained on padding without a mask, to which the padding is part of the text.
    pub fn padded(&self, length: usize, pad_id: u32) -> Vec<u32> {
        let padding = std::iter::repeat_n(pad_id, length.saturating_sub(self.ids.len()));
        self.ids.iter().copied().chain(padding).collect()
    }
}
