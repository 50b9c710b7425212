use burn::tensor::Tensor;
use proptest::prelude::*;

use super::{cpu, layer_norm, layer_norm_modulate, rms_norm};
use crate::testing::{assert_same_for_any_threads, back, flex, random, relative_error, values};
use crate::{cpu::lanes::Level, reference};

/// For five roundings of f32, each at most 6e-8.
const TOLERANCE: f64 = 3e-7;

/// Layer norm (if `centre`) or root-mean-square norm in f64, then `· weight + bias`.
fn truth(x: &[f32], c: usize, centre: bool, weight: &[f32], bias: &[f32], eps: f64) -> Vec<f64> {
    let row = |row: &[f32]| {
        let row: Vec<f64> = row.iter().copied().map(f64::from).collect();
        let mean = if centre { row.iter().sum::<f64>() / c as f64 } else { 0.0 };
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
        let affine = weight.iter().zip(bias);
        row.iter()
            .zip(affine)
            .map(|(x, (&w, &b))| (x - mean) / (variance + eps).sqrt() * f64::from(w) + f64::from(b))
            .collect::<Vec<_>>()
    };
    x.chunks(c).flat_map(row).collect()
}

fn check(actual: Tensor<3>, expected: Vec<f64>) {
    let error = relative_error(&values(actual), expected);
    assert!(error <= TOLERANCE, "relative error {error:.2e}");
}

#[test]
fn layer_norm_agrees_with_f64() {
    for &level in Level::available() {
        for c in [1, 5, 8, 16, 31, 64, 72, 100, 1152, 3072] {
            let x = random(c as u64, [2, 5, c]);
            let (weight, bias) = (random(1, [c]), random(2, [c]));
            let (x_values, w, b) = (values(x.clone()), values(weight.clone()), values(bias.clone()));
            let (ones, zeros) = (vec![1.0; c], vec![0.0; c]);
            let norm = |weight: Option<Tensor<1>>, bias: Option<Tensor<1>>| {
                back(cpu::layer_norm(level, flex(x.clone()), weight.map(flex), bias.map(flex), 1e-6))
            };
            if c > 1 {
                check(norm(None, None), truth(&x_values, c, true, &ones, &zeros, 1e-6));
                check(norm(Some(weight.clone()), None), truth(&x_values, c, true, &w, &zeros, 1e-6));
            }
            check(norm(None, Some(bias.clone())), truth(&x_values, c, true, &ones, &b, 1e-6));
            check(norm(Some(weight), Some(bias)), truth(&x_values, c, true, &w, &b, 1e-6));
        }
    }
}

#[test]
fn a_large_mean_does_not_spoil_the_variance() {
    let (c, x) = (1152, random(3, [1, 4, 1152]).add_scalar(1000.0));
    let expected = truth(&values(x.clone()), c, true, &vec![1.0; c], &vec![0.0; c], 1e-6);
    for &level in Level::available() {
        let actual = values(back::<3>(cpu::layer_norm(level, flex(x.clone()), None, None, 1e-6)));
        assert!(relative_error(&actual, expected.clone()) < TOLERANCE);
    }
}

#[test]
fn rms_norm_agrees_with_f64() {
    for &level in Level::available() {
        for c in [1, 8, 31, 64, 128, 4096] {
            let (x, weight) = (random(c as u64, [2, 5, c]), random(1, [c]));
            let (x_values, w) = (values(x.clone()), values(weight.clone()));
            let (ones, zeros) = (vec![1.0; c], vec![0.0; c]);
            let norm = |weight: Option<Tensor<1>>| {
                back(cpu::rms_norm(level, flex(x.clone()), weight.map(flex), 1e-6))
            };
            check(norm(None), truth(&x_values, c, false, &ones, &zeros, 1e-6));
            check(norm(Some(weight)), truth(&x_values, c, false, &w, &zeros, 1e-6));
        }
    }
}

#[test]
fn modulation_goes_by_image() {
    for (level, images) in Level::available().iter().flat_map(|&level| [(level, 1), (level, 3)]) {
        let (x, shift, scale) =
            (random(1, [3, 7, 100]), random(2, [images, 1, 100]), random(3, [images, 1, 100]));
        let [x_, shift_, scale_] = [&x, &shift, &scale].map(|tensor| flex(tensor.clone()));
        let actual = values(back::<3>(cpu::layer_norm_modulate(level, x_, shift_, scale_, 1e-6)));
        let expected = values(reference::layer_norm_modulate(x, shift, scale, 1e-6));
        assert!(relative_error(&actual, expected.into_iter().map(f64::from)) < 2.0 * TOLERANCE);
    }
}

#[test]
fn parameters_may_be_slices_of_one_projection() {
    let (x, six) = (random(1, [2, 7, 48]), random(2, [2, 1, 6 * 48]));
    let [shift, scale] = [six.clone().slice([0..2, 0..1, 48..96]), six.slice([0..2, 0..1, 240..288])];
    let expected = values(reference::layer_norm_modulate(x.clone(), shift.clone(), scale.clone(), 1e-6));
    let actual = values(layer_norm_modulate(x, shift, scale, 1e-6));
    assert!(relative_error(&actual, expected.into_iter().map(f64::from)) < 2.0 * TOLERANCE);
}

#[test]
fn threads_do_not_matter() {
    assert_same_for_any_threads(|| values(layer_norm(random(2, [2, 333, 100]), None, None, 1e-5)));
    assert_same_for_any_threads(|| values(rms_norm(random(2, [2, 333, 4, 72]), None, 1e-5)));
}

proptest! {
    #[test]
    fn heads_of_a_fused_projection_are_normed_without_a_copy(
        [b, n, h, d] in [1usize..3, 1usize..9, 1usize..5, 1usize..40],
        which in 0usize..3,
    ) {
        let fused = random(1, [b, n, 3 * h, d]);
        let x = fused.slice([0..b, 0..n, which * h..(which + 1) * h, 0..d]);
        let weight = random(2, [d]);
        let expected = values(reference::rms_norm(x.clone(), Some(weight.clone()), 1e-6));
        let actual = values(rms_norm(x, Some(weight), 1e-6));
        prop_assert!(relative_error(&actual, expected.into_iter().map(f64::from)) < 2.0 * TOLERANCE);
    }
}
