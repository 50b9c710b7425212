//! Compares the fast convolution with sums in f64 that share no code with it, and with the reference.

use burn::tensor::{DType, Tensor, TensorData};

use super::cpu::{self, Algorithm};
use super::{Conv2d, Geometry, conv2d};
use crate::cpu::lanes::Level;
use crate::cpu::slice;
use crate::group_norm::Affine;
use crate::reference;
use crate::testing::{back, flex, tensor};

/// A convolution to test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub batch: usize,
    pub channels: [usize; 2],
    pub size: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: usize,
    pub padding: [usize; 4],
    pub upsample: bool,
    pub norm: bool,
    pub bias: bool,
    pub residual: bool,
}

pub(super) const PLAIN: Case = Case {
    batch: 1,
    channels: [3, 5],
    size: [9, 11],
    kernel: [3, 3],
    stride: 1,
    padding: [1; 4],
    upsample: false,
    norm: false,
    bias: false,
    residual: false,
};

pub(super) const FULL: Case = Case { norm: true, bias: true, residual: true, ..PLAIN };

pub(super) const CASES: [Case; 19] = [
    PLAIN,
    FULL,
    Case { size: [1, 1], ..FULL },
    Case { size: [1, 23], ..FULL },
    Case { size: [23, 1], ..PLAIN },
    Case { size: [5, 7], channels: [1, 1], ..FULL },
    Case { size: [4, 4], channels: [2, 8], ..PLAIN },
    Case { size: [64, 64], channels: [4, 9], ..FULL },
    Case { size: [13, 131], channels: [17, 3], batch: 2, ..FULL },
    Case { size: [30, 21], channels: [300, 34], batch: 2, ..FULL },
    Case { size: [5, 7], upsample: true, batch: 2, ..FULL },
    Case { size: [17, 34], upsample: true, ..PLAIN },
    // The rows of a rank in the middle: instead of padding, it has its neighbours' rows.
    Case { padding: [0, 0, 1, 1], upsample: true, ..FULL },
    Case { padding: [1, 0, 1, 1], ..FULL },
    // The encoder's downsampling.
    Case { stride: 2, padding: [0, 1, 0, 1], size: [10, 40], ..FULL },
    Case { stride: 2, padding: [0, 1, 0, 1], size: [7, 5], batch: 2, ..PLAIN },
    Case { kernel: [1, 1], padding: [0; 4], size: [6, 37], channels: [270, 12], ..FULL },
    Case { kernel: [2, 5], padding: [1, 0, 2, 3], size: [6, 37], ..FULL },
    Case { kernel: [4, 4], stride: 4, padding: [0; 4], size: [8, 12], ..FULL },
];

/// Numbers within ±1 of `centre`.
fn numbers(len: usize, seed: u32, centre: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(|_| centre + next()).collect()
}

/// A case's tensors.
pub(super) struct Inputs {
    pub conv: Conv2d,
    pub x: Tensor<4>,
    pub norm: Option<Affine>,
    pub residual: Option<Tensor<4>>,
}

impl Case {
    pub(super) fn result_shape(&self) -> [usize; 4] {
        let Self { batch, channels: [_, c_out], size, kernel, stride, padding, upsample, .. } = *self;
        let doubled = usize::from(upsample) + 1;
        let rows = (size[0] * doubled + padding[0] + padding[1] - kernel[0]) / stride + 1;
        let cols = (size[1] * doubled + padding[2] + padding[3] - kernel[1]) / stride + 1;
        [batch, c_out, rows, cols]
    }

