//! HunyuanDiT: each block and whole runs compared with recordings of the reference, and many ranks with a single one.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor};
use serde_json::Value;
use xdit_core::attention::Local;
use xdit_core::checkpoint::Checkpoint;
use xdit_core::config::Config;
use xdit_core::pipeline::{LoadOptions, MicroConditions, Request};
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::tokens::{Tokens, pack, unpack};
use xdit_core::transformer::Transformer;
use xdit_core::weights::Weights;
use xdit_models::hunyuan::{Conditions, Hunyuan, HunyuanConfig};
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_models::resolution::standard_size;
use xdit_models::tokenizer::{BertTokenizer, T5Tokenizer, Tokenizer};
use xdit_tests::on_ranks::{self, OnRanks, verify};
use xdit_tests::recorded::check_calls;
use xdit_tests::{Case, assert_close, device, goldens, relative_l2};

/// The tolerance of one module: f32 rounding, with another order of summation than in the reference.
const TOLERANCE: f64 = 1e-5;

fn load(checkpoint: &str) -> (HunyuanConfig, Hunyuan) {
    let dir = goldens().join(checkpoint).join("transformer");
    let config = HunyuanConfig::read(Config::read(&dir.join("config.json")).unwrap()).unwrap();
    let files = Checkpoint::open(&dir, "diffusion_pytorch_model", Some("fp16")).unwrap();
    let weights = Weights::new(files, &device(), DType::F32);
    let model = Hunyuan::load(&config, &weights).unwrap_or_else(|error| panic!("{error}"));
    weights.finish().unwrap_or_else(|error| panic!("{error}"));
    (config, model)
}

/// Row `row` of the recorded conditions, of which the negative prompt's come first.
fn conditions(case: &Case, row: usize, micro_conditions: bool) -> Conditions {
    let recorded = |name: &str| case.tensor::<3>(&format!("transformer.{name}")).narrow(0, row, 1);
    let length = |name: &str| {
        let mask = case.integers(&format!("transformer.{name}"));
        let own = mask.len() / 2;
        mask[row * own..][..own].iter().sum::<i64>() as usize
    };
    let sizes = case.f32("transformer.image_meta_size").1;
    let sizes: Vec<usize> = sizes[..6].iter().map(|&size| size as usize).collect();
    Conditions {
        bert: recorded("encoder_hidden_states").narrow(1, 0, length("text_embedding_mask")),
        t5: recorded("encoder_hidden_states_t5"),
        t5_tokens: length("text_embedding_mask_t5"),
        sizes: micro_conditions.then(|| sizes.try_into().unwrap()),
    }
}

#[test]
fn transformer_block_by_block() {
    for (name, checkpoint) in [("hunyuan-11-full", "hunyuan-11"), ("hunyuan-12-full", "hunyuan-12")] {
        let case = Case::load(name);
        let (config, model) = load(checkpoint);
        let timestep = case.f32("transformer.timestep").1[0];
        for row in 0..2 {
            let close = |part: &str, actual: &Tensor<3>| {
                let expected = case.tensor::<3>(&format!("transformer.{part}")).narrow(0, row, 1);
                assert_close(&format!("{name}, {part}, row {row}"), actual, &expected, TOLERANCE);
            };
            let contexts = model.contexts(&[&conditions(&case, row, config.micro_conditions)], &[timestep]);
            let latents = case.tensor::<4>("transformer.hidden_states").narrow(0, row, 1);
            let mut hidden = model.embed(pack(latents, config.spec.patch), &contexts[0]);
            close("pos_embed", &hidden.image.x);
            for block in 0..config.spec.blocks {
                hidden = model.block(block, hidden, &contexts[0], &mut Local);
                close(&format!("blocks.{block}"), &hidden.image.x);
            }
            assert!(hidden.skips.is_empty(), "all skip connections have ended");
            let tokens: Tokens = hidden.image.clone();
            let output: Tensor<4> =
                unpack(tokens.with(model.finish(hidden, &contexts[0])), config.spec.patch);
            // The recorded output still contains the learned variance after the prediction.
            let expected =
                case.tensor::<4>("transformer.output").narrow(0, row, 1).narrow(1, 0, config.spec.channels);
            assert_close(&format!("{name}, output, row {row}"), &output, &expected, TOLERANCE);
        }
    }
}

