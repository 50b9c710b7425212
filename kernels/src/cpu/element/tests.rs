use burn::tensor::{bf16, f16};

use super::{Element, Narrow, Widen};
use crate::cpu::lanes::Level;

fn widen<E: Element>(level: Level, from: &[E]) -> Vec<f32> {
    let mut to = vec![0.0; from.len()];
    level.run(Widen { from, to: &mut to });
    to
}

fn narrow<E: Element>(level: Level, from: &[f32]) -> Vec<E> {
    let mut to = vec![E::zeroed(); from.len()];
    level.run(Narrow { from, to: &mut to });
    to
}

/// All 16-bit numbers.
fn all<E>(from_bits: impl Fn(u16) -> E) -> Vec<E> {
    (0..=u16::MAX).map(from_bits).collect()
}

fn same_bits_or_nan(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

#[test]
fn every_16_bit_number_is_widened_exactly_and_comes_back() {
    let (brain, half) = (all(bf16::from_bits), all(f16::from_bits));
    for &level in Level::available() {
        let wide = widen(level, &brain);
        assert!(wide.iter().zip(&brain).all(|(&w, x)| same_bits_or_nan(w, x.to_f32())));
        let back: Vec<bf16> = narrow(level, &wide);
        assert!(back.iter().zip(&brain).all(|(b, x)| b.to_bits() == x.to_bits() || b.is_nan() && x.is_nan()));
        let wide = widen(level, &half);
        assert!(wide.iter().zip(&half).all(|(&w, x)| same_bits_or_nan(w, x.to_f32())));
        let back: Vec<f16> = narrow(level, &wide);
        assert!(back.iter().zip(&half).all(|(b, x)| b.to_bits() == x.to_bits() || b.is_nan() && x.is_nan()));
    }
}

#[test]
fn rounding_is_to_nearest_with_ties_to_even() {
    // Around each upper half of an f32: the number itself, both sides of the tie, the tie, and the largest lower half.
    let lower = [0x0000u32, 0x0001, 0x7fff, 0x8000, 0x8001, 0xffff];
    let numbers = |step: usize| {
        (0..=u16::MAX).step_by(step).flat_map(move |upper| {
            lower.into_iter().map(move |lower| f32::from_bits(u32::from(upper) << 16 | lower))
        })
    };
    // f16 has three bits more than bf16, so its ties are at other positions.
    let ties = (0..=u16::MAX).flat_map(|bits| {
        let x = f16::from_bits(bits).to_f32().to_bits();
        [0x0fff, 0x1000, 0x1001, 0x1fff].map(|lower| f32::from_bits(x | lower))
    });
    let numbers: Vec<f32> = numbers(1).chain(ties).collect();
    for &level in Level::available() {
        for (&x, y) in numbers.iter().zip(narrow::<bf16>(level, &numbers)) {
            let expected = bf16::from_f32(x);
            assert!(y.to_bits() == expected.to_bits() || x.is_nan() && y.is_nan(), "{x:e} {level:?}");
        }
        for (&x, y) in numbers.iter().zip(narrow::<f16>(level, &numbers)) {
            let expected = f16::from_f32(x);
            assert!(y.to_bits() == expected.to_bits() || x.is_nan() && y.is_nan(), "{x:e} {level:?}");
        }
    }
}

#[test]
fn slices_of_any_length_are_read_and_written_to_their_end_only() {
    for &level in Level::available() {
        for len in 0..40 {
            let x: Vec<f32> = (0..len).map(|i| i as f32 - 7.0).collect();
            let mut y = vec![bf16::from_f32(99.0); len + 1];
            level.run(Narrow { from: &x, to: &mut y[..len] });
            assert_eq!(y[len], bf16::from_f32(99.0));
            assert_eq!(widen(level, &y[..len]), x);
        }
    }
}
