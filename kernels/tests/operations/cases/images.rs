//! Operations on images.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use xdit_kernels::{self as own, Activation, Affine, Conv2d, Moments, group_norm_affine, reference};

use crate::setting::{Setting, Version, values};
use crate::truth::{self, Conv};

const SHAPES: [[usize; 4]; 6] =
    [[1, 4, 1, 1], [2, 6, 5, 7], [1, 32, 16, 16], [2, 3, 1, 67], [2, 4, 0, 3], [0, 4, 2, 3]];

fn moments_of(setting: &Setting) -> fn(Tensor<4>, usize) -> Moments {
    match setting.version {
        Version::Reference => reference::group_norm_moments,
        Version::Own => own::group_norm_moments,
    }
}

fn norm_act_of(setting: &Setting) -> fn(Tensor<4>, &Affine, bool) -> Tensor<4> {
    match setting.version {
        Version::Reference => reference::norm_act,
        Version::Own => own::norm_act,
    }
}

/// Scales and shifts in f32, as [`group_norm_affine`] makes them.
fn affine(setting: &Setting, [b, c]: [usize; 2]) -> Affine {
    let numbers = |from: f32| (0..b * c).map(|i| from + (i as f32).cos()).collect();
    let of = |from| setting.typed(numbers(from), [b, c], DType::F32);
    Affine { scale: of(1.5), shift: of(-0.5) }
}

/// `affine(x)`, then SiLU if `act`.
fn applied(x: &Tensor<4>, affine: &Affine, act: bool) -> Vec<f64> {
    let [_, _, rows, cols] = x.dims();
    let (scale, shift) = (values(&affine.scale), values(&affine.shift));
    let of = |(at, x): (usize, f64)| {
        let plane = at / (rows * cols);
        let y = x * scale[plane] + shift[plane];
        if act { truth::activation(Activation::Silu, y) } else { y }
    };
    values(x).into_iter().enumerate().map(of).collect()
}

pub fn group_norm_moments(setting: &Setting) {
    let moments = moments_of(setting);
    for shape @ [b, c, rows, cols] in SHAPES {
        for groups in [1, c] {
            let (x, count) = (setting.normal(1, shape, 0.3, 2.0), c / groups * rows * cols);
            let (mean, deviation) = if b * count == 0 {
                (vec![0.0; b * groups], vec![0.0; b * groups])
            } else {
                truth::moments(&values(&x), b * groups)
            };
            for x in setting.layouts(&x) {
                let got = moments(x, groups);
                assert_eq!(got.count, count);
                setting.close_f32("mean", &got.mean, (&mean, [b, groups]));
                setting.close_f32("deviation", &got.deviation, (&deviation, [b, groups]));
            }
        }
    }

    // A large mean, and numbers whose squares or sums are beyond the range of f16.
    for (case, centre, deviation) in [("large mean", 1e3, 1.0), ("large squares", 500.0, 1000.0)] {
        let x = setting.normal(2, [1, 8, 64, 64], centre, deviation);
        let got = moments(x.clone(), 4);
        let (mean, deviation) = truth::moments(&values(&x), 4);
        setting.close_f32(case, &got.mean, (&mean, [1, 4]));
        setting.close_f32(case, &got.deviation, (&deviation, [1, 4]));
    }

    // The same with channels together, and in as many parts as a unit and a cube take.
    for shape @ [b, c, ..] in [[1, 8, 64, 64], [2, 128, 40, 41], [1, 24, 131, 67]] {
        for (groups, centre, deviation) in [(4, 1e3, 1.0), (8, 0.2, 2.0)] {
            let x = setting.normal(2, shape, centre, deviation);
            let (mean, deviation) = truth::moments(&values(&x), b * groups);
            let got = moments(setting.channels_together(&x), groups);
            assert_eq!(c % groups, 0);
            setting.close_f32("channels together", &got.mean, (&mean, [b, groups]));
            setting.close_f32("channels together", &got.deviation, (&deviation, [b, groups]));
        }
    }

    // An image of a decoder's size: its moments must be those of the same numbers in f32.
    let x = setting.normal(3, [1, 8, 256, 256], 0.5, 4.0);
    let (got, wide) = (moments(x.clone(), 2), moments(x.cast(DType::F32), 2));
    assert_eq!(values(&got.mean), values(&wide.mean));
    assert_eq!(values(&got.deviation), values(&wide.deviation));
    assert!(values(&got.deviation).iter().all(|deviation| deviation.is_finite()));

    // Merged parts equal the whole, even if a part has no rows.
    let x = setting.normal(4, [2, 6, 11, 7], 5.0, 1.0);
    let part = |(first, rows)| moments(setting.narrow(&x, 2, first, rows), 2);
    let merged = [(0, 0), (0, 0), (0, 2), (2, 8), (10, 1), (11, 0)].map(part).into_iter();
    let merged = merged.reduce(Moments::merge).expect("six parts");
    let (mean, deviation) = truth::moments(&values(&x), 4);
    assert_eq!(merged.count, 3 * 11 * 7);
    setting.close_f32("merged mean", &merged.mean, (&mean, [2, 2]));
    setting.close_f32("merged deviation", &merged.deviation, (&deviation, [2, 2]));
}

