//! DiT: each module and whole runs compared with recordings of the reference, and many ranks with a single one.

use burn::tensor::{DType, Tensor};
use xdit_core::attention::Local;
use xdit_core::pipeline::{Extra, LoadOptions, Pipeline, Request, SkipLayerGuidance};
use xdit_core::tokens::{pack, unpack};
use xdit_core::transformer::Transformer;
use xdit_models::dit::{Conditions, Dit, DitConfig};
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_tests::on_ranks::{OnRanks, verify};
use xdit_tests::recorded::check_calls;
use xdit_tests::{Case, assert_close, changed, component, device, goldens};

/// Four heads and blocks, and five of each.
const CHECKPOINTS: [&str; 2] = ["dit-256", "dit-512"];

#[test]
fn transformer_block_by_block() {
    for name in CHECKPOINTS {
        let case = Case::load(&format!("{name}-transformer"));
        let (config, model): (DitConfig, Dit) =
            component(&case, "transformer", "diffusion_pytorch_model", DitConfig::read, Dit::load);
        let timestep = case.json["timestep"].as_f64().unwrap() as f32;
        for row in 0..2 {
            let close = |part: &str, actual: &Tensor<3>| {
                let expected = case.tensor::<3>(part).narrow(0, row, 1);
                assert_close(&format!("{name}: {part}, row {row}"), actual, &expected, 1e-5);
            };
            let class = case.json["classes"][row].as_u64().unwrap() as usize;
            // The second timestep is not used.
            let contexts = model.contexts(&[&Conditions { class }], &[timestep, 3.0]);
            let latents = case.tensor::<4>("hidden_states").narrow(0, row, 1);
            let mut hidden = model.embed(pack(latents, config.spec.patch), &contexts[0]);
            close("pos_embed", &hidden.image.x);
            for block in 0..config.spec.blocks {
                hidden = model.block(block, hidden, &contexts[0], &mut Local);
                close(&format!("transformer_blocks.{block}"), &hidden.image.x);
            }
            let tokens = hidden.image.clone();
            let output = unpack(tokens.with(model.finish(hidden, &contexts[0])), config.spec.patch);
            // The recorded output still contains the learned variance after the prediction.
            let expected = case.tensor::<4>("output").narrow(0, row, 1).narrow(1, 0, config.spec.channels);
            assert_close(&format!("{name}: output, row {row}"), &output, &expected, 1e-5);
        }
    }
}

#[test]
fn every_recorded_call() {
    check_calls(&["dit-"], 6, 1e-4);
}

fn on_ranks(checkpoint: &str) -> OnRanks {
    let request = Request { num_inference_steps: Some(4), seed: 5, ..Request::new("golden retriever") };
    OnRanks::open(checkpoint, &request, true)
}

/// Both branches of guidance as one batch equal one after another.
#[test]
fn one_batch_equals_its_branches() {
    CHECKPOINTS.map(on_ranks).iter_mut().for_each(OnRanks::one_batch_equals_its_branches);
}

#[test]
fn exact_methods_equal_serial() {
    verify(CHECKPOINTS.map(on_ranks), |subject| assert_eq!(subject.exact_methods_equal_serial(), 41));
}

#[test]
fn pipefusion_depends_on_patches_and_warmup_only() {
    verify(CHECKPOINTS.map(on_ranks), OnRanks::pipefusion_depends_on_patches_and_warmup_only);
}

#[test]
fn synchronous_pipefusion_equals_serial() {
    on_ranks("dit-256").synchronous_pipefusion_equals_serial(vec![1, 3]);
}

#[test]
fn distrifusion_equals_one_rank_with_its_patches() {
    verify(CHECKPOINTS.map(on_ranks), OnRanks::distrifusion_equals_one_rank_with_its_patches);
}

fn open() -> Box<dyn Pipeline> {
    xdit_models::open(&goldens().join("dit-256"), &LoadOptions::new(device(), DType::F32)).unwrap()
}

#[test]
fn defaults_are_those_of_diffusers() {
    let resolved = open().resolve(&Request::new("crane")).unwrap();
    assert_eq!(resolved.size, [96, 96]);
    assert_eq!((resolved.num_inference_steps, resolved.guidance_scale), (50, 4.0));
    assert_eq!(resolved.plan.branches.len(), 2);
}

