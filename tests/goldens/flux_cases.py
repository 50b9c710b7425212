"""What FLUX computes: the transformer block by block, and runs of the real pipeline."""

from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from pipeline_cases import Recorder, relative_distance, write_case


def watch_transformer(recorder: Recorder, model: FluxTransformer2DModel) -> None:
    """Every part's output. What a block gives to the text is `….text`, what it gives to the image `….image`."""

    def streams(name: str):
        def hook(_module, _inputs, output):
            recorder.put(f"{name}.text", output[0])
            recorder.put(f"{name}.image", output[1])

        return hook

    for name in ["x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out"]:
        recorder.output(getattr(model, name), name)
    for kind in ["transformer_blocks", "single_transformer_blocks"]:
        for i, block in enumerate(getattr(model, kind)):
            recorder.hooks.append(block.register_forward_hook(streams(f"{kind}.{i}")))


@torch.no_grad()
def transformer_case(root: Path, checkpoint: str, seed: int, grid: list[int], text_tokens: int) -> None:
    """Two pictures at once, with texts and inputs of their own."""
    folder = root / checkpoint / "transformer"
    model = FluxTransformer2DModel.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = grid
    inputs = {
        "hidden_states": torch.randn(2, rows * columns, model.config.in_channels, generator=generator),
        "encoder_hidden_states": torch.randn(2, text_tokens, model.config.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(2, model.config.pooled_projection_dim, generator=generator),
    }
    # As the pipeline passes them.
    places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1)
    ids = torch.cat([torch.zeros(rows, columns, 1), places], dim=-1).reshape(-1, 3)
    timestep, guidance = 617.1875, 2.75
    fixed = {"img_ids": ids, "txt_ids": torch.zeros(text_tokens, 3), "timestep": torch.full([2], timestep) / 1000}
    if model.config.guidance_embeds:
        fixed["guidance"] = torch.full([2], guidance)

    recorder = Recorder()
    watch_transformer(recorder, model)
    recorder.put("output", model(**inputs, **fixed).sample)
    recorder.close()
    double = FluxTransformer2DModel.from_pretrained(folder, dtype=torch.float64)
    expected = double(**{name: value.double() for name, value in inputs.items()}, **fixed).sample
    tensors = inputs | recorder.tensors
    record = {
        "checkpoint": checkpoint,
        "grid": grid,
        "timestep": timestep,
        "guidance": guidance,
        "rounding": {"output": relative_distance(tensors["output"], expected)},
        "tensors": {key: list(tensor.shape) for key, tensor in sorted(tensors.items())},
    }
    write_case(root / "cases", f"{checkpoint}-transformer", record, tensors)


def write_all(root: Path) -> None:
    transformer_case(root, "flux-schnell", 51, [5, 7], 11)
    transformer_case(root, "flux-dev", 52, [6, 3], 9)
