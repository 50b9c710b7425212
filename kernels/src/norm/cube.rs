//! Layer and RMS norms on CubeCL's backends: each row is read once, and kept in registers by the units that share it.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::{NormOps, reference_layer_norm, reference_layer_norm_modulate, reference_rms_norm};
use crate::cube::reduce::Plan;
use crate::cube::rows::{PerImage, Rows};
use crate::cube::{UNITS, addresses, buffer, cubes, dims, elem, empty, takes, width};
use crate::optional::Optional;

impl NormOps for CubeBackend {
    fn layer_norm(x: CubeTensor, weight: Optional<Self>, bias: Optional<Self>, eps: f64) -> CubeTensor {
        let norm = Norm { centre: true, eps, ..Norm::default() };
        let parameters = [&weight, &bias].map(|parameter| parameter.clone().into_option());
        norm.of_rows(&x, parameters).unwrap_or_else(|| reference_layer_norm::<Self>(x, weight, bias, eps))
    }

    fn layer_norm_modulate(x: CubeTensor, shift: CubeTensor, scale: CubeTensor, eps: f64) -> CubeTensor {
        let norm = Norm { centre: true, modulate: true, eps, turn: None };
        let parameters = [&scale, &shift].map(|parameter| PerImage::new(parameter.clone(), dims(&x)));
        norm.launch(&x, parameters.map(Some))
            .unwrap_or_else(|| reference_layer_norm_modulate::<Self>(x, shift, scale, eps))
    }

    fn rms_norm(x: CubeTensor, weight: Optional<Self>, eps: f64) -> CubeTensor {
        let norm = Norm { eps, ..Norm::default() };
        norm.of_rows(&x, [weight.clone().into_option(), None])
            .unwrap_or_else(|| reference_rms_norm::<Self>(x, weight, eps))
    }
}

/// Layer norm if `centre`, else root-mean-square norm; then `· scale + shift`, or `· (1 + scale) + shift` if
/// `modulate`; then a rotation of pairs of features, if there is one.
#[derive(Default)]
pub(crate) struct Norm {
    pub(crate) centre: bool,
    pub(crate) modulate: bool,
    pub(crate) eps: f64,
    pub(crate) turn: Option<Turn>,
}

/// The rotation of the rows of a tensor `[b, n, h, d]`.
pub(crate) struct Turn {
    /// Cosines and sines, `[n, d/2]`, f32 and contiguous.
    pub(crate) tables: [CubeTensor; 2],
}

impl Norm {
    /// [`launch`](Self::launch) with a scale and shift for each feature.
    pub(crate) fn of_rows(&self, x: &CubeTensor, parameters: [Option<CubeTensor>; 2]) -> Option<CubeTensor> {
        let c = x.meta.shape()[x.rank() - 1];
        self.launch(x, parameters.map(|parameter| parameter.map(|tensor| PerImage::shared(tensor, c))))
    }

    /// As [`of_rows`](Self::of_rows) for `x`, `[b, n, h, d]`, into `[b, m, h, d]` from a token on.
    pub(crate) fn write(
        &self,
        x: &CubeTensor,
        parameters: [Option<CubeTensor>; 2],
        place: (&CubeTensor, usize),
    ) -> Option<()> {
        let c = x.meta.shape()[x.rank() - 1];
        let parameters = parameters.map(|parameter| parameter.map(|tensor| PerImage::shared(tensor, c)));
        self.launch_into(x, parameters, Some(place)).map(|_| ())
    }

    /// The norm of `x` with scale and shift; none if the kernel does not take their types or so long rows.
    fn launch(&self, x: &CubeTensor, parameters: [Option<PerImage>; 2]) -> Option<CubeTensor> {
        self.launch_into(x, parameters, None)
    }

