//! Compares each module of Stable Diffusion 3 with the reference.

use burn::tensor::Tensor;
use xdit_core::attention::Local;
use xdit_core::tokens::{Tokens, pack, unpack};
use xdit_core::transformer::Transformer;
use xdit_models::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_models::sd3::{Conditions, Sd3, Sd3Config};
use xdit_tests::{Case, assert_close, component, relative_l2};

/// The tolerance of one module: f32 rounding, with another order of summation than in the reference.
const TOLERANCE: f64 = 1e-5;

const CASES: [&str; 3] = ["sd3-medium-transformer", "sd35-medium-transformer", "sd35-large-transformer"];

fn sd3(case: &Case) -> (Sd3Config, Sd3) {
    component(case, "transformer", "diffusion_pytorch_model", Sd3Config::read, Sd3::load)
}

fn conditions(case: &Case) -> Conditions {
    Conditions { text: case.tensor("encoder_hidden_states"), pooled: case.tensor("pooled_projections") }
}

fn timestep(case: &Case) -> f32 {
    case.json["timestep"].as_f64().unwrap() as f32
}

/// Both texts as a batch, and both streams after each block.
#[test]
fn transformer_block_by_block() {
    for name in CASES {
        let case = Case::load(name);
        let (config, model) = sd3(&case);
        let check = |part: &str, actual: &Tensor<3>, recorded: &str| {
            assert_close(&format!("{name}: {part}"), actual, &case.tensor(recorded), TOLERANCE);
        };
        let [context] = &model.contexts(&[&conditions(&case)], &[timestep(&case)])[..] else {
            panic!("one timestep has one context")
        };
        let latents: Tokens = pack(case.tensor::<4>("hidden_states"), config.spec.patch);
        let mut hidden = model.embed(latents, context);
        check("patches and positions", &hidden.image.x, "pos_embed");
        check("text", hidden.text.as_ref().unwrap(), "context_embedder");
        assert_eq!(model.text_shape(context), hidden.text.as_ref().map(Tensor::dims));
        for index in 0..config.spec.blocks {
            hidden = model.block(index, hidden, context, &mut Local);
            let recorded = format!("transformer_blocks.{index}");
            check(&format!("block {index}"), &hidden.image.x, &recorded);
            match &hidden.text {
                Some(text) => check(&format!("block {index}, text"), text, &format!("{recorded}.text")),
                None => assert_eq!(index + 1, config.spec.blocks, "the last block ends the text"),
            }
        }
        let positions = hidden.image.clone();
        let output: Tensor<4> = unpack(positions.with(model.finish(hidden, context)), config.spec.patch);
        assert_close(&format!("{name}: output"), &output, &case.tensor("output"), TOLERANCE);
    }
}

/// A single text, and a timestep among others.
#[test]
fn neither_the_batch_nor_other_timesteps_matter() {
    for name in CASES {
        let case = Case::load(name);
        let (config, model) = sd3(&case);
        let both = conditions(&case);
        for row in 0..2 {
            let conditions = Conditions {
                text: both.text.clone().narrow(0, row, 1),
                pooled: both.pooled.clone().narrow(0, row, 1),
            };
            let latents = pack(case.tensor::<4>("hidden_states").narrow(0, row, 1), config.spec.patch);
            let contexts = model.contexts(&[&conditions], &[999.0, timestep(&case), 3.5]);
            let outputs: Vec<_> = contexts
                .iter()
                .map(|context| {
                    let hidden = model.embed(latents.clone(), context);
                    let hidden = (0..config.spec.blocks)
                        .fold(hidden, |hidden, index| model.block(index, hidden, context, &mut Local));
                    unpack(latents.with(model.finish(hidden, context)), config.spec.patch)
                })
                .collect();
            let expected = case.tensor::<4>("output").narrow(0, row, 1);
            assert_close(&format!("{name}, row {row}"), &outputs[1], &expected, TOLERANCE);
            assert!(relative_l2(&outputs[0], &expected) > 1e-2, "{name}: another timestep shows");
        }
    }
}

/// With shift and scale, and without the 1×1 convolutions around the latent space.
#[test]
fn autoencoder() {
    let case = Case::load("sd3-medium-vae");
    let (_, vae) =
        component(&case, "vae", "diffusion_pytorch_model", AutoencoderKlConfig::read, AutoencoderKl::load);
    let decoded = vae.decode_scaled(case.tensor("latents"));
    assert_close("decode", &decoded, &case.tensor("decoded"), TOLERANCE);
    assert_close("encode", &vae.encode(case.tensor("pixels")), &case.tensor("moments"), TOLERANCE);
}
