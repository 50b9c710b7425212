//! Compares each part of FLUX with recordings of the reference inside one forward pass.

use burn::tensor::Tensor;
use xdit_core::attention::Local;
use xdit_core::tokens::{Positions, Tokens};
use xdit_core::transformer::{Hidden, Transformer};
use xdit_models::flux::{Conditions, Flux, FluxConfig};
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_tests::{Case, assert_close, component};

/// The tolerance of one module: f32 rounding, with another order of summation than in the reference.
const TOLERANCE: f64 = 1e-5;

const CHECKPOINTS: [&str; 2] = ["flux-schnell", "flux-dev"];

/// A recorded forward pass of two pictures.
struct Pass {
    case: Case,
    config: FluxConfig,
    model: Flux,
    conditions: Conditions,
    positions: Positions,
    timestep: f32,
}

impl Pass {
    fn load(checkpoint: &str) -> Self {
        let case = Case::load(&format!("{checkpoint}-transformer"));
        let (config, model) =
            component(&case, "transformer", "diffusion_pytorch_model", FluxConfig::read, Flux::load);
        let number = |name: &str| case.json[name].as_f64().unwrap() as f32;
        let side = |index: usize| case.json["grid"][index].as_u64().unwrap() as usize;
        let conditions = Conditions {
            text: case.tensor("encoder_hidden_states"),
            pooled: case.tensor("pooled_projections"),
            guidance: number("guidance"),
        };
        let (positions, timestep) = (Positions::grid(side(0), side(1)), number("timestep"));
        Self { case, config, model, conditions, positions, timestep }
    }

    fn tokens(&self, name: &str) -> Tokens {
        Tokens { x: self.case.tensor(name), positions: self.positions.clone() }
    }

    /// The reference's input to block `index`, or to the layers after the last block.
    fn before(&self, index: usize) -> Hidden {
        let doubles = self.config.double_blocks;
        let name = match index {
            0 => return Hidden::new(self.tokens("x_embedder"), Some(self.case.tensor("context_embedder"))),
            _ if index <= doubles => format!("transformer_blocks.{}", index - 1),
            _ => format!("single_transformer_blocks.{}", index - 1 - doubles),
        };
        let text = Some(self.case.tensor(&format!("{name}.text")));
        Hidden::new(self.tokens(&format!("{name}.image")), text)
    }
}

#[test]
fn block_by_block() {
    for checkpoint in CHECKPOINTS {
        let pass = Pass::load(checkpoint);
        let check = |part: &str, actual: &Tensor<3>, expected: &Tensor<3>| {
            assert_close(&format!("{checkpoint}: {part}"), actual, expected, TOLERANCE);
        };
        // The other timesteps must not affect this one.
        let contexts = pass.model.contexts(&[&pass.conditions], &[1000.0, pass.timestep, 3.5]);
        let context = &contexts[1];
        let embedded = pass.model.embed(pass.tokens("hidden_states"), context);
        check("x_embedder", &embedded.image.x, &pass.case.tensor("x_embedder"));
        let text = embedded.text.expect("text goes through the blocks");
        assert_eq!(pass.model.text_shape(context), Some(text.dims()));
        check("context_embedder", &text, &pass.case.tensor("context_embedder"));
        let count = pass.config.spec.blocks;
        for index in 0..count {
            let actual = pass.model.block(index, pass.before(index), context, &mut Local);
            let expected = pass.before(index + 1);
            check(&format!("block {index}, image"), &actual.image.x, &expected.image.x);
            match actual.text {
                Some(text) => check(&format!("block {index}, text"), &text, &expected.text.unwrap()),
                None => assert_eq!(index + 1, count, "only the last block drops the text"),
            }
        }
        check("output", &pass.model.finish(pass.before(count), context), &pass.case.tensor("output"));
    }
}

#[test]
fn the_whole_forward_pass() {
    for checkpoint in CHECKPOINTS {
        let pass = Pass::load(checkpoint);
        let forward = |conditions: &Conditions| {
            pass.model.forward(pass.tokens("hidden_states"), conditions, pass.timestep, &mut Local)
        };
        let expected: Tensor<3> = pass.case.tensor("output");
        assert_close(checkpoint, &forward(&pass.conditions), &expected, TOLERANCE);
        // Guidance is a condition only in models with distilled guidance.
        let stronger = forward(&Conditions { guidance: 6.0, ..pass.conditions.clone() });
        let distance = xdit_tests::relative_l2(&stronger, &expected);
        println!("{checkpoint}: with more guidance {distance:.1e} away");
        assert_eq!(distance > 1e-2, pass.config.guidance_embeds);
    }
}

/// Swaps two tokens of a picture: only the positions determine the place of a token.
#[test]
fn rotary_embedding_goes_by_position() {
    let pass = Pass::load("flux-schnell");
    let contexts = pass.model.contexts(&[&pass.conditions], &[pass.timestep]);
    let whole = pass.tokens("hidden_states");
    let pick = |indices: &[usize]| {
        let parts = indices.iter().map(|&index| whole.x.clone().narrow(1, index, 1)).collect();
        let ranges: Vec<_> = indices.iter().map(|&index| index..index + 1).collect();
        Tokens { x: Tensor::cat(parts, 1), positions: whole.positions.select(&ranges) }
    };
    let run = |tokens: Tokens| {
        let mut hidden = pass.model.embed(tokens, &contexts[0]);
        for index in 0..pass.config.spec.blocks {
            hidden = pass.model.block(index, hidden, &contexts[0], &mut Local);
        }
        pass.model.finish(hidden, &contexts[0])
    };
    let [there, back] = [run(pick(&[3, 31])), run(pick(&[31, 3]))];
    let swapped = Tensor::cat(vec![back.clone().narrow(1, 1, 1), back.narrow(1, 0, 1)], 1);
    assert_close("the order of tokens", &there, &swapped, TOLERANCE);
    let mut near = pick(&[3, 31]);
    near.positions = Positions::grid(1, 2);
    assert!(xdit_tests::relative_l2(&run(near), &there) > 1e-3, "positions have an effect");
}
