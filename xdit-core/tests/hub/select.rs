//! Tests of the files selected from the listings of real repositories.

use xdit_core::hub::{ModelIndex, select};

const PIXART_INDEX: &str = r#"{
    "_class_name": "PixArtAlphaPipeline", "_diffusers_version": "0.22.0.dev0",
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"], "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"], "transformer": ["diffusers", "Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"]
}"#;

const PIXART: &[&str] = &[
    ".gitattributes",
    "README.md",
    "model_index.json",
    "asset/images/sample.png",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "text_encoder/pytorch_model-00001-of-00002.bin",
    "text_encoder/pytorch_model.bin.index.json",
    "tokenizer/added_tokens.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.safetensors",
];

const FLUX_INDEX: &str = r#"{
    "_class_name": "FluxPipeline", "_diffusers_version": "0.30.0.dev0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"]
}"#;

const FLUX: &[&str] = &[
    ".gitattributes",
    "LICENSE.md",
    "README.md",
    "ae.safetensors",
    "dev_grid.jpg",
    "flux1-dev.safetensors",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model-00001-of-00002.safetensors",
    "text_encoder_2/model-00002-of-00002.safetensors",
    "text_encoder_2/model.safetensors.index.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/spiece.model",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00003.safetensors",
    "transformer/diffusion_pytorch_model-00003-of-00003.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

const SD3_INDEX: &str = r#"{
    "_class_name": "StableDiffusion3Pipeline", "_diffusers_version": "0.30.3.dev0",
    "feature_extractor": [null, null], "image_encoder": [null, null],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": true,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "SD3Transformer2DModel"], "vae": ["diffusers", "AutoencoderKL"]
}"#;

const SD3: &[&str] = &[
    "LICENSE.md",
    "README.md",
    "SD3.5L_example_workflow.json",
    "model_index.json",
    "mmdit.png",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json",
    "sd3.5_large.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder_3/config.json",
    "text_encoder_3/model-00001-of-00002.safetensors",
    "text_encoder_3/model-00002-of-00002.safetensors",
    "text_encoder_3/model.fp16-00001-of-00002.safetensors",
    "text_encoder_3/model.fp16-00002-of-00002.safetensors",
    "text_encoder_3/model.safetensors.index.fp16.json",
    "text_encoder_3/model.safetensors.index.json",
    "text_encoder_3/flax_model.msgpack",
    "text_encoders/clip_g.safetensors",
    "text_encoders/t5xxl_fp16.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

fn chosen(index: &str, listing: &[&str], variant: Option<&str>) -> Result<Vec<String>, String> {
    let index = ModelIndex::parse("o/n", index).map_err(|error| error.to_string())?;
    let listing: Vec<String> = listing.iter().map(|&name| name.to_owned()).collect();
    select("o/n", &index, &listing, variant).map_err(|error| error.to_string())
}

/// The listing without the files whose names contain any of `words`.
fn without<'a>(listing: &[&'a str], words: &[&str]) -> Vec<&'a str> {
    listing.iter().copied().filter(|name| !words.iter().any(|word| name.contains(word))).collect()
}

