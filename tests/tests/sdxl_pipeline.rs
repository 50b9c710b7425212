//! Compares whole runs of Stable Diffusion XL, from prompt to pixels, with the same calls of diffusers.

use std::path::Path;

use burn::tensor::{DType, TensorData};
use xdit_core::noise::Generator;
use xdit_core::pipeline::{LoadOptions, Pipeline, Request};
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_tests::recorded::{self, check_calls, made};
use xdit_tests::{Case, assert_close, changed, device, goldens, relative_l2};

/// The tolerance of the final latents, relative to their norm.
const TOLERANCE: f64 = 1e-4;

#[test]
fn every_recorded_call() {
    check_calls(&["sdxl-"], 15, TOLERANCE);
}

/// Without `force_zeros_for_empty_prompt`, an absent negative prompt is an empty text, and a second one counts.
#[test]
fn zeros_are_an_option_of_the_checkpoint() {
    let case = Case::load("sdxl-base-empty-negative");
    let latents = |forced: Option<bool>, negative_prompts_2: &[&str]| {
        let dir = changed("sdxl-base", "model_index.json", |index| {
            let option = index.as_object_mut().unwrap();
            option.remove("force_zeros_for_empty_prompt");
            option.extend(forced.map(|forced| ("force_zeros_for_empty_prompt".to_owned(), forced.into())));
        });
        let mut pipeline = xdit_models::open(dir.path(), &LoadOptions::new(device(), DType::F32)).unwrap();
        let request = Request {
            negative_prompts: Vec::new(),
            negative_prompts_2: negative_prompts_2.iter().map(|&text| text.to_owned()).collect(),
            decode: false,
            ..recorded::request(&case)
        };
        pipeline.generate(&request, &mut ()).unwrap().latents::<4>()
    };
    assert_close("an empty text", &latents(Some(false), &[]), &case.tensor("latents"), TOLERANCE);
    assert!(relative_l2(&latents(Some(false), &["smoke"]), &case.tensor("latents")) > 1e-3);
    // Zeros are the default, and a second negative prompt alone does not replace them.
    let zeros = latents(Some(true), &[]);
    assert!(relative_l2(&zeros, &case.tensor("latents")) > 1e-3);
    assert_eq!(latents(None, &["smoke"]).into_data(), zeros.into_data());
}

fn open() -> Box<dyn Pipeline> {
    xdit_models::open(&goldens().join("sdxl-base"), &LoadOptions::new(device(), DType::F32)).unwrap()
}

#[test]
fn defaults_are_those_of_diffusers() {
    let resolved = open().resolve(&Request::new("a cat")).unwrap();
    assert_eq!((resolved.size, resolved.generated_size), ([128; 2], [128; 2]));
    assert_eq!((resolved.num_inference_steps, resolved.max_sequence_length), (50, 0));
    assert_eq!(resolved.guidance_scale, 5.0);
}

/// The bytes of a picture that the checkpoint in `dir` decodes in `dtype`.
fn decoded(dir: &Path, dtype: DType) -> Vec<u8> {
    let pipeline = xdit_models::open(dir, &LoadOptions::new(device(), dtype)).unwrap();
    let latents = TensorData::new(Generator::from_seed(3).randn(4 * 16 * 16), [1, 4, 16, 16]);
    let mut bytes = Vec::new();
    let decoded = pipeline.decode(&latents, false, None, &mut |_, pictures| {
        bytes.extend(pictures.into_iter().flat_map(|picture| picture.rgb));
        Ok(())
    });
    decoded.unwrap();
    assert_eq!(bytes.len(), 3 * 128 * 128);
    bytes
}

/// As in diffusers, the published autoencoder computes in f32 where all else is in f16, whose range it leaves. A repaired
/// one (`madebyollin/sdxl-vae-fp16-fix`) says that it stays in range, and bf16 has the range of f32.
#[test]
fn the_autoencoder_is_in_f32_only_if_it_must() {
    let published = goldens().join("sdxl-base");
    let exact = decoded(&published, DType::F32);
    assert_eq!(decoded(&published, DType::F16), exact);
    let repaired = changed("sdxl-base", "vae/config.json", |config| config["force_upcast"] = false.into());
    for (dir, dtype) in [(repaired.path(), DType::F16), (&published, DType::BF16)] {
        let half = decoded(dir, dtype);
        let apart = half.iter().zip(&exact).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        println!("{dtype:?}: at most {apart} of 255 from f32");
        assert!((1..=6).contains(&apart), "{dtype:?} is {apart} of 255 from f32");
    }
}

/// The latents of a distilled model in 16 bits, beside those of the reference in f32.
#[test]
fn half_precision() {
    for (dtype, tolerance) in [(DType::F16, 5e-3), (DType::BF16, 4e-2)] {
        for name in ["sdxl-turbo-one-step", "sdxl-base-texts"] {
            let case = Case::load(name);
            let made = made(name, &case, &device(), dtype).latents::<4>();
            let apart = relative_l2(&made, &case.tensor("latents"));
            println!("{name} in {dtype:?}: {apart:.1e}");
            assert!(apart <= tolerance, "{name} in {dtype:?}: {apart:.1e}");
        }
    }
}

#[test]
fn refusals_read_well() {
    let pipeline = open();
    let on = |axis, degree| {
        let mesh = Mesh::default().with(axis, degree);
        let parallel = ParallelConfig { mesh, ..ParallelConfig::default() };
        Request { parallel, ..Request::new("a cat") }
    };
    let mut distrifusion = on(Axis::Ulysses, 2);
    distrifusion.parallel.distrifusion = true;
    let refusals = [
        Request { height: Some(100), ..Request::new("a cat") },
        Request { height: Some(104), ..on(Axis::Ring, 2) },
        Request { height: Some(64), ..on(Axis::Ulysses, 3) },
        on(Axis::Ulysses, 5),
        on(Axis::Pipeline, 2),
        distrifusion,
        Request { guidance_rescale: 1.5, ..Request::new("a cat") },
        Request { max_sequence_length: Some(77), ..Request::new("a cat") },
    ];
    let refusals: Vec<_> =
        refusals.iter().map(|request| pipeline.resolve(request).unwrap_err().to_string()).collect();
    insta::assert_snapshot!(refusals.join("\n\n"), @"
    height `100` is not a multiple of 8
    hint: use `96`

    height `104` is not a multiple of 32, so its rows cannot be split
    hint: use `128`, or leave the picture whole

    a height of `64` cannot be split into 3 parts
    hint: use at most `2`: each needs 32 pixels

    a height of `128` cannot be split into 5 parts
    hint: use at most `4`: each needs 32 pixels

    PipeFusion does not apply to Stable Diffusion XL base: all layers of a UNet need rows of other patches, for their convolutions, and its skips tie the last stage to the first
    hint: use the ring or the Ulysses degree, which split its rows

    in DistriFusion, each rank has a strip of the UNet's rows, which Ulysses degree `2` cannot cut
    hint: use the ring degree for the number of strips

    guidance rescale `1.5` is not between 0 and 1
    hint: 0 turns it off, and 0.7 is usual

    Stable Diffusion XL does not take `max_sequence_length`
    hint: leave it out; of the options that not all models have, it takes `negative_prompt`, `prompt_2`, `negative_prompt_2`, `clip_skip`, `guidance_rescale`, `original_size`, `crops_coords_top_left`, `target_size`, `negative_original_size`, `negative_crops_coords_top_left`, `negative_target_size`
    ");
}
