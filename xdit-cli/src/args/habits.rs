//! Options that users of other programs type: those that mean the same here, those that mean nothing here, and those for which
//! there is another way.

use xdit_core::Error;

/// Names in diffusers' examples, xDiT, stable-diffusion.cpp, mflux and web interfaces, and the option that means the same.
const SAME: [(&str, &str); 50] = [
    ("--model-id", "--model"),
    ("--model-path", "--model"),
    ("--pretrained-model-name-or-path", "--model"),
    ("--ckpt", "--model"),
    ("--checkpoint", "--model"),
    ("--prompts", "--prompt"),
    ("--negative", "--negative-prompt"),
    ("--neg-prompt", "--negative-prompt"),
    ("--n-prompt", "--negative-prompt"),
    ("--negative-prompts", "--negative-prompt"),
    ("--guidance", "--guidance-scale"),
    ("--cfg", "--guidance-scale"),
    ("--sampling-steps", "--num-inference-steps"),
    ("--num-steps", "--num-inference-steps"),
    ("--sample-steps", "--num-inference-steps"),
    ("--inference-steps", "--num-inference-steps"),
    ("--batch-count", "--num-images"),
    ("-b", "--num-images"),
    ("--num-outputs", "--num-images"),
    ("--num-samples", "--num-images"),
    ("--n-samples", "--num-images"),
    ("--n-iter", "--num-images"),
    ("--image-height", "--height"),
    ("--image-width", "--width"),
    ("--type", "--dtype"),
    ("--torch-dtype", "--dtype"),
    ("--enable-tiling", "--vae-tiling"),
    ("--enable-vae-tiling", "--vae-tiling"),
    ("--enable-vae-temporal-decoder", "--temporal-decoder"),
    ("-t", "--threads"),
    ("--cache-dir", "--download-dir"),
    ("--outfile", "--output"),
    ("--out", "--output"),
    ("--config-from-metadata", "--from"),
    ("-C", "--from"),
    ("--tp-degree", "--tensor-parallel-degree"),
    ("--skip-layers", "--skip-guidance-layers"),
    ("--slg-scale", "--skip-layer-guidance-scale"),
    ("--seeds", "--seed"),
    ("--frame-rate", "--fps"),
    ("--framerate", "--fps"),
    ("--video-frames", "--num-frames"),
    ("--frames", "--num-frames"),
    ("--tp", "--tensor-parallel-degree"),
    ("--batch-size", "--num-images"),
    ("--output-format", "--output-type"),
    ("--format", "--output-type"),
    ("--gpus", "--num-gpus"),
    ("--n-gpus", "--num-gpus"),
    ("--tiled", "--vae-tiling"),
];

const COMPILED: &str = "nothing is compiled by PyTorch";
const OFFLOADED: &str = "weights leave memory as `--keep` says";
const SLICED: &str = "pictures are decoded one after another";
const ATTENTION: &str =
    "attention never holds all scores at once, and the fastest one for the device is taken";
const PROFILED: &str = "`--trace` writes a timeline, and `--report json` the times";
const TALKED: &str = "`xdit devices` and `--report json` say more";

/// Options without a meaning here, the number of their values, and the reason.
const NOTHING: [(&str, usize, &str); 42] = [
    ("--use-torch-compile", 0, COMPILED),
    ("--use-onediff", 0, COMPILED),
    ("--use-cuda-graph", 0, "there are no graphs to record"),
    ("--trust-remote-code", 0, "no code of a model is run"),
    ("--use-safetensors", 0, "only safetensors files are read"),
    ("--disable-safety-checker", 0, "there is no safety checker"),
    ("--enable-sequential-cpu-offload", 0, OFFLOADED),
    ("--enable-model-cpu-offload", 0, OFFLOADED),
    ("--offload-to-cpu", 0, OFFLOADED),
    ("--clip-on-cpu", 0, OFFLOADED),
    ("--vae-on-cpu", 0, OFFLOADED),
    ("--low-ram", 0, OFFLOADED),
    ("--lowvram", 0, OFFLOADED),
    ("--medvram", 0, OFFLOADED),
    ("--mmap", 0, "weights are always mapped"),
    ("--enable-slicing", 0, SLICED),
    ("--enable-vae-slicing", 0, SLICED),
    ("--attention-backend", 1, ATTENTION),
    ("--cross-attention-backend", 1, ATTENTION),
    ("--enable-xformers-memory-efficient-attention", 0, ATTENTION),
    ("--enable-attention-slicing", 0, ATTENTION),
    ("--xformers", 0, ATTENTION),
    ("--diffusion-fa", 0, ATTENTION),
    ("--fa", 0, ATTENTION),
    ("--run-profile", 0, PROFILED),
    ("--use-profiler", 0, PROFILED),
    ("--profile-wait", 1, PROFILED),
    ("--profile-warmup", 1, PROFILED),
    ("--profile-active", 1, PROFILED),
    ("--warmup-calls", 1, "`xdit bench` measures with `--warmup` and `--repeat`"),
    ("--num-iterations", 1, "`xdit bench` measures with `--warmup` and `--repeat`"),
    ("--base-model", 1, "a model's folder says what it is"),
    ("--rng", 1, "noise is that of PyTorch's generator on the CPU"),
    ("--metadata", 0, "pictures contain their parameters, which `xdit inspect` shows"),
    ("--color", 0, "nothing is coloured"),
    ("--no-progress", 0, "use `--quiet` for less output"),
    ("-v", 0, TALKED),
    ("--verbose", 0, TALKED),
    ("--enable-temporal-attentions", 0, "they are on unless `--no-enable-temporal-attentions` is given"),
    ("--low-memory", 0, OFFLOADED),
    ("--cpu-offload", 0, OFFLOADED),
    ("--enable-cpu-offload", 0, OFFLOADED),
];

