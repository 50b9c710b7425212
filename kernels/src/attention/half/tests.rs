use burn::tensor::{DType, Element, Tensor, bf16, f16};
use burn_flex::FlexTensor;
use proptest::prelude::*;

use super::super::tests::truth;
use super::*;
use crate::testing::{assert_same_for_any_threads, back, flex, random, relative_error, tensor, values};

/// How bf16 may be computed on this processor.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Packed(Dots),
    Widened(Level),
}

impl Way {
    fn all() -> Vec<Self> {
        let packed = Dots::available().iter().filter(|&&dots| dots != Dots::Widen);
        let widened = Level::available().iter();
        packed.map(|&dots| Self::Packed(dots)).chain(widened.map(|&level| Self::Widened(level))).collect()
    }

    /// The distance allowed to a result of `len` numbers.
    ///
    /// bf16 has 8 binary digits, so that rounding moves a number by 2⁻⁸ of itself at most; many numbers, by less than
    /// 2⁻⁹ in the root mean square. The result is rounded once, and so are the exponentials where they are multiplied
    /// in bf16.
    fn tolerance(self, len: usize) -> f64 {
        let rounding = if len < 100 { 1.0 / 256.0 } else { 1.0 / 512.0 };
        match self {
            Self::Packed(_) => 2.0 * rounding,
            Self::Widened(_) => rounding,
        }
    }

    fn run(self, [q, k, v]: [&Tensor<4>; 3], bias: Option<&Tensor<4>>, scale: f32) -> (Tensor<4>, Tensor<3>) {
        let [q, k, v]: [FlexTensor; 3] = [q, k, v].map(|x| flex(x.clone()));
        let bias = bias.map(|bias| flex(bias.clone()));
        let (out, lse) = match self {
            #[cfg(target_arch = "x86_64")]
            Self::Packed(dots) => attend_packed(dots, q, [k, v], bias, scale),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Packed(_) => unreachable!("nothing but widening is available"),
            Self::Widened(level) => attend_widened::<bf16>(level, q, [k, v], bias, scale),
        };
        (back(out), back(lse))
    }
}

/// Random numbers in bf16, around `centre`.
fn rounded(seed: u64, shape: [usize; 4], centre: f32) -> Tensor<4> {
    random(seed, shape).add_scalar(centre).cast(DType::BF16)
}

fn inputs([b, nq, nk, h, d]: [usize; 5]) -> [Tensor<4>; 3] {
    [rounded(1, [b, nq, h, d], 0.0), rounded(2, [b, nk, h, d], 0.0), rounded(3, [b, nk, h, d], 0.5)]
}

fn wide<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    x.clone().cast(DType::F32)
}

/// [`truth`] for tensors of 16 bits.
fn true_of(qkv: [&Tensor<4>; 3], scale: f32, bias: impl Fn([usize; 4]) -> f32) -> (Vec<f64>, Vec<f64>) {
    let [q, k, v] = qkv.map(wide);
    truth([&q, &k, &v], scale, bias)
}

#[track_caller]
fn check(
    way: Way,
    (out, lse): (Tensor<4>, Tensor<3>),
    (true_out, true_lse): (Vec<f64>, Vec<f64>),
    lse_tolerance: f64,
) {
    assert_eq!((out.dtype(), lse.dtype()), (DType::BF16, DType::F32));
    let allowed = way.tolerance(true_out.len());
    let error = relative_error(&values(wide(&out)), true_out);
    assert!(error <= allowed, "{way:?}: {error:.2e} of {allowed:.2e} allowed");
    for (lse, truth) in values(lse).into_iter().zip(true_lse) {
        let error = (f64::from(lse) - truth).abs() / truth.abs().max(1.0);
        assert!(error <= lse_tolerance, "{way:?}: {lse} instead of {truth}");
    }
}

#[test]
fn every_way_agrees_with_f64_for_any_head_and_any_number_of_tokens() {
    for [nq, nk, h, d] in [
        [1, 1, 1, 1],
        [1, 2, 1, 2],
        [1, 64, 2, 64],
        [3, 5, 2, 12],
        [16, 63, 1, 72],
        [17, 65, 3, 80],
        [31, 127, 1, 15],
        [32, 128, 1, 128],
        [33, 129, 2, 33],
        [49, 77, 2, 72],
        [257, 200, 1, 40],
        [300, 300, 1, 256],
        [70, 150, 1, 512],
        [400, 33, 1, 7],
    ] {
        let [q, k, v] = inputs([2, nq, nk, h, d]);
        for scale in [(d as f32).powf(-0.5), -0.1] {
            let expected = true_of([&q, &k, &v], scale, |_| 0.0);
            for way in Way::all() {
                check(way, way.run([&q, &k, &v], None, scale), expected.clone(), 1e-6);
            }
        }
    }
}

#[test]
fn four_thousand_keys_agree_with_f64() {
    let [q, k, v] = inputs([1, 40, 4096, 2, 72]);
    let expected = true_of([&q, &k, &v], 0.12, |_| 0.0);
    for way in Way::all() {
        check(way, way.run([&q, &k, &v], None, 0.12), expected.clone(), 1e-6);
    }
}

