//! The one-dimensional transforms of Winograd's F(4, 3): four outputs of a three-tap filter from six products.
//!
//! The filter and the input are evaluated at the points 0, ±A, ±B and ∞, and the products are interpolated. With the
//! customary points 0, ±1, ±2, the relative error of a layer is about 2e-6. These points were found by a grid search
//! over pairs, on random and on smooth images: their error is 7e-7 and 2e-7, and that of direct summation 2e-7. All
//! constants of the input and output transform are exact in f32, except for A³ and B³.
//!
//! # Source
//! Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*, section 4; the error by points: Barabasz et
//! al., *Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks*.

use crate::cpu::lanes::Lanes;

/// The number of outputs of a tile in one dimension.
pub(super) const OUT: usize = 4;
/// The number of inputs, and of products, of a tile in one dimension.
pub(super) const IN: usize = 6;

const A: f64 = 21.0 / 32.0;
const B: f64 = 23.0 / 16.0;
const A2: f64 = A * A;
const B2: f64 = B * B;

/// The six values of an input at the points.
#[inline(always)]
pub(super) fn input<V: Lanes>(d: [V; IN]) -> [V; IN] {
    let c = |value: f64| V::splat(value as f32);
    let (product, sum) = (c(A2 * B2), c(-(A2 + B2)));
    let even_a = d[2].mul_add(c(-B2), d[4]);
    let odd_a = d[1].mul_add(c(-B2), d[3]);
    let even_b = d[2].mul_add(c(-A2), d[4]);
    let odd_b = d[1].mul_add(c(-A2), d[3]);
    [
        d[0].mul_add(product, d[2].mul_add(sum, d[4])),
        odd_a.mul_add(c(A), even_a),
        odd_a.mul_add(c(-A), even_a),
        odd_b.mul_add(c(B), even_b),
        odd_b.mul_add(c(-B), even_b),
        d[1].mul_add(product, d[3].mul_add(sum, d[5])),
    ]
}

/// The four outputs from six products.
#[inline(always)]
pub(super) fn output<V: Lanes>(m: [V; IN]) -> [V; OUT] {
    let c = |value: f64| V::splat(value as f32);
    let (even_a, odd_a) = (m[1] + m[2], m[1] - m[2]);
    let (even_b, odd_b) = (m[3] + m[4], m[3] - m[4]);
    [
        m[0] + (even_a + even_b),
        odd_a.mul_add(c(A), odd_b * c(B)),
        even_a.mul_add(c(A2), even_b * c(B2)),
        odd_a.mul_add(c(A * A2), odd_b.mul_add(c(B * B2), m[5])),
    ]
}

/// The six values of a filter at the points, divided by the denominators of the interpolation.
#[inline(always)]
pub(super) fn filter<const N: usize>(g: [[f64; N]; 3]) -> [[f64; N]; IN] {
    const AT_0: f64 = 1.0 / (A2 * B2);
    const AT_A: f64 = 1.0 / (2.0 * A2 * (A2 - B2));
    const AT_B: f64 = 1.0 / (2.0 * B2 * (B2 - A2));
    let mut u = [[0.0; N]; IN];
    for i in 0..N {
        let (even_a, odd_a) = (AT_A * (g[0][i] + A2 * g[2][i]), AT_A * A * g[1][i]);
        let (even_b, odd_b) = (AT_B * (g[0][i] + B2 * g[2][i]), AT_B * B * g[1][i]);
        u[0][i] = AT_0 * g[0][i];
        u[1][i] = even_a + odd_a;
        u[2][i] = even_a - odd_a;
        u[3][i] = even_b + odd_b;
        u[4][i] = even_b - odd_b;
        u[5][i] = g[2][i];
    }
    u
}
