//! Rotary embedding on the CPU: one pass, in place if the memory is not shared.

use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_flex::{Flex, FlexTensor};

use super::{RotaryOps, reference_rotary};
use crate::cpu::{
    TensorRows, dims,
    lanes::{Lanes, Level, Vectorized},
    map_rows, round_to, wide,
};
use crate::norm::NormOps;
use crate::optional::Optional;

impl RotaryOps for Flex {
    fn rotary(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        match x.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => rotary(Level::detect(), x, wide(cos), wide(sin)),
            _ => reference_rotary::<Self>(x, cos, sin),
        }
    }

    fn rms_norm_rotary(
        x: FlexTensor,
        weight: Optional<Self>,
        eps: f64,
        cos: FlexTensor,
        sin: FlexTensor,
    ) -> FlexTensor {
        after_norm(x, |x| <Self as NormOps>::rms_norm(x, weight, eps), cos, sin)
    }

    fn layer_norm_rotary(
        x: FlexTensor,
        weight: Optional<Self>,
        bias: Optional<Self>,
        eps: f64,
        cos: FlexTensor,
        sin: FlexTensor,
    ) -> FlexTensor {
        let norm = |x: FlexTensor| {
            let dims @ [b, n, h, d] = dims(&x);
            let rows = Self::float_reshape(x, [b, n * h, d].into());
            Self::float_reshape(<Self as NormOps>::layer_norm(rows, weight, bias, eps), dims.into())
        };
        after_norm(x, norm, cos, sin)
    }
}

/// The rotation of the norm of `x`, which is rounded once.
fn after_norm(
    x: FlexTensor,
    norm: impl FnOnce(FlexTensor) -> FlexTensor,
    cos: FlexTensor,
    sin: FlexTensor,
) -> FlexTensor {
    let dtype = x.dtype();
    let x = if dtype.size() == 2 { wide(x) } else { x };
    round_to(<Flex as RotaryOps>::rotary(norm(x), cos, sin), dtype)
}

/// [`rotary`](super::rotary) at `level`.
pub(super) fn rotary(level: Level, x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
    let [_, n, h, d] = dims(&x);
    assert!(d % 2 == 0, "{d} features are no pairs");
    for table in [&cos, &sin] {
        assert_eq!(dims(table), [n, d / 2], "an angle for each token and pair");
    }
    let (cos, sin) = (TensorRows::new(cos), TensorRows::new(sin));
    map_rows(x, |first, rows| {
        let mut factors = Factors { of_self: vec![0.0; d], of_other: vec![0.0; d] };
        let mut at = 0;
        while at < rows.len() {
            let row = first + at / d;
            // The heads of a token share its angles.
            let heads = (h - row % h).min((rows.len() - at) / d);
            let token = row / h % n;
            factors.set(cos.row(token), sin.row(token));
            level.run(Turn { rows: &mut rows[at..at + heads * d], factors: &factors });
            at += heads * d;
        }
    })
}

/// The factors of each feature of a token and of the other feature of its pair.
struct Factors {
    of_self: Vec<f32>,
    of_other: Vec<f32>,
}

impl Factors {
    fn set(&mut self, cos: &[f32], sin: &[f32]) {
        for (pair, &cos) in self.of_self.chunks_exact_mut(2).zip(cos) {
            pair.fill(cos);
        }
        for (pair, &sin) in self.of_other.chunks_exact_mut(2).zip(sin) {
            pair.copy_from_slice(&[-sin, sin]);
        }
    }
}

/// Rows of one token.
struct Turn<'a> {
    rows: &'a mut [f32],
    factors: &'a Factors,
}

impl Vectorized for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Factors { of_self, of_other } = self.factors;
        let d = of_self.len();
        for row in self.rows.chunks_exact_mut(d) {
            for at in (0..d).step_by(V::N) {
                let x = V::load_or(&row[at..], 0.0);
                let other = x.swap_pairs() * V::load_or(&of_other[at..], 0.0);
                x.mul_add(V::load_or(&of_self[at..], 0.0), other).store_some(&mut row[at..]);
            }
        }
    }
}