#[test]
fn every_recorded_call() {
    check_calls(&["hunyuan-"], 10, 1e-4);
}

fn table(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(goldens().join("cases").join(name)).unwrap();
    serde_json::from_str::<Vec<Value>>(&text).unwrap()
}

fn numbers<N: TryFrom<u64, Error: std::fmt::Debug>>(value: &Value) -> Vec<N> {
    value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap().try_into().unwrap()).collect()
}

/// BERT's ids are those of transformers, and mT5's those of sentencepiece, which has a fallback to bytes.
#[test]
fn ids_of_both_tokenizers() {
    let bert = BertTokenizer::load(&goldens().join("hunyuan-11/tokenizer")).unwrap();
    let mt5 = T5Tokenizer::load(&goldens().join("hunyuan-11/tokenizer_2")).unwrap();
    let byte = |byte: u32| byte + 3;
    let rare = mt5.encode("靐", 99).ids;
    assert!(rare.ends_with(&[byte(0xe9), byte(0x9d), byte(0x90), 1]), "{rare:?}");
    let cases = table("hunyuan-tokens.json");
    assert!(cases.len() > 25);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        assert_eq!(bert.encode(text, 100_000).ids, numbers::<u32>(&case["bert"]), "BERT: {text}");
        // Special tokens in a text are split off before sentencepiece processes it, so the two differ there by design.
        if !text.contains('<') {
            assert_eq!(mt5.encode(text, 100_000).ids, numbers::<u32>(&case["mt5"]), "mT5: {text}");
        }
    }
    let cut = bert.encode("a fox on the red sofa", 5);
    assert_eq!((cut.ids.len(), cut.dropped.as_deref()), (5, Some("the red sofa")));
}

#[test]
fn sizes_become_standard_ones_as_in_diffusers() {
    let cases = table("hunyuan-sizes.json");
    assert!(cases.len() > 80);
    for case in cases {
        let [size, standard] =
            ["size", "standard"].map(|key| <[usize; 2]>::try_from(numbers(&case[key])).unwrap());
        assert_eq!(standard_size(size.map(|side| side / 16 * 16)), standard, "{size:?}");
    }
    let options = LoadOptions { variant: Some("fp16".into()), ..LoadOptions::new(device(), DType::F32) };
    let pipeline = xdit_models::open(&goldens().join("hunyuan-12"), &options).unwrap();
    let request = Request { height: Some(700), width: Some(1000), ..Request::new("a") };
    let resolved = pipeline.resolve(&request).unwrap();
    assert_eq!((resolved.size, resolved.generated_size), ([768, 1024], [768, 1024]));
    let exact = Request { use_resolution_binning: false, ..request };
    assert_eq!(pipeline.resolve(&exact).unwrap_err().message(), "height `700` is not a multiple of 16");
    // Version 1.2 has no sizes as conditions.
    let micro_conditions = MicroConditions { original_size: Some([1, 1]), ..MicroConditions::default() };
    let error = pipeline.resolve(&Request { micro_conditions, ..Request::new("a") }).unwrap_err();
    assert_eq!(error.message(), "HunyuanDiT does not take `original_size`");
}

/// 35 tokens. Each of the five steps draws noise.
fn request() -> Request {
    Request {
        negative_prompts: vec!["模糊".to_owned()],
        height: Some(112),
        width: Some(80),
        num_inference_steps: Some(5),
        use_resolution_binning: false,
        seed: 5,
        ..Request::new("一只红色的狐狸坐在沙发上")
    }
}

