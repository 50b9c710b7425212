"""Writes the golden data of text encoders with the reference implementation, in f32 on the CPU.

    python make_text_encoders.py [FOLDER]

It needs the environment of `make_pixart.py` and its checkpoint `pixart-alpha-256`. Within seconds it writes `clip-l/`,
`clip-g/` and their cases to FOLDER, by default the folder of this script. A second run on the same machine writes
equal files.
"""

import argparse
from pathlib import Path

import torch
import transformers
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from clip_checkpoints import VOCAB_SIZE, make_clip_g, make_clip_l, write_clip_tokenizer
from pipeline_cases import LONG_PROMPT, relative_distance, write_case

# The first of the two `#` has the id that old configs give for the end token.
TEXTS = ["", "A cat's ##1 portrait, naïve!", LONG_PROMPT, "the end <|endoftext|> is not the end"]
# The number of tokens that T5's texts are padded to.
T5_LENGTH = 24


def run(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs of CLIP that pipelines use: each state, and the pooled output under the name that the class gives it."""
    output = model(ids, output_hidden_states=True)
    pooled = output.text_embeds if isinstance(model, CLIPTextModelWithProjection) else output.pooler_output
    states = {f"hidden_states.{index}": state for index, state in enumerate(output.hidden_states)}
    return states | {"last_hidden_state": output.last_hidden_state, "pooled": pooled}


def finish_case(root: Path, name: str, checkpoint: str, tensors: dict, exact: dict, **facts) -> None:
    """Writes one case; `exact` is the result of the reference in f64."""
    rounding = max(relative_distance(tensors[key], exact[key]) for key in exact)
    write_case(root / "cases", name, {"checkpoint": checkpoint, "rounding": rounding} | facts, tensors)


@torch.no_grad()
def clip_case(root: Path, name: str, model_class: type, config: dict, extra_ids: list[list[int]]) -> None:
    """Every text, padded and cut to 77 ids as in pipelines, and `extra_ids`, which no text produces."""
    tokenizer = CLIPTokenizer.from_pretrained(root / name / "tokenizer")
    model = model_class.from_pretrained(root / name / "text_encoder", dtype=torch.float32).eval()
    encoded = tokenizer(TEXTS, padding="max_length", max_length=tokenizer.model_max_length, truncation=True)
    all_ids = [torch.tensor([ids]) for ids in encoded.input_ids + extra_ids]
    outputs = [run(model, ids) for ids in all_ids]
    model = model.double()
    tensors, exact = {}, {}
    for index, (ids, output) in enumerate(zip(all_ids, outputs, strict=True)):
        tensors[f"{index}.input_ids"] = ids[0]
        # All states of one text suffice to check which layers are skipped; the other texts have the usual states
        # only.
        kept = [f"hidden_states.{config['num_hidden_layers'] - 1}", "last_hidden_state", "pooled"]
        kept = output.keys() if index == 1 else kept
        tensors |= {f"{index}.{key}": output[key] for key in kept}
        exact |= {f"{index}.{key}": value for key, value in run(model, ids).items() if key in kept}
    finish_case(root, name, name, tensors, exact, texts=TEXTS, layers=config["num_hidden_layers"])


@torch.no_grad()
def t5_case(root: Path) -> None:
    """T5 as used by Stable Diffusion 3 and FLUX, with unmasked padding."""
    folder = root / "pixart-alpha-256"
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    model = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    texts = ["", "a photo of a small cactus", LONG_PROMPT]
    encoded = tokenizer(texts, padding="max_length", max_length=T5_LENGTH, truncation=True, return_tensors="pt")
    embeds = model(encoded.input_ids)[0]
    exact = model.double()(encoded.input_ids)[0]
    tensors = {"input_ids": encoded.input_ids, "prompt_embeds": embeds}
    facts = {"texts": texts, "max_sequence_length": T5_LENGTH}
    finish_case(root, "t5-padded", folder.name, tensors, {"prompt_embeds": exact}, **facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    root = parser.parse_args().folder
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()

    # Like FLUX's: no projection, and a config from before the end token had an option of its own.
    config = make_clip_l(root / "clip-l/text_encoder", seed=11, projection=False, position_ids=True)
    write_clip_tokenizer(root / "clip-l/tokenizer")
    clip_case(root, "clip-l", CLIPTextModel, config, [])
    # Like the second encoder of Stable Diffusion 3, except for two things: the config gives the end token, and
    # there is a token beyond it, such as textual inversion adds. The old rule would mistake that token for the end
    # token.
    changes = {"torch_dtype": "float16", "eos_token_id": VOCAB_SIZE - 1, "vocab_size": VOCAB_SIZE + 1}
    config = make_clip_g(root / "clip-g/text_encoder", seed=12, projection_dim=24, **changes)
    write_clip_tokenizer(root / "clip-g/tokenizer", pad_token="!")
    clip_case(root, "clip-g", CLIPTextModelWithProjection, config, [[VOCAB_SIZE - 2, 65, VOCAB_SIZE, 66, VOCAB_SIZE - 1]])
    t5_case(root)


if __name__ == "__main__":
    main()