    fn launch_into(
        &self,
        x: &CubeTensor,
        parameters: [Option<PerImage>; 2],
        place: Option<(&CubeTensor, usize)>,
    ) -> Option<CubeTensor> {
        let mut given = parameters.iter().flatten();
        if !takes(given.clone().map(|parameter| &parameter.tensor).chain([x])) {
            return None;
        }
        if x.meta.num_elements() == 0 {
            return Some(x.clone());
        }
        // The kernel has one type of parameters.
        let dtype = given.next().map_or(DType::F32, |parameter| parameter.tensor.dtype);
        let parameters = if given.all(|parameter| parameter.tensor.dtype == dtype) {
            parameters
        } else {
            parameters.map(|parameter| parameter.map(PerImage::wide))
        };
        let given = || parameters.iter().flatten();
        let dtype = given().next().map_or(DType::F32, |parameter| parameter.tensor.dtype);
        let rows = Rows::new(x.clone());
        let tensors = || given().map(|parameter| &parameter.tensor).chain([&rows.tensor]);
        let width = width(tensors(), rows.divisors().chain(given().map(|parameter| parameter.of_image)));
        if self.turn.is_some() && width == 1 {
            // Pairs would lie in different units.
            return None;
        }
        let plan = Plan::new(&x.client, rows.len / width)?;
        let [scale, shift] = &parameters;
        let stride = |parameter: &Option<PerImage>| parameter.as_ref().map_or(0, |p| p.of_image / width);
        let argument = |parameter: &Option<PerImage>| parameter.as_ref().map(|p| buffer(&p.tensor));
        let images = if self.modulate || place.is_some() { x.meta.shape()[0] } else { 1 };
        let [cos, sin] = [0, 1].map(|table| self.turn.as_ref().map(|turn| buffer(&turn.tables[table])));
        let [tokens, heads] =
            if self.turn.is_some() { [1, 2].map(|dim| x.meta.shape()[dim]) } else { [1; 2] };

        // Rows of an image there, and the first row of `x` among them.
        let (y, rows_of_place, first) = match place {
            Some((whole, first)) => {
                let [_, tokens, heads, _] = dims(whole);
                (whole.clone(), tokens * heads, first * heads)
            }
            None => (empty(x, x.shape(), x.dtype), rows.count() / images, 0),
        };
        let (count, dim) = cubes(&x.client, rows.count().div_ceil(plan.rows()) * UNITS);
        // SAFETY: units read vectors of rows below the count, at the tensors' strides, and of parameters, which have as
        // many features, of angles of the row's token, and write the same vectors of the result.
        unsafe {
            kernel::norm::launch_unchecked(
                &x.client,
                count,
                dim,
                addresses(tensors().chain([&y])),
                width,
                (width / 2).max(1),
                buffer(&rows.tensor),
                argument(scale).into(),
                argument(shift).into(),
                cos.into(),
                sin.into(),
                buffer(&y),
                rows.layout(width),
                rows.count(),
                rows.count() / images,
                rows_of_place,
                first,
                stride(scale),
                stride(shift),
                heads,
                tokens,
                self.eps as f32,
                plan,
                self.centre,
                self.modulate,
                place.is_some(),
                [elem(x.dtype), elem(dtype)],
            );
        }
        Some(y)
    }
}

mod kernel {
    //! CubeCL's prelude has names that Burn has, too.

    use cubecl::prelude::*;

    use crate::cube::reduce::{Plan, is_below, row_sum};
    use crate::cube::rows::Layout;
    use crate::rotary::cube::kernel::turned;

