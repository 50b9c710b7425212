"""Text processing around the network: caption cleaning, tokens, and the table of picture sizes."""

import json
import random
from pathlib import Path

import sentencepiece
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha, pipeline_pixart_sigma

from pipeline_cases import LONG_PROMPT, load

TEXTS = [
    "",
    " ",
    "a",
    "a photo of a cat",
    "  leading,   inner \t and trailing\nwhite space  ",
    "no\u00a0break\u2003em\u200bzero\u3000ideographic",
    "Ünïcödé naïve café façade Zürich",
    "cafe\u0301 with a combining accent",
    "ﬁne ligatures, ½ Ⅷ ① ｆｕｌｌ ｗｉｄｔｈ ﾊﾝｶｸ ™ …",
    "a 🦊 and a 👩‍👩‍👧 family",
    "漢字とカナ and 한국어 and русский",
    "what is <extra_id_0> doing with <extra_id_99>?",
    "an </s> inside, a <pad> and an <unk>",
    "</s>",
    "tight<extra_id_7>fit </s>end",
    "It's 1024 x 768; \"isn't it?\" (yes) & [no] #1 @home 50% + 3*2=6",
    "supercalifragilisticexpialidocious-antidisestablishmentarianism",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "under_score \\ back`tick ^ ~ | {braces}",
    "control\x01chars\x7f and \ufeffbom and soft\u00adhyphen",
    "▁ is the sign for a space",
    LONG_PROMPT,
]

CAPTIONS = [
    "A Cat",
    "  <person> Sitting\\nDown  ",
    "<b>bold</b> &amp; <i>italic</i> &quot;quoted&quot; &lt;tag&gt; &nbsp;x",
    "a link https://example.com/a/b?c=d and www.example.org/x, also example.net",
    "mail me@home or @nick_name!",
    "漢字 in the middle ㈱ ㌔ and ㇀",
    "dashes – — ― − ‐ and quotes «a» “b” ‘c’ `d´",
    "from 192.168.0.1 at 10:30",
    "ends with 7:30 ",
    "#1 #123 #1234 #12345 123456 1234567 12345",
    "photo_001.jpg beach.png a.b.c.webp movie.mp4",
    '"""AUSVERKAUFT""" ***SALE*** ...now... . then',
    "this-is-my-cute-cat",
    "this-is a_cat",
    "jc6640 jc6640vc 6640vc231 j2d1a2a",
    "Worldwide free shipping, free download free, click for more, click on this",
    "png image, jpg images, page 12",
    "1024x768 3.5x2 3х4 5×7 8 x 9",
    "a : b ,c.d/e",
    '"entirely quoted"',
    "'single'",
    "-starts with a dash, ends with a dash-",
    ".hidden",
    "schÃ¶n mojibake donâ€™t",
    "a+b%20c %41",
    "tick® mark© bullet• ½ ¡hola! ¿que? [x] (y) {z} a|b a\\b a/b a*b ~",
    "&amp;lt;double&amp;gt; escaped",
    "",
]


def size_table(bins: dict[str, list[float]], processor) -> dict:
    rng = random.Random(0)
    sizes = [(1, 1), (512, 512), (500, 700), (1024, 1024), (720, 1280), (1, 100), (100, 1), (333, 334)]
    sizes += [(int(h), int(w)) for h, w in bins.values()]
    sizes += [(rng.randrange(64, 2100), rng.randrange(64, 2100)) for _ in range(60)]
    return {
        "bins": bins,
        "classified": [
            {"size": list(size), "bin": list(processor.classify_height_width_bin(*size, ratios=bins))} for size in sizes
        ],
    }


def write_all(root: Path) -> None:
    pipe = load(root / "pixart-alpha-256")
    pieces = sentencepiece.SentencePieceProcessor(str(root / "pixart-alpha-256/tokenizer/spiece.model"))
    tokens = []
    for text in TEXTS:
        ids = pipe.tokenizer(text).input_ids
        # Special tokens in a text are split off before sentencepiece processes it, so the two differ here by
        # design.
        agrees = ids == [*pieces.encode(text), pieces.eos_id()]
        tokens.append({"text": text, "ids": ids, "sentencepiece_agrees": agrees})
    captions = [
        {"text": text, "cleaned": pipe._text_preprocessing(text, clean_caption=True)[0]} for text in CAPTIONS + TEXTS
    ]
    tables = {
        "256": pipeline_pixart_alpha.ASPECT_RATIO_256_BIN,
        "512": pipeline_pixart_alpha.ASPECT_RATIO_512_BIN,
        "1024": pipeline_pixart_alpha.ASPECT_RATIO_1024_BIN,
        "2048": pipeline_pixart_sigma.ASPECT_RATIO_2048_BIN,
    }
    sizes = {name: size_table(bins, pipe.image_processor) for name, bins in tables.items()}
    folder = root / "cases"
    for name, value in {"tokens": tokens, "captions": captions, "sizes": sizes}.items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
