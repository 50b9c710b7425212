//! The JSON files beside a vocabulary, and reading files whose size nobody vouches for.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use serde::Deserialize;
use xdit_core::{Error, Result};

/// The largest file a tokenizer reads; published ones have at most 20 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What `tokenizer_config.json` (and, in older checkpoints, `special_tokens_map.json`) says about special tokens.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenizerConfig {
    /// Every token that is cut out of the text before the model sees it, by id.
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
    pub additional_special_tokens: Option<Vec<AddedToken>>,
    /// How many `<extra_id_N>` sentinels T5 has beyond its sentencepiece vocabulary.
    #[serde(default)]
    pub extra_ids: Option<u32>,
    #[serde(default)]
    pub clean_up_tokenization_spaces: Option<bool>,
    #[serde(default)]
    pub model_max_length: Option<f64>,
}

impl TokenizerConfig {
    /// Reads `dir/tokenizer_config.json`; without the file every field is unset.
    ///
    /// `special_tokens_map.json` fills what is unset, but only where the config does not list its added tokens: that
    /// list, where it exists, is complete.
    pub fn load(dir: &Path) -> Result<Self> {
        let mut config: Self = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        if config.added_tokens_decoder.is_none()
            && let Some(map) = read_json::<Self>(&dir.join("special_tokens_map.json"))?
        {
            config.pad_token = map.pad_token.or(config.pad_token);
            config.bos_token = map.bos_token.or(config.bos_token);
            config.eos_token = map.eos_token.or(config.eos_token);
            config.unk_token = map.unk_token.or(config.unk_token);
            config.additional_special_tokens =
                map.additional_special_tokens.or(config.additional_special_tokens);
        }
        Ok(config)
    }
}

/// A token that is matched as written, before normalization; files give it as a string or as an object.
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

    /// The text that is matched.
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

/// The bytes of a file, `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(path, error)),
    };
    if size > MAX_FILE_BYTES {
        return Err(unreadable(
            path,
            format!("{size} bytes, more than the {MAX_FILE_BYTES} a tokenizer file may have"),
        ));
    }
    std::fs::read(path).map(Some).map_err(|error| unreadable(path, error))
}

/// The value in a JSON file, `None` if the file does not exist.
pub(super) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    match read(path)? {
        Some(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| unreadable(path, error)),
        None => Ok(None),
    }
}

/// The error for a tokenizer file that is there and cannot be used.
pub(super) fn unreadable(path: &Path, reason: impl Display) -> Error {
    Error::failure(format!("cannot read the tokenizer file `{}`: {reason}", path.display())).hint(
        "fetch the checkpoint's `tokenizer` folder again; the file may be truncated or a Git LFS pointer",
    )
}
