//! The tokenizer of T5 and mT5, text encoders of most models.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use tokenizers::Tokenizer as Pipeline;
use tokenizers::models::unigram::Unigram;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use xdit_core::{Error, Result};

use super::charsmap::precompiled;
use super::config::{AddedToken, TokenizerConfig, read, read_json, unreadable};
use super::sentencepiece::{Model, PieceKind};
use super::{Encoding, Tokenizer};

/// The id of `<unk>` in every T5 vocabulary, even if the sentencepiece trainer recorded another.
const UNK_ID: usize = 2;
/// The default number of sentinels beyond the sentencepiece vocabulary.
const EXTRA_IDS: u32 = 100;
/// More sentinels than any vocabulary has.
const MAX_EXTRA_IDS: u32 = 1 << 16;
/// A limit on the length of a piece, which is also the depth of the model's trie. Published vocabularies stay below
/// 64 bytes.
const MAX_PIECE_BYTES: usize = 1024;

/// Converts text to T5's ids, with the same result as `transformers`' `T5Tokenizer`.
///
/// Special tokens written in the text (`</s>`, `<extra_id_0>`) are cut out first and converted to their ids. The
/// text between them is normalized with the rules of the sentencepiece model and split at white space. Each word is
/// prefixed with `▁` and divided into the pieces with the best total score. If the vocabulary has a piece for each byte,
/// as mT5's has, a character without pieces becomes its bytes, as in sentencepiece; the class in `transformers` makes it
/// `<unk>`.
///
/// Sentencepiece itself gives the same ids for ordinary text. It differs for words that have two divisions with the
/// same score, for letters with several combining marks, and in its lack of special tokens.
///
/// # Source
/// `T5Tokenizer` in `transformers/models/t5/tokenization_t5.py` (5.23), and `convert_to_native_format` in
/// `tokenization_utils_tokenizers.py` for the choice of files.
pub struct T5Tokenizer {
    tokenizer: Pipeline,
    eos_id: u32,
    pad_id: u32,
    /// Whether decoding removes the space before punctuation.
    tidy_spaces: bool,
}

impl Tokenizer for T5Tokenizer {
    /// Loads the `tokenizer` folder of a checkpoint.
    ///
    /// The vocabulary and the normalizer are read from `tokenizer.json` if it exists, and otherwise from
    /// `spiece.model`. The order is that of `transformers`; it means that a vocabulary extended after training is
    /// used in full. Nothing else is read from `tokenizer.json`, because its pre-tokenizer differs from the one
    /// that the class in `transformers` builds (for example, only the class splits words at U+0085). Special tokens
    /// are read from `tokenizer_config.json`, if it exists.
    ///
    /// # Errors
    /// If neither file exists, or a file is truncated, malformed or larger than 64 MiB.
    fn load(dir: &Path) -> Result<Self> {
        let config = TokenizerConfig::load(dir)?;
        let extra_ids = config.extra_ids.unwrap_or(EXTRA_IDS);
        if extra_ids > MAX_EXTRA_IDS {
            let reason = format!("`extra_ids` is {extra_ids}, more than {MAX_EXTRA_IDS}");
            return Err(unreadable(&dir.join("tokenizer_config.json"), reason));
        }
        let vocabulary = Vocabulary::load(dir, extra_ids)?;
        let path = vocabulary.path.clone();
        Self::build(vocabulary, config).map_err(|reason| unreadable(&path, reason))
    }

    /// The ids of `text`, followed by `</s>`, cut to `max_length`.
    ///
    /// The rest of the text is returned as `dropped`, so that the pipeline can warn about it. With `max_length` 0
    /// there is no room even for `</s>`.
    ///
    /// # Source
    /// `encode_prompt` in `diffusers/pipelines/pixart_alpha/pipeline_pixart_alpha.py`.
    fn encode(&self, text: &str, max_length: usize) -> Encoding {
        let encoding =
            self.tokenizer.encode_fast(text, false).expect("a model with an unknown token encodes any text");
        let all = encoding.get_ids();
        let (kept, cut) = all.split_at(all.len().min(max_length.saturating_sub(1)));
        let ids = kept.iter().copied().chain([self.eos_id]).take(max_length).collect();
        Encoding { ids, dropped: (!cut.is_empty()).then(|| self.decode(cut)) }
    }