/// The reference of a query moves where its scores grow, by much or by little.
#[test]
fn scores_that_grow_along_the_keys_do_not_overflow() {
    let [q, k, v] = inputs([1, 40, 700, 2, 64]);
    for slope in [0.002, 0.05, 1.0] {
        let bias: Vec<f32> = (0..700).map(|key| key as f32 * slope).collect();
        let bias = tensor(bias, [1, 1, 1, 700]);
        let expected = true_of([&q, &k, &v], 0.125, |[_, _, _, key]| key as f32 * slope);
        for way in Way::all() {
            // Scores near 700 are right to 3e-5.
            check(way, way.run([&q, &k, &v], Some(&bias), 0.125), expected.clone(), 1e-6);
        }
    }
    let expected = true_of([&q, &k, &v], 20.0, |_| 0.0);
    for way in Way::all() {
        check(way, way.run([&q, &k, &v], None, 20.0), expected.clone(), 1e-6);
    }
}

#[test]
fn a_bias_of_any_type_is_repeated_where_its_size_is_one() {
    let [b, h, nq, nk] = [2, 3, 50, 70];
    let [q, k, v] = inputs([b, nq, nk, h, 24]);
    for sizes in 0..16 {
        let shape = [b, h, nq, nk];
        let shape: [usize; 4] = std::array::from_fn(|dim| if sizes >> dim & 1 == 1 { shape[dim] } else { 1 });
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let bias = random(5, shape).cast(dtype);
            let numbers = values(wide(&bias));
            let at = |index: [usize; 4]| {
                let place = |dim| if shape[dim] == 1 { 0 } else { index[dim] };
                numbers[(0..4).fold(0, |at, dim| at * shape[dim] + place(dim))]
            };
            let expected = true_of([&q, &k, &v], 0.2, at);
            for way in Way::all() {
                check(way, way.run([&q, &k, &v], Some(&bias), 0.2), expected.clone(), 1e-6);
            }
        }
    }
}

#[test]
fn masked_keys_do_not_count_even_a_block_of_them() {
    let [nq, nk] = [50, 300];
    let [q, k, v] = inputs([1, nq, nk, 2, 24]);
    for mask in [f32::NEG_INFINITY, -1e9, f32::MIN] {
        for (first, last) in [(0, 5), (130, 140), (295, 300)] {
            let keys = (0..nk).map(|key| if (first..last).contains(&key) { 0.0 } else { mask });
            let bias = tensor(keys.collect(), [1, 1, 1, nk]);
            let part = |x: &Tensor<4>| x.clone().slice([0..1, first..last]);
            let expected = true_of([&q, &part(&k), &part(&v)], 0.2, |_| 0.0);
            for way in Way::all() {
                check(way, way.run([&q, &k, &v], Some(&bias), 0.2), expected.clone(), 1e-6);
            }
        }
    }
}

#[test]
fn a_query_without_keys_gets_zeros() {
    let [q, k, v] = inputs([1, 40, 150, 2, 24]);
    // Every second query has no key.
    let bias = (0..40 * 150).map(|at| if at / 150 % 2 == 0 { f32::NEG_INFINITY } else { 0.0 });
    let bias = tensor(bias.collect(), [1, 1, 40, 150]);
    let none = Tensor::<4>::empty([1, 0, 2, 24], (&q.device(), DType::BF16));
    for way in Way::all() {
        let whole = way.run([&q, &k, &v], None, 0.2);
        let some = way.run([&q, &k, &v], Some(&bias), 0.2);
        let rows = |x: &Tensor<4>| values(wide(x)).chunks(48).map(<[f32]>::to_vec).collect::<Vec<_>>();
        let (whole_rows, some_rows) = (rows(&whole.0), rows(&some.0));
        let (whole_lse, some_lse) = (values(whole.1), values(some.1));
        for query in 0..40 {
            if query % 2 == 0 {
                assert_eq!(some_rows[query], [0.0; 48]);
                assert_eq!(some_lse[2 * query..][..2], [f32::NEG_INFINITY; 2]);
            } else {
                let error = relative_error(&some_rows[query], whole_rows[query].iter().map(|&x| x.into()));
                assert!(error < 1.0 / 256.0, "{way:?}: {error:.2e}");
                assert!((some_lse[2 * query] - whole_lse[2 * query]).abs() < 1e-5);
            }
        }
        let (out, lse) = way.run([&q, &none, &none], None, 0.2);
        assert_eq!(values(wide(&out)), [0.0; 40 * 48]);
        assert_eq!(values(lse), [f32::NEG_INFINITY; 80]);
    }
}

