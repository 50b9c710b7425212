use burn::tensor::Tensor;
use proptest::prelude::*;

use super::{attention_lse, cpu, merge_lse};
use crate::testing::{
    assert_close, assert_same_for_any_threads, back, flex, random, relative_error, tensor, values,
};
use crate::{cpu::lanes::Level, reference};

/// For scores of a few units, each accurate to about 2e-7, and sums over blocks of 64.
const TOLERANCE: f64 = 1e-6;

/// The CPU version at `level`.
fn at_level(
    level: Level,
    [q, k, v]: [&Tensor<4>; 3],
    bias: Option<Tensor<4>>,
    scale: f32,
) -> (Tensor<4>, Tensor<3>) {
    let [q, k, v] = [q, k, v].map(|x| flex(x.clone()));
    let (out, lse) = cpu::attention_lse(level, q, k, v, bias.map(flex), scale);
    (back(out), back(lse))
}

/// Attention and log-sum-exp in f64. `bias` is called with image, head, query and key.
pub(super) fn truth(
    [q, k, v]: [&Tensor<4>; 3],
    scale: f32,
    bias: impl Fn([usize; 4]) -> f32,
) -> (Vec<f64>, Vec<f64>) {
    let ([b, nq, h, d], nk) = (q.dims(), k.dims()[1]);
    let [q, k, v] = [q, k, v].map(|x| values(x.clone()).into_iter().map(f64::from).collect::<Vec<_>>());
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for (image, i, head) in (0..b * nq * h).map(|at| (at / h / nq, at / h % nq, at % h)) {
        let query = &q[((image * nq + i) * h + head) * d..][..d];
        let row = |x: usize| ((image * nk + x) * h + head) * d;
        let scores: Vec<f64> = (0..nk)
            .map(|j| {
                let dot: f64 = query.iter().zip(&k[row(j)..]).map(|(q, k)| q * k).sum();
                dot * f64::from(scale) + f64::from(bias([image, head, i, j]))
            })
            .collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        lse.push(max + sum.ln());
        out.extend(
            (0..d).map(|f| (0..nk).map(|j| (scores[j] - max).exp() / sum * v[row(j) + f]).sum::<f64>()),
        );
    }
    (out, lse)
}

fn check((out, lse): (Tensor<4>, Tensor<3>), (true_out, true_lse): (Vec<f64>, Vec<f64>)) {
    let error = relative_error(&values(out), true_out);
    assert!(error <= TOLERANCE, "{error:.2e} of the result");
    for (lse, truth) in values(lse).into_iter().zip(true_lse) {
        assert!((f64::from(lse) - truth).abs() <= 1e-6 * truth.abs().max(1.0), "{lse} instead of {truth}");
    }
}

#[test]
fn agrees_with_f64_for_any_head_and_any_number_of_tokens() {
    for &level in Level::available() {
        for [nq, nk, h, d] in [
            [1, 1, 1, 1],
            [1, 64, 2, 64],
            [3, 5, 2, 12],
            [16, 63, 1, 72],
            [17, 65, 3, 80],
            [48, 128, 1, 128],
            [49, 77, 2, 72],
            [193, 200, 1, 40],
            [400, 33, 1, 7],
        ] {
            let (q, k, v) = (random(1, [2, nq, h, d]), random(2, [2, nk, h, d]), random(3, [2, nk, h, d]));
            let scale = (d as f32).powf(-0.5);
            let expected = truth([&q, &k, &v], scale, |_| 0.0);
            check(at_level(level, [&q, &k, &v], None, scale), expected);
        }
    }
}

