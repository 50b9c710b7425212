//! The operations on tokens at the sizes of PixArt at 512 × 512 (1024 tokens) and 1024 × 1024 (4096 tokens), fast
//! and in plain Burn.
//!
//! Attention is also timed in f32, bf16 and f16 beside each other, at these sizes and those of FLUX.1.
//!
//! `cargo bench -p xdit-kernels --bench tokens [FILTER]`; `RAYON_NUM_THREADS` sets the threads of both.
//! `tokens.py` beside this file times the same in PyTorch.

use burn::tensor::{Bytes, DType, Tensor};
use burn_flex::{Flex, FlexTensor, Layout};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use xdit_kernels::{
    Activation, activate, attention_lse, gated_activate, gated_residual, layer_norm, layer_norm_modulate,
    linear, merge_lse, reference, rms_norm, rotary,
};

const HEADS: usize = 16;
const HEAD_DIM: usize = 72;
const FEATURES: usize = HEADS * HEAD_DIM;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let mut state = 1u32;
    let data = (0..shape.iter().product::<usize>())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect::<Vec<f32>>();
    let layout = Layout::contiguous(shape.into());
    Tensor::from_primitive::<Flex>(FlexTensor::new(Bytes::from_elems(data), layout, DType::F32))
}

/// Times both versions of a function of the tensors that `input` makes anew each time.
fn compare<I, O>(
    criterion: &mut Criterion,
    name: &str,
    input: impl Fn() -> I,
    fast: impl Fn(I) -> O,
    reference: impl Fn(I) -> O,
) {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(20).warm_up_time(std::time::Duration::from_millis(200));
    group.measurement_time(std::time::Duration::from_secs(1));
    group.bench_function("fast", |bencher| bencher.iter_batched(&input, &fast, BatchSize::PerIteration));
    group.bench_function("reference", |bencher| {
        bencher.iter_batched(&input, &reference, BatchSize::PerIteration)
    });
}

fn attention(criterion: &mut Criterion) {
    let scale = (HEAD_DIM as f32).powf(-0.5);
    for (name, nq, nk, biased) in [
        ("attention_1024", 1024, 1024, false),
        ("attention_4096", 4096, 4096, false),
        ("attention_4096_text", 4096, 120, true),
    ] {
        let q = random([1, nq, HEADS, HEAD_DIM]);
        let (k, v) = (random([1, nk, HEADS, HEAD_DIM]), random([1, nk, HEADS, HEAD_DIM]));
        let bias = biased.then(|| random([1, 1, 1, nk]));
        let input = || (q.clone(), k.clone(), v.clone(), bias.clone());
        compare(
            criterion,
            name,
            input,
            |(q, k, v, bias)| attention_lse(q, k, v, bias, scale),
            |(q, k, v, bias)| reference::attention_lse(q, k, v, bias, scale),
        );
    }
    let part = (random([1, 1024, HEADS, HEAD_DIM]), random([1, 1024, HEADS]));
    let input = || (random([1, 1024, HEADS, HEAD_DIM]), random([1, 1024, HEADS]));
    compare(
        criterion,
        "merge_lse_1024",
        input,
        |a| merge_lse(a, part.clone()),
        |a| reference::merge_lse(a, part.clone()),
    );
}

/// Attention in each type, at `[b, nq, nk, h, d]`; of FLUX.1, a quarter of the heads.
fn attention_types(criterion: &mut Criterion) {
    for (name, [b, nq, nk, h, d], biased) in [
        ("attention_types_1024", [2, 1024, 1024, HEADS, HEAD_DIM], false),
        ("attention_types_4096", [1, 4096, 4096, HEADS, HEAD_DIM], false),
        ("attention_types_4096_text", [1, 4096, 120, HEADS, HEAD_DIM], true),
        ("attention_types_4608_flux", [1, 4608, 4608, 6, 128], false),
    ] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).warm_up_time(std::time::Duration::from_millis(200));
        group.measurement_time(std::time::Duration::from_secs(1));
        for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)] {
            let [q, k, v] = [nq, nk, nk].map(|n| random([b, n, h, d]).cast(dtype));
            let bias = biased.then(|| random([1, 1, 1, nk]).cast(dtype));
            group.bench_function(name, |bencher| {
                bencher.iter_batched(
                    || (q.clone(), k.clone(), v.clone(), bias.clone()),
                    |(q, k, v, bias)| attention_lse(q, k, v, bias, (d as f32).powf(-0.5)),
                    BatchSize::PerIteration,
                )
            });
        }
    }
}

