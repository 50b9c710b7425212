//! Recorded calls of the reference's pipelines, compared with the same calls here.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use serde_json::Value;
use xdit_core::pipeline::{Generated, LoadOptions, Request, SkipLayerGuidance};
use xdit_core::plan::ParallelConfig;

use crate::verified::{Counts, SERIAL, add, check, model_of};
use crate::{Case, assert_close, device, goldens};

/// The checkpoint of `case`. If the case has its own scheduler, the checkpoint is assembled in `scratch`.
fn checkpoint(case: &Case, scratch: &Path) -> PathBuf {
    let dir = goldens().join(case.json["checkpoint"].as_str().unwrap());
    let scheduler = &case.json["scheduler"];
    if scheduler.is_null() {
        return dir;
    }
    for entry in std::fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "scheduler" && entry.file_name() != "model_index.json" {
            std::os::unix::fs::symlink(entry.path(), scratch.join(entry.file_name())).unwrap();
        }
    }
    let index = std::fs::read_to_string(dir.join("model_index.json")).unwrap();
    let mut index: Value = serde_json::from_str(&index).unwrap();
    index["scheduler"][1] = scheduler["_class_name"].clone();
    std::fs::write(scratch.join("model_index.json"), index.to_string()).unwrap();
    std::fs::create_dir(scratch.join("scheduler")).unwrap();
    std::fs::write(scratch.join("scheduler/scheduler_config.json"), scheduler.to_string()).unwrap();
    scratch.to_owned()
}

/// The request that corresponds to the recorded call.
pub fn request(case: &Case) -> Request {
    let call = &case.json["call"];
    let number = |name: &str| call[name].as_u64().map(|n| n as usize);
    let texts = |name: &str| match &call[name] {
        Value::Array(texts) => texts.iter().map(|text| text.as_str().unwrap().to_owned()).collect(),
        text => text.as_str().map(str::to_owned).into_iter().collect(),
    };
    let float = |name: &str| call[name].as_f64();
    let skip_layer_guidance = call["skip_guidance_layers"].as_array().map(|layers| {
        let layers = layers.iter().map(|layer| layer.as_u64().unwrap() as usize).collect();
        let default = SkipLayerGuidance::new(layers);
        SkipLayerGuidance {
            scale: float("skip_layer_guidance_scale").map_or(default.scale, |scale| scale as f32),
            start: float("skip_layer_guidance_start").unwrap_or(default.start),
            stop: float("skip_layer_guidance_stop").unwrap_or(default.stop),
            ..default
        }
    });
    Request {
        skip_layer_guidance,
        prompts: texts("prompt"),
        prompts_2: texts("prompt_2"),
        prompts_3: texts("prompt_3"),
        negative_prompts: texts("negative_prompt"),
        negative_prompts_2: texts("negative_prompt_2"),
        negative_prompts_3: texts("negative_prompt_3"),
        height: number("height"),
        width: number("width"),
        num_inference_steps: number("num_inference_steps"),
        guidance_scale: float("guidance_scale").map(|g| g as f32),
        true_cfg_scale: float("true_cfg_scale").map(|g| g as f32),
        seed: case.json["seeds"][0].as_u64().or(case.json["seed_of_init_latents"].as_u64()).unwrap(),
        images_per_prompt: number("num_images_per_prompt").unwrap_or(1),
        max_sequence_length: number("max_sequence_length"),
        clip_skip: number("clip_skip"),
        num_frames: number("video_length"),
        enable_temporal_attentions: call["enable_temporal_attentions"].as_bool().unwrap_or(true),
        decode_chunk_size: number("decode_chunk_size"),
        clean_caption: Some(call["clean_caption"].as_bool().unwrap_or(false)),
        guidance_rescale: float("guidance_rescale").unwrap_or(0.0) as f32,
        micro_conditions: serde_json::from_value(call.clone()).expect("pairs of numbers"),
        use_resolution_binning: call["use_resolution_binning"].as_bool().unwrap_or(true),
        ..Request::new("")
    }
}

/// Compares our latents and pictures with those of each recorded call whose name begins with one of `prefixes`. There
/// must be at least `count` of them.
///
/// # Panics
/// If the distance of latents exceeds `tolerance`, or a pixel differs by more than 1 of 255.
pub fn check_calls(prefixes: &[&str], count: usize, tolerance: f64) {
    check_calls_on(&ParallelConfig::default(), prefixes, count, tolerance);
}

/// As [`check_calls`], with the parallelism `parallel`.
///
/// # Panics
/// As [`check_calls`].
pub fn check_calls_on(parallel: &ParallelConfig, prefixes: &[&str], count: usize, tolerance: f64) {
    let (mut checked, mut counts) = (0, Counts::new());
    for name in names(prefixes) {
        let case = Case::load(&name);
        if case.json["call"].is_null() {
            // A recording of a single module.
            continue;
        }
        check_call(&name, &case, parallel, tolerance);
        add(&mut counts, model_of(case.json["checkpoint"].as_str().unwrap()), SERIAL, 1);
        checked += 1;
    }
    assert!(checked >= count, "{checked} golden cases of {prefixes:?}, expected {count}");
    check(&counts);
}

/// The names of all recorded calls, which are many steps of many pipelines.
pub fn calls() -> Vec<String> {
    let is_call = |name: &String| !Case::load(name).json["call"].is_null();
    let prefixes = ["alpha-", "dit-", "flux-", "hunyuan-", "latte-", "sd3", "sdxl-", "sigma-"];
    names(&prefixes).into_iter().filter(is_call).collect()
}

fn names(prefixes: &[&str]) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(goldens().join("cases"))
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let stem = name.strip_suffix(".safetensors")?;
            prefixes.iter().any(|prefix| stem.starts_with(prefix)).then(|| stem.to_owned())
        })
        .collect();
    names.sort();
    names
}

/// What we generate in place of the recorded call `name`.
///
/// # Panics
/// If it fails.
pub fn made(name: &str, case: &Case, device: &Device, dtype: DType) -> Generated {
    made_on(&ParallelConfig::default(), name, case, device, dtype)
}

/// As [`made`], with the parallelism `parallel`.
///
/// # Panics
/// As [`made`].
pub fn made_on(
    parallel: &ParallelConfig,
    name: &str,
    case: &Case,
    device: &Device,
    dtype: DType,
) -> Generated {
    let scratch = tempfile::tempdir().unwrap();
    let options = LoadOptions {
        // Used where it exists.
        variant: Some("fp16".to_owned()),
        ..LoadOptions::new(device.clone(), dtype)
    };
    let mut pipeline = xdit_models::open(&checkpoint(case, scratch.path()), &options)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let request = Request { parallel: parallel.clone(), ..request(case) };
    pipeline.generate(&request, &mut ()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn check_call(name: &str, case: &Case, parallel: &ParallelConfig, tolerance: f64) {
    let made = made_on(parallel, name, case, &device(), DType::F32);
    match case.f32("latents").0.len() {
        4 => assert_close(name, &made.latents::<4>(), &case.tensor("latents"), tolerance),
        _ => assert_close(name, &made.latents::<5>(), &case.tensor("latents"), tolerance),
    }
    let expected = case.integers("image");
    let actual: Vec<i64> =
        made.pictures.iter().flat_map(|picture| &picture.rgb).map(|&byte| i64::from(byte)).collect();
    assert_eq!(actual.len(), expected.len(), "{name}: the pictures' size");
    let worst = actual.iter().zip(&expected).map(|(a, e)| (a - e).abs()).max().unwrap();
    assert!(worst <= 1, "{name}: a pixel is off by {worst} of 255");
}
