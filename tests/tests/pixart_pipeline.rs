//! Compares whole runs of PixArt, from prompt to pixels, with the same calls of diffusers.

use burn::tensor::DType;
use xdit_core::pipeline::{LoadOptions, Request};
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_tests::recorded::{check_calls, request};
use xdit_tests::{Case, assert_close, device, goldens};

/// The tolerance of the final latents, relative to their norm.
const TOLERANCE: f64 = 1e-4;

#[test]
fn every_recorded_call() {
    check_calls(&["alpha-", "sigma-"], 18, TOLERANCE);
}

/// Half precision, on a single rank and on a pipeline of two: close to f32 within the precision of 8 or 11 bits.
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
        let options = LoadOptions::new(device(), dtype);
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

/// A checkpoint that was recorded with the real xDiT and diffusers. It is not part of the project.
#[test]
#[ignore = "needs a checkpoint that was recorded with the real xDiT: set XDIT_REFERENCE"]
fn outside_reference() {
    let shared = xdit_tests::outside_reference();
    let case = Case::open(&shared.join("pixart-alpha-512.expected"));
    let options = LoadOptions::new(device(), DType::F32);
    let mut pipeline = xdit_models::open(&shared.join("pixart-alpha-512"), &options).unwrap();
    let made = pipeline.generate(&request(&case), &mut ()).unwrap();
    assert_close("outside reference", &made.latents, &case.tensor("serial_latents"), TOLERANCE);
    let (_, image) = case.f32("image");
    for (actual, expected) in made.pictures[0].rgb.iter().zip(image) {
        assert!((f32::from(*actual) / 255.0 - expected).abs() <= 1.5 / 255.0, "{actual} for {expected}");
    }
}
