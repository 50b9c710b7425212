use burn::tensor::bf16;

use super::{Dots, Matrix, multiply};
use crate::testing::{normal, relative_error};

/// Half a unit in the last place of bf16, relative to the smallest number with that unit.
const ROUNDING: f64 = 1.0 / 256.0;

fn dots() -> impl Iterator<Item = Dots> {
    Dots::available().iter().copied().filter(|&dots| dots != Dots::Widen)
}

fn random(seed: u64, len: usize) -> Vec<bf16> {
    normal(seed, len).into_iter().map(bf16::from_f32).collect()
}

fn widen(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

fn truth(x: &Matrix, weight: &Matrix, bias: Option<&[f32]>) -> Vec<f64> {
    let mut y = Vec::new();
    for row in 0..x.rows {
        for output in 0..weight.rows {
            let terms = x.rest(row, 0).iter().zip(weight.rest(output, 0));
            let sum: f64 = terms.map(|(x, w)| x.to_f64() * w.to_f64()).sum();
            y.push(sum + bias.map_or(0.0, |bias| f64::from(bias[output])));
        }
    }
    y
}

/// Each element within the rounding to bf16 and those of the sum in f32: of normally distributed terms it has about the
/// root of their number in size, and as many roundings weigh with the root of their number.
fn assert_close(y: &[bf16], expected: &[f64], terms: usize) {
    assert_eq!(y.len(), expected.len());
    for (at, (y, expected)) in y.iter().zip(expected).enumerate() {
        let error = (y.to_f64() - expected).abs();
        let allowed = ROUNDING * expected.abs() + 1e-7 * (10.0 + terms as f64);
        assert!(error <= allowed, "element {at}: {y} instead of {expected}");
    }
    assert!(relative_error(&widen(y), expected.iter().copied()) <= ROUNDING);
}

#[test]
fn agrees_with_f64_at_odd_and_even_sizes() {
    for dots in dots() {
        for [rows, terms, outputs] in [
            [1, 1, 1],
            [9, 33, 5],
            [16, 32, 16],
            [17, 31, 33],
            [33, 100, 70],
            [64, 1152, 96],
            [40, 1537, 65],
            [100, 4608, 40],
            [70, 3100, 130],
        ] {
            let (x, weight) = (random(1, rows * terms), random(2, outputs * terms));
            let x = Matrix::new(&x, rows, terms, terms);
            let weight = Matrix::new(&weight, outputs, terms, terms);
            let bias = normal(3, outputs);
            for bias in [None, Some(&bias[..])] {
                assert_close(&multiply(dots, x, weight, bias), &truth(&x, &weight, bias), terms);
            }
        }
    }
}

#[test]
fn more_rows_than_a_slab_and_rows_apart() {
    let [rows, terms, outputs] = [super::SLAB + 21, 40, 35];
    let [x_stride, stride] = [3 * terms, terms + 7];
    let (x, weight) = (random(1, rows * x_stride), random(2, outputs * stride));
    let x = Matrix::new(&x[terms..], rows, terms, x_stride);
    let weight = Matrix::new(&weight, outputs, terms, stride);
    for dots in dots() {
        assert_close(&multiply(dots, x, weight, None), &truth(&x, &weight, None), terms);
    }
}

#[test]
fn an_infinite_neighbour_of_a_row_is_not_read() {
    let [rows, terms, outputs] = [5, 19, 3];
    let stride = terms + 1;
    let apart = |seed, rows| {
        let mut data = random(seed, rows * stride);
        data.iter_mut().skip(terms).step_by(stride).for_each(|x| *x = bf16::INFINITY);
        data
    };
    let (x, weight) = (apart(1, rows), apart(2, outputs));
    let x = Matrix::new(&x, rows, terms, stride);
    let weight = Matrix::new(&weight, outputs, terms, stride);
    for dots in dots() {
        assert_close(&multiply(dots, x, weight, None), &truth(&x, &weight, None), terms);
    }
}

#[test]
fn threads_do_not_matter() {
    let [rows, terms, outputs] = [150, 1600, 700];
    let (x, weight, bias) = (random(1, rows * terms), random(2, outputs * terms), normal(3, outputs));
    let x = Matrix::new(&x, rows, terms, terms);
    let weight = Matrix::new(&weight, outputs, terms, terms);
    for dots in dots() {
        crate::testing::assert_same_for_any_threads(|| widen(&multiply(dots, x, weight, Some(&bias))));
    }
}
