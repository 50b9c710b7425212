//! Latte's temporal decoder: compared with recordings of the reference, and many ranks with a single one.

use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData};
use serde_json::{Value, json};
use xdit_core::noise::Generator;
use xdit_core::pipeline::{LoadOptions, Request};
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::rows::Whole;
use xdit_core::weights::Weights;
use xdit_models::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig, Block};
use xdit_models::temporal_decoder::SpatioTemporalResnet;
use xdit_tests::{Case, assert_close, changed, component, device, goldens, relative_l2};

/// The tolerance of one module: f32 rounding, with another order of summation than in the reference.
const TOLERANCE: f64 = 1e-5;

fn autoencoder(case: &Case) -> AutoencoderKl {
    let read = AutoencoderKlConfig::read_temporal;
    component(case, "vae", "diffusion_pytorch_model", read, AutoencoderKl::load).1
}

#[test]
fn a_block_equals_the_recorded_one() {
    let case = Case::load("latte-temporal-chunks");
    let x = case.tensor::<4>("vae.conv_in");
    let c = x.dims()[1];
    // All other tensors stay unused here.
    let load = |_: &AutoencoderKlConfig, weights: &Weights| {
        weights.ignore_extra(&["encoder.", "decoder.", "quant_conv."]);
        SpatioTemporalResnet::load(32, &weights.at("decoder.mid_block.resnets.0"), c, c)
    };
    let read = AutoencoderKlConfig::read_temporal;
    let (_, block) = component(&case, "vae", "diffusion_pytorch_model", read, load);
    let expected = case.tensor("vae.mid_block.resnets.0");
    assert_close("block", &block.forward(x.clone(), &Whole), &expected, TOLERANCE);
    // The test would show frames that are not mixed, or mixed in another order.
    let apart = |frames: Tensor<4>| relative_l2(&frames, &expected);
    let alone = (0..3).map(|frame| block.forward(x.clone().narrow(0, frame, 1), &Whole)).collect();
    assert!(apart(Tensor::cat(alone, 0)) > 1e-2);
    assert!(apart(block.forward(x.flip([0]), &Whole).flip([0])) > 1e-2);
}

#[test]
fn a_chunk_equals_the_recorded_one() {
    let case = Case::load("latte-temporal-chunks");
    let decoded = autoencoder(&case).decode(case.tensor("vae.z"));
    assert_close("decoded", &decoded, &case.tensor("vae.decoded"), TOLERANCE);
}

/// Tiles hold all frames of a chunk. A tile of the size of the picture is the whole.
#[test]
fn tiles_hold_all_frames() {
    let whole = latents_of_a_clip([14, 10]);
    let decoded = |tile: usize| {
        let dir = changed("latte-temporal", "vae/config.json", |config| config["sample_size"] = tile.into());
        decode(dir.path(), &whole, true, Some(3))
    };
    let at_once = decode(&goldens().join("latte-temporal"), &whole, false, Some(3));
    assert_eq!(decoded(64), at_once);
    let tiled = decoded(16);
    assert_eq!(tiled.len(), at_once.len());
    assert_ne!(tiled, at_once, "tiles are normalised separately");
}

/// The latents of a clip of five frames.
fn latents_of_a_clip([y, x]: [usize; 2]) -> TensorData {
    TensorData::new(Generator::from_seed(4).randn(4 * 5 * y * x), [1, 4, 5, y, x])
}

/// The bytes of all frames.
fn decode(checkpoint: &Path, latents: &TensorData, tiled: bool, chunk: Option<usize>) -> Vec<u8> {
    decode_in(DType::F32, checkpoint, latents, tiled, chunk)
}

fn decode_in(
    dtype: DType,
    checkpoint: &Path,
    latents: &TensorData,
    tiled: bool,
    chunk: Option<usize>,
) -> Vec<u8> {
    let pipeline = xdit_models::open(checkpoint, &LoadOptions::new(device(), dtype)).unwrap();
    let mut bytes = Vec::new();
    let result = pipeline.decode(latents, tiled, chunk, &mut |_, frames| {
        assert_eq!(frames.len(), 5);
        bytes.extend(frames.into_iter().flat_map(|frame| frame.rgb));
        Ok(())
    });
    result.unwrap();
    bytes
}

