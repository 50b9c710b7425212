"""Runs of the reference PixArt pipelines, with intermediate tensors."""

import contextlib
import functools
import inspect
import json
import sys
from pathlib import Path
from unittest import mock

import diffusers
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

PROMPT = "A photo of a fox, sitting on the red sofa beside a broken teapot"
NEGATIVE = "blurry, low quality"
LONG_PROMPT = ", ".join(
    f"{count} {colour} {animal} dancing around the {place}"
    for count, colour, animal, place in zip(
        ["two", "3", "seven", "nine", "a dozen", "many", "some", "countless", "zero", "twin"] * 2,
        ["golden", "misty", "rusty", "purple", "tiny"] * 4,
        ["owls", "tigers", "robots", "queens"] * 5,
        ["lighthouse", "volcano", "kitchen", "glacier", "orchard", "market", "temple"] * 3,
        strict=False,
    )
)

# The options that every case states; `clean_caption` and `use_resolution_binning` are on by default in the
# pipelines.
CALL = {
    "prompt": PROMPT,
    "negative_prompt": NEGATIVE,
    "num_inference_steps": 4,
    "guidance_scale": 4.5,
    "num_images_per_prompt": 1,
    "clean_caption": False,
    "use_resolution_binning": False,
}


def size(height: int, width: int) -> dict:
    return {"height": height, "width": width}


# name -> (checkpoint, seed of image 0, call, keyword arguments of `run_case`)
CASES = {
    "alpha-256-full": ("pixart-alpha-256", 7, size(64, 96) | {"num_inference_steps": 6}, {"full": True}),
    "alpha-1024-full": ("pixart-alpha-1024", 8, size(96, 160) | {"num_inference_steps": 5}, {"full": True}),
    "sigma-512-full": ("pixart-sigma-512", 9, size(128, 64) | {"num_inference_steps": 5}, {"full": True}),
    "alpha-256-batch": ("pixart-alpha-256", 11, size(64, 64) | {"prompt": [PROMPT, "two dragons"]}, {}),
    "alpha-256-images-per-prompt": (
        "pixart-alpha-256",
        21,
        size(64, 64) | {"prompt": [PROMPT, "two dragons"], "num_images_per_prompt": 2},
        {},
    ),
    "alpha-256-no-guidance": ("pixart-alpha-256", 12, size(64, 64) | {"guidance_scale": 1.0}, {}),
    "alpha-256-long-prompt": ("pixart-alpha-256", 13, size(64, 64) | {"prompt": LONG_PROMPT}, {}),
    "alpha-256-clean-caption": (
        "pixart-alpha-256",
        14,
        size(64, 64) | {"prompt": "<b>A Cat</b> &amp; 2 dogs... http://x.com/cat.png #12345", "clean_caption": True},
        {},
    ),
    "alpha-256-defaults": (
        "pixart-alpha-256",
        0,
        {"negative_prompt": "", "clean_caption": True, "use_resolution_binning": True, "num_inference_steps": 3},
        {},
    ),
    "alpha-256-binning": ("pixart-alpha-256", 15, size(200, 300) | {"use_resolution_binning": True}, {}),
    "alpha-512-binning": (
        "pixart-alpha-512",
        16,
        size(500, 700) | {"use_resolution_binning": True, "num_inference_steps": 2},
        {},
    ),
    "alpha-512-non-square": ("pixart-alpha-512", 17, size(96, 160), {}),
    "alpha-512-20-steps": ("pixart-alpha-512", 18, size(96, 64) | {"num_inference_steps": 20}, {}),
    "alpha-1024-portrait": ("pixart-alpha-1024", 19, size(208, 80), {}),
    "alpha-256-karras": (
        "pixart-alpha-256",
        31,
        size(64, 64) | {"num_inference_steps": 6},
        {"scheduler": {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}},
    ),
    "alpha-256-third-order": (
        "pixart-alpha-256",
        32,
        size(64, 64) | {"num_inference_steps": 8},
        {"scheduler": {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}},
    ),
    "alpha-256-ddim": (
        "pixart-alpha-256",
        33,
        size(64, 64),
        {"scheduler": {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "clip_sample": False}},
    ),
    "alpha-256-euler": ("pixart-alpha-256", 34, size(64, 64), {"scheduler": {"_class_name": "EulerDiscreteScheduler"}}),
    # Each step draws noise; each picture has a stream of its own.
    "alpha-256-ddpm": (
        "pixart-alpha-256",
        35,
        size(64, 96) | {"num_inference_steps": 6, "num_images_per_prompt": 2},
        {"scheduler": {"_class_name": "DDPMScheduler", "clip_sample": False, "steps_offset": 1}},
    ),
    # The model is evaluated twice a step.
    "alpha-256-heun": ("pixart-alpha-256", 36, size(64, 64), {"scheduler": {"_class_name": "HeunDiscreteScheduler"}}),
    "alpha-256-unipc": (
        "pixart-alpha-256",
        37,
        size(64, 64) | {"num_inference_steps": 6},
        {"scheduler": {"_class_name": "UniPCMultistepScheduler", "solver_order": 3}},
    ),
    "alpha-256-euler-ancestral": (
        "pixart-alpha-256",
        38,
        size(64, 64) | {"num_images_per_prompt": 2},
        {"scheduler": {"_class_name": "EulerAncestralDiscreteScheduler"}},
    ),
    "alpha-256-sde": (
        "pixart-alpha-256",
        39,
        size(64, 64),
        {"scheduler": {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}},
    ),
    "sigma-512-long-prompt": ("pixart-sigma-512", 41, size(64, 64) | {"prompt": LONG_PROMPT + ", " + LONG_PROMPT}, {}),
    # `PixArtAlphaPipeline` cannot take a single step with this scheduler, but `PixArtSigmaPipeline` can.
    "sigma-512-one-step": ("pixart-sigma-512", 42, size(64, 64) | {"num_inference_steps": 1}, {}),
    "sigma-512-binning": (
        "pixart-sigma-512",
        43,
        size(150, 85) | {"use_resolution_binning": True, "num_inference_steps": 2},
        {},
    ),
    "sigma-2k-square": ("pixart-sigma-2k", 44, size(128, 128), {}),
}


