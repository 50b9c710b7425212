//! Compares each module of PixArt with recordings of the reference inside its first step.

use burn::tensor::{DType, Tensor, TensorData};
use xdit_core::attention::Local;
use xdit_core::tokens::{pack, unpack};
use xdit_core::transformer::Transformer;
use xdit_models::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_models::pixart::{Conditions, PixArt, PixArtConfig};
use xdit_models::t5::{T5Config, T5Encoder};
use xdit_models::tiling::Tiling;
use xdit_tests::{Case, assert_close, component, device, relative_l2};

/// The tolerance of one module: f32 rounding, with another order of summation than in the reference.
const TOLERANCE: f64 = 1e-5;

const CASES: [&str; 3] = ["alpha-256-full", "alpha-1024-full", "sigma-512-full"];

fn pixart(case: &Case) -> (PixArtConfig, PixArt) {
    component(case, "transformer", "diffusion_pytorch_model", PixArtConfig::read, PixArt::load)
}

/// The number of tokens of a text without padding.
fn valid(mask: &[i64]) -> usize {
    mask.iter().filter(|&&m| m != 0).count()
}

#[test]
fn text_encoder() {
    for name in CASES {
        let case = Case::load(name);
        let (_, t5) = component(&case, "text_encoder", "model", T5Config::read, T5Encoder::load);
        for text in ["prompt", "negative_prompt"] {
            let n = valid(&case.integers(&format!("{text}.attention_mask")));
            let ids = case.integers(&format!("{text}.input_ids"));
            let ids: Vec<u32> = ids[..n].iter().map(|&id| id as u32).collect();
            let expected = case.tensor::<3>(&format!("{text}_embeds")).narrow(1, 0, n);
            assert_close(&format!("{name}: {text}"), &t5.forward(&ids), &expected, TOLERANCE);
        }
    }
}

/// The conditions of row `row` of the recorded batch (0 negative, 1 positive), without padding.
fn branch(case: &Case, config: &PixArtConfig, row: usize) -> Conditions {
    let mask = case.integers("transformer.encoder_attention_mask");
    let columns = mask.len() / 2;
    let n = valid(&mask[row * columns..][..columns]);
    let text = case.tensor::<3>("transformer.encoder_hidden_states").narrow(0, row, 1).narrow(1, 0, n);
    Conditions { text, bias: None, size: size(case, config) }
}

fn size(case: &Case, config: &PixArtConfig) -> Option<[usize; 2]> {
    let side = |name: &str| case.json["bucket"][name].as_u64().unwrap() as usize;
    config.micro_conditions.then(|| [side("height"), side("width")])
}

#[test]
fn transformer_block_by_block() {
    for name in CASES {
        let case = Case::load(name);
        let (config, model) = pixart(&case);
        let recorded = |part: &str, row| case.tensor::<3>(&format!("transformer.{part}")).narrow(0, row, 1);
        let timestep = case.integers("transformer.timestep")[0] as f32;
        for row in 0..2 {
            let check = |part: &str, actual: &Tensor<3>, expected: &Tensor<3>| {
                assert_close(&format!("{name}: {part}, row {row}"), actual, expected, TOLERANCE);
            };
            let contexts = model.contexts(&[&branch(&case, &config, row)], &[timestep]);
            let context = &contexts[0];
            let latents = case.tensor::<4>("transformer.hidden_states").narrow(0, row, 1);
            let mut hidden = model.embed(pack(latents, config.spec.patch), context);
            check("pos_embed", &hidden.image.x, &recorded("pos_embed", row));
            for block in 0..config.spec.blocks {
                hidden = model.block(block, hidden, context, &mut Local);
                let part = format!("transformer_blocks.{block}");
                check(&part, &hidden.image.x, &recorded(&part, row));
            }
            let positions = hidden.image.clone();
            let packed = model.finish(hidden, context);
            let output: Tensor<4> = unpack(positions.with(packed), config.spec.patch);
            let expected = case.tensor::<4>("transformer.output").narrow(0, row, 1);
            // The recorded output still contains the learned variance after the prediction.
            let expected = expected.narrow(1, 0, config.spec.channels);
            assert_close(&format!("{name}: output, row {row}"), &output, &expected, TOLERANCE);
        }
    }
}

/// Both guidance branches as a batch, with padding and its mask, as in the reference.
#[test]
fn transformer_with_padding_and_mask() {
    for name in CASES {
        let case = Case::load(name);
        let (config, model) = pixart(&case);
        let mask = case.integers("transformer.encoder_attention_mask");
        let bias: Vec<f32> = mask.iter().map(|&m| (1 - m) as f32 * -10_000.0).collect();
        let bias = TensorData::new(bias, [2, 1, 1, mask.len() / 2]);
        let conditions = Conditions {
            text: case.tensor("transformer.encoder_hidden_states"),
            bias: Some(Tensor::from_data(bias, (&device(), DType::F32))),
            size: size(&case, &config),
        };
        let tokens = pack(case.tensor::<4>("transformer.hidden_states"), config.spec.patch);
        let timestep = case.integers("transformer.timestep")[0] as f32;
        let packed = model.forward(tokens.clone(), &conditions, timestep, &mut Local);
        let output: Tensor<4> = unpack(tokens.with(packed), config.spec.patch);
        let expected = case.tensor::<4>("transformer.output").narrow(1, 0, config.spec.channels);
        assert_close(name, &output, &expected, TOLERANCE);
    }
}

#[test]
fn autoencoder() {
    for name in CASES {
        let case = Case::load(name);
        let (_, vae) = component(
            &case,
            "vae",
            "diffusion_pytorch_model",
            AutoencoderKlConfig::read,
            AutoencoderKl::load,
        );
        let decoded = vae.decode_scaled(case.tensor("latents"));
        assert_close(&format!("{name}: decode"), &decoded, &case.tensor("vae.decoded"), TOLERANCE);
        let moments = vae.encode(case.tensor("vae.pixels"));
        assert_close(&format!("{name}: encode"), &moments, &case.tensor("vae.moments"), TOLERANCE);
    }
}

#[test]
fn tiled_decoding() {
    let case = Case::load("tiling");
    let (config, vae) =
        component(&case, "vae", "diffusion_pytorch_model", AutoencoderKlConfig::read, AutoencoderKl::load);
    let tiling = Tiling { tile: case.json["tile"].as_u64().unwrap() as usize, scale: config.scale() };
    let z = case.tensor("z");
    assert!(tiling.applies(&z));
    let decoded = tiling.decode(z.clone(), |tile| vae.decode(tile));
    assert_close("tiled", &decoded, &case.tensor("decoded"), TOLERANCE);
    let at_once = vae.decode(z);
    assert!(
        relative_l2(&at_once, &decoded) > 1e-3,
        "tiling changes the picture: the test would see it missing"
    );
}
