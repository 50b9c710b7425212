//! The operations of an autoencoder at the sizes of a 1024 × 1024 image, fast and in plain Burn.
//!
//! `cargo bench -p xdit-kernels --bench images [FILTER]`; `RAYON_NUM_THREADS` sets the threads of both.

use burn::tensor::Tensor;
use burn_flex::{Flex, FlexTensor, Layout};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use xdit_kernels::{Affine, Conv2d, conv2d, group_norm_moments, norm_act, reference};

/// A convolution of a square image.
struct Case {
    name: &'static str,
    /// Of input and output.
    channels: [usize; 2],
    size: usize,
    kernel: usize,
    upsample: bool,
    /// Whether norm, SiLU and a residual are around it.
    block: bool,
}

const fn case(name: &'static str, channels: [usize; 2], size: usize) -> Case {
    Case { name, channels, size, kernel: 3, upsample: false, block: false }
}

const CONVOLUTIONS: [Case; 11] = [
    case("4to512_128", [4, 512], 128),
    case("512_64", [512, 512], 64),
    Case { block: true, ..case("512_64_block", [512, 512], 64) },
    Case { kernel: 1, ..case("512_128_1x1", [512, 512], 128) },
    case("256_256", [256, 256], 256),
    Case { block: true, ..case("256_256_block", [256, 256], 256) },
    Case { upsample: true, ..case("256_128_upsample", [256, 256], 128) },
    case("128_512", [128, 128], 512),
    case("64_1024", [64, 64], 1024),
    case("128to64_1024", [128, 64], 1024),
    case("64to3_1024", [64, 3], 1024),
];

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let mut state = 1u32;
    let data = (0..shape.iter().product::<usize>())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect::<Vec<f32>>();
    let bytes = burn::tensor::Bytes::from_elems(data);
    let layout = Layout::contiguous(shape.into());
    Tensor::from_primitive::<Flex>(FlexTensor::new(bytes, layout, burn::tensor::DType::F32))
}

fn convolutions(criterion: &mut Criterion) {
    for Case { name, channels: [c_in, c_out], size, kernel, upsample, block } in CONVOLUTIONS {
        let conv = Conv2d {
            weight: random([c_out, c_in, kernel, kernel]),
            bias: Some(random([c_out])),
            stride: 1,
            padding: [kernel / 2; 4],
            upsample,
        };
        let x = random([1, c_in, size, size]);
        let norm = block.then(|| Affine { scale: random([1, c_in]), shift: random([1, c_in]) });
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10);
        type Function = fn(&Conv2d, Tensor<4>, Option<&Affine>, Option<Tensor<4>>) -> Tensor<4>;
        for (which, function) in [("fast", conv2d as Function), ("reference", reference::conv2d as Function)]
        {
            group.bench_function(which, |bencher| {
                bencher.iter_batched(
                    || block.then(|| random([1, c_out, size, size])),
                    |residual| function(&conv, x.clone(), norm.as_ref(), residual),
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

fn group_norm(criterion: &mut Criterion) {
    let shape @ [_, c, ..] = [1, 256, 256, 256];
    let affine = Affine { scale: random([1, c]), shift: random([1, c]) };
    let x = random(shape);
    let mut group = criterion.benchmark_group("group_norm_256_256");
    group.sample_size(10);
    group.bench_function("moments/fast", |bencher| bencher.iter(|| group_norm_moments(x.clone(), 32)));
    group.bench_function("moments/reference", |bencher| {
        bencher.iter(|| reference::group_norm_moments(x.clone(), 32));
    });
    group.bench_function("silu/fast", |bencher| {
        bencher.iter_batched(|| random(shape), |x| norm_act(x, &affine, true), BatchSize::PerIteration);
    });
    group.bench_function("silu/reference", |bencher| {
        bencher.iter_batched(
            || random(shape),
            |x| reference::norm_act(x, &affine, true),
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(images, convolutions, group_norm);
criterion_main!(images);
