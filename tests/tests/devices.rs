//! Whole runs on the device that `XDIT_TEST_DEVICE` names, from prompt to pixels, against what diffusers gives for the
//! same call. They are ignored by default: a machine may have no device but the CPU, which all other tests use.

use std::time::Instant;

use burn::tensor::{DType, Device};
use xdit_core::pipeline::{Generated, LoadOptions, Request};
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_tests::recorded::{calls, made, made_on, request};
use xdit_tests::{Case, assert_close, device_under_test, goldens, relative_l2};

/// Of the final latents, relative to their norm, as on the CPU.
const TOLERANCE: f64 = 1e-4;
/// Levels of 255 by which a pixel may be off, as on the CPU.
const LEVELS: i64 = 1;
/// Decibels of bf16 pictures beside those in f32.
const PSNR: f64 = 40.0;

/// The shortest call of each family.
const BRIEF: [&str; 3] = ["flux-schnell-long-prompt", "sd35-medium-one-step", "sigma-512-one-step"];

fn pixels(made: &Generated) -> Vec<i64> {
    made.pictures.iter().flat_map(|picture| &picture.rgb).map(|&byte| i64::from(byte)).collect()
}

/// Compares the call with the recorded one, and says how far they are apart if they are too far.
fn compare(name: &str, device: &Device) -> Option<String> {
    let (case, start) = (Case::load(name), Instant::now());
    let made = made(name, &case, device, DType::F32);
    let error = match case.f32("latents").0.len() {
        4 => relative_l2(&made.latents::<4>(), &case.tensor("latents")),
        _ => relative_l2(&made.latents::<5>(), &case.tensor("latents")),
    };
    let (actual, expected) = (pixels(&made), case.integers("image"));
    assert_eq!(actual.len(), expected.len(), "{name}: the pictures' size");
    let worst = actual.iter().zip(&expected).map(|(a, e)| (a - e).abs()).max().unwrap_or(0);
    let report = format!(
        "{name}: latents off by {error:.1e}, a pixel by {worst}, {:.1} s",
        start.elapsed().as_secs_f64()
    );
    println!("{report}");
    (error > TOLERANCE || worst > LEVELS).then_some(report)
}

#[track_caller]
fn compare_all(names: &[&str]) {
    let device = device_under_test();
    let wrong: Vec<String> = names.iter().filter_map(|name| compare(name, &device)).collect();
    assert!(wrong.is_empty(), "{} of {} calls are off:\n{}", wrong.len(), names.len(), wrong.join("\n"));
}

#[test]
#[ignore = "takes a device beside the CPU: XDIT_TEST_DEVICE=cuda"]
fn a_call_of_each_family() {
    compare_all(&BRIEF);
}

#[test]
#[ignore = "takes a device beside the CPU: XDIT_TEST_DEVICE=cuda"]
fn every_recorded_call() {
    let names = calls();
    assert!(names.len() > 40, "{names:?}");
    compare_all(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Ranks that share a device exchange tensors by way of the host's memory.
#[test]
#[ignore = "takes a device beside the CPU: XDIT_TEST_DEVICE=cuda"]
fn ranks_of_one_device() {
    let options = LoadOptions::new(device_under_test(), DType::F32);
    let case = Case::load("sd3-medium-negative");
    let mut pipeline = xdit_models::open(&goldens().join("sd3-medium"), &options).unwrap();
    let mut latents = |mesh: Mesh| {
        let parallel = ParallelConfig { mesh, patches: Some(1), ..ParallelConfig::default() };
        let request = Request { parallel, decode: false, ..request(&case) };
        pipeline.generate(&request, &mut ()).unwrap_or_else(|error| panic!("{mesh}: {error}")).latents::<4>()
    };
    let expected = latents(Mesh::default());
    for axis in [Axis::Cfg, Axis::Pipeline, Axis::Ring, Axis::Ulysses, Axis::Tensor] {
        let mesh = Mesh::default().with(axis, 2);
        assert_close(&mesh.to_string(), &latents(mesh), &expected, 1e-5);
    }
}

/// Both branches of guidance as one batch, the default on such devices, equal one after another.
#[test]
#[ignore = "takes a device beside the CPU: XDIT_TEST_DEVICE=cuda"]
fn one_batch_equals_its_branches() {
    let device = device_under_test();
    for name in [
        "alpha-256-full",
        "dit-256-dpm",
        "flux-dev-true-cfg",
        "hunyuan-11-full",
        "latte-full",
        "sd3-medium-negative",
        "sdxl-base-negative-conditions",
    ] {
        let case = Case::load(name);
        let latents = |batch| {
            let parallel = ParallelConfig { guidance_batch: Some(batch), ..ParallelConfig::default() };
            let made = made_on(&parallel, name, &case, &device, DType::F32);
            match case.f32("latents").0.len() {
                4 => made.latents::<4>().flatten::<1>(0, 3),
                _ => made.latents::<5>().flatten::<1>(0, 4),
            }
        };
        assert_close(name, &latents(true), &latents(false), 1e-5);
    }
}

/// bf16 has eight binary digits, and all layers of an untrained model count alike: a trained one errs less.
#[test]
#[ignore = "takes a device beside the CPU: XDIT_TEST_DEVICE=cuda"]
fn pictures_in_bf16() {
    let device = device_under_test();
    if !device.supports_dtype(DType::BF16) {
        panic!("the device does not compute in bf16");
    }
    let mut wrong = Vec::new();
    for name in [
        "alpha-256-full",
        "flux-dev-non-square",
        "flux-schnell-plain",
        "sd3-medium-negative",
        "sigma-512-full",
    ] {
        let case = Case::load(name);
        let [exact, half] = [DType::F32, DType::BF16].map(|dtype| made(name, &case, &device, dtype));
        let (exact_pixels, half_pixels) = (pixels(&exact), pixels(&half));
        let square = |(a, b): (&i64, &i64)| ((a - b) * (a - b)) as f64;
        let mean = exact_pixels.iter().zip(&half_pixels).map(square).sum::<f64>() / exact_pixels.len() as f64;
        let psnr = 10.0 * (255.0 * 255.0 / mean.max(1e-9)).log10();
        let report = format!(
            "{name}: bf16 is {psnr:.1} dB from f32, latents off by {:.1e}",
            relative_l2(&half.latents::<4>(), &exact.latents())
        );
        println!("{report}");
        if psnr < PSNR {
            wrong.push(report);
        }
    }
    assert!(wrong.is_empty(), "less than {PSNR} dB:\n{}", wrong.join("\n"));
}
