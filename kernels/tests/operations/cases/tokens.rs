//! Operations on tokens.

use burn::tensor::{DType, Tensor};
use xdit_kernels::{self as own, reference};

use crate::cases::ACTIVATIONS;
use crate::setting::{Setting, Version, values};
use crate::truth;

/// Images, tokens and features: single tokens, odd sizes, no tokens, no images.
const TOKENS: [[usize; 3]; 6] = [[1, 1, 1], [1, 1, 64], [2, 7, 33], [3, 40, 72], [2, 0, 16], [0, 3, 16]];

const EPS: f64 = 1e-6;

/// The signature of both versions of attention.
type Attention = fn(Tensor<4>, Tensor<4>, Tensor<4>, Option<Tensor<4>>, f32) -> (Tensor<4>, Tensor<3>);

fn attention_of(setting: &Setting) -> Attention {
    match setting.version {
        Version::Reference => reference::attention_lse,
        Version::Own => own::attention_lse,
    }
}

/// The signature of both versions of the merge.
type Merge = fn((Tensor<4>, Tensor<3>), (Tensor<4>, Tensor<3>)) -> (Tensor<4>, Tensor<3>);

fn merge_of(setting: &Setting) -> Merge {
    match setting.version {
        Version::Reference => reference::merge_lse,
        Version::Own => own::merge_lse,
    }
}

pub fn attention(setting: &Setting) {
    let attend = attention_of(setting);
    // A single token, odd sizes, many keys, no queries, no images.
    for [b, nq, nk, h, d] in [
        [1, 1, 1, 1, 1],
        [2, 3, 5, 2, 12],
        [1, 17, 65, 3, 72],
        [2, 49, 77, 2, 40],
        [1, 5, 700, 1, 64],
        [1, 9, 72, 1, 512],
        [2, 9, 20, 1, 512],
        [1, 0, 5, 2, 16],
        [0, 4, 5, 2, 16],
    ] {
        let [q, k, v] = [(1, nq), (2, nk), (3, nk)].map(|(seed, n)| setting.random(seed, [b, n, h, d]));
        let scale = (d as f32).powf(-0.5);
        let (out, lse) = truth::attention([&q, &k, &v], None, scale);
        let layouts = setting.layouts(&q).into_iter().zip(setting.layouts(&k)).zip(setting.layouts(&v));
        for ((q, k), v) in layouts {
            let (got, got_lse) = attend(q, k, v, None, scale);
            setting.close("attention", &got, (&out, [b, nq, h, d]), 1);
            setting.close_f32("log-sum-exp", &got_lse, (&lse, [b, nq, h]));
        }
    }

    let [b, nq, nk, h, d] = [2, 6, 70, 3, 24];
    let [q, k, v] = [(1, nq), (2, nk), (3, nk)].map(|(seed, n)| setting.random(seed, [b, n, h, d]));

    // A bias is broadcast along dimensions of size 1.
    for shape in [[b, h, nq, nk], [1, 1, nq, nk], [b, 1, 1, nk], [1, h, nq, 1]] {
        let bias = setting.random(4, shape);
        let whole = values(&bias.clone().expand([b, h, nq, nk]));
        let (out, lse) = truth::attention([&q, &k, &v], Some(&whole), 0.2);
        for bias in setting.layouts(&bias) {
            let (got, got_lse) = attend(q.clone(), k.clone(), v.clone(), Some(bias), 0.2);
            setting.close("bias", &got, (&out, [b, nq, h, d]), 1);
            setting.close_f32("bias", &got_lse, (&lse, [b, nq, h]));
        }
    }

    // Masked keys do not contribute. A query with every key masked gets zeros and -inf.
    let mask = |key: usize, query: usize| query == 2 || (query < 4 && key >= 5) || key == 69;
    let bias = (0..nq * nk).map(|at| if mask(at % nk, at / nk) { f32::NEG_INFINITY } else { 0.0 });
    let bias = setting.tensor(bias.collect(), [1, 1, nq, nk]);
    let whole = values(&bias.clone().expand([b, h, nq, nk]));
    let (out, lse) = truth::attention([&q, &k, &v], Some(&whole), 0.2);
    let (got, got_lse) = attend(q.clone(), k.clone(), v.clone(), Some(bias), 0.2);
    setting.close("masks", &got, (&out, [b, nq, h, d]), 1);
    assert_masked(setting, &values(&got), &values(&got_lse), &lse, d);

    // The same holds for a query without keys.
    let none = || setting.random(5, [b, 0, h, d]);
    let (got, got_lse) = attend(q.clone(), none(), none(), None, 0.2);
    assert_eq!((got.dims(), got_lse.dims()), ([b, nq, h, d], [b, nq, h]));
    assert_eq!((got.dtype(), got_lse.dtype()), (setting.dtype, DType::F32));
    assert_masked(setting, &values(&got), &values(&got_lse), &vec![f64::NEG_INFINITY; b * nq * h], d);

    // Products beyond the range of f16, with scores within it.
    let large = |seed, n| setting.normal(seed, [1, n, 2, 64], 40.0, 4.0);
    let (q, k, v) = (large(1, 9), large(2, 33), large(3, 33));
    let (out, lse) = truth::attention([&q, &k, &v], None, 1e-3);
    let (got, got_lse) = attend(q, k, v, None, 1e-3);
    setting.close("large products", &got, (&out, [1, 9, 2, 64]), 1);
    setting.close_f32("large products", &got_lse, (&lse, [1, 9, 2]));
}