    /// `M` is half of `N` where pairs are turned.
    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn norm<F: Float, P: Float, N: Size, M: Size>(
        x: &[Vector<F, N>],
        scale: ComptimeOption<&[Vector<P, N>]>,
        shift: ComptimeOption<&[Vector<P, N>]>,
        cos: ComptimeOption<&[Vector<f32, M>]>,
        sin: ComptimeOption<&[Vector<f32, M>]>,
        y: &mut [Vector<F, N>],
        layout: Layout,
        rows: usize,
        rows_of_image: usize,
        rows_of_place: usize,
        first_row: usize,
        stride_of_scale: usize,
        stride_of_shift: usize,
        heads: usize,
        tokens: usize,
        eps: f32,
        #[comptime] plan: Plan,
        #[comptime] centre: bool,
        #[comptime] modulate: bool,
        #[comptime] placed: bool,
        #[define(F, P)] _types: [ElemType; 2],
    ) {
        let unit = UNIT_POS as usize % plan.units;
        let of_cube = comptime![plan.rows()];
        let wanted = CUBE_POS * of_cube + UNIT_POS as usize / plan.units;
        // Units beyond the last row take part in its sums, but do not write.
        let row = min(wanted, rows - 1);
        let start = layout.start(row);
        let count = f32::cast_from(comptime![plan.vectors] * N::value());

        let mut kept = Array::<Vector<f32, N>>::new(plan.each);
        let mut sum = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for i in 0..plan.each {
            let at = i * plan.units + unit;
            let mut value = Vector::<f32, N>::new(0.0f32);
            if is_below(at, plan.vectors, comptime![(i + 1) * plan.units <= plan.vectors]) {
                value = Vector::cast_from(x[start + at]);
            }
            kept[i] = value;
            sum += value;
        }

        let mut rest = 0.0f32;
        let square = if centre {
            let mean = row_sum::<Const<1>>(Vector::new(sum.vector_sum()), plan).extract(0usize) / count;
            // The digits that rounding took from the mean are a mean of their own.
            let mut first = Vector::<f32, N>::new(0.0f32);
            let mut second = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for i in 0..plan.each {
                let mut value = kept[i] - Vector::new(mean);
                let at = i * plan.units + unit;
                if !is_below(at, plan.vectors, comptime![(i + 1) * plan.units <= plan.vectors]) {
                    value = Vector::new(0.0f32);
                }
                kept[i] = value;
                first += value;
                second += value * value;
            }
            let mut parts = Vector::<f32, Const<2>>::new(first.vector_sum());
            parts.insert(1usize, second.vector_sum());
            let sums = row_sum::<Const<2>>(parts, plan);
            rest = sums.extract(0usize) / count;
            sums.extract(1usize) / count - rest * rest
        } else {
            let mut second = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for i in 0..plan.each {
                second += kept[i] * kept[i];
            }
            row_sum::<Const<1>>(Vector::new(second.vector_sum()), plan).extract(0usize) / count
        };
        let inverse = 1.0f32 / (max(square, 0.0f32) + eps).sqrt();

        let image = if modulate { row / rows_of_image } else { 0usize.runtime() };
        let row_of_y =
            if placed { row / rows_of_image * rows_of_place + first_row + row % rows_of_image } else { row };
        if wanted < rows {
            #[unroll]
            for i in 0..plan.each {
                let at = i * plan.units + unit;
                if is_below(at, plan.vectors, comptime![(i + 1) * plan.units <= plan.vectors]) {
                    let mut value = (kept[i] - Vector::new(rest)) * Vector::new(inverse);
                    #[comptime]
                    if let ComptimeOption::Some(scale) = scale {
                        let mut factor = Vector::<f32, N>::cast_from(scale[image * stride_of_scale + at]);
                        if modulate {
                            factor += Vector::new(1.0f32);
                        }
                        value *= factor;
                    }
                    #[comptime]
                    if let ComptimeOption::Some(shift) = shift {
                        value += Vector::cast_from(shift[image * stride_of_shift + at]);
                    }
                    #[comptime]
                    if let ComptimeOption::Some(cos) = cos {
                        #[comptime]
                        if let ComptimeOption::Some(sin) = sin {
                            let angles = row / heads % tokens * plan.vectors + at;
                            value = turned::<N, M>(value, cos[angles], sin[angles]);
                        }
                    }
                    y[row_of_y * plan.vectors + at] = Vector::cast_from(value);
                }
            }
        }
    }
}
