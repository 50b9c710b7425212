//! Whole runs of PixArt, from prompt to pixels, against what diffusers gives for the same call.

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use serde_json::Value;
use xdit_core::parallel::mesh::{Axis, Mesh};
use xdit_core::parallel::plan::ParallelConfig;
use xdit_core::pipeline::{LoadOptions, Request};
use xdit_tests::{Case, assert_close, device, goldens};

/// Of the final latents, relative to their norm.
const TOLERANCE: f64 = 1e-4;

/// The checkpoint of `case`, with the case's own scheduler where it has one.
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

fn request(case: &Case) -> Request {
    let call = &case.json["call"];
    let number = |name: &str| call[name].as_u64().map(|n| n as usize);
    let prompts = match &call["prompt"] {
        Value::Array(prompts) => prompts.iter().map(|p| p.as_str().unwrap().to_owned()).collect(),
        prompt => vec![prompt.as_str().unwrap().to_owned()],
    };
    Request {
        prompts,
        negative_prompt: call["negative_prompt"].as_str().unwrap_or_default().to_owned(),
        height: number("height"),
        width: number("width"),
        num_inference_steps: number("num_inference_steps"),
        guidance_scale: call["guidance_scale"].as_f64().map(|g| g as f32),
        seed: case.json["seeds"][0].as_u64().or(case.json["seed_of_init_latents"].as_u64()).unwrap(),
        images_per_prompt: number("num_images_per_prompt").unwrap_or(1),
        max_sequence_length: number("max_sequence_length"),
        clean_caption: call["clean_caption"].as_bool().unwrap_or(true),
        use_resolution_binning: call["use_resolution_binning"].as_bool().unwrap_or(true),
        ..Request::new("")
    }
}

fn names() -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(goldens().join("cases"))
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let stem = name.strip_suffix(".safetensors")?;
            (stem.starts_with("alpha-") || stem.starts_with("sigma-")).then(|| stem.to_owned())
        })
        .collect();
    names.sort();
    assert!(names.len() >= 18, "the golden cases are missing: {names:?}");
    names
}

#[test]
fn every_recorded_call() {
    for name in names() {
        let case = Case::load(&name);
        let scratch = tempfile::tempdir().unwrap();
        let options = LoadOptions {
            device: device(),
            dtype: DType::F32,
            variant: case.json["checkpoint"].as_str().unwrap().contains("2k").then(|| "fp16".to_owned()),
        };
        let mut pipeline = xdit_models::open(&checkpoint(&case, scratch.path()), &options)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let made =
            pipeline.generate(&request(&case), &mut ()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_close(&name, &made.latents, &case.tensor("latents"), TOLERANCE);
        let expected = case.integers("image");
        let actual: Vec<i64> =
            made.pictures.iter().flat_map(|picture| &picture.rgb).map(|&byte| i64::from(byte)).collect();
        assert_eq!(actual.len(), expected.len(), "{name}: the pictures' size");
        let worst = actual.iter().zip(&expected).map(|(a, e)| (a - e).abs()).max().unwrap();
        assert!(worst <= 1, "{name}: a pixel is off by {worst} of 255");
    }
}

/// Half precision, on one rank and on a pipeline of two: the picture of f32 to what eight or eleven bits can tell.
#[test]
fn half_precision() {
    let request = Request {
        height: Some(64),
        width: Some(96),
        num_inference_steps: Some(3),
        use_resolution_binning: false,
        ..Request::new("a photo of a cat")
    };
    let made = |dtype, parallel| {
        let options = LoadOptions { device: device(), dtype, variant: None };
        let mut pipeline = xdit_models::open(&goldens().join("pixart-alpha-256"), &options).unwrap();
        pipeline.generate(&Request { parallel, ..request.clone() }, &mut ()).unwrap()
    };
    let expected = made(DType::F32, ParallelConfig::default()).latents;
    for (dtype, tolerance) in [(DType::BF16, 3e-2), (DType::F16, 5e-3)] {
        let one = made(dtype, ParallelConfig::default());
        assert_eq!(one.latents.dtype(), DType::F32);
        assert_close(&format!("{dtype:?}"), &one.latents, &expected, tolerance);
        let mesh = Mesh::default().with(Axis::Pipeline, 2).with(Axis::Ulysses, 2);
        let parallel = ParallelConfig { mesh, patches: Some(1), ..ParallelConfig::default() };
        assert_close(&format!("{dtype:?}, {mesh}"), &made(dtype, parallel).latents, &expected, tolerance);
    }
}

/// A checkpoint that was recorded elsewhere, with the real xDiT beside diffusers. It is not part of the project.
#[test]
fn outside_reference() {
    let Some(shared) = xdit_tests::outside_reference() else { return };
    let case = Case::open(&shared.join("pixart-alpha-512.expected"));
    let options = LoadOptions { device: device(), dtype: DType::F32, variant: None };
    let mut pipeline = xdit_models::open(&shared.join("pixart-alpha-512"), &options).unwrap();
    let made = pipeline.generate(&request(&case), &mut ()).unwrap();
    assert_close("outside reference", &made.latents, &case.tensor("serial_latents"), TOLERANCE);
    let (_, image) = case.f32("image");
    for (actual, expected) in made.pictures[0].rgb.iter().zip(image) {
        assert!((f32::from(*actual) / 255.0 - expected).abs() <= 1.5 / 255.0, "{actual} for {expected}");
    }
}
