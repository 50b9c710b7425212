//! The tokenizer of CLIP, a text encoder of Stable Diffusion 3 and FLUX.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::{Lowercase, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer as Pipeline};
use xdit_core::{Error, Result};

use super::config::{AddedToken, TokenizerConfig, read, read_json, unreadable};
use super::{Encoding, Tokenizer};

/// The suffix of a word's last token in the vocabulary.
const END_OF_WORD: &str = "</w>";
/// The pattern of a word: a contraction, a run of letters, a single digit, or a run of other characters without
/// white space.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// The default length in tokens if the config gives none; every published CLIP was trained with it.
const MAX_LENGTH: usize = 77;

/// Converts text to CLIP's ids, with the same result as `transformers`' `CLIPTokenizer`.
///
/// Special tokens written in the text are cut out first and converted to their ids. They include the padding token,
/// which in the second tokenizer of Stable Diffusion 3 is `!`. The text between them is composed (NFC), put into
/// lower case and divided into words, and the bytes of each word are merged pair by pair.
///
/// # Source
/// `CLIPTokenizer` in `transformers/models/clip/tokenization_clip.py` (5.23), and `convert_to_native_format` in
/// `tokenization_utils_tokenizers.py` for the choice of files.
pub struct ClipTokenizer {
    tokenizer: Pipeline,
    bos_id: u32,
    eos_id: u32,
    pad_id: u32,
    max_length: usize,
}

impl Tokenizer for ClipTokenizer {
    /// Loads the `tokenizer` folder of a checkpoint.
    ///
    /// The vocabulary is read from `tokenizer.json` if it exists, as in `transformers`, and otherwise from
    /// `vocab.json` and `merges.txt`. Nothing else is read from `tokenizer.json`. Special tokens are read from
    /// `tokenizer_config.json`, or from `special_tokens_map.json` if the config is too old to list them.
    ///
    /// # Errors
    /// If the files are missing, truncated, malformed, larger than 64 MiB or inconsistent with each other.
    fn load(dir: &Path) -> Result<Self> {
        let config = TokenizerConfig::load(dir)?;
        let vocabulary = Vocabulary::load(dir)?;
        let path = vocabulary.path.clone();
        Self::build(vocabulary, config).map_err(|reason| unreadable(&path, reason))
    }

    /// The ids of `text` between the start and end tokens, cut to `max_length` including both.
    ///
    /// The rest of the text is returned as `dropped`, so that the pipeline can warn about it. With a `max_length`
    /// below 2 there is no room for both special tokens.
    ///
    /// # Source
    /// `_get_clip_prompt_embeds` in `diffusers/pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py`.
    fn encode(&self, text: &str, max_length: usize) -> Encoding {
        let encoding =
            self.tokenizer.encode_fast(text, false).expect("a model with an unknown token encodes any text");
        let all = encoding.get_ids();
        let (kept, cut) = all.split_at(all.len().min(max_length.saturating_sub(2)));
        let ids = [self.bos_id].iter().chain(kept).chain([&self.eos_id]).copied().take(max_length).collect();
        Encoding { ids, dropped: (!cut.is_empty()).then(|| self.decode(cut)) }
    }

    /// The id used to pad a text to [`max_length`](ClipTokenizer::max_length).
    fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// The number of ids, including added tokens; the text encoder's table may have more rows.
    fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}

impl ClipTokenizer {
    /// The maximum number of ids of a text in the model's training.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    fn build(vocabulary: Vocabulary, config: TokenizerConfig) -> Result<Self, String> {
        let named =
            |token: Option<AddedToken>, name: &str| token.unwrap_or_else(|| AddedToken::special(name));
        let bos = named(config.bos_token, "<|startoftext|>");
        let eos = named(config.eos_token, "<|endoftext|>");
        let unk = named(config.unk_token, "<|endoftext|>");
        let pad = named(config.pad_token, "<|endoftext|>");
        let listed = config.added_tokens_decoder.iter().flat_map(|tokens| tokens.values());
        let listed = listed.chain(&vocabulary.added).chain(config.additional_special_tokens.iter().flatten());
        let special = listed.chain([&bos, &eos, &unk, &pad]).map(|token| token.content().to_owned());
        vocabulary.check(&special.collect())?;
        let Vocabulary { ids, merges, added, .. } = vocabulary;
        if !ids.contains_key(unk.content()) {
            return Err(format!("it lacks `{}`, the token for unknown text", unk.content()));
        }
        // The order matters: the first mention of a token determines its stripping.
        let mut special = match config.added_tokens_decoder {
            Some(tokens) => tokens.into_values().collect(),
            None => added,
        };
        special.extend([bos.clone(), eos.clone(), unk.clone(), pad.clone()]);
        special.extend(config.additional_special_tokens.unwrap_or_default());
        let mut seen = HashSet::new();
        special.retain(|token| seen.insert(token.content().to_owned()));