    pub(super) fn inputs(&self) -> Inputs {
        let Self { batch, channels: [c_in, c_out], size: [rows, cols], kernel: [ky, kx], .. } = *self;
        let shape = self.result_shape();
        Inputs {
            conv: Conv2d {
                weight: tensor(numbers(c_out * c_in * ky * kx, 1, 0.0), [c_out, c_in, ky, kx]),
                bias: self.bias.then(|| tensor(numbers(c_out, 2, 0.5), [c_out])),
                stride: self.stride,
                padding: self.padding,
                upsample: self.upsample,
            },
            x: tensor(numbers(batch * c_in * rows * cols, 3, 0.2), [batch, c_in, rows, cols]),
            norm: self.norm.then(|| Affine {
                scale: tensor(numbers(batch * c_in, 4, 1.0), [batch, c_in]),
                shift: tensor(numbers(batch * c_in, 5, 0.1), [batch, c_in]),
            }),
            residual: self.residual.then(|| tensor(numbers(shape.iter().product(), 6, 0.0), shape)),
        }
    }

    fn algorithms(&self) -> &'static [Algorithm] {
        if self.kernel == [3, 3] && self.stride == 1 {
            &[Algorithm::Patches, Algorithm::Winograd]
        } else {
            &[Algorithm::Patches]
        }
    }
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    slice(&flex(tensor.clone()).to_contiguous()).to_vec()
}

/// The CPU version at `level` by `algorithm`.
fn at_level(level: Level, algorithm: Algorithm, inputs: Inputs) -> Tensor<4> {
    let Inputs { conv: Conv2d { weight, bias, stride, padding, upsample }, x, norm, residual } = inputs;
    let inputs = cpu::Inputs {
        x: flex(x),
        weight: flex(weight),
        bias: bias.map(flex),
        norm: norm.map(|Affine { scale, shift }| (flex(scale), flex(shift))),
        residual: residual.map(flex),
    };
    back(cpu::conv2d(level, algorithm, Geometry { stride, padding, upsample }, inputs))
}

/// The definition, in f64.
pub(super) fn by_definition(case: &Case, inputs: &Inputs) -> Vec<f64> {
    let Case { channels: [c_in, c_out], size: [rows, cols], kernel: [ky, kx], stride, .. } = *case;
    let doubled = usize::from(case.upsample) + 1;
    let (x, weight) = (values(&inputs.x), values(&inputs.conv.weight));
    let bias = inputs.conv.bias.as_ref().map(values);
    let residual = inputs.residual.as_ref().map(values);
    let norm = inputs.norm.as_ref().map(|norm| (values(&norm.scale), values(&norm.shift)));
    let at = |plane: usize, y: usize, x_: usize| {
        let (y, x_) = (y.checked_sub(case.padding[0])? / doubled, x_.checked_sub(case.padding[2])? / doubled);
        if y >= rows || x_ >= cols {
            return None;
        }
        let value = f64::from(x[(plane * rows + y) * cols + x_]);
        Some(match &norm {
            Some((scale, shift)) => {
                let value = value * f64::from(scale[plane]) + f64::from(shift[plane]);
                value / (1.0 + (-value).exp())
            }
            None => value,
        })
    };
    let [batch, _, rows_out, cols_out] = case.result_shape();
    let mut result = Vec::new();
    for (b, c, y, x) in (0..batch * c_out * rows_out * cols_out).map(|i| {
        (
            i / cols_out / rows_out / c_out,
            i / cols_out / rows_out % c_out,
            i / cols_out % rows_out,
            i % cols_out,
        )
    }) {
        let mut sum = bias.as_ref().map_or(0.0, |bias| f64::from(bias[c]));
        for k in 0..c_in * ky * kx {
            let (channel, dy, dx) = (k / kx / ky, k / kx % ky, k % kx);
            if let Some(value) = at(b * c_in + channel, y * stride + dy, x * stride + dx) {
                sum += value * f64::from(weight[c * c_in * ky * kx + k]);
            }
        }
        sum += residual.as_ref().map_or(0.0, |residual| f64::from(residual[result.len()]));
        result.push(sum);
    }
    result
}

/// The L2 norm of the difference, relative to that of `expected`.
fn relative_error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let difference = square(&mut got.iter().zip(expected).map(|(&g, &e)| f64::from(g) - e));
    (difference / square(&mut expected.iter().copied())).sqrt()
}