/// In bf16, sums stay in f32; with `force_upcast`, a run in f16 decodes in f32.
#[test]
fn half_precision_is_near() {
    let latents = latents_of_a_clip([12, 16]);
    let dir = goldens().join("latte-temporal");
    let exact = decode(&dir, &latents, false, None);
    assert_eq!(decode_in(DType::F16, &dir, &latents, false, None), exact);
    let half = decode_in(DType::BF16, &dir, &latents, false, None);
    let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
    let mean = half.iter().zip(&exact).map(square).sum::<f64>() / exact.len() as f64;
    let decibels = 10.0 * (255.0 * 255.0 / mean).log10();
    println!("bf16 is {decibels:.1} dB from f32");
    assert!(decibels > 40.0 && decibels.is_finite(), "bf16 is {decibels:.1} dB from f32");
}

/// By default 14 frames are decoded together, as in diffusers; other chunks give other frames.
#[test]
fn frames_of_a_chunk_are_decoded_together() {
    let latents = latents_of_a_clip([6, 8]);
    let dir = goldens().join("latte-temporal");
    let bytes = |chunk| decode(&dir, &latents, false, chunk);
    assert_eq!(bytes(None), bytes(Some(14)));
    assert_eq!(bytes(None), bytes(Some(5)));
    assert_ne!(bytes(None), bytes(Some(4)));
    let each = decode(&goldens().join("latte"), &latents, false, None);
    assert_eq!(each, decode(&goldens().join("latte"), &latents, false, Some(5)), "a plain decoder");
}

/// From prompt to frames, with chunks of two and of one frame.
#[test]
fn clips_equal_those_of_one_rank() {
    let options = LoadOptions::new(device(), DType::F32);
    let mut pipeline = xdit_models::open(&goldens().join("latte-temporal"), &options).unwrap();
    let mut pictures = |ranks| {
        let mesh = Mesh::default().with(Axis::Ulysses, ranks);
        let request = Request {
            height: Some(44),
            width: Some(24),
            num_inference_steps: Some(1),
            num_frames: Some(3),
            decode_chunk_size: Some(2),
            images_per_prompt: 2,
            parallel: ParallelConfig { mesh, parallel_vae: true, ..ParallelConfig::default() },
            ..Request::new("a photo of a cat, sitting on the red sofa")
        };
        let made = pipeline.generate(&request, &mut ()).unwrap();
        assert_eq!(made.pictures.len(), 6);
        made.pictures.into_iter().flat_map(|picture| picture.rgb).collect::<Vec<u8>>()
    };
    let serial = pictures(1);
    for ranks in [2, 4] {
        let worst = serial.iter().zip(pictures(ranks)).map(|(a, b)| a.abs_diff(b)).max();
        assert!(worst <= Some(1), "{ranks} ranks: {worst:?} of 255");
    }
}

/// An option of the class is refused unless it has the value that the decoder is made for, and options of the other class are
/// unknown.
#[test]
fn other_options_are_refused() {
    let refused = |name: &str, value: Value| {
        let dir = changed("latte-temporal", "vae/config.json", |config| config[name] = value);
        let opened = xdit_models::open(dir.path(), &LoadOptions::new(device(), DType::F32));
        let error = opened.err().unwrap_or_else(|| panic!("`{name}` is taken"));
        let path = dir.path().to_string_lossy().into_owned();
        error.message().replace(&path, "MODEL")
    };
    for (name, value, message) in [
        ("shift_factor", json!(0.1), "unknown option `shift_factor` = `0.1` in `MODEL/vae/config.json`"),
        (
            "mid_block_add_attention",
            json!(false),
            "unknown option `mid_block_add_attention` = `false` in `MODEL/vae/config.json`",
        ),
        (
            "layers_per_block",
            json!(3),
            "option `layers_per_block` = `3` in `MODEL/vae/config.json` is not supported",
        ),
        ("out_channels", json!(4), "option `out_channels` = `4` in `MODEL/vae/config.json` is not supported"),
        (
            "block_out_channels",
            json!([48, 64]),
            "the autoencoder's `block_out_channels` `[48, 64]` cannot be divided into `32` groups",
        ),
    ] {
        assert_eq!(refused(name, value), message);
    }
    // Tensors are checked before weights are loaded.
    let message = refused("block_out_channels", json!([32, 96]));
    assert!(message.contains("has shape") && message.contains("vae/diffusion_pytorch_model"), "{message}");
    // Pictures have no frames to decode together.
    let dir = changed("pixart-alpha-256", "model_index.json", |index| {
        index["vae"][1] = "AutoencoderKLTemporalDecoder".into();
    });
    let opened = xdit_models::open(dir.path(), &LoadOptions::new(device(), DType::F32));
    let message = opened.err().unwrap().message().to_owned();
    assert!(
        message.contains("is of class `AutoencoderKLTemporalDecoder`, which is not supported"),
        "{message}"
    );
}
