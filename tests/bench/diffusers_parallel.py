"""Times a denoising step of diffusers on several GPUs, on a model of published size with random weights.

    torchrun --nproc-per-node 2 diffusers_parallel.py NAME METHOD [--size 1024] [--repeat 10]

NAME is one of the models of `xdit bench`, METHOD is `ulysses`, `ring` or `tensor`, with all ranks as its degree. A step
is one forward pass of the transformer in bf16. The first rank prints one JSON object with milliseconds and the peak
memory of its GPU in GiB. Needs torch with CUDA and diffusers; no weights are read.
"""

import argparse
import json
import os

import diffusers
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig

import diffusers_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("method", choices=["ulysses", "ring", "tensor"])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=10)
    args = parser.parse_args()
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    world = dist.get_world_size()

    # All ranks have the same weights and inputs.
    torch.manual_seed(0)
    torch.cuda.manual_seed(0)
    published = json.loads((diffusers_device.PUBLISHED / f"{args.name}.json").read_text())
    config = published["components"]["transformer"]["config"]
    model = diffusers_device.build(config, "", torch.bfloat16)
    call = diffusers_device.inputs(args.name, config, args.size, torch.bfloat16)
    if args.method == "tensor":
        model.enable_parallelism(config=diffusers.TensorParallelConfig(tp_degree=world))
    else:
        # The default backend has no log-sum-exp for the ring.
        model.set_attention_backend("_native_cudnn")
        model.enable_parallelism(config=ContextParallelConfig(**{f"{args.method}_degree": world}))
    torch.cuda.reset_peak_memory_stats()
    step = diffusers_device.median_ms(lambda: model(**call, return_dict=False), args.repeat)
    if rank == 0:
        report = {
            "name": args.name,
            "method": args.method,
            "ranks": world,
            "size": args.size,
            "device": torch.cuda.get_device_name(),
            "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
            "step_ms": step,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        }
        print(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
