"""Writes a random checkpoint with PixArt's real block, for timing: nothing in it is worth looking at.

    python make_bench_checkpoint.py FOLDER

Eight of PixArt-α's 28 blocks (1152 wide, 16 heads of 72) over 4,096 tokens at 1024x1024, a T5 encoder of 8 layers and
width 1024, and an autoencoder with half of the published channels: 1.3 GB in f32. The environment is that of
`../goldens/make_pixart.py`.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "goldens"))

import checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=8, help="transformer blocks (default: 8)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoints.write_checkpoint(
        args.folder,
        "PixArtAlphaPipeline",
        checkpoints.transformer_config(
            128,
            args.blocks,
            num_attention_heads=16,
            attention_head_dim=72,
            cross_attention_dim=1152,
            caption_channels=1024,
        ),
        checkpoints.vae_config(
            block_out_channels=[64, 128, 256, 256], layers_per_block=2, norm_num_groups=32, sample_size=1024
        ),
        checkpoints.t5_config(d_model=1024, d_ff=2816, d_kv=64, num_heads=16, num_layers=8, num_decoder_layers=8),
        checkpoints.scheduler_config(),
        seed=6,
    )


if __name__ == "__main__":
    main()
