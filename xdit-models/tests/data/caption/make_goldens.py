"""Writes `goldens.json`: the captions as diffusers' PixArt pipeline prepares them.

    pip install diffusers==0.42.1 torch transformers==5.23.0 ftfy==6.3.1 beautifulsoup4==4.15.0      # on CPython 3.11
    python make_goldens.py
"""

import json
import warnings
from pathlib import Path

from diffusers import PixArtAlphaPipeline

from captions import CAPTIONS

warnings.filterwarnings("ignore")


def main():
    # The text functions use only the patterns of the pipeline object.
    pipeline = PixArtAlphaPipeline.__new__(PixArtAlphaPipeline)
    cases = []
    for text in CAPTIONS:
        clean = pipeline._text_preprocessing(text, clean_caption=True)[0]
        plain = pipeline._text_preprocessing(text, clean_caption=False)[0]
        cases.append({"text": text, "clean": clean, "plain": plain})
    path = Path(__file__).parent / "goldens.json"
    path.write_text('{"captions":[\n' + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]}\n")
    print(len(cases), "captions")


if __name__ == "__main__":
    main()
