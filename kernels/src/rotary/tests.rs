use burn::tensor::Tensor;
use proptest::prelude::*;

use super::{cpu, rotary};
use crate::testing::{assert_same_for_any_threads, back, flex, random, relative_error, tensor, values};
use crate::{cpu::lanes::Level, reference};

/// For two products and a sum, each rounded to f32.
const TOLERANCE: f64 = 1.5e-7;

/// Cosines and sines of arbitrary angles.
fn tables(seed: u64, n: usize, pairs: usize) -> [Tensor<2>; 2] {
    let angles = values(random(seed, [n, pairs]));
    let table = |of: fn(f64) -> f64| angles.iter().map(|&angle| of(3.0 * f64::from(angle)) as f32).collect();
    [tensor(table(f64::cos), [n, pairs]), tensor(table(f64::sin), [n, pairs])]
}

/// The rotated pairs, computed as complex numbers in f64.
fn truth(x: &[f32], [b, n, h, d]: [usize; 4], cos: &[f32], sin: &[f32]) -> Vec<f64> {
    let mut turned = Vec::with_capacity(x.len());
    for (pair, x) in x.chunks_exact(2).enumerate() {
        let (of_row, token) = (pair % (d / 2), pair / (d / 2) / h % n);
        let at = token * (d / 2) + of_row;
        let ([x, y], [cos, sin]) = ([x[0], x[1]].map(f64::from), [cos[at], sin[at]].map(f64::from));
        turned.extend([x * cos - y * sin, x * sin + y * cos]);
    }
    assert_eq!(turned.len(), b * n * h * d);
    turned
}

#[test]
fn agrees_with_f64() {
    for &level in Level::available() {
        for shape in [[1, 5, 3, 2], [2, 7, 1, 16], [2, 3, 5, 18], [1, 33, 24, 64], [2, 9, 4, 128]] {
            let [_, n, _, d] = shape;
            let (x, [cos, sin]) = (random(1, shape), tables(2, n, d / 2));
            let expected = truth(&values(x.clone()), shape, &values(cos.clone()), &values(sin.clone()));
            let [cos_, sin_] = [&cos, &sin].map(|table| flex(table.clone()));
            let fast = values(back::<4>(cpu::rotary(level, flex(x.clone()), cos_, sin_)));
            assert!(relative_error(&fast, expected.clone()) <= TOLERANCE, "{level:?}, {shape:?}");
            let plain = values(reference::rotary(x, cos, sin));
            assert!(relative_error(&plain, expected) <= TOLERANCE, "{shape:?}");
        }
    }
}

#[test]
fn memory_that_others_hold_is_left_alone() {
    let (x, [cos, sin]) = (random(1, [2, 5, 3, 8]), tables(2, 5, 4));
    let before = values(x.clone());
    let turned = values(rotary(x.clone(), cos.clone(), sin.clone()));
    assert_eq!(values(x.clone()), before);
    assert_ne!(turned, before);
    assert_eq!(values(rotary(x, cos, sin)), turned, "in place it gives the same");
}

#[test]
fn no_angle_changes_nothing() {
    let (x, zeros) = (random(1, [1, 5, 3, 12]), tensor(vec![0.0; 30], [5, 6]));
    let ones = zeros.clone().add_scalar(1.0);
    assert_eq!(values(rotary(x.clone(), ones, zeros)), values(x));
}

#[test]
fn threads_do_not_matter() {
    assert_same_for_any_threads(|| {
        let [cos, sin] = tables(2, 333, 36);
        values(rotary(random(1, [2, 333, 4, 72]), cos, sin))
    });
}

proptest! {
    #[test]
    fn heads_of_a_fused_projection_are_turned_where_they_lie(
        [b, n, h, pairs] in [1usize..3, 1usize..9, 1usize..5, 1usize..20],
        which in 0usize..3,
    ) {
        let fused = random(1, [b, n, 3 * h, 2 * pairs]);
        let x = fused.slice([0..b, 0..n, which * h..(which + 1) * h, 0..2 * pairs]);
        let [cos, sin] = tables(2, n, pairs);
        let expected = values(reference::rotary(x.clone(), cos.clone(), sin.clone()));
        let actual = values(rotary(x, cos, sin));
        prop_assert!(relative_error(&actual, expected.into_iter().map(f64::from)) <= 2.0 * TOLERANCE);
    }
}
