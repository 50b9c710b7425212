//! The tokenizer of BERT, a text encoder of HunyuanDiT.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::Tokenizer as Pipeline;
use tokenizers::decoders::wordpiece::WordPiece as Decoder;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use xdit_core::{Error, Result};

use super::config::{AddedToken, TokenizerConfig, read, read_json, unreadable};
use super::{Encoding, Tokenizer};

/// The prefix of a word's further tokens in the vocabulary.
const CONTINUATION: &str = "##";

/// Converts text to BERT's ids, with the same result as `transformers`' `BertTokenizer`.
///
/// Special tokens written in the text (`[SEP]`) are cut out first and converted to their ids. The text between them loses
/// control characters and, if it is put into lower case, accents; it is divided at white space, punctuation and Chinese
/// characters. Each word is divided into the longest tokens, from left to right, or becomes `[UNK]` as a whole.
///
/// # Source
/// `BertTokenizer` in `transformers/models/bert/tokenization_bert.py` (5.23).
pub struct BertTokenizer {
    tokenizer: Pipeline,
    cls_id: u32,
    sep_id: u32,
    pad_id: u32,
}

impl Tokenizer for BertTokenizer {
    /// Loads the `tokenizer` folder of a checkpoint.
    ///
    /// The vocabulary is read from `tokenizer.json` if it exists, as in `transformers`, and otherwise from `vocab.txt`. All
    /// else is read from `tokenizer_config.json`, or from `special_tokens_map.json` if the config is too old to list special
    /// tokens.
    ///
    /// # Errors
    /// If the files are missing, truncated, malformed, larger than 64 MiB or inconsistent with each other.
    fn load(dir: &Path) -> Result<Self> {
        let config = TokenizerConfig::load(dir)?;
        let (path, ids) = vocabulary(dir)?;
        Self::build(ids, config).map_err(|reason| unreadable(&path, reason))
    }

    /// The ids of `text` between `[CLS]` and `[SEP]`, cut to `max_length` including both.
    ///
    /// The rest of the text is returned as `dropped`. With a `max_length` below 2 there is no room for both special tokens.
    fn encode(&self, text: &str, max_length: usize) -> Encoding {
        let encoding =
            self.tokenizer.encode_fast(text, false).expect("a model with an unknown token encodes any text");
        let all = encoding.get_ids();
        let (kept, cut) = all.split_at(all.len().min(max_length.saturating_sub(2)));
        let ids = [self.cls_id].iter().chain(kept).chain([&self.sep_id]).copied().take(max_length).collect();
        let decode = |ids| self.tokenizer.decode(ids, false).expect("decoding only joins tokens");
        Encoding { ids, dropped: (!cut.is_empty()).then(|| decode(cut)) }
    }

    fn pad_id(&self) -> u32 {
        self.pad_id
    }

    fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}

impl BertTokenizer {
    fn build(ids: HashMap<String, u32>, config: TokenizerConfig) -> Result<Self, String> {
        let named =
            |token: Option<AddedToken>, name: &str| token.unwrap_or_else(|| AddedToken::special(name));
        let [cls, sep] = [named(config.cls_token, "[CLS]"), named(config.sep_token, "[SEP]")];
        let [pad, unk] = [named(config.pad_token, "[PAD]"), named(config.unk_token, "[UNK]")];
        let mask = named(config.mask_token, "[MASK]");
        for token in [&cls, &sep, &pad, &unk] {
            if !ids.contains_key(token.content()) {
                return Err(format!("it has no token `{}`", token.content()));
            }
        }
        // The order matters: the first mention of a token determines its stripping.
        let mut special: Vec<AddedToken> =
            config.added_tokens_decoder.map(|tokens| tokens.into_values().collect()).unwrap_or_default();
        special.extend([unk.clone(), sep.clone(), pad.clone(), cls.clone(), mask]);
        special.extend(config.additional_special_tokens.unwrap_or_default());
        let mut seen = HashSet::new();
        special.retain(|token| seen.insert(token.content().to_owned()));

        let model = WordPiece::builder()
            .vocab(ids.into_iter().collect::<Vocab>())
            .unk_token(unk.content().to_owned())
            .continuing_subword_prefix(CONTINUATION.to_owned());
        let mut tokenizer = Pipeline::new(model.build().map_err(|error| error.to_string())?);
        let lowercase = config.do_lower_case.unwrap_or(true);
        let chinese = config.tokenize_chinese_chars.unwrap_or(true);
        let normalizer = BertNormalizer::new(true, chinese, config.strip_accents, lowercase);
        tokenizer.with_normalizer(Some(normalizer)).map_err(|error| error.to_string())?;
        tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
        tokenizer.with_decoder(Some(Decoder::new(CONTINUATION.to_owned(), true)));
        let special = special.into_iter().map(|token| token.0);
        tokenizer.add_tokens(special).map_err(|error| error.to_string())?;
        let id = |token: &AddedToken| tokenizer.token_to_id(token.content()).expect("checked above");
        Ok(Self { cls_id: id(&cls), sep_id: id(&sep), pad_id: id(&pad), tokenizer })
    }
}

/// The ids of all tokens, and the file that they come from.
fn vocabulary(dir: &Path) -> Result<(PathBuf, HashMap<String, u32>)> {
    let [json, text] = ["tokenizer.json", "vocab.txt"].map(|name| dir.join(name));
    if let Some(TokenizerJson { model }) = read_json(&json)? {
        return Ok((json, model.vocab));
    }
    let Some(bytes) = read(&text)? else {
        return Err(Error::failure(format!("no BERT vocabulary in `{}`", dir.display()))
            .hint("download `tokenizer.json` or `vocab.txt` from the `tokenizer` folder of a checkpoint"));
    };
    let lines = std::str::from_utf8(&bytes).map_err(|_| unreadable(&text, "it is not UTF-8"))?;
    let ids = lines.lines().zip(0..).map(|(token, id)| (token.to_owned(), id)).collect();
    Ok((text, ids))
}

/// The parts of `tokenizer.json` that are used.
#[derive(Deserialize)]
struct TokenizerJson {
    model: JsonModel,
}

#[derive(Deserialize)]
struct JsonModel {
    vocab: HashMap<String, u32>,
}
