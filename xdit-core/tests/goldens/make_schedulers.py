"""Records runs of diffusers' schedulers with many configs; `tests/schedulers.rs` compares with them.

    pip install torch==2.15.0 diffusers==0.42.1 numpy safetensors scipy==1.17.1
    python make_schedulers.py

`schedulers.json` contains the cases: the contents of a `scheduler_config.json`, and numbers of steps. Cases of flow
matching also have the number of image tokens, which shifts the noise levels, and a flag for even noise levels. A case
with a `class` replaces the config's scheduler with this one, by `from_config`, with its `options`. Numbers of steps for which diffusers
gives no finite values are listed under `undefined_steps`.

`schedulers.safetensors` contains `noise` and the model's `outputs` of each step, which all cases share. For case `i`
with `n` steps it contains, under `i/n/`, the `timesteps`, the `samples` after each step, the scaled model `inputs`
(if scaling changes them), and `init_noise_sigma`. Noise in steps comes from a generator with the seed `n`; for
`DPMSolverSDEScheduler`, the increments of its Brownian motion do, which has a seed of its own in diffusers.

PyTorch uses a vector library for square roots, logarithms and exponentials. Its results are off by up to 0.9 units in
the last place and depend on the processor. Every case is therefore recorded twice: with unmodified diffusers
(`i/n/published/`), and with these functions correctly rounded (`i/n/rounded/`). The latter also solves systems of
equations in f64, and forms weighted sums without fused operations. A run keeps the values of earlier runs, which may
come from another processor.
"""

import contextlib
import inspect
import json
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from safetensors.torch import load_file, save_file

STEPS = [1, 2, 5, 14, 20]
FEW_STEPS = [1, 2, 3, 8]
SHAPE = (2, 5, 3)

DPM = {"_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.1"}
DDIM = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.42.1"}
DDPM = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.42.1"}
EULER = {"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.42.1"}
FLOW_MATCH = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.42.1"}

UNIPC = {"_class_name": "UniPCMultistepScheduler", "_diffusers_version": "0.42.1"}
HEUN = {"_class_name": "HeunDiscreteScheduler", "_diffusers_version": "0.42.1"}
EULER_A = {"_class_name": "EulerAncestralDiscreteScheduler", "_diffusers_version": "0.42.1"}
LCM = {"_class_name": "LCMScheduler", "_diffusers_version": "0.42.1"}
SINGLESTEP = {"_class_name": "DPMSolverSinglestepScheduler", "_diffusers_version": "0.42.1"}
DPM2 = {"_class_name": "KDPM2DiscreteScheduler", "_diffusers_version": "0.42.1"}
DPM2_A = {"_class_name": "KDPM2AncestralDiscreteScheduler", "_diffusers_version": "0.42.1"}
DPM_SDE = {"_class_name": "DPMSolverSDEScheduler", "_diffusers_version": "0.42.1"}
FLOW_HEUN = {"_class_name": "FlowMatchHeunDiscreteScheduler", "_diffusers_version": "0.42.1"}

PIXART = DPM | {
    "algorithm_type": "dpmsolver++", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
    "dynamic_thresholding_ratio": 0.995, "euler_at_final": False, "lambda_min_clipped": -float("inf"),
    "lower_order_final": True, "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0,
    "solver_order": 2, "solver_type": "midpoint", "steps_offset": 0, "thresholding": False,
    "timestep_spacing": "linspace", "trained_betas": None, "use_karras_sigmas": False, "use_lu_lambdas": False,
    "variance_type": None,
}
SDXL = EULER | {
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
    "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
    "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False,
}
DIT = DDIM | {
    "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, "clip_sample": False,
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": True, "steps_offset": 0,
    "trained_betas": None,
}
# HunyuanDiT 1.1
HUNYUAN = DDPM | {
    "beta_end": 0.03, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
    "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "num_train_timesteps": 1000,
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": False, "sample_max_value": 1.0,
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "thresholding": False,
    "timestep_spacing": "leading", "trained_betas": None, "variance_type": "fixed_small",
}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

SD3 = FLOW_MATCH | {"num_train_timesteps": 1000, "shift": 3.0}
FLUX_DEV = FLOW_MATCH | {
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15,
    "num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True,
}
LINEAR = {"time_shift_type": "linear"}
TERMINAL = {"shift_terminal": 0.1}