#[test]
fn four_thousand_keys_agree_with_f64() {
    let (q, k, v) = (random(1, [1, 20, 2, 72]), random(2, [1, 4096, 2, 72]), random(3, [1, 4096, 2, 72]));
    let expected = truth([&q, &k, &v], 0.12, |_| 0.0);
    for &level in Level::available() {
        check(at_level(level, [&q, &k, &v], None, 0.12), expected.clone());
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let (q, k, v) = (random(1, [1, 30, 2, 64]), random(2, [1, 100, 2, 64]), random(3, [1, 100, 2, 64]));
    for &level in Level::available() {
        let (out, lse) = at_level(level, [&q, &k, &v], None, 20.0);
        let (expected, expected_lse) = truth([&q, &k, &v], 20.0, |_| 0.0);
        // Scores near 500 are accurate to 3e-5, and so are their exponentials.
        assert!(relative_error(&values(out), expected) < 1e-4);
        assert!(relative_error(&values(lse), expected_lse) < 1e-6);
    }
}

#[test]
fn views_of_a_fused_projection_are_read_as_they_lie() {
    let fused = random(4, [2, 70, 9, 20]);
    let view = |i: usize| fused.clone().slice([0..2, 0..70, 3 * i..3 * i + 3, 0..20]);
    let contiguous = |i: usize| tensor(values(view(i)), [2, 70, 3, 20]);
    let heads_first =
        |i: usize| tensor(values(contiguous(i).swap_dims(1, 2)), [2, 3, 70, 20]).swap_dims(1, 2);
    let features_apart =
        |i: usize| tensor(values(contiguous(i).swap_dims(1, 3)), [2, 20, 3, 70]).swap_dims(1, 3);
    let (out, lse) = attention_lse(contiguous(0), contiguous(1), contiguous(2), None, 0.2);
    for same in [
        attention_lse(view(0), view(1), view(2), None, 0.2),
        attention_lse(heads_first(0), heads_first(1), heads_first(2), None, 0.2),
        attention_lse(features_apart(0), features_apart(1), features_apart(2), None, 0.2),
    ] {
        assert_eq!(values(same.0), values(out.clone()));
        assert_eq!(values(same.1), values(lse.clone()));
    }
}

#[test]
fn a_bias_is_repeated_where_its_size_is_one() {
    let [b, h, nq, nk] = [2, 3, 50, 70];
    let (q, k, v) = (random(1, [b, nq, h, 24]), random(2, [b, nk, h, 24]), random(3, [b, nk, h, 24]));
    for (level, sizes) in
        Level::available().iter().flat_map(|&level| (0..16).map(move |sizes| (level, sizes)))
    {
        let shape = [b, h, nq, nk];
        let shape: [usize; 4] = std::array::from_fn(|dim| if sizes >> dim & 1 == 1 { shape[dim] } else { 1 });
        let bias = random(5, shape);
        let numbers = values(bias.clone());
        let at = |index: [usize; 4]| {
            numbers[(0..4).fold(0, |at, dim| at * shape[dim] + if shape[dim] == 1 { 0 } else { index[dim] })]
        };
        let expected = truth([&q, &k, &v], 0.2, at);
        check(at_level(level, [&q, &k, &v], Some(bias), 0.2), expected);
    }
}

#[test]
fn masked_keys_do_not_count_even_a_block_of_them() {
    let [nq, nk] = [50, 300];
    let (q, k, v) = (random(1, [1, nq, 2, 24]), random(2, [1, nk, 2, 24]), random(3, [1, nk, 2, 24]));
    for mask in [f32::NEG_INFINITY, -1e9, f32::MIN] {
        for (first, last) in [(0, 5), (130, 140), (295, 300)] {
            let keys = (0..nk).map(|key| if (first..last).contains(&key) { 0.0 } else { mask });
            let bias = tensor(keys.collect(), [1, 1, 1, nk]);
            let part = |x: &Tensor<4>| x.clone().slice([0..1, first..last]);
            let expected = truth([&q, &part(&k), &part(&v)], 0.2, |_| 0.0);
            for &level in Level::available() {
                check(at_level(level, [&q, &k, &v], Some(bias.clone()), 0.2), expected.clone());
            }
        }
    }
}

#[test]
fn a_query_without_keys_is_neutral_when_merged() {
    let (q, k, v) = (random(1, [1, 4, 2, 24]), random(2, [1, 70, 2, 24]), random(3, [1, 70, 2, 24]));
    let nothing = || tensor(vec![f32::NEG_INFINITY; 70], [1, 1, 1, 70]);
    let (out, lse) = attention_lse(q.clone(), k.clone(), v.clone(), None, 0.2);
    for &level in Level::available() {
        let none = at_level(level, [&q, &k, &v], Some(nothing()), 0.2);
        assert_eq!(values(none.0.clone()), [0.0; 4 * 2 * 24]);
        assert_eq!(values(none.1.clone()), [f32::NEG_INFINITY; 4 * 2]);
        let twice = merge_lse(none.clone(), none.clone());
        assert_eq!(values(twice.0), [0.0; 4 * 2 * 24]);
        assert_eq!(values(twice.1), [f32::NEG_INFINITY; 4 * 2]);
        let merged = merge_lse(none, (out.clone(), lse.clone()));
        assert_eq!(values(merged.0), values(out.clone()));
        assert_eq!(values(merged.1), values(lse.clone()));
    }
}

#[test]
fn parts_merge_to_the_whole() {
    let (q, k, v) = (random(1, [2, 40, 3, 24]), random(2, [2, 200, 3, 24]), random(3, [2, 200, 3, 24]));
    let part = |from, to| {
        let part = |x: &Tensor<4>| x.clone().slice([0..2, from..to]);
        attention_lse(q.clone(), part(&k), part(&v), None, 0.2)
    };
    let merged = merge_lse(merge_lse(part(0, 1), part(1, 90)), part(90, 200));
    let reference = reference::merge_lse(reference::merge_lse(part(0, 1), part(1, 90)), part(90, 200));
    assert_close(merged.0.clone(), reference.0, 3e-7);
    assert_close(merged.1.clone(), reference.1, 3e-7);
    check(merged, truth([&q, &k, &v], 0.2, |_| 0.0));
}

#[test]
fn a_query_is_computed_alike_wherever_it_stands() {
    let (q, k, v) = (random(1, [1, 300, 2, 40]), random(2, [1, 150, 2, 40]), random(3, [1, 150, 2, 40]));
    for &level in Level::available() {
        let whole = values(at_level(level, [&q, &k, &v], None, 0.2).0);
        for (from, to) in [(0, 1), (7, 40), (100, 233)] {
            let q = q.clone().slice([0..1, from..to]);
            let part = values(at_level(level, [&q, &k, &v], None, 0.2).0);
            assert_eq!(part, whole[from * 80..to * 80]);
        }
    }
}

#[test]
fn threads_do_not_matter() {
    assert_same_for_any_threads(|| {
        let bias = random(4, [1, 3, 500, 130]);
        let (q, k, v) = (random(1, [2, 500, 3, 40]), random(2, [2, 130, 3, 40]), random(3, [2, 130, 3, 40]));
        let (out, lse) = attention_lse(q, k, v, Some(bias), 0.2);
        values(out).into_iter().chain(values(lse)).collect()
    });
}

proptest! {
    #[test]
    fn agrees_with_the_reference(
        [b, nq, nk] in [1usize..3, 1usize..120, 1usize..150],
        [h, d] in [1usize..4, 1usize..90],
        biased in any::<bool>(),
    ) {
        let (q, k, v) = (random(1, [b, nq, h, d]), random(2, [b, nk, h, d]), random(3, [b, nk, h, d]));
        let bias = biased.then(|| random(4, [b, 1, nq, nk]));
        let scale = (d as f32).powf(-0.5);
        let (out, lse) = attention_lse(q.clone(), k.clone(), v.clone(), bias.clone(), scale);
        let (expected, expected_lse) = reference::attention_lse(q, k, v, bias, scale);
        assert_close(out, expected, 2.0 * TOLERANCE);
        for (a, b) in values(lse).into_iter().zip(values(expected_lse)) {
            prop_assert!((a - b).abs() <= 2e-6 * b.abs().max(1.0));
        }
    }
}
