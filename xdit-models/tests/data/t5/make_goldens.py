"""Writes the small vocabularies and `goldens.json`: the results of transformers' `T5Tokenizer` for every text.

    pip install transformers==5.23.0 sentencepiece==0.2.3 protobuf
    python make_goldens.py [DIR with T5's published spiece.model, tokenizer.json and tokenizer_config.json]

Without DIR, the ids of the published vocabulary are kept from the existing file; that vocabulary is not committed.
"""

import json
import pydoc_data.topics
import shutil
import sys
import tempfile
from pathlib import Path

import sentencepiece
from transformers import T5Tokenizer

from texts import CUTS, PLAIN, TEXTS

HERE = Path(__file__).parent


def train(prefix: Path, **options):
    """Trains a Unigram vocabulary with T5's special ids on Python's help texts."""
    lines = [line for _, text in sorted(pydoc_data.topics.topics.items()) for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if line.isascii()] + PLAIN * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False, num_threads=1, minloglevel=2, **options)
    prefix.with_suffix(".vocab").unlink()


def small_spiece():
    """Writes `spiece.model` and a config, as PixArt publishes them: T5's own rules, 900 pieces, a user-defined symbol."""
    folder = HERE / "spiece"
    folder.mkdir(exist_ok=True)
    train(folder / "spiece", vocab_size=900, normalization_rule_name="nmt_nfkc", user_defined_symbols=["<person>"])
    config = {"clean_up_tokenization_spaces": True, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 100}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def small_json():
    """Writes a `tokenizer.json` with other rules, 10 sentinels that strip white space, and a token added after training."""
    folder = HERE / "json"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        rules = {"ﬁ": "fi", "ﬂ": "fl", "é": "e", "e\u0301": "e", "…": "...", "\t": " ", "\n": " ", "\u3000": " ", "½": "1/2", "\u200b": "", "😀": "smile"}
        tsv = Path(scratch) / "rules.tsv"
        tsv.write_text("".join(f"{' '.join(f'{ord(c):X}' for c in k)}\t{' '.join(f'{ord(c):X}' for c in v)}\n" for k, v in rules.items()))
        train(Path(scratch) / "spiece", vocab_size=600, normalization_rule_tsv=str(tsv))
        (Path(scratch) / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 10}))
        tokenizer = T5Tokenizer.from_pretrained(scratch)
        saved = json.loads(tokenizer._tokenizer.to_str())
    size = len(saved["model"]["vocab"])
    for token in saved["added_tokens"]:
        token["lstrip"] = token["rstrip"] = token["content"].startswith("<extra")
    saved["added_tokens"].append({"id": size, "content": "<mask>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": False, "special": True})
    saved["model"]["vocab"] = [[piece, round(score, 4)] for piece, score in saved["model"]["vocab"]]
    # The file as `tokenizers` converts it, with a pre-tokenizer other than the one that transformers uses.
    saved["normalizer"] = {"type": "Sequence", "normalizers": [saved["normalizer"], {"type": "Strip", "strip_left": False, "strip_right": True}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]}
    saved["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    (folder / "tokenizer.json").write_text(json.dumps(saved, ensure_ascii=False, separators=(",", ":")) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 10}) + "\n")


def answers(folder):
    tokenizer = T5Tokenizer.from_pretrained(folder)
    cuts = []
    for text, max_length in CUTS:
        # As in `encode_prompt` of diffusers' PixArtAlphaPipeline.
        ids = tokenizer(text, padding="max_length", max_length=max_length, truncation=True).input_ids
        whole = tokenizer(text).input_ids
        dropped = tokenizer.batch_decode([whole[max_length - 1 : -1]])[0] if len(whole) >= len(ids) and whole != ids else None
        cuts.append({"ids": tokenizer(text, max_length=max_length, truncation=True).input_ids, "dropped": dropped})
    return {"vocab_size": len(tokenizer), "pad_id": tokenizer.pad_token_id, "ids": [tokenizer(text).input_ids for text in TEXTS], "cuts": cuts}


def main():
    small_spiece()
    small_json()
    path = HERE / "goldens.json"
    old = json.loads(path.read_text())["answers"] if path.exists() else {}
    goldens = {"spiece": answers(HERE / "spiece"), "json": answers(HERE / "json")}
    if len(sys.argv) > 1:
        real = Path(sys.argv[1])
        goldens["published"] = answers(real)
        with tempfile.TemporaryDirectory() as bare:
            shutil.copy(real / "spiece.model", bare)
            alone = answers(bare)
        # Without the config, ids differ only where a sentinel is next to white space; equal ids are omitted.
        whole = goldens["published"]["ids"]
        goldens["published spiece.model alone"] = {**alone, "ids": [None if ids == whole[i] else ids for i, ids in enumerate(alone["ids"])]}
    goldens = {**{name: old[name] for name in old if name not in goldens}, **goldens}
    file = {"texts": TEXTS, "cuts": [{"text": TEXTS.index(text) if text in TEXTS else text, "max_length": n} for text, n in CUTS], "answers": goldens}
    path.write_text(json.dumps(file, separators=(",", ":")) + "\n")
    print(len(TEXTS), "texts,", len(CUTS), "cuts,", {name: len(a["ids"]) for name, a in goldens.items()})


if __name__ == "__main__":
    main()
