//! Merging partial results on CubeCL's backends, in one pass over them.

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::cube::rows::Rows;
use crate::cube::{InPlace, addresses, buffer, cubes, dims, elem, empty, wide, width};

/// See [`merge_lse`](crate::attention::merge_lse).
pub(super) fn merge_lse(
    (out_a, lse_a): (CubeTensor, CubeTensor),
    (out_b, lse_b): (CubeTensor, CubeTensor),
) -> (CubeTensor, CubeTensor) {
    let [b, n, h, d] = dims(&out_a);
    assert_eq!(dims(&out_b), [b, n, h, d], "partial results of the same queries");
    assert_eq!((dims(&lse_a), dims(&lse_b)), ([b, n, h], [b, n, h]), "a log-sum-exp for each query and head");
    let [lse_a, lse_b] = [lse_a, lse_b].map(|lse| into_contiguous(wide(lse)));
    if out_a.meta.num_elements() == 0 {
        return (out_a, lse_a);
    }
    let in_place = InPlace::new(&out_a);
    let lse = empty(&lse_a, [b, n, h], DType::F32);
    let (a, b) = (Rows::new(out_a), Rows::new(out_b));
    let width = width([&a.tensor, &b.tensor], a.divisors().chain(b.divisors()));
    let vectors = a.tensor.meta.num_elements() / width;
    let (count, dim) = cubes(&lse.client, vectors);
    // SAFETY: units below the number of vectors read one vector of each part, at its strides, and both logarithms of
    // its row, and write the same ones of the results, of which the first may lie where `out_a` does.
    unsafe {
        kernel::merge::launch_unchecked(
            &lse.client,
            count,
            dim,
            addresses([&a.tensor, &b.tensor]),
            width,
            buffer(&a.tensor),
            buffer(&b.tensor),
            buffer(&lse_a),
            buffer(&lse_b),
            in_place.buffer(),
            buffer(&lse),
            a.layout(width),
            b.layout(width),
            vectors,
            d / width,
            f32::NEG_INFINITY,
            [elem(a.tensor.dtype), elem(b.tensor.dtype)],
        );
    }
    (in_place.out, lse)
}

/// The kernel. CubeCL's prelude has names that Burn has, too.
mod kernel {
    use cubecl::prelude::*;

    use crate::cube::rows::Layout;

    /// `nothing` is -inf, which WGSL has no literal for.
    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn merge<F: Float, G: Float, N: Size>(
        a: &[Vector<F, N>],
        b: &[Vector<G, N>],
        lse_a: &[f32],
        lse_b: &[f32],
        out: &mut [Vector<F, N>],
        lse: &mut [f32],
        layout_of_a: Layout,
        layout_of_b: Layout,
        vectors: usize,
        vectors_of_row: usize,
        nothing: f32,
        #[define(F, G)] _types: [ElemType; 2],
    ) {
        if ABSOLUTE_POS >= vectors {
            terminate!();
        }
        let row = ABSOLUTE_POS / vectors_of_row;
        let at = ABSOLUTE_POS % vectors_of_row;
        let (first, second) = (lse_a[row], lse_b[row]);
        // Finite even if both parts saw no key, so that no -inf is taken from another.
        let largest = max(max(first, second), f32::MIN);
        let share_a = share(first, largest);
        let share_b = share(second, largest);
        let sum = share_a + share_b;
        if at == 0 {
            let rest = select(sum == 1.0f32, 0.0f32, sum.ln());
            lse[row] = select(sum == 0.0f32, nothing, largest + rest);
        }
        // The larger part has weight 1, unless both are empty. Then zeros are divided by 1.
        let inverse = 1.0f32 / max(sum, 1.0f32);
        let a = Vector::<f32, N>::cast_from(a[layout_of_a.start(row) + at]);
        let b = Vector::<f32, N>::cast_from(b[layout_of_b.start(row) + at]);
        let mixed = a * Vector::new(share_a * inverse) + b * Vector::new(share_b * inverse);
        out[ABSOLUTE_POS] = Vector::cast_from(mixed);
    }

    /// `exp(lse - largest)`; exactly 1 for the largest and 0 for -inf, whatever the device's exponential does.
    #[cube]
    fn share(lse: f32, largest: f32) -> f32 {
        let share = select(lse == largest, 1.0f32, (lse - largest).exp());
        select(lse < f32::MIN, 0.0f32, share)
    }
}
