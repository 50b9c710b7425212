//! Compares the products of bf16 with sums in f64 of the same rounded inputs.

use burn::tensor::{DType, Tensor, bf16};

use super::super::cpu;
use super::{Dots, conv2d};
use crate::Geometry;
use crate::conv::tests::{CASES, Case, FULL, Inputs, PLAIN, by_definition};
use crate::testing::{assert_same_for_any_threads, back, flex, tensor, values};

/// Half a unit in the last place of bf16, relative to the smallest number with that unit.
const ROUNDING: f64 = 1.0 / 256.0;

fn dots() -> impl Iterator<Item = Dots> {
    Dots::available().iter().copied().filter(|&dots| dots != Dots::Widen)
}

/// Larger than a task, with several blocks of channels, and with sides that are no multiples of anything.
const LARGE: [Case; 5] = [
    Case { size: [70, 150], channels: [40, 70], batch: 2, ..FULL },
    Case { size: [40, 290], channels: [33, 20], ..PLAIN },
    Case { size: [33, 80], channels: [64, 32], upsample: true, ..FULL },
    Case { size: [67, 300], channels: [3, 33], stride: 2, padding: [0, 1, 0, 1], ..FULL },
    Case { size: [20, 32], channels: [600, 64], ..FULL },
];

/// The tensors of `case`, rounded to bf16 where the types of an operation are.
fn rounded(case: &Case) -> Inputs {
    let round = |x: Tensor<4>| x.cast(DType::BF16).cast(DType::F32);
    let mut inputs = case.inputs();
    inputs.conv.weight = round(inputs.conv.weight);
    inputs.x = round(inputs.x);
    inputs.residual = inputs.residual.map(round);
    inputs
}

/// The convolution with `dots`, widened.
fn with(dots: Dots, inputs: &Inputs) -> Tensor<4> {
    let bf16 = |x: &Tensor<4>| flex(x.clone().cast(DType::BF16));
    let norm = inputs.norm.as_ref().map(|norm| (flex(norm.scale.clone()), flex(norm.shift.clone())));
    let geometry =
        Geometry { stride: inputs.conv.stride, padding: inputs.conv.padding, upsample: inputs.conv.upsample };
    let tensors = cpu::Inputs {
        x: bf16(&inputs.x),
        weight: bf16(&inputs.conv.weight),
        bias: inputs.conv.bias.clone().map(flex),
        norm,
        residual: inputs.residual.as_ref().map(bf16),
    };
    let y = back::<4>(conv2d(dots, geometry, tensors));
    assert_eq!(y.dtype(), DType::BF16);
    y.cast(DType::F32)
}

/// `silu(affine(x))` in f64, rounded to bf16.
fn normalised(inputs: &Inputs) -> Tensor<4> {
    let [b, c, rows, cols] = inputs.x.dims();
    let norm = inputs.norm.as_ref().expect("a normalised case");
    let [scale, shift] = [&norm.scale, &norm.shift].map(|factor| values(factor.clone()));
    let of = |(at, x): (usize, f32)| {
        let plane = at / (rows * cols);
        let y = f64::from(x) * f64::from(scale[plane]) + f64::from(shift[plane]);
        bf16::from_f64(y / (1.0 + (-y).exp())).to_f32()
    };
    tensor(values(inputs.x.clone()).into_iter().enumerate().map(of).collect(), [b, c, rows, cols])
}

/// Each pixel within its own rounding and those of the sum in f32.
fn assert_close(case: &Case, y: &[f32], expected: &[f64]) {
    assert_eq!(y.len(), expected.len());
    let terms = (case.channels[0] * case.kernel[0] * case.kernel[1]) as f64;
    for (at, (&y, expected)) in y.iter().zip(expected).enumerate() {
        let error = (f64::from(y) - expected).abs();
        let allowed = ROUNDING * expected.abs() + 1e-7 * (10.0 + terms);
        assert!(error <= allowed, "element {at}: {y} instead of {expected} in {case:?}");
    }
}

