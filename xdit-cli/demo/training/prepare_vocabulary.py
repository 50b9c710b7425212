"""Trains the tokenizer's vocabulary on captions: `python prepare_vocabulary.py sprites.npz spiece.model`."""

import sys
from pathlib import Path

from models import train_sentencepiece
from scenes import Sprites

sprites, out = sys.argv[1:]
Path(out).write_bytes(train_sentencepiece(Sprites(sprites)))
