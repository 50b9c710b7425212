//! Errors: exit code 2 for an invalid request, 1 for a failure; no data is printed and no file is left behind.

use std::fs;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::workspace::Workspace;

/// Runs `xdit generate --model demo --prompt a` with `args`, which must fail before any weights are loaded.
pub fn error(workspace: &Workspace, args: &[&str]) -> String {
    let run = ["generate", "--model", "demo", "--prompt", "a"];
    let error = workspace.error(&[&run, args].concat());
    assert!(!error.contains("loading"), "{error}");
    error
}

#[test]
fn commands() {
    let workspace = Workspace::new();
    insta::assert_snapshot!(workspace.error(&["genrate"]), @r"
    2
    error: unknown command `genrate`
    hint: did you mean `generate`?
    ");
    insta::assert_snapshot!(workspace.error(&["generate", "--modle", "demo"]), @r"
    2
    error: unknown option `--modle`
    hint: did you mean `--model`?
    ");
    insta::assert_snapshot!(workspace.error(&["generate", "--model", "demo"]), @r"
    2
    error: there is no prompt
    hint: describe the picture with `--prompt` or `--prompt-file`
    ");
    insta::assert_snapshot!(workspace.error(&["completions", "tcsh"]), @r"
    2
    error: `tcsh` is not a valid value of `<SHELL>`
    hint: possible values: `bash`, `elvish`, `fish`, `powershell`, `zsh`
    ");
    assert_eq!(workspace.run(&[]).code, Some(2));
}

#[test]
fn values() {
    let workspace = Workspace::with_demo();
    insta::assert_snapshot!(error(&workspace, &["--height", "tall"]), @r"
    2
    error: `tall` is not a valid value of `--height`
    hint: give a whole number that is not negative
    ");
    insta::assert_snapshot!(error(&workspace, &["--height=-1"]), @r"
    2
    error: `-1` is not a valid value of `--height`
    hint: give a whole number that is not negative
    ");
    insta::assert_snapshot!(error(&workspace, &["--height"]), @r"
    2
    error: `--height` needs a value
    hint: run the command with `--help` for its options
    ");
    insta::assert_snapshot!(error(&workspace, &["--height", "0"]), @r"
    2
    error: height `0` is not between 1 and 16384
    hint: leave it out for the model's default
    ");
    insta::assert_snapshot!(error(&workspace, &["--width", "99999999"]), @r"
    2
    error: width `99999999` is not between 1 and 16384
    hint: leave it out for the model's default
    ");
    insta::assert_snapshot!(error(&workspace, &["--height", "250", "--no-use-resolution-binning"]), @r"
    2
    error: height `250` is not a multiple of 16
    hint: use `240`, or leave resolution binning on
    ");
    insta::assert_snapshot!(error(&workspace, &["--num-inference-steps", "0"]), @r"
    2
    error: `0` inference steps leave nothing to do
    hint: 20 is a good start
    ");
    insta::assert_snapshot!(error(&workspace, &["--guidance-scale", "NaN"]), @r"
    2
    error: guidance scale `NaN` is not a finite number
    hint: usual scales are 1 to 10
    ");
    insta::assert_snapshot!(error(&workspace, &["--scheduler", "dpm++"]), @r"
    2
    error: there is no scheduler `dpm++`
    hint: the nearest names are `dpm2`, `dpm++2m`, `dpm++2s`; all short names: `ddim`, `ddpm`, `dpm2`, `dpm2-a`, `dpm++2m`, `dpm++2m-sde`, `dpm++2s`, `dpm++2s-sde`, `dpm++sde`, `euler`, `euler-a`, `flow-euler`, `flow-heun`, `heun`, `lcm`, `unipc`, each also with `-karras`, `-exponential`, `-beta` or `-lu` if it has such noise levels
    ");
    insta::assert_snapshot!(error(&workspace, &["--num-images", "0"]), @r"
    2
    error: `0` images of each prompt leave nothing to do
    hint: ask for at least 1
    ");
    insta::assert_snapshot!(error(&workspace, &["--num-images", "18446744073709551615"]), @r"
    2
    error: `18446744073709551615` pictures are more than the 10000 of one run
    hint: make them in several runs
    ");
    insta::assert_snapshot!(error(&workspace, &["--max-sequence-length", "0"]), @r"
    2
    error: a maximum sequence length of `0` leaves no prompt
    hint: leave it out for the model's default
    ");
    insta::assert_snapshot!(error(&workspace, &["--output-type", "bmp"]), @r"
    2
    error: `bmp` is not a valid value of `--output-type`
    hint: possible values: `png`, `jpeg`, `webp`, `gif`, `mp4`, `latent`
    ");
    insta::assert_snapshot!(error(&workspace, &["--width", "1", "--width", "2"]), @r"
    2
    error: `--width` is given twice
    hint: run the command with `--help` for its options
    ");
    insta::assert_snapshot!(error(&workspace, &["--seed=-1"]), @r"
    2
    error: `-1` is not a valid value of `--seed`
    hint: give a whole number that is not negative, or `random`
    ");
    insta::assert_snapshot!(error(&workspace, &["--seed", "1", "2", "--num-images", "3"]), @r"
    2
    error: `2` seeds are given for `3` images of each prompt
    hint: several seeds give one image of each prompt with each seed
    ");
    insta::assert_snapshot!(error(&workspace, &["--seed", "1", "1", "--output", "{seed}.png"]), @r"
    2
    error: several pictures would be written to `1.png`
    hint: tell them apart by `{i}` in the path
    ");
    insta::assert_snapshot!(error(&workspace, &["--output", "-", "--report", "json"]), @r"
    2
    error: standard output cannot have both a picture and a report
    hint: name a file for the picture with `--output`
    ");
    insta::assert_snapshot!(error(&workspace, &["--output", "-", "--output-type", "latent"]), @r"
    2
    error: latents are not written to standard output
    hint: name a `.safetensors` file, which is written piece by piece
    ");
    insta::assert_snapshot!(error(&workspace, &["--threads", "0"]), @r"
    2
    error: `0` threads are not between 1 and 1024
    hint: leave it out for one for each core
    ");
}

#[test]
fn options_of_other_models() {
    let workspace = Workspace::with_demo();
    for (option, value) in [
        ("prompt_2", "b"),
        ("prompt_3", "b"),
        ("negative_prompt_2", "b"),
        ("negative_prompt_3", "b"),
        ("skip_guidance_layers", "1"),
        ("clip_skip", "1"),
        ("true_cfg_scale", "-3.5"),
        ("guidance_rescale", "0.5"),
        ("original_size", "512 384"),
        ("crops_coords_top_left", "0 0"),
        ("target_size", "512 512"),
        ("negative_original_size", "512 384"),
        ("negative_crops_coords_top_left", "0 8"),
        ("negative_target_size", "512 512"),
    ] {
        let option_with_values = format!("--{option} {value}");
        let arguments: Vec<&str> = option_with_values.split(' ').collect();
        assert_eq!(
            error(&workspace, &arguments),
            format!(
                "2\nerror: PixArt does not take `{option}`\n\
                 hint: leave it out; of the options that not all models have, it takes \
                 `negative_prompt`, `max_sequence_length`, `clean_caption`\n"
            )
        );
    }
    insta::assert_snapshot!(error(&workspace, &["--prompt-2", "b", "c"]), @r"
    2
    error: `prompt_2` is given 2 times for 1 prompts
    hint: give it once for all prompts, or once for each
    ");
    insta::assert_snapshot!(error(&workspace, &["--skip-layer-guidance-stop", "0.5"]), @r"
    2
    error: `--skip-layer-guidance-stop` is given, but no layers to skip
    hint: give them with `--skip-guidance-layers`
    ");
    insta::assert_snapshot!(
        error(&workspace, &["--skip-guidance-layers", "1", "--skip-layer-guidance-start", "NaN"]), @r"
    2
    error: skip-layer guidance start `NaN` is not a finite number
    hint: leave it out for the default
    "
    );
    insta::assert_snapshot!(error(&workspace, &["--original-size", "512"]), @r"
    2
    error: `--original-size` has 1 of two values
    hint: give two numbers, such as `--original-size 1024 768`
    ");
    insta::assert_snapshot!(error(&workspace, &["--guidance-rescale", "1.5"]), @r"
    2
    error: guidance rescale `1.5` is not between 0 and 1
    hint: 0 turns it off, and 0.7 is usual
    ");
    insta::assert_snapshot!(error(&workspace, &["--true-cfg-scale", "inf"]), @r"
    2
    error: true guidance scale `inf` is not a finite number
    hint: usual scales are 1 to 10
    ");
}

#[test]
fn devices() {
    let workspace = Workspace::with_demo();
    insta::assert_snapshot!(error(&workspace, &["--device", "abacus"]), @r"
    2
    error: unknown device `abacus`
    hint: possible values: `auto`, `cpu`, `cuda`, `vulkan`, `wgpu`, or one of several as in `cuda:1`
    ");
    insta::assert_snapshot!(error(&workspace, &["--device", "cuda:one"]), @r"
    2
    error: unknown device `cuda:one`
    hint: devices are counted from `cuda:0`; `xdit devices` lists them
    ");
    #[cfg(not(feature = "vulkan"))]
    insta::assert_snapshot!(error(&workspace, &["--device", "vulkan:1"]), @r"
    2
    error: device `vulkan:1` cannot be used: this build has no backend for vulkan
    hint: build xDiT with `--features vulkan`, or use `--device cpu`
    ");
}

/// Every line of the list is a device that `--device` takes, or says what is missing.
#[test]
fn the_list_of_devices() {
    let workspace = Workspace::with_demo();
    let listed: serde_json::Value = serde_json::from_str(&workspace.ok(&["devices", "--json"])).unwrap();
    let devices = listed["devices"].as_array().unwrap();
    assert!(devices.len() >= 4 && devices.last().unwrap()["name"] == "cpu", "{listed}");
    let table = workspace.ok(&["devices"]);
    for device in devices {
        let name = device["name"].as_str().unwrap();
        assert!(table.lines().any(|line| line.starts_with(name)), "{name} is not in {table}");
        let plan = ["plan", "--model", "demo", "--device", name];
        if device["usable"] == true {
            workspace.ok(&plan);
        } else {
            let reason = device["reason"].as_str().unwrap();
            let hint = device["hint"].as_str().unwrap();
            assert_eq!(
                workspace.error(&plan),
                format!("2\nerror: device `{name}` cannot be used: {reason}\nhint: {hint}\n")
            );
            assert!(table.contains(&format!("not usable: {reason}\n")) && table.contains(hint), "{table}");
        }
    }
}

#[test]
fn impossible_plans() {
    let workspace = Workspace::with_demo();
    for (options, expected) in [
        (&["--ulysses-degree", "64"][..], "ulysses × tensor degree `64` is more than the model's"),
        (&["--pipefusion-parallel-degree", "9"], "pipeline degree `9` is more than the model's"),
        (&["--data-parallel-degree", "2"], "data-parallel degree `2` for 1 picture leaves ranks idle"),
        (&["--scheduler", "flow-heun"], "`flow-heun` does not fit"),
        (&["--scheduler", "lcm", "--num-inference-steps", "60"], "at most `50` steps"),
        (&["--use-cfg-parallel", "--guidance-scale", "1"], "but guidance is off"),
        (
            &["--pipefusion-parallel-degree", "2", "--attn-layer-num-for-pp", "10", "18"],
            "blocks of the stages",
        ),
        (&["--num-pipeline-patch", "0"], "`0` pipeline patches"),
        (&["--ring-degree", "100000000000"], "ranks are more than"),
        (&["--split-scheme", "column"], "`--split-scheme column` is not available"),
        (&["--distrifusion"], "DistriFusion with one patch has nobody to exchange keys with"),
        (&["--distrifusion", "--pipefusion-parallel-degree", "2"], "and has no pipeline"),
    ] {
        let error = error(&workspace, options);
        assert!(error.starts_with("2\nerror: ") && error.contains(expected), "{options:?}: {error}");
        assert!(error.contains("\nhint: "), "{options:?}: {error}");
    }
    insta::assert_snapshot!(error(&workspace, &["--ring-degree", "0"]), @r"
    2
    error: `--ring-degree 0` is not a valid degree
    hint: the minimum is 1
    ");
}

#[test]
fn prompt_files() {
    let workspace = Workspace::new();
    fs::write(workspace.path("latin1.txt"), b"a cactus\nun caf\xe9\n").unwrap();
    fs::write(workspace.path("empty.txt"), "\n \n").unwrap();
    let file = |name| workspace.error(&["generate", "--model", "demo", "--prompt-file", name]);
    insta::assert_snapshot!(file("latin1.txt"), @r"
    2
    error: line 2 of `latin1.txt` is not UTF-8
    hint: save the file in the encoding UTF-8
    ");
    insta::assert_snapshot!(file("empty.txt"), @r"
    2
    error: `empty.txt` contains no prompt
    hint: write one prompt a line
    ");
    insta::assert_snapshot!(file("missing.txt"), @r"
    1
    error: cannot read `missing.txt`: No such file or directory (os error 2)
    hint: give a text file with one prompt a line
    ");
    insta::assert_snapshot!(error(&workspace, &["--prompt-file", "empty.txt"]), @r"
    2
    error: `--prompt` cannot be combined with `--prompt-file`
    hint: run the command with `--help` for its options
    ");
}

#[test]
fn outputs() {
    let workspace = Workspace::with_demo();
    fs::create_dir(workspace.path("folder.png")).unwrap();
    insta::assert_snapshot!(error(&workspace, &["--output", "missing/a.png"]), @r"
    1
    error: cannot write `missing/a.png`: there is no folder `missing`
    hint: create the folder first
    ");
    insta::assert_snapshot!(error(&workspace, &["--output", "demo/model_index.json/a.png"]), @r"
    1
    error: cannot write `demo/model_index.json/a.png`: `demo/model_index.json` is not a folder
    hint: choose another path
    ");
    insta::assert_snapshot!(error(&workspace, &["--output", "a.tiff"]), @r"
    2
    error: output `a.tiff` does not end in `.png`
    hint: the endings `.png`, `.jpg`, `.webp`, `.gif`, `.mp4` and, for latents, `.safetensors` choose a format, and so does `--output-type`
    ");
    insta::assert_snapshot!(error(&workspace, &["--output", "a.png", "--output-type", "latent"]), @r"
    2
    error: output `a.png` does not end in `.safetensors`
    hint: the endings `.png`, `.jpg`, `.webp`, `.gif`, `.mp4` and, for latents, `.safetensors` choose a format, and so does `--output-type`
    ");
    insta::assert_snapshot!(error(&workspace, &["--output", "fol{x}er-{i}/a.png"]), @r"
    1
    error: cannot write `fol{x}er-0/a.png`: there is no folder `fol{x}er-0`
    hint: create the folder first
    ");
}

#[test]
fn initial_latents() {
    let workspace = Workspace::with_demo();
    let write = |name: &str, key: &str, dtype, shape: &[usize], bytes: &[u8]| {
        let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        fs::write(workspace.path(name), safetensors::serialize([(key, view)], None).unwrap()).unwrap();
    };
    write("shape", "latents", Dtype::F32, &[1, 4, 16, 16], &[0; 4096]);
    write("dims", "latents", Dtype::F32, &[4, 16, 16], &[0; 4096]);
    write("key", "noise", Dtype::F32, &[1, 4, 16, 16], &[0; 4096]);
    write("type", "latents", Dtype::F16, &[1, 4, 16, 16], &[0; 2048]);
    write("nan", "latents", Dtype::F32, &[1, 4, 16, 16], &[0xff; 4096]);
    fs::write(workspace.path("corrupt"), [7; 100]).unwrap();
    fs::write(workspace.path("empty"), []).unwrap();
    let from = |name| error(&workspace, &["--init-latents", name]);
    insta::assert_snapshot!(from("shape"), @r"
    2
    error: initial latents have shape [1, 4, 16, 16], expected [1, 4, 32, 32]
    hint: one latent for each picture, in the size at which it is generated
    ");
    insta::assert_snapshot!(from("dims"), @r"
    2
    error: `latents` in `dims` has shape `[4, 16, 16]`, not four or five dimensions
    hint: give a safetensors file with the key `latents`, [n, c, h, w] or [n, c, frames, h, w] in f32
    ");
    insta::assert_snapshot!(from("key"), @r"
    2
    error: `key` has no tensor `latents`, only `noise`
    hint: give a safetensors file with the key `latents`, [n, c, h, w] or [n, c, frames, h, w] in f32
    ");
    insta::assert_snapshot!(from("type"), @r"
    2
    error: `latents` in `type` has type `F16`, not `F32`
    hint: give a safetensors file with the key `latents`, [n, c, h, w] or [n, c, frames, h, w] in f32
    ");
    insta::assert_snapshot!(from("nan"), @r"
    2
    error: `latents` in `nan` contains values that are not finite
    hint: make them again: the run that made them went wrong, or the file is damaged
    ");
    insta::assert_snapshot!(from("corrupt"), @r"
    1
    error: `corrupt` is not a valid safetensors file: header too large
    hint: give a safetensors file with the key `latents`, [n, c, h, w] or [n, c, frames, h, w] in f32
    ");
    insta::assert_snapshot!(from("empty"), @r"
    1
    error: `empty` is not a valid safetensors file: header too small
    hint: give a safetensors file with the key `latents`, [n, c, h, w] or [n, c, frames, h, w] in f32
    ");
    #[cfg(unix)]
    insta::assert_snapshot!(from("/dev/zero"), @r"
    1
    error: cannot read `/dev/zero`: it is a device or a pipe
    hint: give a safetensors file with the key `latents`, [n, c, h, w] or [n, c, frames, h, w] in f32
    ");
    insta::assert_snapshot!(from("missing"), @r"
    1
    error: cannot read `missing`: No such file or directory (os error 2)
    hint: give a safetensors file with the key `latents`, [n, c, h, w] or [n, c, frames, h, w] in f32
    ");
}

#[test]
fn pictures_given_as_a_source_of_parameters() {
    let workspace = Workspace::with_demo();
    let from = |name| workspace.error(&["generate", "--from", name]);
    insta::assert_snapshot!(from("missing.png"), @r"
    1
    error: cannot read `missing.png`: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(from("demo/model_index.json"), @r"
    1
    error: `demo/model_index.json` does not begin like a PNG, JPEG, WebP, GIF or MP4 file
    hint: give a picture written by `xdit generate`
    ");

    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.add_text_chunk("parameters".into(), "a cat\nSteps: 20".into()).unwrap();
    encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
    fs::write(workspace.path("other.png"), &bytes).unwrap();
    insta::assert_snapshot!(from("other.png"), @r"
    2
    error: `other.png` contains no parameters of this program
    hint: give a picture written by `xdit generate` that no other program has saved since
    ");

    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.add_text_chunk("xdit".into(), r#"{"prompt": 7}"#.into()).unwrap();
    encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
    fs::write(workspace.path("damaged.png"), &bytes).unwrap();
    insta::assert_snapshot!(from("damaged.png"), @r"
    1
    error: the parameters in `damaged.png` are corrupt: invalid type: integer `7`, expected a string at line 1 column 12
    ");

    workspace.generate(&["--prompt", "a", "--output-type", "latent"]);
    workspace.generate(&["--prompt", "a", "--init-latents", "xdit.safetensors"]);
    insta::assert_snapshot!(from("xdit.png"), @r"
    2
    error: `xdit.png` was made from the latents `xdit.safetensors`, which it does not carry
    hint: give them with `--init-latents`
    ");
}

/// Replaces the first value of a tensor, which is an f32.
fn damage(workspace: &Workspace, file: &str, name: &str) {
    let path = workspace.path(file);
    let mut bytes = fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let start = tensors.tensor(name).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
    bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

/// Wherever a value that is not finite comes from, no picture and no latents are written.
#[test]
fn values_that_are_not_finite() {
    let run = ["generate", "--model", "demo", "--prompt", "a", "--num-inference-steps", "3", "--quiet"];
    let error = |change: &dyn Fn(&Workspace), options: &[&str]| {
        let workspace = Workspace::with_demo();
        change(&workspace);
        workspace.error(&[&run, options].concat())
    };
    let weights = |file, name| move |workspace: &Workspace| damage(workspace, file, name);
    let encoder = weights("demo/text_encoder/model.safetensors", "encoder.final_layer_norm.weight");
    insta::assert_snapshot!(error(&encoder, &[]), @r"
    1
    error: the values of `text_encoder` are not finite
    hint: the checkpoint may be damaged: compare its files with the original, or try a smaller guidance scale
    ");
    let transformer = weights("demo/transformer/diffusion_pytorch_model.safetensors", "proj_out.bias");
    insta::assert_snapshot!(error(&transformer, &[]), @r"
    1
    error: the latents after step 1 of 3 are not finite
    hint: the checkpoint may be damaged: compare its files with the original, or try a smaller guidance scale
    ");
    insta::assert_snapshot!(error(&transformer, &["--output-type", "latent", "--ring-degree", "2"]), @r"
    1
    error: the latents after step 1 of 3 are not finite
    hint: the checkpoint may be damaged: compare its files with the original, or try a smaller guidance scale
    ");
    let vae = weights("demo/vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.bias");
    insta::assert_snapshot!(error(&vae, &[]), @r"
    1
    error: the values of picture 1 after decoding are not finite
    hint: the checkpoint may be damaged: compare its files with the original, or try a smaller guidance scale
    ");
    let stretched = |workspace: &Workspace| {
        let path = workspace.path("demo/transformer/config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["interpolation_scale"] = 0.into();
        fs::write(path, config.to_string()).unwrap();
    };
    insta::assert_snapshot!(error(&stretched, &[]), @r"
    1
    error: the latents after step 1 of 3 are not finite
    hint: the checkpoint may be damaged: compare its files with the original, or try a smaller guidance scale
    ");
}

/// A finished file is renamed to its path, which would replace a device.
#[cfg(unix)]
#[test]
fn outputs_are_regular_files() {
    use std::os::unix::fs::symlink;

    let workspace = Workspace::with_demo();
    symlink("/dev/null", workspace.path("null.png")).unwrap();
    symlink("nowhere.png", workspace.path("dangling.png")).unwrap();
    for output in ["null.png", "dangling.png"] {
        let run = ["generate", "--model", "demo", "--prompt", "a", "--output", output];
        let error = workspace.error(&run);
        let reason =
            if output == "null.png" { "is a device or a pipe" } else { "is a link that leads nowhere" };
        assert!(error.contains(reason) && error.starts_with("2\n"), "{error}");
    }
    let long = format!("{}.png", "a".repeat(252));
    let error = workspace.error(&["generate", "--model", "demo", "--prompt", "a", "--output", &long]);
    assert!(error.contains("has more than 255 bytes"), "{error}");
    // The results of a run go to the file that a link names.
    std::fs::write(workspace.path("file.png"), "old").unwrap();
    symlink("file.png", workspace.path("link.png")).unwrap();
    workspace.generate(&["--prompt", "a", "--output", "link.png"]);
    assert!(workspace.path("link.png").symlink_metadata().unwrap().is_symlink());
    assert!(std::fs::read(workspace.path("file.png")).unwrap().starts_with(b"\x89PNG"));
}
