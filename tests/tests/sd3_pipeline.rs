//! Compares whole runs of Stable Diffusion 3 and 3.5, from prompt to pixels, with the same calls of diffusers.

use std::time::Instant;

use burn::tensor::DType;
use xdit_core::Error;
use xdit_core::pipeline::{LoadOptions, Observer, Phase, Pipeline, Request, SkipLayerGuidance};
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_tests::recorded::check_calls;
use xdit_tests::{assert_close, device, goldens};

/// The tolerance of the final latents, relative to their norm.
const TOLERANCE: f64 = 1e-4;

#[test]
fn every_recorded_call() {
    check_calls(&["sd3-", "sd35-"], 14, TOLERANCE);
}

fn open(checkpoint: &str, dtype: DType) -> Box<dyn Pipeline> {
    let options = LoadOptions::new(device(), dtype);
    xdit_models::open(&goldens().join(checkpoint), &options).unwrap()
}

fn request() -> Request {
    Request {
        height: Some(64),
        width: Some(96),
        num_inference_steps: Some(3),
        max_sequence_length: Some(16),
        ..Request::new("a photo of a cat")
    }
}

/// Half precision, on a single rank and on a pipeline of two: close to f32 within the precision of 8 or 11 bits.
#[test]
fn half_precision() {
    let made = |dtype, parallel| {
        // Strong guidance amplifies rounding: with the default, diffusers itself is 2.6e-2 off in bf16.
        let request = Request { guidance_scale: Some(3.0), parallel, decode: false, ..request() };
        open("sd35-medium", dtype).generate(&request, &mut ()).unwrap().latents::<4>()
    };
    let expected = made(DType::F32, ParallelConfig::default());
    for (dtype, tolerance) in [(DType::BF16, 3e-2), (DType::F16, 5e-3)] {
        let one = made(dtype, ParallelConfig::default());
        assert_eq!(one.dtype(), DType::F32);
        assert_close(&format!("{dtype:?}"), &one, &expected, tolerance);
        let mesh = Mesh::default().with(Axis::Pipeline, 2).with(Axis::Ulysses, 2);
        let parallel = ParallelConfig { mesh, patches: Some(1), ..ParallelConfig::default() };
        assert_close(&format!("{dtype:?}, {mesh}"), &made(dtype, parallel), &expected, tolerance);
    }
}

#[test]
fn defaults_are_those_of_diffusers() {
    let resolved = open("sd3-medium", DType::F32).resolve(&Request::new("a cat")).unwrap();
    assert_eq!((resolved.size, resolved.generated_size), ([128; 2], [128; 2]));
    assert_eq!((resolved.num_inference_steps, resolved.max_sequence_length), (28, 256));
    assert_eq!(resolved.guidance_scale, 7.0);
}

fn refusal(checkpoint: &str, request: &Request) -> String {
    let error: Error = open(checkpoint, DType::F32).resolve(request).unwrap_err();
    error.to_string()
}

