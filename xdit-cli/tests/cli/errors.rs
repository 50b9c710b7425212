//! What goes wrong: code 2 for what was asked, 1 for what could not be done; nothing printed as data, no file left.

use std::fs;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::workspace::Workspace;

/// Runs `xdit generate --model demo --prompt a` with `args`, which must fail before anything is loaded.
fn error(workspace: &Workspace, args: &[&str]) -> String {
    let run = ["generate", "--model", "demo", "--prompt", "a"];
    let error = workspace.error(&[&run, args].concat());
    assert!(!error.contains("loading"), "{error}");
    error
}

#[test]
fn commands() {
    let workspace = Workspace::new();
    insta::assert_snapshot!(workspace.error(&["genrate"]), @"");
    insta::assert_snapshot!(workspace.error(&["generate", "--modle", "demo"]), @"");
    insta::assert_snapshot!(workspace.error(&["generate", "--prompt", "a"]), @"");
    insta::assert_snapshot!(workspace.error(&["generate", "--model", "demo"]), @"");
    insta::assert_snapshot!(workspace.error(&["completions", "tcsh"]), @"");
    assert_eq!(workspace.run(&[]).code, Some(2));
}

#[test]
fn values() {
    let workspace = Workspace::with_demo();
    insta::assert_snapshot!(error(&workspace, &["--height", "tall"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--height=-1"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--height"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--height", "0"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--width", "99999999"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--height", "250", "--no-use-resolution-binning"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--num-inference-steps", "0"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--guidance-scale", "NaN"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--num-images", "0"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--num-images", "18446744073709551615"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--max-sequence-length", "0"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--output-type", "jpeg"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--seed", "1", "--seed", "2"]), @"");
}

