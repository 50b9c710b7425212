//! Options that users of other programs type: those that mean the same here, and those that mean nothing here.

/// Names in diffusers' examples, xDiT, stable-diffusion.cpp, mflux and web interfaces, and the option that means the same.
const SAME: [(&str, &str); 18] = [
    ("--guidance", "--guidance-scale"),
    ("--cfg", "--guidance-scale"),
    ("--negative", "--negative-prompt"),
    ("--sampling-steps", "--num-inference-steps"),
    ("--num-steps", "--num-inference-steps"),
    ("--batch-count", "--num-images"),
    ("-b", "--num-images"),
    ("--num-outputs", "--num-images"),
    ("--n-iter", "--num-images"),
    ("--image-height", "--height"),
    ("--image-width", "--width"),
    ("--type", "--dtype"),
    ("--torch-dtype", "--dtype"),
    ("--enable-tiling", "--vae-tiling"),
    ("--enable-vae-tiling", "--vae-tiling"),
    ("-t", "--threads"),
    ("--cache-dir", "--download-dir"),
    ("--outfile", "--output"),
];

/// Options of xDiT and diffusers without a meaning here, and the reason.
const NOTHING: [(&str, &str); 13] = [
    ("--use-torch-compile", "nothing is compiled by PyTorch"),
    ("--use-onediff", "nothing is compiled by PyTorch"),
    ("--use-cuda-graph", "there are no graphs to record"),
    ("--trust-remote-code", "no code of a model is run"),
    ("--enable-sequential-cpu-offload", "weights leave memory as `--keep` says"),
    ("--enable-model-cpu-offload", "weights leave memory as `--keep` says"),
    ("--offload-to-cpu", "weights leave memory as `--keep` says"),
    ("--low-ram", "weights leave memory as `--keep` says"),
    ("--enable-slicing", "pictures are decoded one after another"),
    ("--enable-vae-slicing", "pictures are decoded one after another"),
    ("--no-progress", "use `--quiet` for less output"),
    ("-v", "`xdit devices` and `--report json` say more"),
    ("--verbose", "`xdit devices` and `--report json` say more"),
];

/// The option that means the same as `name`.
pub fn same(name: &str) -> Option<&'static str> {
    SAME.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours)
}

/// A sentence on the option `name`, if it means nothing here.
pub fn nothing(name: &str) -> Option<String> {
    let (name, why) = NOTHING.iter().find(|(theirs, _)| *theirs == name)?;
    Some(format!("`{name}` changes nothing: {why}"))
}