/// A file of weights in place of a folder.
const SINGLE_FILE: [&str; 2] = [
    "names a single file, and a model here is a folder with a part in each subfolder",
    "give the folder in the diffusers layout, or its id on the hub, with `--model`; diffusers' `from_single_file` and `save_pretrained` convert files",
];
const LORA: [&str; 2] = [
    "needs LoRAs, which are not supported",
    "merge it into the model with diffusers' `fuse_lora` and `save_pretrained`",
];
const QUANTISED: [&str; 2] =
    ["needs quantised weights, which are not supported", "`--dtype bf16` takes half of the memory"];
const IMAGE: [&str; 2] = [
    "needs a picture as input, which is not supported",
    "pictures are made from prompts, or from `--init-latents`",
];
const CACHED: [&str; 2] = [
    "skips parts of steps, which is not supported",
    "leave it out; of the methods here, only `--distrifusion` and PipeFusion use values of earlier steps",
];
const SHARDED: [&str; 2] = [
    "is not supported",
    "`--tensor-parallel-degree` and `--pipefusion-parallel-degree` divide the weights among ranks",
];
const OWN_RANKS: [&str; 2] = [
    "gives a part of the model ranks of its own, which is not supported",
    "the degrees set the number of ranks, and `--use-parallel-vae` decodes on all of them",
];

const UPSCALED: [&str; 2] =
    ["enlarges pictures, which is not supported", "`--height` and `--width` set the size"];
const HALF: [&str; 2] = ["is not an option", "`--dtype bf16` and `--dtype f16` are half precision"];
const DEVICE: [&str; 2] =
    ["is not an option", "`--device` chooses the device, as in `--device cpu` and `--device cuda:1`"];
const PROCESSES: [&str; 2] = [
    "is not an option",
    "`--num-gpus` or the degrees set the number of ranks; see `--launcher` for processes",
];
const SHIFT: [&str; 2] = [
    "is not an option",
    "it belongs to the scheduler: change `shift` in the model's `scheduler_config.json`",
];
const LENGTH: [&str; 2] = ["is not an option", "`--num-frames` and `--fps` set the length of a clip"];

