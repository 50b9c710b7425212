//! Text to token ids, one tokenizer a file.
//!
//! A tokenizer here is a plain struct with `load(dir)` and `encode(text, max_length)`; there is no trait, because a
//! pipeline recipe knows by name which tokenizer its text encoder was trained with. Files that more than one of them
//! reads (`tokenizer_config.json`) have their own module, so that a byte-pair or WordPiece tokenizer becomes a
//! sibling of [`t5`](T5Tokenizer) and touches nothing else.

mod charsmap;
mod config;
mod sentencepiece;
mod t5;

pub use t5::T5Tokenizer;

/// The ids of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids with the closing special token, not padded, at most as many as were asked for.
    pub ids: Vec<u32>,
    /// The end of the text that did not fit, decoded from the ids that were cut; `None` if everything fitted.
    pub dropped: Option<String>,
}
