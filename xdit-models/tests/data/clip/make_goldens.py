"""Writes the small vocabularies and `goldens.json`: the results of transformers' `CLIPTokenizer` for every text.

    pip install transformers==5.23.0
    python make_goldens.py [DIR with CLIP's published vocab.json, merges.txt and tokenizer_config.json]

Without DIR, the ids of the published vocabulary are kept from the existing file; that vocabulary is not committed.
The small vocabularies are those of the golden checkpoints, so torch and diffusers are needed to write them.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import transformers
from transformers import CLIPTokenizer

from texts import CUTS, TEXTS

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[3] / "tests/goldens"))

# The second tokenizer of Stable Diffusion XL as published, from before configs listed their added tokens.
OLD_CONFIG = {"model_max_length": 77, "pad_token": "!", "tokenizer_class": "CLIPTokenizer"}
END = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
OLD_MAP = {"bos_token": END | {"content": "<|startoftext|>"}, "eos_token": END, "pad_token": "!", "unk_token": END}


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_old(folder: Path) -> None:
    """Writes the old config beside a vocabulary."""
    write_json(folder / "tokenizer_config.json", OLD_CONFIG)
    write_json(folder / "special_tokens_map.json", OLD_MAP)


def small() -> None:
    """Writes `files`, laid out as published, and `json`, a single `tokenizer.json` with a token added after training."""
    from clip_checkpoints import write_clip_tokenizer

    write_clip_tokenizer(HERE / "files")
    (HERE / "json").mkdir(exist_ok=True)
    tokenizer = CLIPTokenizer.from_pretrained(HERE / "files")
    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    flags = {"single_word": False, "lstrip": True, "rstrip": False, "normalized": False, "special": True}
    saved["added_tokens"].append({"id": len(tokenizer), "content": "<cactus>"} | flags)
    # Merges in the notation of older versions, and a rule that transformers ignores.
    saved["model"]["merges"] = [" ".join(pair) for pair in saved["model"]["merges"]]
    saved["normalizer"] = {"type": "NFKC"}
    text = json.dumps(saved, ensure_ascii=False, separators=(",", ":"))
    (HERE / "json/tokenizer.json").write_text(text + "\n")


def answers(folder: Path) -> dict:
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    cuts = []
    for text, max_length in CUTS:
        # As in `_get_clip_prompt_embeds` of diffusers' StableDiffusion3Pipeline.
        ids = tokenizer(text, padding="max_length", max_length=max_length, truncation=True).input_ids
        whole = tokenizer(text).input_ids
        cut = len(whole) >= len(ids) and whole != ids
        dropped = tokenizer.batch_decode([whole[max_length - 1 : -1]])[0] if cut else None
        cuts.append({"ids": tokenizer(text, max_length=max_length, truncation=True).input_ids, "dropped": dropped})
    ids = [tokenizer(text).input_ids for text in TEXTS]
    return {"vocab_size": len(tokenizer), "pad_id": tokenizer.pad_token_id, "ids": ids, "cuts": cuts}


def beside(vocabulary: Path, *, old: bool) -> dict:
    """The results for the vocabulary in a folder with the old config, or without a config."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in ["vocab.json", "merges.txt"]:
            shutil.copy(vocabulary / name, scratch)
        if old:
            write_old(Path(scratch))
        return answers(Path(scratch))


def without_repetition(these: dict, those: dict) -> dict:
    """Omits the ids that are the same in both."""
    same = zip(these["ids"], those["ids"], strict=True)
    return these | {"ids": [None if ids == other else ids for ids, other in same]}


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    small()
    (HERE / "old").mkdir(exist_ok=True)
    write_old(HERE / "old")
    path = HERE / "goldens.json"
    goldens = json.loads(path.read_text())["answers"] if path.exists() else {}
    goldens["files"] = answers(HERE / "files")
    goldens["json"] = without_repetition(answers(HERE / "json"), goldens["files"])
    goldens["old"] = without_repetition(beside(HERE / "files", old=True), goldens["files"])
    goldens["alone"] = without_repetition(beside(HERE / "files", old=False), goldens["files"])
    if len(sys.argv) > 1:
        goldens["published"] = answers(Path(sys.argv[1]))
        for name, old in [("published, old", True), ("published, alone", False)]:
            goldens[name] = without_repetition(beside(Path(sys.argv[1]), old=old), goldens["published"])
    cuts = [{"text": TEXTS.index(text) if text in TEXTS else text, "max_length": n} for text, n in CUTS]
    file = {"texts": TEXTS, "cuts": cuts, "answers": goldens}
    path.write_text(json.dumps(file, separators=(",", ":")) + "\n")
    print(len(TEXTS), "texts,", len(CUTS), "cuts,", {name: len(a["ids"]) for name, a in goldens.items()})


if __name__ == "__main__":
    main()
