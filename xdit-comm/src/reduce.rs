//! Element-wise reductions, folded in rank order.

use std::fmt;

use half::{bf16, f16};

use crate::{Buffer, DType, Element};

/// How contributions become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reduce {
    /// Sum. Half-precision types add up in `f32` and are rounded once, at the end; integers wrap around.
    Sum,
    /// Maximum. A NaN in any contribution makes the result NaN, so that trouble is not lost on the way.
    Max,
}

impl fmt::Display for Reduce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sum => "sum",
            Self::Max => "max",
        })
    }
}

impl Reduce {
    /// Folds `parts`, which all have the spec of the first, from first to last.
    pub(crate) fn fold(self, parts: &[Buffer]) -> Buffer {
        let max = |a: f32, b: f32| if a.is_nan() || a > b { a } else { b };
        match (parts[0].dtype(), self) {
            (DType::F32, Self::Sum) => fold(parts, |x: f32| x, |a, b| a + b, |a| a),
            (DType::F32, Self::Max) => fold(parts, |x: f32| x, max, |a| a),
            (DType::Bf16, Self::Sum) => fold(parts, bf16::to_f32, |a, b| a + b, bf16::from_f32),
            (DType::Bf16, Self::Max) => fold(parts, bf16::to_f32, max, bf16::from_f32),
            (DType::F16, Self::Sum) => fold(parts, f16::to_f32, |a, b| a + b, f16::from_f32),
            (DType::F16, Self::Max) => fold(parts, f16::to_f32, max, f16::from_f32),
            (DType::I32, Self::Sum) => fold(parts, |x: i32| x, i32::wrapping_add, |a| a),
            (DType::I32, Self::Max) => fold(parts, |x: i32| x, i32::max, |a| a),
            (DType::U8, Self::Sum) => fold(parts, |x: u8| x, u8::wrapping_add, |a| a),
            (DType::U8, Self::Max) => fold(parts, |x: u8| x, u8::max, |a| a),
        }
    }
}

/// `narrow(combine(…combine(widen(p0), widen(p1))…))`, element by element.
fn fold<E: Element, A: Copy>(
    parts: &[Buffer],
    widen: impl Fn(E) -> A,
    combine: impl Fn(A, A) -> A,
    narrow: impl Fn(A) -> E,
) -> Buffer {
    let mut sums: Vec<A> = parts[0].elements::<E>().iter().map(|&x| widen(x)).collect();
    for part in &parts[1..] {
        for (sum, &x) in sums.iter_mut().zip(part.elements::<E>().iter()) {
            *sum = combine(*sum, widen(x));
        }
    }
    Buffer::from_vec(sums.into_iter().map(narrow).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduce<E: Element>(op: Reduce, parts: &[&[E]]) -> Vec<E> {
        let parts: Vec<_> = parts.iter().map(|part| Buffer::from_vec(part.to_vec())).collect();
        op.fold(&parts).elements().into_owned()
    }

    #[test]
    fn sums_fold_from_the_first_rank_to_the_last() {
        // (1e8 + 1) - 1e8 is 0 in f32, 1e8 - 1e8 + 1 is 1: the order is visible in the bits.
        assert_eq!(reduce::<f32>(Reduce::Sum, &[&[1e8], &[1.0], &[-1e8]]), [0.0]);
        assert_eq!(reduce::<f32>(Reduce::Sum, &[&[1e8], &[-1e8], &[1.0]]), [1.0]);
    }

    #[test]
    fn half_precision_is_rounded_once() {
        // In bf16 itself 256 + 1 + 1 stays 256: the spacing there is 2, and ties go to even.
        let [big, one] = [256.0, 1.0].map(bf16::from_f32);
        assert_eq!(reduce(Reduce::Sum, &[&[big], &[one], &[one]]), [bf16::from_f32(258.0)]);
        let [big, one] = [2048.0, 1.0].map(f16::from_f32);
        assert_eq!(reduce(Reduce::Sum, &[&[big], &[one], &[one]]), [f16::from_f32(2050.0)]);
    }

    #[test]
    fn integers_wrap() {
        assert_eq!(reduce::<i32>(Reduce::Sum, &[&[i32::MAX], &[1]]), [i32::MIN]);
        assert_eq!(reduce::<u8>(Reduce::Sum, &[&[250], &[10]]), [4]);
    }

    #[test]
    fn max_keeps_a_nan_wherever_it_is() {
        for at in 0..3 {
            let mut parts = [[1.0f32], [3.0], [2.0]];
            assert_eq!(reduce(Reduce::Max, &[&parts[0], &parts[1], &parts[2]]), [3.0]);
            parts[at] = [f32::NAN];
            assert!(reduce(Reduce::Max, &[&parts[0], &parts[1], &parts[2]])[0].is_nan());
        }
    }
}