#[test]
fn what_is_not_finite_does_not_vanish() {
    let [q, k, v] = inputs([1, 3, 40, 1, 24]);
    let nan = v.clone().slice_assign(
        [0..1, 7..8, 0..1, 5..6],
        Tensor::full([1, 1, 1, 1], f32::NAN, (&v.device(), DType::BF16)),
    );
    let key = k.clone().slice_assign(
        [0..1, 7..8, 0..1, 5..6],
        Tensor::full([1, 1, 1, 1], f32::NAN, (&v.device(), DType::BF16)),
    );
    for way in Way::all() {
        let out = values(wide(&way.run([&q, &k, &nan], None, 0.2).0));
        assert!(out.iter().enumerate().all(|(at, x)| x.is_nan() == (at % 24 == 5)), "{way:?}: {out:?}");
        let (out, lse) = way.run([&q, &key, &v], None, 0.2);
        assert!(values(wide(&out)).iter().chain(&values(lse)).all(|x| x.is_nan()), "{way:?}");
    }
}

#[test]
fn views_of_a_fused_projection_are_read_as_they_lie() {
    let fused = rounded(4, [2, 70, 9, 20], 0.0);
    let view = |i: usize| fused.clone().slice([0..2, 0..70, 3 * i..3 * i + 3, 0..20]);
    let copied = |x: &Tensor<4>| tensor(values(wide(x)), x.dims()).cast(DType::BF16);
    let swapped = |i: usize, a, b| copied(&view(i).swap_dims(a, b)).swap_dims(a, b);
    for way in Way::all() {
        let [q, k, v] = [0, 1, 2].map(|i| copied(&view(i)));
        let (out, lse) = way.run([&q, &k, &v], None, 0.2);
        for same in
            [[0, 1, 2].map(view), [0, 1, 2].map(|i| swapped(i, 1, 2)), [0, 1, 2].map(|i| swapped(i, 1, 3))]
        {
            let same = way.run(same.each_ref(), None, 0.2);
            assert_eq!(values(wide(&same.0)), values(wide(&out)));
            assert_eq!(values(same.1), values(lse.clone()));
        }
    }
}

#[test]
fn a_query_is_computed_alike_wherever_it_stands() {
    let [q, k, v] = inputs([1, 600, 150, 2, 40]);
    for way in Way::all() {
        let whole = values(wide(&way.run([&q, &k, &v], None, 0.2).0));
        for (from, to) in [(0, 1), (7, 40), (100, 433)] {
            let q = q.clone().slice([0..1, from..to]);
            let part = values(wide(&way.run([&q, &k, &v], None, 0.2).0));
            assert_eq!(part, whole[from * 80..to * 80]);
        }
    }
}

#[test]
fn threads_do_not_matter() {
    for way in Way::all() {
        assert_same_for_any_threads(|| {
            let [q, k, v] = inputs([2, 500, 130, 3, 40]);
            let bias = random(4, [1, 3, 500, 130]);
            let (out, lse) = way.run([&q, &k, &v], Some(&bias), 0.2);
            values(wide(&out)).into_iter().chain(values(lse)).collect()
        });
    }
}

/// All the heads of the second size are not packed at once.
#[test]
fn many_heads_are_worked_on_a_few_at_a_time() {
    for [b, n, h, d] in [[3, 64, 5, 16], [2, 3000, 9, 64]] {
        let [q, k, v] = inputs([b, 3, n, h, d]);
        let expected = true_of([&q, &k, &v], 0.2, |_| 0.0);
        for way in Way::all() {
            check(way, way.run([&q, &k, &v], None, 0.2), expected.clone(), 1e-6);
        }
    }
}

/// What the public function chooses.
#[test]
fn f16_is_rounded_once() {
    let [q, k, v] = inputs([1, 20, 77, 2, 72]).map(|x| x.cast(DType::F16));
    let expected = true_of([&q, &k, &v], 0.12, |_| 0.0);
    let (out, lse) = super::super::attention_lse(q, k, v, None, 0.12);
    assert_eq!((out.dtype(), lse.dtype()), (f16::dtype(), DType::F32));
    assert!(relative_error(&values(wide(&out)), expected.0) <= 1.0 / 4096.0);
    assert!(relative_error(&values(lse), expected.1) <= 1e-6);
}

proptest! {
    #[test]
    fn agrees_with_f64(
        [b, nq, nk] in [1usize..3, 1usize..120, 1usize..280],
        [h, d] in [1usize..3, 1usize..140],
        biased in any::<bool>(),
    ) {
        let [q, k, v] = inputs([b, nq, nk, h, d]);
        let bias = biased.then(|| random(4, [b, 1, nq, nk]));
        let numbers = bias.clone().map(values);
        let scale = (d as f32).powf(-0.5);
        let expected = true_of([&q, &k, &v], scale, |[image, _, query, key]| {
            numbers.as_ref().map_or(0.0, |numbers| numbers[(image * nq + query) * nk + key])
        });
        let way = *Way::all().first().expect("there is always one");
        check(way, way.run([&q, &k, &v], bias.as_ref(), scale), expected.clone(), 1e-6);
        let best = *Way::all().iter().rfind(|way| matches!(way, Way::Packed(_))).unwrap_or(&way);
        check(best, best.run([&q, &k, &v], bias.as_ref(), scale), expected, 1e-6);
    }
}