/// Asserts zeros and -inf where `expected` is -inf, and accurate finite logarithms elsewhere.
fn assert_masked(setting: &Setting, out: &[f64], lse: &[f64], expected: &[f64], d: usize) {
    assert_eq!(lse.len(), expected.len());
    for ((&lse, &expected), out) in lse.iter().zip(expected).zip(out.chunks(d)) {
        if expected == f64::NEG_INFINITY {
            assert_eq!(lse, f64::NEG_INFINITY);
            assert!(out.iter().all(|&x| x == 0.0), "{out:?} of no keys");
        } else {
            let allowed = setting.f32_tolerance() * expected.abs().max(1.0);
            assert!((lse - expected).abs() <= allowed, "{lse} instead of {expected}");
        }
    }
}

pub fn merge(setting: &Setting) {
    let (attend, merge) = (attention_of(setting), merge_of(setting));
    let [b, nq, nk, h, d] = [2, 9, 150, 3, 24];
    let [q, k, v] = [(1, nq), (2, nk), (3, nk)].map(|(seed, n)| setting.random(seed, [b, n, h, d]));
    let part = |from: usize, to: usize| {
        let [k, v] = [&k, &v].map(|x| setting.narrow(x, 1, from, to - from));
        attend(q.clone(), k, v, None, 0.2)
    };
    let (out, lse) = truth::attention([&q, &k, &v], None, 0.2);
    let (got, got_lse) = merge(merge(part(0, 1), part(1, 90)), part(90, nk));
    // The parts are rounded, and so is each merge; only the last merge combines all keys.
    setting.close("parts of the keys", &got, (&out, [b, nq, h, d]), 3);
    setting.close_f32("parts of the keys", &got_lse, (&lse, [b, nq, h]));

    // The result is the same in every layout.
    let (first, second) = (part(0, 70), part(70, nk));
    let (out, lse) = merge(first.clone(), second.clone());
    for (x, y) in setting.layouts(&first.0).into_iter().zip(setting.layouts(&second.0)) {
        let (got, got_lse) = merge((x, first.1.clone()), (y, second.1.clone()));
        assert_eq!(values(&got), values(&out));
        assert_eq!(values(&got_lse), values(&lse));
    }

    // A part without keys is neutral, even to another one.
    let empty = || part(0, 0);
    for whole in [merge(empty(), part(0, nk)), merge(part(0, nk), empty())] {
        assert_eq!(values(&whole.0), values(&part(0, nk).0));
        assert_eq!(values(&whole.1), values(&part(0, nk).1));
    }
    let (got, got_lse) = merge(empty(), empty());
    assert_eq!((got.dtype(), got_lse.dtype()), (setting.dtype, DType::F32));
    assert!(values(&got).iter().all(|&x| x == 0.0));
    assert!(values(&got_lse).iter().all(|&x| x == f64::NEG_INFINITY));

    // No queries.
    let nothing = || (setting.random(1, [b, 0, h, d]), setting.typed(vec![], [b, 0, h], DType::F32));
    assert_eq!(merge(nothing(), nothing()).0.dims(), [b, 0, h, d]);
}

