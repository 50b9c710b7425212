//! The definitions of the operations, in f64.

use burn::tensor::Tensor;
use xdit_kernels::Activation;

use crate::setting::values;

/// Attention and log-sum-exp; `bias` has the shape of the scores, `[b, h, nq, nk]`.
pub fn attention([q, k, v]: [&Tensor<4>; 3], bias: Option<&[f64]>, scale: f32) -> (Vec<f64>, Vec<f64>) {
    let ([b, nq, h, d], [_, nk, ..]) = (q.dims(), k.dims());
    let [q, k, v] = [q, k, v].map(values);
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for (image, query, head) in (0..b * nq * h).map(|at| (at / h / nq, at / h % nq, at % h)) {
        let row = |key: usize| ((image * nk + key) * h + head) * d;
        let of_query = &q[((image * nq + query) * h + head) * d..][..d];
        let scores: Vec<f64> = (0..nk)
            .map(|key| {
                let dot: f64 = of_query.iter().zip(&k[row(key)..]).map(|(q, k)| q * k).sum();
                let bias = bias.map_or(0.0, |bias| bias[((image * h + head) * nq + query) * nk + key]);
                dot * f64::from(scale) + bias
            })
            .collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        lse.push(if sum == 0.0 { f64::NEG_INFINITY } else { max + sum.ln() });
        for feature in 0..d {
            let weighted: f64 = (0..nk).map(|key| weights[key] * v[row(key) + feature]).sum();
            out.push(if sum == 0.0 { 0.0 } else { weighted / sum });
        }
    }
    (out, lse)
}

/// `x · weightᵀ + bias`.
pub fn linear(x: &[f64], weight: &[f64], bias: Option<&[f64]>, c_in: usize, c_out: usize) -> Vec<f64> {
    let rows = x.chunks(c_in.max(1));
    rows.flat_map(|row| {
        (0..c_out).map(move |output| {
            let dot: f64 = row.iter().zip(&weight[output * c_in..]).map(|(x, w)| x * w).sum();
            dot + bias.map_or(0.0, |bias| bias[output])
        })
    })
    .collect()
}

/// Layer norm (if `centre`) or root-mean-square norm; the scale and shift of row `r` are `affine(r, feature)`.
pub fn norm(
    x: &[f64],
    c: usize,
    centre: bool,
    eps: f64,
    affine: impl Fn(usize, usize) -> (f64, f64),
) -> Vec<f64> {
    let mut result = Vec::with_capacity(x.len());
    for (index, row) in x.chunks(c.max(1)).enumerate() {
        let mean = if centre { row.iter().sum::<f64>() / c as f64 } else { 0.0 };
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
        for (feature, x) in row.iter().enumerate() {
            let (scale, shift) = affine(index, feature);
            result.push((x - mean) / (variance + eps).sqrt() * scale + shift);
        }
    }
    result
}

pub fn activation(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Gelu => x * 0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x * 0.5 * (1.0 + inner.tanh())
        }
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

/// The error function, by a series whose terms are all positive (Abramowitz and Stegun, 7.1.6).
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, 0.0);
    for n in 1..400 {
        sum += term;
        term *= 2.0 * x * x / f64::from(2 * n + 1);
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// Pairs of features, rotated by one angle for each token and pair.
pub fn rotary(x: &[f64], [_, n, h, d]: [usize; 4], cos: &[f64], sin: &[f64]) -> Vec<f64> {
    let turn = |(pair, x): (usize, &[f64])| {
        let at = pair / (d / 2) / h % n * (d / 2) + pair % (d / 2);
        [x[0] * cos[at] - x[1] * sin[at], x[1] * cos[at] + x[0] * sin[at]]
    };
    x.chunks_exact(2).enumerate().flat_map(turn).collect()
}

/// The mean and the sum of squared deviations of each of `groups` runs of numbers.
pub fn moments(x: &[f64], groups: usize) -> (Vec<f64>, Vec<f64>) {
    let of = |group: &[f64]| {
        let mean = group.iter().sum::<f64>() / group.len() as f64;
        (mean, group.iter().map(|x| (x - mean).powi(2)).sum::<f64>())
    };
    x.chunks(x.len() / groups).map(of).unzip()
}

/// The parameters of a convolution.
pub struct Conv {
    pub x: [usize; 4],
    pub weight: [usize; 4],
    pub stride: usize,
    pub padding: [usize; 4],
    pub upsample: bool,
}

impl Conv {
    /// The shape of the result.
    pub fn result(&self) -> [usize; 4] {
        let ([b, _, rows, cols], [c_out, _, ky, kx]) = (self.x, self.weight);
        let doubled = 1 + usize::from(self.upsample);
        let [top, bottom, left, right] = self.padding;
        let steps = |size: usize, kernel: usize| (size - kernel) / self.stride + 1;
        [b, c_out, steps(rows * doubled + top + bottom, ky), steps(cols * doubled + left + right, kx)]
    }

    /// The convolution of `x`, which is already normalised.
    pub fn apply(&self, x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
        let ([_, c_in, rows, cols], [_, _, ky, kx]) = (self.x, self.weight);
        let doubled = 1 + usize::from(self.upsample);
        let pixel = |plane: usize, y: usize, at: usize| {
            let (y, at) = (y.checked_sub(self.padding[0])?, at.checked_sub(self.padding[2])?);
            let (y, at) = (y / doubled, at / doubled);
            (y < rows && at < cols).then(|| x[(plane * rows + y) * cols + at])
        };
        let [b, c_out, rows_out, cols_out] = self.result();
        let mut result = Vec::new();
        for at in 0..b * c_out * rows_out * cols_out {
            let (plane, y, x) = (at / cols_out / rows_out, at / cols_out % rows_out, at % cols_out);
            let (image, channel) = (plane / c_out, plane % c_out);
            let mut sum = bias.map_or(0.0, |bias| bias[channel]);
            for k in 0..c_in * ky * kx {
                let (from, dy, dx) = (k / kx / ky, k / kx % ky, k % kx);
                if let Some(x) = pixel(image * c_in + from, y * self.stride + dy, x * self.stride + dx) {
                    sum += x * weight[channel * c_in * ky * kx + k];
                }
            }
            result.push(sum);
        }
        result
    }
}