#[test]
fn every_level_and_algorithm_agrees_with_f64() {
    for case in CASES {
        let inputs = case.inputs();
        let expected = by_definition(&case, &inputs);
        for &algorithm in case.algorithms() {
            for &level in Level::available() {
                let y = at_level(level, algorithm, case.inputs());
                assert_eq!(y.dims(), case.result_shape());
                let error = relative_error(&values(&y), &expected);
                // The rounding error of a sum in f32, and its magnification by Winograd's points (see `transforms`).
                let tolerance = if algorithm == Algorithm::Winograd { 2e-6 } else { 4e-7 };
                assert!(error <= tolerance, "{error:e} at {level:?} by {algorithm:?} of {case:?}");
            }
        }
    }
}

#[test]
fn agrees_with_the_reference() {
    for case in [Case { size: [40, 52], channels: [64, 48], ..FULL }, Case { upsample: true, ..FULL }, FULL] {
        let Inputs { conv, x, norm, residual } = case.inputs();
        let expected = values(&reference::conv2d(&conv, x.clone(), norm.as_ref(), residual.clone()));
        let expected = expected.into_iter().map(f64::from).collect::<Vec<_>>();
        let error = relative_error(&values(&conv2d(&conv, x, norm.as_ref(), residual)), &expected);
        assert!(error <= 2e-6, "{error:e} of {case:?}");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for case in [
        Case { size: [61, 150], channels: [20, 35], batch: 2, ..FULL },
        Case { size: [40, 33], stride: 2, padding: [0, 1, 0, 1], channels: [40, 20], ..FULL },
    ] {
        for &algorithm in case.algorithms() {
            let results = [1, 2, 5].map(|threads| {
                let pool =
                    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
                let inputs = case.inputs();
                pool.install(|| values(&at_level(Level::detect(), algorithm, inputs)))
            });
            assert!(results[0] == results[1] && results[0] == results[2], "{algorithm:?} of {case:?}");
        }
    }
}

#[test]
fn the_residual_lends_its_memory_only_when_nobody_else_holds_it() {
    let Inputs { conv, x, norm, residual } = FULL.inputs();
    let residual = residual.expect("`FULL` has one");
    let before = values(&residual);
    let address = |tensor: &Tensor<4>| slice(&flex(tensor.clone())).as_ptr();

    let apart = conv2d(&conv, x.clone(), norm.as_ref(), Some(residual.clone()));
    assert_ne!(address(&apart), address(&residual));
    assert_eq!(values(&residual), before);

    let lent = address(&residual);
    let together = conv2d(&conv, x, norm.as_ref(), Some(residual));
    assert_eq!(address(&together), lent);
    assert_eq!(values(&together), values(&apart));
}

#[test]
fn views_are_read_as_they_are_seen() {
    let Inputs { conv, x, .. } = PLAIN.inputs();
    let [b, c, rows, cols] = x.dims();
    let transposed = tensor(values(&x.clone().swap_dims(2, 3)), [b, c, cols, rows]).swap_dims(2, 3);
    let part = Tensor::cat(vec![x.clone(), x.clone()], 0).narrow(0, 1, 1);
    let expected = values(&conv2d(&conv, x, None, None));
    assert_eq!(values(&conv2d(&conv, transposed, None, None)), expected);
    assert_eq!(values(&conv2d(&conv, part, None, None)), expected);
}

#[test]
fn other_element_types_take_the_reference() {
    let Inputs { mut conv, x, .. } = PLAIN.inputs();
    let exact = values(&conv2d(&conv, x.clone(), None, None));
    conv.weight = conv.weight.cast(DType::F64);
    let y = conv2d(&conv, x.cast(DType::F64), None, None);
    assert_eq!(y.dtype(), DType::F64);
    let expected: TensorData = y.into_data();
    let expected = expected.try_to_vec::<f64>().expect("f64");
    assert!(relative_error(&exact, &expected) <= 4e-7);
}