/// Parts of one tensor, which are joined without copying, and others, which are not.
pub fn join(setting: &Setting) {
    if setting.version == Version::Reference {
        return;
    }
    let (b, n, m, d) = (1, 64, 192, 128);
    for b in [b, 2] {
        let whole = setting.random(1, [b, n + m, d]);
        let expected = values(&whole);
        let part = |first, len| whole.clone().narrow(1, first, len);
        setting.close("neighbours", &own::join(part(0, n), part(n, m)), (&expected, [b, n + m, d]), 0);
        let apart = setting.tensor(values(&part(n, m)).iter().map(|&x| x as f32).collect(), [b, m, d]);
        setting.close("others", &own::join(part(0, n), apart), (&expected, [b, n + m, d]), 0);
        // In the wrong order, with a gap, and overlapping.
        for [(first, len), (second, rest)] in [[(n, m), (0, n)], [(0, n), (2 * n, n)], [(0, 2 * n), (n, n)]] {
            let joined = own::join(part(first, len), part(second, rest));
            let of = |from, len| values(&part(from, len));
            let rows = d * (len + rest);
            let (a, c) = (of(first, len), of(second, rest));
            let expected: Vec<f64> = (0..b)
                .flat_map(|i| [&a[i * len * d..][..len * d], &c[i * rest * d..][..rest * d]].concat())
                .collect();
            assert_eq!(expected.len(), b * rows);
            setting.close("in another order", &joined, (&expected, [b, len + rest, d]), 0);
        }
    }
}

pub fn join_grid(setting: &Setting) {
    if setting.version == Version::Reference {
        return;
    }
    // Tokens of each list, and heads of each part; a single list, single parts, odd sizes.
    for (tokens, heads, d) in [
        (vec![5, 3], vec![vec![2, 4], vec![3, 3]], 64),
        (vec![7], vec![vec![1, 2, 1]], 72),
        (vec![4, 1, 9], vec![vec![3], vec![3], vec![3]], 128),
        (vec![2, 3], vec![vec![1], vec![1]], 7),
    ] {
        for b in [1, 2] {
            let (n, h) = (tokens.iter().sum(), heads[0].iter().sum());
            let whole = setting.random(1, [b, n, h, d]);
            let mut token = 0;
            // Parts of the whole, with gaps between their heads, and parts that lie alone.
            let mut lists = [Vec::new(), Vec::new()];
            for (&n, heads) in tokens.iter().zip(&heads) {
                let mut head = 0;
                let rows: Vec<_> = heads
                    .iter()
                    .map(|&h| {
                        head += h;
                        let part = whole.clone().narrow(1, token, n).narrow(2, head - h, h);
                        let alone = values(&part).iter().map(|&x| x as f32).collect();
                        [part, setting.tensor(alone, [b, n, h, d])]
                    })
                    .collect();
                token += n;
                for (which, list) in lists.iter_mut().enumerate() {
                    list.push(rows.iter().map(|parts| parts[which].clone()).collect());
                }
            }
            for list in lists {
                setting.close("grid", &own::join_grid(list), (&values(&whole), [b, n, h, d]), 0);
            }
        }
    }
}

