//! Compares the UNet of Stable Diffusion XL with the reference, level by level.

use burn::tensor::Tensor;
use xdit_core::attention::Local;
use xdit_core::tokens::{pack, unpack};
use xdit_core::transformer::Transformer;
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_models::timestep::sinusoids_of_width;
use xdit_models::unet::{Conditions, UNet, UNetConfig};
use xdit_tests::{Case, assert_close, component, device, relative_l2};

/// The tolerance of one module: f32 rounding, with another order of summation than in the reference.
const TOLERANCE: f64 = 1e-5;

/// The published layout; sides that cannot be halved twice; and other blocks, layers and projections.
const CASES: [&str; 3] = ["sdxl-base-unet", "sdxl-base-unet-odd", "sdxl-unet-other"];

fn unet(case: &Case) -> (UNetConfig, UNet) {
    component(case, "unet", "diffusion_pytorch_model", UNetConfig::read, UNet::load)
}

fn conditions(case: &Case, row: Option<usize>) -> Conditions {
    let ids: Vec<f32> = case.f32("time_ids").1;
    let (text, pooled) = (case.tensor::<3>("encoder_hidden_states"), case.tensor::<2>("text_embeds"));
    let (text, pooled) = match row {
        Some(row) => (text.narrow(0, row, 1), pooled.narrow(0, row, 1)),
        None => (text, pooled),
    };
    Conditions { text, pooled, micro: std::array::from_fn(|index| ids[index]) }
}

fn timestep(case: &Case) -> f32 {
    case.json["timestep"].as_f64().unwrap() as f32
}

/// Both texts as a batch, and the image after each level.
#[test]
fn level_by_level() {
    for name in CASES {
        let case = Case::load(name);
        let (config, model) = unet(&case);
        let [context] = &model.contexts(&[&conditions(&case, None)], &[timestep(&case)])[..] else {
            panic!("one timestep has one context")
        };
        let mut levels = 0;
        let output = model.watched(case.tensor("sample"), context, &mut Local, &mut |level, x| {
            assert_close(&format!("{name}: {level}"), x, &case.tensor(level), TOLERANCE);
            levels += 1;
        });
        assert_eq!(levels, 2 * config.levels.len() + 2);
        assert_close(&format!("{name}: output"), &output, &case.tensor("output"), TOLERANCE);
    }
}

/// A single text, a timestep among others, and the latents as tokens.
#[test]
fn neither_the_batch_nor_other_timesteps_matter() {
    for name in CASES {
        let case = Case::load(name);
        let (_, model) = unet(&case);
        for row in 0..2 {
            let latents = pack(case.tensor::<4>("sample").narrow(0, row, 1), 1);
            let contexts = model.contexts(&[&conditions(&case, Some(row))], &[999.0, timestep(&case), 3.5]);
            let outputs: Vec<Tensor<4>> = contexts
                .iter()
                .map(|context| {
                    let hidden = model.embed(latents.clone(), context);
                    let hidden = model.block(0, hidden, context, &mut Local);
                    unpack(latents.with(model.finish(hidden, context)), 1)
                })
                .collect();
            let expected = case.tensor::<4>("output").narrow(0, row, 1);
            assert_close(&format!("{name}, row {row}"), &outputs[1], &expected, TOLERANCE);
            assert!(relative_l2(&outputs[0], &expected) > 1e-2, "{name}: another timestep shows");
        }
    }
}

/// The width of the published model, whose frequencies are rounded as in PyTorch.
#[test]
fn sinusoids_of_the_published_width() {
    let expected = Case::load("sdxl-base-unet").tensor::<2>("sinusoids_320");
    let actual = sinusoids_of_width(&[1.0, 731.25, 951.0, 999.0], 320, &device());
    assert_close("sinusoids", &actual, &expected, 1e-6);
}
