"""The texts covered by the tokenizer goldens: those of T5, and further ones that matter only for CLIP."""

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("t5_texts", Path(__file__).parents[1] / "t5/texts.py")
t5 = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t5)

SPECIALS = [
    "<|startoftext|>", "<|endoftext|>", "<|STARTOFTEXT|>", "<|EndOfText|>", "a<|endoftext|>b", "a <|endoftext|> b", "a  <|startoftext|>  b",
    "<|endoftext|><|endoftext|>", "<|endoftext|> <|endoftext|>", "<|endoftext", "|endoftext|>", "<|endoftext |>", "< |endoftext|>", "<|startoftext|>\u0301",
    "<|start\u00adoftext|>", "<<|endoftext|>>", "\u3000<|endoftext|>\u3000z", "<|endoftext|>'s", "<|pad|> [PAD] <pad> </w>", "word</w> a</w>b", "<cactus>", "a <cactus> b", "a<cactus>b", "<CACTUS>",
]

EXCLAMATIONS = ["!", "!!", "!!!", "hey!", "hey !", "! hey", "hey!you", "wow!!!", "¡hola!", "!?", "?!", "a! b!c !d", "!'s", "n! = n·(n−1)!", "！", "!\u0301"]

CONTRACTIONS = [
    "it's", "IT'S", "it 's", "it' s", "'s", "'tis", "'twas the night", "don't", "DON'T", "we're we've we'll we'd I'm", "WE'RE WE'VE WE'LL WE'D I'M",
    "rock 'n' roll", "o'clock", "l'été", "d'Artagnan", "it’s", "'", "''", "'''s", "'s's's", "'sun", "'re'", "x'll'y", "dogs' and cats'", "the 'dark' side", "s's 1's 2'd",
]

DIGITS = ["0123456789", "3.14159", "1,000,000", "4k", "35mm", "v2", "h2o", "a1b2c3", "²³¹", "①②③", "½¼", "Ⅷ", "٣٤٥", "१२३", "𝟘𝟙𝟚", "1️⃣", "-1", "+1", "1e10", "10:30pm", "f/1.8", "16:9"]

CASES = [
    "İstanbul", "ıI iİ", "ẞ ß", "Σίσυφος ΣΊΣΥΦΟΣ", "ΑΣ ΑΣΑ", "ǅ Ǆ ǆ", "ﬀ ﬃ", "Å Å Å", "K K", "Ω Ω", "ÀÉÎÕÜ", "ÀE\u0301I\u0302", "Ⓐ", "Ａ", "𐐀𐐨", "Ǳ ǲ ǳ", "ŉ", "ᾼ ᾳ", "ΐ", "DŽ",
]

SCENES = [f"{style} of {what}, {how}" for style in ["a photo", "An oil painting", "35mm film still", "8-bit sprite"]
          for what in ["a cat's eye", "two Corgis & a robot", "Mt. Fuji (at dawn)"] for how in ["highly detailed", "4k, HDR, f/2.8", "trending on artstation!!"]]

TEXTS = list(dict.fromkeys(t5.TEXTS + SPECIALS + EXCLAMATIONS + CONTRACTIONS + DIGITS + CASES + SCENES))

# Prompts that are cut: (text, max_length).
CUTS = [(t5.PLAIN[0], n) for n in (2, 3, 5, 11, 12, 13, 14, 15, 77)]
CUTS += [(t5.PLAIN[4], n) for n in (3, 8, 12, 20, 25)] + [("well , they 're here . is n't it ? yes ! i 'm", n) for n in (3, 5, 9)]
CUTS += [("a <|endoftext|> b <|startoftext|> c", n) for n in (3, 4, 5, 7)] + [("hey! you! there!", n) for n in (3, 4, 5, 6, 7, 8)]
CUTS += [("", 2), ("", 3), ("    ", 2), ("naïve café 😀 東京 end", 5), ("naïve café 😀 東京 end", 6), ("naïve café 😀 東京 end", 8), (t5.LANGUAGES[5], 6), (t5.LONG, 77)]
