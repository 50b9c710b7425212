//! Latte: each block and whole runs compared with recordings of the reference, and many ranks with a single one.

use burn::tensor::{DType, Tensor};
use xdit_core::attention::Local;
use xdit_core::pipeline::{LoadOptions, Request};
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::tokens::{Tokens, pack, unpack};
use xdit_core::transformer::Transformer;
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_models::latte::{Latte, LatteConfig};
use xdit_tests::on_ranks::{OnRanks, verify};
use xdit_tests::recorded::check_calls;
use xdit_tests::{Case, assert_close, component, device, goldens, relative_l2};

/// The tolerance of one module: f32 rounding, with another order of summation than in the reference.
const TOLERANCE: f64 = 1e-5;

/// Tokens in the order of the reference's spatial blocks `[frames, places, c]` or temporal blocks `[places, frames, c]`.
fn in_blocks(tokens: &Tokens, temporal: bool) -> Tensor<3> {
    let [frames, rows, columns] = tokens.positions.extent();
    let c = tokens.x.dims()[2];
    let x = tokens.x.clone().reshape([rows * columns, frames, c]);
    if temporal { x } else { x.swap_dims(0, 1) }
}

#[test]
fn transformer_block_by_block() {
    let case = Case::load("latte-full");
    let (config, model): (LatteConfig, Latte) =
        component(&case, "transformer", "diffusion_pytorch_model", LatteConfig::read, Latte::load);
    let timestep = case.integers("transformer.timestep")[0] as f32;
    for row in 0..2 {
        // The recorded batch has the negative prompt first; inside, each of its elements is many.
        let recorded = |part: &str, like: &Tensor<3>| {
            let count = like.dims()[0];
            case.tensor::<3>(&format!("transformer.{part}")).narrow(0, row * count, count)
        };
        let close = |part: &str, actual: Tensor<3>| {
            assert_close(&format!("{part}, row {row}"), &actual, &recorded(part, &actual), TOLERANCE);
        };
        let text = case.tensor::<3>("transformer.encoder_hidden_states").narrow(0, row, 1);
        let contexts = model.contexts(&[&text], &[timestep]);
        let latents = case.tensor::<5>("transformer.hidden_states").narrow(0, row, 1);
        let mut hidden = model.embed(pack(latents, config.spec.patch), &contexts[0]);
        close("pos_embed", in_blocks(&hidden.image, false));
        for block in 0..config.spec.blocks {
            hidden = model.block(block, hidden, &contexts[0], &mut Local);
            match block % 2 {
                0 => close(&format!("transformer_blocks.{}", block / 2), in_blocks(&hidden.image, false)),
                _ => close(
                    &format!("temporal_transformer_blocks.{}", block / 2),
                    in_blocks(&hidden.image, true),
                ),
            }
        }
        let tokens = hidden.image.clone();
        let output: Tensor<5> = unpack(tokens.with(model.finish(hidden, &contexts[0])), config.spec.patch);
        // The recorded output still contains the learned variance after the prediction.
        let expected =
            case.tensor::<5>("transformer.output").narrow(0, row, 1).narrow(1, 0, config.spec.channels);
        assert_close(&format!("output, row {row}"), &output, &expected, TOLERANCE);
    }
}

#[test]
fn every_recorded_call() {
    check_calls(&["latte-"], 8, 1e-4);
}

/// 35 places in three frames: one less than the model was trained on.
fn request() -> Request {
    Request {
        negative_prompts: vec!["blurry, low quality".to_owned()],
        height: Some(112),
        width: Some(80),
        num_inference_steps: Some(4),
        num_frames: Some(3),
        seed: 5,
        ..Request::new("a photo of a cat, sitting on the red sofa")
    }
}

fn on_ranks() -> OnRanks {
    OnRanks::open("latte", &request(), true)
}

/// Both branches of guidance as one batch equal one after another.
#[test]
fn one_batch_equals_its_branches() {
    on_ranks().one_batch_equals_its_branches();
}

#[test]
fn exact_methods_equal_serial() {
    verify([on_ranks()], |subject| assert_eq!(subject.exact_methods_equal_serial(), 41));
}

#[test]
fn pipefusion_depends_on_patches_and_warmup_only() {
    verify([on_ranks()], OnRanks::pipefusion_depends_on_patches_and_warmup_only);
}

#[test]
fn synchronous_pipefusion_equals_serial() {
    on_ranks().synchronous_pipefusion_equals_serial(vec![1, 3]);
}

#[test]
fn distrifusion_equals_one_rank_with_its_patches() {
    verify([on_ranks()], OnRanks::distrifusion_equals_one_rank_with_its_patches);
}

/// Without temporal blocks, a stage may have nothing to do.
#[test]
fn frames_by_themselves_on_many_ranks() {
    let request = Request { enable_temporal_attentions: false, ..request() };
    let mut subject = OnRanks::open("latte", &request, true);
    let serial = subject.latents(ParallelConfig::default(), 1);
    let together = on_ranks().latents(ParallelConfig::default(), 1);
    assert!(relative_l2(&serial, &together) > 1e-3, "frames must differ without attention to each other");
    for (axis, degree) in [(Axis::Pipeline, 4), (Axis::Ulysses, 4), (Axis::Ring, 3), (Axis::Cfg, 2)] {
        let mesh = Mesh::default().with(axis, degree);
        let parallel = ParallelConfig { mesh, patches: Some(1), ..ParallelConfig::default() };
        assert_close(&mesh.to_string(), &subject.latents(parallel, 1), &serial, 1e-5);
    }
}

/// The number of frames that are decoded together, and of ranks that decode, do not change a clip.
#[test]
fn frames_are_decoded_one_by_one_or_together() {
    let options = LoadOptions::new(device(), DType::F32);
    let mut pipeline = xdit_models::open(&goldens().join("latte"), &options).unwrap();
    let mut pictures = |decode_chunk_size, ranks| {
        let mesh = Mesh::default().with(Axis::Ulysses, ranks);
        let parallel = ParallelConfig { mesh, parallel_vae: true, ..ParallelConfig::default() };
        let request = Request { decode_chunk_size, parallel, num_inference_steps: Some(1), ..request() };
        let made = pipeline.generate(&request, &mut ()).unwrap();
        assert_eq!(made.pictures.len(), 3);
        made.pictures.into_iter().flat_map(|picture| picture.rgb).collect::<Vec<u8>>()
    };
    let one_by_one = pictures(None, 1);
    for (chunk, ranks) in [(Some(2), 1), (Some(3), 1), (None, 2), (Some(2), 4)] {
        let worst = one_by_one.iter().zip(pictures(chunk, ranks)).map(|(a, b)| a.abs_diff(b)).max();
        assert!(worst <= Some(1), "{chunk:?} frames on {ranks} ranks: {worst:?} of 255");
    }
}

#[test]
fn too_many_frames_are_refused() {
    let options = LoadOptions::new(device(), DType::F32);
    let pipeline = xdit_models::open(&goldens().join("latte"), &options).unwrap();
    for (frames, message) in
        [(0, "`0` frames are not between 1 and 4"), (5, "`5` frames are not between 1 and 4")]
    {
        let request = Request { num_frames: Some(frames), ..request() };
        assert_eq!(pipeline.resolve(&request).unwrap_err().message(), message);
    }
    let picture = xdit_models::open(&goldens().join("pixart-alpha-256"), &options).unwrap();
    let error = picture.resolve(&Request { num_frames: Some(2), ..Request::new("a cat") }).unwrap_err();
    assert_eq!(error.message(), "PixArt does not take `num_frames`");
}
