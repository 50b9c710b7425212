//! The JSON files beside a vocabulary, and a size limit for files from untrusted sources.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use xdit_core::{Error, Result, files};

/// The size limit of a tokenizer file; published ones have at most 20 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The special tokens in `tokenizer_config.json`, or, in older checkpoints, in `special_tokens_map.json`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenizerConfig {
    /// The tokens that are cut out of the text before the model processes it, by id.
    #[serde(default)]
    pub added_tokens_decoder: Option<BTreeMap<u32, AddedToken>>,
    #[serde(default)]
    pub pad_token: Option<AddedToken>,
    #[serde(default)]
    pub bos_token: Option<AddedToken>,
    #[serde(default)]
    pub eos_token: Option<AddedToken>,
    #[serde(default)]
    pub unk_token: Option<AddedToken>,
    #[serde(default)]
    pub cls_token: Option<AddedToken>,
    #[serde(default)]
    pub sep_token: Option<AddedToken>,
    #[serde(default)]
    pub mask_token: Option<AddedToken>,
    #[serde(default)]
    pub additional_special_tokens: Option<Vec<AddedToken>>,
    /// The number of `<extra_id_N>` sentinels that T5 has beyond its sentencepiece vocabulary.
    #[serde(default)]
    pub extra_ids: Option<u32>,
    #[serde(default)]
    pub clean_up_tokenization_spaces: Option<bool>,
    #[serde(default)]
    pub model_max_length: Option<f64>,
    /// Whether BERT's text is put into lower case.
    #[serde(default)]
    pub do_lower_case: Option<bool>,
    /// Whether each Chinese character is a word for BERT.
    #[serde(default)]
    pub tokenize_chinese_chars: Option<bool>,
    /// Whether accents are removed from BERT's text; by default if it is put into lower case.
    #[serde(default)]
    pub strip_accents: Option<bool>,
}

impl TokenizerConfig {
    /// Reads `dir/tokenizer_config.json`; if the file is missing, every field is unset.
    ///
    /// `special_tokens_map.json` fills in unset fields, but only if the config does not list its added tokens: such
    /// a list is always complete.
    pub fn load(dir: &Path) -> Result<Self> {
        let mut config: Self = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        if config.added_tokens_decoder.is_none()
            && let Some(map) = read_json::<Self>(&dir.join("special_tokens_map.json"))?
        {
            config.pad_token = map.pad_token.or(config.pad_token);
            config.bos_token = map.bos_token.or(config.bos_token);
            config.eos_token = map.eos_token.or(config.eos_token);
            config.unk_token = map.unk_token.or(config.unk_token);
            config.cls_token = map.cls_token.or(config.cls_token);
            config.sep_token = map.sep_token.or(config.sep_token);
            config.mask_token = map.mask_token.or(config.mask_token);
            config.additional_special_tokens =
                map.additional_special_tokens.or(config.additional_special_tokens);
        }
        Ok(config)
    }
}

/// A token that is matched literally, before normalization; files contain it as a string or as an object.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "StringOrObject")]
pub(super) struct AddedToken(pub tokenizers::AddedToken);

#[derive(Deserialize)]
#[serde(untagged)]
enum StringOrObject {
    Content(String),
    Object {
        content: String,
        #[serde(default)]
        single_word: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
        normalized: Option<bool>,
        #[serde(default = "yes")]
        special: bool,
    },
}

fn yes() -> bool {
    true
}

impl AddedToken {
    /// A special token without stripping or normalization.
    pub fn special(content: impl Into<String>) -> Self {
        Self(tokenizers::AddedToken::from(content, true))
    }

    /// The text to match.
    pub fn content(&self) -> &str {
        &self.0.content
    }
}

impl From<StringOrObject> for AddedToken {
    fn from(token: StringOrObject) -> Self {
        match token {
            StringOrObject::Content(content) => Self::special(content),
            StringOrObject::Object { content, single_word, lstrip, rstrip, normalized, special } => Self(
                tokenizers::AddedToken::from(content, special)
                    .single_word(single_word)
                    .lstrip(lstrip)
                    .rstrip(rstrip)
                    .normalized(normalized.unwrap_or(!special)),
            ),
        }
    }
}

/// The bytes of a file, or `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    if path.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return Ok(None);
    }
    files::read(path, MAX_FILE_BYTES).map(Some)
}

/// The value in a JSON file, or `None` if the file does not exist.
pub(super) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    match read(path)? {
        Some(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| unreadable(path, error)),
        None => Ok(None),
    }
}

/// The error for a tokenizer file that exists but is not usable.
pub(super) fn unreadable(path: &Path, reason: impl Display) -> Error {
    Error::failure(format!("cannot read the tokenizer file `{}`: {reason}", path.display()))
        .hint("download the checkpoint's `tokenizer` folder again; the file may be truncated")
}
