"""Noise schedulers on their own: given model outputs in, the sample after each step out.

Every case reads the same two tensors, `noise` and `model_outputs`, and starts from `noise * init_noise_sigma`.
"""

from pathlib import Path

import diffusers
import torch

from pipeline_cases import write_case

SHAPE = (2, 4, 2, 4)
MAX_STEPS = 20
PIXART_BETAS = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}


def dpm(steps: int, **config) -> tuple[str, int, dict]:
    return "DPMSolverMultistepScheduler", steps, PIXART_BETAS | config


def ddim(steps: int, **config) -> tuple[str, int, dict]:
    return "DDIMScheduler", steps, PIXART_BETAS | {"clip_sample": False} | config


def euler(steps: int, **config) -> tuple[str, int, dict]:
    return "EulerDiscreteScheduler", steps, PIXART_BETAS | config


CASES = {
    **{f"dpm-{steps}-steps": dpm(steps) for steps in [1, 2, 3, 5, 14, 15, 20]},
    **{
        f"dpm-order-{order}-{steps}-steps": dpm(steps, solver_order=order)
        for order in [1, 3]
        for steps in [2, 5, 14, 15]
    },
    **{
        f"dpm-{spacing}-{steps}-steps": dpm(steps, timestep_spacing=spacing)
        for spacing in ["leading", "trailing"]
        for steps in [1, 5, 15]
    },
    "dpm-leading-offset": dpm(5, timestep_spacing="leading", steps_offset=1),
    "dpm-heun": dpm(6, solver_type="heun"),
    "dpm-lower-order-not-final": dpm(5, lower_order_final=False),
    "dpm-order-3-lower-order-not-final": dpm(6, solver_order=3, lower_order_final=False, final_sigmas_type="sigma_min"),
    "dpm-sigma-min": dpm(5, final_sigmas_type="sigma_min"),
    "dpm-sigma-min-15-steps": dpm(15, final_sigmas_type="sigma_min"),
    "dpm-euler-at-final": dpm(5, euler_at_final=True),
    "dpm-euler-at-final-15-steps": dpm(15, euler_at_final=True, final_sigmas_type="sigma_min"),
    "dpm-karras": dpm(5, use_karras_sigmas=True),
    "dpm-karras-20-steps": dpm(20, use_karras_sigmas=True),
    "dpm-karras-trailing": dpm(6, use_karras_sigmas=True, timestep_spacing="trailing", final_sigmas_type="sigma_min"),
    "dpm-lu-lambdas": dpm(6, use_lu_lambdas=True),
    "dpm-exponential": dpm(6, use_exponential_sigmas=True),
    **{
        f"dpm-plain-order-{order}-{solver}": dpm(
            6, algorithm_type="dpmsolver", final_sigmas_type="sigma_min", solver_order=order, solver_type=solver
        )
        for order in [1, 2, 3]
        for solver in ["midpoint", "heun"]
    },
    "dpm-v-prediction": dpm(5, prediction_type="v_prediction"),
    "dpm-sample": dpm(5, prediction_type="sample"),
    "dpm-plain-v-prediction": dpm(
        5, prediction_type="v_prediction", algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
    ),
    "dpm-plain-sample": dpm(5, prediction_type="sample", algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
    "dpm-flow": dpm(5, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    "dpm-thresholding": dpm(5, thresholding=True),
    "dpm-thresholding-sample-max": dpm(5, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=2.0),
    "dpm-scaled-linear": dpm(5, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "dpm-cosine": dpm(5, beta_schedule="squaredcos_cap_v2"),
    "dpm-zero-terminal-snr": dpm(5, rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    "dpm-lambda-min-clipped": dpm(5, beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
    "dpm-500-train-timesteps": dpm(5, num_train_timesteps=500),
    "ddim": ddim(5),
    "ddim-1-step": ddim(1),
    "ddim-20-steps": ddim(20),
    "ddim-alpha-not-one": ddim(5, set_alpha_to_one=False),
    "ddim-clip-sample": ddim(5, clip_sample=True),
    "ddim-clip-sample-range": ddim(5, clip_sample=True, clip_sample_range=2.5),
    "ddim-steps-offset": ddim(5, steps_offset=1, set_alpha_to_one=False),
    "ddim-trailing": ddim(5, timestep_spacing="trailing"),
    "ddim-linspace": ddim(5, timestep_spacing="linspace"),
    "ddim-v-prediction": ddim(5, prediction_type="v_prediction"),
    "ddim-sample": ddim(5, prediction_type="sample"),
    "ddim-thresholding": ddim(5, thresholding=True),
    "ddim-scaled-linear": ddim(5, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "ddim-zero-terminal-snr": ddim(
        5, rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"
    ),
    "euler": euler(5),
    "euler-1-step": euler(1),
    "euler-20-steps": euler(20),
    "euler-leading": euler(5, timestep_spacing="leading", steps_offset=1),
    "euler-trailing": euler(5, timestep_spacing="trailing"),
    "euler-karras": euler(5, use_karras_sigmas=True),
    "euler-exponential": euler(5, use_exponential_sigmas=True),
    "euler-v-prediction": euler(5, prediction_type="v_prediction"),
    "euler-sigma-min": euler(5, final_sigmas_type="sigma_min"),
    "euler-log-linear": euler(5, interpolation_type="log_linear"),
    "euler-scaled-linear": euler(5, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
}


def run(kind: str, steps: int, config: dict, noise: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
    scheduler = getattr(diffusers, kind)(**config)
    scheduler.set_timesteps(steps)
    # Some configs collapse or double timesteps: the list says how many steps there are.
    timesteps = scheduler.timesteps
    sample = noise * scheduler.init_noise_sigma
    inputs, samples = [], []
    for timestep, output in zip(timesteps, outputs, strict=False):
        inputs.append(scheduler.scale_model_input(sample, timestep))
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        samples.append(sample)
    assert torch.isfinite(sample).all(), kind
    result = {
        "timesteps": timesteps.to(torch.float32),
        "init_noise_sigma": torch.tensor([float(scheduler.init_noise_sigma)]),
        "samples": torch.stack(samples),
    }
    if kind == "EulerDiscreteScheduler":
        result["model_inputs"] = torch.stack(inputs)
    if hasattr(scheduler, "sigmas"):
        result["sigmas"] = scheduler.sigmas.to(torch.float32)
    return result


def write_all(root: Path) -> None:
    generator = torch.Generator().manual_seed(2024)
    noise = torch.randn(SHAPE, generator=generator)
    outputs = torch.randn(MAX_STEPS, *SHAPE, generator=generator)
    tensors = {"noise": noise, "model_outputs": outputs}
    record = {}
    for name, (kind, steps, config) in CASES.items():
        result = run(kind, steps, config, noise, outputs)
        tensors |= {f"{name}/{key}": value for key, value in result.items()}
        record[name] = {"class": kind, "num_inference_steps": steps, "config": config}
    write_case(root / "cases", "schedulers", record, tensors)