    /// The id used to pad the texts of a batch to the same length.
    fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// The number of ids, including added tokens; the text encoder's table may have more rows.
    fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}

impl T5Tokenizer {
    fn build(vocabulary: Vocabulary, config: TokenizerConfig) -> Result<Self, String> {
        let named = |token: &Option<AddedToken>, name: &str| {
            token.clone().unwrap_or_else(|| AddedToken::special(name))
        };
        let eos = named(&config.eos_token, "</s>");
        let pad = named(&config.pad_token, "<pad>");
        let unk = named(&config.unk_token, "<unk>");
        let extra = (0..config.extra_ids.unwrap_or(EXTRA_IDS))
            .map(|i| AddedToken::special(format!("<extra_id_{i}>")));

        // The order matters: the first mention of a token determines its stripping.
        let mut added: Vec<AddedToken> = match config.added_tokens_decoder {
            Some(tokens) => tokens.into_values().collect(),
            None => vocabulary.added,
        };
        added.extend([eos.clone(), unk, pad.clone()]);
        added.extend(vocabulary.symbols);
        added.extend(config.additional_special_tokens.unwrap_or_default());
        added.extend(extra);
        let mut seen = std::collections::HashSet::new();
        added.retain(|token| seen.insert(token.content().to_owned()));

        let metaspace = Metaspace::new('▁', PrependScheme::Always, true);
        let byte_fallback = has_all_bytes(&vocabulary.pieces);
        let model = Unigram::from(vocabulary.pieces, Some(UNK_ID), byte_fallback)
            .map_err(|error| error.to_string())?;
        let mut tokenizer = Pipeline::new(model);
        if !vocabulary.charsmap.is_empty() {
            let normalizer = precompiled(&vocabulary.charsmap)?;
            tokenizer.with_normalizer(Some(normalizer)).map_err(|error| error.to_string())?;
        }
        tokenizer
            .with_pre_tokenizer(Some(Sequence::new(vec![WhitespaceSplit.into(), metaspace.clone().into()])));
        tokenizer.with_decoder(Some(metaspace));
        tokenizer.add_tokens(added.into_iter().map(|token| token.0)).map_err(|error| error.to_string())?;

        let id = |token: &AddedToken| {
            tokenizer
                .token_to_id(token.content())
                .ok_or_else(|| format!("it has no token `{}`", token.content()))
        };
        let (eos_id, pad_id) = (id(&eos)?, id(&pad)?);
        Ok(Self {
            tokenizer,
            eos_id,
            pad_id,
            tidy_spaces: config.clean_up_tokenization_spaces.unwrap_or(false),
        })
    }

    /// The text of `ids`, including special tokens.
    fn decode(&self, ids: &[u32]) -> String {
        let text = self.tokenizer.decode(ids, false).expect("decoding only joins pieces");
        if self.tidy_spaces { tidy_spaces(text) } else { text }
    }
}

/// Whether there is a piece for each byte: `<0x00>` to `<0xFF>`.
fn has_all_bytes(pieces: &[(String, f64)]) -> bool {
    let bytes: std::collections::HashSet<&str> =
        pieces.iter().map(|(text, _)| text.as_str()).filter(|text| text.starts_with("<0x")).collect();
    (0..=u8::MAX).all(|byte| bytes.contains(&*format!("<0x{byte:02X}>")))
}