pub fn split_heads(setting: &Setting) {
    if setting.version == Version::Reference {
        return;
    }
    for (heads, d) in [([2, 3, 1], 64), ([4, 4, 4], 72), ([1, 2, 1], 5), ([5, 3, 2], 16)] {
        let [b, n, h] = [2, 9, heads.iter().sum()];
        let x = setting.random(1, [b, n, h, d]);
        for x in setting.layouts(&x) {
            let parts = own::split_heads(x.clone(), heads);
            let mut first = 0;
            for (part, heads) in parts.into_iter().zip(heads) {
                let expected = values(&x.clone().narrow(2, first, heads));
                first += heads;
                setting.close("heads", &part, (&expected, [b, n, heads, d]), 0);
                // Kernels read the part where it lies.
                let normed = own::rms_norm(part, None, EPS);
                let expected = truth::norm(&expected, d, false, EPS, |_, _| (1.0, 0.0));
                setting.close("norm of heads", &normed, (&expected, [b, n, heads, d]), 1);
            }
        }
    }
}

pub fn layer_norm(setting: &Setting) {
    let norm = match setting.version {
        Version::Reference => reference::layer_norm,
        Version::Own => own::layer_norm,
    };
    for shape @ [_, _, c] in TOKENS {
        let x = setting.random(1, shape);
        let (weight, bias) = (setting.random(2, [c]), setting.random(3, [c]));
        for (weight, bias) in [
            (Some(weight.clone()), Some(bias.clone())),
            (Some(weight), None),
            (None, Some(bias.clone())),
            // A row of one feature equals its mean, so only the bias remains.
            (None, (c == 1).then_some(bias)),
        ] {
            let affine = [&weight, &bias].map(|parameter| parameter.as_ref().map(values));
            let of = |i: usize, f: usize, other: f64| affine[i].as_ref().map_or(other, |values| values[f]);
            let expected = truth::norm(&values(&x), c, true, EPS, |_, f| (of(0, f, 1.0), of(1, f, 0.0)));
            for x in setting.layouts(&x) {
                let y = norm(x, weight.clone(), bias.clone(), EPS);
                setting.close("layer norm", &y, (&expected, shape), 1);
            }
        }
    }
    let plain = |x: &Tensor<3>| truth::norm(&values(x), x.dims()[2], true, EPS, |_, _| (1.0, 0.0));
    for (case, centre, deviation) in
        [("a mean beside which f32 keeps four digits", 1000.0, 1.0), ("squares beyond f16", 0.0, 3000.0)]
    {
        let x = setting.normal(4, [1, 4, 1152], centre, deviation);
        let y = norm(x.clone(), None, None, EPS);
        setting.close(case, &y, (&plain(&x), [1, 4, 1152]), 1);
    }
    // Rows without deviation.
    let x = setting.tensor(vec![3.0; 2 * 5 * 64], [2, 5, 64]);
    assert!(values(&norm(x, None, None, EPS)).iter().all(|&y| y == 0.0));
}

pub fn layer_norm_modulate(setting: &Setting) {
    let norm = match setting.version {
        Version::Reference => reference::layer_norm_modulate,
        Version::Own => own::layer_norm_modulate,
    };
    for shape @ [b, n, c] in TOKENS {
        for images in if b > 1 { vec![1, b] } else { vec![1] } {
            // The parameters are slices of one projection.
            let six = setting.random(2, [images, 1, 6 * c]);
            let [shift, scale] = [1, 4].map(|part| six.clone().narrow(2, part * c, c));
            let (shifts, scales) = (values(&shift), values(&scale));
            let affine = |row: usize, f: usize| {
                let at = if images == 1 { f } else { row / n * c + f };
                (1.0 + scales[at], shifts[at])
            };
            let x = setting.random(1, shape);
            let expected = truth::norm(&values(&x), c, true, EPS, affine);
            for x in setting.layouts(&x) {
                let y = norm(x, shift.clone(), scale.clone(), EPS);
                setting.close("modulation", &y, (&expected, shape), 1);
            }
        }
    }
    let zeros = || setting.tensor(vec![0.0; 1152], [1, 1, 1152]);
    for (case, centre, deviation) in [("large mean", 1000.0, 1.0), ("squares beyond f16", 0.0, 3000.0)] {
        let x = setting.normal(4, [1, 4, 1152], centre, deviation);
        let expected = truth::norm(&values(&x), 1152, true, EPS, |_, _| (1.0, 0.0));
        setting.close(case, &norm(x, zeros(), zeros(), EPS), (&expected, [1, 4, 1152]), 1);
    }
}