def load(checkpoint: Path, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    variant = "fp16" if any(checkpoint.rglob("*.fp16.safetensors")) else None
    index = json.loads((checkpoint / "model_index.json").read_text())
    # A missing component is a pair of nulls in the index, and must be passed as None.
    absent = {name: None for name, value in index.items() if value == [None, None]}
    pipe = DiffusionPipeline.from_pretrained(checkpoint, variant=variant, dtype=dtype, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Recorder:
    """Collects tensors by name, and removes its hooks at the end."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.hooks = []

    def put(self, name: str, value: torch.Tensor) -> None:
        """Keeps the first value of a name: a hook fires at every step, and only step 0 is kept."""
        if name not in self.tensors:
            self.tensors[name] = value.detach().clone()

    def output(self, module: torch.nn.Module, name: str) -> None:
        def hook(_module, _inputs, output):
            output = output[0] if isinstance(output, (tuple, list)) else output
            self.put(name, output)

        self.hooks.append(module.register_forward_hook(hook))

    def input(self, module: torch.nn.Module, name: str) -> None:
        self.hooks.append(module.register_forward_pre_hook(lambda _module, inputs: self.put(name, inputs[0])))

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


def watch_transformer(recorder: Recorder, model: torch.nn.Module, inside_block: int = 1) -> None:
    """Step 0 of the transformer: its inputs, the embeddings, every block, the inside of one block, and the output.

    The batch contains the negative prompts first, then the prompts.
    """

    def inputs(_module, args, kwargs):
        recorder.put("transformer.hidden_states", args[0])
        for name in ["timestep", "encoder_hidden_states", "encoder_attention_mask"]:
            recorder.put(f"transformer.{name}", kwargs[name])
        for name, value in kwargs["added_cond_kwargs"].items():
            if value is not None:
                recorder.put(f"transformer.{name}", value)

    def adaln(_module, _inputs, output):
        recorder.put("transformer.adaln_single", output[0])
        recorder.put("transformer.adaln_single.embedded_timestep", output[1])

    recorder.hooks.append(model.register_forward_pre_hook(inputs, with_kwargs=True))
    recorder.hooks.append(model.adaln_single.register_forward_hook(adaln))
    recorder.output(model.pos_embed, "transformer.pos_embed")
    recorder.output(model.caption_projection, "transformer.caption_projection")
    for i, block in enumerate(model.transformer_blocks):
        recorder.output(block, f"transformer.transformer_blocks.{i}")
    block = model.transformer_blocks[inside_block]
    for name in ["attn1", "attn2", "ff"]:
        recorder.input(getattr(block, name), f"transformer.transformer_blocks.{inside_block}.{name}.input")
        recorder.output(getattr(block, name), f"transformer.transformer_blocks.{inside_block}.{name}")
    recorder.output(model.norm_out, "transformer.norm_out")
    recorder.output(model.proj_out, "transformer.proj_out")
    recorder.output(model, "transformer.output")


def watch_text_encoder(recorder: Recorder, model: torch.nn.Module) -> None:
    """Records the first call of the text encoder, which encodes the prompt."""
    recorder.output(model.shared, "text_encoder.shared")
    for i, block in enumerate(model.encoder.block):
        recorder.output(block, f"text_encoder.block.{i}")


def watch_decoder(recorder: Recorder, vae: torch.nn.Module, blocks: bool) -> None:
    recorder.hooks.append(vae.decoder.register_forward_hook(lambda _m, _i, output: recorder.put("vae.decoded", output)))
    if vae.post_quant_conv is not None:
        recorder.output(vae.post_quant_conv, "vae.post_quant_conv")
    if blocks:
        recorder.output(vae.decoder.conv_in, "vae.decoder.conv_in")
        recorder.output(vae.decoder.mid_block.attentions[0], "vae.decoder.mid_block.attentions.0")
        recorder.output(vae.decoder.mid_block, "vae.decoder.mid_block")
        for i, block in enumerate(vae.decoder.up_blocks):
            recorder.output(block, f"vae.decoder.up_blocks.{i}")


def tokens_of(pipe: DiffusionPipeline, call: dict) -> dict[str, torch.Tensor]:
    """The token ids and masks of the prompt and the negative prompt, as made by `encode_prompt`."""
    tokens = {}
    for role in ["prompt", "negative_prompt"]:
        encoded = pipe.tokenizer(
            pipe._text_preprocessing(call[role], clean_caption=call["clean_caption"]),
            padding="max_length",
            max_length=300 if "Sigma" in type(pipe).__name__ else 120,
            truncation=True,
            return_tensors="pt",
        )
        tokens |= {f"{role}.input_ids": encoded.input_ids, f"{role}.attention_mask": encoded.attention_mask}
    return tokens


@torch.no_grad()
def run_pipeline(pipe: DiffusionPipeline, call: dict, **inputs) -> dict[str, torch.Tensor]:
    """One call, with the model's output and the sample of each step: `steps.noise_pred` and `steps.latents`."""
    predictions, samples = [], []
    original_step = pipe.scheduler.step

    # The pipeline looks for parameters of the original.
    @functools.wraps(original_step)
    def step(prediction, timestep, sample, **kwargs):
        output = original_step(prediction, timestep, sample, **kwargs)
        predictions.append(prediction)
        samples.append(output[0])
        return output

    pipe.scheduler.step = step
    image = pipe(**call, **inputs, output_type="np").images
    pipe.scheduler.step = original_step
    return {
        "steps.noise_pred": torch.stack(predictions),
        "steps.latents": torch.stack(samples),
        "latents": samples[-1],
        # Rounds like `VaeImageProcessor.numpy_to_pil`.
        "image": torch.from_numpy((image * 255).round().astype("uint8")),
    }


def relative_distance(value: torch.Tensor, reference: torch.Tensor) -> float:
    return ((value.double() - reference).norm() / reference.norm()).item()


@contextlib.contextmanager
def noise_of_f32(scheduler, seeds: list[int], shape: tuple):
    """The generators of pictures after their initial latents; from them, `scheduler` draws f32 in an f64 run, too."""
    if "generator" not in inspect.signature(scheduler.step).parameters:
        yield {}
        return
    module = sys.modules[type(scheduler).__module__]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for generator in generators:
        torch.randn(shape, generator=generator)
    randn_tensor = module.randn_tensor

    def drawn(*args, dtype, **kwargs):
        return randn_tensor(*args, dtype=torch.float32, **kwargs).to(dtype)

    with mock.patch.object(module, "randn_tensor", drawn):
        yield {"generator": generators}


def run_both(
    pipe: DiffusionPipeline, pipe64: DiffusionPipeline, call: dict, seed: int, recorder: Recorder
) -> tuple[dict[str, torch.Tensor], list[int], dict]:
    """The tensors of one call in f32, the seed of each picture, and the distance to f64."""
    prepare_latents = pipe.prepare_latents

    def prepared(batch, channels, height, width, *args):
        latents = prepare_latents(batch, channels, height, width, *args)
        shape = (1, channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
        noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        # Flow matching starts from unscaled noise.
        assert torch.equal(latents, noise * getattr(pipe.scheduler, "init_noise_sigma", 1.0))
        recorder.put("init_latents", noise)
        return latents

    pipe.prepare_latents = prepared
    prompts = 1 if isinstance(call["prompt"], str) else len(call["prompt"])
    # Image i of a request uses seed + i; prompts form the outer loop.
    seeds = [seed + i for i in range(prompts * call["num_images_per_prompt"])]
    tensors = run_pipeline(pipe, call, generator=[torch.Generator().manual_seed(seed) for seed in seeds])
    recorder.close()

    # The distance between single and double precision in this case: no tolerance can be below it.
    with noise_of_f32(pipe64.scheduler, seeds, recorder.tensors["init_latents"][:1].shape) as stochastic:
        double = run_pipeline(pipe64, call, latents=recorder.tensors["init_latents"].double(), **stochastic)
    rounding = {key: relative_distance(tensors[key], double[key]) for key in ["steps.noise_pred", "latents"]}
    rounding["image"] = (tensors["image"].int() - double["image"].int()).abs().max().item()
    return recorder.tensors | tensors, seeds, rounding


def run_case(
    root: Path, name: str, checkpoint: str, seed: int, call: dict, *, full: bool = False, scheduler: dict | None = None
) -> None:
    call = CALL | call
    pipe, pipe64 = load(root / checkpoint), load(root / checkpoint, torch.float64)
    if scheduler is not None:
        scheduler = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02} | scheduler
        kind = getattr(diffusers, scheduler["_class_name"])
        pipe.scheduler, pipe64.scheduler = kind.from_config(scheduler), kind.from_config(scheduler)

    recorder = Recorder()
    if full:
        watch_text_encoder(recorder, pipe.text_encoder)
        watch_transformer(recorder, pipe.transformer)
        watch_decoder(recorder, pipe.vae, blocks=name == "alpha-256-full")
        for role, value in tokens_of(pipe, call).items():
            recorder.put(role, value)

    tensors, seeds, rounding = run_both(pipe, pipe64, call, seed, recorder)
    height, width = (edge * pipe.vae_scale_factor for edge in tensors["latents"].shape[2:])
    if full:
        negative, positive = tensors["transformer.encoder_hidden_states"].chunk(2)
        tensors["negative_prompt_embeds"], tensors["prompt_embeds"] = negative, positive
        pixels = (
            torch.rand(1, 3, *tensors["vae.decoded"].shape[2:], generator=torch.Generator().manual_seed(seed)) * 2 - 1
        )
        with torch.no_grad():
            tensors |= {"vae.pixels": pixels, "vae.moments": pipe.vae.encode(pixels).latent_dist.parameters}

    record = {
        "checkpoint": checkpoint,
        "pipeline": type(pipe).__name__,
        "call": call,
        "seeds": seeds,
        "scheduler": scheduler,
        "bucket": size(height, width),
        "timesteps": [float(t) for t in pipe.scheduler.timesteps],
        "init_noise_sigma": float(pipe.scheduler.init_noise_sigma),
        "rounding": rounding,
        "tensors": {key: list(tensor.shape) for key, tensor in sorted(tensors.items())},
    }
    write_case(root / "cases", name, record, tensors)


def write_case(folder: Path, name: str, record: dict, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    # The file format has no views, so every tensor needs memory of its own.
    save_file(
        {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()},
        folder / f"{name}.safetensors",
    )


def write_all(root: Path) -> None:
    for name, (checkpoint, seed, call, options) in CASES.items():
        run_case(root, name, checkpoint, seed, call, **options)