/// Options that cannot be taken, what is wrong with each, and the way out.
const OTHERWISE: [(&str, [&str; 2]); 71] = [
    ("--diffusion-model", SINGLE_FILE),
    ("--vae", SINGLE_FILE),
    ("--vae-path", SINGLE_FILE),
    ("--taesd", SINGLE_FILE),
    ("--clip-l", SINGLE_FILE),
    ("--clip-g", SINGLE_FILE),
    ("--t5xxl", SINGLE_FILE),
    ("--llm", SINGLE_FILE),
    ("--lora", LORA),
    ("--lora-model-dir", LORA),
    ("--lora-paths", LORA),
    ("--lora-scales", LORA),
    ("--lora-name", LORA),
    ("--lora-style", LORA),
    ("--lora-repo-id", LORA),
    ("--quantize", QUANTISED),
    ("-q", QUANTISED),
    ("--use-fp8-t5-encoder", QUANTISED),
    ("--use-int8-gemms", QUANTISED),
    ("--use-fp8-gemms", QUANTISED),
    ("--use-fp4-gemms", QUANTISED),
    ("-i", IMAGE),
    ("--init-img", IMAGE),
    ("--image", IMAGE),
    ("--image-path", IMAGE),
    ("--img-file-path", IMAGE),
    ("--input-images", IMAGE),
    ("--strength", IMAGE),
    ("--control-image", IMAGE),
    ("--mask", IMAGE),
    ("--use-teacache", CACHED),
    ("--use-fbcache", CACHED),
    ("--use-cache", CACHED),
    ("--use-fast-attn", CACHED),
    ("--shard-dit", SHARDED),
    ("--shard-t5-encoder", SHARDED),
    ("--use-fsdp", SHARDED),
    ("--fully-shard-degree", SHARDED),
    ("--vae-parallel-size", OWN_RANKS),
    ("--dit-parallel-size", OWN_RANKS),
    (
        "--use-ray",
        ["is not supported", "start the processes with torchrun, mpirun or srun, see `--launcher`"],
    ),
    ("--path", ["is not an option", "give the folder of the model with `--model`"]),
    ("--output-directory", ["is not an option", "end the folder with a slash: `--output results/`"]),
    (
        "--auto-seeds",
        ["is not an option", "`--seed random --num-images 4` makes four pictures with new seeds"],
    ),
    (
        "--schedule",
        [
            "is not an option",
            "the end of the scheduler's name chooses the noise levels, as in `--scheduler dpm++2m-karras`",
        ],
    ),
    ("--local-files-only", ["is not an option", "set the variable `HF_HUB_OFFLINE=1`"]),
    (
        "--token",
        ["is not an option", "set the variable `HF_TOKEN`, which other users of the machine cannot see"],
    ),
    ("--lora-scale", LORA),
    ("--teacache", CACHED),
    ("--cache-mode", CACHED),
    ("--controlnet", IMAGE),
    ("--control-net", IMAGE),
    ("--ip-adapter", IMAGE),
    ("--controlnet-image-path", IMAGE),
    ("--upscale", UPSCALED),
    ("--upscale-model", UPSCALED),
    ("--hires", UPSCALED),
    ("--fp16", HALF),
    ("--half", HALF),
    ("--bf16", HALF),
    ("--fp8", QUANTISED),
    ("--cpu", DEVICE),
    ("--cuda", DEVICE),
    ("--gpu", DEVICE),
    ("--world-size", PROCESSES),
    ("--nproc-per-node", PROCESSES),
    ("--flow-shift", SHIFT),
    ("--shift", SHIFT),
    ("--duration", LENGTH),
    ("--length", LENGTH),
    (
        "--eta",
        [
            "is not an option",
            "noise is added by schedulers such as `--scheduler euler-a` and `--scheduler ddpm`",
        ],
    ),
];

/// The option that means the same as `name`.
pub fn same(name: &str) -> Option<&'static str> {
    SAME.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours)
}

/// The number of values of the option `name`, and a sentence on it, if it means nothing here.
pub fn nothing(name: &str) -> Option<(usize, String)> {
    let (name, values, why) = NOTHING.iter().find(|(theirs, ..)| *theirs == name)?;
    Some((*values, format!("`{name}` changes nothing: {why}")))
}

/// The error for the option `name`, if there is another way to what it does, or none.
pub fn otherwise(name: &str) -> Option<Error> {
    let (name, [what, hint]) = OTHERWISE.iter().find(|(theirs, _)| *theirs == name)?;
    Some(Error::usage(format!("`{name}` {what}")).hint(*hint))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    /// The names of all options of all subcommands, aliases included.
    fn ours() -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments() {
                let long = argument.get_long_and_visible_aliases().unwrap_or_default();
                let hidden = argument.get_all_aliases().unwrap_or_default();
                names.extend(long.into_iter().chain(hidden).map(|name| format!("--{name}")));
                let short = argument.get_short_and_visible_aliases().unwrap_or_default();
                let hidden = argument.get_all_short_aliases().unwrap_or_default();
                names.extend(short.into_iter().chain(hidden).map(|name| format!("-{name}")));
            }
        }
        names
    }

    #[test]
    fn each_name_is_in_one_place() {
        let (ours, mut seen) = (ours(), BTreeSet::new());
        assert!(ours.contains("--prompt") && ours.contains("-p") && ours.contains("--steps"));
        let theirs = SAME.iter().map(|(name, _)| name).chain(NOTHING.iter().map(|(name, ..)| name));
        for name in theirs.chain(OTHERWISE.iter().map(|(name, _)| name)) {
            assert!(!ours.contains(*name), "`{name}` is an option");
            assert!(seen.insert(*name), "`{name}` is listed twice");
            assert!(!name.contains('_'), "`{name}` is looked up with dashes");
        }
        for (_, name) in SAME {
            assert!(ours.contains(name), "`{name}` is no option");
        }
    }

    /// Every option that a sentence names exists.
    #[test]
    fn sentences_name_options_that_exist() {
        let ours = ours();
        let sentences =
            NOTHING.iter().map(|(.., why)| *why).chain(OTHERWISE.iter().flat_map(|(_, texts)| *texts));
        for sentence in sentences {
            for word in sentence.split([' ', '`', ',']).filter(|word| word.starts_with("--")) {
                assert!(ours.contains(word), "{word} in `{sentence}`");
            }
        }
    }
}
