use super::{cpu, gated_residual};
use crate::testing::{assert_close, assert_same_for_any_threads, back, flex, random, values};
use crate::{cpu::lanes::Level, reference};

#[test]
fn agrees_with_the_reference_whoever_holds_the_memory() {
    for &level in Level::available() {
        for (images, gates, c) in [(1, 1, 16), (3, 3, 33), (3, 1, 100)] {
            let x = || random(1, [images, 21, c]);
            let y = || random(2, [images, 21, c]);
            let gate = random(3, [gates, 1, c]);
            let add = |x, y| back(cpu::gated_residual(level, flex(x), flex(gate.clone()), flex(y)));
            let expected = reference::gated_residual(x(), gate.clone(), y());
            let (kept_x, kept_y) = (x(), y());
            assert_close(add(x(), y()), expected.clone(), 1e-7);
            assert_close(add(kept_x.clone(), y()), expected.clone(), 1e-7);
            assert_close(add(x(), kept_y.clone()), expected.clone(), 1e-7);
            assert_close(add(kept_x.clone(), kept_y.clone()), expected.clone(), 1e-7);
            assert_eq!(values(kept_x), values(x()));
            assert_eq!(values(kept_y), values(y()));
        }
    }
}

#[test]
fn a_tensor_may_be_added_to_itself() {
    let (x, gate) = (random(1, [2, 5, 40]), random(2, [2, 1, 40]));
    let expected = reference::gated_residual(x.clone(), gate.clone(), x.clone());
    assert_close(gated_residual(x.clone(), gate, x), expected, 1e-7);
}

#[test]
fn threads_do_not_matter() {
    assert_same_for_any_threads(|| {
        values(gated_residual(random(1, [2, 500, 72]), random(2, [2, 1, 72]), random(3, [2, 500, 72])))
    });
}
