//! Models that are no models, or damaged ones: an error that says what is wrong, before any weights are loaded.

use std::fs;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::errors::error;
use crate::generate::chunks;
use crate::workspace::Workspace;

#[test]
fn models() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("folder")).unwrap();
    fs::write(workspace.path("file"), "").unwrap();
    let model = |name| workspace.error(&["generate", "--model", name, "--prompt", "a"]);
    insta::assert_snapshot!(model("./missing"), @r"
    2
    error: there is no folder `./missing`
    hint: give a folder in the diffusers layout, or an id on the hub like `owner/name`
    ");
    insta::assert_snapshot!(model("folder"), @r"
    2
    error: the folder `folder` is empty
    hint: give the folder that contains `model_index.json`; a hub id is used only if no folder has that name
    ");
    insta::assert_snapshot!(model("file"), @r"
    2
    error: `file` is a file, not a model folder
    hint: give a folder in the diffusers layout, or an id on the hub like `owner/name`
    ");
    insta::assert_snapshot!(model("owner/name"), @r"
    1
    error: `owner/name` at revision `main` is not in the cache `hub/hub`
    hint: unset `HF_HUB_OFFLINE` to download it, or set `HF_HOME` to a cache that contains it
    ");
    insta::assert_snapshot!(workspace.error(&["inspect", "folder"]), @r"
    2
    error: the folder `folder` is empty
    hint: give the folder that contains `model_index.json`; a hub id is used only if no folder has that name
    ");
}

/// What people give as a model that is none.
#[test]
fn files_and_folders_that_are_no_models() {
    let workspace = Workspace::with_demo();
    let model = |name: &str| workspace.error(&["generate", "--model", name, "--prompt", "a"]);
    let view = |bytes| TensorView::new(Dtype::F32, vec![1], bytes).unwrap();
    let weights = |name: &str| safetensors::serialize([(name, view(&[0; 4]))], None).unwrap();
    fs::write(workspace.path("lora.safetensors"), weights("transformer.x.lora_A.weight")).unwrap();
    fs::write(workspace.path("sd3.safetensors"), weights("model.diffusion_model.x")).unwrap();
    for name in ["model.ckpt", "model.gguf", "picture.png"] {
        fs::write(workspace.path(name), "...").unwrap();
    }
    let repository = "models--o--n/snapshots/0123";
    fs::create_dir_all(workspace.path(repository)).unwrap();
    fs::write(workspace.path(repository).join("model_index.json"), "{}").unwrap();
    for (name, message, hint) in [
        ("lora.safetensors", "`lora.safetensors` is a LoRA", "fuse_lora"),
        ("sd3.safetensors", "`sd3.safetensors` is a single file of weights", "from_single_file"),
        ("model.ckpt", "`model.ckpt` is a pickled file", "safetensors"),
        ("model.gguf", "`model.gguf` is a GGUF file", "original model"),
        ("picture.png", "`picture.png` is a picture", "`--from`"),
        ("demo/model_index.json", "`demo/model_index.json` is a JSON file", "give the folder"),
        (
            "demo/transformer",
            "the folder `demo/transformer` has no `model_index.json`",
            "component of the model `demo`",
        ),
        (
            "models--o--n",
            "the folder `models--o--n` has no `model_index.json`",
            "give `models--o--n/snapshots/0123`",
        ),
        ("demo/transfromer", "there is no folder `demo/transfromer`, and ", "HF_HUB_OFFLINE"),
    ] {
        let error = model(name);
        let (first, second) = error.split_once("\nhint: ").unwrap_or_else(|| panic!("{error}"));
        assert!(first.contains(message) && second.contains(hint), "{error}");
    }
}

/// Files that stand for others.
#[cfg(unix)]
#[test]
fn pointers_and_links_that_lead_nowhere() {
    let weights = "demo/transformer/diffusion_pytorch_model.safetensors";
    for file in [weights, "demo/model_index.json", "demo/tokenizer/spiece.model", "demo/vae/config.json"] {
        let workspace = Workspace::with_demo();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n";
        fs::write(workspace.path(file), pointer).unwrap();
        let expected = format!(
            "1\nerror: `{file}` is a pointer of Git LFS, not the file itself\nhint: run `git lfs pull`"
        );
        let found = error(&workspace, &[]);
        assert!(found.starts_with(&expected), "{found}");

        fs::remove_file(workspace.path(file)).unwrap();
        std::os::unix::fs::symlink("../gone", workspace.path(file)).unwrap();
        let found = error(&workspace, &[]);
        assert!(
            found.starts_with(&format!("1\nerror: `{file}` is a link to `../gone`, which does not exist\n")),
            "{found}"
        );

        fs::remove_file(workspace.path(file)).unwrap();
        std::os::unix::fs::symlink("/dev/zero", workspace.path(file)).unwrap();
        let found = error(&workspace, &[]);
        assert!(
            found.starts_with(&format!("1\nerror: cannot read `{file}`: it is a device or a pipe\n")),
            "{found}"
        );
    }
}

/// As in diffusers, an index comes before a whole file beside it.
#[test]
fn an_index_comes_before_a_whole_file() {
    let (workspace, folder) = (Workspace::with_demo(), "demo/transformer/");
    let path = |name: &str| workspace.path(&format!("{folder}{name}"));
    let bytes = fs::read(path("diffusion_pytorch_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shard = "diffusion_pytorch_model-00001-of-00001.safetensors";
    let write = |places: serde_json::Value| {
        let index = serde_json::json!({ "weight_map": places }).to_string();
        fs::write(path("diffusion_pytorch_model.safetensors.index.json"), index).unwrap();
    };
    write(file.names().into_iter().map(|name| (name.to_owned(), serde_json::Value::from(shard))).collect());
    insta::assert_snapshot!(error(&workspace, &[]), @r"
    1
    error: shard `diffusion_pytorch_model-00001-of-00001.safetensors` is missing, one of 1 that `demo/transformer/diffusion_pytorch_model.safetensors.index.json` names
    hint: the download is incomplete: fetch the shard, or download the model again
    ");
    fs::write(path(shard), &bytes).unwrap();
    // The whole file is not even opened.
    fs::write(path("diffusion_pytorch_model.safetensors"), "damaged").unwrap();
    workspace.generate(&["--prompt", "a"]);
    write(serde_json::json!({}));
    insta::assert_snapshot!(error(&workspace, &[]), @r"
    1
    error: the `weight_map` of `demo/transformer/diffusion_pytorch_model.safetensors.index.json` is empty
    hint: download the file again: it is not an index of safetensors shards
    ");
}

#[test]
fn variants_and_components_that_a_folder_does_not_have() {
    let workspace = Workspace::with_demo();
    insta::assert_snapshot!(error(&workspace, &["--variant", "fp16"]), @r"
    2
    error: `demo` has no weights of the variant `fp16`
    hint: omit the variant to use the default weights
    ");
    insta::assert_snapshot!(workspace.error(&["inspect", "demo", "--variant", "fp16"]), @r"
    2
    error: `demo` has no weights of the variant `fp16`
    hint: omit the variant to use the default weights
    ");
    let name =
        |variant: &str| workspace.path(&format!("demo/vae/diffusion_pytorch_model{variant}.safetensors"));
    fs::copy(name(""), name(".fp16")).unwrap();
    workspace.generate(&["--prompt", "a", "--variant", "fp16"]);
    fs::remove_dir_all(workspace.path("demo/vae")).unwrap();
    insta::assert_snapshot!(error(&workspace, &[]), @r"
    1
    error: there is no folder `demo/vae`, which `demo/model_index.json` names
    hint: the download is incomplete: fetch the folder, or download the model again
    ");
}

/// The refiner of Stable Diffusion XL begins with a picture, so the error says how to do without it.
#[test]
fn a_refiner_is_refused_by_name() {
    let workspace = Workspace::with_demo();
    let path = workspace.path("demo/model_index.json");
    let index = fs::read_to_string(&path).unwrap();
    fs::write(&path, index.replace("PixArtAlphaPipeline", "StableDiffusionXLImg2ImgPipeline")).unwrap();
    insta::assert_snapshot!(error(&workspace, &[]), @r"
    1
    error: `StableDiffusionXLImg2ImgPipeline` is not supported: it refines another model's picture, and pictures begin with noise here
    hint: use Stable Diffusion XL base alone, with all of its steps: its pictures are complete without the refiner
    ");
}

/// Stable Diffusion 3 can do without its third text encoder, even if it is not there.
#[test]
fn a_third_text_encoder_is_left_out_on_request() {
    let workspace = Workspace::with_demo();
    assert!(
        error(&workspace, &["--text-encoder-3", "none"]).contains("has no third text encoder to leave out")
    );
    let goldens = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/sd3-medium");
    for folder in fs::read_dir(&goldens).unwrap().map(|entry| entry.unwrap().path()) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        fs::create_dir_all(workspace.path("sd3")).unwrap();
        if !name.ends_with("_3") {
            #[cfg(unix)]
            std::os::unix::fs::symlink(&folder, workspace.path("sd3").join(name)).unwrap();
        }
    }
    let missing = workspace.error(&["plan", "--model", "sd3"]);
    assert!(missing.contains("there is no folder `sd3/text_encoder_3`"), "{missing}");
    assert!(missing.ends_with("`--text-encoder-3 none` does without it\n"), "{missing}");
    workspace.ok(&["plan", "--model", "sd3", "--text-encoder-3", "none"]);
}

/// transformers and diffusers ignore some tensors of published files; no others.
#[test]
fn extra_tensors_are_ignored_with_a_note() {
    let file = "demo/text_encoder/model.safetensors";
    let run = |extra: &[&str]| {
        let workspace = Workspace::with_demo();
        let bytes = fs::read(workspace.path(file)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let extra = extra.iter().map(|name| (*name, TensorView::new(Dtype::I64, vec![1], &[0; 8]).unwrap()));
        let all = tensors.iter().chain(extra);
        fs::write(workspace.path(file), safetensors::serialize(all, None).unwrap()).unwrap();
        workspace.run(&[
            "generate",
            "--model",
            "demo",
            "--prompt",
            "a",
            "--num-inference-steps",
            "1",
            "--quiet",
        ])
    };
    let ignored = run(&["decoder.block.0.x", "lm_head.weight"]);
    assert_eq!(
        (ignored.code, &ignored.stderr[..]),
        (
            Some(0),
            "warning: 2 tensors in `demo/text_encoder/model.safetensors`, such as `decoder.block.0.x`, are ignored: the model does not use them\n"
        )
    );
    let unknown = run(&["encoder.block.0.layer.2.x"]);
    assert!(unknown.stderr.contains("`encoder.block.0.layer.2.x` in"), "{}", unknown.stderr);
    assert_eq!(unknown.code, Some(1));
}

#[test]
fn quantised_weights() {
    let workspace = Workspace::with_demo();
    let path = workspace.path("demo/transformer/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["quantization_config"] = serde_json::json!({ "load_in_4bit": true });
    fs::write(path, config.to_string()).unwrap();
    insta::assert_snapshot!(error(&workspace, &[]), @r"
    1
    error: `demo/transformer/config.json` describes quantised weights, which are not supported
    hint: use the original checkpoint, whose config has no `quantization_config`
    ");
}

/// `--force` writes over a checkpoint of the same command, and over nothing else.
#[test]
fn force_replaces_only_a_demo() {
    let workspace = Workspace::with_demo();
    workspace.ok(&["random-checkpoint", "demo", "--force", "--seed", "7", "--quiet"]);
    let refused = |prepare: &dyn Fn(), found: &str| {
        prepare();
        for command in ["demo-checkpoint", "random-checkpoint"] {
            let error = workspace.error(&[command, "demo", "--force"]);
            assert!(error.starts_with("2\nerror: the folder `demo` holds `"), "{error}");
            assert!(command == "demo-checkpoint" || error.contains(found), "{error}");
        }
    };
    let write = |name: &str, text: &str| fs::write(workspace.path("demo").join(name), text).unwrap();
    refused(&|| write("notes.txt", "mine"), "`notes.txt`");
    fs::remove_file(workspace.path("demo/notes.txt")).unwrap();
    refused(&|| write("model_index.json", r#"{"_class_name": "PixArtAlphaPipeline"}"#), "`model_index.json`");
    // Weights alone may be anybody's.
    refused(&|| fs::remove_file(workspace.path("demo/model_index.json")).unwrap(), "`");
    // A folder of pictures.
    fs::remove_dir_all(workspace.path("demo")).unwrap();
    fs::create_dir(workspace.path("demo")).unwrap();
    refused(&|| write("holiday.png", "mine"), "`holiday.png`");
    assert_eq!(fs::read_to_string(workspace.path("demo/holiday.png")).unwrap(), "mine");
}

#[test]
fn broken_checkpoints() {
    // Each case damages one file of a fresh checkpoint.
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
    insta::assert_snapshot!(broken("transformer/diffusion_pytorch_model.safetensors", &half), @r"
    1
    error: `demo/transformer/diffusion_pytorch_model.safetensors` is not a valid safetensors file: incomplete metadata, file not fully covered
    hint: download the file again: it is truncated or corrupt
    ");
    insta::assert_snapshot!(broken("vae/diffusion_pytorch_model.safetensors", &|_| None), @r"
    1
    error: no weights `diffusion_pytorch_model.safetensors` in `demo/vae`
    hint: check that the download is complete and laid out as `save_pretrained` writes it
    ");
    insta::assert_snapshot!(broken("text_encoder/model.safetensors", &|_| Some(Vec::new())), @r"
    1
    error: `demo/text_encoder/model.safetensors` is empty
    hint: download the file again
    ");
    insta::assert_snapshot!(broken("tokenizer/spiece.model", &half), @r"
    1
    error: cannot read the tokenizer file `demo/tokenizer/spiece.model`: it ends in the middle of a field
    hint: download the checkpoint's `tokenizer` folder again; the file may be truncated
    ");
    insta::assert_snapshot!(broken("tokenizer/spiece.model", &|_| None), @r"
    1
    error: no T5 vocabulary in `demo/tokenizer`
    hint: download `tokenizer.json` or `spiece.model` from the `tokenizer` folder of a checkpoint
    ");
    insta::assert_snapshot!(broken("model_index.json", &half), @r"
    1
    error: `demo/model_index.json` is not valid JSON: EOF while parsing a value at line 9 column 18
    hint: the file may be incomplete: download it again
    ");
    insta::assert_snapshot!(broken("model_index.json", &replace("PixArtAlphaPipeline", "CubismPipeline")), @r"
    1
    error: pipelines of class `CubismPipeline` are not supported
    hint: supported: `PixArtAlphaPipeline`, `PixArtSigmaPipeline`, `StableDiffusion3Pipeline`, `HunyuanDiTPipeline`, `LattePipeline`, `FluxPipeline`, `DiTPipeline`, `StableDiffusionXLPipeline`
    ");
    insta::assert_snapshot!(broken("transformer/config.json", &replace("\"num_layers\": 2", "\"num_layers\": 3")), @r"
    1
    error: tensor `transformer_blocks.2.scale_shift_table` is missing from `demo/transformer/diffusion_pytorch_model.safetensors`
    hint: the weights and the `config.json` beside them do not describe the same model
    ");
    insta::assert_snapshot!(broken("transformer/config.json", &replace("\"num_layers\": 2", "\"num_layers\": 1")), @r"
    1
    error: tensor `transformer_blocks.1.attn1.to_k.bias` and 20 more in `demo/transformer/diffusion_pytorch_model.safetensors` belongs to no part of the model
    hint: the weights and the `config.json` beside them do not describe the same model
    ");
    insta::assert_snapshot!(broken("scheduler/scheduler_config.json", &replace("epsilon", "telepathy")), @r"
    1
    error: option `prediction_type` of `DPMSolverMultistepScheduler` is `telepathy`
    hint: expected one of `epsilon`, `sample`, `v_prediction`, `flow_prediction`
    ");
}

/// Web interfaces for FLUX tell its two scales of guidance apart.
#[test]
fn flux_writes_both_scales_of_guidance() {
    let workspace = Workspace::new();
    let flux = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens/flux-dev");
    let run = [
        "generate",
        "--model",
        flux,
        "--prompt",
        "a",
        "--num-inference-steps",
        "1",
        "--height",
        "32",
        "--width",
        "32",
    ];
    for (options, expected) in [
        (&[][..], "CFG scale: 1, Distilled CFG Scale: 3.5, "),
        (&["--guidance-scale", "2"], "CFG scale: 1, Distilled CFG Scale: 2, "),
        (&["--true-cfg-scale", "4", "--negative-prompt", "b"], "CFG scale: 4, Distilled CFG Scale: 3.5, "),
    ] {
        workspace.ok(&[&run, options].concat());
        let texts = chunks(&workspace, "xdit.png");
        let (_, text) = texts.iter().find(|(keyword, _)| keyword == "parameters").unwrap();
        assert!(text.contains(&format!("Steps: 1, {expected}Seed: ")), "{text}");
    }
}
