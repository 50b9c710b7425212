"""Small random CLIP text encoders with their tokenizers, in the layout of the published models.

`make_clip_l` and `make_clip_g` write `config.json` and `model.safetensors`; `write_clip_tokenizer` writes the four
files of a tokenizer. As in the published files, but not in those that current versions of transformers save, tensors
are called `text_model.*`, configs contain `torch_dtype`, and there is no `tokenizer.json`.
"""

import functools
import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from checkpoints import randomize, write_json, write_weights
from vocabulary import sentences

MERGES = 120
START, END = "<|startoftext|>", "<|endoftext|>"
# The 256 bytes, the same bytes at the end of a word, the merged tokens, and two special tokens.
VOCAB_SIZE = 2 * 256 + MERGES + 2


def byte_symbols() -> list[str]:
    """The character for each byte, in the order of CLIP's vocabulary: printable characters stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


@functools.cache
def vocabulary() -> tuple[dict[str, int], list[str]]:
    """The ids, numbered as in CLIP, and the merges, learned from the sentences of `vocabulary.py`."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(r"'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    symbols = byte_symbols()
    trainer = trainers.BpeTrainer(
        vocab_size=10**6, max_token_length=12, end_of_word_suffix="</w>", initial_alphabet=symbols, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(2000), trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"][:MERGES]]
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges), START, END]
    assert len(set(tokens)) == VOCAB_SIZE
    return {token: id for id, token in enumerate(tokens)}, [" ".join(pair) for pair in merges]


def write_clip_tokenizer(folder: Path, *, pad_token: str = END, **changes) -> None:
    """Writes the four files of a published CLIP tokenizer.

    The tokenizer of FLUX and the first one of Stable Diffusion 3 pad with `END`. The second one of Stable Diffusion 3
    pads with `!`, which is therefore a special token. `changes` apply to `tokenizer_config.json`; `...` removes a key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False, separators=(",", ":")) + "\n")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")

    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    start, end = {"content": START, "normalized": True} | flags, {"content": END, "normalized": False} | flags
    pad = end if pad_token == END else {"content": pad_token, "normalized": False} | flags
    named = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end}
    added = {ids[token["content"]]: token | {"special": True} for token in (start, end, pad)}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(id): added[id] for id in sorted(added)},
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    } | {role: token["content"] for role, token in named.items()}
    config = {key: value for key, value in (config | changes).items() if value is not ...}
    write_json(folder / "special_tokens_map.json", named)
    write_json(folder / "tokenizer_config.json", config)


def clip_config(architecture: str, **changes) -> dict:
    """The published `config.json` with smaller numbers; a change to `...` removes the key."""
    config = {
        "architectures": [architecture],
        "attention_dropout": 0.0,
        # As published. The tokenizer has other ids, so the end of a text is found differently: see transformers'
        # pull request 24773.
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "pad_token_id": 1,
        "torch_dtype": "float32",
        "transformers_version": "4.41.2",
        "vocab_size": VOCAB_SIZE,
    }
    return {key: value for key, value in (config | changes).items() if value is not ...}


def make_clip(
    folder: Path, config: dict, *, seed: int, position_ids: bool = False, variant: str | None = None
) -> None:
    """Writes one text encoder. `position_ids` adds the buffer found in files from before transformers 4.31."""
    inert = {"architectures", "dropout", "model_type", "torch_dtype", "transformers_version"}
    options = CLIPTextConfig(**{key: value for key, value in config.items() if key not in inert})
    if config["architectures"] == ["CLIPTextModelWithProjection"]:
        state = CLIPTextModelWithProjection(options).state_dict()
    else:
        state = {f"text_model.{name}": tensor for name, tensor in CLIPTextModel(options).state_dict().items()}
    # With scores of this size, a token attends to some of the others and not to all equally.
    gains = {"token_embedding": 8.0, "position_embedding": 8.0, "q_proj": 1.5, "k_proj": 1.5}
    dtype = getattr(torch, config["torch_dtype"])
    state = {name: tensor.to(dtype) for name, tensor in randomize(state, seed, gains).items()}
    if position_ids:
        state["text_model.embeddings.position_ids"] = torch.arange(config["max_position_embeddings"])[None]
    write_json(folder / "config.json", config)
    write_weights(folder, "model", state, variant=variant, shards=1)


def make_clip_l(
    folder: Path, *, seed: int, projection: bool, position_ids: bool = False, variant: str | None = None, **changes
) -> dict:
    """Writes an encoder like CLIP-L: `quick_gelu`, three layers.

    `projection` selects `CLIPTextModelWithProjection`, as in Stable Diffusion 3, over `CLIPTextModel`, as in FLUX.
    """
    architecture = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"projection_dim": 32, "hidden_act": "quick_gelu"}
    config = clip_config(architecture, **sizes | changes)
    make_clip(folder, config, seed=seed, position_ids=position_ids, variant=variant)
    return config


def make_clip_g(
    folder: Path, *, seed: int, position_ids: bool = False, variant: str | None = None, **changes
) -> dict:
    """Writes an encoder like OpenCLIP's ViT-bigG: `gelu`, wider and deeper than CLIP-L, with a projection."""
    sizes = {"hidden_size": 40, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 5}
    sizes |= {"projection_dim": 40, "hidden_act": "gelu"}
    config = clip_config("CLIPTextModelWithProjection", **sizes | changes)
    make_clip(folder, config, seed=seed, position_ids=position_ids, variant=variant)
    return config
