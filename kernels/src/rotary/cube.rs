//! Rotary embedding on CubeCL's backends: one pass, in place where the memory is free, or the end of a norm.

use burn::tensor::Tensor;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::{RotaryOps, reference_layer_norm_rotary, reference_rms_norm_rotary, reference_rotary};
use crate::cube::rows::Rows;
use crate::cube::{InPlace, addresses, buffer, cubes, dims, elem, empty, primitive, takes, wide, width};
use crate::norm::cube::{Norm, Turn};
use crate::optional::Optional;

impl RotaryOps for CubeBackend {
    fn rotary(x: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
        if takes([&x, &cos, &sin]) { rotary(x, cos, sin) } else { reference_rotary::<Self>(x, cos, sin) }
    }

    fn rms_norm_rotary(
        x: CubeTensor,
        weight: Optional<Self>,
        eps: f64,
        cos: CubeTensor,
        sin: CubeTensor,
    ) -> CubeTensor {
        let norm = Norm { eps, ..Norm::default() };
        normed(norm, &x, [weight.clone().into_option(), None], [&cos, &sin])
            .unwrap_or_else(|| reference_rms_norm_rotary::<Self>(x, weight, eps, cos, sin))
    }

    fn layer_norm_rotary(
        x: CubeTensor,
        weight: Optional<Self>,
        bias: Optional<Self>,
        eps: f64,
        cos: CubeTensor,
        sin: CubeTensor,
    ) -> CubeTensor {
        let norm = Norm { centre: true, eps, ..Norm::default() };
        let parameters = [&weight, &bias].map(|parameter| parameter.clone().into_option());
        normed(norm, &x, parameters, [&cos, &sin])
            .unwrap_or_else(|| reference_layer_norm_rotary::<Self>(x, weight, bias, eps, cos, sin))
    }
}

/// `norm` of each head of `x` with scale and shift, then the rotation; none if the kernel does not take them.
fn normed(
    norm: Norm,
    x: &CubeTensor,
    parameters: [Option<CubeTensor>; 2],
    tables: [&CubeTensor; 2],
) -> Option<CubeTensor> {
    if !takes(tables) {
        return None;
    }
    check(x, tables);
    let turn = Turn { tables: tables.map(|table| into_contiguous(wide(table.clone()))) };
    Norm { turn: Some(turn), ..norm }.of_rows(x, parameters)
}

/// See [`rms_norm_pair`](super::rms_norm_pair); none if the tensors are not this backend's, or the kernel does not take
/// them.
pub(super) fn rms_norm_pair(
    streams: [&Tensor<4>; 2],
    weights: [&Tensor<1>; 2],
    eps: f64,
    rotary: Option<&[Tensor<2>; 2]>,
) -> Option<[Tensor<4>; 2]> {
    let [first, second] = streams.map(primitive);
    let streams = [first?, second?];
    let [b, of_first, h, d] = dims(&streams[0]);
    let [of_b, of_second, of_h, of_d] = dims(&streams[1]);
    assert_eq!([of_b, of_h, of_d], [b, h, d], "both streams have the same images and heads");
    let turn = match rotary {
        None => None,
        Some([cos, sin]) => {
            let tables = [primitive(cos)?, primitive(sin)?];
            let [cos, sin] = &tables;
            if !takes([cos, sin]) {
                return None;
            }
            check(&streams[1], [cos, sin]);
            Some(Turn { tables: tables.map(|table| into_contiguous(wide(table))) })
        }
    };
    if streams[0].dtype != streams[1].dtype || !takes(&streams) {
        return None;
    }
    let whole = empty(&streams[0], [b, of_first + of_second, h, d], streams[0].dtype);
    for (index, (turn, first)) in [(None, 0), (turn, of_first)].into_iter().enumerate() {
        let norm = Norm { eps, turn, ..Norm::default() };
        norm.write(&streams[index], [Some(primitive(weights[index])?), None], (&whole, first))?;
    }
    let whole = Tensor::<4>::from_primitive::<CubeBackend>(whole);
    Some([crate::join::narrow(&whole, 1, 0, of_first), crate::join::narrow(&whole, 1, of_first, of_second)])
}

/// # Panics
/// If `tables` have no angle for each token and pair of `x`.
fn check(x: &CubeTensor, tables: [&CubeTensor; 2]) {
    let [_, n, _, d] = dims(x);
    assert!(d % 2 == 0, "{d} features are no pairs");
    for table in tables {
        assert_eq!(dims(table), [n, d / 2], "an angle for each token and pair");
    }
}

fn rotary(x: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
    check(&x, [&cos, &sin]);
    let [_, n, h, d] = dims(&x);
    if x.meta.num_elements() == 0 {
        return x;
    }
    let [cos, sin] = [cos, sin].map(|table| into_contiguous(wide(table)));
    let in_place = InPlace::new(&x);
    let mut x = Rows::new(x);
    if x.divisors().any(|divisor| divisor % 2 == 1) {
        // Pairs must begin at even places.
        x = Rows::new(into_contiguous(x.tensor));
    }
    let width = width([&x.tensor], x.divisors()).max(2);
    let vectors = x.tensor.meta.num_elements() / width;
    let (count, dim) = cubes(&x.tensor.client, vectors);
    // SAFETY: units below the number of vectors read one vector at the tensor's strides and the angles of its pairs,
    // and write that of the result, which is new or lies where `x` does.
    unsafe {
        kernel::rotary::launch_unchecked(
            &x.tensor.client,
            count,
            dim,
            addresses([&x.tensor]),
            width,
            width / 2,
            buffer(&x.tensor),
            buffer(&cos),
            buffer(&sin),
            in_place.buffer(),
            x.layout(width),
            vectors,
            d / width,
            h,
            n,
            elem(x.tensor.dtype),
        );
    }
    in_place.out
}

pub(crate) mod kernel {
    //! CubeCL's prelude has names that Burn has, too.

    use cubecl::prelude::*;

    use crate::cube::rows::Layout;

    /// `M` is half of `N`.
    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn rotary<F: Float, N: Size, M: Size>(
        x: &[Vector<F, N>],
        cos: &[Vector<f32, M>],
        sin: &[Vector<f32, M>],
        out: &mut [Vector<F, N>],
        layout: Layout,
        vectors: usize,
        vectors_of_row: usize,
        heads: usize,
        tokens: usize,
        #[define(F)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= vectors {
            terminate!();
        }
        let row = ABSOLUTE_POS / vectors_of_row;
        let at = ABSOLUTE_POS % vectors_of_row;
        let of_token = row / heads % tokens * vectors_of_row + at;
        let (cos, sin) = (cos[of_token], sin[of_token]);
        let x = Vector::<f32, N>::cast_from(x[layout.start(row) + at]);
        out[ABSOLUTE_POS] = Vector::cast_from(turned::<N, M>(x, cos, sin));
    }

    /// The pairs of `x`, turned by one angle each.
    #[cube]
    pub(crate) fn turned<N: Size, M: Size>(
        x: Vector<f32, N>,
        cos: Vector<f32, M>,
        sin: Vector<f32, M>,
    ) -> Vector<f32, N> {
        let mut turned = Vector::<f32, N>::empty();
        #[unroll]
        for pair in 0..M::value() {
            let (first, second) = (x.extract(2 * pair), x.extract(2 * pair + 1));
            let (cos, sin) = (cos.extract(pair), sin.extract(pair));
            turned.insert(2 * pair, first * cos - second * sin);
            turned.insert(2 * pair + 1, second * cos + first * sin);
        }
        turned
    }
}