/// Complete group norm: moments, the affine map derived from them, and its application.
pub fn group_norm(setting: &Setting) {
    let (moments, norm_act) = (moments_of(setting), norm_act_of(setting));
    let [b, c, rows, cols] = [2, 6, 9, 8];
    let (weight, bias) = (setting.random(2, [c]), setting.random(3, [c]));
    let (weights, biases) = (values(&weight), values(&bias));
    for (case, centre, deviation) in [("group norm", 2.0, 1.0), ("squares beyond f16", 0.0, 1000.0)] {
        let x = setting.normal(1, [b, c, rows, cols], centre, deviation);
        let affine = group_norm_affine(moments(x.clone(), 3), weight.clone(), bias.clone(), 1e-6);
        assert_eq!((affine.scale.dtype(), affine.shift.dtype()), (DType::F32, DType::F32));
        let group = c / 3 * rows * cols;
        let of = |_: usize, at: usize| (weights[at], biases[at]);
        // The features of a group, by channel.
        let channel = |row: usize, at: usize| of(row, row % 3 * (c / 3) + at / (rows * cols));
        let expected = truth::norm(&values(&x), group, true, 1e-6, channel);
        setting.close(case, &norm_act(x, &affine, false), (&expected, [b, c, rows, cols]), 1);
    }
}

pub fn norm_act(setting: &Setting) {
    let norm_act = norm_act_of(setting);
    for shape @ [b, c, ..] in SHAPES {
        for act in [false, true] {
            let (x, affine) = (setting.normal(1, shape, 0.5, 3.0), affine(setting, [b, c]));
            let expected = applied(&x, &affine, act);
            for x in setting.layouts(&x) {
                setting.close("scale, shift and SiLU", &norm_act(x, &affine, act), (&expected, shape), 1);
            }
        }
    }
}

/// A convolution, with or without fused operations.
struct Case {
    conv: Conv,
    folded: bool,
}

const fn case(x: [usize; 4], weight: [usize; 4], stride: usize, padding: [usize; 4]) -> Case {
    Case { conv: Conv { x, weight, stride, padding, upsample: false }, folded: true }
}