pub fn rms_norm(setting: &Setting) {
    let norm = match setting.version {
        Version::Reference => reference::rms_norm::<4>,
        Version::Own => own::rms_norm::<4>,
    };
    for shape @ [.., d] in [[1, 1, 1, 1], [2, 7, 3, 72], [1, 3, 5, 33], [2, 0, 3, 16]] {
        let (x, weight) = (setting.random(1, shape), setting.random(2, [d]));
        for weight in [None, Some(weight)] {
            let scale = weight.as_ref().map(values);
            let of = |f: usize| scale.as_ref().map_or(1.0, |scale| scale[f]);
            let expected = truth::norm(&values(&x), d, false, EPS, |_, f| (of(f), 0.0));
            for x in setting.layouts(&x) {
                setting.close("rms norm", &norm(x, weight.clone(), EPS), (&expected, shape), 1);
            }
        }
    }
    let x = setting.normal(4, [1, 4, 1, 1152], 0.0, 3000.0);
    let expected = truth::norm(&values(&x), 1152, false, EPS, |_, _| (1.0, 0.0));
    setting.close("squares beyond f16", &norm(x, None, EPS), (&expected, [1, 4, 1, 1152]), 1);
    let zeros = setting.tensor(vec![0.0; 64], [1, 1, 1, 64]);
    assert!(values(&norm(zeros, None, EPS)).iter().all(|&y| y == 0.0));
}

/// Shapes with several numbers. A single number far below zero, where activations vanish, would have hardly any
/// correct digits.
const SEVERAL: [[usize; 3]; 5] = [[1, 1, 64], [2, 7, 33], [3, 40, 72], [2, 0, 16], [0, 3, 16]];

pub fn activate(setting: &Setting) {
    for activation in ACTIVATIONS {
        let run = |x: Tensor<3>| match setting.version {
            Version::Reference => reference::activate(activation, x),
            Version::Own => own::activate(activation, x),
        };
        for shape in SEVERAL {
            let x = setting.normal(1, shape, 0.0, 3.0);
            let expected: Vec<_> = values(&x).iter().map(|&x| truth::activation(activation, x)).collect();
            for x in setting.layouts(&x) {
                setting.close(&format!("{activation:?}"), &run(x), (&expected, shape), 1);
            }
        }
        // Numbers of both signs whose cubes are beyond the range of f16.
        let x = setting.tensor(vec![-60000.0, -300.0, -41.0, 0.0, 41.0, 300.0, 60000.0], [1, 1, 7]);
        let expected: Vec<_> = values(&x).iter().map(|&x| truth::activation(activation, x)).collect();
        setting.close(&format!("{activation:?} of large numbers"), &run(x), (&expected, [1, 1, 7]), 1);
    }
}

pub fn gated_activate(setting: &Setting) {
    for activation in ACTIVATIONS {
        for shape @ [b, n, c] in SEVERAL {
            // The halves of one projection.
            let both = setting.normal(1, [b, n, 2 * c], 0.0, 3.0);
            let [gate, x] = [0, c].map(|first| both.clone().narrow(2, first, c));
            let pairs = values(&gate).into_iter().zip(values(&x));
            let expected: Vec<_> = pairs.map(|(gate, x)| truth::activation(activation, gate) * x).collect();
            for (gate, x) in setting.layouts(&gate).into_iter().zip(setting.layouts(&x)) {
                let y = match setting.version {
                    Version::Reference => reference::gated_activate(activation, gate, x),
                    Version::Own => own::gated_activate(activation, gate, x),
                };
                setting.close(&format!("{activation:?}"), &y, (&expected, shape), 1);
            }
        }
    }
}

