use burn::tensor::Tensor;

use super::{Affine, Moments, cpu, group_norm_affine, group_norm_moments, norm_act};
use crate::cpu::lanes::Level;
use crate::cpu::slice;
use crate::reference;
use crate::testing::{back, flex, tensor};

const SHAPES: [[usize; 4]; 4] = [[1, 4, 1, 1], [2, 6, 5, 7], [1, 32, 16, 16], [2, 3, 1, 67]];

fn image(shape: [usize; 4], centre: f32) -> Tensor<4> {
    let numbers = (0..shape.iter().product::<usize>()).map(|i| centre + (i as f32 * 0.37).sin() * 3.0);
    tensor(numbers.collect(), shape)
}

fn affine([b, c, ..]: [usize; 4]) -> Affine {
    let numbers = |from: f32| (0..b * c).map(|i| from + (i as f32).cos()).collect();
    Affine { scale: tensor(numbers(1.5), [b, c]), shift: tensor(numbers(-0.5), [b, c]) }
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    slice(&flex(tensor.clone()).to_contiguous()).to_vec()
}

/// The CPU version at `level`.
fn norm_act_at(level: Level, x: Tensor<4>, affine: &Affine, act: bool) -> Tensor<4> {
    let [scale, shift] = [&affine.scale, &affine.shift].map(|tensor| flex(tensor.clone()));
    back(cpu::norm_act(level, flex(x), scale, shift, act))
}

/// The largest difference, relative to the largest expected magnitude.
fn error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let greatest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    got.iter().zip(expected).map(|(&g, e)| (f64::from(g) - e).abs()).fold(0.0, f64::max) / greatest
}

fn moments_in_f64(x: &Tensor<4>, groups: usize) -> (Vec<f64>, Vec<f64>) {
    let [b, c, rows, cols] = x.dims();
    let data = values(x).into_iter().map(f64::from).collect::<Vec<_>>();
    let count = c / groups * rows * cols;
    assert_eq!(data.len(), b * groups * count);
    data.chunks(count)
        .map(|group| {
            let mean = group.iter().sum::<f64>() / count as f64;
            (mean, group.iter().map(|x| (x - mean).powi(2)).sum::<f64>())
        })
        .unzip()
}

#[test]
fn moments_agree_with_f64_even_far_from_zero() {
    for shape in SHAPES {
        for (groups, centre) in [(1, 0.0), (shape[1], 0.0), (1, 3e4)] {
            let x = image(shape, centre);
            let (mean, deviation) = moments_in_f64(&x, groups);
            for &level in Level::available() {
                let (got_mean, got_deviation) = cpu::moments::<f32>(level, flex(x.clone()), groups);
                let apart = error(slice(&got_mean), &mean);
                assert!(apart <= 1e-7, "{apart:e} of the mean at {level:?} of {shape:?}");
                if shape[1] / groups * shape[2] * shape[3] > 1 {
                    let apart = error(slice(&got_deviation), &deviation);
                    assert!(apart <= 1e-6, "{apart:e} of the deviation at {level:?} of {shape:?}");
                }
            }
        }
    }
}

#[test]
fn uneven_rows_of_three_ranks_merge_to_the_moments_of_the_whole() {
    let x = image([2, 6, 11, 7], 5.0);
    let (mean, deviation) = moments_in_f64(&x, 2);
    let merged = [(0, 2), (2, 8), (10, 1)]
        .map(|(start, rows)| group_norm_moments(x.clone().narrow(2, start, rows), 2))
        .into_iter()
        .reduce(Moments::merge)
        .expect("three");
    assert_eq!(merged.count, 3 * 11 * 7);
    assert!(error(&values(&merged.mean), &mean) <= 3e-7);
    assert!(error(&values(&merged.deviation), &deviation) <= 3e-7);
}

#[test]
fn affine_of_moments_normalises() {
    let (x, c) = (image([2, 6, 9, 8], 2.0), 6);
    let ones = || tensor(vec![1.0; c], [c]);
    let affine = group_norm_affine(group_norm_moments(x.clone(), 3), ones(), ones(), 0.0);
    let y = group_norm_moments(norm_act(x, &affine, false), 3);
    for (mean, deviation) in values(&y.mean).into_iter().zip(values(&y.deviation)) {
        assert!((mean - 1.0).abs() <= 1e-6, "mean {mean}");
        assert!((deviation / y.count as f32 - 1.0).abs() <= 1e-5, "deviation {deviation} of {}", y.count);
    }
}

#[test]
fn norm_act_agrees_with_the_reference_in_place_and_apart() {
    for shape in SHAPES {
        for act in [false, true] {
            let (x, affine) = (image(shape, 0.5), affine(shape));
            let expected = values(&reference::norm_act(x.clone(), &affine, act));
            let expected = expected.into_iter().map(f64::from).collect::<Vec<_>>();
            let before = values(&x);
            for &level in Level::available() {
                let apart = norm_act_at(level, x.clone(), &affine, act);
                assert_eq!(values(&x), before, "a shared tensor changed");
                assert!(error(&values(&apart), &expected) <= 1e-6, "{level:?} {shape:?} {act}");
                let own = tensor(before.clone(), shape);
                let address = slice(&flex(own.clone())).as_ptr();
                let own = norm_act_at(level, own, &affine, act);
                assert_eq!(slice(&flex(own.clone())).as_ptr(), address, "not in place");
                assert_eq!(values(&own), values(&apart));
            }
        }
    }
}

#[test]
fn silu_is_exact_to_f32_over_its_whole_range() {
    let xs = (-1000..=1000).map(|i| i as f32 * 0.1).collect::<Vec<_>>();
    let affine = Affine { scale: tensor(vec![1.0], [1, 1]), shift: tensor(vec![0.0], [1, 1]) };
    for &level in Level::available() {
        let y = norm_act_at(level, tensor(xs.clone(), [1, 1, 1, xs.len()]), &affine, true);
        for (&x, y) in xs.iter().zip(values(&y)) {
            let exact = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            let apart = (f64::from(y) - exact).abs();
            assert!(apart <= 4e-7 * exact.abs() + 1e-35, "silu({x}) = {y:e}, not {exact:e} at {level:?}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let results = [1, 2, 5].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        let x = image([2, 12, 33, 35], 0.1);
        pool.install(|| {
            let moments = group_norm_moments(x.clone(), 4);
            let y = norm_act(x, &affine([2, 12, 33, 35]), true);
            (values(&moments.mean), values(&moments.deviation), values(&y))
        })
    });
    assert!(results[0] == results[1] && results[0] == results[2]);
}
