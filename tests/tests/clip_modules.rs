//! Compares the text encoders, with the padding of Stable Diffusion 3 and FLUX, with recordings of transformers.

use std::fs;
use std::path::Path;

use burn::tensor::{DType, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use xdit_core::checkpoint::Checkpoint;
use xdit_core::config::Config;
use xdit_core::weights::Weights;
use xdit_core::{ErrorKind, Result};
use xdit_models::clip::{ClipOutput, ClipTextConfig, ClipTextModel};
use xdit_models::t5::{T5Config, T5Encoder};
use xdit_models::tokenizer::{ClipTokenizer, T5Tokenizer, Tokenizer};
use xdit_tests::{Case, assert_close, device, goldens, relative_l2};

/// The tolerance of one module: f32 rounding, with another order of summation than in the reference.
const TOLERANCE: f64 = 1e-5;

const CASES: [&str; 2] = ["clip-l", "clip-g"];

fn weights(dir: &Path, dtype: DType) -> Weights {
    Weights::new(Checkpoint::open(dir, "model", None).unwrap(), &device(), dtype)
}

fn config(dir: &Path) -> Result<ClipTextConfig> {
    ClipTextConfig::read(Config::read(&dir.join("config.json"))?)
}

/// Loads the model in `dir`, with a projection if the case has one.
fn load(name: &str, dir: &Path, dtype: DType) -> Result<ClipTextModel> {
    let load = match name {
        "clip-g" => ClipTextModel::load_with_projection,
        _ => ClipTextModel::load,
    };
    load(&config(dir)?, &weights(dir, dtype))
}

fn text_encoder(name: &str) -> ClipTextModel {
    load(name, &goldens().join(name).join("text_encoder"), DType::F32).unwrap_or_else(|e| panic!("{e}"))
}

/// The ids of each recorded run: those of each text, followed by ids that no text produces.
fn recorded_ids(case: &Case, runs: usize) -> Vec<Vec<u32>> {
    let ids = |run: usize| case.integers(&format!("{run}.input_ids"));
    (0..runs).map(|run| ids(run).into_iter().map(|id| id as u32).collect()).collect()
}

fn texts(case: &Case) -> Vec<&str> {
    case.json["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn check(case: &Case, name: &str, run: usize, output: &ClipOutput, hidden: usize) {
    let close3 = |part: &str, actual: &Tensor<3>| {
        assert_close(
            &format!("{name}: {run}, {part}"),
            actual,
            &case.tensor(&format!("{run}.{part}")),
            TOLERANCE,
        );
    };
    close3(&format!("hidden_states.{hidden}"), &output.hidden);
    close3("last_hidden_state", &output.last_hidden);
    let expected: Tensor<2> = case.tensor(&format!("{run}.pooled"));
    assert_close(&format!("{name}: {run}, pooled"), &output.pooled, &expected, TOLERANCE);
}

#[test]
fn clip() {
    for (name, runs) in CASES.into_iter().zip([4, 5]) {
        let case = Case::load(name);
        let model = text_encoder(name);
        let layers = case.json["layers"].as_u64().unwrap() as usize;
        for (run, ids) in recorded_ids(&case, runs).iter().enumerate() {
            check(&case, name, run, &model.forward(ids, 0), layers - 1);
        }
    }
}

#[test]
fn clip_skip_leaves_out_layers() {
    for name in CASES {
        let case = Case::load(name);
        let model = text_encoder(name);
        let ids = &recorded_ids(&case, 2)[1];
        let layers = case.json["layers"].as_u64().unwrap() as usize;
        for clip_skip in 0..layers {
            check(&case, name, 1, &model.forward(ids, clip_skip), layers - 1 - clip_skip);
        }
        let config = config(&goldens().join(name).join("text_encoder")).unwrap();
        assert!(config.check_clip_skip(layers - 1).is_ok());
        let error = config.check_clip_skip(layers).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert_eq!(
            error.to_string(),
            format!(
                "`clip_skip` of `{layers}` is too large for the {layers} layers of CLIP\nhint: use at most {}",
                layers - 1
            )
        );
    }
}

/// Checks the ids from a text to the model's input: cut, and padded with each tokenizer's own token.
#[test]
fn clip_ids() {
    for (name, pad_id) in CASES.into_iter().zip([633, 0]) {
        let case = Case::load(name);
        let tokenizer = ClipTokenizer::load(&goldens().join(name).join("tokenizer")).unwrap();
        assert_eq!((tokenizer.max_length(), tokenizer.pad_id()), (77, pad_id));
        let texts = texts(&case);
        let expected = recorded_ids(&case, texts.len());
        for (index, text) in texts.iter().enumerate() {
            let encoding = tokenizer.encode(text, tokenizer.max_length());
            assert_eq!(encoding.padded(77, tokenizer.pad_id()), expected[index], "{name}: {text}");
            assert_eq!(encoding.dropped.is_some(), text.len() > 77, "{name}: {text}");
        }
    }
}

/// FLUX uses only the pooled output, which does not depend on padding.
#[test]
fn the_pooled_output_needs_no_padding() {
    for (name, end) in CASES.into_iter().zip([633, 633]) {
        let case = Case::load(name);
        let model = text_encoder(name);
        let ids = &recorded_ids(&case, 2)[1];
        let n = ids.iter().position(|&id| id == end).unwrap() + 1;
        assert!(n < ids.len() / 2);
        let expected: Tensor<2> = case.tensor("1.pooled");
        assert_close(name, &model.forward(&ids[..n], 0).pooled, &expected, TOLERANCE);
    }
}

/// 16-bit types take the other path of the kernels. The distance to f32 must be within rounding.
#[test]
fn clip_in_16_bits() {
    for name in CASES {
        let dir = goldens().join(name).join("text_encoder");
        let ids = &recorded_ids(&Case::load(name), 2)[1];
        let exact = text_encoder(name).forward(ids, 0);
        for (dtype, tolerance) in [(DType::F16, 5e-3), (DType::BF16, 4e-2)] {
            let output = load(name, &dir, dtype).unwrap().forward(ids, 0);
            assert_eq!(output.pooled.dtype(), dtype);
            assert_close(&format!("{name} {dtype:?}: hidden"), &output.hidden, &exact.hidden, tolerance);
            assert_close(&format!("{name} {dtype:?}: pooled"), &output.pooled, &exact.pooled, tolerance);
        }
    }
}

/// Copies the text encoder `name` with another config and other tensor names.
fn rewritten(
    name: &str,
    config: impl FnOnce(&mut Value),
    rename: impl Fn(&str) -> Option<String>,
) -> tempfile::TempDir {
    let from = goldens().join(name).join("text_encoder");
    let to = tempfile::tempdir().unwrap();
    let mut json = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    config(&mut json);
    fs::write(to.path().join("config.json"), json.to_string()).unwrap();
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = tensors.tensors().into_iter().filter_map(|(key, view)| Some((rename(&key)?, view)));
    fs::write(to.path().join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    to
}

/// Transformers 5 writes `dtype` and, in models without a projection, no prefix.
#[test]
fn files_of_transformers_5_are_read() {
    for name in CASES {
        let case = Case::load(name);
        let ids = &recorded_ids(&case, 2)[1];
        let dtype = |config: &mut Value| {
            let config = config.as_object_mut().unwrap();
            let dtype = config.shift_remove("torch_dtype").unwrap();
            config.insert("dtype".into(), dtype);
        };
        let dir = rewritten(name, dtype, |key| Some(key.trim_start_matches("text_model.").to_owned()));
        let output = load(name, dir.path(), DType::F32).unwrap_or_else(|e| panic!("{e}")).forward(ids, 0);
        let expected = text_encoder(name).forward(ids, 0);
        assert_eq!(relative_l2(&output.hidden, &expected.hidden), 0.0);
        assert_eq!(relative_l2(&output.pooled, &expected.pooled), 0.0);
    }
}

#[test]
fn what_would_change_the_numbers_is_refused() {
    let keep = |key: &str| Some(key.to_owned());
    let error = |option: &str, value: Value| {
        let dir = rewritten("clip-l", |config| config[option] = value, keep);
        load("clip-l", dir.path(), DType::F32)
            .unwrap_err()
            .message()
            .replace(dir.path().to_str().unwrap(), "DIR")
    };
    assert_eq!(error("hidden_act", json!("relu")), "CLIP's `hidden_act` = `relu` is not supported");
    assert_eq!(
        error("num_attention_heads", json!(5)),
        "CLIP's `32` features cannot be divided into `5` heads"
    );
    assert_eq!(
        error("num_attention_heads", json!(0)),
        "CLIP's `32` features cannot be divided into `0` heads"
    );
    assert_eq!(
        error("model_type", json!("bert")),
        "option `model_type` = `\"bert\"` in `DIR/config.json` is not supported"
    );
    assert_eq!(
        error("max_position_embeddings", json!(64)),
        "tensor `text_model.embeddings.position_embedding.weight` in `DIR/model.safetensors` has shape [77, 32], \
         expected [64, 32]"
    );
    assert_eq!(
        error("num_hidden_layers", json!(2)),
        "tensor `text_model.encoder.layers.2.layer_norm1.bias` and 15 more in `DIR/model.safetensors` belongs to no \
         part of the model"
    );
    let without =
        rewritten("clip-l", |config| drop(config.as_object_mut().unwrap().shift_remove("hidden_size")), keep);
    let message =
        config(without.path()).unwrap_err().message().replace(without.path().to_str().unwrap(), "DIR");
    assert_eq!(message, "`DIR/config.json` has no option `hidden_size`");
}

#[test]
fn the_class_says_whether_there_is_a_projection() {
    let load = |name: &str, load: fn(&ClipTextConfig, &Weights) -> Result<ClipTextModel>| {
        let dir = goldens().join(name).join("text_encoder");
        load(&config(&dir).unwrap(), &weights(&dir, DType::F32))
    };
    let missing = load("clip-l", ClipTextModel::load_with_projection).unwrap_err();
    let missing = missing.message();
    assert!(missing.contains("`text_projection.weight` is missing"), "{missing}");
    // As in transformers, a projection that the class does not have is left out.
    load("clip-g", ClipTextModel::load).unwrap();
}

#[test]
fn t5_attends_to_its_padding() {
    let case = Case::load("t5-padded");
    let dir = goldens().join(case.json["checkpoint"].as_str().unwrap());
    let tokenizer = T5Tokenizer::load(&dir.join("tokenizer")).unwrap();
    let length = case.json["max_sequence_length"].as_u64().unwrap() as usize;
    let dir = dir.join("text_encoder");
    let config = T5Config::read(Config::read(&dir.join("config.json")).unwrap()).unwrap();
    let t5 = T5Encoder::load(&config, &weights(&dir, DType::F32)).unwrap();
    let expected_ids = case.integers("input_ids");
    for (row, text) in texts(&case).into_iter().enumerate() {
        let encoding = tokenizer.encode(text, length);
        let ids = encoding.padded(length, tokenizer.pad_id());
        assert!(
            ids.iter().map(|&id| i64::from(id)).eq(expected_ids[row * length..][..length].iter().copied())
        );
        let expected = case.tensor::<3>("prompt_embeds").narrow(0, row, 1);
        assert_close(&format!("T5: {row}"), &t5.forward(&ids), &expected, TOLERANCE);
        if encoding.ids.len() < length {
            let text_alone = t5.forward(&encoding.ids);
            let distance = relative_l2(&text_alone, &expected.narrow(1, 0, encoding.ids.len()));
            assert!(distance > 1e-3, "a mask would be noticed: {distance:.1e}");
        }
    }
}

/// With published weights, the states inside T5 exceed the range of f16.
#[test]
fn t5_has_room_for_large_states_in_f16() {
    let from = goldens().join("pixart-alpha-256/text_encoder");
    let config = T5Config::read(Config::read(&from.join("config.json")).unwrap()).unwrap();
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let grown: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| {
            let factor = if name.ends_with("block.0.layer.1.DenseReluDense.wo.weight") { 1e6 } else { 1.0 };
            let values = tensor.data().chunks_exact(4).map(|value| value.try_into().unwrap());
            let data = values.flat_map(|value| (f32::from_le_bytes(value) * factor).to_le_bytes());
            (name, tensor.dtype(), tensor.shape().to_vec(), data.collect::<Vec<u8>>())
        })
        .collect();
    let views = grown
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let encode = |dtype| {
        let t5 = T5Encoder::load(&config, &weights(dir.path(), dtype)).unwrap();
        t5.forward(&[3, 9, 14, 1])
    };
    let half = encode(DType::F16);
    assert_eq!(half.dtype(), DType::F16);
    assert_close("T5 in f16", &half.cast(DType::F32), &encode(DType::F32), 5e-3);
}