fn assert_same_files(found: Vec<String>, mut expected: Vec<&str>) {
    let mut found: Vec<&str> = found.iter().map(String::as_str).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn pixart_has_a_sharded_text_encoder_and_no_pickles() {
    let expected = without(PIXART, &[".gitattributes", "README", ".png", "pytorch_model-0", ".bin"]);
    assert_same_files(chosen(PIXART_INDEX, PIXART, None).unwrap(), expected);
}

#[test]
fn flux_leaves_out_the_single_file_checkpoints_in_the_root() {
    let rubbish = [".gitattributes", "LICENSE", "README", "ae.safetensors", ".jpg", "flux1-dev"];
    assert_same_files(chosen(FLUX_INDEX, FLUX, None).unwrap(), without(FLUX, &rubbish));
}

const SD3_RUBBISH: [&str; 8] =
    ["LICENSE", "README", "workflow", ".png", "safety_checker", "sd3.5_large", "text_encoders", "msgpack"];

#[test]
fn without_a_variant_only_default_names_are_selected() {
    let expected = without(&without(SD3, &SD3_RUBBISH), &["fp16"]);
    assert_same_files(chosen(SD3_INDEX, SD3, None).unwrap(), expected);
}

#[test]
fn a_variant_is_used_for_the_components_that_have_it() {
    let plain = [
        "text_encoder/model.safetensors",
        "text_encoder_3/model-0",
        "text_encoder_3/model.safetensors.index.json",
    ];
    let expected = without(&without(SD3, &SD3_RUBBISH), &plain);
    assert_same_files(chosen(SD3_INDEX, SD3, Some("fp16")).unwrap(), expected);
}

#[test]
fn older_names_of_sharded_variants_are_recognised() {
    let index = r#"{"transformer": ["diffusers", "Transformer2DModel"]}"#;
    let old = [
        "model_index.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
        "transformer/diffusion_pytorch_model-00002-of-00002.fp16.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.fp16.index.json",
    ];
    assert_same_files(chosen(index, &old, Some("fp16")).unwrap(), old.to_vec());
}

#[test]
fn all_weights_come_after_all_small_files() {
    for (index, listing) in [(PIXART_INDEX, PIXART), (FLUX_INDEX, FLUX), (SD3_INDEX, SD3)] {
        let files = chosen(index, listing, None).unwrap();
        let first_weight = files.iter().position(|name| name.ends_with(".safetensors")).unwrap();
        assert!(files[first_weight..].iter().all(|name| name.ends_with(".safetensors")), "{files:?}");
        assert_eq!(files[0], "model_index.json");
    }
}

/// In offline mode, this check distinguishes a complete snapshot from an interrupted download.
#[test]
fn any_missing_weight_is_noticed() {
    for file in chosen(FLUX_INDEX, FLUX, None).unwrap() {
        if file.ends_with(".safetensors") {
            let error = chosen(FLUX_INDEX, &without(FLUX, &[&file]), None).unwrap_err();
            assert!(error.contains(file.split('/').next().unwrap()), "{error}");
        }
    }
}

#[test]
fn missing_files_are_reported() {
    let lacking = |index, listing: &[&str], variant| chosen(index, listing, variant).unwrap_err();
    assert_eq!(
        lacking(PIXART_INDEX, &without(PIXART, &["vae/diffusion_pytorch_model.safetensors"]), None),
        "the component `vae` of `o/n` has no safetensors weights\n\
          hint: save the model again with diffusers to convert it: other weight formats are not read"
    );
    assert_eq!(
        lacking(SD3_INDEX, &without(SD3, &["text_encoder/model.safetensors"]), None),
        "the component `text_encoder` of `o/n` has no safetensors weights\n\
          hint: ask for the variant `fp16`, which has them"
    );
    assert_eq!(
        lacking(FLUX_INDEX, &without(FLUX, &["00002-of-00003"]), None),
        "shard 2 of 3 of the component `transformer` of `o/n` is missing\nhint: download the model again"
    );
    assert_eq!(
        lacking(FLUX_INDEX, &without(FLUX, &["diffusion_pytorch_model.safetensors.index"]), None),
        "the shard index of the component `transformer` of `o/n` is missing\n\
         hint: download the model again"
    );
    assert_eq!(
        lacking(FLUX_INDEX, FLUX, Some("fp16")),
        "`o/n` has no weights of the variant `fp16`\nhint: omit the variant to use the default weights"
    );
    assert_eq!(
        lacking(FLUX_INDEX, &without(FLUX, &["tokenizer_2/"]), None),
        "`o/n` has no files for its component `tokenizer_2`\n\
          hint: choose a repository in the full diffusers layout"
    );
}

#[test]
fn an_index_without_components_is_refused() {
    for text in ["", "[]", "{}", r#"{"_class_name": "X", "vae": [null, null]}"#] {
        let error = ModelIndex::parse("o/n", text).unwrap_err();
        assert!(error.message().starts_with("the `model_index.json` of `o/n` is not usable"), "{error}");
    }
}

#[test]
fn components_that_are_not_needed_are_left_out() {
    let without = ["text_encoder_3".to_owned()];
    let index = ModelIndex::parse("o/n", SD3_INDEX).unwrap().changed(&without, &[]);
    let listing: Vec<String> = SD3.iter().map(|&name| name.to_owned()).collect();
    let files = select("o/n", &index, &listing, None).unwrap();
    assert!(files.iter().any(|file| file.starts_with("text_encoder/")));
    assert!(!files.iter().any(|file| file.starts_with("text_encoder_3/")), "{files:?}");
}

/// Latte-1 does not name its second autoencoder.
#[test]
fn a_component_takes_the_place_of_another() {
    const INDEX: &str = r#"{"_class_name": "LattePipeline", "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "LatteTransformer3DModel"], "vae": ["diffusers", "AutoencoderKL"]}"#;
    let all = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vae_temporal_decoder/config.json",
        "vae_temporal_decoder/diffusion_pytorch_model.safetensors",
    ];
    let with = [("vae_temporal_decoder".to_owned(), "AutoencoderKLTemporalDecoder".to_owned())];
    let index = ModelIndex::parse("o/n", INDEX).unwrap();
    let other = index.clone().changed(&["vae".to_owned()], &with);
    let select = |index: &ModelIndex, listing: &[&str]| {
        let listing: Vec<String> = listing.iter().map(|&name| name.to_owned()).collect();
        select("o/n", index, &listing, None)
    };
    let in_folder = |index: &ModelIndex, folder: &str| {
        let files = select(index, &all).unwrap();
        files.iter().filter(|file| file.starts_with(folder)).count()
    };
    assert_eq!(["vae/", "vae_temporal_decoder/"].map(|folder| in_folder(&index, folder)), [2, 0]);
    assert_eq!(["vae/", "vae_temporal_decoder/"].map(|folder| in_folder(&other, folder)), [0, 2]);
    assert_eq!(
        select(&other, &all[..6]).unwrap_err().to_string(),
        "`o/n` has no files for its component `vae_temporal_decoder`\n\
         hint: choose a repository in the full diffusers layout"
    );
}