fn linears(criterion: &mut Criterion) {
    for (name, rows, c_in, c_out) in [
        ("linear_1024_qkv", 1024, FEATURES, 3 * FEATURES),
        ("linear_1024_up", 1024, FEATURES, 4 * FEATURES),
        ("linear_1024_down", 1024, 4 * FEATURES, FEATURES),
        ("linear_1_modulation", 1, FEATURES, 6 * FEATURES),
        ("linear_2_modulation", 2, FEATURES, 6 * FEATURES),
        ("linear_8_modulation", 8, FEATURES, 6 * FEATURES),
    ] {
        let (weight, bias) = (random([c_out, c_in]), random([c_out]));
        compare(
            criterion,
            name,
            || random([rows, c_in]),
            |x| linear(x, weight.clone(), Some(bias.clone())),
            |x| reference::linear(x, weight.clone(), Some(bias.clone())),
        );
    }
}

fn element_wise(criterion: &mut Criterion) {
    let wide = || random([1, 1024, 4 * FEATURES]);
    for (name, activation) in [
        ("gelu_tanh_1024", Activation::GeluTanh),
        ("gelu_1024", Activation::Gelu),
        ("silu_1024", Activation::Silu),
    ] {
        compare(criterion, name, wide, |x| activate(activation, x), |x| reference::activate(activation, x));
    }
    let factor = wide();
    compare(
        criterion,
        "geglu_1024",
        wide,
        |gate| gated_activate(Activation::Gelu, gate, factor.clone()),
        |gate| reference::gated_activate(Activation::Gelu, gate, factor.clone()),
    );
}

fn norms(criterion: &mut Criterion) {
    let tokens = || random([1, 1024, FEATURES]);
    let (shift, scale, gate) = (random([1, 1, FEATURES]), random([1, 1, FEATURES]), random([1, 1, FEATURES]));
    compare(
        criterion,
        "layer_norm_modulate_1024",
        tokens,
        |x| layer_norm_modulate(x, shift.clone(), scale.clone(), 1e-6),
        |x| reference::layer_norm_modulate(x, shift.clone(), scale.clone(), 1e-6),
    );
    compare(
        criterion,
        "layer_norm_1024",
        tokens,
        |x| layer_norm(x, None, None, 1e-6),
        |x| reference::layer_norm(x, None, None, 1e-6),
    );
    compare(
        criterion,
        "rms_norm_1024_heads",
        || random([1, 1024, HEADS, HEAD_DIM]),
        |x| rms_norm(x, None, 1e-6),
        |x| reference::rms_norm(x, None, 1e-6),
    );
    let (cos, sin) = (random([1024, HEAD_DIM / 2]), random([1024, HEAD_DIM / 2]));
    compare(
        criterion,
        "rotary_1024_heads",
        || random([1, 1024, HEADS, HEAD_DIM]),
        |x| rotary(x, cos.clone(), sin.clone()),
        |x| reference::rotary(x, cos.clone(), sin.clone()),
    );
    let y = tokens();
    compare(
        criterion,
        "gated_residual_1024",
        tokens,
        |x| gated_residual(x, gate.clone(), y.clone()),
        |x| reference::gated_residual(x, gate.clone(), y.clone()),
    );
}

criterion_group!(tokens, attention, attention_types, linears, element_wise, norms);
criterion_main!(tokens);