# Each config with the number of image tokens, and a flag for noise levels passed in by the model, as FLUX does.
FLOW_MATCH_CASES = [
    (SD3, None, False),
    (SD3, None, True),
    (FLOW_MATCH, None, False),
    (FLOW_MATCH, None, True),
    (SD3 | {"shift": 1.5}, None, True),
    (SD3 | {"num_train_timesteps": 500, "shift": 0.7}, None, False),
    (FLUX_DEV, 4096, True),
    (FLUX_DEV, 1024, True),
    (FLUX_DEV, 6, True),
    (FLUX_DEV, 16384, False),
    (FLUX_DEV | LINEAR, 1560, True),
    (FLUX_DEV | LINEAR, 256, False),
    (FLUX_DEV | {"base_shift": 0.25, "max_shift": 3.0, "base_image_seq_len": 16, "max_image_seq_len": 64}, 40, True),
    (FLUX_DEV | TERMINAL, 4096, True),
    (FLUX_DEV | TERMINAL | LINEAR, 2048, False),
    (SD3 | TERMINAL, None, False),
    (SD3 | {"shift_terminal": 0.0}, None, False),
    (SD3 | {"use_karras_sigmas": True}, None, False),
    (SD3 | {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 0.9}, None, False),
    (FLUX_DEV | {"use_karras_sigmas": True}, 4096, True),
    (SD3 | {"use_exponential_sigmas": True}, None, False),
    (SD3 | {"use_exponential_sigmas": True, **TERMINAL}, None, True),
    (SD3 | {"invert_sigmas": True}, None, False),
    (FLUX_DEV | {"invert_sigmas": True}, 4096, True),
]