#[test]
fn devices() {
    let workspace = Workspace::with_demo();
    insta::assert_snapshot!(error(&workspace, &["--device", "cuda:1"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--device", "abacus"]), @"");
}

#[test]
fn more_than_one_rank() {
    let workspace = Workspace::with_demo();
    insta::assert_snapshot!(error(&workspace, &["--pipefusion_parallel_degree", "2"]), @"");
    let others: [&[&str]; 11] = [
        &["--data-parallel-degree", "2"],
        &["--ulysses-degree", "2"],
        &["--ring-degree", "3"],
        &["--tensor-parallel-degree", "2"],
        &["--num-pipeline-patch", "4"],
        &["--attn-layer-num-for-pp", "10", "18"],
        &["--split-scheme", "column"],
        &["--use-cfg-parallel"],
        &["--use-split-batch"],
        &["--use-parallel-vae"],
        &["--distrifusion"],
    ];
    for option in others {
        let error = error(&workspace, option);
        assert!(
            error.starts_with("2\nerror: `--") && error.contains("is not available in this version"),
            "{error}"
        );
    }
    insta::assert_snapshot!(error(&workspace, &["--ring-degree", "0"]), @"");
}

#[test]
fn prompt_files() {
    let workspace = Workspace::new();
    fs::write(workspace.path("latin1.txt"), b"a cactus\nun caf\xe9\n").unwrap();
    fs::write(workspace.path("empty.txt"), "\n \n").unwrap();
    let file = |name| workspace.error(&["generate", "--model", "demo", "--prompt-file", name]);
    insta::assert_snapshot!(file("latin1.txt"), @"");
    insta::assert_snapshot!(file("empty.txt"), @"");
    insta::assert_snapshot!(file("missing.txt"), @"");
    insta::assert_snapshot!(error(&workspace, &["--prompt-file", "empty.txt"]), @"");
}

#[test]
fn outputs() {
    let workspace = Workspace::with_demo();
    fs::create_dir(workspace.path("folder.png")).unwrap();
    insta::assert_snapshot!(error(&workspace, &["--output", "missing/a.png"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--output", "demo/model_index.json/a.png"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--output", "a.jpg"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--output", "a.png", "--output-type", "latent"]), @"");
    insta::assert_snapshot!(error(&workspace, &["--output", "fol{x}er-{i}/a.png"]), @"");
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
    insta::assert_snapshot!(from("shape"), @"");
    insta::assert_snapshot!(from("dims"), @"");
    insta::assert_snapshot!(from("key"), @"");
    insta::assert_snapshot!(from("type"), @"");
    insta::assert_snapshot!(from("nan"), @"");
    insta::assert_snapshot!(from("corrupt"), @"");
    insta::assert_snapshot!(from("empty"), @"");
    insta::assert_snapshot!(from("missing"), @"");
}

#[test]
fn pictures_to_make_again() {
    let workspace = Workspace::with_demo();
    let from = |name| workspace.error(&["generate", "--from", name]);
    insta::assert_snapshot!(from("missing.png"), @"");
    insta::assert_snapshot!(from("demo/model_index.json"), @"");

    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.add_text_chunk("parameters".into(), "a cat\nSteps: 20".into()).unwrap();
    encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
    fs::write(workspace.path("other.png"), &bytes).unwrap();
    insta::assert_snapshot!(from("other.png"), @"");

    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.add_text_chunk("xdit".into(), r#"{"prompt": 7}"#.into()).unwrap();
    encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
    fs::write(workspace.path("damaged.png"), &bytes).unwrap();
    insta::assert_snapshot!(from("damaged.png"), @"");

    workspace.generate(&["--prompt", "a", "--output-type", "latent"]);
    workspace.generate(&["--prompt", "a", "--init-latents", "xdit.safetensors"]);
    insta::assert_snapshot!(from("xdit.png"), @"");
}

#[test]
fn models() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("folder")).unwrap();
    fs::write(workspace.path("file"), "").unwrap();
    let model = |name| workspace.error(&["generate", "--model", name, "--prompt", "a"]);
    insta::assert_snapshot!(model("./missing"), @"");
    insta::assert_snapshot!(model("folder"), @"");
    insta::assert_snapshot!(model("file"), @"");
    insta::assert_snapshot!(model("owner/name"), @"");
    insta::assert_snapshot!(workspace.error(&["inspect", "folder"]), @"");
}

#[test]
fn broken_checkpoints() {
    // Each breaks another file of a fresh checkpoint.
    let broken = |file: &str, change: &dyn Fn(Vec<u8>) -> Option<Vec<u8>>| {
        let workspace = Workspace::with_demo();
        let path = workspace.path("demo").join(file);
        match change(fs::read(&path).unwrap()) {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        error(&workspace, &[])
    };
    let half = |bytes: Vec<u8>| Some(bytes[..bytes.len() / 2].to_vec());
    let replace = |from: &'static str, to: &'static str| {
        move |bytes: Vec<u8>| Some(String::from_utf8(bytes).unwrap().replace(from, to).into_bytes())
    };
    insta::assert_snapshot!(broken("transformer/diffusion_pytorch_model.safetensors", &half), @"");
    insta::assert_snapshot!(broken("vae/diffusion_pytorch_model.safetensors", &|_| None), @"");
    insta::assert_snapshot!(broken("text_encoder/model.safetensors", &|_| Some(Vec::new())), @"");
    insta::assert_snapshot!(broken("tokenizer/spiece.model", &half), @"");
    insta::assert_snapshot!(broken("tokenizer/spiece.model", &|_| None), @"");
    insta::assert_snapshot!(broken("model_index.json", &half), @"");
    insta::assert_snapshot!(broken("model_index.json", &replace("PixArtAlphaPipeline", "CubismPipeline")), @"");
    insta::assert_snapshot!(broken("transformer/config.json", &replace("\"num_layers\": 2", "\"num_layers\": 3")), @"");
    insta::assert_snapshot!(broken("transformer/config.json", &replace("\"num_layers\": 2", "\"num_layers\": 1")), @"");
    insta::assert_snapshot!(broken("scheduler/scheduler_config.json", &replace("epsilon", "telepathy")), @"");
}
