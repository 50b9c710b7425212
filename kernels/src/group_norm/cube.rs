//! Group norm on CubeCL's backends: moments of parts of a group, which are merged; and their application in one pass,
//! in place where the memory is free.

use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::zeros;
use burn_cubecl::tensor::CubeTensor;

use super::{GroupNormOps, reference_group_norm_moments, reference_norm_act};
use crate::cube::reduce::Plan;
use crate::cube::{InPlace, UNITS, addresses, buffer, cubes, dims, elem, empty, takes, wide, width};

/// Elements of a group that one cube takes. All types are cut and summed alike.
const PART: usize = UNITS * OF_UNIT;

/// Elements of a part that one unit takes, in steps of [`STEP`].
const OF_UNIT: usize = 32;

/// Elements next to each other that one unit takes.
const STEP: usize = 8;

impl GroupNormOps for CubeBackend {
    fn group_norm_moments(x: CubeTensor, groups: usize) -> (CubeTensor, CubeTensor) {
        if takes([&x]) { moments(x, groups) } else { reference_group_norm_moments::<Self>(x, groups) }
    }

    fn norm_act(x: CubeTensor, scale: CubeTensor, shift: CubeTensor, act: bool) -> CubeTensor {
        if takes([&x, &scale, &shift]) {
            norm_act(x, scale, shift, act)
        } else {
            reference_norm_act::<Self>(x, scale, shift, act)
        }
    }
}

fn moments(x: CubeTensor, groups: usize) -> (CubeTensor, CubeTensor) {
    let [b, c, rows, cols] = dims(&x);
    assert_eq!(c % groups, 0, "{groups} groups of {c} channels");
    let count = c / groups * rows * cols;
    if b * count == 0 {
        let zeros = || zeros(x.device.clone(), [b, groups].into(), DType::F32);
        return (zeros(), zeros());
    }
    let x = into_contiguous(x);
    let client = x.client.clone();
    let parts = count.div_ceil(PART);
    let width = width([&x], [count, STEP]);
    let plan = Plan::whole(&client);
    let of_parts = empty(&x, [b * groups, parts, 3], DType::F32);
    let [mean, deviation] = [(); 2].map(|()| empty(&x, [b, groups], DType::F32));
    let (cube_count, dim) = cubes(&client, b * groups * parts * UNITS);
    // SAFETY: units read vectors of their group below its count; the first unit of a cube writes the three moments of
    // its part.
    unsafe {
        kernel::moments_of_parts::launch_unchecked(
            &client,
            cube_count,
            dim,
            addresses([&x]),
            width,
            buffer(&x),
            buffer(&of_parts),
            count,
            parts,
            b * groups * parts,
            plan,
            elem(x.dtype),
        );
    }
    let (cube_count, dim) = cubes(&client, b * groups * UNITS);
    // SAFETY: units read the moments of parts of their group; the first unit of a cube writes those of the group.
    unsafe {
        kernel::merge_parts::launch_unchecked(
            &client,
            cube_count,
            dim,
            addresses([&of_parts]),
            buffer(&of_parts),
            buffer(&mean),
            buffer(&deviation),
            count,
            parts,
            b * groups,
            plan,
        );
    }
    (mean, deviation)
}

fn norm_act(x: CubeTensor, scale: CubeTensor, shift: CubeTensor, act: bool) -> CubeTensor {
    let [b, c, rows, cols] = dims(&x);
    assert_eq!(dims(&scale), [b, c], "a scale for each channel of each image");
    assert_eq!(dims(&shift), [b, c], "a shift for each channel of each image");
    if x.meta.num_elements() == 0 {
        return x;
    }
    let [scale, shift] = [scale, shift].map(|factor| into_contiguous(wide(factor)));
    let x = into_contiguous(x);
    let in_place = InPlace::new(&x);
    let width = width([&x], [rows * cols]);
    let vectors = x.meta.num_elements() / width;
    let (count, dim) = cubes(&x.client, vectors);
    // SAFETY: units below the number of vectors read one vector and the factors of its plane, and write that of the
    // result, which is new or lies where `x` does.
    unsafe {
        kernel::norm_act::launch_unchecked(
            &x.client,
            count,
            dim,
            addresses([&x]),
            width,
            buffer(&x),
            buffer(&scale),
            buffer(&shift),
            in_place.buffer(),
            vectors,
            rows * cols / width,
            act,
            elem(x.dtype),
        );
    }
    in_place.out
}

/// The kernels. CubeCL's prelude has names that Burn has, too.
mod kernel {
    use cubecl::prelude::*;

