//! Damaged checkpoints: each ends in one sentence, with exit code 1, within seconds.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::workspace::Workspace;

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT_ENCODER: &str = "text_encoder/model.safetensors";
const SPIECE: &str = "tokenizer/spiece.model";
const CONFIG: &str = "transformer/config.json";
const SCHEDULER: &str = "scheduler/scheduler_config.json";
/// A tensor of the transformer: `[32]` in f32.
const BIAS: &str = "proj_out.bias";

/// A change of a file's contents.
type Damage = Box<dyn Fn(Vec<u8>) -> Vec<u8>>;

/// The file, what is done to it, and a part of the error.
type Case = (&'static str, Damage, &'static str);

fn case(file: &'static str, damage: impl Fn(Vec<u8>) -> Vec<u8> + 'static, part: &'static str) -> Case {
    (file, Box::new(damage), part)
}

/// The length of the header.
fn header_len(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

fn safetensors(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

/// Changes the header of the transformer's weights.
fn header(change: impl Fn(&mut Value) + 'static, part: &'static str) -> Case {
    let damage = move |bytes: Vec<u8>| {
        let (header, data) = bytes[8..].split_at(header_len(&bytes));
        let mut header: Value = serde_json::from_slice(header).unwrap();
        change(&mut header);
        safetensors(header.to_string().as_bytes(), data)
    };
    case(TRANSFORMER, damage, part)
}

/// Sets a member of the entry of [`BIAS`].
fn entry(member: &'static str, value: Value, part: &'static str) -> Case {
    header(move |header| header[BIAS][member] = value.clone(), part)
}

/// Sets the first value of a tensor.
fn value(file: &'static str, name: &'static str, value: f32, part: &'static str) -> Case {
    let damage = move |mut bytes: Vec<u8>| {
        let data = 8 + header_len(&bytes);
        let header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
        let start = data + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[start..start + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    case(file, damage, part)
}

/// Sets an option.
fn option(file: &'static str, name: &'static str, value: Value, part: &'static str) -> Case {
    let damage = move |bytes: Vec<u8>| {
        let mut config: Value = serde_json::from_slice(&bytes).unwrap();
        config[name] = value.clone();
        config.to_string().into_bytes()
    };
    case(file, damage, part)
}

/// Keeps the beginning of a file.
fn cut(file: &'static str, len: impl Fn(&[u8]) -> usize + 'static, part: &'static str) -> Case {
    case(file, move |bytes| bytes[..len(&bytes)].to_vec(), part)
}

/// Files of weights.
fn weights() -> Vec<Case> {
    let number = |number: u64| move |bytes: Vec<u8>| [&number.to_le_bytes()[..], &bytes[8..]].concat();
    let text = |text: &'static str| move |_: Vec<u8>| text.as_bytes().to_vec();
    vec![
        cut(TRANSFORMER, |_| 5, "header too small"),
        cut(TRANSFORMER, |_| 100, "invalid header length"),
        cut(TRANSFORMER, |bytes| 8 + header_len(bytes), "file not fully covered"),
        cut(TRANSFORMER, |bytes| bytes.len() - 1, "file not fully covered"),
        cut(VAE, |bytes| bytes.len() / 2, "vae/diffusion_pytorch_model.safetensors` is not a valid"),
        case(TRANSFORMER, |bytes| [bytes, vec![0]].concat(), "file not fully covered"),
        case(TRANSFORMER, |bytes| vec![0; bytes.len()], "invalid JSON in header"),
        case(TRANSFORMER, |bytes| vec![0xff; bytes.len()], "header too large"),
        case(TRANSFORMER, number(1 << 63), "header too large"),
        case(TRANSFORMER, number(0), "invalid JSON in header"),
        case(TRANSFORMER, |_| safetensors(b"[]", b""), "invalid JSON in header"),
        case(TRANSFORMER, |_| safetensors(b"{}", b""), "tensor `pos_embed.proj.weight` is missing"),
        case(TRANSFORMER, |_| safetensors(b"{\xff}", b""), "invalid UTF-8 in header"),
        case(TRANSFORMER, text("<!DOCTYPE html><html>Not found</html>"), "header too large"),
        case(VAE, text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "pointer of Git LFS"),
        entry("dtype", json!("I32"), "has type I32, expected F32, F16 or BF16"),
        entry("dtype", json!("F8_E4M3"), "invalid shape, data type, or offset"),
        entry("dtype", json!("F77"), "unknown variant `F77`"),
        entry("shape", json!([4, 8]), "has shape [4, 8], expected [32]"),
        entry("shape", json!([1_u64 << 40, 1_u64 << 40]), "overflow computing buffer size"),
        entry("shape", json!([-1]), "invalid JSON in header"),
        entry("data_offsets", json!([0, 1_u64 << 40]), "invalid offset for tensor"),
        entry("data_offsets", json!([128, 0]), "invalid offset for tensor"),
        header(
            |header| {
                let entry = header.as_object_mut().unwrap().remove(BIAS).unwrap();
                header["proj_out.bios"] = entry;
            },
            "tensor `proj_out.bias` is missing",
        ),
        header(|header| drop(header.as_object_mut().unwrap().remove(BIAS)), "invalid offset for tensor"),
        value(TRANSFORMER, BIAS, f32::NAN, "the latents after step 1 of 2 are not finite"),
        value(TRANSFORMER, "proj_out.weight", f32::INFINITY, "the latents after step 1 of 2 are not finite"),
        value(TRANSFORMER, "pos_embed.proj.weight", 3e38, "the latents after step 1 of 2 are not finite"),
        value(VAE, "decoder.conv_out.bias", f32::NAN, "picture 1 after decoding are not finite"),
        value(TEXT_ENCODER, "encoder.final_layer_norm.weight", f32::NAN, "`text_encoder` are not finite"),
    ]
}

/// Files of text.
fn texts() -> Vec<Case> {
    let with =
        |before: &'static [u8], after: &'static [u8]| move |bytes: Vec<u8>| [before, &bytes, after].concat();
    vec![
        cut(SPIECE, |bytes| bytes.len() / 2, "ends in the middle of a field"),
        cut(SPIECE, |bytes| bytes.len() - 1, "ends in the middle of a field"),
        cut(SPIECE, |_| 0, "contains no sentencepiece vocabulary"),
        case(SPIECE, |bytes| vec![0; bytes.len()], "contains no sentencepiece vocabulary"),
        case(SPIECE, |_| b"hello world".repeat(99), "is not a sentencepiece model"),
        cut(CONFIG, |_| 0, "is not valid JSON: EOF"),
        cut(CONFIG, |bytes| bytes.len() / 2, "is not valid JSON: EOF"),
        // The mark of UTF-8 is left out, and the rest is read.
        case(CONFIG, |bytes| [b"\xef\xbb\xbf", &bytes[..50]].concat(), "is not valid JSON: EOF"),
        case(CONFIG, with(b"\xff\xfe", b""), "is not valid JSON: invalid utf-8"),
        case(CONFIG, with(b"// a comment\n", b""), "is not valid JSON: expected value"),
        case(CONFIG, with(b"", b"}"), "is not valid JSON: trailing characters"),
        case(CONFIG, |_| b"[]".to_vec(), "is not a JSON object"),
        case(CONFIG, |_| b"[".repeat(100_000), "is not valid JSON: recursion limit"),
        // The last one of equal keys counts, as in Python.
        case(
            CONFIG,
            |bytes| {
                String::from_utf8(bytes)
                    .unwrap()
                    .replacen('{', "{\"num_layers\": 7,", 1)
                    .replace("\"num_layers\": 2", "\"num_layers\": 3")
                    .into_bytes()
            },
            "tensor `transformer_blocks.2.scale_shift_table` is missing",
        ),
    ]
}

/// Absurd options.
fn options() -> Vec<Case> {
    let (vae, text, tokens) =
        ("vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json");
    let index = "model_index.json";
    vec![
        option(
            CONFIG,
            "num_layers",
            json!(1_u64 << 40),
            "transformer_blocks.2.scale_shift_table` is missing",
        ),
        option(CONFIG, "num_layers", json!(1.5), "option `num_layers` = `1.5`"),
        option(CONFIG, "num_attention_heads", json!(1_u64 << 40), "cannot have 1099511627776 heads"),
        option(CONFIG, "attention_head_dim", json!(0), "cannot have 2 heads of 0 features"),
        option(CONFIG, "patch_size", json!(0), "cannot have `patch_size` 0"),
        option(CONFIG, "patch_size", json!(1_000_000_000), "has shape [64, 4, 2, 2], expected"),
        option(CONFIG, "sample_size", json!(1_u64 << 63), "is not between 1 and 2048"),
        option(CONFIG, "caption_channels", json!(-1), "option `caption_channels` = `-1`"),
        option(CONFIG, "norm_type", json!("telepathic"), "option `norm_type` = `\"telepathic\"`"),
        option(
            SCHEDULER,
            "num_train_timesteps",
            json!(1_u64 << 40),
            "`num_train_timesteps` is `1099511627776`",
        ),
        option(SCHEDULER, "num_train_timesteps", json!(0), "`num_train_timesteps` is `0`"),
        option(SCHEDULER, "solver_order", json!(1_000_000_000), "option `solver_order` is `1000000000`"),
        option(SCHEDULER, "trained_betas", json!([0.5]), "option `trained_betas` has `1` values"),
        option(SCHEDULER, "beta_end", json!(-1), "the noise schedule has a beta of `-"),
        option(SCHEDULER, "beta_start", json!(3), "the noise schedule has a beta of `3`"),
        case(
            SCHEDULER,
            |bytes| String::from_utf8(bytes).unwrap().replace("0.0001", "NaN").into_bytes(),
            "the noise schedule has a beta of `NaN`",
        ),
        option(vae, "block_out_channels", json!([]), "option `down_block_types`"),
        option(vae, "block_out_channels", json!(vec![8; 100_000]), "option `down_block_types`"),
        option(vae, "norm_num_groups", json!(0), "cannot be divided into `0` groups"),
        option(vae, "scaling_factor", json!(0), "an autoencoder cannot have `scaling_factor` 0"),
        option(vae, "latent_channels", json!(1_000_000_000), "expected [2000000000, 32, 3, 3]"),
        option(text, "vocab_size", json!(1_u64 << 40), "expected [1099511627776, 64]"),
        option(text, "num_heads", json!(0), "expected [32, 0]"),
        option(text, "relative_attention_num_buckets", json!(0), "cannot have `0` relative buckets"),
        option(tokens, "extra_ids", json!(1_u64 << 40), "expected u32"),
        option(tokens, "extra_ids", json!(-1), "expected u32"),
        option(index, "transformer", Value::Null, "has no component `transformer`"),
        option(
            index,
            "vae",
            json!(["diffusers", "X"]),
            "component `vae` in `demo/model_index.json` is of class `X`",
        ),
        option(index, "_class_name", json!(7), "does not name the pipeline in `_class_name`"),
    ]
}

#[test]
fn damaged_checkpoints_end_in_a_sentence() {
    let workspace = Workspace::with_demo();
    let cases: Vec<Case> = [weights(), texts(), options()].into_iter().flatten().collect();
    assert!(cases.len() > 70, "{}", cases.len());
    let mut failures = Vec::new();
    for (number, (file, damage, part)) in cases.into_iter().enumerate() {
        let path = workspace.path("demo").join(file);
        let sound = fs::read(&path).unwrap();
        fs::write(&path, damage(sound.clone())).unwrap();
        let start = Instant::now();
        let run = ["generate", "--model", "demo", "--prompt", "a", "--num-inference-steps", "2", "--quiet"];
        let error = workspace.error(&run);
        fs::write(&path, sound).unwrap();
        let lines: Vec<&str> = error.lines().collect();
        let is_sentence = matches!(&lines[..], ["1", message] | ["1", message, _] if message.starts_with("error: "))
            && lines.get(2).is_none_or(|hint| hint.starts_with("hint: "));
        if !is_sentence || !error.contains(part) || start.elapsed() > Duration::from_secs(20) {
            failures.push(format!("case {number}, `{file}`, expected `{part}`: {error}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // What was mended works again.
    workspace.generate(&["--prompt", "a"]);
}