/// A name and its number are the same class, and without guidance an empty prompt is a picture of no class.
#[test]
fn a_name_is_a_number() {
    let mut pipeline = open();
    let mut made = |label: &str| {
        let request = Request {
            num_inference_steps: Some(2),
            guidance_scale: Some(1.0),
            decode: false,
            ..Request::new(label)
        };
        pipeline.generate(&request, &mut ()).unwrap().latents::<4>().into_data()
    };
    assert_eq!(made("Labrador retriever"), made("208"));
    assert_eq!(made(""), made("1000"));
    assert_ne!(made("208"), made("207"));
}

#[test]
fn refusals_read_well() {
    let pipeline = open();
    let refusal = |request: &Request| pipeline.resolve(request).unwrap_err().to_string();
    let base = Request::new("207");
    let refusals = [
        refusal(&Request::new("golden retreiver")),
        refusal(&Request { prompts: vec!["1".into(), "1001".into()], ..base.clone() }),
        refusal(&Request { height: Some(112), ..base.clone() }),
        refusal(&Request { width: Some(80), ..base }),
    ];
    insta::assert_snapshot!(refusals.join("\n\n"), @r"
    there is no class called `golden retreiver`
    hint: give a number, or a name such as `golden retriever`, `Labrador retriever`, `goldfish`

    there is no class `1001`
    hint: classes have the numbers 0 to 1000; 1000 is no class

    height `112` is not the model's height
    hint: DiT generates at the size it was trained for: leave it out, or use `96`

    width `80` is not the model's width
    hint: DiT generates at the size it was trained for: leave it out, or use `96`
    ");
}

/// A request with one option that some pipelines do not take.
fn with(extra: Extra) -> Request {
    let mut request = Request::new("207");
    let texts = vec!["x".to_owned()];
    let (micro, pair) = (&mut request.micro_conditions, Some([1, 2]));
    match extra {
        Extra::NegativePrompt => request.negative_prompts = texts,
        Extra::MaxSequenceLength => request.max_sequence_length = Some(7),
        Extra::Prompt2 => request.prompts_2 = texts,
        Extra::Prompt3 => request.prompts_3 = texts,
        Extra::NegativePrompt2 => request.negative_prompts_2 = texts,
        Extra::NegativePrompt3 => request.negative_prompts_3 = texts,
        Extra::TrueCfgScale => request.true_cfg_scale = Some(2.0),
        Extra::SkipGuidanceLayers => request.skip_layer_guidance = Some(SkipLayerGuidance::new(vec![1])),
        Extra::ClipSkip => request.clip_skip = Some(1),
        Extra::CleanCaption => request.clean_caption = Some(true),
        Extra::NumFrames => request.num_frames = Some(4),
        Extra::Fps => request.fps = Some(12.0),
        Extra::EnableTemporalAttentions => request.enable_temporal_attentions = false,
        Extra::DecodeChunkSize => request.decode_chunk_size = Some(2),
        Extra::GuidanceRescale => request.guidance_rescale = 0.5,
        Extra::OriginalSize => micro.original_size = pair,
        Extra::CropsCoordsTopLeft => micro.crops_coords_top_left = pair,
        Extra::TargetSize => micro.target_size = pair,
        Extra::NegativeOriginalSize => micro.negative_original_size = pair,
        Extra::NegativeCropsCoordsTopLeft => micro.negative_crops_coords_top_left = pair,
        Extra::NegativeTargetSize => micro.negative_target_size = pair,
    }
    request
}

/// There is neither text nor a clip, and the size is fixed: none of these options applies.
#[test]
fn every_option_that_does_not_apply_is_refused_by_name() {
    let pipeline = open();
    for extra in Extra::ALL {
        let error = pipeline.resolve(&with(extra)).unwrap_err().to_string();
        assert_eq!(error, format!("DiT does not take `{}`\nhint: leave it out", extra.name()));
    }
}

#[test]
fn names_of_classes_that_the_model_lacks_are_refused() {
    let copy = changed("dit-256", "model_index.json", |index| index["id2label"]["1000"] = "none".into());
    let error = xdit_models::open(copy.path(), &LoadOptions::new(device(), DType::F32)).err().unwrap();
    assert_eq!(
        error.to_string(),
        "`id2label` in `model_index.json` has `1000`: \"none\"\n\
         hint: it maps the numbers of the model's 1000 classes to their names"
    );
}