    use super::{OF_UNIT, PART, STEP};
    use crate::activation::Activation;
    use crate::activation::cube::kernel::apply;
    use crate::cube::UNITS;
    use crate::cube::reduce::{Plan, row_sum};

    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn norm_act<F: Float, N: Size>(
        x: &[Vector<F, N>],
        scale: &[f32],
        shift: &[f32],
        out: &mut [Vector<F, N>],
        vectors: usize,
        vectors_of_plane: usize,
        #[comptime] act: bool,
        #[define(F)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= vectors {
            terminate!();
        }
        let plane = ABSOLUTE_POS / vectors_of_plane;
        let x = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
        let mut y = fma(x, Vector::new(scale[plane]), Vector::new(shift[plane]));
        if act {
            y = apply(y, Activation::Silu);
        }
        out[ABSOLUTE_POS] = Vector::cast_from(y);
    }

    /// Of each part: its mean, what rounding took from that, and the squared deviations from the sum of both.
    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn moments_of_parts<F: Float, N: Size>(
        x: &[Vector<F, N>],
        of_parts: &mut [f32],
        count: usize,
        parts: usize,
        all_parts: usize,
        #[comptime] plan: Plan,
        #[define(F)] _type: ElemType,
    ) {
        // Cubes beyond the last part repeat it.
        let part = min(CUBE_POS, all_parts - 1);
        let first = part % parts * PART + UNIT_POS as usize * STEP;
        let start = part / parts * count;
        let width = N::value();
        let loads = comptime![STEP / width];
        let steps = comptime![OF_UNIT / STEP];
        let mut kept = Array::<Vector<f32, N>>::new(comptime![OF_UNIT / width]);
        let mut sum = 0.0f32;
        #[unroll]
        for step in 0..steps {
            #[unroll]
            for load in 0..loads {
                let at = first + comptime![step * UNITS * STEP + load * width];
                let mut value = Vector::<f32, N>::new(0.0f32);
                if at < count {
                    value = Vector::cast_from(x[(start + at) / width]);
                }
                kept[step * loads + load] = value;
                #[unroll]
                for e in 0..width {
                    sum += value.extract(e);
                }
            }
        }
        let elements = f32::cast_from(min(count - part % parts * PART, PART));
        let mean = row_sum::<Const<1>>(Vector::new(sum), plan).extract(0usize) / elements;

        let mut deviations = 0.0f32;
        let mut squares = 0.0f32;
        #[unroll]
        for step in 0..steps {
            #[unroll]
            for load in 0..loads {
                let at = first + comptime![step * UNITS * STEP + load * width];
                if at < count {
                    let value = kept[step * loads + load] - Vector::new(mean);
                    #[unroll]
                    for e in 0..width {
                        let value = value.extract(e);
                        deviations += value;
                        squares = fma(value, value, squares);
                    }
                }
            }
        }
        let mut sums = Vector::<f32, Const<2>>::new(deviations);
        sums.insert(1usize, squares);
        let sums = row_sum::<Const<2>>(sums, plan);
        if UNIT_POS == 0 {
            let rest = sums.extract(0usize) / elements;
            of_parts[part * 3] = mean;
            of_parts[part * 3 + 1] = rest;
            of_parts[part * 3 + 2] = max(sums.extract(1usize) - sums.extract(0usize) * rest, 0.0f32);
        }
    }

    /// The moments of groups from those of their parts (Chan, Golub and LeVeque).
    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn merge_parts(
        of_parts: &[f32],
        mean: &mut [f32],
        deviation: &mut [f32],
        count: usize,
        parts: usize,
        groups: usize,
        #[comptime] plan: Plan,
    ) {
        let group = min(CUBE_POS, groups - 1);
        let first = group * parts;
        // Means are added up from that of the first part: their differences are exact where they are close.
        let origin = of_parts[first * 3];
        let mut sum = 0.0f32;
        for part in range_stepped(UNIT_POS as usize, parts, UNITS) {
            let at = (first + part) * 3;
            let elements = f32::cast_from(min(count - part * PART, PART));
            sum += elements * (of_parts[at] - origin + of_parts[at + 1]);
        }
        let sum = row_sum::<Const<1>>(Vector::new(sum), plan).extract(0usize);
        let from_origin = sum / f32::cast_from(count);
        let mut squares = 0.0f32;
        for part in range_stepped(UNIT_POS as usize, parts, UNITS) {
            let at = (first + part) * 3;
            let elements = f32::cast_from(min(count - part * PART, PART));
            let apart = of_parts[at] - origin + of_parts[at + 1] - from_origin;
            squares += of_parts[at + 2] + elements * apart * apart;
        }
        let squares = row_sum::<Const<1>>(Vector::new(squares), plan).extract(0usize);
        if UNIT_POS == 0 {
            mean[group] = origin + from_origin;
            deviation[group] = squares;
        }
    }
}