/// Removes the spaces that splitting inserted before punctuation and English contractions.
///
/// # Source
/// `clean_up_tokenization` in `transformers/tokenization_utils_base.py`.
fn tidy_spaces(text: String) -> String {
    let rules = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    rules.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

/// The data that both kinds of vocabulary files contain.
struct Vocabulary {
    path: PathBuf,
    /// Pieces and their scores; the index is the id.
    pieces: Vec<(String, f64)>,
    charsmap: Vec<u8>,
    /// Added tokens, used if the config lists none.
    added: Vec<AddedToken>,
    /// The control and user-defined pieces of a sentencepiece model.
    symbols: Vec<AddedToken>,
}

impl Vocabulary {
    fn load(dir: &Path, extra_ids: u32) -> Result<Self> {
        let (json, spiece) = (dir.join("tokenizer.json"), dir.join("spiece.model"));
        let vocabulary = if let Some(file) = read_json(&json)? {
            Self::from_json(file, &json).map_err(|reason| unreadable(&json, reason))?
        } else if let Some(bytes) = read(&spiece)? {
            let model = Model::parse(&bytes).map_err(|reason| unreadable(&spiece, reason))?;
            Self::from_sentencepiece(model, extra_ids, spiece)
        } else {
            return Err(Error::failure(format!("no T5 vocabulary in `{}`", dir.display())).hint(
                "download `tokenizer.json` or `spiece.model` from the `tokenizer` folder of a checkpoint",
            ));
        };
        vocabulary.check().map_err(|reason| unreadable(&vocabulary.path, reason))?;
        Ok(vocabulary)
    }

    fn from_sentencepiece(model: Model, extra_ids: u32, path: PathBuf) -> Self {
        let symbol = |text: &String, special| {
            AddedToken(tokenizers::AddedToken::from(text, special).normalized(false))
        };
        let symbols = model.pieces.iter().filter_map(|piece| match piece.kind {
            PieceKind::Normal => None,
            PieceKind::Control => Some(symbol(&piece.text, true)),
            PieceKind::UserDefined => Some(symbol(&piece.text, false)),
        });
        let symbols = symbols.collect();
        // The sentinels follow the vocabulary in reverse order.
        let sentinels = (0..extra_ids).rev().map(|i| (format!("<extra_id_{i}>"), 0.0));
        let pieces = model.pieces.into_iter().map(|piece| (piece.text, f64::from(piece.score)));
        Self {
            path,
            pieces: pieces.chain(sentinels).collect(),
            charsmap: model.charsmap,
            added: Vec::new(),
            symbols,
        }
    }

    fn from_json(file: TokenizerJson, path: &Path) -> Result<Self, String> {
        let charsmap = match file.normalizer.as_ref().and_then(Normalizer::charsmap) {
            Some(text) => BASE64_STANDARD.decode(text).map_err(|_| "its normalizer is not base64")?,
            None => Vec::new(),
        };
        let (pieces, added) = (file.model.vocab, file.added_tokens);
        Ok(Self { path: path.to_owned(), pieces, charsmap, added, symbols: Vec::new() })
    }

    fn check(&self) -> Result<(), String> {
        if self.pieces.len() <= UNK_ID {
            return Err(format!(
                "it has {} pieces, too few for `<pad>`, `</s>` and `<unk>`",
                self.pieces.len()
            ));
        }
        match self.pieces.iter().find(|(text, score)| text.len() > MAX_PIECE_BYTES || !score.is_finite()) {
            Some((text, _)) if text.len() > MAX_PIECE_BYTES => {
                Err(format!("it has a piece of {} bytes, and the limit is {MAX_PIECE_BYTES}", text.len()))
            }
            Some((text, score)) => Err(format!("the score of `{text}` is {score}")),
            None => Ok(()),
        }
    }
}

/// The parts of `tokenizer.json` that are used.
#[derive(Deserialize)]
struct TokenizerJson {
    model: JsonModel,
    #[serde(default)]
    normalizer: Option<Normalizer>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct JsonModel {
    vocab: Vec<(String, f64)>,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Normalizer {
    Precompiled {
        precompiled_charsmap: String,
    },
    Sequence {
        normalizers: Vec<Normalizer>,
    },
    #[serde(other)]
    Other,
}

impl Normalizer {
    /// The first precompiled charsmap, in base64.
    fn charsmap(&self) -> Option<&str> {
        match self {
            Self::Precompiled { precompiled_charsmap } => Some(precompiled_charsmap),
            Self::Sequence { normalizers } => normalizers.iter().find_map(Self::charsmap),
            Self::Other => None,
        }
    }
}
