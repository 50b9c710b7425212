use proptest::prelude::*;

use super::{Activation, activate, cpu, gated_activate};
use crate::testing::{assert_close, assert_same_for_any_threads, back, flex, random, values};
use crate::{cpu::lanes::Level, reference};

const ALL: [Activation; 4] =
    [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Silu];

#[test]
fn agree_with_the_reference_at_every_level_and_length() {
    for (level, activation) in Level::available().iter().flat_map(|&level| ALL.map(|a| (level, a))) {
        for len in [1, 7, 8, 15, 16, 17, 33, 1000, 40_000] {
            let x = random(len as u64, [1, len]);
            let expected = reference::activate(activation, x.clone());
            assert_close(back(cpu::activate(level, activation, flex(x.clone()))), expected, 1e-6);
            let gate = random(len as u64 + 1, [1, len]);
            let expected = reference::gated_activate(activation, gate.clone(), x.clone());
            assert_close(back(cpu::gated_activate(level, activation, flex(gate), flex(x))), expected, 1e-6);
        }
    }
}

#[test]
fn memory_that_someone_else_holds_is_left_alone() {
    let x = random(1, [3, 500]);
    let before = values(x.clone());
    let kept = x.clone();
    let shared = activate(Activation::Silu, x.clone());
    assert_eq!(values(kept), before);
    let view = activate(Activation::Silu, x.clone().slice([1..2, 100..400]));
    assert_eq!(values(view), values(shared.clone().slice([1..2, 100..400])));
    assert_eq!(values(x.clone()), before);
    assert_eq!(values(activate(Activation::Silu, x)), values(shared));
}

#[test]
fn memory_that_nobody_else_holds_is_reused() {
    let x = random(1, [40, 1000]);
    let address = |x: burn::tensor::Tensor<2>| {
        let x = flex(x);
        (x.bytes().as_ptr(), back::<2>(x))
    };
    let (before, x) = address(x);
    let (after, _) = address(activate(Activation::GeluTanh, x));
    assert_eq!(before, after);
}

#[test]
fn the_halves_of_one_tensor_gate_each_other() {
    let both = random(5, [2, 9, 2 * 52]);
    let [gate, x]: [_; 2] = both.chunk(2, 2).try_into().expect("two halves");
    let expected = reference::gated_activate(Activation::Gelu, gate.clone(), x.clone());
    assert_close(gated_activate(Activation::Gelu, gate, x), expected, 1e-6);
}

#[test]
fn threads_do_not_matter() {
    assert_same_for_any_threads(|| values(activate(Activation::Gelu, random(2, [77, 1111]))));
}

proptest! {
    #[test]
    fn any_layout_agrees_with_the_reference(
        [a, b, c] in [1usize..5, 1usize..40, 1usize..40],
        transpose in any::<bool>(),
        which in 0usize..4,
    ) {
        let mut x = random(9, [a, b, c]);
        if transpose {
            x = x.swap_dims(1, 2);
        }
        let expected = reference::activate(ALL[which], x.clone());
        assert_close(activate(ALL[which], x), expected, 1e-6);
    }
}