#[test]
fn refusals_read_well() {
    let base = Request { num_inference_steps: Some(10), ..request() };
    let skip = |layers: &[usize]| Some(SkipLayerGuidance::new(layers.to_vec()));
    let refusals = [
        refusal("sd3-medium", &Request { height: Some(72), ..base.clone() }),
        refusal("sd3-medium", &Request { width: Some(208), ..base.clone() }),
        refusal("sd3-medium", &Request { max_sequence_length: Some(513), ..base.clone() }),
        refusal("sd3-medium", &Request { clip_skip: Some(3), ..base.clone() }),
        refusal("sd3-medium", &Request { clean_caption: Some(true), ..base.clone() }),
        refusal("sd35-medium", &Request { skip_layer_guidance: skip(&[1, 4]), ..base.clone() }),
        // With so few steps, none is in the window of the branch.
        refusal(
            "sd35-medium",
            &Request { skip_layer_guidance: skip(&[99]), num_inference_steps: Some(2), ..base.clone() },
        ),
        refusal("sd35-medium", &Request { skip_layer_guidance: skip(&[]), ..base.clone() }),
        refusal("sd35-large", &Request { prompts_3: vec!["a dog".into()], ..base }),
    ];
    insta::assert_snapshot!(refusals.join("\n\n"), @r"
    height `72` is not a multiple of 16
    hint: use `64`

    width `208` is larger than 192
    hint: the model has no positions for larger pictures

    a maximum sequence length of `513` is not between 1 and 512
    hint: leave it out for the model's default

    `clip_skip` of `3` is too large for the 3 layers of CLIP
    hint: use at most 2

    Stable Diffusion 3 does not take `clean_caption`
    hint: leave it out; of the options that not all models have, it takes `negative_prompt`, `max_sequence_length`, `prompt_2`, `prompt_3`, `negative_prompt_2`, `negative_prompt_3`, `skip_guidance_layers`, `clip_skip`

    block `4` cannot be skipped: the model has 4
    hint: they are counted from 0; the last one is `3`

    block `99` cannot be skipped: the model has 4
    hint: they are counted from 0; the last one is `3`

    skip-layer guidance has no layers to skip
    hint: name at least one, or leave it out

    Stable Diffusion 3 does not take `prompt_3`
    hint: leave it out; of the options that not all models have, it takes `negative_prompt`, `max_sequence_length`, `prompt_2`, `negative_prompt_2`, `skip_guidance_layers`, `clip_skip`
    ");
}

/// Steps are synchronous until the branch that skips layers has run once and its keys can be kept.
#[test]
fn a_plan_tells_of_skipped_layers() {
    let mesh = Mesh::default().with(Axis::Cfg, 2).with(Axis::Pipeline, 2);
    let request = Request {
        skip_layer_guidance: Some(SkipLayerGuidance::new(vec![1, 2])),
        num_inference_steps: Some(28),
        parallel: ParallelConfig { mesh, ..ParallelConfig::default() },
        ..request()
    };
    let resolved = open("sd35-medium", DType::F32).resolve(&request).unwrap();
    insta::assert_snapshot!(resolved.plan, @r"
    cfg 2 × pp 2: 2 patches, 2 of 28 steps synchronous
    one more branch of guidance in steps 1..6, without blocks 1, 2
    rank   dp cfg  pp ring ulysses  tp  pictures    blocks    tokens
       0    0   0   0    0       0   0      0..1      0..2        24
       1    0   0   1    0       0   0      0..1      2..4        24
       2    0   1   0    0       0   0      0..1      0..2        24
       3    0   1   1    0       0   0      0..1      2..4        24
    ");
}

/// The warnings of a run.
#[derive(Default)]
struct Warnings(Vec<String>);

impl Observer for Warnings {
    fn warn(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }
}

#[test]
fn layers_that_are_skipped_in_no_step_are_told_of() {
    let warnings = |guidance_scale, scale, num_inference_steps| {
        let skip = SkipLayerGuidance { scale, ..SkipLayerGuidance::new(vec![1]) };
        let request = Request {
            guidance_scale: Some(guidance_scale),
            skip_layer_guidance: Some(skip),
            num_inference_steps: Some(num_inference_steps),
            decode: false,
            ..request()
        };
        let mut warnings = Warnings::default();
        open("sd35-medium", DType::F32).generate(&request, &mut warnings).unwrap();
        warnings.0.join("\n")
    };
    insta::assert_snapshot!(
        warnings(1.0, 2.8, 6),
        @"the layers to skip change nothing without a `guidance_scale` above 1"
    );
    insta::assert_snapshot!(
        warnings(7.0, 2.8, 5),
        @"the layers to skip change nothing: of 5 steps none lies between start `0.01` and stop `0.2`"
    );
    assert_eq!(warnings(7.0, 2.8, 6), "");
    // Turned off explicitly.
    assert_eq!(warnings(7.0, 0.0, 5), "");
}

/// The text encoders that were loaded, in this order.
#[derive(Default)]
struct Loads(Vec<&'static str>);

impl Observer for Loads {
    fn begin(&mut self, phase: Phase, _: Instant) {
        if let Phase::Load(component) = phase {
            self.0.push(component);
        }
    }
}

#[test]
fn a_text_encoder_that_is_absent_is_not_loaded() {
    let loads = |checkpoint| {
        let mut loads = Loads::default();
        let request = Request { decode: false, num_inference_steps: Some(1), ..request() };
        open(checkpoint, DType::F32).generate(&request, &mut loads).unwrap();
        loads.0.retain(|component| component.starts_with("text_encoder"));
        loads.0
    };
    assert_eq!(loads("sd3-medium"), ["text_encoder", "text_encoder_2", "text_encoder_3"]);
    assert_eq!(loads("sd35-large"), ["text_encoder", "text_encoder_2"]);
}

/// The tokens of both CLIPs are joined along the features, so their number must be the same.
#[test]
fn clips_that_make_texts_of_different_lengths_are_refused() {
    let checkpoint = xdit_tests::changed("sd3-medium", "tokenizer_2/tokenizer_config.json", |config| {
        config["model_max_length"] = 40.into();
    });
    let options = LoadOptions::new(device(), DType::F32);
    let error = xdit_models::open(checkpoint.path(), &options).err().unwrap();
    assert_eq!(
        error.message(),
        "lengths of CLIP's texts in `tokenizer` and `tokenizer_2`: `77` and `40` do not fit"
    );
}

/// The layout of the published files at full size, in files without values.
#[cfg(unix)]
#[test]
fn published_sizes_are_opened_and_planned() {
    for (name, heads, blocks) in [("sd3-medium", 24, 24), ("sd35-medium", 24, 24), ("sd35-large", 38, 38)] {
        let folder = tempfile::tempdir().unwrap();
        xdit_tests::full_size::write(name, folder.path());
        let options = LoadOptions::new(device(), DType::BF16);
        let pipeline = xdit_models::open(folder.path(), &options).unwrap_or_else(|error| panic!("{error}"));
        let mesh = Mesh::default().with(Axis::Pipeline, blocks).with(Axis::Ulysses, heads);
        let parallel = ParallelConfig { mesh, ..ParallelConfig::default() };
        let resolved = pipeline.resolve(&Request { parallel, ..Request::new("a cat") }).unwrap();
        assert_eq!(resolved.size, [1024; 2], "{name}");
        assert_eq!(resolved.plan.stage(heads), 1..2, "{name}: the second rank of the pipeline has one block");
        assert_eq!(resolved.plan.patches.iter().map(ExactSizeIterator::len).sum::<usize>(), 4096, "{name}");
    }
}