pub fn gated_residual(setting: &Setting) {
    let add = match setting.version {
        Version::Reference => reference::gated_residual,
        Version::Own => own::gated_residual,
    };
    for shape @ [b, n, c] in TOKENS {
        for images in if b > 1 { vec![1, b] } else { vec![1] } {
            let (x, y) = (setting.random(1, shape), setting.random(2, shape));
            let gate = setting.random(3, [images, 1, 3 * c]).narrow(2, c, c);
            let gates = values(&gate);
            let of = |at: usize| gates[if images == 1 { at % c } else { at / (n * c) * c + at % c }];
            let terms = values(&x).into_iter().zip(values(&y)).enumerate();
            let expected: Vec<_> = terms.map(|(at, (x, y))| x + of(at) * y).collect();
            for (x, y) in setting.layouts(&x).into_iter().zip(setting.layouts(&y)) {
                setting.close("gated residual", &add(x, gate.clone(), y), (&expected, shape), 1);
            }
            // A tensor may be added to itself.
            let of_itself = values(&x).into_iter().enumerate();
            let expected: Vec<_> = of_itself.map(|(at, x)| x + of(at) * x).collect();
            setting.close("itself", &add(x.clone(), gate, x), (&expected, shape), 1);
        }
    }
}

pub fn rotary(setting: &Setting) {
    for shape @ [_, n, _, d] in [[1, 1, 1, 2], [2, 7, 3, 18], [1, 33, 5, 64], [2, 0, 3, 16]] {
        let (x, angles) = (setting.random(1, shape), values(&setting.random(2, [n, d / 2])));
        let table = |of: fn(f64) -> f64| {
            let numbers = angles.iter().map(|&angle| of(3.0 * angle) as f32).collect();
            setting.typed(numbers, [n, d / 2], DType::F32)
        };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let expected = truth::rotary(&values(&x), shape, &values(&cos), &values(&sin));
        for x in setting.layouts(&x) {
            let y = match setting.version {
                Version::Reference => reference::rotary(x, cos.clone(), sin.clone()),
                Version::Own => own::rotary(x, cos.clone(), sin.clone()),
            };
            setting.close("rotary", &y, (&expected, shape), 1);
        }
    }
}

pub fn norm_rotary(setting: &Setting) {
    for shape @ [b, n, h, d] in [[1, 1, 1, 2], [2, 7, 3, 18], [1, 33, 5, 64], [2, 9, 4, 128], [2, 0, 3, 16]] {
        let (x, angles) = (setting.random(1, shape), values(&setting.random(2, [n, d / 2])));
        let table = |of: fn(f64) -> f64| {
            let numbers = angles.iter().map(|&angle| of(3.0 * angle) as f32).collect();
            setting.typed(numbers, [n, d / 2], DType::F32)
        };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let (weight, bias) = (setting.random(3, [d]), setting.random(4, [d]));
        let affine = [&weight, &bias].map(values);
        let turned = |centre, affine: &dyn Fn(usize) -> (f64, f64)| {
            let normed = truth::norm(&values(&x), d, centre, EPS, |_, f| affine(f));
            truth::rotary(&normed, shape, &values(&cos), &values(&sin))
        };
        let of_rms = turned(false, &|f| (affine[0][f], 0.0));
        let of_layer = turned(true, &|f| (affine[0][f], affine[1][f]));
        for x in setting.layouts(&x).into_iter().chain([among_other_heads(setting, &x, [b, n, h, d])]) {
            let (cos, sin, weight) = (|| cos.clone(), || sin.clone(), || Some(weight.clone()));
            let (rms, layer) = match setting.version {
                Version::Reference => (
                    reference::rms_norm_rotary(x.clone(), weight(), EPS, cos(), sin()),
                    reference::layer_norm_rotary(x, weight(), Some(bias.clone()), EPS, cos(), sin()),
                ),
                Version::Own => (
                    own::rms_norm_rotary(x.clone(), weight(), EPS, cos(), sin()),
                    own::layer_norm_rotary(x, weight(), Some(bias.clone()), EPS, cos(), sin()),
                ),
            };
            setting.close("RMS norm + rotary", &rms, (&of_rms, shape), 1);
            setting.close("layer norm + rotary", &layer, (&of_layer, shape), 1);
        }
    }
}