CASES = [
    PIXART,
    PIXART | {"solver_order": 1},
    PIXART | {"solver_order": 3},
    PIXART | {"solver_type": "heun"},
    PIXART | {"solver_type": "bh2"},
    PIXART | SIGMA_MIN | {"algorithm_type": "deis", "solver_type": "logrho"},
    PIXART | {"euler_at_final": True, **SIGMA_MIN},
    PIXART | {"lower_order_final": False},
    PIXART | {"lower_order_final": False, "solver_order": 3, **SIGMA_MIN},
    PIXART | SIGMA_MIN,
    PIXART | SIGMA_MIN | {"solver_order": 3},
    PIXART | SIGMA_MIN | {"algorithm_type": "dpmsolver"},
    PIXART | SIGMA_MIN | {"algorithm_type": "dpmsolver", "solver_order": 1},
    PIXART | SIGMA_MIN | {"algorithm_type": "dpmsolver", "solver_order": 3},
    PIXART | SIGMA_MIN | {"algorithm_type": "dpmsolver", "solver_type": "heun"},
    PIXART | SIGMA_MIN | {"algorithm_type": "dpmsolver", "prediction_type": "sample"},
    PIXART | SIGMA_MIN | {"algorithm_type": "dpmsolver", "prediction_type": "v_prediction"},
    PIXART | {"prediction_type": "sample", "variance_type": "learned_range"},
    PIXART | {"prediction_type": "v_prediction"},
    PIXART | {"timestep_spacing": "leading"},
    PIXART | {"timestep_spacing": "leading", "steps_offset": 1},
    PIXART | {"timestep_spacing": "trailing"},
    PIXART | {"use_karras_sigmas": True},
    PIXART | {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 20.0},
    PIXART | {"use_karras_sigmas": True, **SIGMA_MIN},
    PIXART | {"use_karras_sigmas": True, "solver_order": 3, **SIGMA_MIN},
    PIXART | {"use_lu_lambdas": True},
    PIXART | {"use_exponential_sigmas": True},
    PIXART | {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    PIXART | COSINE | {"lambda_min_clipped": -5.1, "variance_type": "fixed_small"},
    PIXART | COSINE | {"use_karras_sigmas": True},
    PIXART | {"trained_betas": [0.001 * (i + 1) for i in range(100)], "num_train_timesteps": 100},
    PIXART | {"num_train_timesteps": 500, "timestep_spacing": "trailing"},
    PIXART | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    DPM | FLOW,
    DPM | FLOW | {"flow_shift": 3.0, "solver_order": 3},
    DPM | FLOW | {"flow_shift": 3.0, "prediction_type": "epsilon"},
    DPM,
    DIT,
    DDIM,
    DDIM | {"clip_sample_range": 2.5},
    DIT | {"set_alpha_to_one": False, "steps_offset": 1},
    DIT | {"timestep_spacing": "trailing"},
    DIT | {"timestep_spacing": "linspace"},
    DIT | {"prediction_type": "sample"},
    DIT | {"prediction_type": "v_prediction"},
    DIT | {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    DIT | COSINE,
    DIT | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    SDXL,
    EULER,
    SDXL | {"timestep_spacing": "linspace"},
    SDXL | {"timestep_spacing": "trailing", "steps_offset": 0},
    SDXL | {"prediction_type": "v_prediction"},
    SDXL | {"prediction_type": "v_prediction", "timestep_type": "continuous"},
    SDXL | {"prediction_type": "sample"},
    SDXL | {"interpolation_type": "log_linear"},
    SDXL | {"use_karras_sigmas": True},
    SDXL | {"use_karras_sigmas": True, "sigma_min": 0.03, "sigma_max": 14.6},
    SDXL | {"use_exponential_sigmas": True},
    SDXL | SIGMA_MIN,
    SDXL | COSINE,
    SDXL | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
]

BETA = {"use_beta_sigmas": True}
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
NOISE = {"predict_x0": False, **SIGMA_MIN}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

SDE = {"algorithm_type": "sde-dpmsolver++"}
SDE_NOISE = {"algorithm_type": "sde-dpmsolver", **SIGMA_MIN}
V = {"prediction_type": "v_prediction"}
ORDERS, SOLVERS = (1, 2, 3), ("midpoint", "heun")

# Recorded with fewer steps.
FURTHER_CASES = [
    *(
        UNIPC | {"solver_order": order, "solver_type": solver} | end
        for end in (SIGMA_MIN, NOISE) for order in ORDERS for solver in ("bh1", "bh2")
    ),
    UNIPC,
    UNIPC | {"solver_order": 3},
    UNIPC | {"solver_type": "bh1"},
    UNIPC | {"solver_type": "midpoint", **SCALED},
    UNIPC | {"lower_order_final": False},
    UNIPC | {"lower_order_final": False, "solver_order": 3, **SIGMA_MIN},
    UNIPC | {"disable_corrector": [0, 1, 4]},
    UNIPC | {"disable_corrector": [0], "solver_order": 3},
    UNIPC | {"prediction_type": "v_prediction"},
    UNIPC | {"prediction_type": "sample"},
    UNIPC | {"prediction_type": "v_prediction"} | NOISE,
    UNIPC | {"prediction_type": "sample"} | NOISE,
    UNIPC | {"timestep_spacing": "leading", "steps_offset": 1},
    UNIPC | {"timestep_spacing": "trailing"},
    UNIPC | KARRAS,
    UNIPC | KARRAS | SIGMA_MIN | {"solver_order": 3},
    UNIPC | KARRAS | {"sigma_min": 0.05, "sigma_max": 20.0},
    UNIPC | EXPONENTIAL,
    UNIPC | EXPONENTIAL | SIGMA_MIN,
    UNIPC | BETA,
    UNIPC | BETA | SIGMA_MIN | {"solver_order": 3},
    UNIPC | COSINE,
    UNIPC | FLOW | {"flow_shift": 3.0},
    UNIPC | FLOW | {"flow_shift": 5.0, "solver_order": 3, "shift_terminal": 0.1},
    UNIPC | FLOW | {"solver_order": 1, **SIGMA_MIN},
    UNIPC | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    HEUN,
    HEUN | SCALED,
    HEUN | {"timestep_spacing": "leading", "steps_offset": 1},
    HEUN | {"timestep_spacing": "trailing"},
    HEUN | {"prediction_type": "v_prediction"},
    HEUN | {"prediction_type": "sample"},
    HEUN | {"clip_sample": True},
    HEUN | {"clip_sample": True, "clip_sample_range": 2.5},
    HEUN | KARRAS,
    HEUN | EXPONENTIAL,
    HEUN | BETA | SCALED,
    HEUN | COSINE,
    HEUN | {"trained_betas": [0.001 * (i + 1) for i in range(100)], "num_train_timesteps": 100},
    *(SINGLESTEP | {"solver_order": order} for order in (1, 2, 3)),
    *(SINGLESTEP | {"solver_order": order, "solver_type": "heun"} for order in (2, 3)),
    *(SINGLESTEP | SIGMA_MIN | {"solver_order": order, "lower_order_final": True} for order in (2, 3)),
    *(SINGLESTEP | SIGMA_MIN | {"solver_order": order} for order in (2, 3)),
    *(
        SINGLESTEP | SIGMA_MIN | {"algorithm_type": "dpmsolver", "solver_order": order, "solver_type": solver}
        for order in (1, 2, 3) for solver in ("midpoint", "heun")
    ),
    SINGLESTEP | {"prediction_type": "v_prediction"},
    SINGLESTEP | {"prediction_type": "sample", "solver_order": 3},
    SINGLESTEP | SIGMA_MIN | {"algorithm_type": "dpmsolver", "prediction_type": "v_prediction"},
    SINGLESTEP | SIGMA_MIN | {"solver_type": "bh2", "algorithm_type": "deis"},
    SINGLESTEP | KARRAS,
    SINGLESTEP | KARRAS | COSINE | {"lambda_min_clipped": -5.1},
    SINGLESTEP | COSINE | {"lambda_min_clipped": -5.1},
    SINGLESTEP | EXPONENTIAL | {"solver_order": 3, **SIGMA_MIN},
    SINGLESTEP | BETA,
    SINGLESTEP | FLOW | {"flow_shift": 3.0},
    SINGLESTEP | SCALED | {"num_train_timesteps": 500},
    PIXART | BETA,
    PIXART | BETA | {"solver_order": 3, **SIGMA_MIN},
    EULER | BETA,
    SDXL | BETA | {"sigma_min": 0.03, "sigma_max": 14.6},
    FLOW_MATCH | BETA,
    SD3 | BETA | TERMINAL,
    FLOW_HEUN,
    FLOW_HEUN | {"shift": 3.0},
    FLOW_HEUN | {"shift": 0.7, "num_train_timesteps": 500},
    EULER_A,
    EULER_A | SCALED,
    EULER_A | {"timestep_spacing": "leading", "steps_offset": 1},
    EULER_A | V | {"timestep_spacing": "trailing"},
    EULER_A | V | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    EULER_A | COSINE,
    LCM,
    LCM | V | {"clip_sample": True},
    LCM | {"prediction_type": "sample", "original_inference_steps": 20, "timestep_scaling": 3.0},
    LCM | {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "thresholding": True},
    *(base | SDE | {"solver_order": order, "solver_type": solver}
      for base in (PIXART, SINGLESTEP) for order in ORDERS for solver in SOLVERS),
    *(base | SDE | SIGMA_MIN | V | {"solver_order": 3} for base in (PIXART, SINGLESTEP)),
    *(PIXART | SDE_NOISE | {"solver_order": order, "solver_type": solver} for order in (1, 2) for solver in SOLVERS),
    PIXART | SDE | KARRAS | {"euler_at_final": True},
    PIXART | {"thresholding": True},
    PIXART | {"thresholding": True, "algorithm_type": "dpmsolver", "sample_max_value": 0.7} | SIGMA_MIN,
    UNIPC | {"thresholding": True, "sample_max_value": 0.7},
    SINGLESTEP | {"thresholding": True, "dynamic_thresholding_ratio": 0.5},
    DDIM | {"thresholding": True, "sample_max_value": 0.7},
    DDPM | {"thresholding": True},
    FLOW_MATCH | {"stochastic_sampling": True, "shift": 3.0},
]

# Checkpoints' configs, and the classes that replace their own.
REPLACED = [
    *((config, name) for config in (PIXART, SDXL, DIT) for name in (
        "UniPCMultistepScheduler", "HeunDiscreteScheduler", "DPMSolverSinglestepScheduler", "DDIMScheduler",
        "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler",
        "DDPMScheduler",
    )),
    (SDXL | KARRAS | {"sigma_min": 0.03, "sigma_max": 14.6}, "HeunDiscreteScheduler"),
    (SDXL | KARRAS | {"sigma_min": 0.03, "sigma_max": 14.6}, "UniPCMultistepScheduler"),
    (PIXART | KARRAS | {"sigma_min": 0.05, "sigma_max": 20.0}, "HeunDiscreteScheduler"),
    (PIXART | {"algorithm_type": "deis", "solver_type": "logrho", "solver_order": 3}, "UniPCMultistepScheduler"),
    (UNIPC | {"solver_type": "bh1", "solver_order": 3, **KARRAS}, "DPMSolverMultistepScheduler"),
    (SD3, "FlowMatchHeunDiscreteScheduler"),
    (FLUX_DEV, "FlowMatchHeunDiscreteScheduler"),
]

# After all others, so that these keep their numbers.
SECOND_ORDER_CASES = [
    base | options
    for base in (DPM2, DPM2_A, DPM_SDE)
    for options in (
        {}, SCALED, V, KARRAS | SCALED, EXPONENTIAL, BETA | SCALED, COSINE,
        {"timestep_spacing": "leading", "steps_offset": 1}, V | {"timestep_spacing": "trailing"},
        {"trained_betas": [0.001 * (i + 1) for i in range(100)], "num_train_timesteps": 100},
    )
]
SECOND_ORDER_REPLACED = [
    (config, name)
    for config in (PIXART, SDXL, SDXL | KARRAS | {"sigma_min": 0.03, "sigma_max": 14.6})
    for name in ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler")
]

# Solvers for diffusion in place of one for a flow.
FLOW_SOLVERS = {
    "UniPCMultistepScheduler": [{}, {"solver_order": 3}, {"shift_terminal": 0.1}],
    "DPMSolverMultistepScheduler": [{}, {"solver_order": 3}, SDE],
    "DPMSolverSinglestepScheduler": [{}, {"solver_order": 3}, SDE],
}
FLOW_REPLACED = [
    {"config": config | further, "class": name, "options": FLOW | {"flow_shift": config["shift"]}}
    | ({"image_tokens": tokens} if tokens else {})
    for config, tokens in ((SD3, None), (FLUX_DEV, 1024), (FLUX_DEV, 4096))
    for name, options in FLOW_SOLVERS.items()
    for further in options
] + [{
    "config": FLUX_DEV | LINEAR, "class": "UniPCMultistepScheduler", "options": FLOW | {"flow_shift": 3.0},
    "image_tokens": 1560,
}]


class Increments:
    """Two increments of a Brownian motion over noise levels, in place of diffusers' sampler."""

    def __init__(self, shape, generator):
        self.draw = lambda: torch.randn(shape, generator=generator)
        self.begun = None

    def __call__(self, start, end):
        if self.begun is None:
            first = self.draw()
            self.begun = end, first
            return first
        (middle, first), self.begun = self.begun, None
        shares = ((start - middle) / (start - end)) ** 0.5, ((middle - end) / (start - end)) ** 0.5
        return first * shares[0] + self.draw() * shares[1]


@contextlib.contextmanager
def rounded_functions():
    """Computes square roots, logarithms and exponentials of f32 values in f64."""
    power = torch.Tensor.__pow__

    def by_f64(function):
        return lambda tensor: function(tensor.double()).to(tensor.dtype)

    sqrt, log, exp, expm1 = (by_f64(function) for function in (torch.sqrt, torch.log, torch.exp, torch.expm1))
    with contextlib.ExitStack() as stack:
        for owner in (torch, torch.Tensor):
            for name, function in {"sqrt": sqrt, "log": log, "exp": exp, "expm1": expm1}.items():
                stack.enter_context(mock.patch.object(owner, name, function))
        solve = torch.linalg.solve
        by_solving = lambda matrix, rhs: solve(matrix.double(), rhs.double()).to(rhs.dtype)
        stack.enter_context(mock.patch.object(torch.linalg, "solve", by_solving))
        weighted = lambda _, weights, tensors: sum(
            (weight * tensor for weight, tensor in zip(weights, tensors.unbind(1))), start=-0.0 * tensors[:, 0]
        ) if len(weights) else 0
        stack.enter_context(mock.patch.object(torch, "einsum", weighted))
        root = lambda tensor, exponent: sqrt(tensor) if exponent == 0.5 else power(tensor, exponent)
        stack.enter_context(mock.patch.object(torch.Tensor, "__pow__", root))
        yield


def run(case, steps, noise, outputs):
    """The timesteps, samples, model inputs and initial standard deviation of one run."""
    config = case["config"]
    scheduler = getattr(diffusers, case.get("class", config["_class_name"])).from_config(config, **case.get("options", {}))
    arguments = {}
    if case.get("even_sigmas"):
        arguments["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    if case.get("image_tokens"):
        names = "base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"
        arguments["mu"] = calculate_shift(case["image_tokens"], *(config[name] for name in names))
    scheduler.set_timesteps(steps, **arguments)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    # Flow matching starts from unscaled noise and passes it to the model unscaled.
    sigma = torch.tensor(float(getattr(scheduler, "init_noise_sigma", 1.0)), dtype=torch.float32)
    scale_model_input = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
    sample = noise * sigma
    # One stream for all steps.
    generator = torch.Generator().manual_seed(steps)
    stochastic = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = Increments(SHAPE, generator)
    samples, inputs, scaled = [], [], False
    for timestep, output in zip(scheduler.timesteps, outputs):
        inputs.append(scale_model_input(sample, timestep))
        scaled |= inputs[-1] is not sample
        sample = scheduler.step(output, timestep, sample, return_dict=False, **stochastic)[0]
        samples.append(sample)
    result = {"timesteps": scheduler.timesteps.float(), "samples": torch.stack(samples), "init_noise_sigma": sigma}
    return result | ({"inputs": torch.stack(inputs)} if scaled else {})


# After all others, so that these keep their numbers.
STOCHASTIC_CASES = [
    HUNYUAN,
    DDPM,
    HUNYUAN | {"beta_end": 0.018, "variance_type": "fixed_small_log"},
    HUNYUAN | {"variance_type": "fixed_large"},
    HUNYUAN | {"prediction_type": "epsilon", "timestep_spacing": "trailing"},
    HUNYUAN | {"prediction_type": "sample", "timestep_spacing": "linspace", "variance_type": "fixed_small_log"},
    DDPM | {"clip_sample_range": 2.5, "steps_offset": 1},
    HUNYUAN | COSINE,
    HUNYUAN | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    HUNYUAN | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "epsilon"},
]


def main():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SHAPE, generator=generator)
    outputs = torch.randn((max(STEPS) + 1, *SHAPE), generator=generator)
    tensors, cases = {"noise": noise, "outputs": outputs}, []
    configs = [{"config": config} for config in CASES]
    for config, tokens, even_sigmas in FLOW_MATCH_CASES:
        configs.append({"config": config, "image_tokens": tokens, "even_sigmas": even_sigmas})
    configs += [{"config": config} for config in STOCHASTIC_CASES]
    configs += [{"config": config, "count": FEW_STEPS} for config in FURTHER_CASES]
    configs += [{"config": config, "class": name, "count": FEW_STEPS} for config, name in REPLACED]
    configs += [{"config": config, "count": FEW_STEPS} for config in SECOND_ORDER_CASES]
    configs += [{"config": config, "class": name, "count": FEW_STEPS} for config, name in SECOND_ORDER_REPLACED]
    configs += [case | {"count": FEW_STEPS} for case in FLOW_REPLACED]
    for i, case in enumerate(configs):
        counts = case.pop("count", STEPS)
        case |= {"steps": [], "undefined_steps": []}
        for steps in counts:
            published = run(case, steps, noise, outputs)
            if not torch.isfinite(published["samples"]).all():
                case["undefined_steps"].append(steps)
                continue
            case["steps"].append(steps)
            with rounded_functions():
                rounded = run(case, steps, noise, outputs)
            for kind, result in {"published": published, "rounded": rounded}.items():
                tensors |= {f"{i}/{steps}/{kind}/{name}": tensor.contiguous() for name, tensor in result.items()}
        cases.append(case)
        if case["undefined_steps"]:
            print(f"no finite numbers: {case}")

    folder = Path(__file__).parent
    (folder / "schedulers.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    earlier = load_file(folder / "schedulers.safetensors")
    save_file({name: earlier.get(name, tensor) for name, tensor in tensors.items()}, folder / "schedulers.safetensors")
    print(f"{len(cases)} configs, torch {torch.__version__}, diffusers {diffusers.__version__}")


if __name__ == "__main__":
    main()