#[test]
fn each_pixel_agrees_with_f64() {
    for case in CASES.iter().chain(&LARGE) {
        let case = Case { norm: false, ..*case };
        let inputs = rounded(&case);
        let expected = by_definition(&case, &inputs);
        for dots in dots() {
            let y = with(dots, &inputs);
            assert_eq!(y.dims(), case.result_shape());
            assert_close(&case, &values(y), &expected);
        }
    }
}

#[test]
fn a_normalised_image_is_rounded_once_before_the_products() {
    for case in CASES.iter().chain(&LARGE).filter(|case| case.norm) {
        let inputs = rounded(case);
        let normed = normalised(&inputs);
        let plain = Case { norm: false, ..*case };
        let expected = by_definition(&plain, &Inputs { x: normed, norm: None, ..rounded(&plain) });
        for dots in dots() {
            let y = values(with(dots, &inputs));
            let apart = y.iter().zip(&expected).map(|(&y, e)| (f64::from(y) - e).powi(2)).sum::<f64>();
            let norm = expected.iter().map(|e| e * e).sum::<f64>();
            // Numbers that lie halfway, within the error of the exponential, may be rounded the other way.
            assert!((apart / norm).sqrt() <= ROUNDING / 2.0, "{case:?}");
        }
    }
}

#[test]
fn threads_do_not_matter() {
    for case in [LARGE[0], LARGE[3], Case { size: [9, 16], ..LARGE[4] }] {
        let inputs = rounded(&case);
        for dots in dots() {
            assert_same_for_any_threads(|| values(with(dots, &inputs)));
        }
    }
}

#[test]
fn a_part_of_the_rows_has_the_bits_of_the_whole() {
    let case = Case { size: [40, 50], channels: [40, 20], bias: true, ..PLAIN };
    let mut inputs = rounded(&case);
    for dots in dots() {
        let whole = with(dots, &inputs);
        let part = Inputs { x: inputs.x.clone().narrow(2, 10, 17), ..rounded(&case) };
        inputs.conv.padding = [0, 0, 1, 1];
        let conv = inputs.conv.clone();
        let part = with(dots, &Inputs { conv, ..part });
        assert_eq!(values(part), values(whole.narrow(2, 11, 15)));
        inputs.conv.padding = [1; 4];
    }
}

#[test]
fn the_residual_lends_its_memory_only_when_nobody_else_holds_it() {
    let inputs = rounded(&FULL);
    for dots in dots() {
        let expected = values(with(dots, &inputs));
        let residual = || inputs.residual.clone().expect("`FULL` has one").cast(DType::BF16);
        let tensors = |residual: Tensor<4>| cpu::Inputs {
            x: flex(inputs.x.clone().cast(DType::BF16)),
            weight: flex(inputs.conv.weight.clone().cast(DType::BF16)),
            bias: inputs.conv.bias.clone().map(flex),
            norm: inputs.norm.as_ref().map(|norm| (flex(norm.scale.clone()), flex(norm.shift.clone()))),
            residual: Some(flex(residual)),
        };
        let address = |tensor: &Tensor<4>| flex(tensor.clone()).storage::<bf16>().as_ptr();
        let geometry = Geometry { stride: FULL.stride, padding: FULL.padding, upsample: FULL.upsample };

        let shared = residual();
        let before = values(shared.clone().cast(DType::F32));
        let apart = back::<4>(conv2d(dots, geometry, tensors(shared.clone())));
        assert_ne!(address(&apart), address(&shared));
        assert_eq!(values(shared.cast(DType::F32)), before);
        assert_eq!(values(apart.cast(DType::F32)), expected);

        let own = residual();
        let lent = address(&own);
        let together = back::<4>(conv2d(dots, geometry, tensors(own)));
        assert_eq!(address(&together), lent);
        assert_eq!(values(together.cast(DType::F32)), expected);
    }
}