/// The same heads in the middle of others, as in a joined projection of queries, keys and values.
fn among_other_heads(setting: &Setting, x: &Tensor<4>, [b, n, h, d]: [usize; 4]) -> Tensor<4> {
    let others = |seed| setting.random(seed, [b, n, h, d]);
    own::split_heads(Tensor::cat(vec![others(5), x.clone(), others(6)], 2), [h; 3])[1].clone()
}

pub fn rms_norm_pair(setting: &Setting) {
    if setting.version == Version::Reference {
        return;
    }
    for [b, of_first, of_second, h, d] in [[1, 5, 12, 3, 64], [2, 7, 9, 2, 72], [3, 1, 4, 5, 18]] {
        let streams = [setting.random(1, [b, of_first, h, d]), setting.random(2, [b, of_second, h, d])];
        let weights = [3, 4].map(|seed| setting.random(seed, [d]));
        let angles = values(&setting.random(5, [of_second, d / 2]));
        let table = |of: fn(f64) -> f64| {
            let numbers = angles.iter().map(|&angle| of(3.0 * angle) as f32).collect();
            setting.typed(numbers, [of_second, d / 2], DType::F32)
        };
        let tables = [table(f64::cos), table(f64::sin)];
        let normed = [0, 1].map(|at: usize| {
            let weight = values(&weights[at]);
            truth::norm(&values(&streams[at]), d, false, EPS, |_, f| (weight[f], 0.0))
        });
        let [cos, sin] = tables.each_ref().map(values);
        let turned = truth::rotary(&normed[1], [b, of_second, h, d], &cos, &sin);
        for (first, second) in setting.layouts(&streams[0]).into_iter().zip(setting.layouts(&streams[1])) {
            for (rotary, expected) in [(None, &normed[1]), (Some(tables.clone()), &turned)] {
                let pair = [first.clone(), second.clone()];
                let [first, second] = own::rms_norm_pair(pair, weights.clone(), EPS, rotary);
                setting.close("the first stream", &first, (&normed[0], [b, of_first, h, d]), 1);
                setting.close("the second stream", &second, (expected, [b, of_second, h, d]), 1);
                // The features of tokens that are a part of a tensor.
                let features = own::merge_heads(second.clone());
                setting.close("features", &features, (&values(&second), [b, of_second, h * d]), 0);
                let joined = own::join(first.clone(), second.clone());
                let expected = values(&Tensor::cat(vec![first, second], 1));
                setting.close("joined", &joined, (&expected, [b, of_first + of_second, h, d]), 0);
            }
        }
    }
}

pub fn write_tokens(setting: &Setting) {
    if setting.version == Version::Reference {
        return;
    }
    for [b, n, m, first, h, d] in [[1, 9, 4, 3, 2, 64], [2, 7, 7, 0, 3, 18], [2, 12, 1, 11, 1, 7]] {
        let (whole, part) = (setting.random(1, [b, n, h * d]), setting.random(2, [b, m, h, d]));
        let features = part.clone().reshape([b, m, h * d]);
        let expected = values(&whole.clone().slice_assign([0..b, first..first + m, 0..h * d], features));
        for part in setting.layouts(&part) {
            // Others hold the whole, or nobody does.
            let shared = own::write_tokens(whole.clone(), first, part.clone());
            setting.close("shared", &shared, (&expected, [b, n, h * d]), 0);
            let alone = setting.tensor(values(&whole).iter().map(|&x| x as f32).collect(), [b, n, h * d]);
            let written = own::write_tokens(alone, first, part.clone());
            setting.close("alone", &written, (&expected, [b, n, h * d]), 0);
            let together = own::contiguous(part.clone());
            setting.close("without gaps", &together, (&values(&part), [b, m, h, d]), 0);
        }
    }
}