        let model = BPE::builder()
            .vocab_and_merges(ids.into_iter().collect::<Vocab>(), merges)
            .unk_token(unk.content().to_owned())
            .end_of_word_suffix(END_OF_WORD.to_owned())
            // A cache would belong to the thread and outlive the tokenizer.
            .cache_capacity(0);
        let mut tokenizer = Pipeline::new(model.build().map_err(|error| error.to_string())?);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ");
        let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true);
        let (spaces, words) = (spaces.expect("the pattern is valid"), words.expect("the pattern is valid"));
        tokenizer
            .with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])))
            .map_err(|error| error.to_string())?;
        let bytes = ByteLevel::new(false, true, true);
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()])));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        let special = special.into_iter().map(|token| token.0);
        tokenizer.add_tokens(special).map_err(|error| error.to_string())?;

        let id = |token: &AddedToken| {
            tokenizer
                .token_to_id(token.content())
                .ok_or_else(|| format!("it has no token `{}`", token.content()))
        };
        let (bos_id, eos_id, pad_id) = (id(&bos)?, id(&eos)?, id(&pad)?);
        Ok(Self {
            bos_id,
            eos_id,
            pad_id,
            // For tokenizers without a limit, transformers writes a length larger than any text.
            max_length: config
                .model_max_length
                .filter(|length| (2.0..1e9).contains(length))
                .map_or(MAX_LENGTH, |n| n as usize),
            tokenizer,
        })
    }

    /// The text of `ids`, including special tokens. Unlike T5's, it keeps the spaces between words and punctuation.
    fn decode(&self, ids: &[u32]) -> String {
        let text = self.tokenizer.decode(ids, false).expect("decoding only joins bytes");
        text.replace(END_OF_WORD, " ").trim().to_owned()
    }
}

/// The data that both kinds of vocabulary files contain.
struct Vocabulary {
    path: PathBuf,
    ids: HashMap<String, u32>,
    merges: Merges,
    /// Added tokens, used if the config lists none.
    added: Vec<AddedToken>,
}

impl Vocabulary {
    fn load(dir: &Path) -> Result<Self> {
        let [json, vocab, merges] = ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| dir.join(name));
        if let Some(TokenizerJson { model, added_tokens: added }) = read_json(&json)? {
            let pairs = model.merges.into_iter().map(Merge::into_pair);
            let merges = pairs.collect::<Result<_, _>>().map_err(|reason| unreadable(&json, reason))?;
            return Ok(Self { path: json, ids: model.vocab, merges, added });
        }
        let Some(ids) = read_json(&vocab)? else {
            return Err(Error::failure(format!("no CLIP vocabulary in `{}`", dir.display())).hint(
                "download `tokenizer.json`, or `vocab.json` and `merges.txt`, from the `tokenizer` folder of a \
                 checkpoint",
            ));
        };
        let text = read(&merges)?.ok_or_else(|| unreadable(&merges, "it is missing beside `vocab.json`"))?;
        let merges = std::str::from_utf8(&text)
            .map_err(|_| "it is not UTF-8".to_owned())
            .and_then(|text| text.lines().filter(|line| !line.starts_with("#version")).map(pair).collect())
            .map_err(|reason| unreadable(&merges, reason))?;
        Ok(Self { path: vocab, ids, merges, added: Vec::new() })
    }

    /// Checks the assumptions that the builder of the model makes.
    fn check(&self, special: &HashSet<String>) -> Result<(), String> {
        let mut seen = vec![false; self.ids.len()];
        for (token, &id) in &self.ids {
            match seen.get_mut(id as usize) {
                Some(seen) if !*seen => *seen = true,
                _ => {
                    return Err(format!(
                        "`{token}` has the id {id}, but ids must be unique and below {}",
                        self.ids.len()
                    ));
                }
            }
        }
        self.check_merges(special)?;
        for (left, right) in &self.merges {
            for token in [left, right, &format!("{left}{right}")] {
                if !self.ids.contains_key(token) {
                    return Err(format!("it merges `{left}` and `{right}`, but has no token `{token}`"));
                }
            }
        }
        Ok(())
    }
}

impl Vocabulary {
    /// Checks that each token can come up: it is one character, with or without the end of a word, the result of a merge, or
    /// special. A list of merges that was cut would give other tokens for the same text.
    fn check_merges(&self, special: &HashSet<String>) -> Result<(), String> {
        let merged: HashSet<String> =
            self.merges.iter().map(|(left, right)| format!("{left}{right}")).collect();
        let is_single = |token: &str| token.strip_suffix(END_OF_WORD).unwrap_or(token).chars().count() <= 1;
        let mut unreachable: Vec<&String> = self
            .ids
            .keys()
            .filter(|token| !is_single(token) && !merged.contains(*token) && !special.contains(*token))
            .collect();
        unreachable.sort();
        match unreachable.first() {
            None => Ok(()),
            Some(first) => Err(format!(
                "no merge makes `{first}` and {} more of its tokens: the list of merges was cut",
                unreachable.len() - 1
            )),
        }
    }
}

/// The parts of `tokenizer.json` that are used.
#[derive(Deserialize)]
struct TokenizerJson {
    model: JsonModel,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct JsonModel {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// A merge in the notation of older or newer versions of `tokenizers`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair((String, String)),
}

impl Merge {
    fn into_pair(self) -> Result<(String, String), String> {
        match self {
            Self::Line(line) => pair(&line),
            Self::Pair(pair) => Ok(pair),
        }
    }
}

/// Parses two tokens to merge, separated by a space.
fn pair(line: &str) -> Result<(String, String), String> {
    match line.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
        _ => Err(format!("`{line}` is not two tokens to merge")),
    }
}