fn on_ranks() -> OnRanks {
    OnRanks::open("hunyuan-11", &request(), true)
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
fn distrifusion_equals_one_rank_with_its_patches() {
    verify([on_ranks()], OnRanks::distrifusion_equals_one_rank_with_its_patches);
}

/// A skip connection goes straight to the stage that takes it, over any number of stages between, or stays within one.
#[test]
fn skips_cross_any_stages() {
    let mut subject = on_ranks();
    let serial = subject.latents(ParallelConfig::default(), 1);
    for stages in
        [vec![1, 7], vec![7, 1], vec![3, 5], vec![1, 6, 1], vec![2, 3, 3], vec![1, 2, 4, 1], vec![1; 8]]
    {
        let with = |mesh, stage_blocks, patches, warmup_steps| ParallelConfig {
            mesh,
            stage_blocks,
            patches: Some(patches),
            warmup_steps,
            ..ParallelConfig::default()
        };
        let pipeline = Mesh::default().with(Axis::Pipeline, stages.len());
        let synchronous = subject.latents(with(pipeline, Some(stages.clone()), 1, 9), 1);
        assert_close(&format!("{stages:?}"), &synchronous, &serial, on_ranks::TOLERANCE);
        for (patches, warmup_steps, mesh) in
            [(3, 1, pipeline), (4, 0, pipeline), (2, 1, pipeline.with(Axis::Ulysses, 2))]
        {
            let expected = subject.latents(with(Mesh::default(), None, patches, warmup_steps), 1);
            let actual = subject.latents(with(mesh, Some(stages.clone()), patches, warmup_steps), 1);
            let what = format!("{mesh}, stages {stages:?}, {patches} patches, {warmup_steps} warm-up steps");
            assert_close(&what, &actual, &expected, on_ranks::TOLERANCE);
        }
    }
}

/// Without a skip connection, or with two of them exchanged, the prediction is another one.
#[test]
fn a_wrong_skip_would_show() {
    let case = Case::load("hunyuan-11-full");
    let (config, model) = load("hunyuan-11");
    let contexts = model.contexts(&[&conditions(&case, 1, true)], &[case.f32("transformer.timestep").1[0]]);
    let latents = case.tensor::<4>("transformer.hidden_states").narrow(0, 1, 1);
    // Before the block, `change` changes the skip connections.
    let run = |at: usize, change: &dyn Fn(&mut BTreeMap<usize, Tensor<3>>)| {
        let mut hidden = model.embed(pack(latents.clone(), config.spec.patch), &contexts[0]);
        for block in 0..config.spec.blocks {
            if block == at {
                change(&mut hidden.skips);
            }
            hidden = model.block(block, hidden, &contexts[0], &mut Local);
        }
        model.finish(hidden, &contexts[0])
    };
    let right = run(0, &|_| {});
    for &[_, to] in &config.spec.skips {
        let zeros = run(to, &|skips| *skips.get_mut(&to).unwrap() = skips[&to].zeros_like());
        let apart = relative_l2(&zeros, &right);
        assert!(apart > 1e-3, "zeros in place of the skip connection to block {to}: {apart:.1e}");
    }
    let exchanged = run(5, &|skips| {
        let [five, six] = [5, 6].map(|to| skips.remove(&to).unwrap());
        skips.extend([(5, six), (6, five)]);
    });
    let apart = relative_l2(&exchanged, &right);
    assert!(apart > 1e-3, "exchanged skip connections: {apart:.1e}");
}

/// The deviation for guidance rescale is that of the whole picture, whatever part of it a rank has.
#[test]
fn guidance_rescale_on_many_ranks() {
    let request = Request { guidance_rescale: 0.6, ..request() };
    let mut subject = OnRanks::open("hunyuan-11", &request, true);
    let serial = subject.latents(ParallelConfig::default(), 1);
    let plain = on_ranks().latents(ParallelConfig::default(), 1);
    assert!(relative_l2(&serial, &plain) > 1e-3, "rescaling must show");
    for degrees in [
        &[(Axis::Ulysses, 3)][..],
        &[(Axis::Ring, 5)],
        &[(Axis::Cfg, 2), (Axis::Ring, 2)],
        &[(Axis::Pipeline, 3), (Axis::Ulysses, 2)],
        &[(Axis::Cfg, 2), (Axis::Pipeline, 2), (Axis::Ring, 2), (Axis::Ulysses, 2)],
    ] {
        let mesh = on_ranks::mesh(degrees);
        let parallel = ParallelConfig { mesh, patches: Some(1), ..ParallelConfig::default() };
        assert_close(&mesh.to_string(), &subject.latents(parallel, 1), &serial, on_ranks::TOLERANCE);
    }
    let options = LoadOptions::new(device(), DType::F32);
    let pipeline = xdit_models::open(&goldens().join("hunyuan-11"), &options).unwrap();
    let parallel = ParallelConfig { patches: Some(2), ..ParallelConfig::default() };
    let error = pipeline.resolve(&Request { parallel, ..request }).unwrap_err();
    assert!(
        error.message().starts_with("guidance rescale needs the deviation of the whole picture"),
        "{error}"
    );
}
