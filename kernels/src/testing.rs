//! Shared parts of the tests of the CPU versions.

use burn::tensor::Tensor;
use burn_flex::{Flex, FlexTensor};

/// The CPU tensor behind `tensor`.
pub(crate) fn flex<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    tensor.try_into_primitive::<Flex>().expect("a tensor on the CPU backend")
}

/// The inverse of [`flex`].
pub(crate) fn back<const D: usize>(tensor: FlexTensor) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(tensor)
}

/// Creates a CPU tensor of `shape` from `data`.
pub(crate) fn tensor<const D: usize>(data: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    back(crate::cpu::tensor(data, shape))
}

/// Normally distributed numbers that depend only on `seed`.
pub(crate) fn normal(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut next =
        || ((-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
    (0..len).map(|_| next()).collect()
}

/// A tensor of `shape` with normally distributed elements.
pub(crate) fn random<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
    tensor(normal(seed, shape.iter().product()), shape)
}

/// The elements of `tensor` in order.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32")
}

/// ‖a - b‖ / ‖b‖ in f64.
pub(crate) fn relative_error(a: &[f32], b: impl IntoIterator<Item = f64>) -> f64 {
    let b: Vec<f64> = b.into_iter().collect();
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(&b).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    (difference / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Asserts that two tensors agree within `tolerance`, relative to the second one's norm.
pub(crate) fn assert_close<const D: usize>(actual: Tensor<D>, expected: Tensor<D>, tolerance: f64) {
    assert_eq!(actual.dims(), expected.dims());
    let error = relative_error(&values(actual), values(expected).into_iter().map(f64::from));
    assert!(error <= tolerance, "relative error {error:.2e} over {tolerance:.0e}");
}

/// Runs `f` in pools of one, two and three threads, and asserts that the results are bitwise equal.
pub(crate) fn assert_same_for_any_threads(f: impl Fn() -> Vec<f32> + Sync) {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(&f).into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
}
