"""Runs of the reference Latte pipeline, with intermediate tensors."""

from pathlib import Path

import torch

from pipeline_cases import NEGATIVE, PROMPT, Recorder, load, relative_distance, size, write_case

# The options that every case states; `clean_caption` is on by default in the pipeline.
CALL = {
    "prompt": PROMPT,
    "negative_prompt": NEGATIVE,
    "num_inference_steps": 4,
    "guidance_scale": 7.5,
    "video_length": 4,
    "num_images_per_prompt": 1,
    "clean_caption": False,
}

# name -> (checkpoint, seed, call). The embedding of frames has the length of the model, so in diffusers a clip has
# `video_length` frames, or one.
CASES = {
    "latte-full": ("latte", 7, size(64, 96)),
    "latte-defaults": ("latte", 8, {"negative_prompt": "", "clean_caption": True, "num_inference_steps": 2} | size(32, 32)),
    "latte-no-guidance": ("latte", 9, size(48, 32) | {"guidance_scale": 1.0}),
    "latte-one-frame": ("latte", 10, size(48, 32) | {"video_length": 1}),
    "latte-frame-by-frame": ("latte", 11, size(48, 32) | {"enable_temporal_attentions": False}),
    "latte-short-prompt": ("latte", 12, size(48, 32) | {"prompt": "a cat"}),
    # The frames of a chunk are decoded together; the second chunk has one frame.
    "latte-temporal-chunks": ("latte-temporal", 13, size(40, 24) | {"num_inference_steps": 2, "decode_chunk_size": 3}),
    "latte-temporal-whole": ("latte-temporal", 14, size(32, 24) | {"num_inference_steps": 2}),
}


def watch_transformer(recorder: Recorder, model: torch.nn.Module) -> None:
    """Step 0 of the transformer; the batch has the negative prompt first. Inside it, spatial blocks have a batch of
    frames, and temporal blocks one of places."""

    def inputs(_module, _args, kwargs):
        for name in ["hidden_states", "timestep", "encoder_hidden_states"]:
            recorder.put(f"transformer.{name}", kwargs[name])

    recorder.hooks.append(model.register_forward_pre_hook(inputs, with_kwargs=True))
    recorder.output(model.pos_embed, "transformer.pos_embed")
    recorder.output(model.caption_projection, "transformer.caption_projection")
    for i, blocks in enumerate(zip(model.transformer_blocks, model.temporal_transformer_blocks, strict=True)):
        recorder.output(blocks[0], f"transformer.transformer_blocks.{i}")
        recorder.output(blocks[1], f"transformer.temporal_transformer_blocks.{i}")
    recorder.output(model, "transformer.output")


def watch_temporal_decoder(recorder: Recorder, vae: torch.nn.Module) -> None:
    """The first chunk: the decoder, and its first residual block."""
    recorder.input(vae.decoder, "vae.z")
    recorder.output(vae.decoder.conv_in, "vae.conv_in")
    recorder.output(vae.decoder.mid_block.resnets[0], "vae.mid_block.resnets.0")
    recorder.output(vae.decoder, "vae.decoded")


@torch.no_grad()
def run_pipeline(pipe, call: dict, **inputs) -> dict[str, torch.Tensor]:
    """One call, with the sample of each step."""
    samples = []
    original_step = pipe.scheduler.step

    def step(prediction, timestep, sample, **kwargs):
        output = original_step(prediction, timestep, sample, **kwargs)
        samples.append(output[0])
        return output

    pipe.scheduler.step = step
    frames = pipe(**call, **inputs, output_type="np").frames
    pipe.scheduler.step = original_step
    return {
        "steps.latents": torch.stack(samples),
        "latents": samples[-1],
        # Rounds like `VaeImageProcessor.numpy_to_pil`; `[frames of all clips, h, w, 3]`.
        "image": torch.from_numpy((frames * 255).round().astype("uint8")).flatten(0, 1),
    }


def run_case(root: Path, name: str, checkpoint: str, seed: int, call: dict) -> None:
    call = CALL | call
    pipe, pipe64 = load(root / checkpoint), load(root / checkpoint, torch.float64)
    recorder = Recorder()
    if name == "latte-full":
        watch_transformer(recorder, pipe.transformer)
    if name == "latte-temporal-chunks":
        watch_temporal_decoder(recorder, pipe.vae)

    prepare_latents = pipe.prepare_latents

    def prepared(*args):
        latents = prepare_latents(*args)
        recorder.put("init_latents", latents)
        return latents

    pipe.prepare_latents = prepared
    tensors = run_pipeline(pipe, call, generator=torch.Generator().manual_seed(seed))
    recorder.close()
    # The distance between single and double precision in this case: no tolerance can be below it.
    double = run_pipeline(pipe64, call, latents=recorder.tensors["init_latents"].double())
    rounding = {"latents": relative_distance(tensors["latents"], double["latents"])}
    rounding["image"] = (tensors["image"].int() - double["image"].int()).abs().max().item()
    tensors = recorder.tensors | tensors
    record = {
        "checkpoint": checkpoint,
        "pipeline": type(pipe).__name__,
        "call": call,
        "seeds": [seed],
        "timesteps": [float(t) for t in pipe.scheduler.timesteps],
        "rounding": rounding,
        "tensors": {key: list(tensor.shape) for key, tensor in sorted(tensors.items())},
    }
    write_case(root / "cases", name, record, tensors)


def write_all(root: Path) -> None:
    for name, (checkpoint, seed, call) in CASES.items():
        run_case(root, name, checkpoint, seed, call)