pub fn conv2d(setting: &Setting) {
    let upsampled = |case: Case| Case { conv: Conv { upsample: true, ..case.conv }, ..case };
    let plain = |case: Case| Case { folded: false, ..case };
    for Case { conv, folded } in [
        plain(case([1, 3, 9, 11], [5, 3, 3, 3], 1, [1; 4])),
        case([1, 3, 9, 11], [5, 3, 3, 3], 1, [1; 4]),
        case([1, 3, 1, 1], [5, 3, 3, 3], 1, [1; 4]),
        // Large enough for Winograd's algorithm.
        case([2, 20, 23, 25], [9, 20, 3, 3], 1, [1; 4]),
        plain(case([1, 40, 16, 37], [12, 40, 1, 1], 1, [0; 4])),
        upsampled(case([2, 3, 5, 7], [5, 3, 3, 3], 1, [1; 4])),
        upsampled(case([1, 3, 9, 11], [5, 3, 3, 3], 1, [0, 0, 1, 1])),
        case([1, 3, 7, 5], [5, 3, 3, 3], 2, [0, 1, 0, 1]),
        case([1, 3, 6, 37], [5, 3, 2, 5], 1, [1, 0, 2, 3]),
        case([0, 3, 6, 7], [5, 3, 3, 3], 1, [1; 4]),
        // Large enough for cuDNN, with and without channels that it takes as they are.
        case([1, 24, 40, 44], [64, 24, 3, 3], 1, [1; 4]),
        case([2, 32, 40, 44], [64, 32, 3, 3], 2, [0, 1, 0, 1]),
        upsampled(case([1, 16, 24, 20], [64, 16, 3, 3], 1, [1; 4])),
        plain(case([1, 40, 128, 130], [3, 40, 3, 3], 1, [1; 4])),
        case([1, 4, 100, 90], [64, 4, 3, 3], 1, [1; 4]),
        plain(case([1, 64, 100, 90], [64, 64, 1, 1], 1, [0; 4])),
    ] {
        let (shape, [b, c_in, ..]) = (conv.result(), conv.x);
        let x = setting.normal(3, conv.x, 0.2, 0.6);
        let norm = folded.then(|| affine(setting, [b, c_in]));
        let residual = folded.then(|| setting.random(6, shape));
        let folding = Conv2d {
            weight: setting.normal(1, conv.weight, 0.0, 0.6),
            bias: folded.then(|| setting.random(2, [conv.weight[0]])),
            stride: conv.stride,
            padding: conv.padding,
            upsample: conv.upsample,
        };
        let normed = norm.as_ref().map_or_else(|| values(&x), |norm| applied(&x, norm, true));
        let bias = folding.bias.as_ref().map(values);
        let mut expected = conv.apply(&normed, &values(&folding.weight), bias.as_deref());
        for (sum, residual) in expected.iter_mut().zip(residual.as_ref().map(values).unwrap_or_default()) {
            *sum += residual;
        }
        for x in setting.layouts(&x) {
            let y = match setting.version {
                Version::Reference => reference::conv2d(&folding, x, norm.as_ref(), residual.clone()),
                Version::Own => own::conv2d(&folding, x, norm.as_ref(), residual.clone()),
            };
            // The reference rounds both the normalised image and the product.
            let name = format!("{:?} by {:?}", conv.x, conv.weight);
            let own = if setting.composed() { 3 } else { 1 };
            setting.close(&name, &y, (&expected, shape), setting.roundings(own, 2 + setting.of_product()));
        }
    }
}

/// The neighbours' rows may have another memory layout than the image itself.
pub fn join_rows(setting: &Setting) {
    if setting.version == Version::Reference {
        return;
    }
    for [b, c, cols] in [[1, 8, 16], [2, 5, 7]] {
        let whole = setting.random(1, [b, c, 9, cols]);
        let part = |first, len| whole.clone().narrow(2, first, len);
        // The image's own rows, and those that it has with its neighbours.
        for (own, all) in [(0..9, 0..9), (2..9, 0..9), (0..8, 0..9), (2..8, 0..9), (3..6, 1..6), (3..6, 3..8)]
        {
            let expected = values(&part(all.start, all.len()));
            let of = |rows: Range<usize>| (!rows.is_empty()).then(|| part(rows.start, rows.len()));
            let (above, below) = (of(all.start..own.start), of(own.end..all.end));
            let x = part(own.start, own.len());
            for x in setting.layouts(&x) {
                let joined = xdit_kernels::join_rows(above.clone(), x, below.clone());
                setting.close("rows", &joined, (&expected, [b, c, all.len(), cols]), 0);
            }
        }
    }
}

pub fn join_channels(setting: &Setting) {
    if setting.version == Version::Reference {
        return;
    }
    for [b, c, d, rows, columns] in [[1, 8, 16, 5, 6], [2, 3, 5, 4, 7], [1, 1, 4, 3, 3]] {
        let (x, y) = (setting.random(1, [b, c, rows, columns]), setting.random(2, [b, d, rows, columns]));
        let expected = values(&Tensor::cat(vec![x.clone(), y.clone()], 1));
        let shape = [b, c + d, rows, columns];
        for (x, y) in setting.layouts(&x).into_iter().zip(setting.layouts(&y)) {
            let together = [&x, &y].map(|image| setting.channels_together(image));
            setting.close("channels", &own::join_channels(x, y), (&expected, shape), 0);
            let [x, y] = together;
            setting.close("channels that lie together", &own::join_channels(x, y), (&expected, shape), 0);
        }
    }
}
