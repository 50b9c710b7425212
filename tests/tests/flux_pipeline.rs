//! Compares whole runs of FLUX, from prompt to pixels, with the same calls of diffusers.

use burn::tensor::DType;
use xdit_core::pipeline::{LoadOptions, Observer, Pipeline, Request};
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_tests::recorded::{check_calls, request};
use xdit_tests::{Case, assert_close, device, goldens, relative_l2};

/// The tolerance of the final latents, relative to their norm.
const TOLERANCE: f64 = 1e-4;

fn pipeline(checkpoint: &str) -> Box<dyn Pipeline> {
    let options = LoadOptions::new(device(), DType::F32);
    xdit_models::open(&goldens().join(checkpoint), &options).unwrap()
}

#[test]
fn every_recorded_call() {
    check_calls(&["flux-"], 8, TOLERANCE);
}

/// Half precision, on a single rank and on a pipeline of two: close to f32 within the precision of 8 or 11 bits.
#[test]
fn half_precision() {
    let request = Request { decode: false, ..request(&Case::load("flux-dev-non-square")) };
    let made = |dtype, parallel| {
        let options = LoadOptions::new(device(), dtype);
        let mut pipeline = xdit_models::open(&goldens().join("flux-dev"), &options).unwrap();
        pipeline.generate(&Request { parallel, ..request.clone() }, &mut ()).unwrap().latents::<4>()
    };
    let expected = made(DType::F32, ParallelConfig::default());
    for (dtype, tolerance) in [(DType::BF16, 2e-2), (DType::F16, 3e-3)] {
        let mesh = Mesh::default().with(Axis::Pipeline, 2).with(Axis::Tensor, 2);
        let parallel = ParallelConfig { mesh, patches: Some(1), ..ParallelConfig::default() };
        for parallel in [ParallelConfig::default(), parallel] {
            let latents = made(dtype, parallel.clone());
            assert_eq!(latents.dtype(), DType::F32);
            assert_close(&format!("{dtype:?}, {}", parallel.mesh), &latents, &expected, tolerance);
        }
    }
}

/// The defaults are those of diffusers, but for the steps of FLUX.1-schnell, for which it has those of FLUX.1-dev.
#[test]
fn defaults() {
    let request = Request::new("a photo of a cat");
    for (checkpoint, guidance_scale, steps) in [("flux-dev", 3.5, 28), ("flux-schnell", 0.0, 4)] {
        let resolved = pipeline(checkpoint).resolve(&request).unwrap();
        assert_eq!((resolved.size, resolved.generated_size), ([1024, 1024], [1024, 1024]));
        assert_eq!((resolved.num_inference_steps, resolved.max_sequence_length), (steps, 512));
        assert_eq!(resolved.guidance_scale, guidance_scale);
    }
}

/// The true CFG scale turns on classifier-free guidance if there is a negative prompt, which may be empty.
#[test]
fn true_guidance() {
    let case = Case::load("flux-dev-true-cfg");
    let mut pipeline = pipeline("flux-dev");
    let asked = Request { decode: false, ..request(&case) };
    let mut latents = |request: Request| pipeline.generate(&request, &mut ()).unwrap().latents::<4>();
    let plain = latents(Request { true_cfg_scale: None, ..asked.clone() });
    assert_eq!(relative_l2(&latents(Request { true_cfg_scale: Some(1.0), ..asked.clone() }), &plain), 0.0);
    let guided = latents(asked.clone());
    assert!(relative_l2(&guided, &plain) > 1e-2);
    let without = Request { negative_prompts: Vec::new(), negative_prompts_2: Vec::new(), ..asked };
    assert_eq!(relative_l2(&latents(without.clone()), &plain), 0.0);
    let empty = latents(Request { negative_prompts: vec![String::new()], ..without });
    assert!(relative_l2(&empty, &plain) > 1e-2 && relative_l2(&empty, &guided) > 1e-3);
}

#[test]
fn what_cannot_be_done_is_said() {
    let pipeline = pipeline("flux-schnell");
    let message = |change: fn(&mut Request)| {
        let mut request = Request::new("a photo of a cat");
        change(&mut request);
        pipeline.resolve(&request).unwrap_err().to_string()
    };
    assert_eq!(
        message(|request| request.width = Some(1000)),
        "width `1000` is not a multiple of 16\nhint: use `992`"
    );
    assert_eq!(
        message(|request| request.max_sequence_length = Some(513)),
        "a maximum sequence length of `513` is not between 1 and 512\n\
         hint: FLUX was trained with 512 text tokens, schnell with 256"
    );
    let third = message(|request| request.prompts_3 = vec!["x".into()]);
    assert!(third.starts_with("FLUX does not take `prompt_3`"), "{third}");
}

/// Collects warnings.
#[derive(Default)]
struct Warnings(Vec<String>);

impl Observer for Warnings {
    fn warn(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }
}

#[test]
fn warnings() {
    let long = Case::load("flux-schnell-long-prompt");
    let warnings = |request: Request| {
        let mut warnings = Warnings::default();
        pipeline("flux-schnell").generate(&Request { decode: false, ..request }, &mut warnings).unwrap();
        warnings.0
    };
    let cut = warnings(request(&long));
    assert_eq!(cut.len(), 2, "CLIP and T5 both cut the prompt: {cut:?}");
    assert!(cut.iter().all(|warning| warning.contains("cut off")), "{cut:?}");
    let short = Request { prompts: vec!["a cat".into()], ..request(&long) };
    assert!(warnings(short.clone()).is_empty());
    let idle = warnings(Request { guidance_scale: Some(3.5), ..short });
    assert_eq!(idle, ["this FLUX model was not made for guidance: the guidance scale `3.5` changes nothing"]);
}

/// The sum of these numbers would overflow.
#[test]
fn a_config_of_huge_numbers_is_refused() {
    let error = |option: &str, value: serde_json::Value| {
        let checkpoint =
            xdit_tests::changed("flux-dev", "transformer/config.json", |config| config[option] = value);
        let options = LoadOptions::new(device(), DType::F32);
        xdit_models::open(checkpoint.path(), &options).err().unwrap().message().to_owned()
    };
    assert_eq!(
        error("num_single_layers", (u64::MAX - 1).into()),
        "a FLUX transformer cannot have `num_layers` 3 and `num_single_layers` 18446744073709551614"
    );
    assert_eq!(
        error("axes_dims_rope", [1_u64 << 63, 1 << 63, 8].to_vec().into()),
        "`axes_dims_rope` [9223372036854775808, 9223372036854775808, 8] are not even numbers with the sum \
         `attention_head_dim` 8"
    );
}
