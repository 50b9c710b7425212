"""A T5-style sentencepiece vocabulary of 800 pieces, trained on sentences composed of the words below."""

import functools
import io
import json
import random
from pathlib import Path

import sentencepiece

PIECES = 800
# T5 numbers its sentinels downwards: `<extra_id_0>` has the highest id.
EXTRA_IDS = range(PIECES, PIECES + 100)

NOUNS = """
    cat dog fox otter heron whale robot sailor baker child queen astronaut violinist garden lighthouse castle
    mountain river desert forest harbour bridge village kitchen library staircase window mirror lantern teapot
    bicycle balloon umbrella telescope keyboard guitar orchard meadow glacier volcano island planet galaxy portrait
    landscape sketch photograph painting sculpture mosaic poster illustration watercolour sofa table basket blanket
    feather crystal flower sunflower cactus mushroom pineapple strawberry bread cheese coffee snow rain thunder
    sunset sunrise shadow reflection smoke fire ocean wave train rocket engine market street temple tower dragon
    owl tiger elephant butterfly dolphin rabbit squirrel horse ship
""".split()
ADJECTIVES = """
    red green blue golden silver purple orange white black bright dark tiny giant ancient modern quiet stormy
    misty frozen wooden rusty broken elegant colourful transparent cheerful lonely detailed realistic cinematic
    dramatic minimalist futuristic surreal blurry sharp low high soft warm cold delicate beautiful
""".split()
VERBS = """
    sitting standing sleeping running jumping flying swimming dancing painting reading cooking singing climbing
    drinking waiting glowing floating burning melting growing
""".split()
PLACES = "on in under above behind beside near inside between around across over beneath through".split()
STYLES = """
    highly detailed, soft light, wide angle, close-up, 35mm film, 8k resolution, oil on canvas, pencil drawing,
    shallow depth of field, golden hour, volumetric fog, studio lighting, low quality, worst quality, trending,
    award-winning photo, isometric view, pixel art, art nouveau, in the style of a fairy tale
""".replace("\n", " ").split(",")
EXTRAS = [
    "It's 1024 x 768 pixels; isn't it?",
    "A café in Zürich, a naïve façade, a piñata, an Ångström!",
    '"Hello," she said: (yes) & [no] #1 @home 50% + 3*2=6 / 7 ~ {8} <9>.',
    "The quick brown fox jumps over the lazy dog. Sphinx of black quartz, judge my vow.",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 - _ | \\ ^ ` $",
]


def sentences(count: int = 8000) -> list[str]:
    rng = random.Random(0)

    # Invented endings provide the trainer with stems to find, and with enough different words for the vocabulary
    # size.
    def noun() -> str:
        word = rng.choice(NOUNS) + rng.choice(["", "", "s", "'s", "-like", "ship", "land", "less"])
        adjective = rng.choice(["", "", "un", "semi-"]) + rng.choice(ADJECTIVES) + rng.choice(["", "", "ish", "ly"])
        return f"{adjective} {word}" if rng.random() < 0.5 else word

    lines = EXTRAS * 20
    for _ in range(count):
        opening = rng.choice(["a", "the", "a photo of a", "an illustration of the", "a painting of a", "two"])
        line = f"{opening} {noun()} {rng.choice(VERBS)} {rng.choice(PLACES)} the {noun()}"
        line += "".join(f", {style.strip()}" for style in rng.sample(STYLES, rng.randrange(3)))
        lines.append(line)
    return lines


@functools.cache
def sentencepiece_model() -> bytes:
    """The contents of `spiece.model`, trained with the settings of T5."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        normalization_rule_name="nmt_nfkc",
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(folder: Path) -> None:
    """Writes the three files of a published T5 tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(sentencepiece_model())

    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    sentinels = [f"<extra_id_{i}>" for i in range(len(EXTRA_IDS))]
    tokens = dict(enumerate(named.values())) | dict(zip(EXTRA_IDS, reversed(sentinels), strict=True))
    special_tokens_map = {"additional_special_tokens": sentinels} | {
        role: {"content": token} | flags for role, token in named.items()
    }
    tokenizer_config = {
        "add_prefix_space": True,
        "added_tokens_decoder": {str(id): {"content": token, "special": True} | flags for id, token in tokens.items()},
        "additional_special_tokens": sentinels,
        "clean_up_tokenization_spaces": True,
        "extra_ids": len(EXTRA_IDS),
        "legacy": True,
        "model_max_length": 512,
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
    } | named
    for name, value in {"special_tokens_map": special_tokens_map, "tokenizer_config": tokenizer_config}.items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
