use burn::tensor::Tensor;
use proptest::prelude::*;

use super::{cpu, linear};
use crate::testing::{
    assert_close, assert_same_for_any_threads, back, flex, random, relative_error, tensor, values,
};
use crate::{cpu::lanes::Level, reference};

/// For sums of up to a few thousand rounded products.
const TOLERANCE: f64 = 1e-6;

fn truth(x: &[f32], weight: &[f32], bias: Option<&[f32]>, c_in: usize) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
    x.chunks(c_in)
        .flat_map(|x| {
            weight
                .chunks(c_in)
                .enumerate()
                .map(move |(o, w)| dot(x, w) + bias.map_or(0.0, |bias| f64::from(bias[o])))
        })
        .collect()
}

#[test]
fn agrees_with_f64_for_few_and_many_rows() {
    for &level in Level::available() {
        for [rows, c_in, c_out] in [
            [1, 1, 1],
            [1, 256, 1152],
            [2, 77, 33],
            [3, 1152, 70],
            [5, 64, 3],
            [7, 100, 35],
            [8, 1000, 130],
            [9, 33, 5],
            [40, 2304, 96],
            [300, 70, 40],
        ] {
            let (x, weight, bias) = (random(1, [rows, c_in]), random(2, [c_out, c_in]), random(3, [c_out]));
            let (x_values, w, b) = (values(x.clone()), values(weight.clone()), values(bias.clone()));
            let linear = |bias: Option<Tensor<1>>| {
                let (x, weight) = (flex(x.clone()), flex(weight.clone()));
                values(back::<2>(cpu::linear(level, x, weight, bias.map(flex))))
            };
            let y = linear(None);
            assert!(relative_error(&y, truth(&x_values, &w, None, c_in)) <= TOLERANCE);
            let y = linear(Some(bias));
            assert!(relative_error(&y, truth(&x_values, &w, Some(&b), c_in)) <= TOLERANCE);
        }
    }
}

#[test]
fn views_are_read_as_they_lie() {
    let (c_in, c_out) = (20, 30);
    let (x, weight) = (random(1, [3, 50, 4 * c_in]), random(2, [2 * c_out, c_in]));
    let part = weight.clone().slice([c_out..2 * c_out, 0..c_in]);
    let transposed = tensor(values(part.clone().transpose()), [c_in, c_out]).transpose();
    let contiguous = |x: &Tensor<3>| tensor(values(x.clone()), x.dims());
    for (from, to) in [(0, 50), (10, 14), (3, 4)] {
        let x = x.clone().slice([0..3, from..to, c_in..2 * c_in]);
        let expected = linear(contiguous(&x), tensor(values(part.clone()), [c_out, c_in]), None);
        assert_close(linear(x.clone(), part.clone(), None), expected.clone(), TOLERANCE);
        assert_close(
            linear(x.swap_dims(0, 1), transposed.clone(), None),
            expected.swap_dims(0, 1),
            TOLERANCE,
        );
    }
}

#[test]
fn threads_do_not_matter() {
    for rows in [1, 6, 200] {
        assert_same_for_any_threads(|| {
            values(linear(random(1, [rows, 700]), random(2, [501, 700]), Some(random(3, [501]))))
        });
    }
}

proptest! {
    #[test]
    fn agrees_with_the_reference([b, n] in [1usize..4, 1usize..9], c_in in 1usize..70, c_out in 1usize..70) {
        let (x, weight, bias) = (random(1, [b, n, c_in]), random(2, [c_out, c_in]), random(3, [c_out]));
        let expected = reference::linear(x.clone(), weight.clone(), Some(bias.clone()));
        assert_close(linear(x, weight, Some(bias)), expected, TOLERANCE);
    }
}
